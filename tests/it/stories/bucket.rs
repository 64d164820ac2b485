//! A proxy whose store is a bucket. Its index is weak, and agents fetch only the changes of the index.

use bytes::Bytes;
use memsync::path::RelPath;
use memsync::store::{Store, WriteCondition, system_clock};
use tokio::runtime::Runtime;

use crate::common::s3::{self, Server, Stored, difference};
use crate::common::world::{World, eventually};

const INDEX: &str = "memory/.sync-index.json";

/// A runtime, the server of a bucket, and a proxy with its store in the bucket.
fn bucket() -> (Runtime, Server, World) {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let world = World::with_bucket(vec![
        ("S3_BUCKET", s3::BUCKET.to_owned()),
        ("S3_ENDPOINT_URL", server.endpoint()),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY.to_owned()),
    ]);
    (runtime, server, world)
}

/// Values of the proxy's metrics.
fn metrics<const N: usize>(world: &World, names: [&str; N]) -> [usize; N] {
    let text = String::from_utf8(world.asker()("/metrics").1).unwrap();
    names.map(|name| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    })
}

#[test]
fn edit_is_synced_without_the_whole_index() {
    let (_runtime, server, world) = bucket();
    let (a, b) = (world.device("a"), world.device("b"));
    for n in 0..500 {
        a.write(&format!("notes/{n}.md"), n.to_string());
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    // Both devices know the whole index now.
    a.wait();
    b.wait();

    const NAMES: [&str; 4] = [
        "memsync_index_renderings_total",
        "memsync_index_deltas_total",
        "memsync_sent_bytes_total",
        "memsync_index_bytes",
    ];
    let before = metrics(&world, NAMES);
    for n in 0..10 {
        let (from, to) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let text = format!("edit {n}");
        from.write("notes/7.md", &text);
        eventually("the edit arrives", || to.has("notes/7.md", &text));
    }
    let after = metrics(&world, NAMES);
    let [whole, parts, sent, _] = [0, 1, 2, 3].map(|n| after[n] - before[n]);
    let index = after[3];
    assert_eq!(whole, 0, "no device fetched the whole index");
    assert!((10..=60).contains(&parts), "{parts} parts for 10 edits");
    assert!(index > 60_000 && sent < index, "{sent} bytes were sent for 10 edits, of an index of {index}");
    world.settle(&[&a, &b]);
    assert_eq!(difference(&server, "memory"), [""; 0]);
}

#[test]
fn agents_converge_after_foreign_writes_to_the_bucket() {
    let (runtime, server, world) = bucket();
    let (a, b) = (world.device("a"), world.device("b"));
    for n in 0..30 {
        a.write(&format!("{n}.md"), n.to_string());
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);

    // The restarted proxy does not know the index that the devices hold.
    a.write("1.md", "one");
    world.stop_proxy();
    b.write("2.md", "two");
    a.remove("3.md");
    world.start_proxy();
    let files = world.settle(&[&a, &b]);
    assert_eq!((files.len(), &files["1.md"][..], &files["2.md"][..]), (29, &b"one"[..], &b"two"[..]));

    // Another proxy writes to the bucket.
    let other = runtime.block_on(server.store("memory", system_clock()));
    let path = |name: &str| RelPath::parse(name).unwrap();
    let put = |name: &str| {
        runtime.block_on(other.put_bytes("", &path(name), WriteCondition::Absent, Bytes::from_static(b"x")))
    };
    put("theirs.md").unwrap();
    a.write("4.md", "four");
    eventually("both have the file of the other proxy", || a.has("theirs.md", "x") && b.has("theirs.md", "x"));
    world.settle(&[&a, &b]);

    // A third proxy overwrites the index with an old one.
    let old = server.object(INDEX).unwrap();
    b.write("5.md", "five");
    a.write("new.md", "new");
    world.settle(&[&a, &b]);
    let text = String::from_utf8(old.body.to_vec()).unwrap();
    let theirs = text.replacen("\"files\":{", "\"by\":\"theirs\",\"files\":{", 1);
    assert_ne!(text, theirs);
    server.plant(INDEX, Stored::new(theirs.as_bytes(), &[]));
    eventually("the lost entries are back", || difference(&server, "memory").is_empty());
    let files = world.settle(&[&a, &b]);
    assert_eq!((files.len(), &files["5.md"][..], &files["new.md"][..]), (31, &b"five"[..], &b"new"[..]));
    assert_eq!((a.copies().len(), b.copies().len()), (0, 0));
}
