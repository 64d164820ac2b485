//! An agent that is there and does not answer.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::world::World;
use crate::world::killed::Killed;

#[test]
fn commands_come_back_from_an_agent_that_is_stopped() {
    let world = World::new();
    let a = world.device("a");
    a.write("note.md", "note");
    a.start();
    a.wait();
    let pid = a.status()["agent"]["pid"].as_u64().expect("it says its process");
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
        let said = format!("{}{}", ran.out, ran.err);
        assert!(said.contains(&format!("the agent (process {pid}) does not answer")), "{args:?}: {ran:?}");
    }
    a.signal(Signal::CONT);
    // A command that reported a failure has no effect later.
    a.wait();
    a.ok(&["status"]);
}

#[test]
fn wait_outlasts_an_agent_that_is_stopped() {
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
    let mut said = BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("does not answer"), "{line}");
    a.signal(Signal::CONT);
    assert_eq!(waiting.ended().code(), Some(0));
    assert_eq!(world.blob("note.md").unwrap(), b"note");
}
