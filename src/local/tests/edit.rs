//! Compare-and-swap on one file.

use super::*;

/// Replaces the content "old" of `a` by "new", or nothing.
fn swap(folder: &Folder<SimDisk>) -> MoveOutcome {
    let (staged, expect) = (staged(folder, "new"), Md5::of(b"old"));
    let step = FileMove::Swap { path: p("a"), at: "a".into(), staged, expect };
    folder.perform(vec![step], &[], now()).unwrap().moved.remove(0)
}

#[test]
fn swap_moves_the_expected_content_to_history() {
    let (disk, folder) = folder();
    disk.user_write("a", "old").unwrap();
    assert!(matches!(swap(&folder), MoveOutcome::Done { copy: None, .. }));
    assert_eq!(disk.user_read("a").unwrap(), "new");
    assert_eq!(kept(&disk).into_iter().map(|(_, content)| content).collect::<Vec<_>>(), ["old"]);
}

#[test]
fn swap_returns_an_edit_with_and_without_exchange() {
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
        assert!(matches!(swap(&folder), MoveOutcome::Stale { copy: None }));
        assert_eq!(disk.user_read("a").unwrap(), "edit");
        assert_eq!(disk.user_tree("").keys().filter(|name| !name.starts_with(".memsync/")).count(), 1, "no copy");
        assert!(kept(&disk).is_empty() && disk.user_tree(".memsync/stage").is_empty());
    }
}

#[test]
fn edit_of_a_swapped_text_becomes_a_copy() {
    let (disk, folder) = folder();
    disk.user_write("a", "edit").unwrap();
    let exchanged = AtomicBool::new(false);
    disk.set_hook(Some(Box::new(move |op| {
        // The second exchange returns the first edit.
        if op.kind == StepKind::Exchange && exchanged.swap(true, Ordering::Relaxed) {
            op.disk.user_write("a", "edit of the new text").unwrap();
        }
        StepFate::Go
    })));
    let MoveOutcome::Stale { copy: Some(copy) } = swap(&folder) else { panic!("no copy") };
    assert_eq!(disk.user_read("a").unwrap(), "edit");
    assert_eq!(disk.user_read(copy.as_str()).unwrap(), "edit of the new text");
    assert!(disk.user_tree(".memsync/stage").is_empty());
}
