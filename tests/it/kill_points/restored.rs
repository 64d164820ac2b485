//! A command is killed while it brings back a version from the proxy.

use super::quiet;
use crate::common::world::{World, eventually, files_below};

/// `a` wrote "first" and then "second" itself, so only the proxy has "first". A restore is killed, beside a running agent
/// and without one, and then runs again.
pub(super) fn a_restore(point: &str) {
    for with_agent in [true, false] {
        let world = World::new();
        let a = world.device("a");
        a.start();
        for text in ["first", "second"] {
            a.write("note.md", text);
            eventually("it is uploaded", || world.blob("note.md").is_some_and(|blob| blob == text.as_bytes()));
        }
        a.wait();
        if !with_agent {
            a.stop();
        }
        let ran = a.cli_with(&["restore", "note.md"], &[("MEMSYNC_KILL_AT", point)]);
        assert_eq!(ran.code, -1, "it dies at {point}: {ran:?}");
        assert_eq!(a.read("note.md"), b"second");
        a.ok(&["restore", "note.md"]);
        assert_eq!((a.read("note.md"), a.kept()), (b"first".to_vec(), vec![b"second".to_vec()]));
        assert_eq!(files_below(&a.at(".memsync/fetched")).len(), 0, "nothing is left behind");
        if !with_agent {
            a.start();
        }
        eventually("it is uploaded", || world.blob("note.md").is_some_and(|blob| blob == b"first"));
        quiet(&world, &[&a]);
    }
}
