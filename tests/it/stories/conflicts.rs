//! Two devices change files while they are apart.

use std::fs;

use crate::common::world::{Device, World, eventually};

const COPY: &str = "conflict = \"copy\"";

/// Two devices with `note.md`, which keep both versions of a conflict. Their agents are stopped.
fn both_have<'w>(world: &'w World, content: &str) -> (Device<'w>, Device<'w>) {
    world.apart(COPY, &[("note.md", content)])
}

#[test]
fn concurrent_edits_of_different_files_merge() {
    let world = World::new();
    let (a, b) = both_have(&world, "base");
    a.write("of-a.md", "a");
    a.write("note.md", "edited by a");
    b.write("of-b.md", "b");
    a.start();
    b.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 3, "{:?}", tree.keys());
    assert_eq!(tree["note.md"], b"edited by a");
    assert_eq!((&tree["of-a.md"], &tree["of-b.md"]), (&b"a".to_vec(), &b"b".to_vec()));
}

#[test]
fn concurrent_edits_of_a_file_are_both_kept() {
    let world = World::new();
    let (a, b) = both_have(&world, "base");
    a.write("note.md", "by a");
    b.write("note.md", "by b");
    a.start();
    a.wait();
    b.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree["note.md"], b"by a", "the first upload keeps the name");
    let copies = a.copies();
    assert_eq!((copies.len(), b.copies()), (1, copies.clone()));
    assert!(copies[0].starts_with("note.conflict-b-") && copies[0].ends_with(".md"), "{copies:?}");
    assert_eq!(tree[&copies[0]], b"by b");
    for device in [&a, &b] {
        assert_eq!(device.cli(&["status"]).code, 8);
        assert_eq!(device.folder_status()["conflicts"], 1);
    }
}

#[test]
fn edits_made_offline_are_sent_when_the_proxy_returns() {
    let world = World::new();
    let (a, b) = (world.device_with("a", COPY), world.device_with("b", COPY));
    a.write("note.md", "base");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    world.stop_proxy();
    for device in [&a, &b] {
        device.write("note.md", format!("by {}", device.name));
        device.write(&format!("of-{}.md", device.name), "new");
        eventually("it says that it is offline", || device.status()["state"] == "offline");
        assert_eq!(device.cli(&["status"]).code, 5);
    }
    world.start_proxy();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 4, "{:?}", tree.keys());
    let mut contents: Vec<_> =
        tree.iter().filter(|(name, _)| name.starts_with("note.")).map(|(_, content)| content.clone()).collect();
    contents.sort();
    assert_eq!(contents, [b"by a".to_vec(), b"by b".to_vec()]);
}

#[test]
fn same_new_file_on_both_devices_is_no_conflict() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for device in [&a, &b] {
        device.write("same.md", "the very same");
        device.write("other.md", format!("by {}", device.name));
    }
    a.start();
    a.wait();
    b.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 3, "{:?}", tree.keys());
    assert_eq!(a.copies().len(), 1);
    assert!(a.copies()[0].starts_with("other.conflict-b-"));
}

#[test]
fn same_edit_on_both_devices_is_no_conflict() {
    let world = World::new();
    let (a, b) = both_have(&world, "base");
    a.write("note.md", "the same edit");
    b.write("note.md", "the same edit");
    a.start();
    b.start();
    assert_eq!(world.settle(&[&a, &b]).len(), 1);
}

#[test]
fn edit_beats_an_earlier_delete() {
    let world = World::new();
    let (a, b) = both_have(&world, "base");
    a.remove("note.md");
    b.write("note.md", "edited");
    a.start();
    a.wait();
    assert_eq!(world.blob("note.md"), None, "deleted on the proxy");
    b.start();
    eventually("the edit is back on a", || a.has("note.md", "edited"));
    assert_eq!(world.settle(&[&a, &b]).len(), 1);
}

#[test]
fn edit_beats_a_later_delete() {
    let world = World::new();
    let (a, b) = both_have(&world, "base");
    a.remove("note.md");
    b.write("note.md", "edited");
    b.start();
    b.wait();
    a.start();
    eventually("the edit is back on a", || a.has("note.md", "edited"));
    assert_eq!(world.settle(&[&a, &b]).len(), 1);
}

#[test]
fn delete_on_both_devices_is_no_conflict() {
    let world = World::new();
    let (a, b) = both_have(&world, "base");
    a.remove("note.md");
    b.remove("note.md");
    a.start();
    b.start();
    assert_eq!(world.settle(&[&a, &b]).len(), 0);
}

#[test]
fn file_and_folder_of_one_name_are_blocked_and_kept() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("plan", "a file");
    b.write("plan/detail.md", "in a folder");
    b.write("other.md", "goes on");
    a.start();
    a.wait();
    b.start();
    eventually("other files are synced", || a.has("other.md", "goes on"));
    let problem = |device: &Device| device.folder_status()["problems"].clone();
    eventually("both report it", || [&a, &b].iter().all(|d| problem(d).to_string().contains("plan")));
    assert!(a.has("plan", "a file") && b.has("plan/detail.md", "in a folder"));
    assert_eq!(world.blob("plan").unwrap(), b"a file");
    // A person renames the file.
    a.rename("plan", "plan-file");
    eventually("all is there", || b.has("plan-file", "a file") && a.has("plan/detail.md", "in a folder"));
    world.settle(&[&a, &b]);
    eventually("nothing is reported any more", || {
        [&a, &b].iter().all(|d| {
            d.wait();
            problem(d).as_array().unwrap().is_empty()
        })
    });
}

#[test]
fn file_replaced_by_a_folder_propagates() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("topic", "a file");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.remove("topic");
    a.write("topic/one.md", "in it");
    eventually("b has the folder", || b.has("topic/one.md", "in it"));
    assert_eq!(world.settle(&[&a, &b]).len(), 1);
    fs::remove_dir_all(b.at("topic")).unwrap();
    b.write("topic", "a file again");
    eventually("a has the file", || a.has("topic", "a file again"));
    assert_eq!(world.settle(&[&a, &b]).len(), 1);
}

#[test]
fn conflicts_are_resolved_each_way_for_both_devices() {
    let world = World::new();
    let (a, b) = (world.device_with("a", COPY), world.device_with("b", COPY));
    for name in ["copy.md", "file.md", "both.md"] {
        a.write(name, "by a");
        b.write(name, "by b");
    }
    a.start();
    a.wait();
    b.start();
    world.settle(&[&a, &b]);
    let listed = a.cli(&["conflicts", "--json"]);
    assert_eq!(listed.code, 8);
    let listed = listed.json()["conflicts"].as_array().unwrap().clone();
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|c| c["device"] == "b"), "{listed:?}");
    // The other device made the copies, and the agent runs.
    a.ok(&["conflicts", "resolve", "copy.md", "--keep", "copy"]);
    a.ok(&["conflicts", "resolve", "file.md", "--keep", "file"]);
    a.ok(&["conflicts", "resolve", "both.md", "--keep", "both"]);
    eventually("no copies on b", || b.copies().is_empty());
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 4, "{:?}", tree.keys());
    assert_eq!(tree["copy.md"], b"by b", "the copy's text");
    assert_eq!(tree["file.md"], b"by a", "the file's text");
    assert_eq!((&tree["both.md"], &tree["both (b).md"]), (&b"by a".to_vec(), &b"by b".to_vec()));
    for device in [&a, &b] {
        assert_eq!(device.cli(&["conflicts"]).code, 0);
        eventually("all is in sync", || device.cli(&["status"]).code == 0);
    }
}

/// Two devices with a conflict on each of `names`.
fn conflict_on<'w>(world: &'w World, names: &[&str]) -> (Device<'w>, Device<'w>) {
    let (a, b) = (world.device_with("a", COPY), world.device_with("b", COPY));
    for name in names {
        a.write(name, "by a");
        b.write(name, "by b");
    }
    a.start();
    a.wait();
    b.start();
    world.settle(&[&a, &b]);
    (a, b)
}

#[test]
fn conflict_of_a_longest_name_is_settled_by_that_name() {
    let world = World::new();
    let (first, second) = (format!("{}.md", "x".repeat(252)), format!("dir/{}.md", "é".repeat(126)));
    let (a, b) = conflict_on(&world, &[&first, &second]);
    for device in [&a, &b] {
        let listed = device.cli(&["conflicts", "--json"]).json()["conflicts"].clone();
        let originals: Vec<&str> = listed.as_array().unwrap().iter().map(|c| c["original"].as_str().unwrap()).collect();
        assert_eq!(originals, [second.as_str(), &first], "{}", device.name);
    }
    // Each device settles one conflict.
    b.ok(&["conflicts", "resolve", &first, "--keep", "copy"]);
    a.ok(&["conflicts", "resolve", &second, "--keep", "both"]);
    eventually("no copies are left", || a.copies().is_empty() && b.copies().is_empty());
    let tree = world.settle(&[&a, &b]);
    assert_eq!((&tree[&first], &tree[&second]), (&b"by b".to_vec(), &b"by a".to_vec()));
    assert_eq!(tree.len(), 3, "{:?}", tree.keys());
}

#[test]
fn conflict_of_a_longest_path_is_counted_and_settled() {
    let world = World::new();
    let dirs = vec!["d".repeat(200); 4].join("/");
    let deep = format!("{dirs}/{}.md", "n".repeat(215));
    assert!(deep.len() > 1020 && deep.len() <= 1024, "{}", deep.len());
    let (a, b) = conflict_on(&world, &[&deep]);
    for device in [&a, &b] {
        assert_eq!(device.cli(&["status"]).code, 8, "{}", device.name);
        assert_eq!(device.folder_status()["conflicts"], 1);
        let listed = device.cli(&["conflicts", "--json"]).json()["conflicts"].clone();
        assert_eq!((&listed[0]["original"], &listed[0]["device"]), (&deep.as_str().into(), &"b".into()), "{listed}");
        let copy = listed[0]["path"].as_str().unwrap().to_owned();
        assert_eq!(copy.rsplit_once('/').unwrap().0, &dirs[..dirs.len() - 201], "in the nearest folder above");
    }
    // The device that made the copy knows the original, even if it is gone.
    b.remove(&deep);
    world.settle(&[&b, &a]);
    let listed = b.cli(&["conflicts", "--json"]).json()["conflicts"].clone();
    assert_eq!((&listed[0]["original"], &listed[0]["original_exists"]), (&deep.as_str().into(), &false.into()));
    b.ok(&["conflicts", "resolve", &deep, "--keep", "copy"]);
    let tree = world.settle(&[&b, &a]);
    assert_eq!(tree.into_iter().collect::<Vec<_>>(), [(deep, b"by b".to_vec())]);
}
