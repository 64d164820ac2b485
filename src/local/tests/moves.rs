//! Moves, conflict copies, the sweep and the history.

use super::*;

#[test]
fn conflict_names_are_short_and_never_nest() {
    let content = Md5::of(b"x");
    let short = content.short();
    for (name, expect) in [
        ("a.md", format!("a.conflict-dev-{short}.md")),
        ("a", format!("a.conflict-dev-{short}")),
        (".profile", format!(".profile.conflict-dev-{short}")),
        ("a.tar.gz", format!("a.tar.conflict-dev-{short}.gz")),
        // The copy of a copy is named after the original, also where a device has dashes and the copy a number.
        ("a.conflict-my-old-mac-01234567.md", format!("a.conflict-dev-{short}.md")),
        ("a.conflict-other-01234567-2.md", format!("a.conflict-dev-{short}.md")),
        // Not the name of a copy.
        ("a.conflict-01234567.md", format!("a.conflict-01234567.conflict-dev-{short}.md")),
        ("a.conflict-dev-0123456X.md", format!("a.conflict-dev-0123456X.conflict-dev-{short}.md")),
    ] {
        let copy = conflict_name(name, "dev", content, 1);
        assert_eq!(copy, expect);
        assert!(is_conflict_name(&copy), "{copy}");
        assert_eq!(conflict_name(&copy, "dev", content, 1), copy, "a name must not nest");
    }
    assert_eq!(conflict_name("a.md", "dev", content, 2), format!("a.conflict-dev-{short}-2.md"));
    let long = format!("{}.md", "é".repeat(126));
    // A dot far from the end begins no extension. The copy of such a name must fit as well.
    let dotted = format!("x.{}", "y".repeat(253));
    let copy = conflict_name(&dotted, "dev", content, 1);
    assert!(copy.len() <= 255 && is_conflict_name(&copy), "{copy}");
    assert_eq!(conflict_name(&copy, "dev", content, 1), copy);
    let copy = conflict_name(&long, "dev", content, 1);
    assert!(copy.len() <= crate::path::MAX_SEGMENT && copy.len() > 250 && copy.ends_with(".md"));
    assert!(RelPath::parse(&copy).is_ok());
}

fn replace(folder: &Folder<SimDisk>, at: &str, content: &str, expect: &str) -> MoveOutcome {
    let staged = staged(folder, content);
    let step = FileMove::Replace { path: p(at), at: at.into(), staged, expect: Md5::of(expect.as_bytes()) };
    folder.perform(vec![step], &[], now()).unwrap().moved.remove(0)
}

#[test]
fn replace_keeps_the_old_content_and_the_permissions() {
    let (disk, folder) = folder();
    disk.user_write("d/a", "old").unwrap();
    folder.disk().open("d/a").unwrap().set_mode(0o640).unwrap();
    assert!(matches!(replace(&folder, "d/a", "new", "old"), MoveOutcome::Done { copy: None, .. }));
    assert_eq!(disk.user_read("d/a").unwrap(), "new");
    assert_eq!(disk.user_stat("d/a").unwrap().mode, 0o640);
    let kept = kept(&disk);
    assert_eq!((kept.len(), kept[0].1.as_str()), (1, "old"));
    assert!(kept[0].0.starts_with(".memsync/history/d/a.") && kept[0].0.ends_with("-replaced"), "{kept:?}");
}

#[test]
fn last_moment_edit_becomes_a_copy_with_and_without_exchange() {
    for no_exchange in [false, true] {
        let (disk, folder) = folder();
        disk.user_write("a", "old").unwrap();
        disk.set_hook(Some(Box::new(move |op| match op.kind {
            StepKind::Exchange if no_exchange => StepFate::Fail(ErrorKind::Unsupported),
            StepKind::SyncDir if op.path == ".memsync/stage" && op.disk.user_read("a").unwrap() == "old" => {
                op.disk.user_write("a", "edit").unwrap();
                StepFate::Go
            }
            _ => StepFate::Go,
        })));
        let MoveOutcome::Done { copy: Some(copy), .. } = replace(&folder, "a", "new", "old") else { panic!("no copy") };
        assert_eq!(disk.user_read("a").unwrap(), "new");
        assert_eq!(disk.user_read(copy.as_str()).unwrap(), "edit");
        assert!(kept(&disk).is_empty() && disk.user_tree(".memsync/stage").is_empty());
    }
}

#[test]
fn file_at_the_path_of_a_displaced_one_never_stops_the_sweep() {
    // During the move to history, the user replaces the file by a folder, and the folder by a file.
    let (disk, folder) = folder();
    disk.user_write("a", "old").unwrap();
    disk.set_hook(Some(Box::new(|op| {
        if op.kind == StepKind::RenameNew && op.path == "a" {
            op.disk.user_remove("a").unwrap();
            op.disk.user_mkdir("a/empty").unwrap();
        }
        if op.kind == StepKind::RenameNew && op.to == Some("a") {
            op.disk.user_write("a", "file again").unwrap();
        }
        StepFate::Go
    })));
    let step = FileMove::Trash { path: p("a"), at: "a".into(), expect: Md5::of(b"old") };
    let done = folder.perform(vec![step], &[], now()).unwrap();
    assert!(matches!(done.moved[0], MoveOutcome::Stale { .. }), "{:?}", done.moved);
    disk.set_hook(None);
    folder.sweep(now()).unwrap();
    assert_eq!(disk.user_read("a").unwrap(), "file again");
    assert!(folder.disk().list(".memsync/stage").unwrap().is_empty());
}

#[test]
fn sweep_removes_downloads_and_nothing_else() {
    let (disk, folder) = folder();
    let stage = |name: &str| format!(".memsync/stage/{name}");
    let run = "0123456789abcdef";
    disk.user_write(&stage(&format!("{run}-0")), "a download").unwrap();
    disk.user_write(&stage(&format!("{run}-1.displaced")), "a user's").unwrap();
    disk.user_write(&stage("notes.txt"), "unknown origin").unwrap();
    disk.user_mkdir(&stage("dir")).unwrap();
    // A sweep renamed it and was killed before it checked.
    disk.user_write(&stage("x"), "another download").unwrap();
    let inode = disk.user_stat(&stage("x")).unwrap().inode;
    disk.user_rename(&stage("x"), &stage(&format!("{run}-2.{inode}.displaced"))).unwrap();
    disk.user_write(&stage(&format!("{run}-3.{inode}.displaced")), "exchanged for the download").unwrap();
    folder.sweep(now()).unwrap();
    let mut contents: Vec<String> = kept(&disk).into_iter().map(|(_, content)| content).collect();
    contents.sort();
    assert_eq!(contents, ["a user's", "exchanged for the download", "unknown origin"]);
    let left: Vec<_> = folder.disk().list(".memsync/stage").unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["dir"]);
}

/// The user edits `n/a` just before it is replaced, and moves the folder away before the copy is placed.
fn copy_of_an_edit_in_a_moved_folder(before: StepKind, then_a_file: bool) -> (SimDisk, String) {
    let (disk, folder) = folder();
    disk.user_write("n/a", "old").unwrap();
    disk.set_hook(Some(Box::new(move |op| {
        if op.kind == StepKind::Exchange {
            op.disk.user_write("n/a", "edit").unwrap();
        }
        let displaced = op.disk.user_read("n/a").is_ok_and(|content| content == "new");
        if op.kind == before && op.path == "n" && displaced {
            op.disk.user_rename("n", "o").unwrap();
            if then_a_file {
                op.disk.user_write("n", "a file").unwrap();
            }
        }
        StepFate::Go
    })));
    let MoveOutcome::Done { copy: Some(copy), .. } = replace(&folder, "n/a", "new", "old") else { panic!("no copy") };
    assert_eq!(disk.user_read(copy.as_str()).unwrap(), "edit");
    assert_eq!(disk.user_read("o/a").unwrap(), "new");
    assert!(kept(&disk).is_empty() && disk.user_tree(".memsync/stage").is_empty());
    (disk, copy.as_str().to_owned())
}

#[test]
fn copy_goes_to_the_folder_above_if_its_folder_is_a_file() {
    let (disk, copy) = copy_of_an_edit_in_a_moved_folder(StepKind::Mkdir, true);
    assert_eq!(disk.user_read("n").unwrap(), "a file");
    assert!(!copy.contains('/') && is_conflict_name(&copy), "{copy}");
}

#[test]
fn folder_removed_meanwhile_is_created_again_for_the_copy() {
    let (_, copy) = copy_of_an_edit_in_a_moved_folder(StepKind::Stat, false);
    assert!(copy.starts_with("n/"), "{copy}");
}

#[test]
fn folder_makes_room_only_without_a_file_in_it() {
    let (disk, folder) = folder();
    disk.user_mkdir("empty/more/still").unwrap();
    assert!(folder.make_room("empty").unwrap());
    assert!(disk.user_stat("empty").is_err());
    disk.user_mkdir("full/more").unwrap();
    disk.user_write("full/last/x", "1").unwrap();
    assert!(!folder.make_room("full").unwrap());
    assert!(disk.user_stat("full/more").is_ok(), "a refusal must remove nothing");
    assert!(folder.make_room("nothing").unwrap() && folder.make_room("full/last/x").unwrap());
}

// ---- failures of one file ----

/// Makes every call of `kind` on `path` fail.
fn fail_on(disk: &SimDisk, kind: StepKind, path: &'static str) {
    disk.set_hook(Some(Box::new(move |op| match op.kind == kind && op.path == path {
        true => StepFate::Fail(ErrorKind::Other),
        false => StepFate::Go,
    })));
}

#[test]
fn file_that_cannot_be_synced_does_not_stop_the_others() {
    let (disk, folder) = folder();
    disk.user_write("a", "1").unwrap();
    disk.user_write("b", "2").unwrap();
    fail_on(&disk, StepKind::Sync, "a");
    let staged = staged(&folder, "new");
    let step = FileMove::Create { path: p("c"), at: "c".into(), staged };
    let report = folder.perform(vec![step], &["a".to_owned(), "b".to_owned()], now()).unwrap();
    assert_eq!(report.unsettled.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(report.unsettled["a"].kind(), ErrorKind::Other);
    assert!(matches!(report.moved[0], MoveOutcome::Done { .. }), "{:?}", report.moved);
}

#[test]
fn download_that_cannot_be_synced_fails_alone() {
    let (disk, folder) = folder();
    let (bad, good) = (staged(&folder, "bad"), staged(&folder, "good"));
    let slot = bad.slot().to_owned();
    disk.set_hook(Some(Box::new(move |op| match op.kind == StepKind::Sync && op.path == slot {
        true => StepFate::Fail(ErrorKind::Other),
        false => StepFate::Go,
    })));
    let create = |name: &str, staged| FileMove::Create { path: p(name), at: name.into(), staged };
    let report = folder.perform(vec![create("bad", bad), create("good", good)], &[], now()).unwrap();
    assert!(matches!(report.moved[..], [MoveOutcome::Failed(_), MoveOutcome::Done { .. }]), "{:?}", report.moved);
    assert_eq!(disk.user_read("good").unwrap(), "good");
    assert!(disk.user_tree(".memsync/stage").is_empty() && !report.left_over);
}

#[test]
fn failed_command_leaves_nothing_in_the_stage() {
    let (disk, folder) = folder();
    disk.user_write("a", "old").unwrap();
    disk.user_write("b", "new").unwrap();
    let failed = AtomicBool::new(false);
    disk.set_hook(Some(Box::new(move |op| {
        let to_history = op.kind == StepKind::RenameNew && op.to.is_some_and(|to| to.starts_with(".memsync/history/"));
        match to_history && !failed.swap(true, Ordering::Relaxed) {
            true => StepFate::Fail(ErrorKind::StorageFull),
            false => StepFate::Go,
        }
    })));
    let put = FolderChange::Put { from: "b".into(), at: "a".into() };
    let e = folder.change_and_sweep(&put, now()).unwrap_err();
    assert_eq!(e.effect, change::ChangeEffect::Replaced, "{e}");
    assert_eq!(disk.user_read("a").unwrap(), "new");
    assert!(disk.user_tree(".memsync/stage").is_empty(), "{:?}", disk.user_tree(".memsync/stage"));
    assert_eq!(kept(&disk).len(), 1);
}

// ---- history ----

#[test]
fn versions_are_listed_newest_first_and_pruned_by_age_and_size() {
    let (disk, folder) = folder();
    let at = |s: i64| Timestamp::from_second(1_700_000_000 + s).unwrap();
    let trash = |name: &str, content: &str, when| {
        disk.user_write(name, content.to_owned()).unwrap();
        let step = FileMove::Trash { path: p(name), at: name.into(), expect: Md5::of(content.as_bytes()) };
        folder.perform(vec![step], &[], when).unwrap();
    };
    trash("d/a", "1", at(0));
    trash("d/a", "22", at(0));
    trash("b", "333", at(100));
    trash("d/a", "4444", at(200));
    let all = folder.versions(None).unwrap();
    assert_eq!(all.iter().map(|v| v.size).collect::<Vec<_>>(), [4, 3, 2, 1]);
    assert!(all.iter().all(|v| v.kind == VersionKind::Removed));
    assert_eq!(folder.versions(Some("d/a")).unwrap().len(), 3);
    assert_eq!(folder.versions(Some("d")).unwrap().len(), 3, "of a folder, all below it");
    assert!(folder.versions(Some("b/none")).unwrap().is_empty());
    assert_eq!(prune(&folder, 86_400, 6 * BLOCK, at(200)), 0, "four versions and two folders");
    assert_eq!(prune(&folder, 150, 6 * BLOCK, at(200)), 0, "the newest five of a path stay");
    assert_eq!(prune(&folder, 86_400, 5 * BLOCK, at(200)), 1, "too much: the oldest");
    let sizes = |folder: &Folder<SimDisk>| folder.versions(None).unwrap().iter().map(|v| v.size).collect::<Vec<_>>();
    assert_eq!(sizes(&folder), [4, 3, 2]);
    for n in 0..4 {
        trash("d/a", "55555", at(300 + n));
    }
    assert_eq!(prune(&folder, 150, u64::MAX, at(400)), 1, "too old, and five newer ones");
    assert_eq!(sizes(&folder), [5, 5, 5, 5, 4, 3]);
    // A file that is no version stays.
    disk.user_write(".memsync/history/notes/x", "mine").unwrap();
    assert_eq!(prune(&folder, 0, 0, at(999)), 6);
    assert_eq!(kept(&disk), [(".memsync/history/notes/x".to_owned(), "mine".to_owned())]);
    assert!(disk.user_stat(".memsync/history/d").is_err(), "an empty folder must be removed");
}

const BLOCK: u64 = 4096;

/// Prunes and returns the number of removed versions. `keep`: seconds.
fn prune(folder: &Folder<SimDisk>, keep: u64, max_size: u64, now: Timestamp) -> usize {
    let limits = HistoryLimits { keep: Some(Duration::from_secs(keep)), max_size };
    let report = folder.prune(limits, now);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    report.removed
}

#[test]
fn edit_on_its_way_back_from_history_is_not_pruned() {
    // The user edits the file just before it goes to history. Then the disk fills up, so it cannot go back at once.
    let (disk, folder) = folder();
    disk.user_write("a", "edit").unwrap();
    disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::RenameNew if op.to == Some("a") => StepFate::Fail(ErrorKind::StorageFull),
        _ => StepFate::Go,
    })));
    let step = FileMove::Trash { path: p("a"), at: "a".into(), expect: Md5::of(b"old") };
    let report = folder.perform(vec![step], &[], now()).unwrap();
    assert!(matches!(report.moved[0], MoveOutcome::Failed(_)) && report.left_over, "{:?}", report.moved);
    disk.set_hook(None);
    assert_eq!(prune(&folder, 0, 0, now()), 0);
    folder.sweep(now()).unwrap();
    assert_eq!(disk.user_read("a").unwrap(), "edit");
    assert!(kept(&disk).is_empty());
}

#[test]
fn nothing_is_pruned_while_an_intent_cannot_be_read() {
    let (disk, folder) = folder();
    disk.user_write("a", "old").unwrap();
    let step = FileMove::Trash { path: p("a"), at: "a".into(), expect: Md5::of(b"old") };
    folder.perform(vec![step], &[], now()).unwrap();
    disk.user_write(".memsync/stage/x.intent", "").unwrap();
    fail_on(&disk, StepKind::Open, ".memsync/stage/x.intent");
    let limits = HistoryLimits { keep: None, max_size: 0 };
    let report = folder.prune(limits, now());
    assert_eq!((report.removed, report.failed[0].path.as_str()), (0, ".memsync/stage/x.intent"));
    disk.set_hook(None);
    assert_eq!(folder.prune(limits, now()).removed, 1);
}

#[test]
fn version_in_the_old_layout_is_listed_and_pruned() {
    let (disk, folder) = folder();
    for file in
        ["20231114T000000.000Z-replaced/d/a", "20231115T000000.000Z.1-removed/d/a", "d/a.20231116T000000.000Z-removed"]
    {
        disk.user_write(&format!(".memsync/history/{file}"), file).unwrap();
    }
    let all = folder.versions(None).unwrap();
    assert!(all.iter().all(|v| v.path == "d/a"));
    assert_eq!(
        all.iter().map(|v| v.kind).collect::<Vec<_>>(),
        [VersionKind::Removed, VersionKind::Removed, VersionKind::Replaced]
    );
    assert_eq!(folder.versions(Some("d/a")).unwrap(), all);
    assert_eq!(folder.versions(Some("d")).unwrap(), all);
    assert_eq!(prune(&folder, 0, 0, now()), 3);
    assert!(folder.disk().list(".memsync/history").unwrap().is_empty());
}

#[test]
fn version_costs_one_inode_besides_its_folder() {
    let (disk, folder) = folder();
    for n in 0..20 {
        disk.user_write("deep/down/here/a.md", format!("{n}")).unwrap();
        replace(&folder, "deep/down/here/a.md", "new", &n.to_string());
        disk.user_remove("deep/down/here/a.md").unwrap();
    }
    let mut inodes = 0;
    let mut dirs = vec![".memsync/history".to_owned()];
    while let Some(dir) = dirs.pop() {
        for (name, meta) in folder.disk().list(&dir).unwrap() {
            inodes += 1;
            if meta.kind == FileKind::Dir {
                dirs.push(format!("{dir}/{}", name.to_str().unwrap()));
            }
        }
    }
    assert_eq!(inodes, 20 + 3);
    assert_eq!(folder.versions(Some("deep/down/here/a.md")).unwrap().len(), 20);
}

#[test]
fn long_name_and_name_like_a_batch_folder_are_kept() {
    let (disk, folder) = folder();
    let long = format!("d/{}", "x".repeat(250));
    for name in [&*long, "20231114T000000.000Z-replaced/a"] {
        for _ in 0..2 {
            disk.user_write(name, "old").unwrap();
            let step = FileMove::Trash { path: p(name), at: name.into(), expect: Md5::of(b"old") };
            let done = folder.perform(vec![step], &[], now()).unwrap();
            assert!(matches!(done.moved[0], MoveOutcome::Done { .. }), "{:?}", done.moved);
        }
        let versions = folder.versions(Some(name)).unwrap();
        assert_eq!(versions.iter().map(|v| v.path.as_str()).collect::<Vec<_>>(), [name, name]);
    }
    assert_eq!(folder.versions(None).unwrap().len(), 4);
}

#[test]
fn unreadable_history_folder_does_not_stop_the_prune() {
    let (disk, folder) = folder();
    for file in ["a/x.20231116T000000.000Z-removed", "b/x.20231116T000000.000Z-removed"] {
        disk.user_write(&format!(".memsync/history/{file}"), "old").unwrap();
    }
    disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::List if op.path == ".memsync/history/a" => StepFate::Fail(ErrorKind::PermissionDenied),
        _ => StepFate::Go,
    })));
    let report = folder.prune(HistoryLimits { keep: None, max_size: 0 }, now());
    assert_eq!((report.removed, report.failed.len()), (1, 1));
    assert_eq!(report.failed[0].path, ".memsync/history/a");
}

#[test]
fn file_and_folder_of_one_name_are_both_kept() -> io::Result<()> {
    let (disk, folder) = folder();
    for (first, then) in [("a", "a/b/c"), ("x/y/z", "x")] {
        for name in [first, then] {
            disk.user_write(name, name.to_owned())?;
            let step = FileMove::Trash { path: p(name), at: name.into(), expect: Md5::of(name.as_bytes()) };
            let done = folder.perform(vec![step], &[], now())?;
            assert!(matches!(done.moved[0], MoveOutcome::Done { .. }), "{name}: {:?}", done.moved);
        }
    }
    assert_eq!(kept(&disk).len(), 4);
    Ok(())
}

#[test]
fn cancelled_removal_leaves_nothing_in_history() -> io::Result<()> {
    let (disk, folder) = folder();
    disk.user_write("d/a", "edited since")?;
    let step = FileMove::Trash { path: p("d/a"), at: "d/a".into(), expect: Md5::of(b"as it was planned") };
    let done = folder.perform(vec![step], &[], now())?;
    assert!(matches!(done.moved[0], MoveOutcome::Stale { copy: None }), "{:?}", done.moved);
    assert_eq!(disk.user_read("d/a")?, "edited since");
    assert!(kept(&disk).is_empty());
    assert!(disk.handle().list(".memsync/history")?.is_empty(), "an empty folder is left");
    Ok(())
}
