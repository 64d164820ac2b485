//! A folder that is configured through a symlink, moved behind one, or spelled in another way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common::world::{Device, World, eventually};

const QUICK: &str = "interval = \"300ms\"";

/// A device whose config names its folder through a symlink. Returns the symlink too.
fn linked(world: &World) -> (Device<'_>, PathBuf) {
    let a = world.device("a");
    let link = a.home.join("link");
    symlink(&a.folder, &link).unwrap();
    a.write_config(QUICK, &[(&link, "")]);
    (a, link)
}

fn five(device: &Device) {
    for n in 0..5 {
        device.write(&format!("{n}.md"), format!("note {n}"));
    }
}

fn point(link: &Path, to: &Path) {
    fs::remove_file(link).unwrap();
    symlink(to, link).unwrap();
}

#[test]
fn linked_folder_keeps_its_state_under_another_spelling() {
    let world = World::new();
    let (a, link) = linked(&world);
    let b = world.device("b");
    five(&a);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.ok(&["doctor"]);
    let spelled_otherwise = a.home.join("./link/../notes/");
    for path in [&a.folder, &spelled_otherwise, &link] {
        a.stop();
        let shown = path.display();
        let (edited, deleted) = (format!("edited, {shown}"), format!("{}.md", a.tree().len() - 1));
        b.write("0.md", &edited);
        a.remove(&deleted);
        eventually("the edit is on the proxy", || world.blob("0.md").is_some_and(|now| now == edited.as_bytes()));
        a.write_config(QUICK, &[(path, "")]);
        a.ok(&["doctor"]);
        a.start();
        let tree = world.settle(&[&a, &b]);
        assert!(!tree.contains_key(&deleted), "{shown}: the deletion holds: {:?}", tree.keys());
        assert_eq!(a.copies(), [""; 0], "{shown}: an edit of b alone is no conflict");
        a.ok(&["doctor"]);
    }
}

#[test]
fn folder_moved_behind_a_link_keeps_its_state() {
    let world = World::new();
    let (a, b) = (world.device_with("a", QUICK), world.device("b"));
    five(&a);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.stop();
    let elsewhere = a.home.join("elsewhere");
    fs::rename(&a.folder, &elsewhere).unwrap();
    symlink(&elsewhere, &a.folder).unwrap();
    a.remove("1.md");
    a.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!((tree.len(), tree.contains_key("1.md")), (4, false));
    a.ok(&["doctor"]);
}

#[test]
fn link_pointed_elsewhere_halts_until_it_points_back() {
    let world = World::new();
    let (a, link) = linked(&world);
    five(&a);
    a.start();
    a.wait();
    let other = a.home.join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("foreign.md"), "of another folder").unwrap();
    point(&link, &other);
    a.halted("root_changed");
    // The link names the folder of the config. Its former target is no configured folder any more.
    for (dir, code) in [(&link, 7), (&a.folder, 2)] {
        let ran = a.cli(&["sync", dir.to_str().unwrap()]);
        assert_eq!(ran.code, code, "{}: {ran:?}", dir.display());
    }
    assert!(world.blob("foreign.md").is_none());
    let way_out = format!("memsync approve {}", a.folder_status()["halt"]["id"].as_str().unwrap());
    let doctor = a.cli(&["doctor"]);
    assert_eq!((doctor.code, doctor.out.matches("memsync approve").count()), (7, 2), "{doctor:?}");
    assert!(doctor.out.contains(&way_out), "{doctor:?}");
    point(&link, &a.folder);
    a.write("6.md", "written meanwhile");
    eventually("it goes on", || world.blob("6.md").is_some());
    a.wait();
    assert!(world.blob("foreign.md").is_none());
}

#[test]
fn link_pointed_elsewhere_is_approved() {
    let world = World::new();
    let (a, link) = linked(&world);
    let b = world.device("b");
    five(&a);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    let other = a.home.join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("foreign.md"), "of another folder").unwrap();
    point(&link, &other);
    let halt = a.halted("root_changed");
    a.ok(&["approve", halt["id"].as_str().unwrap()]);
    eventually("both contents are there", || {
        b.tree().len() == 6 && crate::common::world::files_below(&other).len() == 6
    });
    // The first folder is no longer synced.
    a.remove("0.md");
    a.stop();
    a.start();
    a.wait();
    assert!(world.blob("0.md").is_some());
    assert_eq!(crate::common::world::files_below(&other), b.tree());
}

#[test]
fn copied_folder_has_its_own_state() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    five(&a);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.stop();
    let copy = a.home.join("copy");
    fs::create_dir_all(copy.join(".memsync")).unwrap();
    fs::copy(a.at(".memsync/id"), copy.join(".memsync/id")).unwrap();
    a.write_config(QUICK, &[(&a.folder, ""), (&copy, "namespace = \"copy\"")]);
    fs::write(copy.join("own.md"), "of the copy").unwrap();
    a.start();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 5, "files that the copy lacks are not deleted: {:?}", tree.keys());
    assert!(copy.join("own.md").exists() && !tree.contains_key("own.md"));
    let containers: Vec<_> = a.ok(&["paths", "--json"]).json()["folders"].as_array().unwrap().clone();
    assert_ne!(containers[0]["container"], containers[1]["container"]);
}
