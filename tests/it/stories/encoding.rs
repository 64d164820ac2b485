//! A proxy on another machine: compressible contents are sent compressed.

use std::fs;

use crate::common::packed::{noise, text};
use crate::common::world::{Device, World, eventually, write_private};

/// A device that takes the proxy for one on another machine: 0.0.0.0 reaches it, and is no loopback address.
fn far<'w>(world: &'w World, name: &str) -> Device<'w> {
    let device = world.device_with(name, "interval = \"1s\"");
    let config = device.home.join("config.toml");
    let here = fs::read_to_string(&config).unwrap();
    let there =
        here.replace("http://127.0.0.1:", "http://0.0.0.0:").replace("[proxy]\n", "[proxy]\nallow_http = true\n");
    assert_ne!(here, there);
    write_private(&config, &there);
    device
}

/// The bytes that the proxy has received and sent.
fn traffic(world: &World) -> [usize; 2] {
    let metrics = String::from_utf8(world.asker()("/metrics").1).unwrap();
    ["memsync_received_bytes_total ", "memsync_sent_bytes_total "].map(|name| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {metrics}")).parse().unwrap()
    })
}

#[test]
fn compressed_notes_arrive_unchanged() {
    let world = World::new();
    let (a, b) = (far(&world, "a"), far(&world, "b"));
    // Small files in batches, larger ones alone, streamed ones, and one that does not compress.
    let mut files = vec![("long.md".to_owned(), text(150_000)), ("huge.md".to_owned(), text(3 << 20))];
    files.push(("photo.jpg".to_owned(), noise(400_000)));
    files.extend((0..200).map(|n| (format!("notes/{n}.md"), text(4_000 + n))));
    let total: usize = files.iter().map(|(_, content)| content.len()).sum();
    for (path, content) in &files {
        a.write(path, content);
    }
    a.start();
    a.wait();
    let [up, _] = traffic(&world);
    assert!(up < total / 2, "{up} of {total}");
    b.start();
    assert_eq!(world.settle(&[&a, &b]), files.iter().cloned().collect());
    let [_, down] = traffic(&world);
    assert!(down < total / 2, "{down} of {total}");

    // An edit, and one that makes a file incompressible.
    b.write("long.md", text(160_000));
    b.write("huge.md", noise(1 << 20));
    eventually("a has both", || a.has("long.md", text(160_000)) && a.has("huge.md", noise(1 << 20)));
    assert_eq!((a.copies().len(), b.copies().len()), (0, 0));

    // On the proxy's own machine nothing is compressed.
    let here = world.device("here");
    let [_, before] = traffic(&world);
    here.start();
    world.settle(&[&a, &b, &here]);
    let [_, after] = traffic(&world);
    let total: usize = here.tree().values().map(Vec::len).sum();
    assert!(after - before > total, "{} of {total}", after - before);
}
