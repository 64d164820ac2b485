//! The status and the exit codes say what is so: blocked work, conflicts, the disk, and what is known from before.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::filesystem::{both_run, reports};
use crate::world::{Device, World, eventually};

/// `status`, `sync` and `wait` agree on the code. `wait` has no timeout: it must not wait for what a person must do.
#[track_caller]
fn all_say(device: &Device, code: i32) {
    for command in [&["status"][..], &["sync"], &["wait"]] {
        let ran = device.cli(command);
        assert_eq!(ran.code, code, "{command:?}: {ran:?}: {}", device.status());
    }
}

fn mode(at: &Path, mode: u32) {
    fs::set_permissions(at, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn clash_is_pending_download_with_exit_4() {
    let world = World::new();
    let (a, b) = both_run(&world);
    b.wait();
    b.stop();
    a.write("plan", "a file");
    a.wait();
    b.write("plan/detail.md", "in a folder");
    b.start();
    reports(&b, "plan", "one name");
    all_say(&b, 4);
    let folder = b.folder_status();
    assert_eq!((&folder["in_sync"], &folder["state"]), (&false.into(), &"idle".into()), "{folder}");
    let pending = &folder["pending"];
    assert_eq!((&pending["download"], &pending["upload"], &pending["blocked"]), (&1.into(), &0.into(), &1.into()));
    assert_eq!(folder["problems"][0]["effect"], "blocked");
    let text = b.cli(&["status"]).out;
    assert!(text.contains("needs your help") && text.contains("plan: a file and a folder"), "{text}");
    // Without an agent it is the same.
    b.stop();
    assert_eq!(b.cli(&["sync"]).code, 4);
    assert_eq!(b.cli(&["status"]).code, 4);
}

#[test]
fn two_names_that_fold_into_one_are_pending() {
    let world = World::new();
    let a = world.device("a");
    a.write("re\u{301}sume\u{301}.md", "decomposed");
    a.write("r\u{e9}sum\u{e9}.md", "composed");
    if a.tree().len() < 2 {
        return crate::left_out::left_out("this filesystem takes both names for one");
    }
    a.start();
    reports(&a, "r\u{e9}sum\u{e9}.md", "same name");
    all_say(&a, 4);
    assert_eq!(a.folder_status()["in_sync"], false);
}

#[test]
fn failed_download_is_pending_as_a_download() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    b.as_another_user();
    a.start();
    b.start();
    a.write("closed/note.md", "one");
    world.settle(&[&a, &b]);
    mode(&b.at("closed"), 0o555);
    a.write("closed/new.md", "new");
    reports(&b, "closed/new.md", "right to write");
    let folder = b.folder_status();
    let pending = &folder["pending"];
    assert_eq!((&pending["download"], &pending["upload"]), (&1.into(), &0.into()), "{folder}");
    assert_eq!(folder["problems"][0]["effect"], "retried");
    mode(&b.at("closed"), 0o755);
    world.settle(&[&a, &b]);
}

#[test]
fn unreadable_root_waits_for_the_disk_and_goes_on() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"300ms\"");
    a.write("note.md", "one");
    a.as_another_user();
    a.start();
    a.wait();
    mode(&a.folder, 0o000);
    eventually("it waits for the disk", || a.folder_status()["waits_for"] == "disk");
    let status = a.status();
    assert_eq!((&status["state"], &status["folders"][0]["halt"]), (&"offline".into(), &Value::Null));
    let shown = a.cli_at_home(&["status"]);
    assert_eq!(shown.code, 5, "{shown:?}");
    assert!(shown.out.contains("Waits for the disk"), "{shown:?}");
    assert_eq!(a.cli_at_home(&["sync"]).code, 5);
    mode(&a.folder, 0o755);
    a.wait();
    assert_eq!(a.cli(&["status"]).code, 0);
}

#[test]
fn conflict_copy_gives_exit_8_everywhere() {
    let world = World::new();
    let (a, b) = (world.device_with("a", "conflict = \"copy\""), world.device_with("b", "conflict = \"copy\""));
    a.write("n/plan.md", "by a");
    b.write("n/plan.md", "by b");
    a.start();
    a.wait();
    b.start();
    b.wait();
    let copies = b.copies();
    assert_eq!(copies.len(), 1, "{copies:?}");
    all_say(&b, 8);
    let file = b.cli(&["status", "n/plan.md", "--json"]);
    assert_eq!((file.code, &file.json()["conflict_copies"][0]), (8, &copies[0].as_str().into()), "{file:?}");
    let text = b.cli(&["status", "n/plan.md"]).out;
    assert!(text.contains(&copies[0]) && text.contains("memsync conflicts") && !text.contains("in sync"), "{text}");
    b.stop();
    assert_eq!(b.cli(&["sync"]).code, 8);
    assert_eq!(b.cli(&["status"]).code, 8);
}

#[test]
fn wait_returns_at_once_when_only_a_person_can_help() {
    let world = World::new();
    let a = world.device("a");
    for n in 0..20 {
        a.write(&format!("{n}.md"), format!("note {n}"));
    }
    a.start();
    a.wait();
    a.stop();
    for n in 0..15 {
        a.remove(&format!("{n}.md"));
    }
    a.start();
    a.halted("mass_delete");
    all_say(&a, 7);
    a.ok(&["approve", "--reject"]);
    a.wait();
    crate::world::write_private(&a.home.join("token"), "another-token");
    a.signal(rustix::process::Signal::HUP);
    eventually("the token is refused", || a.status()["state"] == "auth_required");
    all_say(&a, 6);
}
