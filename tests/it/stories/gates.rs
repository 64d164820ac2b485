//! Implausible changes halt the folder, visibly, and delete nothing.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::world::{Device, World, eventually};

const QUICK: &str = "interval = \"300ms\"";

fn twenty(device: &Device) {
    for n in 0..20 {
        device.write(&format!("{n}.md"), format!("note {n}"));
    }
}

fn live(world: &World) -> usize {
    world.index()["files"].as_object().unwrap().values().filter(|e| e["is_deleted"] == false).count()
}

/// The id of a halt.
fn id(halt: &Value) -> String {
    halt["id"].as_str().unwrap_or_else(|| panic!("no id: {halt}")).to_owned()
}

#[test]
fn missing_root_deletes_nothing_and_comes_back() {
    let world = World::new();
    let (a, b) = (world.device_with("a", QUICK), world.device("b"));
    twenty(&a);
    a.start();
    b.start();
    let before = world.settle(&[&a, &b]);
    let away = a.home.join("away");
    fs::rename(&a.folder, &away).unwrap();
    a.halted("root_missing");
    let ran = a.cli(&["sync"]);
    assert_eq!(ran.code, 7, "{ran:?}");
    assert_eq!(a.cli(&["status"]).code, 7);
    assert!(!a.folder.exists(), "nothing is made in its place");
    assert_eq!((live(&world), b.tree().len()), (20, 20));
    fs::write(away.join("meanwhile.md"), "written while it was away").unwrap();
    fs::rename(&away, &a.folder).unwrap();
    eventually("sync goes on", || b.at("meanwhile.md").exists());
    assert_eq!(world.settle(&[&a, &b]).len(), before.len() + 1);
}

#[test]
fn missing_root_at_the_start_deletes_nothing() {
    let world = World::new();
    let (a, b) = (world.device_with("a", QUICK), world.device("b"));
    twenty(&a);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.stop();
    let away = a.home.join("away");
    fs::rename(&a.folder, &away).unwrap();
    a.start();
    a.halted("root_missing");
    // An unmounted disk leaves an empty folder.
    fs::create_dir(&a.folder).unwrap();
    assert_eq!(a.cli(&["sync"]).code, 7);
    a.halted("root_missing");
    assert_eq!(live(&world), 20);
    assert_eq!(fs::read_dir(&a.folder).unwrap().count(), 0, "no new marker, no files");
    fs::remove_dir(&a.folder).unwrap();
    fs::rename(&away, &a.folder).unwrap();
    eventually("sync goes on", || a.folder_status()["in_sync"] == true);
    assert_eq!(world.settle(&[&a, &b]).len(), 20);
}

#[test]
fn replaced_root_halts() {
    let world = World::new();
    let (a, b) = (world.device_with("a", QUICK), world.device_with("b", QUICK));
    twenty(&a);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    // Another synced folder.
    b.stop();
    let away = a.home.join("away");
    fs::rename(&a.folder, &away).unwrap();
    fs::rename(&b.folder, &a.folder).unwrap();
    a.write("foreign.md", "not of this folder");
    a.halted("root_changed");
    assert_eq!(a.cli(&["sync"]).code, 7);
    assert!(world.blob("foreign.md").is_none() && live(&world) == 20);
    // A folder that was never synced.
    fs::rename(&a.folder, &b.folder).unwrap();
    a.write("foreign.md", "not of this folder");
    assert_eq!(a.cli(&["sync"]).code, 7);
    eventually("it is halted", || a.status()["state"] == "halted");
    assert!(world.blob("foreign.md").is_none() && live(&world) == 20);
    assert!(!a.at(".memsync").exists());
    fs::remove_dir_all(&a.folder).unwrap();
    fs::rename(&away, &a.folder).unwrap();
    fs::remove_file(b.at("foreign.md")).unwrap();
    b.start();
    eventually("sync goes on", || a.folder_status()["in_sync"] == true);
    assert_eq!(world.settle(&[&a, &b]).len(), 20);
}

#[test]
fn root_replaced_by_a_symlink_halts() {
    let world = World::new();
    let a = world.device_with("a", QUICK);
    twenty(&a);
    a.start();
    a.wait();
    let away = a.home.join("away");
    fs::rename(&a.folder, &away).unwrap();
    std::os::unix::fs::symlink(&away, &a.folder).unwrap();
    a.halted("root_changed");
    a.write("through-the-link.md", "x");
    assert_eq!(a.cli(&["sync"]).code, 7);
    assert!(world.blob("through-the-link.md").is_none(), "symlinks are not followed");
    assert_eq!(live(&world), 20);
    fs::remove_file(&a.folder).unwrap();
    fs::rename(&away, &a.folder).unwrap();
    eventually("sync goes on", || world.blob("through-the-link.md").is_some());
}

/// `a` deletes 15 of 20 files while its agent is stopped, and its agent then holds the deletions. The agent of `b` is
/// stopped, so that it gets all changes at once later. Returns the id of the halt.
fn mass_delete(world: &World) -> (Device<'_>, Device<'_>, String) {
    let (a, b) = (world.device("a"), world.device("b"));
    twenty(&a);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.stop();
    for n in 0..15 {
        a.remove(&format!("{n}.md"));
    }
    a.start();
    let halt = a.halted("mass_delete");
    let ran = a.cli(&["status"]);
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.out.contains("approve"), "{ran:?}");
    let held = a.cli(&["approve", "--list", "--json"]);
    assert_eq!((held.code, &held.json()["held"][0]["id"]), (7, &halt["id"]));
    assert_eq!(a.folder_status()["pending"]["held_delete"], 15);
    // Other files are synced.
    a.write("new.md", "new");
    eventually("b has the new one", || b.has("new.md", "new"));
    assert_eq!(live(world), 21);
    b.stop();
    let id = id(&halt);
    (a, b, id)
}

#[test]
fn mass_delete_is_held_until_approved() {
    let world = World::new();
    let (a, b, id) = mass_delete(&world);
    a.ok(&["approve", &id]);
    eventually("deleted on the proxy", || live(&world) == 6);
    a.wait();
    // The other device holds the deletions as well.
    b.start();
    b.halted("mass_delete");
    assert_eq!(b.tree().len(), 21);
    b.ok(&["approve"]);
    eventually("deleted on b", || b.tree().len() == 6);
    world.settle(&[&a, &b]);
    let kept = b.ok(&["restore", "--deleted", "--json"]).json();
    assert_eq!(kept["versions"].as_array().unwrap().len(), 15, "history has all of them");
}

#[test]
fn rejected_mass_delete_brings_the_files_back() {
    let world = World::new();
    let (a, b, id) = mass_delete(&world);
    let ran = a.cli(&["approve", "no-such-plan"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    a.ok(&["approve", "--reject", &id]);
    b.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 21);
    assert_eq!(tree["3.md"], b"note 3");
    eventually("all is in sync", || a.cli(&["status"]).code == 0);
}

#[test]
fn remote_mass_delete_is_undone_everywhere_after_rejection() {
    let world = World::new();
    let (a, b, id) = mass_delete(&world);
    a.ok(&["approve", &id]);
    eventually("deleted on the proxy", || live(&world) == 6);
    b.start();
    let halt = b.halted("mass_delete");
    b.ok(&["approve", "--reject", halt["id"].as_str().unwrap()]);
    eventually("they are back on a", || a.tree().len() == 21);
    assert_eq!(world.settle(&[&a, &b]).len(), 21);
}

#[test]
fn wiped_proxy_halts_and_gets_the_files_after_approval() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device_with("b", "conflict = \"copy\""));
    twenty(&a);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    world.stop_proxy();
    fs::remove_dir_all(world.store()).unwrap();
    world.start_proxy();
    let halt = a.halted("server_reset");
    b.halted("server_reset");
    assert_eq!(a.cli(&["status"]).code, 7);
    b.write("3.md", "edited meanwhile");
    assert_eq!(b.cli(&["sync"]).code, 7);
    assert_eq!((live(&world), a.tree().len(), b.tree().len()), (0, 20, 20), "nothing moves");
    a.ok(&["approve", &id(&halt)]);
    eventually("a offers all again", || live(&world) == 20);
    a.wait();
    b.ok(&["approve"]);
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 21, "all of them, and one conflict copy: {:?}", tree.keys());
    assert_eq!(tree["3.md"], b"note 3");
    let copies = a.copies();
    assert_eq!(tree[&copies[0]], b"edited meanwhile");
}

/// Copies the files of one folder over those of another, as `cp -a FROM/. TO/` does. The inodes stay.
fn copy_over(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_over(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn store_set_back_in_place_replaces_nothing_newer() {
    let world = World::new();
    let (a, b, c) = (world.device("a"), world.device("b"), world.device("c"));
    a.write("note.md", "old");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    world.stop_proxy();
    let backup = world.path().join("backup");
    copy_over(&world.store(), &backup);
    world.start_proxy();
    a.write("note.md", "newer");
    world.settle(&[&a, &b]);
    // One device is stopped meanwhile, and one runs all the time.
    a.stop();
    world.stop_proxy();
    copy_over(&backup, &world.store());
    world.start_proxy();
    // Other writes move the cursor of the store ahead of all that a and b know.
    for n in 0..6 {
        c.write(&format!("{n}.md"), "theirs");
    }
    c.start();
    c.wait();
    a.start();
    let halt = a.halted("server_reset");
    b.halted("server_reset");
    assert!(a.has("note.md", "newer") && b.has("note.md", "newer"), "nothing older replaces it");
    a.ok(&["approve", &id(&halt)]);
    a.wait();
    let tree = a.tree();
    assert!(tree.values().any(|content| content == b"newer") && tree.values().any(|content| content == b"old"));
    assert_eq!(tree.len(), 8, "both texts, and what the others wrote: {:?}", tree.keys());
}

#[test]
fn halted_folder_does_not_stop_the_other() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let second = a.home.join("second");
    fs::create_dir(&second).unwrap();
    let apart = "namespace = \"second\"";
    a.write_config(QUICK, &[(&a.folder, ""), (&second, apart)]);
    b.write_config("", &[(&b.folder, apart)]);
    a.write("note.md", "note");
    fs::write(second.join("first.md"), "first").unwrap();
    a.start();
    b.start();
    a.wait();
    eventually("b has it", || b.has("first.md", "first"));
    fs::rename(&a.folder, a.home.join("away")).unwrap();
    a.halted("root_missing");
    fs::write(second.join("more.md"), "goes on").unwrap();
    eventually("b has it", || b.has("more.md", "goes on"));
    eventually("the second folder is in sync again", || {
        let folder = a.status()["folders"][1].take();
        folder["state"] == "idle" && folder["in_sync"] == true
    });
    let status = a.status();
    assert_eq!((&status["state"], &status["folders"][0]["state"]), (&"halted".into(), &"halted".into()));
    assert_eq!(a.cli(&["status"]).code, 7);
    fs::rename(a.home.join("away"), &a.folder).unwrap();
    eventually("both are in sync", || a.status()["in_sync"] == true);
    assert_eq!((world.blob("note.md").unwrap(), b.tree().len()), (b"note".to_vec(), 2));
}
