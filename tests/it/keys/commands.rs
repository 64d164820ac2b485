//! `memsync user`, `memsync key` and `memsync serve`, with the real binary.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use memsync::proxy::keys::{self, KeySpec};
use memsync::store::RecordStore;
use memsync::store::sqlite::SqliteRecords;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::address::served_at;
use crate::common::killed::{DEADLINE, Killed, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_memsync");

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BIN);
        command.env_clear().env("MEMSYNC_HOME", self.at("home")).env("HOME", self.dir.path());
        command.args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Its standard output.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let all: Vec<_> = args.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// The exit code and standard error.
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let out = self.run(args);
        assert!(out.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&out.stdout));
        (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
    }

    fn serve(&self, env: &[(&str, &str)]) -> Serving {
        let log = self.at("serve.log");
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0", "-v"]);
        command.envs(env.iter().copied()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mut child = Killed(command.spawn().unwrap());
        let mut port = None;
        eventually("the proxy serves", || {
            let text = fs::read_to_string(&log).unwrap();
            port = served_at(&text).map(|addr| addr.port());
            assert!(port.is_some() || child.try_wait().unwrap().is_none(), "{text}");
            port.is_some()
        });
        Serving { child, port: port.unwrap(), log }
    }
}

struct Serving {
    child: Killed,
    port: u16,
    log: PathBuf,
}

impl Serving {
    /// The status of a request.
    fn ask(&self, method: &str, target: &str, token: &str) -> u16 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let head = format!("{method} {target} HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer {token}\r\n");
        let rest = "Content-MD5: new\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("{head}{rest}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn stop(mut self) -> String {
        self.child.signal(Signal::TERM);
        assert!(self.child.ended().success(), "{}", self.log());
        self.log()
    }
}

/// The text of every file below a folder.
fn all_text(dir: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &all_text(&path);
        } else {
            text += &String::from_utf8_lossy(&fs::read(&path).unwrap());
        }
    }
    text
}

#[test]
fn proxy_without_any_credential_does_not_start() {
    let m = Machine::new();
    let (code, told) = m.fails(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(code == 2 && told.contains("memsync key create") && told.contains("--token-file"), "{code} {told}");
    assert!(!m.at("home/proxy").exists(), "nothing is made");
    // A store without keys, or with only a revoked one, does not help.
    m.ok(&["user", "create", "ana"]);
    assert_eq!(m.fails(&["serve", "--listen", "127.0.0.1:0"]).0, 2);
    let id = m.json(&["key", "create"])["id"].as_str().unwrap().to_owned();
    m.ok(&["key", "revoke", &id]);
    assert_eq!(m.fails(&["serve", "--listen", "127.0.0.1:0"]).0, 2);
    m.serve(&[("HEARE_AUTH_URL", "http://127.0.0.1:1")]).stop();
    let mut wrong = m.command(&["serve", "--listen", "127.0.0.1:0"]);
    let out = wrong.env("HEARE_AUTH_URL", "auth.example.org").output().unwrap();
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success() && told.contains("the verifier's address"), "{told}");
}

#[test]
fn verified_namespaces_need_a_verifier() {
    let m = Machine::new();
    let (code, told) = m.fails(&["serve", "--listen", "127.0.0.1:0", "--verified-namespaces", "users/{user_id}/*"]);
    assert!(code == 2 && told.contains("HEARE_AUTH_URL"), "{code} {told}");
    let (code, told) = m.fails(&["serve", "--verified-quota", "1GiB"]);
    assert!(code == 2 && told.contains("--verified-namespaces"), "{code} {told}");
    let (code, told) = m.fails(&["serve", "--verified-namespaces", "users//{user_id}"]);
    assert!(code == 2 && told.contains("names no namespace"), "{code} {told}");
}

#[test]
fn access_log_names_the_key_with_numbers_as_json() {
    let m = Machine::new();
    m.ok(&["user", "create", "ana"]);
    let made = m.json(&["key", "create", "--user", "ana"]);
    let serving = m.serve(&[("MEMSYNC_LOG_FORMAT", "json"), ("LOG_LEVEL", "INFO")]);
    let token = made["token"].as_str().unwrap();
    assert_eq!((serving.ask("PUT", "/blob/x", token), serving.ask("GET", "/blob/x", token)), (201, 200));
    let log = serving.stop();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.filter(|line| line["target"] == "memsync::access").nth(1).unwrap_or_else(|| panic!("{log}"));
    assert!(line["status"] == 200 && line["bytes"] == 0 && line["ms"].is_number(), "{line}");
    assert_eq!(line["caller"], format!("key {}", made["id"].as_str().unwrap()), "{line}");
    assert!(line["user"] == "ana" && line["client"] == "127.0.0.1", "{line}");
}

#[test]
fn proxy_reads_its_log_level_without_a_config() {
    let m = Machine::new();
    for name in ["LOG_LEVEL", "MEMSYNC_LOG_LEVEL"] {
        let mut loud = m.command(&["serve", "--listen", "127.0.0.1:0"]);
        let out = loud.env(name, "loud").env("MEMSYNC_TOKEN", "t0ken").output().unwrap();
        let told = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(2) && told.contains(&format!("{name}=loud")), "{told}");
    }
    // The name that Python uses for the level.
    let log = m.serve(&[("LOG_LEVEL", "WARNING"), ("MEMSYNC_TOKEN", "t0ken")]).stop();
    assert!(log.contains("serving ") && !log.contains("DEBUG"), "{log}");
}

#[test]
fn keys_are_created_rotated_and_revoked_while_serving() {
    let m = Machine::new();
    let first = m.run(&["key", "create", "--device", "desk"]);
    let (first, said) = (String::from_utf8(first.stdout).unwrap(), String::from_utf8(first.stderr).unwrap());
    assert!(first.starts_with("mk_") && first.lines().count() == 1, "the key alone: {first}");
    let first = first.trim();
    let secret = |token: &str| token.rsplit('_').next().unwrap().to_owned();
    assert!(said.contains("shown only once") && !said.contains(&secret(first)), "{said}");

    let serving = m.serve(&[]);
    assert_eq!(serving.ask("PUT", "/blob/x", first), 201);
    m.ok(&["user", "create", "ana", "--quota", "1GiB"]);
    let args = ["key", "create", "--user", "ana", "--namespace", "", "--namespace", "team/*", "--read-only"];
    let made = m.json(&[&args[..], &["--expires", "90d"]].concat());
    let second = made["token"].as_str().unwrap();
    assert_eq!((serving.ask("GET", "/blob/x", second), serving.ask("PUT", "/blob/y", second)), (200, 403));

    let (mut listed, mut keys) = (Value::Null, Vec::new());
    eventually("the last uses are written down", || {
        listed = m.json(&["key", "list"]);
        keys = listed["keys"].as_array().unwrap().clone();
        keys.iter().all(|key| key["last_used"].is_string())
    });
    assert_eq!(keys.len(), 2);
    let ana = keys.iter().find(|key| key["user"] == "ana").unwrap();
    assert_eq!((&ana["namespaces"], &ana["read_only"]), (&serde_json::json!(["", "team/*"]), &Value::Bool(true)));
    assert!(ana["expires"].is_string() && ana["expired"] == false && ana["id"] == made["id"], "{ana}");
    let table = m.ok(&["key", "list"]);
    assert!(table.contains("read-only \"\" team/*") && table.contains("desk") && table.lines().count() == 3, "{table}");
    let users = m.json(&["user", "list"]);
    assert_eq!((&users["users"][0]["quota"], &users["users"][0]["keys"]), (&(1u64 << 30).into(), &1.into()));

    // The new secret replaces the old one at once.
    let id = first.split('_').nth(1).unwrap();
    let third = m.ok(&["key", "rotate", id, "--grace", "0s"]);
    let third = third.trim();
    assert_eq!(serving.ask("GET", "/blob/x", third), 200);
    assert_eq!(serving.ask("GET", "/blob/x", first), 401);
    m.ok(&["key", "revoke", id]);
    eventually("the revoked key is refused", || serving.ask("GET", "/blob/x", third) == 401);
    assert!(m.ok(&["user", "remove", "ana"]).contains("with 1 key"));
    eventually("the user's key is refused", || serving.ask("GET", "/blob/x", second) == 401);
    assert!(m.ok(&["key", "list"]).contains("There are no keys"));

    let log = serving.stop();
    for change in
        ["key created", "key rotated", "key revoked", "user created", "user removed", "may read and not write"]
    {
        assert!(log.contains(change), "{change}\n{log}");
    }
    let everything = all_text(m.dir.path());
    for token in [first, second, third] {
        assert!(!everything.contains(&secret(token)), "no secret is in any file, log or database");
    }
}

#[test]
fn expired_key_works_again_after_rotation() {
    let m = Machine::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let records = SqliteRecords::open_or_create(&m.at("home/proxy")).unwrap();
    let new = KeySpec { name: Some("old".to_owned()), expires: Some(Duration::from_secs(60)), ..KeySpec::default() };
    let hour_ago = jiff::Timestamp::now() - Duration::from_secs(3600);
    let edit = keys::edit(&records, |keys| keys.create_key(&new, hour_ago));
    let id = runtime.block_on(edit).unwrap().key.id;

    let (code, told) = m.fails(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(code == 2 && told.contains("expired"), "no valid credential is left: {told}");
    let (code, told) = m.fails(&["key", "rotate", &id]);
    assert!(code == 1 && told.contains("--expires") && told.contains("memsync key create"), "{told}");
    let token = m.ok(&["key", "rotate", &id, "--expires", "1h"]);
    let serving = m.serve(&[]);
    assert_eq!(serving.ask("GET", "/sync", token.trim()), 200);

    // With a damaged record of uses the list is still shown, and the next use replaces the record.
    serving.stop();
    let tag = runtime.block_on(records.record("keys-used")).unwrap().unwrap().tag;
    let damage = records.put_record("keys-used", Some(&tag), bytes::Bytes::from_static(b"{"));
    assert!(runtime.block_on(damage).unwrap());
    let listed = m.run(&["key", "list"]);
    let (out, told) = (String::from_utf8(listed.stdout).unwrap(), String::from_utf8(listed.stderr).unwrap());
    assert!(listed.status.success() && out.contains("old") && told.contains("starts anew"), "{out}{told}");
    let serving = m.serve(&[]);
    assert_eq!(serving.ask("GET", "/sync", token.trim()), 200);
    eventually("the last use is recorded", || m.json(&["key", "list"])["keys"][0]["last_used"].is_string());
    serving.stop();
}

#[test]
fn key_command_errors_say_what_to_do() {
    let m = Machine::new();
    for (args, exit, tells) in [
        (&["key", "list"][..], 1, "memsync key create"),
        (&["key", "create", "--user", "ana"], 1, "memsync user list"),
        (&["key", "revoke", "0123456789"], 1, "memsync key list"),
        (&["key", "rotate", "0123456789"], 1, "memsync key list"),
        (&["user", "remove", "ana"], 1, "memsync user list"),
        (&["user", "create", "a/b"], 1, "A-Z a-z 0-9"),
        (&["key", "create", "--namespace", "../x"], 2, "names no namespace"),
        (&["key", "create", "--expires", "90"], 2, "unit"),
        (&["user", "create", "ana", "--quota", "1X"], 2, "unit"),
    ] {
        let (code, told) = m.fails(args);
        assert!(code == exit && told.contains(tells), "{args:?}: {code} {told}");
    }
    m.ok(&["user", "create", "ana"]);
    assert!(m.fails(&["user", "create", "ana"]).1.contains("already"));
    let store = m.at("elsewhere");
    m.ok(&["key", "create", "--store", store.to_str().unwrap()]);
    assert!(store.join("store.db").exists());
}

#[test]
fn agent_with_a_read_only_key_reports_it() {
    let m = Machine::new();
    let key = m.ok(&["key", "create", "--read-only"]);
    let serving = m.serve(&[]);
    fs::create_dir(m.at("notes")).unwrap();
    fs::write(m.at("notes/a.md"), "a note").unwrap();
    let url = format!("http://127.0.0.1:{}", serving.port);
    let config = format!("proxy.url = \"{url}\"\n[[folder]]\npath = \"{}\"\n", m.at("notes").display());
    fs::write(m.at("home/config.toml"), config).unwrap();
    let sync = |token: &str| m.command(&["sync"]).env("MEMSYNC_TOKEN", token).output().unwrap();
    let out = sync(key.trim());
    let told = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(4), "{told}");
    assert!(told.contains("may not write to it (403)") && !told.contains(key.trim()), "{told}");

    let wrong = m.ok(&["key", "create", "--namespace", "team"]);
    let told = String::from_utf8(sync(wrong.trim()).stderr).unwrap();
    assert!(told.contains("does not open this namespace"), "{told}");
    let good = m.ok(&["key", "create", "--namespace", ""]);
    let out = sync(good.trim());
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(serving.ask("GET", "/blob/a.md", good.trim()), 200);
    serving.stop();
}
