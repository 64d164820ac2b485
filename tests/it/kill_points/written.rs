//! `memsync put` is killed at each step. The old text is never lost, and the next start puts everything in order.

use std::fs;

use super::{died, quiet};
use crate::common::world::{Device, World, eventually};

/// Both devices have `note.md` with "first". The agent of `b` does not run.
fn one_note(world: &World) -> (Device<'_>, Device<'_>) {
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("note.md", "first");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    b.stop();
    (a, b)
}

/// A command that replaces a file dies, then the agent that makes this change for a command.
pub(super) fn a_put(point: &str) {
    let world = World::new();
    let (a, b) = one_note(&world);
    let ran = b.begin_with_input(&["put", "note.md"], "second", &[("MEMSYNC_KILL_AT", point)]).ended();
    assert_eq!(ran.code, -1, "it dies at {point}: {ran:?}");
    b.start();
    let is_placed = world.settle(&[&b, &a])["note.md"] == b"second";
    assert!(is_placed || b.has("note.md", "first"), "{point}");
    assert_eq!(b.kept().contains(&b"first".to_vec()), is_placed, "{point}: the old text is in the file or in history");
    quiet(&world, &[&a, &b]);
    assert_eq!(b.begin_with_input(&["put", "note.md"], "third", &[]).ended().code, 0);
    assert_eq!(
        fs::read_dir(b.at(".memsync/fetched")).unwrap().count(),
        0,
        "the new text of the killed command is gone"
    );
    b.stop();
    if point != "fetched.written" {
        b.start_doomed(point);
        eventually("the agent is in sync", || b.cli(&["wait", "--timeout", "120s"]).code == 0);
        let ran = b.begin_with_input(&["put", "note.md"], "fourth", &[]).ended();
        died(b.died(), point);
        assert_eq!(ran.code, 1, "{point}: {ran:?}");
        b.start();
        let tree = world.settle(&[&b, &a]);
        assert!(tree["note.md"] == b"third" || b.kept().contains(&b"third".to_vec()), "{point}: the old text is there");
    }
}

/// An editor saves the file just before the command replaces it. The command dies while it puts the edit back.
pub(super) fn a_lost_race(point: &str) {
    let world = World::new();
    let (a, b) = one_note(&world);
    let stops = world.path().join("stops");
    fs::create_dir(&stops).unwrap();
    let spec = format!("{}:swap.before", stops.display());
    let env = [("MEMSYNC_STOP_AT", spec.as_str()), ("MEMSYNC_KILL_AT", point)];
    let put = b.begin_with_input(&["put", "note.md"], "second", &env);
    let stop = stops.join("swap.before");
    eventually("the command stops", || stop.exists());
    b.write("note.md", "edited");
    fs::remove_file(&stop).unwrap();
    let ran = put.ended();
    assert_eq!(ran.code, -1, "it dies at {point}: {ran:?}");
    b.start();
    let tree = world.settle(&[&b, &a]);
    assert!(tree.values().any(|text| text == b"edited"), "{point}: the edit is there");
    quiet(&world, &[&a, &b]);
}
