//! `memsync log` lists the steps that sync took on a machine.

use serde_json::Value;

use crate::common::world::{Device, World, eventually};

/// The path, the action and the device of each entry.
fn actions(device: &Device, args: &[&str]) -> Vec<(String, String, Value)> {
    let document = device.ok(&[&["log", "--json"], args].concat()).json();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap().to_owned();
    let actions = document["actions"].as_array().unwrap();
    actions.iter().map(|entry| (text(entry, "path"), text(entry, "action"), entry["device"].clone())).collect()
}

#[test]
fn log_tells_what_happened_after_a_restart() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    assert!(a.ok(&["log"]).out.starts_with("Sync has done nothing"));
    a.write("n/plan.md", "one");
    // Each of these commands is a process of its own.
    a.ok(&["sync"]);
    b.ok(&["sync"]);
    a.remove("n/plan.md");
    a.ok(&["sync"]);
    b.ok(&["sync"]);
    let entry = |action: &str, device: Value| ("n/plan.md".to_owned(), action.to_owned(), device);
    assert_eq!(actions(&a, &[]), [entry("upload", Value::Null), entry("delete", Value::Null)]);
    assert_eq!(actions(&b, &[]), [entry("download", "a".into()), entry("trash", Value::Null)]);
    assert_eq!(actions(&b, &["n"]).len(), 2, "below a folder");
    assert!(actions(&b, &["n/other.md"]).is_empty());
    assert!(actions(&b, &["--since", "0s ago"]).is_empty());
    let shown = b.ok(&["log", "n/plan.md", "--since", "1 hour ago"]).out;
    assert!(shown.contains("downloaded n/plan.md from a\n"), "{shown}");
    let refused = b.cli(&["log", "--since", "soon"]);
    assert_eq!(refused.code, 2, "{refused:?}");
}

#[test]
fn log_goes_on_with_follow() {
    let world = World::new();
    let a = world.device("a");
    a.start();
    a.write("one.md", "1");
    eventually("it is logged", || !actions(&a, &[]).is_empty());
    let follow = a.begin(&["log", "--follow", "--json"], &[]);
    a.write("two.md", "2");
    let paths: Vec<Value> =
        follow.lines(2).iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].clone()).collect();
    assert_eq!(paths, ["one.md", "two.md"]);
}
