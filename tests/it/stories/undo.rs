//! Earlier texts from the history of a machine and from the proxy: found, seen, compared and brought back.

use std::fs;
use std::process::Command;

use memsync::digest::Md5;
use serde_json::Value;

use crate::common::terminal::Terminal;
use crate::common::world::{Device, World, eventually};

fn id(text: &str) -> String {
    Md5::of(text.as_bytes()).short()
}

/// `note.md@ID`
fn version(text: &str) -> String {
    format!("note.md@{}", id(text))
}

/// The IDs that `history --json` lists.
fn ids(listed: &Value) -> Vec<String> {
    let versions = listed["versions"].as_array().unwrap();
    versions.iter().map(|v| v["id"].as_str().unwrap().to_owned()).collect()
}

/// A device that wrote `note.md` three times itself. Its agent runs, and everything is in sync.
fn edited_here(world: &World) -> Device<'_> {
    let a = world.device("a");
    a.start();
    for text in ["first", "second", "third"] {
        a.write("note.md", text);
        eventually("it is uploaded", || world.blob("note.md").is_some_and(|blob| blob == text.as_bytes()));
        a.wait();
    }
    a
}

#[test]
fn text_edited_here_is_found_on_the_proxy() {
    let world = World::new();
    let a = edited_here(&world);
    assert!(a.kept().is_empty(), "sync replaced nothing here");
    let listed = a.ok(&["history", "note.md", "--json"]).json();
    assert_eq!(ids(&listed), [id("second"), id("first")]);
    let newest = &listed["versions"][0];
    assert_eq!((&newest["device"], &newest["kind"], &newest["size"]), (&"a".into(), &"replaced".into(), &6.into()));
    assert_eq!((&newest["here"], &newest["on_proxy"], &newest["n"]), (&false.into(), &true.into(), &Value::Null));
    assert_eq!(listed["proxy"]["answered"], true);
    let text = a.ok(&["history", "note.md"]).out;
    assert!(text.contains(&version("first")) && text.contains("proxy"), "{text}");

    a.ok(&["restore", &version("first")]);
    assert!(a.has("note.md", "first"));
    eventually("it is uploaded", || world.blob("note.md").is_some_and(|blob| blob == b"first"));
    assert_eq!(a.kept(), [b"third".to_vec()], "the displaced text is in history");
    // The names of the others stay.
    let listed = a.ok(&["history", "note.md", "--json"]).json();
    assert_eq!(ids(&listed), [id("third"), id("second"), id("first")]);
    a.ok(&["restore", "note.md"]);
    assert!(a.has("note.md", "third"), "the newest earlier text");
    assert!(!a.at(".memsync/fetched").read_dir().unwrap().any(|_| true), "nothing is left behind");
}

#[test]
fn text_deleted_here_comes_back() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("dir/note.md", "precious");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    fs::remove_dir_all(a.at("dir")).unwrap();
    eventually("b follows", || !b.at("dir/note.md").exists());
    a.wait();
    let listed = a.ok(&["history", "dir/note.md", "--json"]).json();
    assert_eq!((ids(&listed), &listed["versions"][0]["kind"]), (vec![id("precious")], &"removed".into()));
    a.ok(&["restore", "dir/note.md"]);
    eventually("b has it again", || b.has("dir/note.md", "precious"));
    world.settle(&[&a, &b]);
}

#[test]
fn equal_text_of_both_sources_is_one_version() {
    let world = World::new();
    let (a, b) = world.after_an_edit();
    let listed = b.ok(&["history", "note.md", "--json"]).json();
    let newest = &listed["versions"][0];
    assert_eq!((ids(&listed), &newest["n"]), (vec![id("first")], &1.into()));
    assert_eq!((&newest["here"], &newest["on_proxy"], &newest["device"]), (&true.into(), &true.into(), &"a".into()));
    // Its name is the same on the other machine, and a short form of it is enough.
    assert_eq!(a.ok(&["show", &version("first")]).out, "first");
    assert_eq!(b.ok(&["show", &version("first")[..12]]).out, "first");
    assert_eq!(b.ok(&["show", "note.md@1"]).out, "first");
}

#[test]
fn history_says_that_the_proxy_did_not_answer() {
    let world = World::new();
    let (a, b) = world.after_an_edit();
    a.write("note.md", "third");
    eventually("b follows", || b.has("note.md", "third"));
    b.wait();
    world.stop_proxy();
    let ran = b.ok(&["history", "note.md"]);
    assert!(ran.out.contains(&version("second")) && ran.out.contains(&version("first")), "{ran:?}");
    assert!(ran.err.contains("the proxy did not answer") && ran.err.contains(&world.url()), "{ran:?}");
    assert!(!ran.err.contains("open-sesame"), "{ran:?}");
    let part = b.ok(&["history", "note.md", "--json"]).json()["proxy"].clone();
    assert_eq!((&part["answered"], part["why"].is_string()), (&false.into(), true));
    // On `a`, the proxy alone has the versions.
    assert_eq!(ids(&a.ok(&["history", "note.md", "--json"]).json()), Vec::<String>::new());
    for args in [["restore", "note.md"], ["show", &version("first")], ["diff", "note.md"]] {
        let ran = a.cli(&args);
        assert_eq!(ran.code, 5, "{args:?}: {ran:?}");
        assert!(
            ran.err.contains("note.md") && ran.err.contains("the proxy, which may have it, did not answer"),
            "{ran:?}"
        );
    }
    // A version that is kept here needs no proxy.
    b.ok(&["restore", &version("first")]);
    assert!(b.has("note.md", "first"));
}

#[test]
fn unsynced_edit_and_deletion_can_be_undone() {
    let world = World::new();
    let a = edited_here(&world);
    a.stop();
    a.write("note.md", "a slip");
    let listed = a.ok(&["history", "note.md", "--json"]).json();
    assert_eq!((&ids(&listed)[0], &listed["versions"][0]["kind"]), (&id("third"), &"latest".into()));
    a.ok(&["restore", "note.md"]);
    assert!(a.has("note.md", "third"));
    a.remove("note.md");
    a.ok(&["restore", "note.md"]);
    assert!(a.has("note.md", "third"));
}

#[test]
fn text_written_elsewhere_is_no_earlier_text() {
    let world = World::new();
    let (a, b) = (edited_here(&world), world.device("b"));
    a.stop();
    b.start();
    b.wait();
    b.write("note.md", "fourth");
    eventually("it is uploaded", || world.blob("note.md").is_some_and(|blob| blob == b"fourth"));
    let listed = a.ok(&["history", "note.md", "--json"]).json();
    assert_eq!((&ids(&listed)[0], &listed["versions"][0]["kind"]), (&id("fourth"), &"newer".into()));
    assert_eq!(a.ok(&["show", "note.md"]).out, "second", "the newest earlier text");
}

#[test]
fn version_is_written_to_a_new_file_only() {
    let world = World::new();
    let a = edited_here(&world);
    let (to, taken) = (a.home.join("copy.md"), a.home.join("taken.md"));
    fs::write(&taken, "mine").unwrap();
    a.ok(&["restore", &version("first"), "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read(&to).unwrap(), b"first");
    assert!(a.has("note.md", "third"));
    for path in [taken.to_str().unwrap(), to.to_str().unwrap(), "note.md", "."] {
        let ran = a.cli(&["restore", &version("first"), "--to", path]);
        assert_eq!((ran.code, ran.err.contains("exists already")), (2, true), "{ran:?}");
    }
    assert_eq!((fs::read(&taken).unwrap(), a.read("note.md")), (b"mine".to_vec(), b"third".to_vec()));
    assert_eq!(a.cli(&["restore", &version("first"), "--to", ".memsync/x"]).code, 2);
    assert_eq!(a.cli(&["restore", &version("first"), "--to", "no/such/x"]).code, 1);
}

#[test]
fn difference_marks_words_and_exits_with_0() {
    let world = World::new();
    let a = world.device("a");
    a.start();
    for text in ["# Plan\nthe quick fox\n", "# Plan\nthe slow fox\n"] {
        a.write("note.md", text);
        eventually("it is uploaded", || world.blob("note.md").is_some_and(|blob| blob == text.as_bytes()));
    }
    a.wait();
    a.write("note.md", "# Plan\nthe slow fox, old\n");
    let [first, second] = ["# Plan\nthe quick fox\n", "# Plan\nthe slow fox\n"].map(version);
    let ran = a.ok(&["diff", &first, &second[7..]]);
    let body = ran.out.split_once("@@\n").unwrap().1;
    assert_eq!(body, " # Plan\n-the [-quick-] fox\n+the {+slow+} fox\n");
    assert!(ran.out.contains(&format!("{first}  until ")) && ran.out.contains("from a"), "{ran:?}");
    let ran = a.ok(&["diff", "note.md"]);
    assert!(ran.out.contains("+the slow fox{+, old+}\n") && ran.out.contains("note.md  as it is now"), "{ran:?}");
    assert!(!ran.out.contains('\u{1b}'), "{ran:?}");
    let same = a.ok(&["diff", &first, &first[7..], "--json"]).json();
    assert_eq!((&same["same"], &same["changes"]), (&true.into(), &Value::Array(Vec::new())));
    let json = a.ok(&["diff", &first, "--json"]).json();
    let change = &json["changes"][0];
    assert_eq!((&json["same"], &change["old_line"]), (&false.into(), &2.into()));
    assert_eq!((&change["old"][0], &change["new"][0]), (&"the quick fox\n".into(), &"the slow fox, old\n".into()));
    let colored = a.ok(&["diff", &first, "--color", "always"]).out;
    assert!(colored.contains("\u{1b}[31m") && !colored.contains("[-"), "{colored:?}");
    a.remove("note.md");
    assert!(a.ok(&["diff", &first]).out.contains("+++ ") && a.ok(&["diff", &first]).out.contains("(gone)"));
}

#[test]
fn terminal_shows_text_escaped_and_refuses_other_content() {
    let world = World::new();
    let a = world.device("a");
    a.start();
    for (name, contents) in [("text.md", ["a\tb\u{1b}[2Jc\r\n".as_bytes(), b"x"]), ("bin", [b"\0\x1b[2J\xff", b"x"])] {
        for content in contents {
            a.write(name, content);
            eventually("it is uploaded", || world.blob(name).is_some_and(|blob| blob == content));
        }
    }
    a.wait();
    let at_terminal = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memsync"));
        command.env_clear().env("MEMSYNC_HOME", &a.home).current_dir(&a.folder).args(args);
        let (status, screen) = Terminal::start(command).ended();
        (status.code(), screen)
    };
    assert_eq!(at_terminal(&["show", "text.md"]), (Some(0), "a\tb\\u{1b}[2Jc\r\n".to_owned()));
    let (code, screen) = at_terminal(&["show", "bin"]);
    assert_eq!((code, screen.contains("--to FILE"), screen.contains('\0')), (Some(2), true, false), "{screen:?}");
    assert!(at_terminal(&["diff", "text.md"]).1.contains("\u{1b}[31m"), "colours on a terminal");
    let (_, screen) = at_terminal(&["diff", "text.md", "--color", "never"]);
    assert!(!screen.contains('\u{1b}') && screen.contains("-a\tb\\u{1b}[2Jc\\r"), "{screen:?}");
    // Elsewhere, the bytes are as they were.
    assert_eq!(a.ok(&["show", "text.md"]).out, "a\tb\u{1b}[2Jc\r\n");
    assert!(a.ok(&["diff", "bin"]).out.contains("are no texts"));
}

#[test]
fn versions_of_a_namespace_are_found() {
    let world = World::new();
    let a = world.device("a");
    a.write_config("", &[(&a.folder, "namespace = \"team/notes\"")]);
    a.start();
    for text in ["first", "second"] {
        a.write("blob/note.md", text);
        a.wait();
    }
    let listed = a.ok(&["history", "blob/note.md", "--json"]).json();
    assert_eq!(ids(&listed), [id("first")], "{listed}");
    a.ok(&["restore", "blob/note.md"]);
    assert!(a.has("blob/note.md", "first"));
    a.wait();
    a.remove("blob/note.md");
    a.wait();
    assert_eq!(a.ok(&["restore", "--deleted", "--json"]).json()["versions"][0]["path"], "blob/note.md");
    a.ok(&["restore", "blob"]);
    assert!(a.has("blob/note.md", "first"));
}
