//! Renames, permissions, full disks, clocks and odd names. No file is lost, other files are synced, and the status names
//! the files that cannot be.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::common::left_out::left_out;
use crate::common::world::{Device, World, eventually};

pub(crate) fn both_run<'w>(world: &'w World) -> (Device<'w>, Device<'w>) {
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    (a, b)
}

fn problems(device: &Device) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let problems = device.folder_status()["problems"].clone();
    problems.as_array().unwrap().iter().map(|p| (text(&p["path"]), text(&p["problem"]))).collect()
}

/// Waits until the status of the device gives `why` as the problem of a path.
#[track_caller]
pub(crate) fn reports(device: &Device, path: &str, why: &str) {
    let mut seen = Vec::new();
    let until = std::time::Instant::now() + crate::common::world::DEADLINE;
    while !seen.iter().any(|(p, problem): &(String, String)| p == path && problem.contains(why)) {
        assert!(std::time::Instant::now() < until, "{}: {path}: {why}: {seen:?}", device.name);
        seen = problems(device);
    }
}

#[test]
fn case_change_of_a_name_propagates() {
    let world = World::new();
    let (a, b) = both_run(&world);
    a.write("Note.md", "text");
    a.write("Topics/Deep.md", "deep");
    world.settle(&[&a, &b]);
    fs::rename(a.at("Note.md"), a.at("note.md")).unwrap();
    fs::rename(a.at("Topics"), a.at("topics")).unwrap();
    eventually("b has the new names", || b.has("note.md", "text") && b.has("topics/Deep.md", "deep"));
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["note.md", "topics/Deep.md"]);
    assert!(!b.at("Topics").exists());
}

#[test]
fn large_folder_rename_keeps_a_concurrent_edit() {
    let world = World::new();
    let (a, b) = both_run(&world);
    for n in 0..500 {
        a.write(&format!("topics/{n}.md"), format!("note {n}"));
    }
    a.write("other.md", "other");
    world.settle(&[&a, &b]);
    a.rename("topics", "themes");
    b.write("topics/7.md", "edited on b");
    eventually("the new names are on b", || (0..500).all(|n| b.at(&format!("themes/{n}.md")).exists()));
    let tree = world.settle(&[&a, &b]);
    // The edit beats the deletion. The renamed folder has the old text.
    assert_eq!(tree["topics/7.md"], b"edited on b");
    assert_eq!(tree["themes/7.md"], b"note 7");
    assert_eq!(tree.len(), 502, "500 under the new name, the edit and the other file");
}

#[test]
fn folder_rename_propagates_to_an_offline_device() {
    let world = World::new();
    let (a, b) = both_run(&world);
    for n in 0..40 {
        a.write(&format!("topics/{n}.md"), format!("note {n}"));
    }
    world.settle(&[&a, &b]);
    b.stop();
    a.rename("topics", "themes");
    a.wait();
    b.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 40);
    assert!(tree.keys().all(|path| path.starts_with("themes/")));
}

#[test]
fn file_and_folder_swap_kinds() {
    let world = World::new();
    let (a, b) = both_run(&world);
    a.write("x", "a file");
    a.write("y/in.md", "in a folder");
    world.settle(&[&a, &b]);
    a.remove("x");
    a.write("x/in.md", "x is a folder");
    fs::remove_dir_all(b.at("y")).unwrap();
    b.write("y", "y is a file");
    let done = |d: &Device| d.has("x/in.md", "x is a folder") && d.has("y", "y is a file");
    eventually("both have both", || done(&a) && done(&b));
    assert_eq!(world.settle(&[&a, &b]).len(), 2);
}

#[test]
fn file_replaced_by_a_folder_keeps_a_remote_edit() {
    let world = World::new();
    let (a, b) = both_run(&world);
    a.write("plan", "a file");
    world.settle(&[&a, &b]);
    a.stop();
    b.stop();
    a.remove("plan");
    a.write("plan/one.md", "in it");
    b.write("plan", "edited on b");
    b.start();
    b.wait();
    a.start();
    // A name has either a file or a folder. Each device keeps its own, and a person decides.
    reports(&a, "plan", "claim one name");
    eventually("both names wait for a person", || a.folder_status()["pending"]["blocked"] == 2);
    assert_eq!(a.cli(&["status"]).code, 4);
    assert!(a.has("plan/one.md", "in it") && b.has("plan", "edited on b"));
    assert_eq!(world.blob("plan").unwrap(), b"edited on b");
    a.rename("plan", "plans");
    eventually("all is everywhere", || a.has("plan", "edited on b") && b.has("plans/one.md", "in it"));
    assert_eq!(world.settle(&[&a, &b]).len(), 2);
}

#[test]
fn folder_replaced_by_a_symlink_is_neither_deleted_nor_followed() {
    let world = World::new();
    let (a, b) = both_run(&world);
    for n in 0..3 {
        a.write(&format!("topics/{n}.md"), format!("note {n}"));
    }
    a.write("other.md", "other");
    world.settle(&[&a, &b]);
    let elsewhere = world.path().join("elsewhere");
    fs::rename(a.at("topics"), &elsewhere).unwrap();
    symlink(&elsewhere, a.at("topics")).unwrap();
    reports(&a, "topics", "symlink");
    b.write("topics/1.md", "edited on b");
    b.write("topics/new.md", "new on b");
    b.wait();
    a.wait();
    for n in 0..3 {
        assert_eq!(fs::read(elsewhere.join(format!("{n}.md"))).unwrap(), format!("note {n}").into_bytes());
    }
    assert!(!elsewhere.join("new.md").exists());
    assert_eq!(b.tree().len(), 5, "nothing was deleted on b");
    // Once it is back, the folder is synced again.
    fs::remove_file(a.at("topics")).unwrap();
    fs::rename(&elsewhere, a.at("topics")).unwrap();
    let tree = world.settle(&[&a, &b]);
    assert_eq!((tree["topics/1.md"].as_slice(), tree.len()), (&b"edited on b"[..], 5));
}

#[test]
fn read_only_file_is_replaced_and_stays_read_only() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    b.as_another_user();
    a.start();
    b.start();
    a.write("note.md", "one");
    a.write("gone.md", "to go");
    world.settle(&[&a, &b]);
    for name in ["note.md", "gone.md"] {
        fs::set_permissions(b.at(name), PermissionsExt::from_mode(0o444)).unwrap();
    }
    a.write("note.md", "two");
    a.remove("gone.md");
    eventually("b has it", || b.has("note.md", "two") && !b.at("gone.md").exists());
    world.settle(&[&a, &b]);
    assert_eq!(fs::metadata(b.at("note.md")).unwrap().mode() & 0o777, 0o444);
}

#[test]
fn read_only_folder_is_reported_and_delays_no_other() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    b.as_another_user();
    a.start();
    b.start();
    a.write("closed/note.md", "one");
    a.write("closed/gone.md", "to go");
    world.settle(&[&a, &b]);
    fs::set_permissions(b.at("closed"), PermissionsExt::from_mode(0o555)).unwrap();
    a.write("closed/note.md", "two");
    a.write("closed/new.md", "new");
    a.remove("closed/gone.md");
    a.write("other.md", "other");
    eventually("other files are synced", || b.has("other.md", "other"));
    for name in ["note.md", "new.md", "gone.md"] {
        reports(&b, &format!("closed/{name}"), "right to write");
    }
    assert!(b.has("closed/note.md", "one") && b.has("closed/gone.md", "to go") && !b.at("closed/new.md").exists());
    assert_eq!(world.blob("closed/note.md").unwrap(), b"two", "the proxy keeps the new text");
    assert!(world.blob("closed/gone.md").is_none());
    fs::set_permissions(b.at("closed"), PermissionsExt::from_mode(0o755)).unwrap();
    let tree = world.settle(&[&a, &b]);
    assert_eq!((tree.len(), tree["closed/note.md"].as_slice()), (3, &b"two"[..]));
    assert!(b.copies().is_empty() && b.staged().is_empty());
}

/// A small filesystem mounted at a path until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`: this user must not mount.
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "memsync-test"]).arg(&at);
        mount.output().is_ok_and(|out| out.status.success()).then_some(Self(at))
    }

    fn resize(&self, size: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }

    /// Fills the filesystem.
    fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).unwrap();
        let mut block = vec![b'x'; 64 * 1024];
        while !block.is_empty() {
            match filler.write(&block) {
                Ok(n) if n > 0 => {}
                _ => block.truncate(block.len() / 2),
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The unmount completes when the last process closes its files.
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[test]
fn full_disk_is_reported_and_loses_nothing() {
    let world = World::new();
    let Some(disk) = SmallDisk::mount(world.path().join("b"), "16m") else {
        return left_out("this user cannot mount a small disk");
    };
    let (a, b) = both_run(&world);
    a.write("note.md", "one");
    a.write("mine.md", "base");
    world.settle(&[&a, &b]);
    a.write("huge.bin", vec![7; 20 << 20]);
    reports(&b, "huge.bin", "room");
    // A file that fits is synced.
    a.write("note.md", "two");
    eventually("b has the small file", || b.has("note.md", "two"));
    disk.fill();
    // The edit has the same length, so the file keeps its block.
    OpenOptions::new().write(true).open(b.at("mine.md")).unwrap().write_all(b"edit").unwrap();
    a.write("note.md", "three");
    a.write("new.md", "new".repeat(10_000));
    a.wait();
    eventually("b says what to do", || {
        b.cli(&["status"]).err.contains("room") || b.status().to_string().contains("room")
    });
    assert!(b.has("note.md", "two") || b.has("note.md", "three"), "one of the two texts, whole");
    assert!(b.has("mine.md", "edit"));
    fs::remove_file(disk.0.join("filler")).unwrap();
    disk.resize("64m");
    eventually("all arrives", || a.has("mine.md", "edit") && b.has("note.md", "three") && b.at("huge.bin").exists());
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["huge.bin", "mine.md", "new.md", "note.md"]);
    assert!(b.staged().is_empty() && tree["huge.bin"].len() == 20 << 20);
    b.stop();
}

fn set_mtime(path: &Path, to: SystemTime) {
    OpenOptions::new().append(true).open(path).unwrap().set_modified(to).unwrap();
}

#[test]
fn edit_is_noticed_with_any_mtime() {
    let world = World::new();
    let (a, b) = both_run(&world);
    let hour = Duration::from_secs(3600);
    a.write("note.md", "one");
    a.write("kept.md", "aaa");
    // The clock was set back by an hour before the edit.
    set_mtime(&a.at("note.md"), SystemTime::now() + hour);
    world.settle(&[&a, &b]);
    a.write("note.md", "two");
    eventually("an edit whose time is before the last one's", || b.has("note.md", "two"));
    // A tool keeps length and mtime.
    let before = fs::metadata(a.at("kept.md")).unwrap().modified().unwrap();
    a.write("kept.md", "bbb");
    set_mtime(&a.at("kept.md"), before);
    eventually("an edit that hides its time", || b.has("kept.md", "bbb"));
    world.settle(&[&a, &b]);
    // The same while no agent runs.
    a.stop();
    a.write("kept.md", "ccc");
    set_mtime(&a.at("kept.md"), before);
    a.write("note.md", "six");
    set_mtime(&a.at("note.md"), SystemTime::UNIX_EPOCH);
    a.start();
    eventually("both arrive", || b.has("kept.md", "ccc") && b.has("note.md", "six"));
    assert_eq!(world.settle(&[&a, &b]).len(), 2);
    assert!(a.copies().is_empty());
}

#[test]
fn hundred_agents_append_lines_at_once() {
    const AGENTS: usize = 100;
    const LINES: usize = 20;
    let world = World::new();
    let (a, b) = both_run(&world);
    let append = |at: PathBuf, agent: usize, line: usize| {
        let text = format!("{{\"agent\": {agent}, \"line\": {line}, \"text\": \"{}\"}}\n", "memory ".repeat(agent % 7));
        OpenOptions::new().create(true).append(true).open(at).unwrap().write_all(text.as_bytes()).unwrap();
    };
    fs::create_dir_all(a.at("agents")).unwrap();
    std::thread::scope(|s| {
        for agent in 0..AGENTS {
            let (shared, own) = (a.at("shared.jsonl"), a.at(&format!("agents/{agent}.jsonl")));
            let append = &append;
            s.spawn(move || {
                for line in 0..LINES {
                    append(shared.clone(), agent, line);
                    append(own.clone(), agent, line);
                }
            });
        }
    });
    let tree = world.settle(&[&a, &b]);
    let lines = |content: &[u8]| -> Vec<(u64, u64)> {
        let text = std::str::from_utf8(content).unwrap();
        let number = |value: &Value, key: &str| value[key].as_u64().unwrap();
        let parsed = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        parsed.map(|v| (number(&v, "agent"), number(&v, "line"))).collect()
    };
    assert_eq!(lines(&tree["shared.jsonl"]).into_iter().collect::<BTreeSet<_>>().len(), AGENTS * LINES);
    for agent in 0..AGENTS {
        assert_eq!(lines(&tree[&format!("agents/{agent}.jsonl")]).len(), LINES, "agent {agent}");
    }
    assert_eq!(tree.len(), AGENTS + 1, "and no conflict");
    // The contents that the other device replaced had whole lines too.
    for old in b.kept() {
        lines(&old);
    }
}

#[test]
fn binary_names_are_reported_and_delay_no_other() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let names: [&[u8]; 5] = [b"two\nlines.md", b"bell\x07.md", b"tab\there.md", b"caf\xe9.md", b"bad\xff/note.md"];
    for name in names {
        let at = a.folder.join(OsStr::from_bytes(name));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, "stays here").unwrap();
    }
    a.write("plain.md", "goes");
    a.start();
    b.start();
    eventually("b has the other", || b.has("plain.md", "goes"));
    a.wait();
    let problems = problems(&a);
    assert_eq!(problems.len(), names.len(), "{problems:?}");
    assert!(problems.iter().all(|(path, why)| why.contains("rename it") && !path.contains(char::is_control)));
    let shown = a.cli(&["status"]);
    assert!(!shown.out.contains('\x07') && !shown.err.contains('\x07'), "control characters do not reach the terminal");
    assert_eq!(b.tree().len(), 1);
    // A name that is made while the agent runs is reported until it is renamed.
    fs::write(a.folder.join(OsStr::from_bytes(b"late\xfe.md")), "late").unwrap();
    eventually("it is reported", || self::problems(&a).len() == names.len() + 1);
    fs::rename(a.folder.join(OsStr::from_bytes(b"late\xfe.md")), a.at("late.md")).unwrap();
    eventually("b has it", || b.has("late.md", "late"));
    eventually("it is reported no more", || self::problems(&a).len() == names.len());
}

#[test]
fn longest_names_arrive_and_get_conflict_copies() {
    let world = World::new();
    let (a, b) = (world.device_with("a", "conflict = \"copy\""), world.device_with("b", "conflict = \"copy\""));
    let dir = "d".repeat(255);
    let deep = format!("{dir}/{}/{}.md", "e".repeat(255), "f".repeat(252));
    let names = ["n".repeat(255), format!("{}.md", "m".repeat(252)), format!("x.{}", "y".repeat(253)), deep];
    let wide = "\u{1f980}".repeat(63);
    let names: Vec<&str> = names.iter().map(String::as_str).chain([wide.as_str()]).collect();
    for name in &names {
        a.write(name, "base");
    }
    let too_long = format!("{dir}/{dir}/{dir}/{dir}/x.md");
    a.write(&too_long, "stays here");
    a.start();
    b.start();
    eventually("b has them", || names.iter().all(|name| b.has(name, "base")));
    a.wait();
    let problems = problems(&a);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].1.contains("longer than 1024 bytes"), "{problems:?}");
    a.stop();
    b.stop();
    for name in &names {
        a.write(name, format!("a {name}"));
        b.write(name, format!("b {name}"));
    }
    a.start();
    a.wait();
    b.start();
    b.wait();
    eventually("each has its copy", || b.copies().len() == names.len());
    let tree = b.tree();
    for name in &names {
        assert_eq!(tree[*name], format!("a {name}").into_bytes());
        assert!(tree.values().any(|content| *content == format!("b {name}").into_bytes()), "{name}");
    }
}

#[test]
fn only_an_empty_folder_makes_room_for_a_file() {
    let world = World::new();
    let (a, b) = both_run(&world);
    fs::create_dir_all(b.at("empty/and/deeper")).unwrap();
    // The folder has a file that is not synced.
    b.write("full/scratch.md~", "of b alone");
    symlink("/nowhere", b.at("full/link")).unwrap();
    a.write("empty", "a file");
    a.write("full", "a file, too");
    a.write("other.md", "other");
    eventually("the file has its place", || b.has("empty", "a file") && b.has("other.md", "other"));
    reports(&b, "full", "claim one name");
    assert!(b.has("full/scratch.md~", "of b alone") && fs::symlink_metadata(b.at("full/link")).is_ok());
    assert_eq!(world.blob("full").unwrap(), b"a file, too");
    b.rename("full", "kept");
    eventually("now there is room", || b.has("full", "a file, too"));
    b.wait();
    assert!(b.folder_status()["problems"].to_string().contains("kept/link"), "the link is reported");
}
