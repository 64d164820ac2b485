//! Deletions: proof, gates and memory.

use super::*;

fn path(name: &str) -> RelPath {
    RelPath::parse(name).unwrap()
}

/// The paths with a recorded deletion.
fn seen(story: &Story) -> Vec<String> {
    let entries = story.engine.container().entries().iter();
    entries.filter(|(_, e)| matches!(e.base, Base::Seen(_))).map(|(p, _)| p.to_string()).collect()
}

#[test]
fn approval_ends_with_its_plan() {
    let mut story = Story::new(FakeConfig::default());
    let names: Vec<String> = (0..12).map(|n| format!("n{n}")).collect();
    let write = |story: &Story| names.iter().for_each(|n| story.disk.user_write(n, n.clone()).unwrap());
    let remove = |story: &Story| names.iter().for_each(|n| story.disk.user_remove(n).unwrap());
    write(&story);
    story.cycle(ScanScope::full()).unwrap();
    remove(&story);
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.cycle(ScanScope::full()).unwrap().held, 12);
    let id = story.engine.halts()[0].id().to_owned();
    assert!(story.engine.approve(&id).unwrap());
    // The user writes the files again before the next cycle, and then removes them once more.
    write(&story);
    story.cycle(ScanScope::full()).unwrap();
    remove(&story);
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.cycle(ScanScope::full()).unwrap().held, 12);
    assert_eq!(story.names().len(), 12);
}

/// The device was away longer than the proxy keeps tombstones.
#[test]
fn deletion_stays_when_its_tombstone_expired() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["deleted", "edited", "kept", "theirs"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.names(), ["deleted", "edited", "kept", "theirs"]);

    for name in ["deleted", "edited"] {
        assert!(story.server.server_delete(&RelPath::parse(name).unwrap()));
    }
    story.server.forget_tombstones(story.server.cursor());
    story.server.foreign_put(&RelPath::parse("theirs").unwrap(), bytes::Bytes::from_static(b"new"));
    story.disk.user_write("edited", "after").unwrap();
    story.disk.user_write("mine", "new").unwrap();
    for _ in 0..3 {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert_eq!(story.names(), ["edited", "kept", "mine", "theirs"]);
    let names: Vec<_> = story.disk.user_tree("").into_keys().collect();
    assert_eq!(names, ["edited", "kept", "mine", "theirs"]);
    assert!(story.disk.user_tree(".memsync/history").values().any(|content| &content[..] == b"deleted"));
}

#[test]
fn mass_deletion_is_held_when_tombstones_expired() {
    let mut story = Story::new(FakeConfig::default());
    for n in 0..12 {
        story.disk.user_write(&format!("n{n}"), n.to_string()).unwrap();
    }
    story.cycle(ScanScope::full()).unwrap();
    for n in 0..12 {
        story.server.server_delete(&RelPath::parse(&format!("n{n}")).unwrap());
    }
    story.server.forget_tombstones(story.server.cursor());
    for _ in 0..3 {
        let report = story.cycle(ScanScope::full()).unwrap();
        assert_eq!((report.held, report.uploaded), (12, 0));
    }
    let id = story.engine.held()[0].id.clone();
    assert!(story.engine.approve(&id).unwrap());
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.names(), [""; 0]);
    assert!(!story.disk.user_tree("").keys().any(|name| name.starts_with('n')));
}

#[test]
fn deletion_is_forgotten_with_its_tombstone() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["ours", "theirs", "kept"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.settle();
    story.disk.user_remove("ours").unwrap();
    story.server.server_delete(&path("theirs"));
    story.settle();
    story.engine.tidy().unwrap();
    assert_eq!(seen(&story), ["ours", "theirs"]);
    story.server.forget_tombstones(story.server.cursor());
    story.restart();
    assert_eq!(seen(&story), ["ours", "theirs"]);
    story.settle();
    story.engine.tidy().unwrap();
    assert_eq!((seen(&story).len(), story.names(), story.disk.user_tree("").len()), (0, vec!["kept".to_owned()], 1));
    story.restart();
    assert_eq!(seen(&story).len(), 0, "the state is saved without them");
    // A new file with the deleted content is the user's own.
    story.disk.user_write("ours", "ours").unwrap();
    story.settle();
    assert_eq!(story.names(), ["kept", "ours"]);
}

/// A plain index may miss an entry. And where a file may be, the recorded deletion tells a new file from an old upload.
#[test]
fn deletion_is_remembered_without_proof_of_expiry() {
    let mut story = Story::new(plain());
    story.disk.user_write("a", "1").unwrap();
    story.settle();
    story.disk.user_remove("a").unwrap();
    story.settle();
    story.server.set_index_entry(&path("a"), None);
    story.settle();
    story.engine.tidy().unwrap();
    assert_eq!(seen(&story), ["a"]);

    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("d/a", "1").unwrap();
    story.settle();
    story.disk.user_remove("d/a").unwrap();
    story.settle();
    story.disk.set_unreadable("d", true).unwrap();
    story.server.forget_tombstones(story.server.cursor());
    story.restart();
    story.settle();
    story.engine.tidy().unwrap();
    assert_eq!(seen(&story), ["d/a"], "the folder cannot be read");
}

/// Twelve files that another device deleted, and one that stays. The index entry of each deleted file is `listed`.
fn deleted_but_listed(config: FakeConfig, listed: Option<IndexEntry>) -> Story {
    let mut story = Story::new(config);
    let names: Vec<String> = (0..12).map(|n| format!("n{n}")).collect();
    names.iter().for_each(|n| story.disk.user_write(n, n.clone()).unwrap());
    story.disk.user_write("other", "other").unwrap();
    story.settle();
    for name in &names {
        story.server.server_delete(&path(name));
        story.server.set_index_entry(&path(name), listed);
    }
    story
}

/// The held plan, after enough cycles to delete.
#[track_caller]
fn held(story: &mut Story) -> String {
    for _ in 0..4 {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert_eq!(story.disk.user_tree("").len(), 13, "nothing is deleted without approval");
    story.engine.held().first().expect("they are held").id.clone()
}

fn stale() -> Option<IndexEntry> {
    Some(IndexEntry { md5: Md5::of(b"stale"), size: 5, is_deleted: false, version: 0, cursor: 0 })
}

/// Row 13: the index names deleted blobs as live.
#[test]
fn gate_counts_deletions_that_only_blobs_show() {
    let mut story = deleted_but_listed(plain(), stale());
    let id = held(&mut story);
    assert!(story.engine.approve(&id).unwrap());
    story.settle();
    assert_eq!(story.disk.user_tree("").into_keys().collect::<Vec<_>>(), ["other"]);
}

/// Row 4: a tombstone of the same content refuses the upload.
#[test]
fn gate_counts_deletions_that_uploads_meet() {
    // For this proxy a tombstone exists, so that an upload with `new` fails.
    let mut story = deleted_but_listed(FakeConfig { tombstones: TombstoneKind::Exists, ..plain() }, None);
    for name in story.state.user_tree("").into_keys() {
        story.state.user_remove(&name).unwrap();
    }
    story.restart();
    let id = held(&mut story);
    assert!(story.engine.reject(&id).unwrap());
    story.settle();
    assert_eq!((story.disk.user_tree("").len(), story.names().len()), (13, 13), "they are brought back");
}

#[test]
fn deletion_that_only_the_blob_shows_is_obeyed() {
    for listed in [stale(), None] {
        let mut story = Story::new(plain());
        for name in ["a", "b"] {
            story.disk.user_write(name, name).unwrap();
        }
        story.settle();
        story.server.server_delete(&path("a"));
        story.server.set_index_entry(&path("a"), listed);
        story.settle();
        assert_eq!(story.disk.user_tree("").into_keys().collect::<Vec<_>>(), ["b"], "{listed:?}");
        // Another device writes it again.
        story.server.foreign_put(&path("a"), "again");
        story.settle();
        assert_eq!(story.disk.user_read("a").unwrap(), "again");
    }
}

/// Two scans must miss a file, no matter how long the first cycle takes.
#[test]
fn one_scan_proves_no_deletion_when_the_proxy_is_slow() {
    let mut story = Story::new(FakeConfig { yields: 1.0, ..FakeConfig::default() });
    story.disk.user_write("a", "1").unwrap();
    story.settle();
    story.disk.user_remove("a").unwrap();
    let clock = story.clock.clone();
    let slow = move || clock.0.fetch_add(100, Ordering::Relaxed) < u64::MAX;
    assert!(story.cycle_while(ScanScope::full(), slow).unwrap().unwrap().again);
    assert_eq!(story.names(), ["a"], "one scan missed it");
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.names(), [""; 0]);
}

#[test]
fn file_replaces_folder_that_held_an_ignored_file() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["d/a", "d/ignored"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.settle();
    story.ignore(&["d/ignored"]);
    story.settle();
    story.disk.user_remove_dir_all("d").unwrap();
    story.disk.user_write("d", "a file now").unwrap();
    // In a cycle for the changed paths, and in one for all.
    story.ignore(&["d/ignored"]);
    story.settle();
    assert_eq!(story.names(), ["d", "d/ignored"], "an ignore rule deletes nothing");
}

/// A symlink under another Unicode form of a name must not hide that a file is gone.
#[test]
fn removed_file_is_missed_beside_a_twin_name() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["\u{e9}", "z"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.settle();
    story.settle();
    story.disk.plant_symlink("e\u{301}").unwrap();
    story.disk.user_remove("z").unwrap();
    story.settle();
    assert_eq!(story.names(), ["\u{e9}"]);
}

/// Another device deletes a file that a program has open here.
fn deleted_while_it_is_open() -> Story {
    let mut story = Story::new(FakeConfig::default());
    for name in ["a", "b"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.settle();
    story.disk.keep_open("a", true).unwrap();
    story.server.server_delete(&path("a"));
    story
}

#[test]
fn deletion_of_an_open_file_is_done_on_close() {
    for scope in [touched("a"), ScanScope::full()] {
        let mut story = deleted_while_it_is_open();
        let tries: usize = (0..300).map(|_| story.cycle(ScanScope::default()).unwrap().failed).sum();
        assert!((5..60).contains(&tries), "in ten minutes it is tried a few times: {tries}");
        // A second program closes it; the first still has it open.
        let before = story.cycle(ScanScope::default()).unwrap().failed;
        let report = story.cycle(scope.clone()).unwrap();
        assert_eq!((report.trashed, before + report.failed), (0, 1));
        story.disk.keep_open("a", false).unwrap();
        assert_eq!(story.cycle(scope.clone()).unwrap().trashed, 1, "{scope:?}");
        assert_eq!((story.engine.failing(), story.disk.user_tree("").len()), (0, 1));
    }
}

#[test]
fn deletion_of_an_open_file_is_done_soon_without_an_event() {
    let mut story = deleted_while_it_is_open();
    for _ in 0..300 {
        story.cycle(ScanScope::default()).unwrap();
    }
    story.disk.keep_open("a", false).unwrap();
    // These cycles take half a minute.
    let trashed: usize = (0..15).map(|_| story.cycle(ScanScope::default()).unwrap().trashed).sum();
    assert_eq!(trashed, 1);
}

/// Files in the folder `d`, which a test renames, and as many in `beside`.
fn write_folders(story: &Story, files: usize) {
    for n in 0..files {
        story.disk.user_write(&format!("d/{n:02}"), format!("is in the folder: {n}")).unwrap();
        story.disk.user_write(&format!("beside/{n:02}"), format!("is beside it: {n}")).unwrap();
    }
}

fn cautious() -> EngineOptions {
    EngineOptions { max_delete: 0.1, ..options() }
}

impl Story {
    pub(super) fn set(&mut self, options: EngineOptions) {
        let remote = Arc::new(self.server.client());
        self.engine.set_options(options, Arc::new(|_: &str, _: bool| false), remote);
    }

    fn below(&self, dir: &str) -> usize {
        self.names().iter().filter(|name| name.starts_with(dir)).count()
    }
}

/// The new names may arrive long before the old ones go.
#[test]
fn renamed_folder_is_no_mass_deletion() {
    let mut story = Story::new(FakeConfig::default());
    write_folders(&story, 12);
    story.set(cautious());
    story.settle();
    story.disk.user_rename("d", "e").unwrap();
    for _ in 0..3 {
        assert_eq!(story.cycle(ScanScope::full()).unwrap().held, 0);
    }
    assert_eq!((story.below("d/"), story.below("e/")), (0, 12));
    // Another device renames it back.
    for n in 0..12 {
        story.server.foreign_put(&path(&format!("d/{n:02}")), format!("is in the folder: {n}"));
    }
    story.cycle(ScanScope::default()).unwrap();
    for n in 0..12 {
        story.server.server_delete(&path(&format!("e/{n:02}")));
    }
    assert_eq!(story.cycle(ScanScope::default()).unwrap().trashed, 12);
    // Without new names it is a mass deletion.
    story.disk.user_remove_dir_all("d").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.cycle(ScanScope::full()).unwrap().held, 12);
}

#[test]
fn mass_deletion_stays_held_when_new_files_come() {
    let mut story = Story::new(FakeConfig::default());
    write_folders(&story, 12);
    story.set(EngineOptions { max_delete: 0.4, ..options() });
    story.settle();
    story.disk.user_rename("d", ".memsync/away").unwrap();
    story.disk.user_remove_dir_all("beside").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.cycle(ScanScope::full()).unwrap().held, 24);
    let id = story.engine.held()[0].id.clone();
    for n in 0..50 {
        story.disk.user_write(&format!("new/{n:02}"), format!("is new: {n}")).unwrap();
    }
    for _ in 0..3 {
        story.cycle(ScanScope::full()).unwrap();
        assert_eq!(story.engine.held().first().map(|h| &h.id), Some(&id));
    }
    assert_eq!((story.below("d/"), story.below("new/")), (12, 50));
    // One half comes back under another name. The other half is still too much.
    story.disk.user_rename(".memsync/away", "e").unwrap();
    for _ in 0..3 {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert_eq!((story.below("d/"), story.below("e/"), story.below("beside/")), (0, 12, 12));
    assert_eq!(story.engine.held()[0].steps.len(), 12);
}

/// The upload of a rename comes before the deletion.
#[test]
fn renamed_file_keeps_its_old_name_while_unreadable() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["a", "other"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.settle();
    story.disk.user_rename("a", "b").unwrap();
    story.disk.set_unreadable("b", true).unwrap();
    story.disk.user_remove("other").unwrap();
    for _ in 0..4 {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert_eq!(story.names(), ["a"], "other deletions go on");
    // The wait is reported with and without a plan.
    for _ in 0..2 {
        let report = story.cycle(ScanScope::default()).unwrap();
        assert_eq!((report.waiting, story.engine.pending().delete), (1, 1), "planned: {}", report.planned);
    }
    story.disk.set_unreadable("b", false).unwrap();
    story.settle();
    assert_eq!(story.cycle(ScanScope::default()).unwrap().waiting, 0);
    assert_eq!(story.names(), ["b"]);
}

/// Another device renamed a folder, and the new files do not fit on the disk.
#[test]
fn file_stays_when_its_renamed_download_fails() {
    let mut story = Story::new(FakeConfig::default());
    write_folders(&story, 12);
    story.settle();
    for n in 0..12 {
        let (old, new) = (format!("d/{n:02}"), format!("e/{n:02}"));
        story.server.foreign_put(&path(&new), format!("is in the folder: {n}"));
        story.server.server_delete(&path(&old));
    }
    story.set(cautious());
    story.disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::Create if op.path.starts_with(".memsync/stage/") => StepFate::Fail(ErrorKind::StorageFull),
        _ => StepFate::Go,
    })));
    for _ in 0..4 {
        story.cycle(ScanScope::full()).unwrap();
        assert_eq!(story.disk.user_tree("").keys().filter(|p| p.starts_with("d/")).count(), 12);
    }
    story.disk.set_hook(None);
    story.engine.retry_all();
    story.settle();
    let tree = story.disk.user_tree("");
    let below = |dir: &str| tree.keys().filter(|p| p.starts_with(dir)).count();
    assert_eq!((below("d/"), below("e/")), (0, 12));
}

/// While an `rm -r` runs, missing files are not scanned or planned again, and edits are uploaded.
#[test]
fn deletions_wait_for_a_running_removal() {
    let mut story = Story::new(FakeConfig::default());
    for n in 0..5 {
        story.disk.user_write(&format!("n{n}"), n.to_string()).unwrap();
    }
    story.settle();
    let stats = Arc::new(AtomicU64::new(0));
    let count = stats.clone();
    story.disk.set_hook(Some(Box::new(move |op| {
        count.fetch_add(u64::from(op.kind == StepKind::Stat && op.path == "n0"), Ordering::Relaxed);
        StepFate::Go
    })));
    // A cycle without the usual two seconds before it, so that it confirms nothing.
    let cycle_at_once = |story: &mut Story, path: &str| {
        story.clock.0.fetch_sub(2, Ordering::Relaxed);
        story.cycle(touched(path)).unwrap()
    };
    for n in 0..2 {
        story.disk.user_remove(&format!("n{n}")).unwrap();
        assert!(cycle_at_once(&mut story, &format!("n{n}")).again);
    }
    assert_eq!(stats.load(Ordering::Relaxed), 1);
    story.disk.user_write("n4", "edited").unwrap();
    let report = cycle_at_once(&mut story, "n4");
    assert_eq!((report.uploaded, report.deleted_remote, report.again), (1, 0, true));
    assert_eq!(story.engine.pending().delete, 2);
    // No event reports that it came back.
    story.disk.user_write("n1", "1").unwrap();
    let report = story.cycle(ScanScope::default()).unwrap();
    assert_eq!((report.deleted_remote, report.again), (1, false));
    assert_eq!(stats.load(Ordering::Relaxed), 2);
    assert_eq!(story.names(), ["n1", "n2", "n3", "n4"]);
    assert_eq!(story.engine.pending().delete, 0);
}

/// The disk cannot read one file any more.
#[test]
fn file_that_cannot_be_displaced_holds_up_no_other() {
    for removed in [false, true] {
        let mut story = Story::new(FakeConfig::default());
        for name in ["a", "b"] {
            story.disk.user_write(name, name).unwrap();
        }
        story.settle();
        if removed {
            story.server.server_delete(&path("a"));
        } else {
            story.server.foreign_put(&path("a"), "theirs");
        }
        story.disk.user_write("b", "edited").unwrap();
        story.disk.set_hook(Some(Box::new(|op| match op.kind {
            StepKind::Read if op.path.starts_with(".memsync/") && op.path != ".memsync/id" => {
                StepFate::Fail(ErrorKind::Other)
            }
            _ => StepFate::Go,
        })));
        for _ in 0..3 {
            story.cycle(ScanScope::full()).unwrap();
            assert_eq!(story.disk.user_read("a").unwrap(), "a");
        }
        assert_eq!(story.server.contents()[&path("b")], "edited");
        story.restart();
        story.disk.set_hook(None);
        story.settle();
        assert_eq!(story.disk.user_read("a").ok(), (!removed).then(|| "theirs".into()));
        assert!(story.disk.user_tree(".memsync/history").values().any(|content| content == "a"));
        assert!(story.disk.user_tree(".memsync/stage").is_empty());
    }
}

#[test]
fn displaced_file_is_kept_when_history_is_unwritable() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["a", "b"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.settle();
    story.server.foreign_put(&path("a"), "theirs");
    story.disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::RenameNew if op.to.is_some_and(|to| to.starts_with(".memsync/history")) => {
            StepFate::Fail(ErrorKind::Other)
        }
        _ => StepFate::Go,
    })));
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("b", "edited").unwrap();
    for _ in 0..3 {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert_eq!(story.server.contents()[&path("b")], "edited");
    story.restart();
    story.cycle(ScanScope::full()).unwrap();
    let kept = |story: &Story, dir: &str| story.disk.user_tree(dir).values().any(|content| content == "a");
    assert!(kept(&story, ".memsync/stage") && story.engine.has_leftovers());
    assert!(story.engine.problems().contains_key(&path("a")), "{:?}", story.engine.problems());
    story.disk.set_hook(None);
    story.settle();
    assert!(kept(&story, ".memsync/history") && story.disk.user_tree(".memsync/stage").is_empty());
    assert!(!story.engine.has_leftovers() && story.engine.problems().is_empty(), "{:?}", story.engine.problems());
    assert_eq!(story.disk.user_read("a").unwrap(), "theirs");
}
