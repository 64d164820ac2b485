//! `up` from nothing to two machines in sync, with the real binary.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

struct Machine {
    home: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("Memory")
    }

    fn command(&self) -> Command {
        let mut command = Command::cargo_bin("memsync").unwrap();
        command.env_clear().env("MEMSYNC_HOME", self.home.path()).env("HOME", self.home.path());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str], code: i32) -> String {
        let out = self.command().args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }

    #[track_caller]
    fn json(&self, args: &[&str], code: i32) -> Value {
        serde_json::from_str(&self.run(&[args, &["--json"]].concat(), code)).unwrap()
    }

    /// A command that stays, and the document that it prints once it runs.
    fn start(&self, args: &[&str]) -> (Staying, Value) {
        let mut child = self.command().args(args).args(["--json", "-q"]).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let staying = Staying(child);
        let document = serde_json::Deserializer::from_reader(stdout).into_iter().next();
        (staying, document.expect("it runs").unwrap())
    }
}

/// Killed when dropped.
struct Staying(Child);

impl Staying {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("it stops", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn one_command_syncs_a_folder_and_a_second_machine_joins() {
    let (one, two) = (Machine::new(), Machine::new());
    let (mut up, document) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(document["folder"], one.folder().to_str().unwrap());
    let proxy = document["proxy"].as_str().unwrap().to_owned();
    std::fs::write(one.folder().join("first.md"), "from one").unwrap();
    one.run(&["wait", "--timeout", "30s"], 0);
    let status = one.json(&["status"], 0);
    assert_eq!((&status["in_sync"], &status["agent"]["running"]), (&true.into(), &true.into()));
    assert_eq!(status["folders"][0]["files"], 1);
    assert_eq!(one.json(&["status", "first.md"], 0)["state"], "synced");

    // The second machine works by itself, without an agent.
    let link = document["join"].as_str().unwrap();
    two.run(&["init", "--join", link], 0);
    assert_eq!(two.json(&["sync", "--dry-run"], 4)["steps"][0]["path"], "first.md");
    assert!(!two.folder().join("first.md").exists(), "a rehearsal changes nothing");
    assert_eq!(two.json(&["sync"], 0)["downloaded"], 1);
    assert_eq!(read(&two.folder().join("first.md")), "from one");
    assert_eq!(two.json(&["status"], 3)["agent"]["running"], false);
    std::fs::write(two.folder().join("first.md"), "edited on two").unwrap();
    two.run(&["sync", two.folder().to_str().unwrap()], 0);

    // Through the agent.
    assert!(one.run(&["sync"], 0).contains("In sync"));
    assert_eq!(read(&one.folder().join("first.md")), "edited on two");
    assert_eq!(one.json(&["history", "first.md"], 0)["versions"][0]["size"], 8);
    one.run(&["pause"], 0);
    one.run(&["resume"], 0);
    one.run(&["approve", "--list"], 0);
    one.run(&["up"], 1);

    up.signal(rustix::process::Signal::TERM);
    assert_eq!(up.ended().code(), Some(0));
    one.run(&["status"], 3);

    // The next start is the same proxy at the same place, with what it had.
    let (mut up, document) = one.start(&["up"]);
    assert_eq!(document["proxy"], proxy);
    one.run(&["wait", "--timeout", "30s"], 0);
    assert_eq!(two.json(&["sync"], 0)["downloaded"], 0);
    up.signal(rustix::process::Signal::INT);
    assert_eq!(up.ended().code(), Some(0));
}

#[test]
fn run_reloads_and_keeps_what_runs_when_the_new_config_is_bad() {
    let (one, two) = (Machine::new(), Machine::new());
    let (_up, document) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", document["join"].as_str().unwrap()], 0);
    let log = two.home.path().join("stderr");
    let stderr = std::fs::File::create(&log).unwrap();
    let mut run = Staying(two.command().arg("run").stderr(stderr).spawn().unwrap());
    until("the agent comes up", || two.command().args(["wait", "--timeout", "30s"]).output().unwrap().status.success());
    let config = two.home.path().join("config.toml");
    let good = read(&config);
    std::fs::write(&config, "nonsense").unwrap();
    run.signal(rustix::process::Signal::HUP);
    until("the bad config is told", || read(&log).contains("config.toml:1"));
    std::fs::write(two.folder().join("after.md"), "x").unwrap();
    run.signal(rustix::process::Signal::USR1);
    two.run(&["wait", "--timeout", "30s"], 0);
    one.run(&["wait", "--timeout", "30s"], 0);
    assert_eq!(read(&one.folder().join("after.md")), "x");

    // A second folder, with the same proxy.
    let more = two.home.path().join("more");
    std::fs::create_dir(&more).unwrap();
    std::fs::write(&config, format!("{good}\n[[folder]]\npath = {more:?}\n")).unwrap();
    run.signal(rustix::process::Signal::HUP);
    until("the new folder is synced", || more.join("after.md").exists());
    run.signal(rustix::process::Signal::TERM);
    assert_eq!(run.ended().code(), Some(0));
}

#[test]
fn offline_and_refused_have_codes_of_their_own() {
    let (one, two) = (Machine::new(), Machine::new());
    let (mut up, document) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", document["join"].as_str().unwrap()], 0);
    let token = two.home.path().join("token");
    std::fs::write(&token, "another\n").unwrap();
    two.run(&["sync"], 6);
    up.signal(rustix::process::Signal::TERM);
    up.ended();
    two.run(&["sync"], 5);
}
