//! Status and exit codes: blocked work, conflicts, the disk, and the figures of the last run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::common::world::{Device, World, eventually};
use crate::stories::filesystem::{both_run, reports};

/// Checks that `status`, `sync` and `wait` exit with the same code. `wait` has no timeout: it must not wait for a person.
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
    // The same without an agent.
    b.stop();
    assert_eq!(b.cli(&["sync"]).code, 4);
    assert_eq!(b.cli(&["status"]).code, 4);
}

#[test]
fn names_that_fold_into_one_are_pending() {
    let world = World::new();
    let a = world.device("a");
    a.write("re\u{301}sume\u{301}.md", "decomposed");
    a.write("r\u{e9}sum\u{e9}.md", "composed");
    if a.tree().len() < 2 {
        return crate::common::left_out::left_out("this filesystem takes both names for one");
    }
    a.start();
    reports(&a, "re\\u{301}sume\\u{301}.md", "Unicode form");
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
fn unreadable_root_waits_for_the_disk() {
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
fn wait_returns_at_once_when_a_person_is_needed() {
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
    crate::common::world::write_private(&a.home.join("token"), "another-token");
    a.signal(rustix::process::Signal::HUP);
    eventually("the token is refused", || a.status()["state"] == "auth_required");
    all_say(&a, 6);
}

/// A device with two synced files. Its agent is stopped.
fn two_synced(world: &World) -> Device<'_> {
    let a = world.device_with("a", "interval = \"300ms\"");
    a.write("one.md", "one");
    a.write("two.md", "two");
    a.start();
    a.wait();
    a.stop();
    a
}

#[test]
fn figures_stay_after_a_start_without_the_proxy() {
    let world = World::new();
    let a = two_synced(&world);
    world.stop_proxy();
    a.write("three.md", "three");
    a.start();
    eventually("it is offline", || a.status()["state"] == "offline");
    let folder = a.folder_status();
    assert_eq!((&folder["files"], &folder["pending"]["upload"]), (&3.into(), &1.into()), "{folder}");
    assert!(folder["last_success"].is_string() && folder["counted_at"].is_string(), "{folder}");
    let shown = a.cli(&["status"]);
    assert_eq!(shown.code, 5, "{shown:?}");
    assert!(shown.out.contains("does not answer") && shown.out.contains("synced"), "{shown:?}");
    assert!(!shown.out.contains("never"), "{shown:?}");
}

#[test]
fn status_says_never_synced_after_a_failed_first_sync() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"300ms\"");
    world.stop_proxy();
    a.write("note.md", "note");
    a.start();
    eventually("it is offline", || a.status()["state"] == "offline");
    let text = a.cli(&["status"]).out;
    assert!(text.contains("1 file,") && text.contains("never synced yet"), "{text}");
}

#[test]
fn figures_come_from_the_container_without_a_status_file() {
    let world = World::new();
    let a = two_synced(&world);
    for entry in fs::read_dir(a.home.join("state")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with(".status.json") {
            fs::remove_file(path).unwrap();
        }
    }
    let folder = a.folder_status();
    assert_eq!(folder["files"], 2, "{folder}");
    assert!(folder["last_success"].is_string(), "{folder}");
    let text = a.cli(&["status"]).out;
    assert!(!text.contains("never"), "{text}");
}

#[test]
fn figures_stay_after_a_start_without_the_folder() {
    let world = World::new();
    let a = two_synced(&world);
    let away = a.home.join("away");
    fs::rename(&a.folder, &away).unwrap();
    a.start();
    a.halted("root_missing");
    let folder = a.folder_status();
    assert_eq!((&folder["files"], &folder["bytes"]), (&2.into(), &6.into()), "{folder}");
    assert!(folder["last_success"].is_string(), "{folder}");
    let text = a.cli(&["status"]).out;
    assert!(text.contains("not asked yet") && !text.contains("never"), "{text}");
    a.stop();
    let status = a.status();
    assert_eq!(status["folders"][0]["halt"]["kind"], "root_missing", "{status}");
    // The folder is back. The command finds that out by itself.
    fs::rename(&away, &a.folder).unwrap();
    let status = a.cli(&["status", "--json"]);
    assert_eq!((status.code, &status.json()["folders"][0]["halt"]), (3, &Value::Null), "{status:?}");
}

#[test]
fn resolved_hold_ends_without_an_agent() {
    for by_sync in [false, true] {
        let world = World::new();
        let a = world.device("a");
        let twenty = |a: &Device| (0..20).for_each(|n| a.write(&format!("{n}.md"), format!("note {n}")));
        twenty(&a);
        a.start();
        a.wait();
        a.stop();
        (0..15).for_each(|n| a.remove(&format!("{n}.md")));
        assert_eq!(a.cli(&["sync"]).code, 7);
        let held = a.cli(&["status", "--json"]);
        assert_eq!((held.code, &held.json()["folders"][0]["halt"]["kind"]), (7, &"mass_delete".into()), "{held:?}");
        twenty(&a);
        if by_sync {
            a.ok(&["sync"]);
        }
        let status = a.cli(&["status", "--json"]);
        assert_eq!((status.code, &status.json()["folders"][0]["halt"]), (3, &Value::Null), "{status:?}");
    }
}

#[test]
fn paused_folder_has_no_next_sync() {
    let world = World::new();
    let a = two_synced(&world);
    a.start();
    a.wait();
    a.ok(&["pause", "--for", "1h"]);
    eventually("it is paused", || a.status()["state"] == "paused" && a.folder_status()["next_sync_s"].is_null());
    let text = a.cli(&["status"]).out;
    assert!(!text.contains("looks again"), "{text}");
}

#[test]
fn doctor_and_status_count_the_same_with_a_read_only_key() {
    let world = World::new();
    let a = two_synced(&world);
    a.start();
    a.write("gone.md", "gone");
    a.wait();
    let b = world.device_with("b", "interval = \"300ms\"");
    let store = world.store();
    let key = b.ok(&["key", "create", "--name", "reader", "--read-only", "--store", store.to_str().unwrap()]);
    crate::common::world::write_private(&b.home.join("token"), &key.out);
    b.start();
    eventually("it has all files", || b.tree().len() == 3);
    a.remove("gone.md");
    eventually("it has taken over the deletion", || b.tree().len() == 2);
    b.write("own.md", "stays here");
    let is_refused = |b: &Device| b.status()["folders"][0]["problems"].to_string().contains("(403)");
    eventually("the upload is refused", || is_refused(&b));
    a.remove("one.md");
    eventually("it goes on taking over deletions", || b.tree().len() == 2 && !b.tree().contains_key("one.md"));
    a.write("more.md", "more");
    eventually("it has the new file", || b.tree().len() == 3);
    let same = |b: &Device| b.folder_status()["files"] == 3 && b.cli(&["doctor"]).out.contains("(3 files)");
    eventually("both count the new file", || same(&b));
    b.stop();
    assert!(same(&b), "{}\n{}", b.status(), b.cli(&["doctor"]).out);
}
