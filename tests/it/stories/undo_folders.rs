//! Whole folders, points in time, and deleted files are brought back.

use std::fs;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::common::world::{Device, World, eventually};

/// Writes a file on a running device, and waits until the proxy has it.
fn upload(world: &World, device: &Device, path: &str, text: &str) {
    device.write(path, text);
    eventually("it is uploaded", || world.blob(path).is_some_and(|blob| blob == text.as_bytes()));
}

/// A moment that lies apart from the changes before and after it.
fn moment() -> String {
    // The proxy's times have milliseconds.
    let apart = Duration::from_millis(5);
    thread::sleep(apart);
    let now = Timestamp::now();
    thread::sleep(apart);
    now.to_string()
}

fn paths(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|v| v["path"].as_str().unwrap()).collect()
}

#[test]
fn files_deleted_here_are_listed_without_renamed_ones() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    for (path, text) in
        [("gone.md", "gone"), ("old-name.md", "moved"), ("by-b.md", "deleted by b"), ("stays.md", "stays")]
    {
        upload(&world, &a, path, text);
    }
    world.settle(&[&a, &b]);
    a.remove("gone.md");
    a.rename("old-name.md", "dir/new-name.md");
    b.remove("by-b.md");
    world.settle(&[&a, &b]);
    for device in [&a, &b] {
        let listed = device.ok(&["restore", "--deleted", "--json"]).json();
        let mut found = paths(&listed["versions"]);
        found.sort_unstable();
        assert_eq!(found, ["by-b.md", "gone.md"], "{}: {listed}", device.name);
        let moved = &listed["moved"][0];
        assert!(moved["path"].as_str().unwrap().ends_with("/old-name.md"), "{listed}");
        assert!(moved["now"].as_str().unwrap().ends_with("/dir/new-name.md"), "{listed}");
    }
    a.ok(&["restore", "gone.md"]);
    assert!(a.has("gone.md", "gone"));
    let listed = a.ok(&["restore", "--deleted"]).out;
    assert!(!listed.contains("gone.md") && listed.contains("by-b.md") && listed.contains("1 renamed file"), "{listed}");
    world.stop_proxy();
    let ran = a.ok(&["restore", "--deleted"]);
    assert!(ran.out.contains("by-b.md") && ran.err.contains("the proxy did not answer"), "{ran:?}");
}

#[test]
fn unsynced_deletion_is_listed_and_a_file_to_come_is_not() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    upload(&world, &a, "gone.md", "gone");
    a.wait();
    a.stop();
    b.start();
    b.wait();
    upload(&world, &b, "to-come.md", "new");
    a.remove("gone.md");
    let listed = a.ok(&["restore", "--deleted", "--json"]).json();
    assert_eq!(paths(&listed["versions"]), ["gone.md"]);
    a.ok(&["restore", "."]);
    assert_eq!(a.tree().into_keys().collect::<Vec<_>>(), ["gone.md"]);
}

#[test]
fn deleted_folder_comes_back_on_all_machines() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    for n in 0..5 {
        upload(&world, &a, &format!("dir/deep/{n}.md"), &format!("text {n}"));
    }
    upload(&world, &a, "other.md", "other");
    let before = world.settle(&[&a, &b]);
    fs::remove_dir_all(a.at("dir")).unwrap();
    a.remove("other.md");
    eventually("b follows", || !b.at("dir").exists() && !b.at("other.md").exists());
    a.wait();
    let restored = a.ok(&["restore", "dir", "--json"]).json();
    assert_eq!(restored["restored"].as_array().unwrap().len(), 5, "{restored}");
    eventually("b has the folder", || (0..5).all(|n| b.has(&format!("dir/deep/{n}.md"), format!("text {n}"))));
    assert!(!a.at("other.md").exists(), "a file elsewhere stays deleted");
    a.ok(&["restore", "."]);
    assert_eq!(world.settle(&[&a, &b]), before);
    let again = a.ok(&["restore", "."]);
    assert!(again.out.contains("0 files restored"), "{again:?}");
}

#[test]
fn folder_is_restored_to_a_moment() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    for path in ["dir/edited.md", "dir/deleted.md", "dir/same.md", "top.md"] {
        upload(&world, &a, path, &format!("{path}: first"));
    }
    world.settle(&[&a, &b]);
    let moment = moment();
    upload(&world, &a, "dir/edited.md", "slip");
    upload(&world, &a, "dir/edited.md", "another slip");
    upload(&world, &a, "top.md", "edited too");
    upload(&world, &a, "dir/new.md", "new");
    a.remove("dir/deleted.md");
    world.settle(&[&a, &b]);
    // On `b`, sync has displaced these texts. On `a`, only the proxy has them.
    for device in [&a, &b] {
        let report = device.ok(&["restore", "dir", "--at", &moment, "--json"]).json();
        let done = report["restored"].as_array().unwrap().len();
        let expected = if device.name == "a" { (2, Some(1)) } else { (0, Some(3)) };
        assert_eq!((done, report["unchanged"].as_u64()), expected, "{report}");
        assert!(report["newer"][0].as_str().unwrap().ends_with("dir/new.md"), "{report}");
        let tree = world.settle(&[&a, &b]);
        for path in ["dir/edited.md", "dir/deleted.md", "dir/same.md"] {
            assert_eq!(tree[path], format!("{path}: first").as_bytes(), "{}", device.name);
        }
        assert_eq!((&tree["dir/new.md"][..], &tree["top.md"][..]), (&b"new"[..], &b"edited too"[..]));
    }
    assert!(a.kept().contains(&b"another slip".to_vec()), "the displaced text is in history");
    a.ok(&["restore", "top.md", "--at", &moment]);
    assert!(a.has("top.md", "top.md: first"));
    // Before the first text.
    let report = a.ok(&["restore", ".", "--at", "1 hour ago", "--json"]).json();
    assert_eq!(report["newer"].as_array().unwrap().len(), 5, "{report}");
}

#[test]
fn folder_is_restored_from_history_while_the_proxy_is_away() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    upload(&world, &a, "dir/note.md", "first");
    upload(&world, &a, "dir/gone.md", "gone");
    world.settle(&[&a, &b]);
    let moment = moment();
    upload(&world, &a, "dir/note.md", "second");
    a.remove("dir/gone.md");
    eventually("b follows", || b.has("dir/note.md", "second") && !b.at("dir/gone.md").exists());
    b.wait();
    world.stop_proxy();
    let ran = b.cli(&["restore", "dir", "--at", &moment]);
    assert_eq!((ran.code, ran.err.contains("the proxy did not answer")), (5, true), "{ran:?}");
    assert!(b.has("dir/note.md", "first") && b.has("dir/gone.md", "gone"), "{ran:?}");
    world.start_proxy();
    let tree = world.settle(&[&b, &a]);
    assert_eq!((&tree["dir/note.md"][..], &tree["dir/gone.md"][..]), (&b"first"[..], &b"gone"[..]));
}

#[test]
fn moment_is_refused_with_a_reason() {
    let world = World::new();
    let a = world.device("a");
    for (args, why) in [
        (["restore", ".", "--at", "soon"], "is no time"),
        (["restore", ".", "--at", "2 hours"], "in the future"),
        (["restore", "a.md@5d41402a", "--at", "2 hours ago"], "not both"),
    ] {
        let ran = a.cli(&args);
        assert_eq!((ran.code, ran.err.contains(why)), (2, true), "{ran:?}");
    }
}

#[test]
fn resolved_conflict_copy_stays_away() {
    let world = World::new();
    let config = "conflict = \"copy\"";
    let (a, b) = (world.device_with("a", config), world.device_with("b", config));
    a.write("note.md", "by a");
    b.write("note.md", "by b");
    a.start();
    a.wait();
    b.start();
    world.settle(&[&a, &b]);
    a.ok(&["conflicts", "resolve", "note.md", "--keep", "file"]);
    a.wait();
    a.ok(&["restore", "."]);
    assert!(a.copies().is_empty());
    assert!(a.ok(&["restore", "--deleted"]).out.contains(".conflict-b-"), "its text can still be found");
}

#[test]
fn unreadable_file_does_not_stop_the_others() {
    let world = World::new();
    let a = world.device("a");
    a.start();
    for path in ["dir/locked.md", "dir/note.md"] {
        upload(&world, &a, path, "first");
    }
    let moment = moment();
    for path in ["dir/locked.md", "dir/note.md"] {
        upload(&world, &a, path, "second");
    }
    a.wait();
    a.stop();
    a.remove("dir/locked.md");
    fs::create_dir(a.at("dir/locked.md")).unwrap();
    let ran = a.cli(&["restore", "dir", "--at", &moment]);
    assert_eq!((ran.code, ran.out.contains("not restored")), (1, true), "{ran:?}");
    assert!(ran.out.contains("locked.md") && a.has("dir/note.md", "first"), "{ran:?}");
}
