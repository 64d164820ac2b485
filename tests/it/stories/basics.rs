//! Files are made, changed, moved and deleted, and the other device follows.

use std::fs;

use crate::common::world::{Files, World, eventually, files_below};

fn files<const N: usize>(files: [(&str, &str); N]) -> Files {
    files.map(|(path, content)| (path.to_owned(), content.as_bytes().to_vec())).into()
}

#[test]
fn new_file_arrives_on_the_other_device() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    a.write("note.md", "hello");
    eventually("b has it", || b.has("note.md", "hello"));
    assert_eq!(world.settle(&[&a, &b]), files([("note.md", "hello")]));
    assert_eq!(world.blob("note.md").unwrap(), b"hello");
}

#[test]
fn edit_propagates_both_ways() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    a.write("note.md", "one");
    eventually("b has it", || b.has("note.md", "one"));
    b.write("note.md", "two, and longer");
    eventually("a has it", || a.has("note.md", "two, and longer"));
    a.write("note.md", "3");
    eventually("b has it", || b.has("note.md", "3"));
    assert_eq!(world.settle(&[&a, &b]), files([("note.md", "3")]));
    assert_eq!(b.kept().len(), 1, "history has the replaced file");
}

#[test]
fn deletion_propagates_and_history_keeps_the_file() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("gone.md", "old");
    a.write("kept.md", "kept");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.remove("gone.md");
    eventually("b deletes it", || !b.at("gone.md").exists());
    assert_eq!(world.settle(&[&a, &b]), files([("kept.md", "kept")]));
    assert_eq!(b.kept(), [b"old".to_vec()]);
    assert_eq!(world.index()["files"]["gone.md"]["is_deleted"], true);
}

#[test]
fn recreated_file_propagates() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("note.md", "same");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.remove("note.md");
    eventually("b deletes it", || !b.at("note.md").exists());
    world.settle(&[&a, &b]);
    b.write("note.md", "same");
    eventually("a has it again", || a.has("note.md", "same"));
    assert_eq!(world.settle(&[&a, &b]), files([("note.md", "same")]));
}

#[test]
fn renamed_file_and_folder_keep_their_content() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("draft.md", "text");
    for n in 0..5 {
        a.write(&format!("topics/deep/{n}.md"), format!("note {n}"));
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.rename("draft.md", "final.md");
    a.rename("topics", "themes");
    eventually("b has the new names", || b.at("final.md").exists() && b.at("themes/deep/4.md").exists());
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), 6, "{:?}", tree.keys());
    assert_eq!(tree["final.md"], b"text");
    assert_eq!(tree["themes/deep/3.md"], b"note 3");
    assert!(!b.at("topics").exists(), "the folder that sync emptied is gone");
}

#[test]
fn name_swap_propagates() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("x.md", "was x");
    a.write("y.md", "was y");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.rename("x.md", "t.md");
    a.rename("y.md", "x.md");
    a.rename("t.md", "y.md");
    eventually("b has them swapped", || b.has("x.md", "was y") && b.has("y.md", "was x"));
    assert_eq!(world.settle(&[&a, &b]), files([("x.md", "was y"), ("y.md", "was x")]));
}

#[test]
fn nested_files_arrive_with_their_folders() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    a.write("a/b/c/d/e/deep.md", "deep");
    let outside = world.path().join("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    for n in 0..20 {
        fs::write(outside.join(format!("sub/{n}.md")), format!("moved {n}")).unwrap();
    }
    fs::rename(&outside, a.at("inside")).unwrap();
    eventually("b has all", || files_below(&b.folder).len() == 21);
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree["a/b/c/d/e/deep.md"], b"deep");
    assert_eq!(tree["inside/sub/19.md"], b"moved 19");
}

#[test]
fn empty_file_is_synced_and_gets_content_later() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    a.write("empty.md", "");
    a.write("stays-empty.md", "");
    eventually("b has them", || b.has("empty.md", "") && b.has("stays-empty.md", ""));
    a.write("empty.md", "no longer");
    eventually("b has the content", || b.has("empty.md", "no longer"));
    a.write("empty.md", "");
    eventually("b has it empty again", || b.has("empty.md", ""));
    assert_eq!(world.settle(&[&a, &b]), files([("empty.md", ""), ("stays-empty.md", "")]));
}

#[test]
fn twenty_megabytes_arrive_byte_for_byte() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let mut content = vec![0; 20 << 20];
    fastrand::Rng::with_seed(7).fill(&mut content);
    a.write("big.bin", &content);
    a.start();
    b.start();
    let tree = world.settle(&[&a, &b]);
    assert!(tree["big.bin"] == content, "the content is unchanged");
}

#[test]
fn odd_names_arrive_unchanged() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let names = [
        "with space.md",
        " leading and trailing ",
        "100%.md",
        "%41.md",
        "q?a#b&c=d+e.md",
        "semi;colon:and|pipe.md",
        "quote\"s and 'ticks' and `more`.md",
        "emoji \u{1f980}.md",
        "\u{65e5}\u{672c}\u{8a9e}/\u{30ce}\u{30fc}\u{30c8}.md",
        "brackets [x] {y} (z) <w>.md",
        "~tilde and $dollar!.md",
        "blob/sync/blob/x",
        "...dots",
        "no-extension",
    ];
    for name in names {
        a.write(name, format!("of {name}"));
    }
    a.start();
    b.start();
    a.wait();
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.len(), names.len(), "{:?}", tree.keys());
    for name in names {
        assert_eq!(tree[name], format!("of {name}").into_bytes(), "{name}");
    }
}

#[test]
fn unusable_name_is_reported_and_delays_no_other() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("back\\slash.md", "stays here");
    a.write("plain.md", "goes");
    a.start();
    b.start();
    eventually("b has the other", || b.has("plain.md", "goes"));
    a.wait();
    assert!(a.has("back\\slash.md", "stays here"));
    assert_eq!(b.tree(), files([("plain.md", "goes")]));
    let problems = a.folder_status()["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 1, "{problems}");
    assert!(problems[0]["problem"].as_str().unwrap().contains("rename"), "{problems}");
}

#[test]
fn nfd_and_nfc_form_are_one_name() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let (nfd, nfc) = ("cafe\u{301}/re\u{301}sume\u{301}.md", "caf\u{e9}/r\u{e9}sum\u{e9}.md");
    a.write(nfd, "from a");
    a.start();
    b.start();
    eventually("b has it under its composed name", || b.has(nfc, "from a"));
    assert_eq!(world.index()["files"].as_object().unwrap().keys().collect::<Vec<_>>(), [nfc]);
    b.write(nfc, "from b");
    eventually("a has the edit under the name it has there", || a.has(nfd, "from b"));
    a.wait();
    assert_eq!(a.tree().len(), 1, "no second spelling: {:?}", a.tree().keys());
    a.remove(nfd);
    eventually("gone on b", || b.tree().is_empty());
}

#[test]
fn folders_emptied_by_sync_go_and_others_stay() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("made/by/sync/note.md", "x");
    a.write("other.md", "y");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    fs::create_dir_all(b.at("mine/empty")).unwrap();
    fs::create_dir_all(a.at("mine too")).unwrap();
    fs::remove_dir_all(a.at("made")).unwrap();
    eventually("the folder is gone on b", || !b.at("made").exists());
    world.settle(&[&a, &b]);
    assert!(b.at("mine/empty").is_dir() && a.at("mine too").is_dir());
    assert!(!a.at("mine").exists() && !b.at("mine too").exists(), "empty folders are not synced");
}
