//! The agent's log: one warning when a condition begins, one line when it is over, and one line a file.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::world::{Device, World, eventually};
use crate::stories::filesystem::{both_run, reports};

/// The lines of a level that contain this text.
fn lines(device: &Device, level: &str, text: &str) -> Vec<String> {
    let level = format!(" {level} ");
    device.log().lines().filter(|line| line.contains(&level) && line.contains(text)).map(str::to_owned).collect()
}

#[track_caller]
fn logs(device: &Device, level: &str, text: &str) {
    eventually(&format!("{} logs {level} {text}", device.name), || !lines(device, level, text).is_empty());
}

#[test]
fn lost_proxy_is_logged_once_and_when_it_returns() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"300ms\"");
    a.start();
    a.wait();
    world.stop_proxy();
    eventually("several requests have failed", || lines(&a, "DEBUG", "the cycle ended early").len() > 3);
    let warned = lines(&a, "WARN", "changes are kept here");
    assert_eq!(warned.len(), 1, "{}", a.log());
    assert!(warned[0].contains("`memsync doctor`"), "{warned:?}");
    assert_eq!(lines(&a, "INFO", "the proxy answers again").len(), 0);
    world.start_proxy();
    logs(&a, "INFO", "the proxy answers again");
}

#[test]
fn each_file_has_a_line_with_its_machine() {
    let world = World::new();
    let (a, b) = both_run(&world);
    a.write("note.md", "one");
    logs(&a, "INFO", "uploaded note.md");
    logs(&b, "INFO", "downloaded note.md from a");
    // Many files at once are sent in a batch.
    for n in 0..20 {
        a.write(&format!("many/{n}.md"), format!("{n}"));
    }
    for n in 0..20 {
        logs(&b, "INFO", &format!("downloaded many/{n}.md from a"));
    }
    b.wait();
    b.remove("note.md");
    logs(&b, "INFO", "deleted note.md on the proxy");
    logs(&a, "INFO", "moved note.md to history");
    fs::rename(a.at("many"), a.at("moved")).unwrap();
    world.settle(&[&a, &b]);
    for device in [&a, &b] {
        assert_eq!(lines(device, "WARN", ""), Vec::<String>::new());
        assert!(!device.log().contains("WatchNotFound"), "{}", device.log());
    }
}

#[test]
fn file_left_out_is_logged_with_the_command() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"300ms\"");
    a.start();
    symlink("elsewhere", a.at("link")).unwrap();
    reports(&a, "link", "symlink");
    a.ok(&["sync"]);
    let warned = lines(&a, "WARN", "link: is a symlink");
    assert_eq!(warned.len(), 1, "{}", a.log());
    assert!(warned[0].contains("`memsync status link`"), "{warned:?}");
    a.remove("link");
    logs(&a, "INFO", "link: no longer a problem");
}

#[test]
fn held_plan_and_conflict_are_logged_with_the_command() {
    let world = World::new();
    let (a, b) = (world.device_with("a", "conflict = \"copy\""), world.device_with("b", "conflict = \"copy\""));
    for n in 0..20 {
        a.write(&format!("{n}.md"), format!("note {n}"));
    }
    b.write("3.md", "of b");
    a.start();
    a.wait();
    b.start();
    b.wait();
    assert_eq!(lines(&b, "WARN", "conflict: 3.conflict-b-").len(), 1, "{}", b.log());
    logs(&a, "WARN", "`memsync conflicts`");
    for copy in b.copies() {
        b.remove(&copy);
    }
    logs(&b, "INFO", "all conflicts are settled");
    a.stop();
    for n in 0..15 {
        a.remove(&format!("{n}.md"));
    }
    a.start();
    a.halted("mass_delete");
    logs(&a, "WARN", "held: ");
    assert_eq!(lines(&a, "WARN", "held: ").len(), 1, "{}", a.log());
    assert!(lines(&a, "WARN", "held: ")[0].contains("`memsync approve "), "{}", a.log());
    a.ok(&["approve", "--reject"]);
    logs(&a, "INFO", "no longer held");
}
