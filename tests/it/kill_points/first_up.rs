//! The first `memsync up` is killed at each step of each file that it makes. The next start works.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::common::killed::Killed;
use crate::common::world::{eventually, files_below};

/// More files than `up` makes.
const MOST_FILES: u32 = 30;

fn memsync(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memsync"));
    command.env_clear().env("MEMSYNC_HOME", home).env("HOME", home).current_dir(home);
    command
}

fn begin_up(home: &Path, port: u16, doom: Option<&str>) -> Child {
    let mut command = memsync(home);
    command.args(["up", "--json", "-q", "--tls-self-signed", "--listen", &format!("127.0.0.1:{port}")]);
    command.envs(doom.map(|point| ("MEMSYNC_KILL_AT", point)));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// True if it started. Otherwise it has ended.
fn came_up(child: &mut Child) -> bool {
    let stdout = child.stdout.take().unwrap();
    serde_json::Deserializer::from_reader(stdout).into_iter::<serde_json::Value>().next().is_some_and(|d| d.is_ok())
}

fn errors(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// Kills a first start at the `count`-th pass of `point`. False: it passes the point less often.
fn start_again_after_a_kill(point: &str, count: u32) -> bool {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    // Below the ports that the system assigns.
    let mut port = fastrand::u16(12_000..32_000);
    let doom = format!("{point}:{count}");
    let mut first = loop {
        let mut child = Killed(begin_up(home, port, Some(&doom)));
        if came_up(&mut child) {
            // Once it is in sync, it has written all of its files.
            let waited = memsync(home).args(["wait", "--timeout", "120s"]).output().unwrap();
            if waited.status.success() && child.try_wait().unwrap().is_none() {
                return false;
            }
            break child;
        }
        if child.ended().signal().is_some() {
            break child;
        }
        let why = errors(&mut child);
        assert!(why.contains("cannot listen"), "{doom}: {why}");
        port = fastrand::u16(12_000..32_000);
    };
    assert_eq!(first.ended().signal(), Some(Signal::ABORT.as_raw()), "it dies at {doom}");
    let mut second = Killed(begin_up(home, port, None));
    if !came_up(&mut second) {
        panic!("{doom}: the next start did not come up: {}", errors(&mut second));
    }
    std::fs::write(home.join("Memory/note.md"), "hello").unwrap();
    let waited = memsync(home).args(["wait", "--timeout", "120s"]).output().unwrap();
    assert!(waited.status.success(), "{doom}: {waited:?}");
    let left: Vec<String> = files_below(home).into_keys().filter(|name| name.contains(".tmp.")).collect();
    assert!(left.is_empty(), "{doom}: {left:?}");
    second.signal(Signal::TERM);
    assert_eq!(second.ended().code(), Some(0), "{doom}");
    eventually("the socket is gone", || !home.join("memsync.sock").exists());
    true
}

pub(crate) fn a_first_up(point: &str) {
    let files = (1..MOST_FILES).take_while(|count| start_again_after_a_kill(point, *count)).count();
    // Token, config, certificate, device id, and the two records of how it was started.
    assert!((6..10).contains(&files), "{point}: {files} files");
}
