//! The machines on which the README's reader types its commands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::killed::{Killed, eventually};
use super::page::{repository, shape};
use super::s3;
use super::terminal::{CTRL_C, Terminal};

const PATIENCE: Duration = Duration::from_secs(60);

/// Commands that do not end with 0, and what they end with.
const CODES: &[(&str, i32)] = &[("memsync sync --dry-run", 4), ("memsync conflicts", 8), ("memsync approve --list", 7)];
/// Commands that look and change nothing: what they say may have to wait for an echo of the change before.
const LOOKS: &[&str] = &["memsync status", "memsync sync", "memsync wait", "memsync doctor"];
/// Commands that go on running.
const STAY: &[&str] = &["memsync up", "memsync run", "memsync serve", "memsync status --watch"];

/// A machine: a folder to stand in, which is its home as well.
pub struct Machine {
    dir: PathBuf,
    /// What the README says is in its environment.
    env: Vec<(&'static str, String)>,
}

impl Machine {
    /// `line` as a shell on this machine would run it, what is printed going to files named `log`.
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

    /// The exit code.
    fn run(&self, line: &str) -> i32 {
        self.shell(line, "last").status().unwrap().code().unwrap()
    }

    fn said(&self, log: &str) -> String {
        [".out", ".err"].map(|end| fs::read_to_string(self.file(&format!("{log}{end}"))).unwrap()).concat()
    }

    #[track_caller]
    fn succeed(&self, line: &str) {
        let code = self.run(line);
        assert_eq!(code, 0, "{line}\n{}", self.said("last"));
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn note(&self, name: &str) -> PathBuf {
        self.dir.join("memory").join(name)
    }
}

enum Child {
    Logged(Killed),
    /// `up`, which shows the join link to a terminal only.
    AtTerminal(Terminal),
}

/// A command that goes on running, and the beginning of its log's name.
struct Staying {
    child: Child,
    line: String,
    machine: String,
    log: String,
}

impl Staying {
    fn said(&self, machine: &Machine) -> String {
        match &self.child {
            Child::Logged(_) => machine.said(&self.log),
            Child::AtTerminal(terminal) => anstream::adapter::strip_str(&terminal.screen()).to_string(),
        }
    }
}

/// All that the README's reader has.
pub struct Desk {
    machines: BTreeMap<String, Machine>,
    staying: Vec<Staying>,
    /// The lines that commands printed, as [`shape`] has them.
    pub said: BTreeSet<String>,
    /// The S3 that the machine `bucket` uses, and what it runs on.
    s3: Option<(s3::Server, tokio::runtime::Runtime)>,
    /// The last that goes: nobody writes into it any more.
    root: tempfile::TempDir,
}

impl Desk {
    pub fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            machines: BTreeMap::new(),
            staying: Vec::new(),
            said: BTreeSet::new(),
            s3: None,
        }
    }

    /// A machine on which the reader stands in a checkout.
    fn arrive(&mut self, name: &str) {
        if !self.machines.contains_key(name) {
            let dir = self.root.path().join(if name.is_empty() { "first" } else { name });
            fs::create_dir(&dir).unwrap();
            for folder in ["systemd", "launchd"] {
                std::os::unix::fs::symlink(repository(folder), dir.join(folder)).unwrap();
            }
            let env = if name == "bucket" { self.bucket() } else { Vec::new() };
            self.machines.insert(name.to_owned(), Machine { dir, env });
        }
    }

    /// Starts an S3, and gives the environment of a proxy on it.
    fn bucket(&mut self) -> Vec<(&'static str, String)> {
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

    fn on(&self, name: &str) -> &Machine {
        &self.machines[name]
    }

    pub fn first(&self) -> &Machine {
        self.on("")
    }

    /// What the README takes for given before a command.
    fn prepare(&self, machine: &str, line: &str) {
        match line {
            "memsync conflicts" => self.edit_apart("hello.md"),
            "memsync restore --deleted" => self.delete_elsewhere("plan.md"),
            "memsync approve --list" | "memsync approve --reject" => self.delete_most(),
            _ => {}
        }
        if line == "memsync init --join - ./memory" {
            self.first().succeed("memsync link");
            fs::copy(self.first().file("last.out"), self.on(machine).file("link")).unwrap();
        }
    }

    fn edit_apart(&self, name: &str) {
        let (first, second) = (self.first(), self.on("second"));
        eventually("the second machine has the note", || second.note(name).exists());
        second.succeed("memsync pause");
        fs::write(second.note(name), "from the second\n").unwrap();
        fs::write(first.note(name), "from the first\n").unwrap();
        first.succeed("memsync wait --timeout 60s");
        second.succeed("memsync resume");
        eventually("a conflict copy comes to the first machine", || first.run("memsync conflicts") == 8);
    }

    fn delete_elsewhere(&self, name: &str) {
        let (first, second) = (self.first(), self.on("second"));
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

    pub fn type_in(&mut self, name: &str, line: &str) {
        self.arrive(name);
        self.prepare(name, line);
        // The first command is `memsync`, built; and every proxy has a port of its own here.
        let mut typed = line.replacen("cargo run --release -- ", "memsync ", 1);
        if ["memsync up", "memsync serve"].iter().any(|command| typed.starts_with(command)) {
            typed = format!("{} --listen 127.0.0.1:0", typed.split(" --listen ").next().unwrap());
        }
        if STAY.iter().any(|stays| typed.starts_with(stays)) {
            return self.start(name, &typed);
        }
        let machine = self.on(name);
        if line.contains("--join -") {
            typed.push_str(" < link");
        }
        let expected = CODES.iter().find(|(command, _)| *command == line).map_or(0, |(_, code)| *code);
        if LOOKS.iter().any(|look| line.starts_with(look)) {
            let deadline = Instant::now() + PATIENCE;
            while machine.run(&typed) != expected {
                assert!(Instant::now() < deadline, "{line}: never {expected}\n{}", machine.said("last"));
            }
        } else {
            let code = machine.run(&typed);
            assert_eq!(code, expected, "{line}\n{}", machine.said("last"));
        }
        let said = machine.said("last");
        self.said.extend(said.lines().map(shape));
    }

    fn start(&mut self, name: &str, line: &str) {
        let log = format!("stays-{}", self.staying.len());
        let machine = self.on(name);
        let mut command = machine.shell(&format!("exec {line}"), &log);
        let child = match line.starts_with("memsync up") {
            true => Child::AtTerminal(Terminal::start(command)),
            false => Child::Logged(Killed(command.spawn().unwrap())),
        };
        let staying = Staying { child, line: line.to_owned(), machine: name.to_owned(), log };
        eventually(line, || match line.split(' ').nth(1) {
            Some("run") => machine.run("memsync wait --timeout 60s") == 0,
            Some("serve") => staying.said(machine).contains("serving "),
            Some("up") => staying.said(machine).contains("In sync: 0 files."),
            _ => !staying.said(machine).is_empty(),
        });
        self.staying.push(staying);
    }

    /// Ctrl-C everywhere, the last first.
    pub fn stop(&mut self) {
        for mut staying in self.staying.drain(..).rev() {
            // What only shows the status may simply be killed, and Ctrl-C is not heard by who was started without a
            // terminal, as these tests may have been.
            let watches = staying.line.starts_with("memsync status");
            let signal = if watches { Signal::TERM } else { Signal::INT };
            let status = match &mut staying.child {
                Child::Logged(child) => {
                    child.signal(signal);
                    child.ended()
                }
                Child::AtTerminal(terminal) => {
                    terminal.types(CTRL_C);
                    terminal.ended().0
                }
            };
            let said = staying.said(&self.machines[&staying.machine]);
            self.said.extend(said.lines().map(shape));
            assert!(watches || status.code() == Some(0), "{}: {status:?}\n{said}", staying.line);
        }
    }
}
