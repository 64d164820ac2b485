//! Interactive commands at a terminal, typed as a person types them, with the real binary.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::common::killed::eventually;
use crate::common::machine::Machine;
use crate::common::terminal::{CTRL_C, CTRL_Z, Terminal};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

fn at_terminal(machine: &Machine, args: &[&str]) -> Terminal {
    let mut command = machine.command();
    command.args(args);
    Terminal::start(command)
}

/// Starts `up` and waits until it is in sync.
fn up(machine: &Machine) -> Terminal {
    let up = at_terminal(machine, &["up", "--listen", "127.0.0.1:0"]);
    up.shows("In sync:");
    up
}

/// The join link on a screen.
fn link_on(up: &Terminal) -> String {
    let screen = up.screen();
    let link = screen.split_whitespace().find(|word| word.starts_with("memsync+http://"));
    link.unwrap_or_else(|| panic!("no link:\n{screen}")).to_owned()
}

/// The proxy's address and the token of a join link.
fn parts_of(link: &str) -> (String, String) {
    let (address, token) = link.trim_start_matches("memsync+").split_once('#').unwrap();
    (address.to_owned(), token.to_owned())
}

#[test]
fn init_reads_a_typed_link_without_showing_it() {
    let (one, two) = (Machine::new(), Machine::new());
    let up = up(&one);
    let link = link_on(&up);
    let mut init = at_terminal(&two, &["init", "--join", "-"]);
    init.shows("Join link (not shown): ");
    assert!(!init.echoes(), "the terminal would show the link");
    init.types(&format!("{link}\n"));
    let (status, screen) = init.ended();
    assert!(status.success(), "{screen}");
    let (address, token) = parts_of(&link);
    assert!(screen.contains(&address) && !screen.contains(&token), "{screen}");
    assert!(init.echoes(), "the terminal is left as it was");
    assert_eq!(fs::read_to_string(two.file("token")).unwrap().trim(), token);

    two.run(&["sync"], 0);
}

#[test]
fn init_reads_a_typed_token_without_showing_it() {
    let (one, two) = (Machine::new(), Machine::new());
    let up = up(&one);
    let (address, token) = parts_of(&link_on(&up));
    let mut init = at_terminal(&two, &["init", "--proxy", &address]);
    init.shows("Token (not shown): ");
    init.types(&format!("{token}\n"));
    let (status, screen) = init.ended();
    assert!(status.success() && screen.contains("takes the token") && !screen.contains(&token), "{screen}");
    two.run(&["sync"], 0);
}

#[test]
fn init_refuses_a_typed_fault_without_showing_it() {
    for (args, typed, code) in [
        (&["init", "--join", "-"][..], "memsync+https://s3cret\n", 2),
        (&["init", "--proxy", "https://127.0.0.1:1"], "s3cret and more\n", 2),
        (&["init", "--proxy", "https://127.0.0.1:1"], "\u{4}", 2),
        (&["init", "--proxy", "https://127.0.0.1:1"], "s3cret\n", 5),
    ] {
        let machine = Machine::new();
        let mut init = at_terminal(&machine, args);
        init.shows("(not shown): ");
        init.types(typed);
        let (status, screen) = init.ended();
        assert_eq!(status.code(), Some(code), "{screen}");
        assert!(screen.contains("error:") && !screen.contains("s3cret"), "{screen}");
        assert!(init.echoes() && !machine.file("config.toml").exists(), "{screen}");
    }
}

#[test]
fn ctrl_c_at_a_secret_restores_the_terminal() {
    let machine = Machine::new();
    let mut init = at_terminal(&machine, &["init", "--join", "-"]);
    init.shows("(not shown): ");
    assert!(!init.echoes());
    init.types(CTRL_C);
    let (status, screen) = init.ended();
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "{screen}");
    assert!(init.echoes(), "the shell would not show what is typed");
}

#[test]
fn ctrl_z_at_a_secret_restores_the_terminal() {
    let machine = Machine::new();
    let mut init = at_terminal(&machine, &["init", "--join", "-"]);
    init.shows("(not shown): ");
    init.types(CTRL_Z);
    let pid = Pid::from_child(&init.child);
    let options = WaitOptions::UNTRACED | WaitOptions::NOHANG;
    eventually("it stops", || waitpid(Some(pid), options).unwrap().is_some_and(|(_, status)| status.stopped()));
    assert!(init.echoes(), "the shell would not show what is typed");
    init.child.signal(Signal::CONT);
    eventually("typing is hidden again", || !init.echoes());
    init.types(CTRL_C);
    let (status, screen) = init.ended();
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "{screen}");
    assert!(init.echoes(), "the terminal is left as it was");
}

/// Passes connections on to `proxy`, but no more than 64 KiB towards it before the flag is set.
fn start_gate(proxy: String) -> (SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (is_open, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let flag = Arc::clone(&is_open);
    // It ends with the test.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(&proxy).unwrap();
            let (mut answers, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut answers, &mut to_client));
            let (flag, passed) = (Arc::clone(&flag), Arc::clone(&passed));
            thread::spawn(move || {
                let (mut client, mut server, mut piece) = (client, server, [0; 4096]);
                while let Ok(n @ 1..) = client.read(&mut piece) {
                    if passed.fetch_add(n, Ordering::SeqCst) > 64 << 10 {
                        eventually("the gate is opened", || flag.load(Ordering::SeqCst));
                    }
                    server.write_all(&piece[..n]).unwrap();
                }
            });
        }
    });
    (addr, is_open)
}

#[test]
fn sync_draws_a_progress_bar() {
    let (one, two) = (Machine::new(), Machine::new());
    let up = up(&one);
    let (address, token) = parts_of(&link_on(&up));
    let (gate, is_open) = start_gate(address.trim_start_matches("http://").to_owned());
    two.run(&["init", "--join", &format!("memsync+http://{gate}#{token}")], 0);
    for n in 0..300 {
        let content: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1024).collect();
        fs::write(two.folder().join(format!("{n}.md")), content).unwrap();
    }
    let mut sync = at_terminal(&two, &["sync"]);
    sync.shows(" of 300");
    sync.types("keys that nothing reads\n");
    is_open.store(true, Ordering::SeqCst);
    let (status, screen) = sync.ended();
    assert!(status.success() && screen.contains("In sync: 300 uploaded."), "{screen}");
}

#[test]
fn status_watch_redraws_and_up_ends_with_ctrl_c() {
    let machine = Machine::new();
    let mut up = up(&machine);
    let mut watch = at_terminal(&machine, &["status", "--watch"]);
    watch.shows("In sync");
    fs::write(machine.file("Memory/new.md"), "x").unwrap();
    watch.shows("new.md");
    watch.types("keys that nothing reads\n");
    // A shell that runs the tests in the background makes them ignore INT, and `status` inherits that.
    watch.child.signal(Signal::TERM);
    assert_eq!(watch.ended().0.signal(), Some(Signal::TERM.as_raw()));

    up.types("keys that nothing reads\n");
    up.types(CTRL_C);
    let (status, screen) = up.ended();
    assert_eq!(status.code(), Some(0), "{screen}");
    eventually("the agent is gone", || !machine.file("memsync.sock").exists());
}
