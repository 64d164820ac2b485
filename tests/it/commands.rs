//! Commands that work on a folder without an agent, and commands that refuse to, with the real binary.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use memsync::digest::Md5;
use serde_json::Value;

/// A `MEMSYNC_HOME` with a configured folder.
struct Machine {
    home: tempfile::TempDir,
    folder: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("notes");
        std::fs::create_dir(&folder).unwrap();
        let machine = Self { home, folder };
        machine.write_private("token", "t0ken\n");
        // No server listens on port 1.
        let config = format!(
            "[proxy]\nurl = \"http://127.0.0.1:1\"\ntoken_file = {:?}\n[[folder]]\npath = {:?}\nignore = [\"*.tmp\"]\n",
            machine.home.path().join("token"),
            machine.folder
        );
        machine.write_private("config.toml", &config);
        machine
    }

    fn write_private(&self, name: &str, text: &str) {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn file(&self, at: &str, text: &str) -> PathBuf {
        let path = self.folder.join(at);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, at: &str) -> String {
        std::fs::read_to_string(self.folder.join(at)).unwrap_or_else(|e| panic!("{at}: {e}"))
    }

    fn has(&self, at: &str) -> bool {
        self.folder.join(at).exists()
    }

    fn command(&self) -> assert_cmd::Command {
        memsync(self.home.path())
    }

    /// Runs a command in the folder: the exit code, stdout and stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let out = self.command().current_dir(&self.folder).args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
    }

    fn json(&self, args: &[&str]) -> (i32, Value) {
        let (code, out, err) = self.run(&[args, &["--json"]].concat());
        (code, serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}{err}")))
    }
}

fn memsync(home: &Path) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::cargo_bin("memsync").unwrap();
    command.env_clear().env("MEMSYNC_HOME", home).env("HOME", home);
    command
}

#[test]
fn commands_for_the_agent_say_how_to_start_it() {
    let machine = Machine::new();
    for args in [&["wait", "--timeout", "1s"][..], &["pause"], &["resume"], &["approve"], &["approve", "--list"]] {
        let (code, out, err) = machine.run(args);
        assert_eq!((code, out.as_str()), (3, ""), "{args:?}: {err}");
        assert!(err.contains("memsync run"), "{args:?}: {err}");
    }
}

#[test]
fn sync_without_an_agent_is_refused_while_paused() {
    let machine = Machine::new();
    std::fs::create_dir(machine.home.path().join("state")).unwrap();
    machine.write_private("state/paused", r#"{"until":"2999-01-01T00:00:00Z","for_s":3600}"#);
    let (code, out, err) = machine.run(&["sync"]);
    assert_eq!((code, out.as_str()), (4, ""), "{err}");
    assert!(err.contains("paused until 2") && err.contains("`memsync resume`"), "{err}");
    assert_eq!(machine.run(&["resume"]).0, 0);
    assert_eq!(machine.run(&["sync"]).0, 5, "the proxy is asked again");
    assert_eq!(machine.run(&["resume"]).0, 3, "nothing is paused");
}

#[test]
fn agent_waits_for_a_running_restore() {
    let machine = Machine::new();
    let held = std::fs::File::open(&machine.folder).unwrap();
    held.lock().unwrap();
    let (code, _, err) = machine.run(&["run"]);
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains("another memsync works on this folder") && err.contains("try again when it has ended"),
        "{err}"
    );
}

#[test]
fn commands_without_a_config_say_how_to_begin() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["status"][..], &["run"], &["sync"], &["conflicts"], &["history"], &["wait"], &["restore", "a"]] {
        let out = memsync(home.path()).args(args).assert().code(3).get_output().clone();
        let err = String::from_utf8(out.stderr).unwrap();
        assert!(out.stdout.is_empty() && err.contains("memsync up"), "{args:?}: {err}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing is made by asking");
}

#[test]
fn bad_config_is_refused_with_its_line() {
    let machine = Machine::new();
    machine.write_private("config.toml", "[proxy]\nurl = \"http://127.0.0.1:1\"\ntimeuot = \"3s\"\n");
    for args in [&["status"][..], &["run"], &["up"], &["history"], &["pause"]] {
        let (code, _, err) = machine.run(args);
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(err.contains("config.toml:3") && err.contains("timeout"), "{args:?}: {err}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let machine = Machine::new();
    for args in [
        &["nonsense"][..],
        &["restore"],
        &["restore", "--deleted", "a"],
        &["wait", "--timeout", "5"],
        &["conflicts", "resolve", "a"],
        &["conflicts", "resolve", "a", "--keep", "mine"],
        &["approve", "--list", "--reject"],
        &["serve", "--max-body-size", "many"],
        &["history", "/etc/passwd"],
        &["history", "../elsewhere"],
        &["restore", ".memsync/id"],
        &["diff", "note.md", "5d41402a"],
        &["status", "/"],
    ] {
        let (code, _, err) = machine.run(args);
        assert_eq!(code, 2, "{args:?}: {err}");
    }
}

#[test]
fn serve_without_a_token_does_not_start() {
    let home = tempfile::tempdir().unwrap();
    let out = memsync(home.path()).args(["serve", "--listen", "127.0.0.1:0"]).assert().code(2).get_output().clone();
    let err = String::from_utf8(out.stderr).unwrap();
    assert!(err.contains("--token-file") && err.contains("MEMSYNC_TOKEN"), "{err}");
    assert!(!home.path().join("proxy").exists(), "no store is made");
}

#[test]
fn taken_port_is_named_with_a_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = tempfile::tempdir().unwrap();
    let serve = memsync(home.path()).args(["serve", "--listen", &address]).env("MEMSYNC_TOKEN", "t").output().unwrap();
    let up = memsync(home.path()).args(["up", "--listen", &address]).output().unwrap();
    for out in [serve, up] {
        let err = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{err}");
        assert!(err.contains(&address) && err.contains("--listen"), "{err}");
    }
    assert!(!home.path().join("config.toml").exists(), "nothing is configured for a proxy that cannot be there");
}

#[test]
fn up_keeps_the_config_of_another_proxy() {
    let machine = Machine::new();
    let before = std::fs::read(machine.home.path().join("config.toml")).unwrap();
    let (code, _, err) = machine.run(&["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("memsync run") && err.contains("http://127.0.0.1:1"), "{err}");
    let (code, _, err) = machine.run(&["up", "/elsewhere"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("[[folder]]") && err.contains("/elsewhere"), "{err}");
    assert_eq!(std::fs::read(machine.home.path().join("config.toml")).unwrap(), before);
}

/// `note.md` with two earlier versions, and `gone.md`, which sync removed.
fn with_history() -> Machine {
    let machine = Machine::new();
    machine.file("note.md", "third");
    machine.file(".memsync/history/20260101T000000.000Z-replaced/note.md", "first");
    machine.file(".memsync/history/20260102T000000.000Z-replaced/note.md", "second");
    machine.file(".memsync/history/20260103T000000.000Z-removed/n/gone.md", "removed");
    machine
}

#[test]
fn history_lists_the_newest_version_first() {
    let machine = with_history();
    let (code, list) = machine.json(&["history", "note.md"]);
    assert_eq!(code, 0);
    let versions: Vec<_> = list["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| (v["path"].as_str().unwrap(), v["n"].as_u64().unwrap(), v["size"].as_u64().unwrap(), &v["at"]))
        .collect();
    assert_eq!(
        versions,
        [("note.md", 1, 6, &Value::from("2026-01-02T00:00:00Z")), ("note.md", 2, 5, &"2026-01-01T00:00:00Z".into())]
    );
    let (_, all) = machine.json(&["history"]);
    assert_eq!(all["versions"].as_array().unwrap().len(), 3);
    let (_, text, _) = machine.run(&["history"]);
    let [second, removed] = ["second", "removed"].map(|text| Md5::of(text.as_bytes()).short());
    for line in [format!("note.md@{second}"), format!("n/gone.md@{removed}"), "memsync restore".to_owned()] {
        assert!(text.contains(&line), "{text}");
    }
    let (_, deleted) = machine.json(&["restore", "--deleted"]);
    assert_eq!(deleted["versions"].as_array().unwrap().len(), 1);
    assert_eq!(deleted["versions"][0]["path"], "n/gone.md");
}

#[test]
fn restore_keeps_the_replaced_text_in_history() {
    let machine = with_history();
    let (code, out, err) = machine.run(&["restore", "note.md@2"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("undoes this"), "{out}");
    assert_eq!(machine.read("note.md"), "first");
    // The replaced text is the newest version now.
    assert_eq!(machine.run(&["restore", "note.md"]).0, 0);
    assert_eq!(machine.read("note.md"), "third");
    // A second time it changes nothing.
    let (code, again) = machine.json(&["restore", "note.md@2"]);
    assert_eq!((code, &again["changed"]), (0, &Value::from(false)));
}

#[test]
fn restore_brings_back_a_removed_file() {
    let machine = with_history();
    let at = machine.folder.join("n/gone.md");
    assert_eq!(machine.run(&["restore", at.to_str().unwrap()]).0, 0);
    assert_eq!(machine.read("n/gone.md"), "removed");
    assert_eq!(machine.json(&["restore", "--deleted"]).1["versions"], Value::from(Vec::<Value>::new()));
}

#[test]
fn restore_refuses_a_missing_version() {
    let machine = with_history();
    let (code, _, err) = machine.run(&["restore", "note.md@3"]);
    assert_eq!(code, 2);
    assert!(err.contains("versions 1 to 2"), "{err}");
    let (code, _, err) = machine.run(&["show", "n"]);
    assert_eq!(code, 2);
    assert!(err.contains("is a folder"), "{err}");
    assert_eq!(machine.read("note.md"), "third");
    // Of a folder, the deleted files come back. The proxy may have more of them.
    let (code, out, err) = machine.run(&["restore", "n"]);
    assert_eq!((code, machine.read("n/gone.md").as_str()), (5, "removed"), "{out}{err}");
}

#[test]
fn version_that_only_the_proxy_may_have_exits_with_5() {
    let machine = Machine::new();
    for args in [&["restore", "note.md"][..], &["show", "note.md@5d41402a"], &["diff", "note.md"]] {
        let (code, out, err) = machine.run(args);
        assert_eq!((code, out.as_str()), (5, ""), "{args:?}: {err}");
        assert!(err.contains("note.md") && err.contains("is the proxy running?") && !err.contains("t0ken"), "{err}");
    }
}

#[test]
fn restore_keeps_a_private_mode() {
    let machine = with_history();
    let kept = machine.file(".memsync/history/20260103T000000.000Z-removed/diary.md", "secret");
    std::fs::set_permissions(&kept, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(machine.run(&["restore", "diary.md"]).0, 0);
    let mode = std::fs::metadata(machine.folder.join("diary.md")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn restore_prefers_a_name_that_ends_like_a_version() {
    let machine = with_history();
    machine.file("note.md@2", "by name");
    machine.file(".memsync/history/20260101T000000.000Z-replaced/note.md@2", "old");
    assert_eq!(machine.run(&["restore", "note.md@2"]).0, 0);
    assert_eq!((machine.read("note.md@2").as_str(), machine.read("note.md").as_str()), ("old", "third"));
}

const COPY: &str = "n/plan.conflict-phone-0123abcd.md";

/// `n/plan.md`, and a conflict copy from the phone.
fn with_conflict() -> Machine {
    let machine = Machine::new();
    machine.file("n/plan.md", "winner");
    machine.file(COPY, "loser");
    machine
}

#[test]
fn conflicts_are_listed_with_their_originals() {
    let machine = with_conflict();
    let (code, list) = machine.json(&["conflicts"]);
    assert_eq!(code, 8);
    let c = &list["conflicts"][0];
    assert_eq!(
        (&c["path"], &c["original"], &c["device"], &c["size"]),
        (&COPY.into(), &"n/plan.md".into(), &"phone".into(), &5.into())
    );
    let (code, text, _) = machine.run(&["conflicts"]);
    assert_eq!(code, 8);
    assert!(text.contains("file  from another machine than phone, written ") && text.contains("(6 B)"), "{text}");
    assert!(text.contains("copy  from phone, written ") && text.contains(COPY), "{text}");
    assert!(text.contains("--keep"), "{text}");
    let clean = Machine::new();
    assert_eq!(clean.run(&["conflicts"]).0, 0);
}

#[test]
fn keep_copy_gives_the_file_the_copys_content() {
    for named in [COPY, "n/plan.md"] {
        let machine = with_conflict();
        let (code, out, err) = machine.run(&["conflicts", "resolve", named, "--keep", "copy"]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("history"), "{out}");
        assert_eq!(machine.read("n/plan.md"), "loser");
        assert!(!machine.has(COPY));
        // The replaced text can be restored.
        assert_eq!(machine.run(&["restore", "n/plan.md"]).0, 0);
        assert_eq!(machine.read("n/plan.md"), "winner");
    }
}

#[test]
fn keep_file_moves_the_copy_into_history() {
    let machine = with_conflict();
    assert_eq!(machine.run(&["conflicts", "resolve", "n/plan.md", "--keep", "file"]).0, 0);
    assert_eq!(machine.read("n/plan.md"), "winner");
    assert!(!machine.has(COPY));
    let (_, kept) = machine.json(&["history", COPY]);
    assert_eq!(kept["versions"][0]["kind"], "removed");
    // A second time, by either name, there is nothing to do.
    for named in [COPY, "n/plan.md"] {
        let (code, out, _) = machine.run(&["conflicts", "resolve", named, "--keep", "file"]);
        assert_eq!(code, 0);
        assert!(out.contains("nothing to do"), "{out}");
    }
}

#[test]
fn keep_local_and_remote_are_refused_with_the_reason() {
    let machine = with_conflict();
    for word in ["local", "remote"] {
        let (code, _, err) = machine.run(&["conflicts", "resolve", "n/plan.md", "--keep", word]);
        assert_eq!(code, 2, "{err}");
        for part in ["opposite on the other machine", "`file`", "`copy`", "`both`"] {
            assert!(err.contains(part), "{part} is missing: {err}");
        }
        assert!(machine.has(COPY) && machine.read("n/plan.md") == "winner", "nothing was changed");
    }
}

#[test]
fn keep_both_gives_the_copy_a_plain_name_that_is_free() {
    let machine = with_conflict();
    machine.file("n/plan (phone).md", "somebody's");
    assert_eq!(machine.run(&["conflicts", "resolve", COPY, "--keep", "both"]).0, 0);
    assert_eq!(machine.read("n/plan.md"), "winner");
    assert_eq!(machine.read("n/plan (phone).md"), "somebody's");
    assert_eq!(machine.read("n/plan (phone 2).md"), "loser");
    assert_eq!(machine.run(&["conflicts"]).0, 0);
}

#[test]
fn keep_copy_needs_a_name_among_several_copies() {
    let machine = with_conflict();
    machine.file("n/plan.conflict-desk-89abcdef.md", "third");
    let (code, _, err) = machine.run(&["conflicts", "resolve", "n/plan.md", "--keep", "copy"]);
    assert_eq!(code, 2);
    assert!(err.contains("desk") && err.contains("phone"), "{err}");
    assert_eq!(machine.run(&["conflicts", "resolve", "n/plan.md", "--keep", "file"]).0, 0);
    assert_eq!(machine.run(&["conflicts"]).0, 0);
}

#[test]
fn keep_copy_replaces_a_missing_original() {
    let machine = with_conflict();
    std::fs::remove_file(machine.folder.join("n/plan.md")).unwrap();
    assert_eq!(machine.run(&["conflicts", "resolve", COPY, "--keep", "copy"]).0, 0);
    assert_eq!(machine.read("n/plan.md"), "loser");
    assert!(!machine.has(COPY));
}

#[test]
fn status_of_one_file_has_the_reason() {
    let machine = with_conflict();
    machine.file("a.tmp", "x");
    machine.file(".memsyncignore", "# rules\ndrafts/\n");
    machine.file("drafts/d.md", "x");
    std::os::unix::fs::symlink("/etc/passwd", machine.folder.join("link")).unwrap();
    for (at, code, state, why) in [
        ("n/plan.md", 8, "waits_for_upload", "new"),
        ("a.tmp", 0, "ignored", "`ignore` list: *.tmp"),
        ("drafts/d.md", 0, "ignored", ".memsyncignore, line 2"),
        ("link", 4, "blocked", "symlink"),
        ("no.md", 1, "absent", "no such file"),
    ] {
        let (got, file) = machine.json(&["status", at]);
        assert_eq!((got, &file["state"]), (code, &Value::from(state)), "{at}: {file}");
        assert!(file["why"].as_str().unwrap().contains(why), "{at}: {file}");
    }
    let (code, copy) = machine.json(&["status", COPY]);
    assert_eq!((code, &copy["conflict_of"]), (8, &Value::from("n/plan.md")));
}

#[test]
fn folder_is_found_through_a_symlink_and_from_outside() {
    let machine = with_history();
    let link = machine.home.path().join("link");
    std::os::unix::fs::symlink(&machine.folder, &link).unwrap();
    let outside = machine.home.path();
    for path in [link.join("note.md").to_str().unwrap(), "note.md", "notes/note.md"] {
        let out = machine.command().current_dir(outside).args(["history", path, "--json"]).output().unwrap();
        let list: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{path}: {e}: {out:?}"));
        assert_eq!(list["versions"].as_array().unwrap().len(), 2, "{path}");
    }
}
