//! The real binary is killed at every point that the source names (`failpoint::pass`), and started again. Nothing is
//! lost, no file is left over, both devices agree, and another start finds nothing to do.
#![cfg(debug_assertions)] // A release build has no kill points.

mod bucket;
mod first_up;
mod restored;
mod stage;
mod written;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use crate::common::world::{Device, Files, World, eventually, files_below};
use bucket::{a_bucket, a_key, an_expiry};
use first_up::a_first_up;
use restored::a_restore;
use rustix::process::Signal;
use written::{a_lost_race, a_put};

/// A test for each point: its name, the scenario that passes it, and the point (`point` or `point:N`).
macro_rules! points {
    ($($name:ident: $scenario:ident at $($point:literal),+;)+) => {
        /// Every tested point.
        const POINTS: &[&str] = &[$($($point),+),+];

        $(#[test]
        fn $name() {
            for point in [$($point),+] {
                println!("killed at {point}");
                $scenario(point);
            }
        })+
    };
}

points! {
    before_and_after_an_upload: a_cycle at "upload.before", "upload.before:2", "upload.acknowledged", "upload.acknowledged:2";
    before_and_after_a_deletion_on_the_proxy: a_cycle at "delete.before", "delete.acknowledged";
    with_a_download_staged: a_cycle at "download.staged", "download.staged:3";
    in_the_midst_of_many_at_once: many_at_once at "upload.before:7", "upload.acknowledged:7", "download.staged:7",
        "delete.before:7", "delete.acknowledged:7";
    with_a_batch_ready: a_cycle at "batch.before", "batch.before:2", "moves.intended", "moves.intended:2",
        "moves.marked", "moves.marked:2";
    with_a_batch_durable_or_placed: a_cycle at "moves.durable", "moves.durable:2", "moves.placed", "moves.placed:2";
    around_the_commit: a_cycle at "commit.before", "commit.before:2", "commit.done", "journal.appended";
    around_the_placing_of_a_new_file: a_cycle at "create.before", "create.renamed";
    around_an_exchange: a_cycle at "replace.before", "replace.exchanged", "replace.exchanged:2", "replace.kept";
    around_a_removal: a_cycle at "trash.before", "trash.displaced", "trash.displaced:2", "trash.kept";
    around_the_move_into_history: a_cycle at "history.before", "history.before:2", "conflict.renamed";
    around_the_copy_of_a_file_with_other_names: other_names at "history.copying", "history.copying:2",
        "history.copying:5", "history.copied", "history.placed", "history.placed:2";
    around_a_merge: a_merge at "merge.staged", "merge.staged:2", "moves.intended", "moves.marked", "moves.durable",
        "merge.moved", "merge.kept", "replace.before", "replace.before:2", "replace.exchanged", "replace.exchanged:2",
        "replace.kept", "replace.kept:2", "moves.placed", "commit.before", "commit.done", "upload.before",
        "upload.acknowledged", "upload.acknowledged:2", "commit.before:2", "commit.done:2";
    while_the_crash_before_is_put_in_order: a_recovery at "sweep.listed", "sweep.settled", "sweep.cleared";
    while_an_unplaced_download_is_removed: a_clearing at "sweep.taken", "sweep.taken:2";
    at_the_first_start: a_first_start at "identity.placed", "save.staged", "save.placed", "journal.staged", "journal.placed";
    while_up_makes_its_files: a_first_up at "file.begun", "file.written", "file.placed";
    while_the_container_is_saved: a_save at "save.staged", "save.backed-up", "save.placed";
    while_the_journal_is_begun: a_save at "journal.staged", "journal.backed-up", "journal.placed";
    between_a_blob_and_the_index_in_a_bucket: a_bucket at "s3-blob-written", "s3-blob-written:3", "s3-blob-written:4",
        "s3-blob-written:12", "s3-index-written", "s3-index-written:2", "s3-index-written:4", "s3-index-written:9";
    between_a_version_and_the_write_that_replaces_it: a_bucket at "s3-version-kept", "s3-version-kept:2",
        "s3-version-kept:5", "s3-expiry-noted";
    while_a_file_expires_in_a_bucket: an_expiry at "s3-version-kept", "s3-blob-written", "s3-index-written";
    while_a_key_is_made_in_a_bucket: a_key at "s3-record-written";
    while_a_version_comes_from_the_proxy: a_restore at "fetched.written";
    while_a_command_writes_a_file: a_put at "fetched.written", "swap.before", "swap.exchanged", "swap.kept";
    while_a_command_puts_an_edit_back: a_lost_race at "swap.exchanged", "swap.returned";
    while_a_backup_is_made: a_backup at "store-copied";
    around_the_commit_of_the_proxy: the_proxy at "store-before-commit", "store-after-commit", "store-before-commit:2", "store-after-commit:2";
}

#[test]
fn every_point_of_the_sources_is_tested() {
    let mut named = BTreeSet::new();
    for (path, text) in files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = String::from_utf8(text).unwrap();
        for rest in text.split("failpoint::pass(").skip(1) {
            let name = rest.strip_prefix('"').and_then(|r| r.split_once('"')).map(|(name, _)| name.to_owned());
            assert!(named.insert(name.unwrap_or_else(|| panic!("{path}: a name in quotes"))), "{path}: one name twice");
        }
    }
    let tested: BTreeSet<String> = POINTS.iter().map(|p| p.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(tested, named);
}

#[track_caller]
fn died(status: ExitStatus, point: &str) {
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "it dies at {point}: {status}");
}

/// The files of both devices at the start.
const BASE: [(&str, &str); 8] = [
    ("clash.md", "clash: base"),
    ("clash2.md", "clash2: base"),
    ("edited.md", "edited: base"),
    ("edited2.md", "edited2: base"),
    ("gone.md", "gone: base"),
    ("dir/gone.md", "dir/gone: base"),
    ("removed.md", "removed: base"),
    ("mine.md", "mine: base"),
];

/// `a` runs and has made changes. `b` is stopped and has made others, so that its next cycle takes every action.
fn apart(world: &World) -> (Device<'_>, Device<'_>) {
    let config = "conflict = \"copy\"\nmax_delete = 1.0";
    let (a, b) = (world.device_with("a", config), world.device_with("b", config));
    for (path, content) in BASE {
        a.write(path, content);
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    assert!(a.log().contains(WROTE), "a cycle that writes says so: {}", a.log());
    b.stop();
    a.write("edited.md", "edited: by a");
    a.write("edited2.md", "edited2: by a");
    a.write("clash.md", "clash: by a");
    a.write("clash2.md", "clash2: by a");
    a.write("new/of-a.md", "new of a");
    a.write("new/of-a-too.md", "new of a too");
    a.remove("gone.md");
    a.remove("dir/gone.md");
    a.wait();
    b.write("clash.md", "clash: by b");
    b.write("clash2.md", "clash2: by b");
    b.write("mine.md", "mine: by b");
    b.write("of-b.md", "new of b");
    b.write("empty-of-b.md", "");
    b.remove("removed.md");
    (a, b)
}

/// The log's text of a cycle that wrote something.
const WROTE: &str = ", conflicts ";

/// Checks that both devices agree and rest after the kill of `b`.
#[track_caller]
fn whole(world: &World, a: &Device, b: &Device) {
    b.start();
    let tree = world.settle(&[b, a]);
    let mut plain: Vec<(&str, &str)> = Vec::new();
    let mut copies = Vec::new();
    for (path, content) in &tree {
        let content = std::str::from_utf8(content).unwrap();
        if path.contains(".conflict-b-") { copies.push(content) } else { plain.push((path, content)) }
    }
    let expected = [
        ("clash.md", "clash: by a"),
        ("clash2.md", "clash2: by a"),
        ("edited.md", "edited: by a"),
        ("edited2.md", "edited2: by a"),
        ("empty-of-b.md", ""),
        ("mine.md", "mine: by b"),
        ("new/of-a-too.md", "new of a too"),
        ("new/of-a.md", "new of a"),
        ("of-b.md", "new of b"),
    ];
    assert_eq!(plain, expected);
    copies.sort_unstable();
    assert_eq!(copies, ["clash2: by b", "clash: by b"], "each loser is kept, once");
    let mut kept: Vec<String> = b.kept().into_iter().map(|c| String::from_utf8(c).unwrap()).collect();
    kept.sort_unstable();
    assert_eq!(kept, ["dir/gone: base", "edited2: base", "edited: base", "gone: base"], "all that sync displaced");
    assert!(!b.at("dir").exists(), "the folder that sync emptied is gone");
    quiet(world, &[a, b]);
}

/// Checks that no file is left over, and that another start changes nothing.
#[track_caller]
fn quiet(world: &World, devices: &[&Device]) {
    devices.iter().for_each(|d| d.stop());
    let before: Vec<_> = devices.iter().map(|d| (d.tree(), d.kept())).collect();
    let index = world.index();
    for device in devices {
        assert_eq!(device.staged(), Vec::<String>::new(), "{}: nothing is left in stage", device.name);
        let state: Vec<String> = files_below(&device.home.join("state")).into_keys().collect();
        assert!(!state.iter().any(|n| n.contains(".tmp.") || n.contains("damaged")), "{state:?}");
        device.start();
        device.wait();
    }
    assert_eq!(world.index(), index, "the second start writes nothing to the proxy");
    let after: Vec<_> = devices.iter().map(|d| (d.tree(), d.kept())).collect();
    assert!(before == after, "nor to the folders");
    for device in devices {
        assert!(!device.log().contains(WROTE), "no cycle wrote anything: {}", device.log());
        assert_eq!(device.folder_status()["problems"], serde_json::json!([]));
    }
}

fn a_cycle(point: &str) {
    let world = World::new();
    let (a, b) = apart(&world);
    b.start_doomed(point);
    died(b.died(), point);
    whole(&world, &a, &b);
}

/// Enough small changes to travel in batches.
fn many_at_once(point: &str) {
    let world = World::new();
    let (a, b) = (world.device_with("a", "max_delete = 1.0"), world.device_with("b", "max_delete = 1.0"));
    let names = |kind: &str| (0..20).map(|n| format!("{kind}/{n}.md")).collect::<Vec<_>>();
    for name in names("gone") {
        a.write(&name, &name);
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    b.stop();
    names("of-a").iter().for_each(|name| a.write(name, name));
    a.wait();
    names("of-b").iter().for_each(|name| b.write(name, name));
    names("gone").iter().for_each(|name| b.remove(name));
    b.start_doomed(point);
    died(b.died(), point);
    b.start();
    let expected: Files = names("of-a").into_iter().chain(names("of-b")).map(|n| (n.clone(), n.into_bytes())).collect();
    assert!(world.settle(&[&b, &a]) == expected);
    quiet(&world, &[&a, &b]);
}

/// Files of several pieces with hard links outside the folder, so that history holds copies of them.
fn other_names(point: &str) {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let names = ["edited.md", "gone.md"];
    let content = |name: &str| format!("{name}: base\n").repeat(40_000).into_bytes();
    names.iter().for_each(|name| a.write(name, content(name)));
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    b.stop();
    let outside = |name: &str| world.path().join(name);
    names.iter().for_each(|name| fs::hard_link(b.at(name), outside(name)).unwrap());
    a.write("edited.md", "edited: by a");
    a.remove("gone.md");
    a.wait();
    b.start_doomed(point);
    died(b.died(), point);
    b.start();
    assert_eq!(world.settle(&[&b, &a]).len(), 1);
    for name in names {
        assert!(fs::read(outside(name)).unwrap() == content(name), "{name}: what it was outside");
        fs::write(outside(name), "scribbled over").unwrap();
    }
    let kept: BTreeSet<Vec<u8>> = b.kept().into_iter().collect();
    assert!(kept == names.map(content).into(), "{point}: history has both, whole, and nothing else");
    quiet(&world, &[&a, &b]);
}

/// Two files that both devices changed. Each version is in history when its file has another text, and the lines of both
/// are in the file at the end.
fn a_merge(point: &str) {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let text = |first: &str, last: &str| format!("# Note\n\nThe {first} of the note.\n\nThe {last} of the note.\n");
    let files = ["one.md", "two.md"];
    files.iter().for_each(|path| a.write(path, text("first line", "last line")));
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    b.stop();
    files.iter().for_each(|path| a.write(path, text("first line", "last line by a")));
    a.wait();
    files.iter().for_each(|path| b.write(path, text("first line by b", "last line")));
    b.start_doomed(point);
    died(b.died(), point);
    let versions = [text("first line", "last line by a"), text("first line by b", "last line")];
    let kept: BTreeSet<Vec<u8>> = b.kept().into_iter().collect();
    for path in files.iter().filter(|path| versions.iter().all(|version| !b.has(path, version))) {
        assert!(versions.iter().all(|version| kept.contains(version.as_bytes())), "{path}: {kept:?}");
    }
    b.start();
    let merged = text("first line by b", "last line by a").into_bytes();
    let tree: Vec<(String, Vec<u8>)> = world.settle(&[&b, &a]).into_iter().collect();
    assert_eq!(tree, files.map(|path| (path.to_owned(), merged.clone())), "no conflict copies");
    let kept: BTreeSet<Vec<u8>> = b.kept().into_iter().collect();
    let versions: BTreeSet<Vec<u8>> = versions.map(String::into_bytes).into();
    // After a crash the result may be merged once more, with the version of the proxy.
    let allowed: BTreeSet<Vec<u8>> = versions.iter().cloned().chain([merged]).collect();
    assert!(kept.is_superset(&versions) && kept.is_subset(&allowed), "history has both versions: {kept:?}");
    quiet(&world, &[&a, &b]);
}

fn a_recovery(point: &str) {
    for first in ["replace.exchanged:2", "trash.displaced", "moves.placed", "create.before"] {
        let world = World::new();
        let (a, b) = apart(&world);
        b.start_doomed(first);
        died(b.died(), first);
        b.start_doomed(point);
        died(b.died(), point);
        whole(&world, &a, &b);
    }
}

fn a_clearing(point: &str) {
    let world = World::new();
    let (a, b) = apart(&world);
    b.start_doomed("moves.marked");
    died(b.died(), "moves.marked");
    b.start_doomed(point);
    died(b.died(), point);
    whole(&world, &a, &b);
}

fn a_first_start(point: &str) {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("of-a.md", "a");
    a.start();
    a.wait();
    b.write("of-b.md", "b");
    b.start_doomed(point);
    if point != "identity.placed" {
        eventually("b is far enough", || a.has("of-b.md", "b") || !b.runs());
        b.terminate();
    }
    died(b.died(), point);
    b.start();
    let expected: Files = [("of-a.md", "a"), ("of-b.md", "b")].map(|(p, c)| (p.to_owned(), c.into())).into();
    assert_eq!(world.settle(&[&b, &a]), expected);
    quiet(&world, &[&a, &b]);
}

fn a_save(point: &str) {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for n in 0..30 {
        a.write(&format!("{n}.md"), format!("note {n}"));
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    b.stop();
    // Another format, so that the container is written anew.
    b.write_config("[state]\npretty = false", &[(&b.folder, "")]);
    b.write("of-b.md", "b");
    b.remove("3.md");
    b.start_doomed(point);
    eventually("b is far enough", || (a.has("of-b.md", "b") && !a.at("3.md").exists()) || !b.runs());
    b.terminate();
    died(b.died(), point);
    // Writes that the killed run knew as acknowledged are not sent again.
    a.write("0.md", "edited meanwhile");
    a.wait();
    b.start();
    let tree = world.settle(&[&b, &a]);
    assert_eq!(tree.len(), 30, "{:?}", tree.keys());
    assert_eq!((&tree["of-b.md"], &tree["0.md"]), (&b"b".to_vec(), &b"edited meanwhile".to_vec()));
    quiet(&world, &[&a, &b]);
}

fn a_backup(point: &str) {
    let world = World::new();
    let a = world.device("a");
    a.write("note.md", "hello");
    a.start();
    a.wait();
    let (store, to) = (world.store(), world.path().join("backup"));
    let args = ["store", "backup", to.to_str().unwrap(), "--store", store.to_str().unwrap()];
    let ran = a.cli_with(&args, &[("MEMSYNC_KILL_AT", point)]);
    assert_eq!(ran.code, -1, "it dies at {point}: {ran:?}");
    assert!(!to.exists(), "half a backup does not look like one");
    a.ok(&args);
    a.ok(&["store", "verify", "--store", to.to_str().unwrap()]);
}

fn the_proxy(point: &str) {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    b.start();
    b.wait();
    world.stop_proxy();
    let mut written = Files::new();
    for n in 0..60 {
        // Some bodies are files beside the database.
        let content = format!("{n} ").repeat(if n % 20 == 0 { 150_000 } else { 10 });
        a.write(&format!("{n}.md"), &content);
        written.insert(format!("{n}.md"), content.into_bytes());
    }
    world.start_doomed_proxy(point);
    a.start();
    died(world.proxy_died(), point);
    world.start_proxy();
    assert!(world.settle(&[&a, &b]) == written);
    quiet(&world, &[&a, &b]);
}
