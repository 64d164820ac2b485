//! The size limit of history, and versions that cannot be removed from it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::common::world::{World, eventually};

/// The bytes that a folder takes on the disk.
fn allocated(at: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(at) else { return 0 };
    let names = fs::read_dir(at).into_iter().flatten().flatten();
    meta.blocks() * 512 + names.map(|entry| allocated(&entry.path())).sum::<u64>()
}

#[test]
fn history_keeps_to_its_size_on_the_disk() {
    const LIMIT: u64 = 96 * 1024;
    let world = World::new();
    let (a, b) = (world.device("a"), world.device_with("b", "[history]\nmax_size = \"96KiB\""));
    a.start();
    b.start();
    for n in 0..30 {
        let text = format!("{n:04}").repeat(1200);
        a.write("deep/down/note.md", &text);
        eventually("the version arrives", || b.has("deep/down/note.md", &text));
    }
    let history = b.at(".memsync/history");
    eventually("history keeps to its size", || allocated(&history) <= LIMIT);
    assert!(b.kept().len() >= 5, "only as many as needed are removed: {}", b.kept().len());
}

#[test]
fn locked_version_is_named_in_status_and_log() {
    let world = World::new();
    let device = world.device_with("a", "[history]\nmax_size = \"1KiB\"");
    let version = |dir: &str| format!(".memsync/history/{dir}/a.md.20260106T110000.000Z-replaced");
    for dir in ["free", "locked"] {
        device.write(&version(dir), "old");
    }
    let locked = device.at(".memsync/history/locked");
    fs::set_permissions(&locked, PermissionsExt::from_mode(0o555)).unwrap();
    device.as_another_user();
    device.start();
    eventually("the free version is removed", || !device.at(&version("free")).exists());
    eventually("status names the other", || {
        let problems = device.folder_status()["problems"].clone();
        problems.as_array().unwrap().iter().any(|p| p["path"] == version("locked"))
    });
    eventually("the log names it too", || device.log().contains(&version("locked")));
    fs::set_permissions(&locked, PermissionsExt::from_mode(0o755)).unwrap();
}
