//! A machine for the real binary: a home directory with config, state and folders.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

use crate::common::killed::Killed;

pub(crate) struct Machine {
    pub home: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.file("Memory")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::cargo_bin("memsync").unwrap();
        command.env_clear().env("MEMSYNC_HOME", self.home.path()).env("HOME", self.home.path());
        command
    }

    /// Runs a command to its end, and returns its stdout.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str], code: i32) -> String {
        self.outputs(args, code).0
    }

    /// Runs a command to its end, and returns its stderr.
    #[track_caller]
    pub(crate) fn error(&self, args: &[&str], code: i32) -> String {
        self.outputs(args, code).1
    }

    #[track_caller]
    fn outputs(&self, args: &[&str], code: i32) -> (String, String) {
        let out = self.command().args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
        (text(&out.stdout), text(&out.stderr))
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str], code: i32) -> Value {
        serde_json::from_str(&self.run(&[args, &["--json"]].concat(), code)).unwrap()
    }

    /// Starts `up` or another long-running command. Returns the process and the document that it prints.
    pub(crate) fn start(&self, args: &[&str]) -> (Killed, Value) {
        let mut child = self.command().args(args).args(["--json", "-q"]).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let staying = Killed(child);
        let document = serde_json::Deserializer::from_reader(stdout).into_iter().next();
        (staying, document.expect("it runs").unwrap())
    }

    /// The join link of this machine's `up`.
    #[track_caller]
    pub(crate) fn link(&self) -> String {
        self.run(&["link"], 0).trim().to_owned()
    }
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
