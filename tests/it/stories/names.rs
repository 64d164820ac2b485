//! Names that look the same.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use crate::common::world::{Device, World, eventually};

fn problems(device: &Device) -> Vec<String> {
    let problems = device.folder_status()["problems"].as_array().unwrap().clone();
    problems.iter().map(|p| p["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn valid_name_is_synced_beside_an_invalid_one() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    fs::write(a.folder.join(OsStr::from_bytes(b"caf\xe9.md")), "stays here").unwrap();
    a.write("caf\u{fffd}.md", "one");
    symlink("nowhere", a.at("turned\u{202e}dm.md")).unwrap();
    a.start();
    b.start();
    eventually("b has the valid one", || b.has("caf\u{fffd}.md", "one"));
    a.write("caf\u{fffd}.md", "two");
    eventually("b has the edit", || b.has("caf\u{fffd}.md", "two"));
    eventually("both others are named", || problems(&a) == ["caf\\xe9.md", "turned\u{202e}dm.md"]);
    let shown = a.cli(&["status"]);
    let shown = format!("{}{}", shown.out, shown.err);
    assert!(shown.contains("turned\\u{202e}dm.md") && !shown.contains('\u{202e}'), "{shown}");
    let refused = a.cli(&["status", "/no\u{1b}[2J\u{202e}where"]);
    assert!(!refused.err.contains(['\u{1b}', '\u{202e}']) && refused.err.contains("\\u{202e}where"), "{refused:?}");
    b.wait();
    assert_eq!(b.tree().into_keys().collect::<Vec<_>>(), ["caf\u{fffd}.md"]);
}

#[test]
fn second_unicode_form_of_a_name_is_left_out() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let (nfd, nfc) = ("cafe\u{301}.md", "caf\u{e9}.md");
    a.write(nfd, "one");
    a.start();
    b.start();
    eventually("b has it", || b.has(nfc, "one"));
    a.write(nfc, "a newer file");
    eventually("the newer is named", || problems(&a) == ["caf\\u{e9}.md"]);
    a.write(nfd, "two");
    eventually("b has the edit", || b.has(nfc, "two"));
    b.write(nfc, "three");
    eventually("a has the edit of b", || a.has(nfd, "three"));
    a.stop();
    a.start();
    // The first scan tells the two files apart by the base.
    a.cli(&["sync"]);
    a.write(nfd, "four");
    eventually("also after a restart", || b.has(nfc, "four"));
    assert!(a.has(nfc, "a newer file"));
    let shown = a.cli(&["status", nfc]);
    assert!(shown.out.contains("not synced") && shown.out.contains("Unicode form"), "{shown:?}");
    // Once it is renamed, the file is synced.
    a.rename(nfc, "other.md");
    eventually("b has both", || b.has("other.md", "a newer file") && b.has(nfc, "four"));
    eventually("no problem is left", || problems(&a).is_empty());
}
