//! Files that other programs have open, and hard links.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use crate::common::world::{World, eventually};
use crate::stories::filesystem::{both_run, reports};

#[test]
fn hard_link_is_its_own_file_and_never_written_through() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let outside = world.path().join("snapshot.md");
    a.write("note.md", "one");
    fs::hard_link(a.at("note.md"), a.at("twin.md")).unwrap();
    fs::hard_link(a.at("note.md"), &outside).unwrap();
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    // An edit in place changes all names here, and arrives under all of them there.
    OpenOptions::new().append(true).open(a.at("note.md")).unwrap().write_all(b" and two").unwrap();
    a.wait();
    eventually("b has both", || b.has("note.md", "one and two") && b.has("twin.md", "one and two"));
    // A remote edit changes one name.
    b.write("note.md", "by b");
    eventually("a has the edit", || a.has("note.md", "by b"));
    world.settle(&[&a, &b]);
    assert!(a.has("twin.md", "one and two"), "the other name keeps its content");
    assert_eq!(fs::read(&outside).unwrap(), b"one and two", "the name outside the folder keeps its content");
    assert_eq!(a.kept(), [b"one and two".to_vec()]);
    // A deletion removes one name.
    b.remove("twin.md");
    eventually("gone on a", || !a.at("twin.md").exists());
    world.settle(&[&a, &b]);
    assert_eq!(fs::read(&outside).unwrap(), b"one and two");
}

#[test]
fn edit_through_a_hard_link_is_noticed_under_every_name() {
    let world = World::new();
    let (a, b) = (world.device_with("a", "rescan = \"1h\""), world.device("b"));
    a.write("note.md", "one");
    a.write("deep/first.md", "one");
    fs::hard_link(a.at("deep/first.md"), a.at("second.md")).unwrap();
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    // One link is there from the start and one is made later. Each file is edited through either name.
    fs::hard_link(a.at("note.md"), a.at("deep/twin.md")).unwrap();
    eventually("b has the new name", || b.has("deep/twin.md", "one"));
    let append = |path: &str, text: &str| {
        OpenOptions::new().append(true).open(a.at(path)).unwrap().write_all(text.as_bytes()).unwrap();
    };
    for (name, other) in [("deep/first.md", "second.md"), ("deep/twin.md", "note.md")] {
        append(name, " two");
        eventually("both names have the first edit", || b.has(name, "one two") && b.has(other, "one two"));
        append(other, " three");
        eventually("both names have the second", || b.has(name, "one two three") && b.has(other, "one two three"));
    }
    let told = a.cli(&["status", "note.md"]);
    assert!(told.out.contains("has 1 other name (hard links)"), "{told:?}");
}

#[test]
fn history_does_not_change_through_a_hard_link() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let outside = world.path().join("other-name.md");
    a.write("note.md", "one");
    fs::set_permissions(a.at("note.md"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::hard_link(a.at("note.md"), &outside).unwrap();
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    b.write("note.md", "two");
    eventually("a has it", || a.has("note.md", "two"));
    world.settle(&[&a, &b]);
    OpenOptions::new().append(true).open(&outside).unwrap().write_all(b" scribbled over").unwrap();
    assert_eq!(a.kept(), [b"one".to_vec()]);
    let version = fs::read_dir(a.at(".memsync/history")).unwrap().next().unwrap().unwrap().path();
    let mode = fs::metadata(version).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "history has the mode of the file");
}

#[cfg(target_os = "linux")]
#[test]
fn text_written_to_a_replaced_open_file_becomes_a_copy() {
    let world = World::new();
    let (a, b) = both_run(&world);
    a.write("log.txt", "one\n");
    world.settle(&[&a, &b]);
    let mut log = OpenOptions::new().append(true).open(b.at("log.txt")).unwrap();
    // The program writes to the replaced file. That must not be an old version in history.
    a.write("log.txt", "another\n");
    eventually("b has the edit", || b.has("log.txt", "another\n"));
    log.write_all(b"two\n").unwrap();
    drop(log);
    eventually("the text of the program is a conflict copy", || a.copies().len() == 1);
    let tree = world.settle(&[&a, &b]);
    assert_eq!((tree["log.txt"].as_slice(), tree[&a.copies()[0]].as_slice()), (&b"another\n"[..], &b"one\ntwo\n"[..]));
}

#[cfg(target_os = "linux")]
#[test]
fn deleted_open_file_lives_only_if_it_was_written_to() {
    let world = World::new();
    let (a, b) = both_run(&world);
    for name in ["closed.txt", "written.txt", "other.md"] {
        a.write(name, "one\n");
    }
    world.settle(&[&a, &b]);
    let [closed, mut written] =
        ["closed.txt", "written.txt"].map(|name| OpenOptions::new().append(true).open(b.at(name)).unwrap());
    a.remove("closed.txt");
    a.remove("written.txt");
    a.write("other.md", "two\n");
    eventually("other files are synced", || b.has("other.md", "two\n"));
    eventually("both are deleted on the proxy", || {
        world.blob("closed.txt").is_none() && world.blob("written.txt").is_none()
    });
    for name in ["closed.txt", "written.txt"] {
        reports(&b, name, "has it open");
    }
    assert!(b.has("closed.txt", "one\n") && b.has("written.txt", "one\n"));
    written.write_all(b"two\n").unwrap();
    drop((closed, written));
    eventually("one is deleted, the other is on both", || {
        b.wait();
        !b.at("closed.txt").exists() && a.has("written.txt", "one\ntwo\n")
    });
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["other.md", "written.txt"]);
}

#[test]
fn open_file_is_never_missing_while_it_is_renamed() {
    let world = World::new();
    // Even a loaded machine scans several times while the file is young and open.
    let a = world.device_with("a", "debounce = \"1500ms\"");
    a.write("log.md", "begun\n");
    a.start();
    world.settle(&[&a]);
    let mut log = OpenOptions::new().append(true).open(a.at("log.md")).unwrap();
    log.write_all(b"one line\n").unwrap();
    fs::rename(a.at("log.md"), a.at("log-1.md")).unwrap();
    eventually("the new name is there", || {
        // The old name is read first, because it is deleted after the new one is uploaded.
        let old = world.blob("log.md").is_some();
        let new = world.blob("log-1.md").is_some();
        assert!(old || new, "neither name is on the proxy");
        new
    });
    drop(log);
    let tree = world.settle(&[&a]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["log-1.md"]);
}
