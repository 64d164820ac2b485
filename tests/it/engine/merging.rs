//! Conflicts whose texts are merged.

use memsync::agent::MergeMap;
use memsync::local::history::VersionKind;
use memsync::local::pattern::PathPattern;
use memsync::merge::MergeDriver;
use memsync::sync::Precondition;

use super::*;

const BASE: &str = "# Shop\n\n- milk\n- bread\n- tea\n";
const MINE: &str = "# Shop\n\n- milk, 2 l\n- bread\n- tea\n";
const THEIRS: &str = "# Shop\n\n- milk\n- bread\n- green tea\n";
const BOTH: &str = "# Shop\n\n- milk, 2 l\n- bread\n- green tea\n";

fn note() -> RelPath {
    RelPath::parse("note.md").unwrap()
}

/// A synced note, then a change on each side.
fn apart(config: FakeConfig) -> Story {
    let mut story = Story::new(config);
    story.disk.user_write("note.md", BASE).unwrap();
    story.settle();
    story.disk.user_write("note.md", MINE).unwrap();
    story.server.foreign_put(&note(), THEIRS);
    story
}

fn text(story: &Story) -> String {
    String::from_utf8(story.disk.user_read("note.md").unwrap().to_vec()).unwrap()
}

fn files(story: &Story) -> usize {
    story.disk.user_tree("").len()
}

/// The contents in history with the reason `merged`, the newest first.
fn merged_versions(story: &Story) -> Vec<String> {
    let versions = story.engine.folder().versions(Some("note.md")).unwrap();
    let merged = versions.into_iter().filter(|version| version.kind == VersionKind::Merged);
    merged.map(|v| String::from_utf8(story.disk.user_tree(".memsync/history")[&v.file].to_vec()).unwrap()).collect()
}

fn set(story: &mut Story, options: EngineOptions) {
    story.engine.set_options(options, Arc::new(|_: &str, _: bool| false), Arc::new(story.server.client()));
}

fn asked_for_versions(story: &Story) -> bool {
    story.server.calls().iter().any(|call| matches!(call.request, FakeRequest::Versions(_)))
}

#[test]
fn changes_of_both_sides_are_merged_and_uploaded() {
    for config in [FakeConfig::default(), plain(), FakeConfig { versions: true, ..plain() }] {
        let mut story = apart(config);
        let report = story.cycle(ScanScope::full()).unwrap();
        assert_eq!((report.merged, report.downloaded, report.conflicts.len(), report.again), (1, 0, 0, true));
        assert!(report.wrote());
        let done: Vec<_> = report.recent.iter().map(|done| (done.path.as_str(), done.action)).collect();
        assert_eq!(done, [("note.md", "merged")]);
        assert_eq!(text(&story), BOTH);
        assert_eq!(merged_versions(&story), [MINE, THEIRS], "the own version can be restored without a number");
        story.settle();
        assert_eq!((story.server.contents()[&note()].as_ref(), files(&story)), (BOTH.as_bytes(), 1), "{config:?}");
        let last = story.server.calls().into_iter().rfind(|call| call.wrote).unwrap();
        let expected = Precondition::Holds(Md5::of(THEIRS.as_bytes()));
        assert!(matches!(last.request, FakeRequest::Put { precondition, .. } if precondition == expected), "{last:?}");
        assert!(story.disk.user_tree(".memsync/stage").is_empty());
    }
}

#[test]
fn merged_text_is_uploaded_after_a_restart() {
    let mut story = apart(FakeConfig::default());
    assert_eq!(story.cycle(ScanScope::full()).unwrap().merged, 1);
    story.disk.set_time(1_900_000_000_000_000_000);
    story.restart();
    story.settle();
    assert_eq!((story.server.contents()[&note()].as_ref(), text(&story).as_str()), (BOTH.as_bytes(), BOTH));
    assert_eq!(files(&story), 1);
}

#[test]
fn refused_upload_merges_with_the_content_that_won() {
    let mut story = apart(plain());
    story.cycle(ScanScope::full()).unwrap();
    // The index does not show this write yet.
    let entry = story.server.index_entry(&note());
    story.server.foreign_put(&note(), format!("{THEIRS}\nBuy today.\n"));
    story.server.set_index_entry(&note(), entry);
    story.settle();
    assert_eq!(text(&story), format!("{BOTH}\nBuy today.\n"));
    assert_eq!((story.server.contents()[&note()].as_ref(), files(&story)), (text(&story).as_bytes(), 1));
}

#[test]
fn conflicting_changes_are_both_kept() {
    let mut story = apart(FakeConfig::default());
    story.server.foreign_put(&note(), BASE.replace("milk", "oat milk"));
    let report = story.cycle(ScanScope::full()).unwrap();
    assert_eq!((report.merged, report.conflicts.len()), (0, 1));
    assert_eq!((text(&story), merged_versions(&story).len()), (BASE.replace("milk", "oat milk"), 0));
    assert_eq!(story.disk.user_read(report.conflicts[0].as_str()).unwrap(), MINE);
}

#[test]
fn unknown_base_keeps_both_versions() {
    let mut story = apart(FakeConfig { keeps_versions: false, ..FakeConfig::default() });
    for name in story.state.user_tree("").into_keys().filter(|name| name.contains(".texts/")) {
        story.state.user_remove(&name).unwrap();
    }
    let report = story.cycle(ScanScope::full()).unwrap();
    assert_eq!((report.merged, report.conflicts.len()), (0, 1));
    assert_eq!(text(&story), THEIRS);
}

#[test]
fn base_is_found_in_local_history() {
    let mut story = Story::new(FakeConfig { keeps_versions: false, ..FakeConfig::default() });
    set(&mut story, EngineOptions { merge: None, ..options() });
    story.disk.user_write("note.md", BASE).unwrap();
    story.settle();
    set(&mut story, options());
    // `memsync restore` moves the present file to history.
    story.disk.user_write("older.md", MINE).unwrap();
    let put = memsync::local::FolderChange::Put { from: "older.md".to_owned(), at: "note.md".to_owned() };
    story.engine.change_folder(&put).unwrap();
    story.server.foreign_put(&note(), THEIRS);
    story.settle();
    assert_eq!(text(&story), BOTH);
    assert_eq!(merged_versions(&story), [MINE, THEIRS]);
}

#[test]
fn base_is_found_in_the_shadow_without_versions() {
    for config in
        [FakeConfig { keeps_versions: false, ..FakeConfig::default() }, FakeConfig { keeps_versions: false, ..plain() }]
    {
        let mut story = apart(config);
        story.restart();
        assert_eq!(story.cycle(ScanScope::full()).unwrap().merged, 1);
        story.settle();
        assert_eq!((text(&story).as_str(), files(&story)), (BOTH, 1));
        // The text of a download is kept too, and that of a merge.
        story.server.foreign_put(&note(), BASE);
        story.settle();
        story.disk.user_write("note.md", MINE).unwrap();
        story.server.foreign_put(&note(), THEIRS);
        story.settle();
        assert_eq!((text(&story).as_str(), files(&story)), (BOTH, 1));
    }
}

#[test]
fn shadow_holds_texts_only_where_they_are_needed() {
    let shadow = |story: &Story| story.state.user_tree("").into_keys().filter(|name| name.contains(".texts/")).count();
    let without = FakeConfig { keeps_versions: false, ..FakeConfig::default() };
    let mut story = Story::new(without);
    for (name, content) in
        [("a.md", b"text".to_vec()), ("b.md", b"\xff".to_vec()), ("c.md", vec![b'a'; (256 << 10) + 1])]
    {
        story.disk.user_write(name, content).unwrap();
    }
    story.settle();
    assert_eq!(shadow(&story), 1);
    for (config, merge) in [(FakeConfig::default(), Some(MergeMap::default())), (without, None)] {
        let mut story = Story::new(config);
        set(&mut story, EngineOptions { merge, ..options() });
        story.disk.user_write("a.md", "text").unwrap();
        story.settle();
        assert_eq!(shadow(&story), 0);
    }
}

#[test]
fn shadow_that_cannot_be_written_holds_up_nothing() {
    let mut story = Story::new(FakeConfig { keeps_versions: false, ..FakeConfig::default() });
    story.state.set_hook(Some(Box::new(|op| match op.kind {
        kind if kind.writes() && op.path.contains(".texts") => StepFate::Fail(ErrorKind::StorageFull),
        _ => StepFate::Go,
    })));
    story.disk.user_write("note.md", BASE).unwrap();
    story.settle();
    assert_eq!((story.names(), story.engine.failing()), (vec!["note.md".to_owned()], 0));
}

#[test]
fn earlier_version_of_the_proxy_is_no_conflict() {
    let mut story = Story::new(FakeConfig::default());
    for content in ["first", "second", "third"] {
        story.server.foreign_put(&note(), content);
    }
    // A folder from a backup, without its state.
    story.disk.user_write("note.md", "first").unwrap();
    let report = story.cycle(ScanScope::full()).unwrap();
    assert_eq!((report.downloaded, report.merged, report.conflicts.len()), (1, 0, 0));
    assert_eq!(report.recent[0].action, "download");
    story.settle();
    assert_eq!((text(&story).as_str(), files(&story)), ("third", 1));
    assert!(story.disk.user_tree(".memsync/history").values().any(|kept| kept == "first"));
}

#[test]
fn edit_back_to_an_earlier_version_is_merged_as_an_edit() {
    let mut story = Story::new(FakeConfig::default());
    for content in [MINE, BASE] {
        story.disk.user_write("note.md", content).unwrap();
        story.settle();
    }
    story.disk.user_write("note.md", MINE).unwrap();
    story.server.foreign_put(&note(), THEIRS);
    assert_eq!(story.cycle(ScanScope::full()).unwrap().merged, 1);
    assert_eq!(text(&story), BOTH);
}

#[test]
fn text_that_comes_back_after_a_deletion_is_an_edit() {
    let mut story = Story::new(FakeConfig { keeps_versions: true, ..plain() });
    story.disk.user_write("note.md", BASE).unwrap();
    story.settle();
    assert!(story.server.server_delete(&note()));
    story.settle();
    assert!(story.disk.user_read("note.md").is_err());
    // Another device writes a new file of this name while the user brings the old one back.
    story.server.foreign_put(&note(), "another text");
    story.disk.user_write("note.md", BASE).unwrap();
    let report = story.cycle(ScanScope::full()).unwrap();
    assert_eq!((report.merged, report.conflicts.len()), (0, 1));
    let copy = report.conflicts[0].as_str();
    assert_eq!(story.disk.user_read(copy).unwrap(), BASE);
}

#[test]
fn later_version_than_the_base_is_no_conflict() {
    let mut story = Story::new(FakeConfig { keeps_versions: true, ..plain() });
    story.disk.user_write("note.md", BASE).unwrap();
    story.settle();
    // The file came from the other device by another way than sync.
    story.server.foreign_put(&note(), MINE);
    story.server.foreign_put(&note(), "another text");
    story.disk.user_write("note.md", MINE).unwrap();
    let report = story.cycle(ScanScope::full()).unwrap();
    assert_eq!((report.downloaded, report.merged, report.conflicts.len()), (1, 0, 0));
    assert_eq!(text(&story), "another text");
}

#[test]
fn texts_without_a_base_are_merged_if_one_extends_the_other() {
    for (mine, theirs, merged) in [("a\n", "a\nb\n", Some("a\nb\n")), ("a\n", "b\n", None)] {
        let mut story = Story::new(FakeConfig::default());
        story.server.foreign_put(&note(), theirs);
        story.disk.user_write("note.md", mine).unwrap();
        let report = story.cycle(ScanScope::full()).unwrap();
        assert_eq!((report.merged, report.conflicts.len()), if merged.is_some() { (1, 0) } else { (0, 1) });
        story.settle();
        assert_eq!(text(&story), merged.unwrap_or(theirs));
    }
}

#[test]
fn copy_keeps_both_versions_and_asks_nothing() {
    let mut map = MergeMap::default();
    map.push(PathPattern::new("*.md").unwrap(), MergeDriver::Copy);
    for merge in [None, Some(map)] {
        let mut story = apart(FakeConfig::default());
        set(&mut story, EngineOptions { merge, ..options() });
        assert_eq!(story.cycle(ScanScope::full()).unwrap().conflicts.len(), 1);
        assert!(text(&story) == THEIRS && !asked_for_versions(&story));
    }
}

#[test]
fn file_is_merged_in_the_configured_way() {
    let mut map = MergeMap::default();
    map.push(PathPattern::new("note.*").unwrap(), MergeDriver::Json);
    let mut story = apart(FakeConfig::default());
    set(&mut story, EngineOptions { merge: Some(map), ..options() });
    assert_eq!(story.cycle(ScanScope::full()).unwrap().conflicts.len(), 1, "the note is no JSON");
}

#[test]
fn merge_without_an_end_keeps_both_versions() {
    let mut story = apart(FakeConfig::default());
    for n in 0..3 {
        assert_eq!(story.cycle(ScanScope::full()).unwrap().merged, 1, "{n}");
        // Another device is faster each time.
        story.server.foreign_put(&note(), format!("{THEIRS}- {n}\n"));
    }
    let report = story.cycle(ScanScope::full()).unwrap();
    assert_eq!((report.merged, report.conflicts.len()), (0, 1));
    assert_eq!(text(&story), format!("{THEIRS}- 2\n"));
    // A minute later it is merged again.
    story.settle();
    story.clock.0.fetch_add(60, Ordering::Relaxed);
    story.disk.user_write("note.md", format!("{MINE}- 2\n")).unwrap();
    story.server.foreign_put(&note(), format!("{THEIRS}- 2\n- 3\n"));
    assert_eq!(story.cycle(ScanScope::full()).unwrap().merged, 1);
}

#[test]
fn merges_that_reach_the_proxy_never_count_as_endless() {
    let mut story = apart(FakeConfig::default());
    story.settle();
    for n in 0..6 {
        let before = text(&story);
        story
            .disk
            .user_write("note.md", before.replace("- milk, 2 l\n", &format!("- milk, 2 l\n- mine {n}\n")))
            .unwrap();
        story.server.foreign_put(&note(), format!("{before}- theirs {n}\n"));
        assert_eq!(story.cycle(ScanScope::full()).unwrap().merged, 1, "{n}");
        story.settle();
    }
    assert_eq!(files(&story), 1);
}

#[test]
fn large_and_binary_files_are_never_merged() {
    for (base, mine, theirs) in [
        (
            vec![b'\n'; 1 << 20],
            [b"a".to_vec(), vec![b'\n'; 1 << 20]].concat(),
            [vec![b'\n'; 1 << 20], b"b".to_vec()].concat(),
        ),
        (b"\xff\nb\nc\n".to_vec(), b"\xfe\nb\nc\n".to_vec(), b"\xff\nb\nd\n".to_vec()),
    ] {
        let mut story = Story::new(FakeConfig::default());
        set(&mut story, EngineOptions { max_file_size: 4 << 20, ..options() });
        story.disk.user_write("note.md", base).unwrap();
        story.settle();
        story.disk.user_write("note.md", mine).unwrap();
        story.server.foreign_put(&note(), theirs);
        assert_eq!(story.cycle(ScanScope::full()).unwrap().conflicts.len(), 1);
    }
}

#[test]
fn result_beyond_the_size_limit_is_not_written() {
    let mut story = apart(FakeConfig::default());
    set(&mut story, EngineOptions { max_file_size: BOTH.len() as u64 - 1, ..options() });
    assert_eq!(story.cycle(ScanScope::full()).unwrap().conflicts.len(), 1);
}

#[test]
fn edit_during_a_merge_becomes_a_copy() {
    let mut story = apart(FakeConfig::default());
    story.disk.set_hook(Some(Box::new(|op| {
        if op.kind == StepKind::Exchange {
            op.disk.user_write("note.md", "edited a moment ago").unwrap();
        }
        StepFate::Go
    })));
    let report = story.cycle(ScanScope::full()).unwrap();
    story.disk.set_hook(None);
    assert_eq!((report.merged, report.conflicts.len()), (1, 1));
    assert_eq!(text(&story), BOTH);
    assert_eq!(story.disk.user_read(report.conflicts[0].as_str()).unwrap(), "edited a moment ago");
    story.settle();
    assert_eq!(story.server.contents().len(), 2);
}

#[test]
fn merge_is_not_made_if_history_cannot_keep_the_versions() {
    let mut story = apart(FakeConfig::default());
    story.disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::RenameNew if op.to.is_some_and(|to| to.ends_with("-merged")) => {
            StepFate::Fail(ErrorKind::StorageFull)
        }
        _ => StepFate::Go,
    })));
    let report = story.cycle(ScanScope::full()).unwrap();
    assert_eq!((report.merged, report.failed, text(&story).as_str()), (0, 1, MINE));
    story.disk.set_hook(None);
    story.engine.retry_all();
    story.settle();
    assert_eq!((text(&story).as_str(), files(&story)), (BOTH, 1));
    assert!(story.disk.user_tree(".memsync/stage").is_empty());
}

#[test]
fn history_has_both_versions_before_the_file_is_replaced() {
    let mut story = apart(FakeConfig::default());
    story.disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::Exchange => StepFate::Kill,
        _ => StepFate::Go,
    })));
    let _ = story.cycle(ScanScope::full());
    story.disk.set_hook(None);
    for disk in [&story.disk, &story.state] {
        disk.power_cut(&mut fastrand::Rng::with_seed(1));
    }
    assert_eq!(text(&story), MINE);
    let kept: BTreeSet<_> = story.disk.user_tree(".memsync/history").into_values().collect();
    assert_eq!(kept, [MINE, THEIRS].map(Into::into).into(), "they survive a power cut");
    story.restart();
    nothing_is_lost(&mut story, "the exchange");
}

/// All lines of both versions are in the folder, and both versions are in history if they were merged.
#[track_caller]
fn nothing_is_lost(story: &mut Story, place: &str) {
    story.settle();
    let tree = story.disk.user_tree("");
    let all = tree.values().map(|content| String::from_utf8(content.to_vec()).unwrap()).collect::<String>();
    for line in ["- milk, 2 l\n", "- green tea\n", "- bread\n"] {
        assert!(all.contains(line), "{place}: {line:?} is lost: {tree:?}");
    }
    let there: Vec<_> = story.server.contents().into_values().collect();
    assert_eq!(tree.clone().into_values().collect::<Vec<_>>(), there, "{place}");
    assert_eq!(tree.len(), 1, "{place}: {tree:?}");
    let kept: Vec<_> = story.disk.user_tree(".memsync/history").into_values().collect();
    assert!([MINE, THEIRS].iter().all(|text| kept.iter().any(|kept| kept == text)), "{place}: {kept:?}");
    assert!(story.disk.user_tree(".memsync/stage").is_empty(), "{place}");
}

#[test]
fn crash_before_any_write_of_a_merge_loses_nothing() {
    for (power, no_exchange) in [(false, false), (true, false), (false, true), (true, true)] {
        for number in 0.. {
            let mut story = apart(FakeConfig::default());
            let count = Arc::new(AtomicU64::new(0));
            for disk in [&story.disk, &story.state] {
                let count = count.clone();
                disk.set_hook(Some(Box::new(move |op| {
                    if op.kind.writes() && count.fetch_add(1, Ordering::Relaxed) == number {
                        return StepFate::Kill;
                    }
                    let is_refused = no_exchange && op.kind == StepKind::Exchange;
                    if is_refused { StepFate::Fail(ErrorKind::Unsupported) } else { StepFate::Go }
                })));
            }
            for _ in 0..3 {
                if story.cycle(ScanScope::full()).is_err() {
                    break;
                }
            }
            story.engine.folder().disk().kill();
            story.disk.set_hook(None);
            story.state.set_hook(None);
            if power {
                for disk in [&story.disk, &story.state] {
                    disk.power_cut(&mut fastrand::Rng::with_seed(number));
                }
            }
            story.restart();
            nothing_is_lost(&mut story, &format!("write {number}, power cut: {power}, no exchange: {no_exchange}"));
            if count.load(Ordering::Relaxed) <= number {
                break;
            }
        }
    }
}

#[test]
fn lost_request_or_reply_of_a_merge_loses_nothing() {
    for what in [LostPart::Request, LostPart::Reply] {
        for skip in 0.. {
            let mut story = apart(FakeConfig::default());
            story.server.lose(skip, what);
            for _ in 0..3 {
                let _ = story.cycle(ScanScope::full());
            }
            if story.server.is_losing() {
                break;
            }
            story.engine.retry_all();
            nothing_is_lost(&mut story, &format!("{what:?} {skip}"));
        }
    }
}

/// Several devices on one proxy.
fn devices(count: usize, config: FakeConfig, seed: u64) -> Vec<Story> {
    let server = FakeServer::new(config, seed);
    let mut devices = Vec::new();
    for _ in 0..count {
        let (disk, state) = (SimDisk::new(), SimDisk::new());
        let clock = Arc::new(Clock(AtomicU64::new(0), Mutex::default()));
        let engine = Story::open(&disk, &state, &server, &clock);
        devices.push(Story { disk, state, server: server.clone(), clock, engine });
    }
    devices
}

/// Runs one cycle of each device at the same time.
fn cycles_at_once(devices: &mut [Story]) {
    let mut cycles: Vec<_> = devices
        .iter_mut()
        .map(|device| {
            device.clock.0.fetch_add(2, Ordering::Relaxed);
            Some(Box::pin(device.engine.cycle(ScanScope::full())))
        })
        .collect();
    let mut context = Context::from_waker(futures::task::noop_waker_ref());
    while cycles.iter().any(Option::is_some) {
        for slot in &mut cycles {
            if let Some(cycle) = slot
                && let Poll::Ready(result) = cycle.as_mut().poll(&mut context)
            {
                result.unwrap();
                *slot = None;
            }
        }
    }
}

#[test]
fn devices_that_merge_at_the_same_time_converge() {
    for seed in 0..20 {
        let mut devices = devices(3, FakeConfig { yields: 0.5, ..FakeConfig::default() }, seed);
        let lines: Vec<String> = (0..9).map(|n| format!("- item {n}\n")).collect();
        devices[0].disk.user_write("note.md", lines.concat()).unwrap();
        for _ in 0..3 {
            cycles_at_once(&mut devices);
        }
        for (n, device) in devices.iter().enumerate() {
            let mut edited = lines.clone();
            edited[n * 3] = format!("- item {} of device {n}\n", n * 3);
            device.disk.user_write("note.md", edited.concat()).unwrap();
        }
        for _ in 0..6 {
            cycles_at_once(&mut devices);
        }
        let expected: String = (0..9)
            .map(|n| if n % 3 == 0 { format!("- item {n} of device {}\n", n / 3) } else { format!("- item {n}\n") })
            .collect();
        let server = devices[0].server.clone();
        let writes = server.writes();
        cycles_at_once(&mut devices);
        assert_eq!(server.writes(), writes, "they are at rest");
        for device in &devices {
            assert_eq!((text(device), files(device)), (expected.clone(), 1));
        }
    }
}

#[test]
fn devices_that_merge_the_same_versions_write_the_same_bytes() {
    let mut devices = devices(2, FakeConfig { yields: 1.0, ..FakeConfig::default() }, 1);
    devices[0].disk.user_write("note.md", BASE).unwrap();
    for _ in 0..3 {
        cycles_at_once(&mut devices);
    }
    devices.iter().for_each(|device| device.disk.user_write("note.md", MINE).unwrap());
    devices[0].server.foreign_put(&note(), THEIRS);
    let server = devices[0].server.clone();
    server.take_calls();
    for _ in 0..3 {
        cycles_at_once(&mut devices);
    }
    assert_eq!(server.writes(), 1, "the second upload finds its own content");
    for device in &devices {
        assert_eq!((text(device).as_str(), files(device), merged_versions(device).len()), (BOTH, 1, 2));
    }
}
