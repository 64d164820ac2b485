//! The README tells the truth: every command in it is run, in its order, with the real binary and a home for each
//! machine; its tables are those of the program; the tests it names exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use memsync::cli::args::Args;
use memsync::cli::exit::Exit;
use memsync::config::KEYS;

#[path = "common/s3.rs"]
mod s3;

const PATIENCE: Duration = Duration::from_secs(60);

/// Beginnings of commands that cannot run in a test, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo install ", "builds for minutes, and the binary is there"),
    ("cargo test ", "runs this test"),
    ("ssh ", "needs a second machine; here both are one"),
    ("systemctl ", "needs a user's session of systemd"),
    ("loginctl ", "needs a user's session of systemd"),
    ("launchctl ", "is of macOS alone, and would change the system"),
    ("sudo ", "changes the system"),
];
/// Commands that do not end with 0, and what they end with.
const CODES: &[(&str, i32)] = &[("memsync sync --dry-run", 4), ("memsync conflicts", 8), ("memsync approve --list", 7)];
/// Commands that look and change nothing: what they say may have to wait for an echo of the change before.
const LOOKS: &[&str] = &["memsync status", "memsync sync", "memsync wait", "memsync doctor"];
/// Commands that go on running.
const STAY: &[&str] = &["memsync up", "memsync run", "memsync serve", "memsync status --watch"];

fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn shipped(file: &str) -> String {
    fs::read_to_string(repository(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// A fenced block of the README.
struct Block {
    /// The section that it stands in.
    section: String,
    language: String,
    /// The second word of the fence: on which machine it is typed; the first machine has no name.
    machine: String,
    lines: Vec<String>,
}

fn blocks() -> Vec<Block> {
    let (mut blocks, mut section, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in shipped("README.md").lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(fence), None) => {
                let mut words = fence.split_whitespace().map(str::to_owned);
                let (language, machine) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                open = Some(Block { section: section.clone(), language, machine, lines: Vec::new() });
            }
            (None, Some(mut block)) => {
                block.lines.push(line.to_owned());
                open = Some(block);
            }
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ") {
                    section = title.to_owned();
                }
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

fn commands() -> Vec<(String, String)> {
    let shell = blocks().into_iter().filter(|b| b.language == "sh");
    shell.flat_map(|b| b.lines.into_iter().map(move |line| (b.machine.clone(), line))).collect()
}

/// The rows of the table whose head begins with this cell.
fn table(head: &str) -> Vec<Vec<String>> {
    let text = shipped("README.md");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {head} |")));
    lines.next().unwrap_or_else(|| panic!("there is no table of {head}"));
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The parts between single backticks, outside of blocks.
fn code(text: &str) -> Vec<String> {
    let mut inside = false;
    let prose = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// A line of output without what is different each time: numbers, paths, names, times.
fn shape(line: &str) -> String {
    let differs = |word: &str| {
        let hex = word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
        hex || word.contains('/') || word.contains(|c: char| c.is_ascii_digit()) || word.ends_with([',', ':', '`'])
    };
    let words = line.replace("just now", "0 s ago");
    let words: Vec<_> = words.split_whitespace().map(|word| if differs(word) { "#" } else { word }).collect();
    words.join(" ")
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A machine: a folder to stand in, which is its home as well.
struct Machine {
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

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn note(&self, name: &str) -> PathBuf {
        self.dir.join("memory").join(name)
    }
}

/// A command that goes on running, and the beginning of its log's name.
struct Staying {
    child: Child,
    line: String,
    machine: String,
    log: String,
}

impl Drop for Staying {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All that the README's reader has.
struct Desk {
    root: tempfile::TempDir,
    machines: BTreeMap<String, Machine>,
    staying: Vec<Staying>,
    /// The lines that commands printed, as [`shape`] has them.
    said: BTreeSet<String>,
    /// The S3 that the machine `bucket` uses, and what it runs on.
    s3: Option<(s3::Server, tokio::runtime::Runtime)>,
}

impl Desk {
    fn new() -> Self {
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

    fn first(&self) -> &Machine {
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
            let said = self.first().said("stays-0");
            let at = said.find("memsync+http://").expect("up prints a link");
            let link = said[at..].split(['\'', '\n']).next().unwrap();
            fs::write(self.on(machine).file("link"), link).unwrap();
        }
    }

    fn edit_apart(&self, name: &str) {
        let (first, second) = (self.first(), self.on("second"));
        until("the second machine has the note", || second.note(name).exists());
        second.succeed("memsync pause");
        fs::write(second.note(name), "from the second\n").unwrap();
        fs::write(first.note(name), "from the first\n").unwrap();
        first.succeed("memsync wait --timeout 60s");
        second.succeed("memsync resume");
        until("a conflict copy comes to the first machine", || first.run("memsync conflicts") == 8);
    }

    fn delete_elsewhere(&self, name: &str) {
        let (first, second) = (self.first(), self.on("second"));
        fs::write(first.note(name), "a plan\n").unwrap();
        until("the second machine has the note", || second.note(name).exists());
        second.succeed("memsync wait --timeout 60s");
        fs::remove_file(second.note(name)).unwrap();
        until("the deletion comes to the first machine", || !first.note(name).exists());
    }

    fn delete_most(&self) {
        let first = self.first();
        let many = || (0..30).map(|n| first.note(&format!("many-{n}.md")));
        many().for_each(|note| fs::write(note, "one of many\n").unwrap());
        first.succeed("memsync wait --timeout 60s");
        many().for_each(|note| fs::remove_file(note).unwrap());
        until("the deletions are held", || first.run("memsync status") == 7);
    }

    fn type_in(&mut self, name: &str, line: &str) {
        self.arrive(name);
        self.prepare(name, line);
        // The first command is `memsync`, built; and every proxy has a port of its own here.
        let mut typed = line.replacen("cargo run --release -- ", "memsync ", 1);
        if ["memsync up", "memsync serve"].iter().any(|command| typed.starts_with(command)) {
            typed.push_str(" --listen 127.0.0.1:0");
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
        let child = machine.shell(&format!("exec {line}"), &log).spawn().unwrap();
        let staying = Staying { child, line: line.to_owned(), machine: name.to_owned(), log };
        until(line, || match line.split(' ').nth(1) {
            Some("run") => machine.run("memsync wait --timeout 60s") == 0,
            Some("serve") => machine.said(&staying.log).contains("serving "),
            Some("up") => machine.said(&staying.log).contains("In sync: 0 files."),
            _ => !machine.said(&staying.log).is_empty(),
        });
        self.staying.push(staying);
    }

    /// Ctrl-C everywhere, the last first.
    fn stop(&mut self) {
        for mut staying in self.staying.drain(..).rev() {
            let pid = rustix::process::Pid::from_child(&staying.child);
            // What only shows the status may simply be killed, and Ctrl-C is not heard by who was started without a
            // terminal, as these tests may have been.
            let watches = staying.line.starts_with("memsync status");
            let signal = if watches { rustix::process::Signal::TERM } else { rustix::process::Signal::INT };
            rustix::process::kill_process(pid, signal).unwrap();
            let mut status = None;
            until(&format!("{} ends", staying.line), || {
                status = staying.child.try_wait().unwrap();
                status.is_some()
            });
            let said = self.machines[&staying.machine].said(&staying.log);
            self.said.extend(said.lines().map(shape));
            assert!(watches || status.is_some_and(|s| s.code() == Some(0)), "{}: {status:?}\n{said}", staying.line);
        }
    }
}

#[test]
fn every_command_works_in_the_readmes_order() {
    let mut desk = Desk::new();
    let mut passed_over = vec![0; NOT_RUN.len()];
    for (machine, line) in commands() {
        println!("{machine}$ {line}");
        match NOT_RUN.iter().position(|(begins, _)| line.starts_with(begins)) {
            Some(n) => passed_over[n] += 1,
            None => desk.type_in(&machine, &line),
        }
    }
    desk.stop();
    for ((begins, why), times) in NOT_RUN.iter().zip(passed_over) {
        assert!(times > 0, "{begins:?} ({why}) is in no command; take it off the list");
    }
    // What the README shows was printed; `doctor` is shown where something is wrong, and the picture is none's.
    for block in blocks().into_iter().filter(|b| b.language == "text") {
        if !["Is everything all right?", "How it works"].contains(&block.section.as_str()) {
            for line in &block.lines {
                assert!(
                    desk.said.contains(&shape(line)),
                    "{}: nothing printed {line:?}\n{:#?}",
                    block.section,
                    desk.said
                );
            }
        }
    }
    // What the commands were for.
    let (first, home) = (desk.first(), |file: &str| desk.first().file(file));
    assert_eq!(fs::read_to_string(first.note("hello.md")).unwrap(), "from the first\n", "restored");
    assert_eq!(fs::read_to_string(first.note("plan.md")).unwrap(), "a plan\n", "restored");
    assert!(first.note("many-0.md").exists(), "rejected, so it came back");
    assert_eq!(
        fs::read(home(".config/systemd/user/memsync.service")).unwrap(),
        fs::read(home("systemd/memsync.service")).unwrap()
    );
    assert!(home(".local/bin/memsync").exists());
    let plist = fs::read_to_string(home("Library/LaunchAgents/org.memsync.agent.plist")).unwrap();
    let binary = assert_cmd::cargo::cargo_bin("memsync");
    assert!(plist.contains(&format!("<string>{}</string>", binary.display())), "{plist}");
}

#[test]
fn every_block_says_what_it_is() {
    for block in blocks() {
        let known = ["sh", "text", "ini"].contains(&block.language.as_str());
        assert!(known, "{}: a block of {:?}", block.section, block.language);
        assert!(block.machine.is_empty() || block.language == "sh", "{}: {:?}", block.section, block.machine);
        let shown = block.lines.iter().any(|line| line.starts_with("$ "));
        assert!(!shown, "{}: a command in a block that is not run", block.section);
    }
}

#[test]
fn one_command_does_the_main_thing_and_one_tests_it() {
    let of = |section: &str| {
        let mut blocks = blocks().into_iter().filter(|b| b.section == section && b.language == "sh");
        blocks.next().unwrap_or_else(|| panic!("{section} has no command")).lines
    };
    assert_eq!(of("Run it"), ["cargo run --release -- up ./memory"]);
    let test = of("Test it");
    assert_eq!(test, ["cargo test --locked"]);
    let ci = shipped(".ci/run");
    assert_eq!(ci.lines().last().unwrap(), format!("step {}", test[0]), ".ci/run ends with the README's test");
}

#[test]
fn what_is_named_in_passing_can_be_typed() {
    let named: Vec<_> = code(&shipped("README.md")).into_iter().filter(|c| c.starts_with("memsync ")).collect();
    assert!(!named.is_empty());
    for command in named {
        if let Err(e) = Args::try_parse_from(command.split_whitespace()) {
            panic!("{command}: {e}");
        }
    }
}

#[test]
fn every_key_is_there_with_its_default() {
    let example = shipped("config.example.toml");
    let mut defaults = BTreeMap::new();
    let mut section = String::new();
    for line in example.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_matches(['[', ']']));
        } else if let Some((key, value)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")) {
            defaults.insert(format!("{section}{key}"), value.to_owned());
        }
    }
    let rows = table("key");
    let keys: Vec<_> = rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(keys, KEYS);
    for row in &rows {
        let (key, default) = (row[0].trim_matches('`'), row[1].trim_matches('`'));
        assert!(default == "–" || defaults.get(key).is_some_and(|d| d == default), "{key}: {default}");
    }
}

#[test]
fn the_exit_codes_are_the_programs() {
    let codes = [
        Exit::Done,
        Exit::Error,
        Exit::Usage,
        Exit::NotConfigured,
        Exit::Pending,
        Exit::Temporary,
        Exit::Refused,
        Exit::Halted,
        Exit::Conflicts,
    ];
    let words = ["in sync", "error", "usage", "not configured", "pending", "reached", "refused", "halted", "conflicts"];
    let rows = table("code");
    assert_eq!(rows.len(), codes.len());
    for ((row, code), word) in rows.iter().zip(codes).zip(words) {
        assert_eq!(row[0], (code as u8).to_string());
        assert!(row[1].contains(word), "{row:?}");
    }
}

#[test]
fn what_shows_a_promise_exists() {
    let rows = table("promise");
    assert_eq!(rows.len(), 15);
    for (n, row) in rows.iter().enumerate() {
        assert!(row[0].starts_with(&format!("{}. ", n + 1)), "{row:?}");
        let mut file = String::new();
        let mut tests = 0;
        for word in row[1].split('`').skip(1).step_by(2) {
            if word.ends_with(".rs") {
                file = shipped(word);
            } else {
                tests += 1;
                let at = file.find(&format!("fn {word}(")).unwrap_or_else(|| panic!("{}: no {word}", row[0]));
                let before: Vec<_> = file[..at].lines().rev().take(3).collect();
                assert!(before.iter().any(|line| line.contains("test")), "{word} is no test: {before:?}");
            }
        }
        assert!(tests > 0, "{row:?}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for file in ["README.md", "docs/architecture.md", "CHANGELOG.md"] {
        let dir = Path::new(file).parent().unwrap().to_owned();
        for target in shipped(file).split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned()) {
            let path = target.split('#').next().unwrap();
            if !path.starts_with("https://") && !path.is_empty() {
                assert!(repository(dir.join(path).to_str().unwrap()).exists(), "{file}: {target}");
            }
            if let Some((page, anchor)) = target.split_once('#').filter(|(page, _)| page.ends_with(".md")) {
                let page = shipped(dir.join(page).to_str().unwrap());
                let slug = |title: &str| {
                    let plain = title.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
                    plain.replace(|c: char| !c.is_alphanumeric() && c != '-', "")
                };
                assert!(page.lines().any(|l| l.starts_with('#') && slug(l) == anchor), "{file}: {target}");
            }
        }
    }
}
