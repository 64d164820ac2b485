//! Two devices change one file while they are apart, and both get one file with both changes.

use std::collections::BTreeSet;

use crate::common::world::{Device, World, eventually};

const NOTE: &str = "---\ntags: [trip]\n---\n# Trip\n\nLeave on Friday.\n\n- [ ] tickets\n- [ ] tent\n";
const DATA: &str = "{\n  \"name\": \"trip\",\n  \"days\": 3,\n  \"stops\": [\"Bern\"]\n}\n";
const RECORDS: &str = "{\"id\": 1, \"at\": \"2026-11-20T10:00:00Z\"}\n";

#[test]
fn offline_edits_of_both_devices_are_in_one_file() {
    let world = World::new();
    let (a, b) = world.apart("", &[("trip.md", NOTE), ("trip.json", DATA), ("trip.jsonl", RECORDS)]);
    let record = |n: u32| format!("{{\"id\": {n}, \"at\": \"2026-11-20T1{n}:00:00Z\"}}\n");
    let of_a = NOTE.replace("[ ] tickets", "[x] tickets").replace("[trip]", "[trip, train]");
    a.write("trip.md", &of_a);
    a.write("trip.json", DATA.replace("3", "4"));
    a.write("trip.jsonl", format!("{RECORDS}{}", record(3)));
    let of_b = NOTE.replace("Friday", "Friday at 8").replace("tent\n", "tent\n- [ ] stove\n");
    b.write("trip.md", &of_b);
    b.write("trip.json", DATA.replace("\"Bern\"", "\"Bern\", \"Thun\""));
    b.write("trip.jsonl", format!("{RECORDS}{}", record(2)));
    a.start();
    a.wait();
    b.start();
    let tree = world.settle(&[&b, &a]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["trip.json", "trip.jsonl", "trip.md"], "no conflict copies");
    let text = |path: &str| String::from_utf8(tree[path].clone()).unwrap();
    let note =
        "---\ntags: [trip, train]\n---\n# Trip\n\nLeave on Friday at 8.\n\n- [x] tickets\n- [ ] tent\n- [ ] stove\n";
    assert_eq!(text("trip.md"), note);
    assert_eq!(text("trip.json"), DATA.replace("3", "4").replace("\"Bern\"", "\"Bern\", \"Thun\""));
    assert_eq!(text("trip.jsonl"), format!("{RECORDS}{}{}", record(2), record(3)));
    reports_the_merges(&b);
    assert_eq!(a.cli(&["status"]).code, 0);
    // Both versions are in the history of the device that merged.
    let kept: BTreeSet<Vec<u8>> = b.kept().into_iter().collect();
    assert!(kept.contains(of_a.as_bytes()) && kept.contains(of_b.as_bytes()));
    assert!(b.ok(&["history", "trip.md"]).out.contains("merged"));
    // Without an ID, the text that was in place here comes back.
    b.ok(&["restore", "trip.md"]);
    eventually("a has the version of b", || a.has("trip.md", &of_b));
}

/// Status and log name the merged files, and the device that wrote the other version.
#[track_caller]
fn reports_the_merges(device: &Device) {
    let recent = device.status()["recent"].clone();
    let merged = recent.as_array().unwrap().iter().filter(|r| r["action"] == "merged");
    let merged: BTreeSet<&str> = merged.map(|r| r["path"].as_str().unwrap()).collect();
    assert_eq!(merged, ["trip.json", "trip.jsonl", "trip.md"].into());
    assert!(device.ok(&["status"]).out.contains("merged    trip.json"), "{}", device.ok(&["status"]).out);
    let log = device.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("merged trip.md")).collect();
    assert!(lines.len() == 1 && lines[0].contains("INFO") && lines[0].contains("from a"), "{lines:?}");
}

#[test]
fn command_without_an_agent_says_that_it_merged() {
    let world = World::new();
    let (a, b) = world.apart("", &[("trip.md", NOTE)]);
    a.write("trip.md", NOTE.replace("Friday", "Saturday"));
    b.write("trip.md", NOTE.replace("tent", "tents"));
    a.ok(&["sync"]);
    let done = b.ok(&["sync"]);
    assert!(done.out.contains("1 merged") && done.out.contains("1 uploaded"), "{done:?}");
    assert_eq!(a.ok(&["sync", "--json"]).json()["downloaded"], 1);
    assert_eq!(a.tree(), b.tree());
    assert!(a.has("trip.md", NOTE.replace("Friday", "Saturday").replace("tent", "tents")));
}

#[test]
fn namespace_merges_with_the_versions_of_its_own_path() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for device in [&a, &b] {
        device.write_config("", &[(&device.folder, "namespace = \"team/notes\"")]);
    }
    // The folder called `versions` could be taken for an address of the proxy.
    let path = "versions/blob/trip.md";
    a.write(path, NOTE);
    a.ok(&["sync"]);
    b.ok(&["sync"]);
    a.write(path, NOTE.replace("Friday", "Saturday"));
    b.write(path, NOTE.replace("tent", "tents"));
    a.ok(&["sync"]);
    assert_eq!(b.ok(&["sync", "--json"]).json()["merged"], 1);
    a.ok(&["sync"]);
    assert!(a.has(path, NOTE.replace("Friday", "Saturday").replace("tent", "tents")) && a.tree() == b.tree());
}

#[test]
fn configured_files_are_never_merged() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device_with("b", "[merge]\n\"private/\" = \"copy\""));
    for path in ["trip.md", "private/trip.md"] {
        a.write(path, NOTE);
    }
    a.ok(&["sync"]);
    b.ok(&["sync"]);
    for path in ["trip.md", "private/trip.md"] {
        a.write(path, NOTE.replace("Friday", "Saturday"));
        b.write(path, NOTE.replace("tent", "tents"));
    }
    a.ok(&["sync"]);
    let done = b.cli(&["sync", "--json"]);
    assert_eq!((done.code, &done.json()["merged"]), (8, &1.into()), "{done:?}");
    let copies = b.copies();
    assert!(copies.len() == 1 && copies[0].starts_with("private/trip.conflict-b-"), "{copies:?}");
}

#[test]
fn agents_that_edit_one_note_at_the_same_time_converge() {
    let world = World::new();
    let devices: Vec<Device> = ["a", "b", "c"].map(|name| world.device_with(name, "interval = \"1s\"")).into();
    let section = |name: &str, lines: u32| {
        let lines: String = (0..lines).map(|n| format!("- {name} {n}\n")).collect();
        format!("## {name}\n\n{lines}\n")
    };
    let all: Vec<&Device> = devices.iter().collect();
    devices[0]
        .write("note.md", format!("# Note\n\n{}", devices.iter().map(|d| section(&d.name, 1)).collect::<String>()));
    for device in &all {
        device.start();
    }
    world.settle(&all);
    for lines in 2..6 {
        for device in &devices {
            // The program reads the note, changes its own section, and saves, as an editor does.
            let text = String::from_utf8(device.read("note.md")).unwrap();
            let newest = format!("- {} {}\n", device.name, lines - 2);
            assert!(text.contains(&newest), "{}: its own lines stay: {text}", device.name);
            device.write("note.md", text.replace(&newest, &format!("{newest}- {} {}\n", device.name, lines - 1)));
        }
        let tree = world.settle(&all);
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["note.md"], "no conflict copies");
        let text = String::from_utf8(tree["note.md"].clone()).unwrap();
        let expected: String = devices.iter().map(|d| section(&d.name, lines)).collect();
        assert_eq!(text, format!("# Note\n\n{expected}"));
    }
}
