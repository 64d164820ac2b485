//! Mount points inside the folder: they are left out, and nothing is deleted when they come or go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::left_out::left_out;
use crate::common::world::{Device, World, eventually};

/// A mount at a path until it is dropped.
struct Mount(PathBuf);

impl Mount {
    /// `None`: this user must not mount.
    fn new(args: &[&str], at: &Path) -> Option<Self> {
        let done = Command::new("mount").args(args).arg(at).output();
        done.is_ok_and(|out| out.status.success()).then(|| Self(at.to_owned()))
    }

    fn bind(from: &Path, at: &Path) -> Option<Self> {
        Self::new(&["--bind", &from.display().to_string()], at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[track_caller]
fn reports(device: &Device, path: &str) {
    eventually(&format!("{path} is named"), || {
        device.cli(&["sync"]);
        let problems = device.folder_status()["problems"].as_array().unwrap().clone();
        problems.iter().any(|p| p["path"] == path && p["problem"].as_str().unwrap().contains("mount point"))
    });
}

#[test]
fn mounts_of_every_kind_are_left_out_and_named() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let source = world.path().join("source");
    fs::create_dir_all(source.join("below")).unwrap();
    fs::write(source.join("below/1.md"), "of the mount").unwrap();
    fs::write(source.join("single.md"), "of the mount").unwrap();
    fs::create_dir_all(a.at("deep/bound")).unwrap();
    fs::create_dir_all(a.at("tmpfs")).unwrap();
    a.write("single.md", "of the folder");
    a.write("note.md", "note");
    let Some(bound) = Mount::bind(&source, &a.at("deep/bound")) else {
        return left_out("this user cannot mount");
    };
    let single = Mount::bind(&source.join("single.md"), &a.at("single.md")).unwrap();
    let tmpfs = Mount::new(&["-t", "tmpfs", "memsync-test"], &a.at("tmpfs")).unwrap();
    a.write("tmpfs/2.md", "of the mount");
    a.start();
    b.start();
    for path in ["deep/bound", "single.md", "tmpfs"] {
        reports(&a, path);
    }
    a.wait();
    b.wait();
    assert_eq!(b.tree().into_keys().collect::<Vec<_>>(), ["note.md"]);
    drop((bound, single, tmpfs));
    a.cli(&["sync"]);
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.into_keys().collect::<Vec<_>>(), ["note.md", "single.md"], "no mount was synced");
    assert!(b.has("single.md", "of the folder"));
}

#[test]
fn synced_files_below_a_new_mount_are_kept_everywhere() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for name in ["team/1.md", "team/2.md", "team/deep/3.md", "one.md", "note.md"] {
        a.write(name, name);
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    let other = world.path().join("other");
    fs::create_dir_all(other.join("deep")).unwrap();
    fs::write(other.join("1.md"), "another file").unwrap();
    fs::write(other.join("file"), "another file").unwrap();
    let Some(team) = Mount::bind(&other, &a.at("team")) else {
        return left_out("this user cannot mount");
    };
    let one = Mount::bind(&other.join("file"), &a.at("one.md")).unwrap();
    reports(&a, "team");
    reports(&a, "one.md");
    // Remote edits do not go into a mount.
    b.write("team/1.md", "edited on b");
    b.write("team/deep/3.md", "edited on b");
    b.write("one.md", "edited on b");
    b.wait();
    a.cli(&["sync"]);
    assert_eq!(fs::read(other.join("1.md")).unwrap(), b"another file");
    assert_eq!(fs::read(other.join("file")).unwrap(), b"another file");
    assert!(!other.join("deep/3.md").exists());
    assert!(b.has("team/2.md", "team/2.md"), "a mount that comes deletes nothing");
    // The mount and a file below it go while no agent runs.
    a.stop();
    drop((team, one));
    a.remove("team/2.md");
    a.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 5, "a mount that goes deletes nothing");
    assert!(a.has("team/1.md", "edited on b") && a.has("one.md", "edited on b") && a.has("team/2.md", "team/2.md"));
    assert!(a.copies().is_empty() && a.staged().is_empty());
}
