//! The commands, with running agents and proxies.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::world::{Device, World, eventually};

#[test]
fn sync_works_without_an_agent_and_dry_run_changes_nothing() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("note.md", "hello");
    a.write("sub/other.md", "other");
    let dry_run = a.cli(&["sync", "--dry-run", "--json"]);
    assert_eq!(dry_run.code, 4, "{dry_run:?}");
    let steps = dry_run.json()["steps"].as_array().unwrap().clone();
    let planned: Vec<_> = steps.iter().map(|s| (s["action"].as_str().unwrap(), s["path"].as_str().unwrap())).collect();
    assert_eq!(planned, [("upload", "note.md"), ("upload", "sub/other.md")]);
    assert_eq!(world.index()["files"].as_object().unwrap().len(), 0, "nothing was uploaded");

    let done = a.cli(&["sync", "--json"]);
    assert_eq!((done.code, &done.json()["uploaded"]), (0, &Value::from(2)));
    let dry_run = b.cli(&["sync", "--dry-run", "--json"]);
    assert_eq!((dry_run.code, dry_run.json()["steps"].as_array().unwrap().len()), (4, 2));
    assert!(b.tree().is_empty(), "nothing was downloaded");
    assert_eq!(b.ok(&["sync", "--json"]).json()["downloaded"], 2);
    assert_eq!(b.tree(), a.tree());

    a.remove("note.md");
    assert_eq!(a.cli(&["sync", "--dry-run", "--json"]).json()["steps"][0]["action"], "delete");
    assert!(world.blob("note.md").is_some());
    assert_eq!(a.ok(&["sync", "--json"]).json()["deleted"], 1);
    assert_eq!(b.ok(&["sync", "--json"]).json()["trashed"], 1);
    assert_eq!(b.tree(), a.tree());
    let nothing = b.ok(&["sync", "--json"]).json();
    assert_eq!((&nothing["in_sync"], &nothing["downloaded"]), (&true.into(), &0.into()));
    assert_eq!(b.cli(&["sync", "--dry-run"]).code, 0);
}

#[test]
fn dry_run_goes_through_the_running_agent() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"1h\"");
    a.start();
    a.wait();
    assert_eq!(a.cli(&["sync", "--dry-run"]).code, 0);
    a.ok(&["pause"]);
    a.write("note.md", "hello");
    let dry_run = a.cli(&["sync", "--dry-run", "--json"]);
    let step = &dry_run.json()["steps"][0];
    assert_eq!((dry_run.code, step["action"].as_str(), step["path"].as_str()), (4, Some("upload"), Some("note.md")));
    assert!(world.blob("note.md").is_none(), "nothing was uploaded");
    a.ok(&["resume"]);
    a.wait();
    assert!(world.blob("note.md").is_some(), "the dry run took nothing from the cycle");
}

#[test]
fn dry_run_through_the_agent_exits_with_the_cause() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"1h\"");
    a.start();
    a.wait();
    world.stop_proxy();
    let ran = a.cli(&["sync", "--dry-run"]);
    assert_eq!((ran.code, ran.err.contains(&world.url())), (5, true), "{ran:?}");
    world.start_proxy();
    crate::common::world::write_private(&a.home.join("token"), "wrong");
    a.signal(rustix::process::Signal::HUP);
    eventually("it has the wrong token", || a.status()["state"] == "auth_required");
    assert_eq!(a.cli(&["sync", "--dry-run"]).code, 6);
    crate::common::world::write_private(&a.home.join("token"), "open-sesame");
    a.signal(rustix::process::Signal::HUP);
    a.wait();
    // The folder is gone, and then the agent waits for it.
    let away = a.home.join("away");
    fs::rename(&a.folder, &away).unwrap();
    for _ in 0..2 {
        let ran = a.cli(&["sync", "--dry-run"]);
        assert_eq!((ran.code, ran.err.contains("is not there")), (7, true), "{ran:?}");
        assert_eq!(a.cli(&["sync"]).code, 7);
        a.halted("root_missing");
    }
}

/// A hard link to a file of the folder, outside of it. The watcher does not see writes through it.
fn outside_link(device: &Device, path: &str) -> PathBuf {
    let outside = device.home.join("outside");
    fs::write(&outside, "what was there").unwrap();
    fs::hard_link(&outside, device.at(path)).unwrap();
    outside
}

#[test]
fn sync_through_the_agent_returns_when_it_is_done() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"1h\"\nrescan = \"1h\"");
    let unheard = outside_link(&a, "note.md");
    a.start();
    a.wait();
    fs::write(unheard, "news").unwrap();
    let ran = a.ok(&["sync"]);
    assert_eq!(world.blob("note.md").unwrap(), b"news", "{ran:?}");
}

#[test]
fn sync_exits_with_the_cause() {
    let world = World::new();
    let a = world.device("a");
    a.write("note.md", "hello");
    crate::common::world::write_private(&a.home.join("token"), "wrong");
    assert_eq!(a.cli(&["sync"]).code, 6);
    world.stop_proxy();
    let ran = a.cli(&["sync"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.err.contains(&world.url()), "{ran:?}");
}

#[test]
fn pause_keeps_changes_here_and_resume_sends_them() {
    let world = World::new();
    let (a, b) = (world.device_with("a", "interval = \"200ms\""), world.device("b"));
    a.start();
    b.start();
    a.wait();
    a.ok(&["pause"]);
    eventually("it is paused", || a.status()["state"] == "paused");
    a.write("from-a.md", "a");
    b.write("from-b.md", "b");
    b.wait();
    assert_eq!(a.cli(&["wait", "--timeout", "600ms"]).code, 4, "several intervals pass");
    assert!(world.blob("from-a.md").is_none() && !a.at("from-b.md").exists());
    assert_eq!(a.status()["state"], "paused");
    a.ok(&["resume"]);
    assert_eq!(world.settle(&[&a, &b]).len(), 2);

    a.ok(&["pause", "--for", "1s"]);
    a.write("later.md", "c");
    eventually("sync goes on by itself", || b.has("later.md", "c"));
}

#[test]
fn version_replaced_or_deleted_remotely_is_restored() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("note.md", "first");
    a.write("dir/gone.md", "to be deleted");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.write("note.md", "second");
    a.remove("dir/gone.md");
    eventually("b follows", || b.has("note.md", "second") && !b.at("dir").exists());
    world.settle(&[&a, &b]);
    let versions = b.ok(&["history", "note.md", "--json"]).json()["versions"].clone();
    assert_eq!((versions.as_array().unwrap().len(), &versions[0]["kind"]), (1, &"replaced".into()));
    let deleted = b.ok(&["restore", "--deleted", "--json"]).json()["versions"].clone();
    assert_eq!((deleted.as_array().unwrap().len(), &deleted[0]["path"]), (1, &"dir/gone.md".into()));
    // The agents run, and sync the restored file like any edit.
    b.ok(&["restore", "note.md"]);
    b.ok(&["restore", "dir/gone.md"]);
    eventually("a has both", || a.has("note.md", "first") && a.has("dir/gone.md", "to be deleted"));
    world.settle(&[&a, &b]);
    // The text that the restore replaced can be restored too.
    b.ok(&["restore", "note.md"]);
    eventually("a has it", || a.has("note.md", "second"));
    assert_eq!(world.settle(&[&a, &b]).len(), 2);
    assert!(a.copies().is_empty());
}

#[test]
fn restore_loses_no_text_while_the_agent_reopens_its_folder() {
    let world = World::new();
    let (a, b) = world.after_an_edit();
    for _ in 0..10 {
        b.signal(rustix::process::Signal::HUP);
        let displaced = b.read("note.md");
        b.ok(&["restore", "note.md"]);
        assert_ne!(b.read("note.md"), displaced);
        assert!(b.kept().contains(&displaced), "the displaced text is in history");
    }
    world.settle(&[&a, &b]);
    assert!(b.staged().is_empty());
}

/// Keys with their types. `?` marks a type that may be null. The keys of an array are those of its first element.
const STATUS: &[(&str, &str)] = &[
    ("schema", "number"),
    ("state", "string"),
    ("reason", "string?"),
    ("in_sync", "boolean"),
    ("agent.running", "boolean"),
    ("agent.pid", "number?"),
    ("agent.version", "string"),
    ("agent.uptime_s", "number"),
    ("device", "string"),
    ("proxy.url", "string"),
    ("proxy.reachable", "boolean"),
    ("proxy.capabilities", "array"),
    ("folders.0.path", "string"),
    ("folders.0.namespace", "string"),
    ("folders.0.state", "string"),
    ("folders.0.files", "number"),
    ("folders.0.bytes", "number"),
    ("folders.0.watcher", "string"),
    ("folders.0.last_success", "string?"),
    ("folders.0.next_sync_s", "number?"),
    ("folders.0.pending.upload", "number"),
    ("folders.0.pending.download", "number"),
    ("folders.0.pending.delete", "number"),
    ("folders.0.pending.held_delete", "number"),
    ("folders.0.conflicts", "number"),
    ("folders.0.problems", "array"),
    ("folders.0.halt", "object?"),
    ("recent", "array"),
];

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[track_caller]
fn has_keys(document: &Value, keys: &[(&str, &str)]) {
    for (name, wanted) in keys {
        let pointer = format!("/{}", name.replace('.', "/"));
        let value = document.pointer(&pointer).unwrap_or_else(|| panic!("{name} is missing: {document}"));
        let ok = kind(value) == wanted.trim_end_matches('?') || (wanted.ends_with('?') && value.is_null());
        assert!(ok, "{name} is a {}: {document}", kind(value));
    }
}

#[test]
fn status_json_has_all_promised_keys() {
    let world = World::new();
    let a = world.device("a");
    has_keys(&a.status(), STATUS);
    a.write("note.md", "hello");
    std::os::unix::fs::symlink("note.md", a.at("link")).unwrap();
    a.start();
    a.wait();
    let status = a.status();
    has_keys(&status, STATUS);
    has_keys(
        &status,
        &[
            ("folders.0.problems.0.path", "string"),
            ("folders.0.problems.0.problem", "string"),
            ("folders.0.problems.0.since", "string"),
            ("folders.0.last_success", "string"),
            ("folders.0.next_sync_s", "number"),
            ("agent.pid", "number"),
            ("recent.0.at", "string"),
            ("recent.0.path", "string"),
            ("recent.0.action", "string"),
            ("recent.0.outcome", "string"),
        ],
    );
    assert_eq!(status["schema"], 1);
    assert_eq!((&status["state"], &status["in_sync"]), (&"idle".into(), &true.into()));
    assert_eq!((&status["folders"][0]["files"], &status["folders"][0]["bytes"]), (&1.into(), &5.into()));
    assert_eq!((&status["device"], &status["proxy"]["url"]), (&"a".into(), &world.url().into()));
    assert_eq!(status["folders"][0]["path"], a.folder.to_str().unwrap());
    assert_eq!(status["recent"][0]["action"], "upload");
    let proxy = &status["proxy"];
    assert_eq!(proxy["reachable"], true);
    assert!(proxy["capabilities"].to_string().contains("strong-index"), "{proxy}");
    // Without the agent, the status comes from its files.
    a.stop();
    let ran = a.cli(&["status", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let status = ran.json();
    has_keys(&status, STATUS);
    assert_eq!((&status["state"], &status["in_sync"]), (&"stopped".into(), &false.into()));
    assert_eq!(status["folders"][0]["files"], 1);
}

#[test]
fn in_sync_is_false_from_the_moment_of_a_write() {
    let world = World::new();
    let a = world.device("a");
    a.start();
    a.wait();
    for n in 0..20 {
        a.write(&format!("{n}.md"), "x");
        a.wait();
        assert!(world.blob(&format!("{n}.md")).is_some(), "wait has seen the earlier write: {n}");
    }
}

#[test]
fn wait_ends_at_its_timeout_or_when_in_sync() {
    let world = World::new();
    let a = world.device("a");
    a.write("note.md", "hello");
    a.start();
    a.wait();
    world.stop_proxy();
    a.write("note.md", "offline");
    eventually("the agent notices", || a.status()["state"] == "offline");
    let begun = Instant::now();
    let ran = a.cli(&["wait", "--timeout", "3s"]);
    let took = begun.elapsed();
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(20), "{took:?}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let home = a.home.clone();
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_memsync"));
            command.env_clear().env("MEMSYNC_HOME", &home).args(["wait", "--timeout", "60s"]);
            command.output().unwrap().status.code()
        });
        assert!(!waiting.is_finished());
        world.start_proxy();
        assert_eq!(waiting.join().unwrap(), Some(0));
    });
    assert_eq!(world.blob("note.md").unwrap(), b"offline");
}

#[test]
fn usr1_syncs_at_once() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"1h\"\nrescan = \"1h\"");
    let unheard = outside_link(&a, "note.md");
    a.start();
    a.wait();
    fs::write(unheard, "news").unwrap();
    a.signal(rustix::process::Signal::USR1);
    eventually("the file is uploaded", || world.blob("note.md").is_some_and(|c| c == b"news"));
}

#[test]
fn term_leaves_nothing_behind() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    a.write("note.md", "hello");
    eventually("b has it", || b.has("note.md", "hello"));
    a.stop();
    b.stop();
    for device in [&a, &b] {
        assert!(device.staged().is_empty());
        assert!(!device.home.join("memsync.sock").exists(), "the socket is gone");
        assert_eq!(device.cli(&["status"]).code, 3);
    }
    let state: Vec<_> = fs::read_dir(a.home.join("state")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!state.iter().any(|n| n.to_string_lossy().contains(".tmp.")), "{state:?}");
}
