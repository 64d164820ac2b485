//! A missing or replaced folder, and its approval by a person.

use std::fs;
use std::path::Path;

use crate::common::world::{Device, World, eventually, write_private};

const QUICK: &str = "interval = \"300ms\"";
const FILES: usize = 12;

/// Two devices in sync, with [`FILES`] files.
fn dozen(world: &World) -> (Device<'_>, Device<'_>) {
    let (a, b) = (world.device_with("a", QUICK), world.device_with("b", QUICK));
    for n in 0..FILES {
        a.write(&format!("{n}.md"), format!("note {n}"));
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    (a, b)
}

/// Checks that every command names the same `memsync approve ID`, and returns the id.
#[track_caller]
fn agreed_id(device: &Device) -> String {
    let listed = device.cli(&["approve", "--list", "--json"]);
    assert_eq!(listed.code, 7, "{listed:?}");
    let id = listed.json()["held"][0]["id"].as_str().expect("the halt has an id").to_owned();
    let way_out = format!("memsync approve {id}");
    for args in [&["status"][..], &["doctor"], &["sync"], &["approve", "--list"]] {
        let ran = device.cli(args);
        assert_eq!(ran.code, 7, "{args:?}: {ran:?}");
        assert!(ran.out.contains(&way_out) || ran.err.contains(&way_out), "{args:?} names {way_out}: {ran:?}");
    }
    assert_eq!(device.folder_status()["halt"]["id"], id.as_str());
    id
}

#[test]
fn lost_identity_is_approved_and_nothing_is_deleted() {
    let world = World::new();
    let (a, b) = dozen(&world);
    fs::remove_dir_all(a.at(".memsync")).unwrap();
    a.halted("root_missing");
    a.write("0.md", "edited after the loss");
    a.remove("1.md");
    b.remove("2.md");
    eventually("the deletion is on the proxy", || world.blob("2.md").is_none());
    let id = agreed_id(&a);
    let refused = a.cli(&["approve", "--reject", &id]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert_eq!(a.cli(&["approve", "no-such-halt"]).code, 2);
    a.ok(&["approve", &id]);
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), FILES + 1, "all files, and a copy of the edit: {:?}", tree.keys());
    assert_eq!((&tree["1.md"][..], &tree["2.md"][..]), (&b"note 1"[..], &b"note 2"[..]));
    assert_eq!(tree["0.md"], b"note 0");
    assert_eq!(tree[&a.copies()[0]], b"edited after the loss");
    assert_eq!(fs::read(a.at(".memsync/.gitignore")).unwrap(), b"*\n");
    // Deletions propagate again.
    a.remove("3.md");
    eventually("the deletion arrives", || !b.at("3.md").exists());
}

#[test]
fn lost_identity_halts_while_the_proxy_is_away() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"1h\"");
    a.start();
    a.wait();
    world.kill_proxy();
    a.write("note.md", "needs the proxy");
    eventually("the proxy is missed", || a.folder_status()["waits_for"] == "proxy");
    fs::remove_dir_all(a.at(".memsync")).unwrap();
    a.halted("root_missing");
}

#[test]
fn lost_identity_halts_while_the_token_is_refused() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"1h\"");
    write_private(&a.home.join("token"), "another-token");
    a.start();
    eventually("the token is refused", || a.folder_status()["state"] == "auth_required");
    // The next request is an hour away.
    fs::remove_dir_all(a.at(".memsync")).unwrap();
    a.halted("root_missing");
}

#[test]
fn lost_identity_is_approved_without_an_agent() {
    let world = World::new();
    let (a, b) = dozen(&world);
    a.stop();
    fs::remove_dir_all(a.at(".memsync")).unwrap();
    a.remove("1.md");
    let id = agreed_id(&a);
    a.ok(&["approve", &id]);
    assert_eq!(a.cli(&["approve", "--list"]).code, 3, "nothing is held, and no agent runs");
    assert_eq!(a.ok(&["sync"]).code, 0);
    assert!(a.has("1.md", "note 1"), "the file came back");
    a.start();
    assert_eq!(world.settle(&[&a, &b]).len(), FILES);
}

#[test]
fn agent_and_command_give_one_halt_the_same_id() {
    let world = World::new();
    let (a, _b) = dozen(&world);
    fs::remove_dir_all(a.at(".memsync")).unwrap();
    a.halted("root_missing");
    let with_agent = agreed_id(&a);
    a.stop();
    assert_eq!(agreed_id(&a), with_agent);
    a.start();
    a.halted("root_missing");
    assert_eq!(agreed_id(&a), with_agent);
}

#[test]
fn another_folder_is_approved_and_both_contents_stay() {
    let world = World::new();
    let (a, b) = dozen(&world);
    let away = a.home.join("away");
    fs::rename(&a.folder, &away).unwrap();
    fs::create_dir_all(a.at(".memsync")).unwrap();
    fs::write(a.at(".memsync/id"), "another-identity\n").unwrap();
    a.write("foreign.md", "of the other folder");
    a.write("0.md", "note 0");
    a.halted("root_changed");
    let id = agreed_id(&a);
    a.ok(&["approve", &id]);
    let tree = world.settle(&[&a, &b]);
    assert_eq!((tree.len(), a.copies().len()), (FILES + 1, 0), "{:?}", tree.keys());
    assert_eq!(tree["foreign.md"], b"of the other folder");
    assert_eq!(fs::read_to_string(a.at(".memsync/id")).unwrap(), "another-identity\n", "it keeps its identity");
}

#[test]
fn missing_folder_is_created_after_approval() {
    let world = World::new();
    let (a, b) = dozen(&world);
    a.stop();
    fs::remove_dir_all(&a.folder).unwrap();
    a.start();
    a.halted("root_missing");
    let id = agreed_id(&a);
    assert!(!a.folder.exists(), "nothing is made before the approval");
    a.ok(&["approve", &id]);
    assert_eq!(world.settle(&[&a, &b]).len(), FILES);
}

#[test]
fn killed_approval_is_requested_again() {
    let world = World::new();
    let (a, b) = dozen(&world);
    a.stop();
    fs::remove_dir_all(a.at(".memsync")).unwrap();
    a.remove("1.md");
    let id = agreed_id(&a);
    let killed = a.cli_with(&["approve", &id], &[("MEMSYNC_KILL_AT", "identity.placed")]);
    assert_eq!(killed.code, -1, "{killed:?}");
    a.start();
    a.halted("root_changed");
    a.ok(&["approve", &agreed_id(&a)]);
    let tree = world.settle(&[&a, &b]);
    assert_eq!((tree.len(), &tree["1.md"][..]), (FILES, &b"note 1"[..]));
}

#[test]
fn older_copy_of_the_folder_deletes_nothing() {
    let world = World::new();
    let (a, b) = dozen(&world);
    a.stop();
    let backup = a.home.join("backup");
    copy_folder(&a.folder, &backup);
    a.start();
    a.write("new.md", "written after the backup");
    world.settle(&[&a, &b]);
    a.stop();
    fs::remove_dir_all(&a.folder).unwrap();
    copy_folder(&backup, &a.folder);
    a.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), FILES + 1, "{:?}", tree.keys());
    assert_eq!(tree["new.md"], b"written after the backup");
}

/// Copies a folder with everything in it, as a backup does.
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
