//! Advice in messages, followed word for word with the real binary.

use crate::common::killed;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::common::killed::Killed;
use crate::common::machine::{Machine, read};
use clap::Parser;
use clap::error::ErrorKind;
use memsync::cli::args::Args;
use rustix::process::Signal;

/// The part of `text` between two others.
#[track_caller]
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?} in {text}")).0
}

fn add_to_config(machine: &Machine, text: &str) {
    let config = machine.file("config.toml");
    fs::write(&config, read(&config) + text).unwrap();
}

#[track_caller]
fn run_in_shell(line: &str) {
    assert!(Command::new("/bin/sh").args(["-c", line]).status().unwrap().success(), "{line}");
}

fn stop(mut running: Killed) {
    running.signal(Signal::TERM);
    assert!(running.ended().success());
}

/// The words of a command in a message.
fn words(command: &str) -> Vec<&str> {
    command.trim_start_matches("memsync ").split(' ').collect()
}

/// A machine that ran `up`, and the address of its proxy.
fn after_up() -> (Machine, String) {
    let machine = Machine::new();
    let (up, document) = machine.start(&["up", "--listen", "127.0.0.1:0"]);
    stop(up);
    (machine, document["listen"].as_str().unwrap().to_owned())
}

#[test]
fn up_says_how_to_add_another_folder() {
    let (machine, _) = after_up();
    fs::write(machine.folder().join("note.md"), "mine").unwrap();
    let other = machine.file("the others");
    let told = machine.error(&["up", other.to_str().unwrap()], 2);
    run_in_shell(between(&told, "make it (`", "`)"));
    fs::write(other.join("payroll.md"), "secret").unwrap();
    add_to_config(&machine, between(&told, "start `memsync up` without a folder:\n", "\nThe namespace keeps"));
    let _up = machine.start(&["up"]);
    machine.run(&["wait", "--timeout", "120s"], 0);
    let status = machine.json(&["status"], 0);
    for (folder, at, theirs) in [(0, machine.folder(), "payroll.md"), (1, other, "note.md")] {
        assert_eq!(status["folders"][folder]["files"], 1, "{status}");
        assert!(!at.join(theirs).exists(), "{} came to {}", theirs, at.display());
    }
}

#[test]
fn up_refuses_a_folder_inside_another_without_advice() {
    let (machine, _) = after_up();
    let told = machine.error(&["up", machine.folder().join("inner").to_str().unwrap()], 2);
    assert!(told.contains("one inside the other") && !told.contains("add these lines"), "{told}");
}

#[test]
fn folders_sharing_a_namespace_do_not_start() {
    let (machine, _) = after_up();
    let other = machine.file("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("payroll.md"), "secret").unwrap();
    add_to_config(&machine, &format!("\n[[folder]]\npath = {other:?}\n"));
    let told = machine.error(&["up"], 2);
    machine.run(&["run"], 2);
    machine.run(&["sync"], 2);
    add_to_config(&machine, told.split_once("below its path: ").unwrap().1);
    let _up = machine.start(&["up"]);
    machine.run(&["wait", "--timeout", "120s"], 0);
    assert!(!machine.folder().join("payroll.md").exists());
}

#[test]
fn up_at_another_address_says_how_to_move() {
    let (machine, listen) = after_up();
    // Another program could take the port meanwhile, but hardly ever does.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let told = machine.error(&["up", "--listen", &free], 2);
    assert!(told.contains("`memsync up` without --listen"), "{told}");
    let (up, document) = machine.start(&["up"]);
    assert_eq!(document["listen"], listen.as_str());
    stop(up);
    let setting = between(&told, "set proxy.url = ", " there first");
    let config = read(&machine.file("config.toml"));
    let before = between(&config, "\nurl = ", "\n");
    fs::write(machine.file("config.toml"), config.replace(before, setting)).unwrap();
    let (_up, document) = machine.start(&["up", "--listen", &free]);
    assert_eq!(document["listen"], free.as_str());
    machine.run(&["wait", "--timeout", "120s"], 0);
}

#[test]
fn up_on_a_joined_machine_names_the_right_command() {
    let (one, two) = (Machine::new(), Machine::new());
    let (up, document) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", &one.link()], 0);
    let told = two.error(&["up", "--listen", "127.0.0.1:0"], 2);
    let command = between(&told, "another one at http://127.0.0.1:0. `", "` syncs");
    assert_eq!(command, "memsync run");
    let _run = Killed(two.command().args(words(command)).spawn().unwrap());
    killed::eventually("it syncs", || two.command().args(["wait", "--timeout", "9s"]).status().unwrap().success());
    // On the machine of the proxy, without the record, the other command is right.
    stop(up);
    fs::remove_file(one.file("state/up-listen")).unwrap();
    let told = one.error(&["up", "--listen", "127.0.0.1:0"], 2);
    let command = between(&told, "this machine's own, `", "` starts it");
    let (_up, again) = one.start(&words(command));
    assert_eq!(again["listen"], document["listen"]);
}

#[test]
fn exposed_token_is_accepted_after_the_advised_chmod() {
    let (machine, _) = after_up();
    let token = machine.file("token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let told = machine.error(&["up"], 2);
    run_in_shell(told.split_once("run: ").unwrap().1.trim());
    let _up = machine.start(&["up"]);
}

#[test]
fn advice_names_the_command_that_starts_this_machine() {
    let (one, two) = (Machine::new(), Machine::new());
    let (up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", &one.link()], 0);
    stop(up);
    for (machine, start) in [(&one, "memsync up"), (&two, "memsync run")] {
        assert!(machine.run(&["status"], 3).contains(&format!("\n  {start}   starts the agent")));
        assert_eq!(machine.json(&["status"], 3)["agent"]["start_command"], start);
        let told = machine.error(&["pause"], 3);
        assert_eq!(between(&told, "start it with `", "`"), start);
    }
    let _up = one.start(&["up"]);
    let _run = Killed(two.command().args(["run", "-qq"]).spawn().unwrap());
    killed::eventually("both sync", || {
        [&one, &two].iter().all(|m| m.command().args(["wait", "--timeout", "9s"]).status().unwrap().success())
    });
}

#[test]
fn init_without_flags_names_proxy_and_join() {
    let told = Machine::new().error(&["init"], 2);
    assert!(told.contains("--proxy <URL>") && told.contains("--join <LINK|->"), "{told}");
}

#[test]
fn init_says_how_to_write_an_address() {
    let (one, two) = (Machine::new(), Machine::new());
    let (_up, document) = one.start(&["up", "--listen", "localhost:0"]);
    let listen = document["listen"].as_str().unwrap();
    let token = one.file("token");
    let told = two.error(&["init", "--proxy", listen, "--token-file", token.to_str().unwrap()], 2);
    assert!(told.starts_with("error: proxy.url: "), "there is no config yet: {told}");
    assert!(told.contains(&format!("write https://{listen}, ")), "{told}");
    let address = between(&told, ", or ", " for one without");
    two.run(&["init", "--proxy", address, "--token-file", token.to_str().unwrap()], 0);
}

/// A server that gives every request the same answer, and its address.
fn web_server(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // It ends with the test.
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = BufReader::new(client.try_clone().unwrap()).lines();
            while request.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            // The client may have closed the connection.
            let _ = write!(client, "HTTP/1.1 {answer}");
        }
    });
    url
}

#[test]
fn init_recognizes_a_server_that_is_no_proxy() {
    for (answer, why) in [
        ("404 Not Found\r\nContent-Length: 5\r\nConnection: close\r\n\r\nnone\n", "it has no /health (404)"),
        ("200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>", "not what was expected"),
        (
            "301 Moved\r\nLocation: https://x/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "a redirect (301) to https",
        ),
    ] {
        let machine = Machine::new();
        let link = format!("memsync+{}#t0ken", web_server(answer));
        let told = machine.error(&["init", "--join", &link], 1);
        assert!(told.contains("this is no Memory Proxy but another server") && told.contains(why), "{told}");
        assert!(!machine.file("config.toml").exists());
    }
}

/// The source files below `dir`.
fn sources(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn commands_in_messages_can_be_typed() {
    let mut commands = 0;
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = read(&file).replace("\\\n", "");
        // The doc comments in `cli/args` are the help.
        let is_help = file.parent().is_some_and(|dir| dir.ends_with("cli/args"));
        let is_comment = |line: &str| line.trim_start().starts_with("//") && !is_help;
        for line in text.lines().filter(|line| !is_comment(line)) {
            // A part with a quote is code between two literals.
            let is_command = |part: &&str| part.starts_with("memsync ") && !part.contains('"');
            for command in line.split('`').filter(is_command) {
                // Filled-in values and placeholders in capitals are not checked.
                let typed = command.replace(['{', '}'], "").replace("--tls-…", "--tls-self-signed");
                let error = Args::try_parse_from(typed.split_whitespace()).err().map(|e| e.kind());
                let unknown = [ErrorKind::InvalidSubcommand, ErrorKind::UnknownArgument, ErrorKind::ArgumentConflict];
                assert!(!error.is_some_and(|kind| unknown.contains(&kind)), "{}: `{command}`", file.display());
                commands += 1;
            }
        }
    }
    assert!(commands > 40, "the messages were found: {commands}");
}
