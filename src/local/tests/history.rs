//! Versions in the history, and their pruning.

use super::*;

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
