//! The machines on which the reader of README.md and docs/ types the commands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::page::{repository, shape};
use crate::common::killed::{Killed, eventually};
use crate::common::s3;
use crate::common::terminal::{CTRL_C, Terminal};

const DEADLINE: Duration = Duration::from_secs(60);

/// Machines and commands that do not exit with 0, and their exit codes.
const EXIT_CODES: &[(&str, &str, i32)] = &[
    ("second", "memsync sync --dry-run", 4),
    ("", "memsync conflicts", 8),
    ("", "memsync approve --list", 7),
    ("", "echo 'Another plan.' | memsync put memory/agenda.md --if-new", 9),
    ("offline", "memsync doctor", 5),
];
/// Commands that change nothing. They are repeated until the expected exit code, because an earlier change may still be
/// under way.
const READ_ONLY: &[&str] = &["memsync status", "memsync sync", "memsync wait", "memsync doctor"];
/// Commands that keep running.
const KEEP_RUNNING: &[&str] = &["memsync up", "memsync run", "memsync serve", "memsync status --watch"];

/// A machine: a working directory, which is also its home.
pub(crate) struct ReaderMachine {
    dir: PathBuf,
    /// The variables that the page sets.
    env: Vec<(&'static str, String)>,
}

impl ReaderMachine {
    /// `line` in a shell on this machine. Its output goes to files whose names begin with `log`.
    fn shell(&self, line: &str, log: &str) -> Command {
        let binary = assert_cmd::cargo::cargo_bin("memsync");
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", binary.parent().unwrap().display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).current_dir(&self.dir).env_clear();
        command.env("PATH", path).env("HOME", &self.dir).env("MEMSYNC_HOME", self.dir.join("home"));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdout(File::create(self.file(&format!("{log}.out"))).unwrap());
        command.stderr(File::create(self.file(&format!("{log}.err"))).unwrap());
        command.stdin(Stdio::null());
        command
    }

    /// Runs `line` and returns its exit code.
    fn run(&self, line: &str) -> i32 {
        self.shell(line, "last").status().unwrap().code().unwrap()
    }

    fn output(&self, log: &str) -> String {
        [".out", ".err"].map(|end| fs::read_to_string(self.file(&format!("{log}{end}"))).unwrap()).concat()
    }

    #[track_caller]
    fn succeed(&self, line: &str) {
        let code = self.run(line);
        assert_eq!(code, 0, "{line}\n{}", self.output("last"));
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn note(&self, name: &str) -> PathBuf {
        self.dir.join("memory").join(name)
    }
}

enum RunningChild {
    Logged(Killed),
    /// `up` prints the join link to a terminal only.
    AtTerminal(Terminal),
}

/// A command that keeps running, and the beginning of its log's name.
struct RunningCommand {
    child: RunningChild,
    line: String,
    machine: String,
    log: String,
}

impl RunningCommand {
    fn output(&self, machine: &ReaderMachine) -> String {
        match &self.child {
            RunningChild::Logged(_) => machine.output(&self.log),
            RunningChild::AtTerminal(terminal) => anstream::adapter::strip_str(&terminal.screen()).to_string(),
        }
    }
}

/// Every machine of the reader.
pub(crate) struct Desk {
    machines: BTreeMap<String, ReaderMachine>,
    running: Vec<RunningCommand>,
    /// The lines that commands printed, in the form of [`shape`].
    pub printed: BTreeSet<String>,
    /// The S3 server of the machine `bucket`, and its runtime.
    s3: Option<(s3::Server, tokio::runtime::Runtime)>,
    /// The last field: dropped after everything that writes into it.
    root: tempfile::TempDir,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            machines: BTreeMap::new(),
            running: Vec::new(),
            printed: BTreeSet::new(),
            s3: None,
        }
    }

    /// Makes the machine, with a checkout as the working directory, if it is new.
    fn ensure_machine(&mut self, name: &str) {
        if !self.machines.contains_key(name) {
            let dir = self.root.path().join(if name.is_empty() { "first" } else { name });
            fs::create_dir(&dir).unwrap();
            for folder in ["systemd", "launchd"] {
                std::os::unix::fs::symlink(repository(folder), dir.join(folder)).unwrap();
            }
            let env = if name == "bucket" { self.start_s3() } else { Vec::new() };
            self.machines.insert(name.to_owned(), ReaderMachine { dir, env });
        }
    }

    /// Starts an S3 server, and returns the environment of a proxy on it.
    fn start_s3(&mut self) -> Vec<(&'static str, String)> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(s3::Server::start());
        let env = vec![
            ("S3_BUCKET", s3::BUCKET.to_owned()),
            ("S3_ENDPOINT_URL", server.endpoint()),
            ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY.to_owned()),
        ];
        self.s3 = Some((server, runtime));
        env
    }

    fn machine(&self, name: &str) -> &ReaderMachine {
        &self.machines[name]
    }

    pub(crate) fn first(&self) -> &ReaderMachine {
        self.machine("")
    }

    /// Makes the situation that the page assumes before a command.
    fn prepare(&self, machine: &str, line: &str) {
        match line {
            "memsync conflicts" => self.edit_on_both("hello.md"),
            "memsync restore --deleted" => self.delete_on_second("plan.md"),
            "memsync approve --list" | "memsync approve --reject" => self.delete_most(),
            _ => {}
        }
        if machine == "offline" {
            self.configure_without_proxy(machine);
        }
        if line == "memsync init --join - ./memory" {
            self.first().succeed("memsync link");
            fs::copy(self.first().file("last.out"), self.machine(machine).file("link")).unwrap();
        }
    }

    /// Writes a config for a proxy that does not run.
    fn configure_without_proxy(&self, machine: &str) {
        let machine = self.machine(machine);
        for folder in ["home", "memory"] {
            fs::create_dir(machine.file(folder)).unwrap();
        }
        let (token, folder) = (machine.file("home/token"), machine.file("memory"));
        fs::write(&token, "secret").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        // Port 9 belongs to a service that no machine runs any more.
        let proxy = format!("[proxy]\nurl = \"http://127.0.0.1:9\"\ntoken_file = {token:?}\n");
        fs::write(machine.file("home/config.toml"), format!("{proxy}[[folder]]\npath = {folder:?}\n")).unwrap();
    }

    fn edit_on_both(&self, name: &str) {
        let (first, second) = (self.first(), self.machine("second"));
        eventually("the second machine has the note", || second.note(name).exists());
        second.succeed("memsync pause");
        fs::write(second.note(name), "from the second\n").unwrap();
        fs::write(first.note(name), "from the first\n").unwrap();
        first.succeed("memsync wait --timeout 60s");
        second.succeed("memsync resume");
        eventually("a conflict copy comes to the first machine", || first.run("memsync conflicts") == 8);
    }

    fn delete_on_second(&self, name: &str) {
        let (first, second) = (self.first(), self.machine("second"));
        fs::write(first.note(name), "a plan\n").unwrap();
        eventually("the second machine has the note", || second.note(name).exists());
        eventually("the conflict is settled there too", || second.run("memsync wait --timeout 60s") == 0);
        fs::remove_file(second.note(name)).unwrap();
        eventually("the deletion comes to the first machine", || !first.note(name).exists());
    }

    fn delete_most(&self) {
        let first = self.first();
        let many = || (0..30).map(|n| first.note(&format!("many-{n}.md")));
        many().for_each(|note| fs::write(note, "one of many\n").unwrap());
        first.succeed("memsync wait --timeout 60s");
        many().for_each(|note| fs::remove_file(note).unwrap());
        eventually("the deletions are held", || first.run("memsync status") == 7);
    }

    pub(crate) fn type_in(&mut self, name: &str, line: &str) {
        self.ensure_machine(name);
        self.prepare(name, line);
        // The binary is built already, and every proxy gets a free port.
        let mut typed = line.replacen("cargo run --release -- ", "memsync ", 1);
        if ["memsync up", "memsync serve"].iter().any(|command| typed.starts_with(command)) {
            typed = format!("{} --listen 127.0.0.1:0", typed.split(" --listen ").next().unwrap());
        }
        if KEEP_RUNNING.iter().any(|command| typed.starts_with(command)) {
            return self.start(name, &typed);
        }
        let machine = self.machine(name);
        if line.contains("--join -") {
            typed.push_str(" < link");
        }
        let expected = EXIT_CODES.iter().find(|(on, command, _)| (*on, *command) == (name, line));
        let expected = expected.map_or(0, |(_, _, code)| *code);
        if READ_ONLY.iter().any(|command| line.starts_with(command)) {
            let deadline = Instant::now() + DEADLINE;
            while machine.run(&typed) != expected {
                assert!(Instant::now() < deadline, "{line}: never {expected}\n{}", machine.output("last"));
            }
        } else {
            let code = machine.run(&typed);
            assert_eq!(code, expected, "{line}\n{}", machine.output("last"));
        }
        let output = machine.output("last");
        self.printed.extend(output.lines().map(shape));
    }

    fn start(&mut self, name: &str, line: &str) {
        let log = format!("running-{}", self.running.len());
        let machine = self.machine(name);
        let mut command = machine.shell(&format!("exec {line}"), &log);
        let child = match line.starts_with("memsync up") {
            true => RunningChild::AtTerminal(Terminal::start(command)),
            false => RunningChild::Logged(Killed(command.spawn().unwrap())),
        };
        let running = RunningCommand { child, line: line.to_owned(), machine: name.to_owned(), log };
        eventually(line, || match line.split(' ').nth(1) {
            Some("run") => machine.run("memsync wait --timeout 60s") == 0,
            Some("serve") => running.output(machine).contains("serving "),
            Some("up") => running.output(machine).contains("In sync: 0 files."),
            _ => !running.output(machine).is_empty(),
        });
        self.running.push(running);
    }

    /// Ctrl-C for every running command, the last one first.
    pub(crate) fn stop(&mut self) {
        for mut running in self.running.drain(..).rev() {
            // `status --watch` gets TERM: without a terminal, as in CI, it ignores Ctrl-C.
            let watches = running.line.starts_with("memsync status");
            let signal = if watches { Signal::TERM } else { Signal::INT };
            let status = match &mut running.child {
                RunningChild::Logged(child) => {
                    child.signal(signal);
                    child.ended()
                }
                RunningChild::AtTerminal(terminal) => {
                    terminal.types(CTRL_C);
                    terminal.ended().0
                }
            };
            let output = running.output(&self.machines[&running.machine]);
            self.printed.extend(output.lines().map(shape));
            assert!(watches || status.code() == Some(0), "{}: {status:?}\n{output}", running.line);
        }
    }
}
