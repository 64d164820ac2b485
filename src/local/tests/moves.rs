//! Moves, conflict copies and the sweep.

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
fn old_text_stays_away_after_the_user_removed_the_new_one() {
    let (disk, folder) = folder();
    disk.user_write("n/a", "old").unwrap();
    // The old text cannot go to history at once.
    fail_on(&disk, StepKind::Mkdir, ".memsync/history/n");
    assert!(matches!(replace(&folder, "n/a", "new", "old"), MoveOutcome::Failed(_)));
    assert_eq!(disk.user_read("n/a").unwrap(), "new");
    disk.set_hook(None);
    disk.user_remove("n/a").unwrap();
    folder.sweep(now()).unwrap();
    assert!(disk.user_read("n/a").is_err(), "the old text would count as an edit of the new one");
    assert_eq!(kept(&disk).into_iter().map(|(_, content)| content).collect::<Vec<_>>(), ["old"]);
}

/// An exchange in single renames, of which those to `a` fail.
fn stuck_exchange() -> (SimDisk, Folder<SimDisk>) {
    let (disk, folder) = folder();
    disk.user_write("a", "old").unwrap();
    disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::Exchange => StepFate::Fail(ErrorKind::Unsupported),
        StepKind::RenameNew if op.to == Some("a") => StepFate::Fail(ErrorKind::StorageFull),
        _ => StepFate::Go,
    })));
    assert!(matches!(replace(&folder, "a", "new", "old"), MoveOutcome::Failed(_)));
    assert!(disk.user_read("a").is_err());
    (disk, folder)
}

#[test]
fn exchange_that_was_cut_off_is_undone() {
    let (disk, folder) = stuck_exchange();
    assert_eq!(folder.sweep(now()).unwrap().left.len(), 1, "the path cannot be written yet");
    disk.set_hook(None);
    folder.sweep(now()).unwrap();
    assert_eq!(disk.user_read("a").unwrap(), "old");
    assert!(kept(&disk).is_empty() && disk.user_tree(".memsync/stage").is_empty());
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
