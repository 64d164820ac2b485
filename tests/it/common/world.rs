//! A [`World`] of real processes: one `memsync serve`, and [`Device`]s with their own `MEMSYNC_HOME` and folder.
//!
//! Tests wait for conditions, with a deadline. A failed test prints the logs of all its processes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

pub(crate) use super::killed::{DEADLINE, eventually};
pub(crate) use super::process::files_below;
use super::process::{Process, get};

pub(super) const TOKEN: &str = "open-sesame";
const BIN: &str = env!("CARGO_BIN_EXE_memsync");

/// The files of a folder with their contents, without `.memsync`.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

fn memsync(home: &Path) -> Command {
    let mut command = Command::new(BIN);
    command.env_clear().env("MEMSYNC_HOME", home).env("HOME", home).current_dir(home);
    command
}

/// Copies a program, in another process. If this process wrote the copy, a forked child of another test could still hold
/// it open for writing, and then it cannot be run.
fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").args([from, to]).status().unwrap().success());
}

pub(crate) fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// The proxy, and the directory that holds everything.
pub(crate) struct World {
    port: Cell<u16>,
    proxy: RefCell<Option<Process>>,
    logs: Cell<u32>,
    /// The environment of a proxy whose store is a bucket. Empty for a store in a directory.
    bucket: Vec<(&'static str, String)>,
    /// Dropped last, when no process writes into it any more.
    dir: tempfile::TempDir,
}

impl World {
    /// A world whose proxy answers.
    pub(crate) fn new() -> Self {
        Self::below(tempfile::tempdir().unwrap())
    }

    /// A world for thousands of files. It is in memory if possible, because some disks take seconds to remove them.
    pub(crate) fn large() -> Self {
        Self::below(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    /// A world whose proxy has its store in a bucket.
    pub(crate) fn with_bucket(environment: Vec<(&'static str, String)>) -> Self {
        Self::at(tempfile::tempdir().unwrap(), environment)
    }

    fn below(dir: tempfile::TempDir) -> Self {
        Self::at(dir, Vec::new())
    }

    fn at(dir: tempfile::TempDir, bucket: Vec<(&'static str, String)>) -> Self {
        write_private(&dir.path().join("token"), TOKEN);
        let world = Self { dir, port: Cell::new(0), proxy: RefCell::default(), logs: Cell::new(0), bucket };
        world.start_proxy();
        world
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the proxy. A restarted proxy keeps its port.
    pub(crate) fn start_proxy(&self) {
        assert!(self.spawn_proxy(&[]), "the proxy came up");
    }

    /// Starts a proxy that dies at `point`.
    pub(crate) fn start_doomed_proxy(&self, point: &str) {
        assert!(self.spawn_proxy(&[("MEMSYNC_KILL_AT", point)]), "the proxy came up");
    }

    fn spawn_proxy(&self, env: &[(&str, &str)]) -> bool {
        let until = Instant::now() + DEADLINE;
        loop {
            // The system does not give out ports in this range, so the port stays free while the proxy is down.
            let port = match self.port.get() {
                0 => fastrand::u16(12_000..32_000),
                port => port,
            };
            let mut command = memsync(self.path());
            command.args(["serve", "--listen", &format!("127.0.0.1:{port}")]);
            command.arg("--token-file").arg(self.path().join("token")).envs(self.bucket.iter().cloned());
            if self.bucket.is_empty() {
                command.arg("--store").arg(self.store());
            }
            command.envs(env.iter().copied());
            let mut process = Process::start(command, self.next_log("proxy"));
            if process.line("serving ").is_some() {
                self.port.set(port);
                *self.proxy.borrow_mut() = Some(process);
                return true;
            }
            if !process.log().contains("cannot listen") || Instant::now() > until {
                return false;
            }
        }
    }

    fn next_log(&self, of: &str) -> PathBuf {
        self.logs.set(self.logs.get() + 1);
        self.path().join(format!("{:02}-{of}.log", self.logs.get()))
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.get())
    }

    pub(crate) fn kill_proxy(&self) {
        drop(self.proxy.take());
    }

    pub(crate) fn stop_proxy(&self) {
        let mut process = self.proxy.take().expect("a proxy runs");
        process.child.signal(Signal::TERM);
        assert_eq!(process.child.ended().code(), Some(0), "the proxy stops cleanly");
    }

    /// Waits until the proxy has died by itself, and returns its exit status.
    pub(crate) fn proxy_died(&self) -> ExitStatus {
        self.proxy.take().expect("a proxy was started").child.ended()
    }

    /// A configured device with an empty folder. Its agent does not run yet.
    pub(crate) fn device(&self, name: &str) -> Device<'_> {
        self.device_with(name, "")
    }

    /// As [`World::device`], with more config: keys of `[sync]`, then other sections.
    pub(crate) fn device_with(&self, name: &str, config: &str) -> Device<'_> {
        let home = self.path().join(name);
        let folder = home.join("notes");
        fs::create_dir_all(&folder).unwrap();
        write_private(&home.join("token"), TOKEN);
        let agent = RefCell::default();
        let device = Device { world: self, name: name.to_owned(), home, folder, agent, user: Cell::new(None) };
        device.configure(config);
        device
    }

    /// Two devices with the same files, and more config as in [`World::device_with`]. Their agents are stopped.
    pub(crate) fn apart(&self, config: &str, files: &[(&str, &str)]) -> (Device<'_>, Device<'_>) {
        let (a, b) = (self.device_with("a", config), self.device_with("b", config));
        files.iter().for_each(|(path, content)| a.write(path, content));
        a.start();
        b.start();
        self.settle(&[&a, &b]);
        a.stop();
        b.stop();
        (a, b)
    }

    /// Two devices whose agents run. Both have `note.md` with "second", and `b` has "first" in its history.
    pub(crate) fn after_an_edit(&self) -> (Device<'_>, Device<'_>) {
        let (a, b) = (self.device("a"), self.device("b"));
        a.write("note.md", "first");
        a.start();
        b.start();
        self.settle(&[&a, &b]);
        a.write("note.md", "second");
        eventually("b follows", || b.has("note.md", "second"));
        b.wait();
        (a, b)
    }

    /// As [`World::device_with`], for a device that reaches the proxy at `url`.
    pub(crate) fn device_by(&self, name: &str, url: &str, config: &str) -> Device<'_> {
        let device = self.device_with(name, config);
        device.use_proxy(url);
        device
    }

    /// The content that the proxy has at a path.
    pub(crate) fn blob(&self, path: &str) -> Option<Vec<u8>> {
        let (status, body) = self.get(&format!("/blob/{path}"));
        (status == 200).then_some(body)
    }

    /// The time at which the proxy wrote a path.
    pub(crate) fn blob_time(&self, path: &str) -> String {
        self.index()["files"][path]["last_modified"].as_str().unwrap().to_owned()
    }

    /// The index of the proxy.
    pub(crate) fn index(&self) -> Value {
        serde_json::from_slice(&self.get("/sync").1).unwrap()
    }

    fn get(&self, target: &str) -> (u16, Vec<u8>) {
        self.asker()(target)
    }

    /// A function that sends a GET to the proxy and returns status and body. For another thread.
    pub(crate) fn asker(&self) -> impl Fn(&str) -> (u16, Vec<u8>) + Send + 'static {
        let port = self.port.get();
        move |target| get(port, target)
    }

    /// Runs `memsync wait` on each device in turn until all folders are equal. Returns their files.
    #[track_caller]
    pub(crate) fn settle(&self, devices: &[&Device]) -> Files {
        let until = Instant::now() + DEADLINE;
        loop {
            for device in devices {
                device.wait();
            }
            let trees: Vec<Files> = devices.iter().map(|d| d.tree()).collect();
            // All folders may lack a file that the proxy has.
            let index = self.index();
            let live = index["files"].as_object().unwrap().iter().filter(|(_, e)| e["is_deleted"] == false).count();
            if trees.windows(2).all(|pair| pair[0] == pair[1]) && trees[0].len() == live {
                return trees.into_iter().next().unwrap();
            }
            let names = |t: &Files| t.keys().cloned().collect::<Vec<_>>();
            let all: Vec<_> = trees.iter().map(names).collect();
            assert!(Instant::now() < until, "the folders did not become equal: {live} live, {all:?}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let Ok(entries) = fs::read_dir(self.dir.path()) else { return };
        let mut logs: Vec<PathBuf> =
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
        logs.sort();
        for log in logs {
            println!("--- {}", log.display());
            println!("{}", fs::read_to_string(&log).unwrap_or_default());
        }
    }
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A running command.
pub(crate) struct Begun(Child);

impl Begun {
    /// The next lines of a command that does not end by itself. Kills the command then.
    pub(crate) fn lines(mut self, count: usize) -> Vec<String> {
        let out = BufReader::new(self.0.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        let reader = thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let read: Vec<_> = (0..count).map_while(|_| lines.recv_timeout(DEADLINE).ok()).collect();
        drop(lines);
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        // It ends with an error if the command printed more lines.
        let _ = reader.join().unwrap();
        assert_eq!(read.len(), count, "{read:?}");
        read
    }

    /// Waits until the command has ended.
    pub(crate) fn ended(self) -> Ran {
        let out = self.0.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        // -1: a signal killed it.
        Ran { code: out.status.code().unwrap_or(-1), out: text(out.stdout), err: text(out.stderr) }
    }
}

/// One machine.
pub(crate) struct Device<'w> {
    world: &'w World,
    pub name: String,
    pub home: PathBuf,
    pub folder: PathBuf,
    agent: RefCell<Option<Process>>,
    /// The user of the agent, if it is not the user of the test.
    user: Cell<Option<u32>>,
}

/// The user `nobody`.
const ANOTHER_USER: u32 = 65_534;

impl Device<'_> {
    fn configure(&self, sync: &str) {
        self.write_config(sync, &[(&self.folder, "")]);
    }

    /// Replaces the world's proxy by the one at `url` in the config.
    pub(crate) fn use_proxy(&self, url: &str) {
        let at = self.home.join("config.toml");
        write_private(&at, &fs::read_to_string(&at).unwrap().replace(&self.world.url(), url));
    }

    /// Writes the config: `sync` goes into `[sync]` (other sections may follow), then the folders, each with more keys.
    pub(crate) fn write_config(&self, sync: &str, folders: &[(&Path, &str)]) {
        // A key must not be there twice, so these defaults give way to the test's own values.
        let key = |name: &str, value: &str| {
            if sync.contains(name) { String::new() } else { format!("{name} = {value:?}\n") }
        };
        let mut text = format!(
            "device = {:?}\nlog_level = \"debug\"\n[proxy]\nurl = {:?}\ntoken_file = {:?}\n[sync]\n",
            self.name,
            self.world.url(),
            self.home.join("token"),
        );
        text += &(key("interval", "2s") + &key("debounce", "20ms"));
        text += &format!("{sync}\n");
        for (path, more) in folders {
            text += &format!("[[folder]]\npath = {path:?}\n{more}\n");
        }
        write_private(&self.home.join("config.toml"), &text);
    }

    /// Gives agent and folder to an ordinary user, who is bound by permissions. Does nothing if such a user runs the test.
    pub(crate) fn as_another_user(&self) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // Other users cannot read the program's directory or the world.
        copy_program(Path::new(BIN), &self.world.path().join("memsync"));
        fs::set_permissions(self.world.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let status =
            Command::new("chown").args(["-R", &format!("{ANOTHER_USER}:{ANOTHER_USER}")]).arg(&self.home).status();
        assert!(status.unwrap().success());
        self.user.set(Some(ANOTHER_USER));
    }

    /// Starts the agent, and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&self) -> &Self {
        let mut process = self.spawn(&[]);
        let line = process.line("syncing ");
        assert!(line.is_some(), "{}: the agent came up: {}", self.name, process.log());
        *self.agent.borrow_mut() = Some(process);
        self
    }

    /// Starts the agent with additional environment, and returns at once.
    pub(crate) fn start_with(&self, env: &[(&str, &str)]) {
        *self.agent.borrow_mut() = Some(self.spawn(env));
    }

    /// Starts an agent that dies at `point`, and returns at once.
    pub(crate) fn start_doomed(&self, point: &str) {
        *self.agent.borrow_mut() = Some(self.spawn(&[("MEMSYNC_KILL_AT", point)]));
    }

    fn spawn(&self, env: &[(&str, &str)]) -> Process {
        assert!(self.agent.borrow().is_none(), "one agent a device");
        let mut command = memsync(&self.home);
        if let Some(user) = self.user.get() {
            let (mut theirs, env) = (Command::new(self.world.path().join("memsync")), command.get_envs());
            theirs.envs(env.filter_map(|(key, value)| Some((key, value?)))).current_dir(&self.home).uid(user).gid(user);
            command = theirs;
        }
        command.arg("run").envs(env.iter().copied());
        Process::start(command, self.world.next_log(&self.name))
    }

    /// Sends TERM, and waits for a clean stop.
    #[track_caller]
    pub(crate) fn stop(&self) {
        let mut process = self.agent.take().expect("an agent runs");
        process.child.signal(Signal::TERM);
        assert_eq!(process.child.ended().code(), Some(0), "{}: the agent stops cleanly: {}", self.name, process.log());
    }

    /// Sends KILL.
    pub(crate) fn kill(&self) {
        drop(self.agent.take());
    }

    /// Waits until the agent has died by itself, and returns its exit status.
    #[track_caller]
    pub(crate) fn died(&self) -> ExitStatus {
        self.agent.take().expect("an agent was started").child.ended()
    }

    /// True: the agent has not ended.
    pub(crate) fn runs(&self) -> bool {
        self.agent.borrow_mut().as_mut().is_some_and(|p| p.child.try_wait().unwrap().is_none())
    }

    /// Sends TERM to an agent that may have died, and returns at once.
    pub(crate) fn terminate(&self) {
        if self.runs() {
            self.signal(Signal::TERM);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.agent.borrow().as_ref().expect("an agent runs").child.signal(signal);
    }

    /// The log of the running agent.
    pub(crate) fn log(&self) -> String {
        self.agent.borrow().as_ref().expect("an agent runs").log()
    }

    /// Runs a command in the folder, or at home if the folder is missing, and waits for its end.
    pub(crate) fn cli(&self, args: &[&str]) -> Ran {
        self.cli_with(args, &[])
    }

    pub(crate) fn cli_with(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        self.begin(args, env).ended()
    }

    /// As [`Device::cli`], at home.
    pub(crate) fn cli_at_home(&self, args: &[&str]) -> Ran {
        self.begin_in(&self.home, args, &[]).ended()
    }

    /// Starts a command in the folder, or at home if the folder is missing.
    pub(crate) fn begin(&self, args: &[&str], env: &[(&str, &str)]) -> Begun {
        let dir = if self.folder.is_dir() { &self.folder } else { &self.home };
        self.begin_in(dir, args, env)
    }

    fn begin_in(&self, dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Begun {
        let mut command = memsync(&self.home);
        command.current_dir(dir).args(args).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Begun(command.spawn().unwrap())
    }

    /// Starts a command in the folder that reads `input` from stdin.
    pub(crate) fn begin_with_input(&self, args: &[&str], input: impl AsRef<[u8]>, env: &[(&str, &str)]) -> Begun {
        let mut command = memsync(&self.home);
        command.current_dir(&self.folder).args(args).envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that refuses the path reads nothing.
        let _ = child.stdin.take().unwrap().write_all(input.as_ref());
        Begun(child)
    }

    /// Runs `memsync run` and expects it to refuse.
    pub(crate) fn cli_until_refused(&self) -> Ran {
        let mut process = self.spawn(&[]);
        let status = process.child.ended();
        Ran { code: status.code().unwrap_or(-1), out: String::new(), err: process.log() }
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.cli(args);
        assert_eq!(ran.code, 0, "{}: {args:?}: {ran:?}", self.name);
        ran
    }

    /// Waits until everything is in sync. There may be conflict copies.
    #[track_caller]
    pub(crate) fn wait(&self) {
        let ran = self.cli(&["wait", "--timeout", "120s"]);
        assert!(matches!(ran.code, 0 | 8), "{}: {ran:?}: {}", self.name, self.status());
    }

    /// The output of `status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.cli(&["status", "--json"]).json()
    }

    /// The status of the one folder.
    #[track_caller]
    pub(crate) fn folder_status(&self) -> Value {
        self.status()["folders"][0].clone()
    }

    /// Waits until the folder is halted for this reason, and returns the halt.
    #[track_caller]
    pub(crate) fn halted(&self, kind: &str) -> Value {
        let mut halt = Value::Null;
        eventually(&format!("{} halts: {kind}", self.name), || {
            halt = self.folder_status()["halt"].take();
            halt["kind"] == kind
        });
        halt
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let at = self.at(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, content).unwrap();
    }

    #[track_caller]
    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.at(path)).unwrap_or_else(|e| panic!("{}: {path}: {e}", self.name))
    }

    /// True: the file has this content.
    pub(crate) fn has(&self, path: &str, content: impl AsRef<[u8]>) -> bool {
        fs::read(self.at(path)).is_ok_and(|c| c == content.as_ref())
    }

    #[track_caller]
    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.at(path)).unwrap_or_else(|e| panic!("{}: {path}: {e}", self.name));
    }

    #[track_caller]
    pub(crate) fn rename(&self, from: &str, to: &str) {
        fs::create_dir_all(self.at(to).parent().unwrap()).unwrap();
        fs::rename(self.at(from), self.at(to)).unwrap();
    }

    /// All regular files of the folder, without `.memsync`.
    pub(crate) fn tree(&self) -> Files {
        files_below(&self.folder)
    }

    /// The paths of the files in `.memsync/stage`.
    pub(crate) fn staged(&self) -> Vec<String> {
        files_below(&self.at(".memsync/stage")).into_keys().collect()
    }

    /// The contents of the files in history.
    pub(crate) fn kept(&self) -> Vec<Vec<u8>> {
        files_below(&self.at(".memsync/history")).into_values().collect()
    }

    /// The names of the conflict copies in the folder.
    pub(crate) fn copies(&self) -> Vec<String> {
        self.tree().into_keys().filter(|name| name.contains(".conflict-")).collect()
    }
}
