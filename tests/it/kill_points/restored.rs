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

/// `a` has deleted one note of its folder and spoilt another, and only the proxy has the texts. A restore of the folder is
/// killed in the midst, and the next one completes it.
#[test]
fn killed_restore_of_a_folder_is_completed_by_the_next() {
    for point in ["fetched.written:2", "create.renamed", "replace.exchanged", "moves.placed:2"] {
        let world = World::new();
        let a = world.device("a");
        a.start();
        for (path, text) in [("dir/a.md", "first a"), ("dir/b.md", "first b"), ("dir/c.md", "first c")] {
            a.write(path, text);
            eventually("it is uploaded", || world.blob(path).is_some_and(|blob| blob == text.as_bytes()));
        }
        let moment = world.blob_time("dir/c.md");
        a.write("dir/a.md", "spoilt a");
        a.write("dir/b.md", "spoilt b");
        a.remove("dir/c.md");
        eventually("it is synced", || {
            world.blob("dir/a.md").is_some_and(|blob| blob == b"spoilt a")
                && world.blob("dir/b.md").is_some_and(|blob| blob == b"spoilt b")
                && world.blob("dir/c.md").is_none()
        });
        a.wait();
        a.stop();
        let ran = a.cli_with(&["restore", "dir", "--at", &moment], &[("MEMSYNC_KILL_AT", point)]);
        assert_eq!(ran.code, -1, "it dies at {point}: {ran:?}");
        a.ok(&["restore", "dir", "--at", &moment]);
        for name in ["a", "b", "c"] {
            assert_eq!(a.read(&format!("dir/{name}.md")), format!("first {name}").as_bytes(), "{point}");
        }
        a.start();
        a.wait();
        let kept = a.kept();
        assert!(["spoilt a", "spoilt b"].iter().all(|text| kept.contains(&text.as_bytes().to_vec())), "{point}");
        quiet(&world, &[&a]);
    }
}
