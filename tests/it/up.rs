//! `up` from nothing to two machines in sync, with the real binary.

use crate::common::address;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use crate::common::killed::{Killed, eventually};
use crate::common::machine::{Machine, read};
use serde_json::Value;

/// Waits for the proxy with this log, and gives its address.
fn address(log: &Path) -> SocketAddr {
    eventually("it serves", || address::served_at(&read(log)).is_some());
    address::served_at(&read(log)).unwrap()
}

#[test]
fn up_syncs_a_folder_and_a_second_machine_joins() {
    let (one, two) = (Machine::new(), Machine::new());
    let (mut up, document) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(document["folder"], one.folder().to_str().unwrap());
    let proxy = document["proxy"].as_str().unwrap().to_owned();
    std::fs::write(one.folder().join("first.md"), "from one").unwrap();
    one.run(&["wait", "--timeout", "120s"], 0);
    let status = one.json(&["status"], 0);
    assert_eq!((&status["in_sync"], &status["agent"]["running"]), (&true.into(), &true.into()));
    assert_eq!(status["folders"][0]["files"], 1);
    assert_eq!(one.json(&["status", "first.md"], 0)["state"], "synced");

    // The second machine syncs without an agent.
    assert!(document["join"].is_null(), "the output may be a log");
    two.run(&["init", "--join", &one.link()], 0);
    assert_eq!(two.json(&["sync", "--dry-run"], 4)["steps"][0]["path"], "first.md");
    assert!(!two.folder().join("first.md").exists(), "a dry run changes nothing");
    assert_eq!(two.json(&["sync"], 0)["downloaded"], 1);
    assert_eq!(read(&two.folder().join("first.md")), "from one");
    assert_eq!(two.json(&["status"], 3)["agent"]["running"], false);
    std::fs::write(two.folder().join("first.md"), "edited on two").unwrap();
    two.run(&["sync", two.folder().to_str().unwrap()], 0);

    // Through the agent.
    assert!(one.run(&["sync"], 0).contains("In sync"));
    assert_eq!(read(&one.folder().join("first.md")), "edited on two");
    assert_eq!(one.json(&["history", "first.md"], 0)["versions"][0]["size"], 8);
    one.run(&["pause"], 0);
    one.run(&["resume"], 0);
    one.run(&["approve", "--list"], 0);
    one.run(&["up"], 1);

    up.signal(rustix::process::Signal::TERM);
    assert_eq!(up.ended().code(), Some(0));
    one.run(&["status"], 3);

    // The next start has the same proxy, address and files.
    let (mut up, document) = one.start(&["up"]);
    assert_eq!(document["proxy"], proxy);
    one.run(&["wait", "--timeout", "120s"], 0);
    assert_eq!(two.json(&["sync"], 0)["downloaded"], 0);
    up.signal(rustix::process::Signal::INT);
    assert_eq!(up.ended().code(), Some(0));

    // A missing folder may be an unmounted disk.
    std::fs::remove_dir_all(one.folder()).unwrap();
    let (_up, _) = one.start(&["up"]);
    eventually("it halts", || one.command().arg("status").output().unwrap().status.code() == Some(7));
    assert!(!one.folder().exists());
}

#[test]
fn up_says_in_sync_except_for_blocked_files() {
    let one = Machine::new();
    std::fs::create_dir(one.folder()).unwrap();
    std::fs::write(one.folder().join("plan.md"), "fine").unwrap();
    // Other machines take both names for one file.
    for name in ["re\u{301}sume\u{301}.md", "r\u{e9}sum\u{e9}.md"] {
        std::fs::write(one.folder().join(name), name).unwrap();
    }
    if std::fs::read_dir(one.folder()).unwrap().count() < 3 {
        return; // This filesystem takes both names for one.
    }
    let log = one.file("log");
    let mut up = one.command();
    up.args(["up", "--listen", "127.0.0.1:0"]).stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let _up = Killed(up.spawn().unwrap());
    eventually("the blocked file is named", || {
        read(&log).split_once("file that cannot be synced:").is_some_and(|(_, files)| files.contains("Unicode form"))
    });
}

#[test]
fn join_link_is_not_written_to_a_log() {
    let one = Machine::new();
    let log = one.file("log");
    let out = std::fs::File::create(&log).unwrap();
    let mut up = one.command();
    up.args(["up", "--listen", "127.0.0.1:0"]).stdout(out.try_clone().unwrap()).stderr(out);
    let _up = Killed(up.spawn().unwrap());
    eventually("it is in sync", || read(&log).contains("In sync:"));
    let token = read(&one.file("token"));
    assert!(!read(&log).contains(token.trim()), "the log holds the token");
    // The log names the command that prints the link.
    assert!(read(&log).contains("`memsync link` prints the link"), "{}", read(&log));
    let two = Machine::new();
    two.run(&["init", "--join", &one.link()], 0);
    assert!(two.error(&["link"], 3).contains("the machine that runs it has the link"));
}

#[test]
fn join_link_carries_the_namespace_of_its_folder() {
    let (one, two) = (Machine::new(), Machine::new());
    let (mut up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    up.signal(rustix::process::Signal::TERM);
    up.ended();
    let team = one.file("team");
    std::fs::create_dir(&team).unwrap();
    std::fs::write(team.join("plan.md"), "of the team").unwrap();
    let config = one.file("config.toml");
    let more = format!("{}\n[[folder]]\npath = {team:?}\nnamespace = \"team\"\n", read(&config));
    std::fs::write(&config, more).unwrap();
    let _up = one.start(&["up"]);
    one.run(&["wait", "--timeout", "120s"], 0);
    let link = one.run(&["link", team.to_str().unwrap()], 0);
    two.run(&["init", "--join", link.trim()], 0);
    two.run(&["sync"], 0);
    assert_eq!(read(&two.folder().join("plan.md")), "of the team");
}

#[test]
fn run_with_a_bad_namespace_exits_with_2() {
    let machine = Machine::new();
    std::fs::create_dir(machine.folder()).unwrap();
    let config = "[proxy]\nurl = \"http://127.0.0.1:1\"\n[[folder]]\npath = \"Memory\"\nnamespace = \"sync/n\"\n";
    let config = config.replace("Memory", machine.folder().to_str().unwrap());
    std::fs::write(machine.home.path().join("config.toml"), config).unwrap();
    let out = machine.command().arg("run").env("MEMSYNC_TOKEN", "t").output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && told.contains("folder.namespace"), "{told}");
}

#[test]
fn run_keeps_the_old_config_when_the_new_one_is_bad() {
    let (one, two) = (Machine::new(), Machine::new());
    let (_up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", &one.link()], 0);
    let log = two.home.path().join("stderr");
    let stderr = std::fs::File::create(&log).unwrap();
    let mut run = Killed(two.command().arg("run").stderr(stderr).spawn().unwrap());
    eventually("the agent comes up", || {
        two.command().args(["wait", "--timeout", "120s"]).output().unwrap().status.success()
    });
    let config = two.home.path().join("config.toml");
    let good = read(&config);
    std::fs::write(&config, "nonsense").unwrap();
    run.signal(rustix::process::Signal::HUP);
    eventually("the bad config is told", || read(&log).contains("config.toml:1"));
    std::fs::write(two.folder().join("after.md"), "x").unwrap();
    run.signal(rustix::process::Signal::USR1);
    two.run(&["wait", "--timeout", "120s"], 0);
    one.run(&["wait", "--timeout", "120s"], 0);
    assert_eq!(read(&one.folder().join("after.md")), "x");

    // A second folder, with a namespace of its own.
    let more = two.home.path().join("more");
    std::fs::create_dir(&more).unwrap();
    std::fs::write(&config, format!("{good}\n[[folder]]\npath = {more:?}\nnamespace = \"more\"\n")).unwrap();
    run.signal(rustix::process::Signal::HUP);
    eventually("the new folder is synced", || more.join(".memsync/id").exists());
    run.signal(rustix::process::Signal::TERM);
    assert_eq!(run.ended().code(), Some(0));
}

#[test]
fn sync_exits_with_5_offline_and_6_refused() {
    let (one, two) = (Machine::new(), Machine::new());
    let (mut up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", &one.link()], 0);
    let token = two.home.path().join("token");
    std::fs::write(&token, "another\n").unwrap();
    two.run(&["sync"], 6);
    up.signal(rustix::process::Signal::TERM);
    up.ended();
    two.run(&["sync"], 5);
}

#[test]
fn agent_reads_a_corrected_token() {
    let (one, two) = (Machine::new(), Machine::new());
    let (_up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", &one.link()], 0);
    let token = two.file("token");
    let right = read(&token);
    std::fs::write(&token, "another\n").unwrap();
    let _run = Killed(two.command().args(["run", "-qq"]).spawn().unwrap());
    let code = |args: &[&str]| two.command().args(args).output().unwrap().status.code();
    eventually("the token is refused", || code(&["status"]) == Some(6));
    assert_eq!(code(&["doctor"]), Some(6));
    std::fs::write(&token, right).unwrap();
    eventually("the agent has the right token", || code(&["wait", "--timeout", "1s"]) == Some(0));
    assert_eq!((code(&["status"]), code(&["doctor"])), (Some(0), Some(0)));
}

#[test]
fn doctor_reports_an_agent_with_a_refused_token() {
    let (one, two) = (Machine::new(), Machine::new());
    let (_up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", &one.link()], 0);
    let _run = Killed(two.command().args(["run", "-qq"]).env("MEMSYNC_TOKEN", "another").spawn().unwrap());
    eventually("the token is refused", || two.command().arg("status").output().unwrap().status.code() == Some(6));
    let checks = two.json(&["doctor"], 6);
    let named = |name: &str, verdict: &str| {
        checks.as_array().unwrap().iter().any(|c| c["name"] == name && c["verdict"] == verdict)
    };
    assert!(named("proxy", "ok") && named("agent", "fail"), "{checks}");
}

#[test]
fn mass_deletion_waits_for_a_decision() {
    let one = Machine::new();
    let (_up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    let note = |n: usize| one.folder().join(format!("note{n}.md"));
    let there = || (0..20).filter(|n| note(*n).exists()).count();
    for n in 0..20 {
        std::fs::write(note(n), format!("text {n}")).unwrap();
    }
    one.run(&["wait", "--timeout", "120s"], 0);
    let delete = || {
        // The pause makes the agent see all deletions at once.
        one.run(&["pause"], 0);
        (0..15).for_each(|n| std::fs::remove_file(note(n)).unwrap());
        one.run(&["resume"], 0);
        eventually("the deletions are held", || {
            one.command().args(["wait", "--timeout", "1s"]).output().unwrap().status.code() == Some(7)
        });
    };
    delete();
    let held = one.json(&["approve", "--list"], 7);
    assert_eq!(held["held"][0]["kind"], "mass_delete");
    assert_eq!(one.json(&["status"], 7)["folders"][0]["pending"]["held_delete"], 15);
    one.run(&["sync"], 7);
    one.run(&["approve", "no-such-plan"], 2);
    assert_eq!(one.json(&["approve", "--reject"], 0)["approved"], false);
    one.run(&["wait", "--timeout", "120s"], 0);
    assert_eq!(there(), 20, "what was rejected is back");

    delete();
    let id = one.json(&["approve", "--list"], 7)["held"][0]["id"].as_str().unwrap().to_owned();
    one.run(&["approve", &id], 0);
    one.run(&["wait", "--timeout", "120s"], 0);
    assert_eq!(there(), 5);
    assert_eq!(one.json(&["status"], 0)["folders"][0]["files"], 5);
    one.run(&["approve"], 0);
}

#[test]
fn sync_reports_a_conflict_until_it_is_resolved() {
    let (one, two) = (Machine::new(), Machine::new());
    let (_up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    two.run(&["init", "--join", &one.link()], 0);
    std::fs::write(two.folder().join("plan.md"), "first").unwrap();
    two.run(&["sync"], 0);
    one.run(&["wait", "--timeout", "120s"], 0);
    std::fs::write(one.folder().join("plan.md"), "edited on one").unwrap();
    one.run(&["wait", "--timeout", "120s"], 0);
    std::fs::write(two.folder().join("plan.md"), "edited on two").unwrap();
    assert_eq!(two.json(&["sync"], 8)["conflicts"].as_array().unwrap().len(), 1);
    two.run(&["sync"], 8);
    eventually("the copy comes", || one.command().arg("status").output().unwrap().status.code() == Some(8));
    assert_eq!(one.json(&["status"], 8)["folders"][0]["conflicts"], 1);
    one.run(&["conflicts", "resolve", "plan.md", "--keep", "copy"], 0);
    eventually("all is in sync", || one.command().arg("status").output().unwrap().status.code() == Some(0));
    two.run(&["sync"], 0);
    for machine in [&one, &two] {
        assert_eq!(read(&machine.folder().join("plan.md")), "edited on two");
        machine.run(&["conflicts"], 0);
    }
}

#[test]
fn status_watch_prints_changes_and_outlives_the_agent() {
    let one = Machine::new();
    let (mut up, _) = one.start(&["up", "--listen", "127.0.0.1:0"]);
    one.run(&["wait", "--timeout", "120s"], 0);
    let mut watch = one.command();
    let mut watch = watch.args(["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(watch.stdout.take().unwrap());
    let _watch = Killed(watch);
    let mut documents = std::io::BufRead::lines(lines).map(|l| serde_json::from_str::<Value>(&l.unwrap()).unwrap());
    assert_eq!(documents.next().unwrap()["agent"]["running"], true);
    std::fs::write(one.folder().join("a.md"), "x").unwrap();
    assert!(documents.any(|d| d["folders"][0]["files"] == 1 && d["in_sync"] == true));
    up.signal(rustix::process::Signal::TERM);
    up.ended();
    assert!(documents.any(|d| d["agent"]["running"] == false));
}

#[test]
fn serve_answers_and_stops() {
    let home = Machine::new();
    let log = home.home.path().join("stderr");
    let mut serve = Killed(
        home.command()
            .args(["serve", "--max-body-size", "5B", "--listen", "127.0.0.1:0"])
            .env("MEMSYNC_TOKEN", "t0ken")
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    let address = address(&log);
    let client = Machine::new();
    let mut init = client.command();
    init.args(["init", "--proxy", &format!("http://{address}")]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut init = init.spawn().unwrap();
    std::io::Write::write_all(&mut init.stdin.take().unwrap(), b"t0ken\n").unwrap();
    assert!(init.wait().unwrap().success());
    std::fs::write(client.folder().join("small"), "12345").unwrap();
    std::fs::write(client.folder().join("large"), "123456").unwrap();
    let done = client.json(&["sync"], 4);
    assert_eq!((&done["uploaded"], &done["problems"]), (&1.into(), &1.into()), "{done}");
    serve.signal(rustix::process::Signal::TERM);
    assert_eq!(serve.ended().code(), Some(0));
}

#[test]
fn second_machine_joins_over_tls_by_the_pin_in_the_link() {
    let (one, two) = (Machine::new(), Machine::new());
    let (mut up, _) = one.start(&["up", "--listen", "127.0.0.1:0", "--tls-self-signed"]);
    std::fs::write(one.folder().join("first.md"), "from one").unwrap();
    one.run(&["wait", "--timeout", "120s"], 0);
    let link = one.link();
    assert!(link.starts_with("memsync+https://127.0.0.1:") && link.contains("?pin=sha256:"), "{}", link.len());
    two.run(&["init", "--join", &link], 0);
    let config = read(&two.home.path().join("config.toml"));
    assert!(config.contains("pin = \"sha256:") && config.contains("url = \"https://127.0.0.1:"), "{config}");
    assert_eq!(two.json(&["sync"], 0)["downloaded"], 1);
    let checks = two.json(&["doctor"], 0);
    assert!(checks.as_array().unwrap().iter().any(|c| c["name"] == "clock" && c["verdict"] == "ok"), "{checks}");
    up.signal(rustix::process::Signal::TERM);
    assert_eq!(up.ended().code(), Some(0));

    // The next start has the same certificate without a flag. Another pin is refused.
    let (mut up, _) = one.start(&["up"]);
    assert_eq!(one.link(), link);
    two.run(&["sync"], 0);
    let digit = if config.contains("sha256:0") { "1" } else { "0" };
    let at = config.find("sha256:").unwrap() + 7;
    let other = format!("{}{digit}{}", &config[..at], &config[at + 1..]);
    std::fs::write(two.home.path().join("config.toml"), other).unwrap();
    let out = two.command().arg("sync").output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(5) && told.contains("proxy.pin"), "{told}");
    up.signal(rustix::process::Signal::TERM);
    assert_eq!(up.ended().code(), Some(0));
    let (_up, _) = one.start(&["up", "--no-tls"]);
    assert!(one.link().starts_with("memsync+http://"));
}

/// A certificate for this machine and its key, as PEM.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let cert = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (cert.pem(), key.serialize_pem())
}

#[test]
fn serve_reloads_a_good_certificate_only() {
    let home = Machine::new();
    let file = |name: &str| home.home.path().join(name);
    let place = |(cert, key): &(String, String)| {
        std::fs::write(file("cert.pem"), cert).unwrap();
        std::fs::write(file("key.pem"), key).unwrap();
    };
    let (first, second) = (certificate(), certificate());
    place(&first);
    let log = file("stderr");
    let mut serve = Killed(
        home.command()
            .args(["serve", "--log-format", "json", "--listen", "127.0.0.1:0"])
            .args(["--tls-cert", file("cert.pem").to_str().unwrap(), "--tls-key", file("key.pem").to_str().unwrap()])
            .env("MEMSYNC_TOKEN", "t0ken")
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    let address = address(&log);
    // The certificate is its own authority.
    let joins = |cert: &str| {
        let client = Machine::new();
        let ca = client.home.path().join("ca.pem");
        std::fs::write(&ca, cert).unwrap();
        let mut init = client.command();
        init.args(["init", "--proxy", &format!("https://localhost:{}", address.port()), "--ca-file"]).arg(&ca);
        let mut init = init.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(&mut init.stdin.take().unwrap(), b"t0ken\n").unwrap();
        let joined = init.wait().unwrap().success();
        if joined {
            assert!(read(&client.home.path().join("config.toml")).contains("ca_file = "));
            client.run(&["sync"], 0);
        }
        joined
    };
    assert!(joins(&first.0) && !joins(&second.0));
    place(&(second.0.clone(), first.1.clone()));
    serve.signal(rustix::process::Signal::HUP);
    eventually("it says that they do not fit", || read(&log).contains("stays in use"));
    assert!(joins(&first.0), "the old one goes on");
    place(&second);
    serve.signal(rustix::process::Signal::HUP);
    eventually("it reads the new one", || read(&log).contains("certificate read again"));
    assert!(joins(&second.0) && !joins(&first.0));
    serve.signal(rustix::process::Signal::TERM);
    assert_eq!(serve.ended().code(), Some(0));

    // Each log line is JSON, each request has one, and none has a secret.
    let log = read(&log);
    let lines: Vec<Value> =
        log.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    let access: Vec<_> = lines.iter().filter(|l| l["target"] == "memsync::access").collect();
    assert!(access.len() >= 6, "{log}");
    for line in access {
        assert!(line["status"].is_u64() && line["ms"].is_f64() && line["path"].is_string(), "{line}");
        assert_eq!(line["id"].as_str().unwrap().len(), 16, "{line}");
    }
    assert!(!log.contains("t0ken") && !log.contains("PRIVATE"), "{log}");
    let key = second.1.lines().nth(1).unwrap();
    assert!(!log.contains(key));
}

#[test]
fn serve_with_a_bad_certificate_exits_with_2() {
    let home = Machine::new();
    let (cert, key) = certificate();
    let file = |name: &str| home.home.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("cert.pem"), cert).unwrap();
    std::fs::write(file("key.pem"), key).unwrap();
    for (cert, certs_key) in [("cert.pem", "absent.pem"), ("key.pem", "key.pem"), ("cert.pem", "cert.pem")] {
        let mut serve = home.command();
        serve.args(["serve", "--listen", "127.0.0.1:0", "--tls-cert", &file(cert), "--tls-key", &file(certs_key)]);
        let out = serve.env("MEMSYNC_TOKEN", "t0ken").output().unwrap();
        let told = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && told.contains("pem"), "{told}");
    }
    home.run(&["serve", "--tls-cert", &file("cert.pem")], 2);
    home.run(&["serve", "--tls-self-signed", "--tls-cert", &file("cert.pem"), "--tls-key", &file("key.pem")], 2);
}

/// A closing terminal sends HUP, which asks a service to reload instead.
#[test]
fn up_stops_cleanly_when_its_terminal_closes() {
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let machine = Machine::new();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let open = || rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut command = machine.command();
    command.args(["up", "--listen", "127.0.0.1:0"]).stdin(open()).stdout(open()).stderr(open());
    let mut up = Killed(command.spawn().unwrap());
    // An open handle here would keep the terminal open.
    drop(command);
    let socket = machine.home.path().join("memsync.sock");
    let mut shown = Vec::new();
    let mut terminal = std::fs::File::from(terminal);
    while !String::from_utf8_lossy(&shown).contains("In sync") {
        let mut piece = [0; 4096];
        let n = terminal.read(&mut piece).unwrap();
        shown.extend_from_slice(&piece[..n]);
    }
    assert!(socket.exists());
    drop(terminal);
    up.signal(rustix::process::Signal::HUP);
    assert_eq!(up.ended().code(), Some(0));
    assert!(!socket.exists(), "it has put everything away");
}
