//! A pause holds over restarts.

use crate::common::world::{Device, World, eventually};

#[track_caller]
fn still_paused(device: &Device) {
    eventually("the agent is paused again", || device.status()["state"] == "paused");
}

#[test]
fn pause_holds_over_restarts_until_resume() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"200ms\"");
    a.start();
    a.wait();
    a.ok(&["pause"]);
    a.write("note.md", "not to go yet");
    a.stop();
    a.start();
    still_paused(&a);
    a.kill();
    a.start();
    still_paused(&a);
    // A sync scans everything and sends nothing.
    a.cli(&["sync"]);
    assert!(world.blob("note.md").is_none());
    a.ok(&["resume"]);
    a.wait();
    assert_eq!(world.blob("note.md").unwrap(), b"not to go yet");
    a.stop();
    a.start();
    a.write("note.md", "goes at once");
    a.wait();
    assert_eq!(world.blob("note.md").unwrap(), b"goes at once");
}

#[test]
fn pause_with_an_end_keeps_its_end_over_a_restart() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"200ms\"");
    a.start();
    a.wait();
    a.ok(&["pause", "--for", "1h"]);
    a.stop();
    a.start();
    still_paused(&a);
    let reason = a.folder_status()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("paused until 2"), "the end is shown: {reason}");
    a.ok(&["pause", "--for", "1s"]);
    a.stop();
    a.write("note.md", "sent when the pause is over");
    a.start();
    eventually("sync goes on by itself", || world.blob("note.md").is_some());
}
