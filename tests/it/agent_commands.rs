//! `memsync put`, `append`, `rm` and `cat`, by real processes, with a running agent and without one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use memsync::digest::Md5;
use serde_json::Value;

use crate::common::world::{Begun, Device, Ran, World, eventually};

fn md5(text: &str) -> String {
    Md5::of(text.as_bytes()).to_string()
}

fn feed(device: &Device, args: &[&str], input: &str) -> Ran {
    device.begin_with_input(args, input, &[]).ended()
}

/// Runs the test on a device without an agent, then on one with a running agent.
fn with_and_without_an_agent(test: impl Fn(&Device)) {
    let world = World::new();
    let (alone, running) = (world.device("alone"), world.device_with("running", "max_delete = 1.0"));
    test(&alone);
    running.start();
    test(&running);
}

#[test]
fn put_and_cat_round_trip() {
    with_and_without_an_agent(|device| {
        let text = "colour \u{1b}[31m, ü, no newline at the end";
        let put = feed(device, &["put", "new/deep/note.md"], text);
        assert_eq!((put.code, put.out), (0, format!("{}\n", md5(text))));
        assert_eq!(device.ok(&["cat", "new/deep/note.md"]).out, text);
        let put = feed(device, &["put", "new/deep/note.md", "--json"], "second").json();
        assert_eq!((&put["md5"], &put["size"]), (&Value::from(md5("second")), &Value::from(6)));
        assert_eq!(put["path"], device.at("new/deep/note.md").to_str().unwrap());
        assert!(device.kept().contains(&text.as_bytes().to_vec()), "the replaced text is in history");
        let cat = device.ok(&["cat", "new/deep/note.md", "--json"]).json();
        assert_eq!((&cat["text"], &cat["md5"]), (&Value::from("second"), &put["md5"]));
        assert_eq!(device.cli(&["cat", "missing.md"]).code, 1);
        assert_eq!(device.staged(), Vec::<String>::new());
        assert_eq!(fs::read_dir(device.at(".memsync/fetched")).unwrap().count(), 0);
    });
}

#[test]
fn failed_condition_changes_nothing() {
    with_and_without_an_agent(|device| {
        device.write("note.md", "first");
        let other = md5("other");
        for (args, found) in [
            (&["put", "note.md", "--if-new"][..], Some("first")),
            (&["put", "note.md", "--if-md5", &other], Some("first")),
            (&["put", "missing.md", "--if-md5", &other], None),
            (&["rm", "note.md", "--if-md5", &other], Some("first")),
            (&["rm", "missing.md", "--if-md5", &other], None),
        ] {
            let ran = feed(device, args, "second");
            let current = found.map_or("none".to_owned(), md5);
            assert_eq!((ran.code, ran.out.as_str()), (9, ""), "{args:?}: {ran:?}");
            assert!(ran.err.ends_with(&format!("current md5: {current}\n")), "{args:?}: {ran:?}");
            let error = feed(device, &[args, &["--json"]].concat(), "second").json()["error"].take();
            assert_eq!(error["code"], "condition_failed");
            assert!(error["message"].as_str().unwrap().contains(args[1]), "{error}");
            assert_eq!(error["current_md5"], Value::from(found.map(md5)));
        }
        assert_eq!(device.read("note.md"), b"first");
        assert!(!device.at("missing.md").exists());
        assert_eq!(feed(device, &["put", "note.md", "--if-md5", &md5("first")], "second").code, 0);
        assert_eq!(feed(device, &["put", "new.md", "--if-new"], "new").code, 0);
        assert_eq!((device.read("note.md"), device.read("new.md")), (b"second".to_vec(), b"new".to_vec()));
    });
}

#[test]
fn removed_file_can_be_restored() {
    with_and_without_an_agent(|device| {
        device.write("d/note.md", "first");
        let removed = device.ok(&["rm", "d/note.md", "--if-md5", &md5("first"), "--json"]).json();
        assert_eq!((&removed["md5"], &removed["size"]), (&Value::from(md5("first")), &Value::from(5)));
        assert!(!device.at("d/note.md").exists());
        let missing = device.cli(&["rm", "d/note.md"]);
        assert_eq!(missing.code, 1);
        assert!(missing.err.contains("there is no file"), "{missing:?}");
        device.ok(&["restore", "d/note.md"]);
        assert_eq!(device.read("d/note.md"), b"first");
        assert!(device.ok(&["rm", "d/note.md"]).out.contains("`memsync restore "));
    });
}

#[test]
fn sixteen_appends_at_once_lose_no_line() {
    with_and_without_an_agent(|device| {
        device.write("log.md", "# Log");
        let line = |n: usize| format!("line {n:02}");
        let begun: Vec<Begun> = (0..16).map(|n| device.begin_with_input(&["append", "log.md"], line(n), &[])).collect();
        for ran in begun.into_iter().map(Begun::ended) {
            assert_eq!(ran.code, 0, "{ran:?}");
        }
        let text = String::from_utf8(device.read("log.md")).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.remove(0), "# Log");
        lines.sort_unstable();
        assert_eq!(lines, (0..16).map(line).collect::<Vec<_>>());
        assert_eq!((device.copies(), device.staged()), (vec![], vec![]));
    });
}

#[test]
fn append_creates_a_file_and_separates_lines() {
    with_and_without_an_agent(|device| {
        for (input, text) in [("a", "a"), ("b\n", "a\nb\n"), ("", "a\nb\n"), ("c", "a\nb\nc")] {
            assert_eq!(feed(device, &["append", "n/log.md"], input).out, format!("{}\n", md5(text)));
            assert_eq!(device.read("n/log.md"), text.as_bytes());
        }
    });
}

#[test]
fn one_of_eight_puts_with_one_md5_wins() {
    with_and_without_an_agent(|device| {
        device.write("note.md", "base");
        let base = md5("base");
        let text = |n: usize| format!("by {n}");
        let begun: Vec<Begun> =
            (0..8).map(|n| device.begin_with_input(&["put", "note.md", "--if-md5", &base], text(n), &[])).collect();
        let codes: Vec<i32> = begun.into_iter().map(|b| b.ended().code).collect();
        let winners: Vec<usize> = (0..8).filter(|n| codes[*n] == 0).collect();
        assert_eq!(winners.len(), 1, "{codes:?}");
        assert!(codes.iter().all(|code| [0, 9].contains(code)), "{codes:?}");
        assert_eq!(device.read("note.md"), text(winners[0]).as_bytes());
        assert_eq!((device.copies(), device.staged()), (vec![], vec![]));
    });
}

/// Starts a command that stops before it exchanges the file. Saves "edited" there as an editor does, and lets the command
/// go on through `passes` attempts.
#[cfg(debug_assertions)]
fn edited_in_between(world: &World, device: &Device, args: &[&str], passes: usize) -> Ran {
    let stops = world.path().join(format!("stops-{}", args[0]));
    fs::create_dir(&stops).unwrap();
    let spec = format!("{}:swap.before", stops.display());
    let begun = device.begin_with_input(args, "by the program", &[("MEMSYNC_STOP_AT", &spec)]);
    let stop = stops.join("swap.before");
    for pass in 0..passes {
        eventually("the command stops", || stop.exists());
        if pass == 0 {
            device.write("saved.tmp", "edited");
            device.rename("saved.tmp", "note.md");
        }
        fs::remove_file(&stop).unwrap();
    }
    begun.ended()
}

#[cfg(debug_assertions)] // A release build has no stops.
#[test]
fn edit_of_the_last_moment_fails_the_condition() {
    let world = World::new();
    let device = world.device("a");
    device.write("note.md", "base");
    let ran = edited_in_between(&world, &device, &["put", "note.md", "--if-md5", &md5("base")], 1);
    assert_eq!(ran.code, 9, "{ran:?}");
    assert!(ran.err.contains(&md5("edited")), "{ran:?}");
    assert_eq!(device.read("note.md"), b"edited");
    assert_eq!((device.copies(), device.staged(), device.kept()), (vec![], vec![], vec![]));
}

#[cfg(debug_assertions)]
#[test]
fn append_keeps_an_edit_of_the_last_moment() {
    let world = World::new();
    let device = world.device("a");
    device.write("note.md", "base");
    let ran = edited_in_between(&world, &device, &["append", "note.md"], 2);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(device.read("note.md"), b"edited\nby the program");
    assert_eq!((device.copies(), device.staged()), (vec![], vec![]));
}

#[cfg(target_os = "linux")]
#[test]
fn file_open_for_writing_is_not_replaced() {
    let world = World::new();
    let device = world.device("a");
    device.write("note.md", "first");
    let open = fs::OpenOptions::new().append(true).open(device.at("note.md")).unwrap();
    for command in ["put", "append", "rm"] {
        let ran = feed(&device, &[command, "note.md"], "second");
        assert_eq!(ran.code, 1, "{command}: {ran:?}");
        assert!(ran.err.contains("has it open for writing") && ran.err.contains("nothing was changed"), "{ran:?}");
    }
    drop(open);
    assert_eq!(device.read("note.md"), b"first");
    assert_eq!(feed(&device, &["put", "note.md"], "second").code, 0);
}

#[test]
fn paths_that_are_not_synced_are_refused() {
    let world = World::new();
    let device = world.device("a");
    let outside = world.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("x.md"), "outside").unwrap();
    device.write("real/x.md", "inside");
    device.write("note.md~", "of an editor");
    symlink("real/x.md", device.at("link.md")).unwrap();
    symlink("real", device.at("inner")).unwrap();
    symlink(&outside, device.at("outer")).unwrap();
    let by_link = device.at("inner/x.md");
    for (path, why) in [
        (".memsync/id", "private to memsync"),
        ("real/.MEMSYNC/x", "private to memsync"),
        ("link.md", "is a symlink"),
        ("inner/x.md", "symlink"),
        (by_link.to_str().unwrap(), "symlink"),
        ("outer/x.md", "is a symlink"),
        ("../outside/x.md", "none of the synced folders"),
        (outside.join("x.md").to_str().unwrap(), "none of the synced folders"),
        ("real", "there is a folder at this path"),
        (".", "the path is empty"),
        ("note.md~", "is ignored"),
    ] {
        for command in ["put", "append", "rm", "cat"] {
            let ran = feed(&device, &[command, path], "new");
            assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{command} {path}: {ran:?}");
            assert!(ran.err.contains(why), "{command} {path}: {ran:?}");
        }
    }
    let text = |at: &Path| fs::read_to_string(at).unwrap();
    assert_eq!((text(&outside.join("x.md")), text(&device.at("real/x.md"))), ("outside".into(), "inside".into()));
    assert_eq!(feed(&device, &["put", "real/../top.md"], "top").code, 0);
    assert_eq!(device.read("top.md"), b"top");
}

#[test]
fn content_over_the_size_limit_is_refused() {
    let world = World::new();
    let device = world.device_with("a", "max_file_size = \"1KiB\"");
    device.write("log.md", "a".repeat(1000));
    for (args, input) in [(["put", "log.md"], "b".repeat(1025)), (["append", "log.md"], "b".repeat(24))] {
        let ran = feed(&device, &args, &input);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains("sync.max_file_size") && ran.err.contains("nothing was changed"), "{args:?}: {ran:?}");
    }
    assert_eq!(device.read("log.md"), "a".repeat(1000).as_bytes());
    assert_eq!(feed(&device, &["append", "log.md"], &"b".repeat(23)).code, 0);
    assert_eq!(feed(&device, &["put", "log.md"], &"b".repeat(1024)).code, 0);
    device.write("large.md", "a".repeat(1025));
    assert_eq!(device.cli(&["cat", "large.md"]).code, 1);
    assert_eq!(device.staged(), Vec::<String>::new());
}

#[test]
fn folder_without_its_identity_is_not_written() {
    let world = World::new();
    let device = world.device("a");
    device.write("note.md", "first");
    device.start();
    device.wait();
    device.stop();
    fs::rename(device.at(".memsync"), device.home.join("away")).unwrap();
    let ran = feed(&device, &["put", "note.md"], "second");
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.err.contains(".memsync/id"), "{ran:?}");
    assert_eq!(device.read("note.md"), b"first");
    assert!(!device.at(".memsync").exists());
}

#[test]
fn change_on_one_machine_is_read_on_the_other() {
    let world = World::new();
    let (a, b) = (world.device_with("a", "max_delete = 1.0"), world.device_with("b", "max_delete = 1.0"));
    a.start();
    b.start();
    assert_eq!(feed(&a, &["put", "note.md"], "from a\n").code, 0);
    eventually("b has the text", || b.cli(&["cat", "note.md"]).out == "from a\n");
    assert_eq!(feed(&b, &["append", "note.md"], "from b\n").code, 0);
    eventually("a has both lines", || a.cli(&["cat", "note.md"]).out == "from a\nfrom b\n");
    a.ok(&["rm", "note.md"]);
    eventually("the deletion comes to b", || b.cli(&["cat", "note.md"]).code == 1);
    assert!(world.settle(&[&a, &b]).is_empty());
}
