//! Conflicts are shown with their devices and differences, and resolved in an editor.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::world::{Device, Ran, World, eventually, files_below};

/// Two devices with a conflict on `note.md`.
fn conflict(world: &World) -> (Device<'_>, Device<'_>) {
    let config = "conflict = \"copy\"";
    let (a, b) = (world.device_with("a", config), world.device_with("b", config));
    a.write("note.md", "# Plan\nthe quick fox\n");
    b.write("note.md", "# Plan\nthe slow fox\n");
    a.start();
    a.wait();
    b.start();
    world.settle(&[&a, &b]);
    (a, b)
}

/// Resolves the conflict with this shell script as the editor. `$1` is the file.
fn edit_with(device: &Device, script: &str) -> Ran {
    let editor = device.home.join("editor.sh");
    fs::write(&editor, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&editor, PermissionsExt::from_mode(0o755)).unwrap();
    let call = format!("/bin/sh {}", editor.display());
    device.cli_with(&["conflicts", "resolve", "note.md", "--edit"], &[("VISUAL", &call), ("EDITOR", "false")])
}

/// The drafts that are left.
fn drafts(device: &Device) -> Vec<Vec<u8>> {
    let state = files_below(&device.home.join("state")).into_iter();
    state.filter(|(path, _)| path.starts_with("edit-")).map(|(_, content)| content).collect()
}

#[test]
fn conflict_is_shown_with_devices_and_words() {
    let world = World::new();
    let (a, b) = conflict(&world);
    for device in [&a, &b] {
        let text = device.cli(&["conflicts"]).out;
        assert!(text.contains("file  from a, written") && text.contains("copy  from b, written"), "{text}");
        assert!(text.contains("    -the [-quick-] fox\n    +the {+slow+} fox\n"), "{text}");
        let listed = device.cli(&["conflicts", "--json"]).json()["conflicts"][0].clone();
        assert_eq!((&listed["original_device"], &listed["device"]), (&"a".into(), &"b".into()));
    }
    world.stop_proxy();
    let text = a.cli(&["conflicts"]).out;
    assert!(text.contains("file  from another machine than b, written") && text.contains("{+slow+}"), "{text}");
}

#[test]
fn edited_text_replaces_both_texts() {
    let world = World::new();
    let (a, b) = conflict(&world);
    let ran = edit_with(&a, "cp \"$1\" \"$HOME/seen\"; printf '# Plan\\nthe quick and slow fox\\n' > \"$1\"");
    assert_eq!(ran.code, 0, "{ran:?}");
    let seen = fs::read_to_string(a.home.join("seen")).unwrap();
    let expected = "# Plan\n<<<<<<< note.md, the file\nthe quick fox\n=======\nthe slow fox\n>>>>>>> the copy from b\n";
    assert_eq!(seen, expected);
    let tree = world.settle(&[&a, &b]);
    assert_eq!(
        tree.into_iter().collect::<Vec<_>>(),
        [("note.md".to_owned(), b"# Plan\nthe quick and slow fox\n".to_vec())]
    );
    let mut kept = a.kept();
    kept.sort();
    assert_eq!(kept, [b"# Plan\nthe quick fox\n".to_vec(), b"# Plan\nthe slow fox\n".to_vec()]);
    assert!(drafts(&a).is_empty() && files_below(&a.at(".memsync/fetched")).is_empty());
    assert_eq!(a.cli(&["conflicts"]).code, 0);
}

#[test]
fn failed_edit_changes_nothing_and_keeps_the_draft() {
    let world = World::new();
    let (a, _b) = conflict(&world);
    a.stop();
    let before = a.tree();
    for (script, code, why) in [
        ("echo mine > \"$1\"; exit 3", 1, "failed (exit code 3)"),
        ("sed -i 's/quick/QUICK/' \"$1\"", 8, "still has markers"),
        ("kill -9 $$", 1, "failed"),
        ("rm \"$1\"", 1, "cannot be read"),
        ("echo more >> \"$HOME/notes/note.md\"; echo mine > \"$1\"", 8, "changed while you edited"),
    ] {
        let ran = edit_with(&a, script);
        assert_eq!((ran.code, ran.err.contains(why)), (code, true), "{script}: {ran:?}");
        assert!(ran.err.contains("your edited text is in") && ran.err.contains("/edit-"), "{ran:?}");
    }
    let drafts = drafts(&a);
    assert_eq!(drafts.len(), 4, "the editor removed one of five itself");
    assert_eq!(drafts.iter().filter(|draft| *draft == b"mine\n").count(), 2);
    let mut after = a.tree();
    after.insert("note.md".to_owned(), before["note.md"].clone());
    assert_eq!(after, before, "only the editor changed note.md");
    let without = a.cli(&["conflicts", "resolve", "note.md", "--edit"]);
    assert_eq!((without.code, without.err.contains("EDITOR")), (2, true), "{without:?}");
}

#[test]
fn conflict_of_other_content_is_not_edited() {
    let world = World::new();
    let config = "conflict = \"copy\"";
    let (a, b) = (world.device_with("a", config), world.device_with("b", config));
    a.write("note.md", b"\0\x01");
    b.write("note.md", b"\0\x02");
    a.start();
    a.wait();
    b.start();
    eventually("the conflict is here", || b.copies().len() == 1);
    let ran = edit_with(&b, "echo mine > \"$1\"");
    assert_eq!((ran.code, ran.err.contains("it is no text")), (2, true), "{ran:?}");
    let text = b.cli(&["conflicts"]).out;
    assert!(text.contains("copy  from b") && !text.contains("@@"), "{text}");
}
