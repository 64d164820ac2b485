//! Many files at once, and processes that die in the middle of it.

use std::fs;
use std::net::TcpListener;

use rustix::process::Signal;

use crate::common::world::{Device, Files, World, eventually, write_private};
use memsync::testing::seed;

fn many(device: &Device, files: usize, size: usize) -> Files {
    let mut written = Files::new();
    for n in 0..files {
        let path = format!("dir{}/{n}.md", n % 37);
        let content = format!("{n:08}").repeat(size / 8).into_bytes();
        device.write(&path, &content);
        written.insert(path, content);
    }
    written
}

/// As [`many`], with files that are too large for a batch.
fn many_large(device: &Device) -> Files {
    many(device, 300, 72 * 1024)
}

#[test]
fn two_thousand_files_arrive_at_once() {
    let world = World::large();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    b.start();
    let written = many(&a, 2000, 64);
    assert!(world.settle(&[&a, &b]) == written);
    // The files are overwritten here and added there.
    let changed: Files = written.keys().map(|path| (path.clone(), format!("b {path}").into_bytes())).collect();
    for (path, content) in &changed {
        b.write(path, content);
    }
    assert!(world.settle(&[&b, &a]) == changed);
    assert!(a.copies().is_empty());
}

#[test]
fn uploads_finish_after_the_proxy_is_killed() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    world.stop_proxy();
    world.start_doomed_proxy("store-after-commit:5");
    b.start();
    let written = many_large(&a);
    a.start();
    world.proxy_died();
    let store = world.store();
    let stats = a.ok(&["store", "stats", "--json", "--store", store.to_str().unwrap()]).json();
    let there = stats["namespaces"][0]["files"].as_u64().unwrap();
    assert!((5..written.len() as u64).contains(&there), "the upload was interrupted: {there}");
    eventually("a notices", || a.status()["state"] == "offline");
    world.start_proxy();
    assert!(world.settle(&[&a, &b]) == written);
}

#[test]
fn uploads_finish_after_the_agent_is_killed() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    b.start();
    let written = many_large(&a);
    a.start_doomed("upload.acknowledged:20");
    a.died();
    let there = world.index()["files"].as_object().unwrap().len();
    assert!((20..written.len()).contains(&there), "the upload was interrupted: {there}");
    assert_eq!(a.status()["agent"]["running"], false);
    a.start();
    assert!(world.settle(&[&a, &b]) == written);
    assert!(a.copies().is_empty() && a.staged().is_empty());
}

/// The proxy has the upload, and the agent dies before it commits. Meanwhile its user edits the file.
#[test]
fn upload_of_a_killed_agent_is_no_conflict() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("edited.md", "base");
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.stop();
    for (name, point) in [("edited.md", "upload.acknowledged:1"), ("new.md", "commit.before:1")] {
        a.write(name, "sent");
        a.start_doomed(point);
        a.died();
        assert_eq!(world.blob(name).unwrap(), b"sent");
        a.write(name, "and then edited");
        a.start();
        let files = world.settle(&[&a, &b]);
        assert_eq!(files[name], b"and then edited", "{name}");
        a.stop();
    }
    assert_eq!((a.copies(), b.copies()), (Vec::<String>::new(), Vec::new()));
}

#[test]
fn downloads_finish_after_the_agent_is_killed() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let written = many_large(&a);
    a.start();
    a.wait();
    b.start_doomed("download.staged:20");
    b.died();
    assert!(!b.staged().is_empty(), "the download was interrupted");
    assert!(b.tree().len() < written.len(), "the download was interrupted: {}", b.tree().len());
    b.start();
    assert!(world.settle(&[&a, &b]) == written);
    assert!(b.copies().is_empty() && b.staged().is_empty());
}

#[test]
fn wrong_token_is_reported_and_reread_on_hup() {
    let world = World::new();
    let a = world.device("a");
    write_private(&a.home.join("token"), "wrong");
    a.write("note.md", "hello");
    a.start();
    eventually("the agent reports it", || a.status()["state"] == "auth_required");
    let ran = a.cli(&["status"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    assert_eq!(a.cli(&["wait", "--timeout", "3s"]).code, 6);
    assert!(!a.log().contains("wrong"), "no token in the log");
    write_private(&a.home.join("token"), "open-sesame");
    a.signal(Signal::HUP);
    eventually("the file is uploaded", || world.blob("note.md").is_some());
    a.wait();
    eventually("all is in sync", || a.cli(&["status"]).code == 0);
}

#[test]
fn second_agent_is_refused() {
    let world = World::new();
    let a = world.device("a");
    a.write("note.md", "hello");
    a.start();
    a.wait();
    let ran = a.cli(&["run"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("an agent runs already"), "{ran:?}");
    // The first agent goes on.
    a.write("note.md", "still here");
    eventually("the file is uploaded", || world.blob("note.md").is_some_and(|c| c == b"still here"));
}

#[test]
fn second_agent_with_its_own_state_is_refused() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.start();
    a.wait();
    b.write_config("", &[(&a.folder, "")]);
    let ran = b.cli_until_refused();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains(a.folder.to_str().unwrap()), "{ran:?}");
}

#[test]
fn three_devices_converge_after_random_acts() {
    let world = World::new();
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let devices = ["a", "b", "c"].map(|name| world.device_with(name, "conflict = \"copy\"\nmax_delete = 1.0"));
    for device in &devices {
        device.start();
    }
    let mut own: Vec<Files> = vec![Files::new(); 3];
    for round in 0..4 {
        for step in 0..40 {
            let who = random.usize(..3);
            let device = &devices[who];
            let shared = format!("shared/{}.md", random.usize(..6));
            let mine = format!("{}/{}.md", device.name, random.usize(..6));
            let content = format!("{} {round} {step} ", device.name).repeat(random.usize(1..500));
            match random.usize(..12) {
                0..=3 => device.write(&shared, &content),
                4..=6 => {
                    device.write(&mine, &content);
                    own[who].insert(mine, content.into_bytes());
                }
                // Another device may have deleted the file already.
                7 => drop(fs::remove_file(device.at(&shared))),
                8 => drop(fs::rename(device.at(&shared), device.at(&format!("shared/{}.md", random.usize(..6))))),
                9 if own[who].remove(&mine).is_some() => device.remove(&mine),
                10 => {
                    device.kill();
                    device.start();
                }
                11 if random.usize(..3) == 0 => {
                    world.kill_proxy();
                    world.start_proxy();
                }
                _ => {}
            }
        }
        // All devices write one name at the same time, so no text was replaced by a user.
        let name = format!("shared/{}.md", random.usize(..6));
        let last: Vec<String> = devices.iter().map(|d| format!("{} last of {round}", d.name)).collect();
        for (device, content) in devices.iter().zip(&last) {
            device.write(&name, content);
        }
        let tree = world.settle(&devices.each_ref());
        for content in &last {
            let there = tree.values().any(|c| c == content.as_bytes());
            let kept = devices.iter().any(|d| d.kept().iter().any(|c| c == content.as_bytes()));
            assert!(there || kept, "seed {seed}: {content} is lost");
        }
        for (path, content) in own.iter().flatten() {
            // If the proxy died before it acknowledged a version, the next one is a conflict.
            let there = tree.get(path) == Some(content) || tree.values().any(|c| c == content);
            assert!(there, "seed {seed}: {path}: {:?}", tree.keys());
        }
    }
}

/// Also during writes, because the agent could not send them.
#[cfg(target_os = "linux")]
#[test]
fn offline_agent_rests_between_retries() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"1h\"");
    a.start();
    a.wait();
    let pid = a.status()["agent"]["pid"].as_u64().unwrap();
    // The CPU time of all threads, in hundredths of a second.
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
        fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    world.stop_proxy();
    a.write("note.md", "written while it is away");
    let tries = || a.log().matches("the cycle ended early").count();
    eventually("the agent has noticed", || tries() > 0);
    let before = used();
    // At least 0.4 s, 0.8 s and 1.5 s pass.
    eventually("several retries", || tries() > 3);
    let used = used() - before;
    assert!(used < 60, "{used} hundredths of a second of CPU time");
    world.start_proxy();
    eventually("the file is uploaded", || world.blob("note.md").is_some());
}

#[test]
fn commands_run_after_a_hanging_cycle() {
    let world = World::new();
    let a = world.device_with("a", "interval = \"1h\"");
    a.start();
    a.wait();
    let proxy = world.url();
    world.stop_proxy();
    // A server in its place accepts every connection and never answers.
    let silent = TcpListener::bind(proxy.trim_start_matches("http://")).unwrap();
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_memsync"));
            command.env_clear().env("MEMSYNC_HOME", &a.home).arg("sync");
            command.output().unwrap()
        });
        eventually("a cycle runs", || a.status()["state"] == "syncing");
        a.ok(&["pause"]);
        assert_eq!(a.status()["state"], "syncing", "the cycle hangs");
        drop(silent);
        eventually("it is paused", || a.status()["state"] == "paused");
        // The waiting sync gets its answer.
        assert!(!syncing.join().unwrap().stdout.is_empty());
    });
}
