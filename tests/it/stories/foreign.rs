//! A foreign proxy whose index loses updates. Only the agents can heal it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::common::foreign_proxy::{Foreign, NAMESPACE};
use crate::common::world::{Device, Files, World, eventually, files_below};

/// A path is healed at most once a minute, and a heal may get lost too.
const HEAL_DEADLINE: Duration = Duration::from_secs(15 * 60);

fn device<'w>(world: &'w World, foreign: &Foreign, name: &str) -> Device<'w> {
    let device = world.device(name);
    device.write_config("interval = \"1s\"", &[(&device.folder, &format!("namespace = {NAMESPACE:?}"))]);
    device.use_proxy(&foreign.url());
    device
}

/// Waits until both folders, the objects and the index agree with `expected`.
#[track_caller]
fn converge(foreign: &Foreign, devices: [&Device; 2], expected: &Files) {
    let until = Instant::now() + HEAL_DEADLINE;
    loop {
        let wrong = foreign.wrong_entries();
        let trees = devices.map(Device::tree);
        if wrong.is_empty() && trees.iter().all(|tree| tree == expected) && foreign.files() == *expected {
            return;
        }
        let differs = |tree: &Files| {
            let all: BTreeMap<_, _> = tree.iter().chain(expected).collect();
            all.into_keys().filter(|path| tree.get(*path) != expected.get(*path)).cloned().collect::<Vec<_>>()
        };
        let differ = trees.iter().map(differs).collect::<Vec<_>>();
        assert!(Instant::now() < until, "wrong index entries: {wrong:?}; wrong files: {differ:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn proxy_without_versions_is_named_by_history() {
    let foreign = Foreign::start();
    let world = World::new();
    let a = device(&world, &foreign, "a");
    a.start();
    foreign.put("note.md", b"first");
    eventually("it arrives", || a.has("note.md", "first"));
    foreign.put("note.md", b"second");
    eventually("it arrives", || a.has("note.md", "second"));
    a.wait();
    let ran = a.ok(&["history", "note.md"]);
    assert!(ran.out.contains("kept here") && ran.err.contains("this proxy keeps no earlier versions"), "{ran:?}");
    a.ok(&["restore", "note.md"]);
    assert!(a.has("note.md", "first"));
}

/// The agents keep the texts that the proxy forgets.
#[test]
fn notes_are_merged_without_versions_on_the_proxy() {
    let foreign = Foreign::start();
    let world = World::new();
    let (a, b) = (device(&world, &foreign, "a"), device(&world, &foreign, "b"));
    let note = "# Trip\n\nLeave on Friday.\n\n- tickets\n- tent\n";
    a.write("trip.md", note);
    a.ok(&["sync"]);
    b.ok(&["sync"]);
    a.write("trip.md", note.replace("Friday", "Saturday"));
    b.write("trip.md", note.replace("tent", "tents"));
    a.ok(&["sync"]);
    assert_eq!(b.ok(&["sync", "--json"]).json()["merged"], 1);
    a.ok(&["sync"]);
    let merged = note.replace("Friday", "Saturday").replace("tent", "tents");
    let expected: Files = [("trip.md".to_owned(), merged.into_bytes())].into();
    assert_eq!((a.tree(), b.tree(), foreign.files()), (expected.clone(), expected.clone(), expected));
    let state = b.home.join("state");
    let texts: Vec<_> = files_below(&state).into_keys().filter(|name| name.contains(".texts/")).collect();
    assert!(texts.len() >= 2, "{texts:?}");
    for name in texts {
        assert_eq!(fs::metadata(state.join(&name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
}

/// The content of one large file arrives a byte at a time.
#[test]
fn dripping_blob_delays_no_other_path() {
    let foreign = Foreign::start();
    let world = World::new();
    let a = device(&world, &foreign, "a");
    foreign.put("drip.md", &[b'x'; 100_000]);
    foreign.drip("drip.md");
    a.start();
    eventually("the first byte arrives", || foreign.dripped() > 0);
    for n in 0..3 {
        let name = format!("{n}.md");
        a.write(&name, "other");
        eventually("another file is uploaded meanwhile", || foreign.files().contains_key(&name));
    }
    foreign.put("down.md", b"down");
    eventually("another file is downloaded meanwhile", || a.has("down.md", "down"));
    assert!(foreign.is_dripping() && !a.at("drip.md").exists(), "the transfer still runs");
    eventually("status names the path", || {
        let problems = a.folder_status()["problems"].take();
        problems.as_array().is_some_and(|all| all.iter().any(|p| p["path"] == "drip.md"))
    });
    assert_ne!(a.cli(&["status"]).code, 0);
    foreign.drip("");
    eventually("the whole file is here", || a.has("drip.md", [b'x'; 100_000]));
    eventually("all is in sync", || a.cli(&["status"]).code == 0);
}

#[test]
fn agents_converge_when_index_updates_are_lost() {
    let foreign = Foreign::start();
    let world = World::new();
    let (a, b) = (device(&world, &foreign, "a"), device(&world, &foreign, "b"));
    let mut expected = Files::new();
    for n in 0..170 {
        a.write(&format!("{n}.md"), n.to_string());
        expected.insert(format!("{n}.md"), n.to_string().into_bytes());
    }
    a.start();
    b.start();
    converge(&foreign, [&a, &b], &expected);
    let before = foreign.updates();
    for n in 0..120 {
        let (device, name) = (if n % 2 == 0 { &a } else { &b }, format!("{n}.md"));
        device.write(&name, format!("edit {n}"));
        expected.insert(name, format!("edit {n}").into_bytes());
    }
    for n in 120..170 {
        let (device, name) = (if n % 2 == 0 { &a } else { &b }, format!("{n}.md"));
        device.remove(&name);
        expected.remove(&name);
    }
    converge(&foreign, [&a, &b], &expected);
    let after = foreign.updates();
    assert!(after.1 > before.1 + 20, "{before:?} to {after:?}: the index lost updates");
    for device in [&a, &b] {
        assert_eq!(device.copies(), Vec::<String>::new());
        eventually("it is in sync", || device.cli(&["status"]).code == 0);
    }
}
