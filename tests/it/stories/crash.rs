//! A machine that went down without a clean stop.

use std::fs::{self, File, FileTimes};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use memsync::disk::real::RealDisk;
use memsync::state::{Container, StateFormat, StateOptions};

use crate::common::world::{Device, World, eventually};

/// Makes the state of a killed agent look like that of an earlier start of the machine.
fn pretend_reboot(device: &Device) {
    let state = device.home.join("state");
    let mut names = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let name = names.find_map(|name| Some(format!("{}.json", name.strip_suffix(".status.json")?)));
    let name = name.expect("the agent has noted its status");
    let options = StateOptions { format: StateFormat::Json, pretty: true, session_id: String::new() };
    let disk = Arc::new(RealDisk::open(&state).unwrap());
    let (mut container, _) = Container::open(disk, &name, options, Timestamp::now()).unwrap();
    assert!(container.header().boot.is_some(), "the agent notes the start of the machine");
    container.set_boot(Some("an earlier start".to_owned()));
    container.save(Timestamp::now()).unwrap();
}

/// Leaves a file as a power cut does after a write without fsync.
fn empty_before_boot(device: &Device, path: &str, content: &[u8]) {
    device.write(path, content);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = File::options().write(true).open(device.at(path)).unwrap();
    file.set_times(FileTimes::new().set_modified(long_ago)).unwrap();
}

#[test]
fn files_emptied_by_a_power_cut_get_their_text_back() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    for name in ["empty.md", "zeros.md", "emptied-by-hand.md"] {
        a.write(name, "the text\n");
    }
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    a.kill();
    pretend_reboot(&a);
    empty_before_boot(&a, "empty.md", b"");
    empty_before_boot(&a, "zeros.md", &[0; 9]);
    a.write("emptied-by-hand.md", "");
    a.start();
    eventually("the texts are back", || a.has("empty.md", "the text\n") && a.has("zeros.md", "the text\n"));
    eventually("the emptied files are kept", || a.copies().len() == 2 && b.copies().len() == 2);
    eventually("a file that a user emptied is empty everywhere", || b.has("emptied-by-hand.md", ""));
    assert!(b.has("empty.md", "the text\n") && b.has("zeros.md", "the text\n"));
    let names_crash = |path: &str| {
        let problems = a.folder_status()["problems"].take();
        let mut of_path = problems.as_array().unwrap().iter().filter(|p| p["path"] == path);
        of_path.any(|p| p["problem"].as_str().unwrap().contains("when the machine went down"))
    };
    eventually("status names both files", || names_crash("empty.md") && names_crash("zeros.md"));
    assert!(a.log().contains("the machine went down without a clean stop"), "{}", a.log());
    a.stop();
    a.start();
    a.wait();
    assert!(names_crash("empty.md") && names_crash("zeros.md"), "{}", a.folder_status());
    let copies = a.copies();
    copies.iter().for_each(|copy| a.remove(copy));
    eventually("status names no file", || !names_crash("empty.md") && !names_crash("zeros.md"));
}
