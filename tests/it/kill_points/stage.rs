//! The stage of a folder has one owner: the agent, or a command that changes the folder while no agent runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{died, quiet};
use crate::common::world::{Device, World, eventually};

/// Both devices have `note.md` with "second", and `b` has "first" in its history. The agent of `b` does not run.
fn two_versions(world: &World) -> (Device<'_>, Device<'_>) {
    let (a, b) = world.after_an_edit();
    b.stop();
    (a, b)
}

/// Starts `b`. Both versions still exist, the devices agree, and the stage is empty.
#[track_caller]
fn has_both(world: &World, a: &Device, b: &Device) {
    let tree = world.settle(&[b, a]);
    let versions: BTreeSet<Vec<u8>> = tree.into_values().chain(b.kept()).collect();
    assert!(versions.contains(&b"first"[..]) && versions.contains(&b"second"[..]), "both versions are there");
    quiet(world, &[a, b]);
}

/// The directory in which a process reports that it stopped at a point.
struct Stops(PathBuf);

impl Stops {
    fn new(world: &World) -> Self {
        let dir = world.path().join("stops");
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn spec(&self, points: &str) -> String {
        format!("{}:{points}", self.0.display())
    }

    #[track_caller]
    fn reached(&self, point: &str) -> PathBuf {
        let file = self.0.join(point);
        eventually(point, || file.exists());
        file
    }
}

#[track_caller]
fn go_on(stop: &Path) {
    fs::remove_file(stop).unwrap();
}

#[test]
fn killed_restore_loses_neither_version() {
    for point in ["moves.durable", "replace.exchanged", "replace.kept", "moves.placed"] {
        let world = World::new();
        let (a, b) = two_versions(&world);
        let ran = b.cli_with(&["restore", "note.md"], &[("MEMSYNC_KILL_AT", point)]);
        assert_eq!(ran.code, -1, "it dies at {point}: {ran:?}");
        b.start();
        has_both(&world, &a, &b);
    }
}

#[test]
fn restore_loses_neither_version_when_the_agent_dies() {
    for point in ["moves.marked", "moves.durable", "replace.exchanged", "replace.kept", "moves.placed"] {
        let world = World::new();
        let (a, b) = two_versions(&world);
        b.start_doomed(point);
        eventually("the agent is in sync", || b.cli(&["wait", "--timeout", "120s"]).code == 0);
        let ran = b.cli(&["restore", "note.md"]);
        died(b.died(), point);
        assert_eq!(ran.code, 1, "{point}: {ran:?}");
        assert!(ran.err.contains("may have been made or not"), "{point}: {ran:?}");
        b.start();
        has_both(&world, &a, &b);
    }
}

#[test]
fn restore_holds_the_folder_while_no_agent_runs() {
    for point in ["moves.durable", "replace.exchanged"] {
        let world = World::new();
        let (a, b) = two_versions(&world);
        let stops = Stops::new(&world);
        let spec = stops.spec(point);
        let restore = b.begin(&["restore", "note.md"], &[("MEMSYNC_STOP_AT", &spec)]);
        let stop = stops.reached(point);
        for refused in [b.cli(&["sync"]), b.cli_until_refused()] {
            assert_ne!(refused.code, 0, "{point}: {refused:?}");
            assert!(refused.err.contains("another memsync works on this folder"), "{point}: {refused:?}");
        }
        go_on(&stop);
        let ran = restore.ended();
        assert_eq!(ran.code, 0, "{point}: {ran:?}");
        assert_eq!(b.read("note.md"), b"first");
        assert!(b.kept().contains(&b"second".to_vec()), "{point}: the displaced content is in history");
        b.start();
        has_both(&world, &a, &b);
    }
}

#[test]
fn restore_waits_until_the_agent_has_swept() {
    let world = World::new();
    let (a, b) = two_versions(&world);
    a.write("new.md", "new");
    a.wait();
    b.start_doomed("create.before");
    died(b.died(), "create.before");
    assert!(!b.staged().is_empty(), "a download is left in the stage");
    let stops = Stops::new(&world);
    b.start_with(&[("MEMSYNC_STOP_AT", &stops.spec("sweep.settled"))]);
    let stop = stops.reached("sweep.settled");
    let restore = b.begin(&["restore", "note.md"], &[]);
    // The command is in flight to the agent, or waits there.
    assert_eq!(b.read("note.md"), b"second");
    go_on(&stop);
    let ran = restore.ended();
    assert_eq!(ran.code, 0, "{ran:?}");
    eventually("a follows", || a.has("note.md", "first"));
    has_both(&world, &a, &b);
}

#[test]
fn restore_says_what_it_did_when_the_disk_fails_half_way() {
    let world = World::new();
    let (a, b) = two_versions(&world);
    let stops = Stops::new(&world);
    let spec = stops.spec("replace.exchanged");
    let restore = b.begin(&["restore", "note.md"], &[("MEMSYNC_STOP_AT", &spec)]);
    let stop = stops.reached("replace.exchanged");
    // Make the history unwritable.
    fs::rename(b.at(".memsync/history"), b.at(".memsync/away")).unwrap();
    fs::write(b.at(".memsync/history"), "no folder").unwrap();
    go_on(&stop);
    let ran = restore.ended();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("note.md") && ran.err.contains("waits in .memsync/stage"), "{ran:?}");
    assert_eq!(b.read("note.md"), b"first");
    fs::remove_file(b.at(".memsync/history")).unwrap();
    fs::rename(b.at(".memsync/away"), b.at(".memsync/history")).unwrap();
    b.start();
    has_both(&world, &a, &b);
}
