//! Files that are ignored, special, too large or unreadable. Other files are synced.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::common::world::{Device, World, eventually};

/// The problem of a path, or null.
fn problem(device: &Device, path: &str) -> Value {
    let problems = device.folder_status()["problems"].as_array().unwrap().clone();
    problems.into_iter().find(|p| p["path"] == path).map_or(Value::Null, |p| p["problem"].clone())
}

#[test]
fn ignored_files_stay_local_and_the_rules_are_synced() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write(".memsyncignore", "*.log\ndrafts/\n!keep.log\n");
    for name in ["x.log", "sub/y.log", "drafts/d.md", "keep.log", "note.md", "note.md~", ".note.md.swp"] {
        a.write(name, name);
    }
    a.start();
    b.start();
    eventually("b has the rules", || b.at(".memsyncignore").exists());
    a.wait();
    b.wait();
    assert_eq!(b.tree().into_keys().collect::<Vec<_>>(), [".memsyncignore", "keep.log", "note.md"]);
    // The rules apply on b as well.
    b.write("z.log", "stays on b");
    b.write("late.md", "goes");
    eventually("a has the other", || a.has("late.md", "goes"));
    assert!(world.blob("z.log").is_none());
    eventually("ignored files are no problem", || a.cli(&["status"]).code == 0);
}

#[test]
fn new_rule_deletes_nothing_and_its_removal_syncs_again() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("x.log", "was synced");
    a.write("note.md", "note");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.write(".memsyncignore", "*.log\n");
    eventually("b has the rule", || b.at(".memsyncignore").exists());
    a.wait();
    b.wait();
    for device in [&a, &b] {
        assert!(device.has("x.log", "was synced"), "{}", device.name);
    }
    assert_eq!(world.blob("x.log").unwrap(), b"was synced");
    // An edit, and even a deletion, of an ignored file stays local.
    a.write("x.log", "edited here alone");
    a.write("note.md", "edited for all");
    eventually("b has the note", || b.has("note.md", "edited for all"));
    a.wait();
    assert_eq!(world.blob("x.log").unwrap(), b"was synced");
    assert!(b.has("x.log", "was synced"));
    a.remove(".memsyncignore");
    eventually("b has the edit", || b.has("x.log", "edited here alone"));
    world.settle(&[&a, &b]);
}

#[test]
fn files_removed_under_a_rule_come_back_without_it() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for name in ["big/1.bin", "big/2.bin", "note.md"] {
        a.write(name, name);
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    let folder = |more| a.write_config("", &[(&a.folder, more)]);
    a.stop();
    folder("ignore = [\"big/\"]");
    a.start();
    a.ok(&["sync"]);
    fs::remove_dir_all(a.at("big")).unwrap();
    a.ok(&["sync"]);
    // The agent remembers that over a restart.
    a.stop();
    folder("");
    a.start();
    eventually("a has them again", || a.has("big/1.bin", "big/1.bin") && a.has("big/2.bin", "big/2.bin"));
    assert_eq!(world.settle(&[&a, &b]).len(), 3, "a rule deletes nothing when it goes");
    // The files are synced as before.
    a.remove("big/1.bin");
    eventually("b deletes the file", || !b.at("big/1.bin").exists());
}

#[test]
fn bad_rule_is_reported_with_its_line() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write(".memsyncignore", "fine/\na[b\n*.key\n");
    for name in ["note.md", "fine/x.md", "secret.key"] {
        a.write(name, "note");
    }
    a.start();
    b.start();
    eventually("b has it", || b.has("note.md", "note"));
    eventually("it is reported", || problem(&a, ".memsyncignore").to_string().contains("line 2"));
    assert!(world.blob("fine/x.md").is_none() && world.blob("secret.key").is_none(), "the other lines hold");
    // The rules stay while the file cannot be read, and while a program rewrites it.
    a.write(".memsync/long", vec![b'#'; 2 << 20]);
    a.rename(".memsync/long", ".memsyncignore");
    eventually("it is reported", || problem(&a, ".memsyncignore").to_string().contains("too long"));
    a.write("another.key", "secret");
    a.write("another.md", "note");
    eventually("b has the other files", || b.has("another.md", "note"));
    assert!(world.blob("another.key").is_none());
}

/// A renamed file cannot be uploaded, so its old name stays on the proxy.
#[test]
fn deletion_that_waits_for_a_renamed_file_is_reported() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("old.md", "note");
    a.as_another_user();
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    // The agent is stopped, so that it never finds the old name unreadable.
    a.stop();
    fs::set_permissions(a.at("old.md"), PermissionsExt::from_mode(0o000)).unwrap();
    a.rename("old.md", "new.md");
    a.start();
    eventually("the deletion waits", || {
        let status = a.folder_status();
        status["pending"]["delete"] == 1 && status["in_sync"] == false
    });
    // A sync without news agrees.
    assert_eq!(a.cli(&["sync"]).code, 4);
    eventually("both names wait for a person", || a.folder_status()["pending"]["blocked"] == 2);
    let status = a.folder_status();
    assert!(status["pending"]["delete"] == 1 && status["in_sync"] == false, "{status}");
    assert!(world.blob("old.md").is_some() && b.has("old.md", "note"));
    fs::set_permissions(a.at("new.md"), PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(world.settle(&[&a, &b]).into_keys().collect::<Vec<_>>(), ["new.md"]);
}

#[test]
fn special_and_large_files_are_reported_and_delay_no_other() {
    let world = World::new();
    let (a, b) = (world.device_with("a", "max_file_size = \"4KiB\""), world.device("b"));
    let secret = world.path().join("secret");
    fs::write(&secret, "outside").unwrap();
    symlink(&secret, a.at("link.md")).unwrap();
    symlink(world.path(), a.at("linked-folder")).unwrap();
    mknodat(CWD, a.at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    a.write("huge.bin", vec![b'x'; 4097]);
    a.write("fits.bin", vec![b'x'; 4096]);
    a.write("note.md", "note");
    a.start();
    b.start();
    eventually("b has the other files", || b.tree().len() == 2);
    a.wait();
    for (path, why) in
        [("link.md", "symlink"), ("linked-folder", "symlink"), ("pipe", "regular files"), ("huge.bin", "4097 bytes")]
    {
        let problem = problem(&a, path).to_string();
        assert!(problem.contains(why), "{path}: {problem}");
        assert!(world.blob(path).is_none(), "{path}");
    }
    assert_eq!(a.folder_status()["problems"].as_array().unwrap().len(), 4);
    assert_eq!(b.tree().into_keys().collect::<Vec<_>>(), ["fits.bin", "note.md"]);
    // Once they are corrected, the files are synced.
    a.write("huge.bin", "small now");
    fs::remove_file(a.at("link.md")).unwrap();
    a.write("link.md", "a file now");
    eventually("b has them", || b.has("huge.bin", "small now") && b.has("link.md", "a file now"));
    assert_eq!(fs::read(&secret).unwrap(), b"outside");
}

#[test]
fn file_over_the_local_limit_stays_on_the_proxy() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device_with("b", "max_file_size = \"4KiB\""));
    a.write("huge.bin", vec![b'x'; 5000]);
    a.write("note.md", "note");
    a.start();
    b.start();
    eventually("b has the other files", || b.has("note.md", "note"));
    eventually("it is reported", || problem(&b, "huge.bin").to_string().contains("5000 bytes"));
    a.wait();
    assert!(a.at("huge.bin").exists() && world.blob("huge.bin").is_some() && !b.at("huge.bin").exists());
}

#[test]
fn file_replaced_by_a_symlink_is_not_deleted_remotely() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("note.md", "note");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.rename("note.md", ".memsync/moved");
    symlink(a.at(".memsync/moved"), a.at("note.md")).unwrap();
    eventually("it is reported", || problem(&a, "note.md").to_string().contains("symlink"));
    // A remote edit is not written through the link.
    b.write("note.md", "edited on b");
    b.wait();
    a.wait();
    assert_eq!(fs::read(a.at(".memsync/moved")).unwrap(), b"note");
    assert!(b.has("note.md", "edited on b"));
    fs::remove_file(a.at(".memsync/moved")).unwrap();
}

#[test]
fn unreadable_file_is_reported_and_not_deleted() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("secret.md", "synced while it could be read");
    a.write("closed/inside.md", "below a folder");
    a.as_another_user();
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    fs::set_permissions(a.at("secret.md"), PermissionsExt::from_mode(0o000)).unwrap();
    fs::set_permissions(a.at("closed"), PermissionsExt::from_mode(0o000)).unwrap();
    a.write("note.md", "note");
    eventually("other files are synced", || b.has("note.md", "note"));
    let mut folder = Value::Null;
    eventually("both are reported", || {
        folder = a.folder_status();
        let problems = folder["problems"].to_string();
        problems.contains("secret.md") && problems.contains("closed")
    });
    assert_eq!(folder["in_sync"], false, "{folder}");
    for command in [&["status"][..], &["sync"], &["wait"]] {
        let ran = a.cli(command);
        assert_eq!(ran.code, 4, "{command:?}: {ran:?}");
    }
    assert!(b.at("secret.md").exists() && b.at("closed/inside.md").exists());
    fs::set_permissions(a.at("secret.md"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(a.at("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(world.settle(&[&a, &b]).len(), 3);
}
