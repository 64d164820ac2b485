//! Folders with a namespace. Each namespace of a proxy is a separate folder.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::world::{Device, Files, World, eventually, files_below};

/// Slash and space must be encoded on the wire.
const TEAM: &str = "team/our notes";
const TEAM_INDEX: &str = "/sync/team/our%20notes";

/// A device whose folder is the team's namespace.
fn device<'w>(world: &'w World, name: &str) -> Device<'w> {
    let device = world.device(name);
    device.write_config("conflict = \"copy\"", &[(&device.folder, &format!("namespace = {TEAM:?}"))]);
    device
}

fn index(world: &World, target: &str) -> Value {
    serde_json::from_slice(&world.asker()(target).1).unwrap()
}

/// As [`World::settle`], for the team's namespace.
#[track_caller]
fn settle(world: &World, devices: &[&Device]) -> Files {
    let mut trees = Vec::new();
    eventually("all folders are equal", || {
        devices.iter().for_each(|d| d.wait());
        trees = devices.iter().map(|d| d.tree()).collect::<Vec<_>>();
        let index = index(world, TEAM_INDEX);
        let live = index["files"].as_object().unwrap().values().filter(|e| e["is_deleted"] == false).count();
        trees.iter().all(|tree| *tree == trees[0]) && trees[0].len() == live
    });
    trees.swap_remove(0)
}

#[test]
fn edits_and_deletions_go_both_ways_in_a_namespace() {
    let world = World::new();
    let (a, b) = (device(&world, "a"), device(&world, "b"));
    a.write("topics/ai.md", "one");
    a.write("gone.md", "old");
    a.start();
    b.start();
    eventually("b has them", || b.has("topics/ai.md", "one") && b.has("gone.md", "old"));
    b.write("topics/ai.md", "two, and longer");
    eventually("a has the edit", || a.has("topics/ai.md", "two, and longer"));
    // a holds the version of b's write now.
    a.write("topics/ai.md", "3");
    a.remove("gone.md");
    eventually("b has both", || b.has("topics/ai.md", "3") && !b.at("gone.md").exists());
    assert_eq!(settle(&world, &[&a, &b]), [("topics/ai.md".to_owned(), b"3".to_vec())].into());
    assert_eq!((a.folder_status()["namespace"].clone(), a.copies().len()), (TEAM.into(), 0));
    assert!(a.ok(&["status"]).out.contains("(namespace team/our notes)"));

    let listed = index(&world, TEAM_INDEX);
    assert_eq!(listed["files"]["gone.md"]["is_deleted"], true);
    assert!(listed["files"]["topics/ai.md"]["version"].is_u64());
    assert_eq!(world.index()["files"], serde_json::json!({}), "nothing is in the flat dialect's namespace");
    // The base has the written version.
    a.stop();
    let state = files_below(&a.home.join("state"));
    let container = state.iter().find(|(name, _)| name.ends_with(".json") && !name.contains("status"));
    let container: Value = serde_json::from_slice(container.expect("a container").1).unwrap();
    let entries = container["entries"].as_array().unwrap();
    let entry = entries.iter().find(|e| e["path"] == "topics/ai.md").unwrap();
    assert_eq!(entry["remote"]["version"], listed["files"]["topics/ai.md"]["version"]);
}

#[test]
fn recreated_file_propagates_in_a_namespace() {
    let world = World::new();
    let (a, b) = (device(&world, "a"), device(&world, "b"));
    a.write("note.md", "same");
    a.write("blob/inside.md", "in a folder called blob");
    a.start();
    b.start();
    settle(&world, &[&a, &b]);
    assert!(b.has("blob/inside.md", "in a folder called blob"));
    a.remove("note.md");
    eventually("b deletes it", || !b.at("note.md").exists());
    settle(&world, &[&a, &b]);
    b.write("note.md", "same");
    eventually("a has it again", || a.has("note.md", "same"));
    assert_eq!(settle(&world, &[&a, &b]).len(), 2);
}

#[test]
fn edits_and_deletes_made_offline_converge() {
    let world = World::new();
    let (a, b) = (device(&world, "a"), device(&world, "b"));
    for name in ["both.md", "same.md", "edit-delete.md", "delete-edit.md", "gone.md"] {
        a.write(name, "base");
    }
    a.start();
    b.start();
    settle(&world, &[&a, &b]);
    // a cannot reach the proxy, and b is stopped later.
    a.stop();
    b.write("both.md", "by b");
    b.write("same.md", "the same new words");
    b.remove("edit-delete.md");
    b.write("delete-edit.md", "edited by b");
    b.wait();
    eventually("the proxy knows", || index(&world, TEAM_INDEX)["files"]["edit-delete.md"]["is_deleted"] == true);
    b.stop();
    a.write("both.md", "by a");
    a.write("same.md", "the same new words");
    a.write("edit-delete.md", "edited by a");
    a.remove("delete-edit.md");
    a.remove("gone.md");
    world.stop_proxy();
    a.start();
    eventually("a misses the proxy", || a.status()["proxy"]["reachable"] == false);
    a.write("new.md", "made offline");
    world.start_proxy();
    b.start();
    eventually("b has all files", || b.has("new.md", "made offline") && b.has("edit-delete.md", "edited by a"));
    let tree = settle(&world, &[&a, &b]);
    assert_eq!(tree["both.md"], b"by b", "the first upload keeps the name");
    let copies = a.copies();
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert_eq!(tree[&copies[0]], b"by a");
    assert_eq!(tree["same.md"], b"the same new words");
    assert_eq!(tree["delete-edit.md"], b"edited by b", "an edit beats a delete");
    assert!(!tree.contains_key("gone.md"));
    assert_eq!(tree.len(), 6, "{:?}", tree.keys());
}

#[test]
fn agent_keeps_namespaces_of_one_proxy_apart() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let folders = |d: &Device| ["flat", "team", "own"].map(|name| d.home.join(name));
    for device in [&a, &b] {
        let [flat, team, own] = folders(device);
        [&flat, &team, &own].into_iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
        let own_key = format!("namespace = \"people/{}\"", device.name);
        let keys: [(&Path, &str); 3] = [(&flat, ""), (&team, "namespace = \"team\""), (&own, &own_key)];
        device.write_config("", &keys);
    }
    for folder in folders(&a) {
        fs::write(folder.join("note.md"), folder.file_name().unwrap().as_encoded_bytes()).unwrap();
    }
    a.start();
    b.start();
    let [flat, team, own] = folders(&b);
    eventually("b has what both share", || {
        fs::read(flat.join("note.md")).is_ok_and(|c| c == b"flat")
            && fs::read(team.join("note.md")).is_ok_and(|c| c == b"team")
    });
    fs::write(team.join("note.md"), "changed by b").unwrap();
    let [flat_of_a, team_of_a, own_of_a] = folders(&a);
    eventually("a has the change", || fs::read(team_of_a.join("note.md")).is_ok_and(|c| c == b"changed by b"));
    a.wait();
    b.wait();
    assert_eq!(fs::read(flat_of_a.join("note.md")).unwrap(), b"flat");
    assert_eq!(fs::read(own_of_a.join("note.md")).unwrap(), b"own");
    assert!(files_below(&own).is_empty(), "a's own is not b's");
    let of_a = index(&world, "/sync/people/a");
    assert_eq!(of_a["files"].as_object().unwrap().len(), 1);
    let status = a.status();
    let namespaces: Vec<_> = status["folders"].as_array().unwrap().iter().map(|f| &f["namespace"]).collect();
    assert_eq!(namespaces, ["", "team", "people/a"]);
}

#[test]
fn folder_with_a_changed_namespace_halts() {
    let world = World::new();
    let a = device(&world, "a");
    a.write("note.md", "x");
    a.start();
    a.wait();
    a.stop();
    a.write_config("", &[(&a.folder, "namespace = \"another\"")]);
    a.start();
    let halt = a.halted("server_reset");
    assert!(halt["reason"].as_str().unwrap().contains("namespace"), "{halt}");
    assert_eq!(index(&world, "/sync/another")["files"], serde_json::json!({}), "the namespace is empty");
    assert!(a.has("note.md", "x"));
}

#[test]
fn failed_folder_delays_no_other_in_a_sync() {
    let world = World::new();
    let device = world.device("a");
    let (gone, other) = (device.home.join("gone"), device.home.join("other"));
    fs::create_dir(&gone).unwrap();
    fs::create_dir(&other).unwrap();
    let folders = [(&*gone, "namespace = \"one\""), (&*other, "namespace = \"two\"")];
    device.write_config("", &folders);
    device.ok(&["sync"]);
    fs::remove_dir_all(&gone).unwrap();
    fs::write(other.join("note.md"), "text").unwrap();
    let ran = device.cli(&["sync"]);
    assert!(ran.code != 0 && ran.err.contains("gone"), "{ran:?}");
    assert_eq!(world.asker()("/two/blob/note.md").1, b"text");
}
