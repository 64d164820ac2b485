//! `memsync merge` with the real binary.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A folder with three versions of a note.
struct MergeDesk(tempfile::TempDir);

impl MergeDesk {
    fn new(base: &str, local: &str, remote: &str) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        for (name, text) in [("base.md", base), ("local.md", local), ("remote.md", remote)] {
            fs::write(desk.0.path().join(name), text).unwrap();
        }
        desk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The exit code, stdout and stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = assert_cmd::Command::cargo_bin("memsync").unwrap();
        command.env_clear().env("MEMSYNC_HOME", self.path().join("home")).current_dir(self.path());
        let out = command.arg("merge").args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
    }
}

const FILES: [&str; 3] = ["base.md", "local.md", "remote.md"];

#[test]
fn clean_merge_prints_the_text() {
    let desk = MergeDesk::new("- a\n", "- a\n- b\n", "- a\n- c\n");
    assert_eq!(desk.run(&FILES), (0, "- a\n- b\n- c\n".to_owned(), String::new()));
    let swapped = desk.run(&["base.md", "remote.md", "local.md"]);
    assert_eq!(swapped.1, "- a\n- b\n- c\n", "the order does not matter");
}

#[test]
fn merged_text_is_printed_byte_by_byte() {
    let desk = MergeDesk::new(
        "\u{1b}[1mbold\u{1b}[0m\n\na\n",
        "\u{1b}[1mbold\u{1b}[0m\n\nb\n",
        "\u{1b}[1mbold\u{1b}[0m\n\na\n",
    );
    assert_eq!(desk.run(&FILES).1, "\u{1b}[1mbold\u{1b}[0m\n\nb\n");
}

#[test]
fn conflict_prints_the_reason_only() {
    let desk = MergeDesk::new("one\n", "two\n", "three\n");
    let (code, out, err) = desk.run(&FILES);
    assert_eq!((code, out.as_str()), (8, ""));
    assert!(err.contains("local.md") && err.contains("line 1"), "{err}");
    let (code, out, _) = desk.run(&[&FILES[..], &["--output", "merged.md"]].concat());
    assert_eq!((code, out.as_str()), (8, ""));
    assert!(!desk.path().join("merged.md").exists());
}

#[test]
fn output_replaces_a_file_and_keeps_its_mode() {
    let desk = MergeDesk::new("- a\n", "- a\n- b\n", "- a\n- c\n");
    let local = desk.path().join("local.md");
    fs::set_permissions(&local, PermissionsExt::from_mode(0o640)).unwrap();
    let result = desk.run(&[&FILES[..], &["--output", "local.md"]].concat());
    assert_eq!(result, (0, String::new(), String::new()));
    assert_eq!(fs::read_to_string(&local).unwrap(), "- a\n- b\n- c\n");
    assert_eq!(fs::metadata(&local).unwrap().permissions().mode() & 0o777, 0o640);
    let (code, _, err) = desk.run(&[&FILES[..], &["--output", "/dev/null"]].concat());
    assert_eq!(code, 1);
    assert!(err.contains("not a regular file"), "{err}");
}

#[test]
fn path_chooses_the_way_to_merge() {
    let desk = MergeDesk::new("{\"a\":1}", "{\"a\":1,\"b\":2}", "{\"a\":1,\"c\":3}");
    assert_eq!(desk.run(&FILES).0, 8, "one line of text, changed twice");
    let (code, out, _) = desk.run(&[&FILES[..], &["--path", "notes/a.json"]].concat());
    assert_eq!((code, out.as_str()), (0, "{\"a\":1,\"b\":2,\"c\":3}"));
}

#[test]
fn no_base_is_dev_null_or_an_empty_file() {
    let desk = MergeDesk::new("", "# T\n\n## A\na\n", "# T\n\n## B\nb\n");
    let expected = "# T\n\n## A\na\n\n## B\nb\n";
    assert_eq!(desk.run(&FILES).1, expected);
    assert_eq!(desk.run(&["/dev/null", "local.md", "remote.md"]).1, expected);
}

#[test]
fn binary_and_large_files_are_conflicts() {
    let desk = MergeDesk::new("a\n", "b\n", "c\n");
    fs::write(desk.path().join("local.md"), b"\xff\xfe\n").unwrap();
    let (code, _, err) = desk.run(&FILES);
    assert!(code == 8 && err.contains("UTF-8"), "{err}");
    fs::write(desk.path().join("local.md"), "long line\n".repeat(200_000)).unwrap();
    let (code, _, err) = desk.run(&FILES);
    assert!(code == 8 && err.contains("1 MiB"), "{err}");
    assert_eq!(desk.run(&["base.md", "local.md", "base.md"]).0, 0, "only one side changed");
}

#[test]
fn missing_file_is_an_error() {
    let desk = MergeDesk::new("a\n", "b\n", "c\n");
    let (code, out, err) = desk.run(&["base.md", "local.md", "gone.md"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("gone.md"), "{err}");
}

#[test]
fn json_answer_has_the_text_or_the_reason() {
    let desk = MergeDesk::new("- a\n", "- a\n- b\n", "- a\n- c\n");
    let answer = |args: &[&str]| {
        let (code, out, err) = desk.run(args);
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
        (code, answer)
    };
    let (code, clean) = answer(&[&FILES[..], &["--json"]].concat());
    assert_eq!((code, clean), (0, serde_json::json!({"merged": true, "text": "- a\n- b\n- c\n"})));
    fs::write(desk.path().join("local.md"), "- b\n").unwrap();
    fs::write(desk.path().join("remote.md"), "- c\n").unwrap();
    let (code, conflict) = answer(&[&FILES[..], &["--json"]].concat());
    assert_eq!((code, &conflict["merged"]), (8, &serde_json::json!(false)));
    assert!(conflict["reason"].as_str().unwrap().contains("line 1"), "{conflict}");
}
