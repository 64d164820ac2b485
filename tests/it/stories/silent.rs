//! An agent that runs and does not answer.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::common::killed::Killed;
use crate::common::world::World;

#[test]
fn commands_return_from_a_stopped_agent() {
    let world = World::new();
    let a = world.device("a");
    a.write("note.md", "note");
    a.start();
    a.wait();
    let pid = a.status()["agent"]["pid"].as_u64().expect("the status has the process id");
    a.signal(Signal::STOP);
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["status", "note.md"],
        &["wait", "--timeout", "1s"],
        &["sync"],
        &["sync", "--dry-run"],
        &["pause"],
        &["resume"],
        &["approve"],
        &["doctor"],
    ] {
        let ran = a.cli(args);
        assert_eq!(ran.code, 1, "{args:?}: {ran:?}");
        let output = format!("{}{}", ran.out, ran.err);
        assert!(output.contains(&format!("the agent (process {pid}) does not answer")), "{args:?}: {ran:?}");
    }
    a.signal(Signal::CONT);
    // A failed command has no effect later.
    a.wait();
    a.ok(&["status"]);
}

#[test]
fn wait_outlasts_a_stopped_agent() {
    let world = World::new();
    let a = world.device("a");
    a.start();
    a.wait();
    a.signal(Signal::STOP);
    a.write("note.md", "note");
    let mut command = Command::new(env!("CARGO_BIN_EXE_memsync"));
    command.env_clear().env("MEMSYNC_HOME", &a.home).args(["wait", "--timeout", "170s"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut waiting = Killed(command.spawn().unwrap());
    let mut stderr = BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("does not answer"), "{line}");
    a.signal(Signal::CONT);
    assert_eq!(waiting.ended().code(), Some(0));
    assert_eq!(world.blob("note.md").unwrap(), b"note");
}
