//! Memory folders inside memory folders.

use std::fs;
use std::path::Path;

use crate::common::world::{Device, World, eventually};

/// Runs a command for `dir` with its own config, and expects it to refuse.
#[track_caller]
fn refused(device: &Device, config: &str, args: &[&str], dir: &Path) {
    let config = device.home.join(config);
    let out = device.cli(&[&["--config", config.to_str().unwrap()], args, &[dir.to_str().unwrap()]].concat());
    assert_eq!(out.code, 2, "{args:?}: {out:?}");
    assert!(out.err.contains("is a memory folder already"), "{args:?}: {out:?}");
    assert!(!config.exists(), "nothing was written");
}

#[test]
fn folder_inside_a_synced_one_is_refused() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("inner/note.md", "note");
    a.start();
    a.wait();
    let inner = a.at("inner");
    b.write_config("", &[(&inner, "")]);
    let out = b.cli_until_refused();
    assert_eq!(out.code, 2, "{out:?}");
    let names = |text: &str| text.contains(a.folder.to_str().unwrap()) && text.contains(inner.to_str().unwrap());
    assert!(names(&out.err) && out.err.contains("is a memory folder already"), "{out:?}");
    assert_eq!(b.cli(&["sync"]).code, 2);
    let token = b.home.join("token");
    let init = ["init", "--proxy", &world.url(), "--token-file", token.to_str().unwrap()];
    refused(&b, "init.toml", &init, &inner);
    refused(&b, "init.toml", &init, &a.at("not/made/yet"));
    refused(&b, "up.toml", &["up", "--listen", "127.0.0.1:0"], &inner);
    assert_eq!(a.tree().into_keys().collect::<Vec<_>>(), ["inner/note.md"]);
    assert!(!inner.join(".memsync").exists() && !a.at("not").exists());
}

#[test]
fn folder_around_a_synced_one_is_refused() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("note.md", "note");
    a.start();
    a.wait();
    let outer = world.path().join("outer");
    fs::create_dir_all(outer.join("deep")).unwrap();
    a.stop();
    fs::rename(&a.folder, outer.join("deep/notes")).unwrap();
    b.write_config("", &[(&outer, "")]);
    assert_eq!(b.cli_until_refused().code, 2);
    let token = b.home.join("token");
    let init = ["init", "--proxy", &world.url(), "--token-file", token.to_str().unwrap()];
    refused(&b, "init.toml", &init, &outer);
    refused(&b, "up.toml", &["up", "--listen", "127.0.0.1:0"], &outer);
    // The remedy of the message works.
    fs::remove_dir_all(outer.join("deep/notes/.memsync")).unwrap();
    b.start();
    b.wait();
    assert_eq!(world.blob("deep/notes/note.md").unwrap(), b"note");
}

#[test]
fn folder_added_inside_is_left_out_and_named() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for name in ["inner/one.md", "inner/deep/two.md", "note.md"] {
        a.write(name, name);
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    // Another agent, or a copy of another memory folder, makes an inner folder.
    a.write("inner/.memsync/id", "another\n");
    a.write("inner/new.md", "of the inner folder");
    a.remove("inner/one.md");
    eventually("status names the inner folder", || {
        let problems = a.folder_status()["problems"].as_array().unwrap().clone();
        problems
            .iter()
            .any(|p| p["path"] == "inner" && p["problem"].as_str().unwrap().contains("memory folder of its own"))
    });
    b.write("inner/deep/two.md", "edited on b");
    a.write("note.md", "edited on a");
    eventually("other files are synced", || b.has("note.md", "edited on a"));
    b.wait();
    a.cli(&["sync"]);
    assert!(a.has("inner/deep/two.md", "inner/deep/two.md") && world.blob("inner/new.md").is_none());
    assert!(b.has("inner/one.md", "inner/one.md"), "a removal by the other agent deletes nothing here");
    let told = a.cli(&["status", "inner/deep/two.md"]);
    assert!(format!("{told:?}").contains("memory folder of its own"), "{told:?}");
    // The inner folder is a plain folder again.
    fs::remove_dir_all(a.at("inner/.memsync")).unwrap();
    a.cli(&["sync"]);
    assert_eq!(world.settle(&[&a, &b]).len(), 4);
    assert!(a.has("inner/deep/two.md", "edited on b") && b.has("inner/new.md", "of the inner folder"));
    assert!(a.has("inner/one.md", "inner/one.md"));
}
