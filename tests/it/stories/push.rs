//! Events of the proxy, and sync without them.

use crate::common::relay::{Push, Relay};
use crate::common::world::{World, eventually};

#[test]
fn event_brings_a_change_before_the_poll() {
    let world = World::new();
    let config = "interval = \"1h\"\nrescan = \"1h\"";
    let (a, b) = (world.device_with("a", config), world.device_with("b", config));
    for device in [&a, &b] {
        device.start();
        device.wait();
    }
    for content in ["one", "two"] {
        a.write("note.md", content);
        eventually("b has it", || b.has("note.md", content));
    }
    b.remove("note.md");
    eventually("a has deleted it", || !a.at("note.md").exists());
}

#[test]
fn change_before_the_event_stream_arrives_at_once() {
    let world = World::new();
    let relay = Relay::start(&world.url(), Push::Late);
    let config = "interval = \"1h\"\nrescan = \"1h\"";
    let (a, b) = (world.device_with("a", config), world.device_by("b", &relay.url(), config));
    a.start();
    b.start();
    b.wait();
    eventually("b requests the stream", || relay.streams() > 0);
    a.write("note.md", "between");
    a.wait();
    relay.release();
    eventually("b has it", || b.has("note.md", "between"));
}

#[test]
fn poll_converges_when_events_are_lost() {
    for push in [Push::Cut, Push::Withheld] {
        let world = World::new();
        let relays = [(); 2].map(|()| Relay::start(&world.url(), push));
        let a = world.device_by("a", &relays[0].url(), "interval = \"1s\"");
        let b = world.device_by("b", &relays[1].url(), "interval = \"1s\"");
        a.start();
        b.start();
        eventually("both listen", || relays.iter().all(|relay| relay.streams() > 0));
        for round in ["one", "two"] {
            a.write("of-a.md", round);
            b.write("of-b.md", round);
            let tree = world.settle(&[&a, &b]);
            assert!(tree.len() == 2 && tree.values().all(|c| c == round.as_bytes()), "{push:?}: {tree:?}");
        }
        assert!(relays.iter().all(|relay| relay.spoiled() > 0), "{push:?}: the relay spoiled events");
    }
}

#[test]
fn status_and_doctor_report_missing_events() {
    let world = World::new();
    let relay = Relay::start(&world.url(), Push::Silent);
    let a = world.device("a");
    let b = world.device_by("b", &relay.url(), "interval = \"300ms\"");
    a.start();
    b.start();
    eventually("b listens", || relay.streams() > 0);
    let mut round = 0;
    eventually("b's status says so", || {
        round += 1;
        a.write("note.md", format!("round {round}"));
        eventually("b has it", || b.has("note.md", format!("round {round}")));
        b.folder_status()["push_remedy"].as_str().is_some_and(|text| text.contains("/events"))
    });
    let told = b.cli(&["status"]).out;
    assert!(told.contains("push") && told.contains("proxy_buffering off"), "{told}");
    let told = b.cli(&["doctor"]).out;
    assert!(told.contains("push") && told.contains("none arrives"), "{told}");
    let told = a.cli(&["doctor"]).out;
    assert!(told.contains("reports changes at once"), "{told}");
    assert!(a.folder_status()["push_remedy"].is_null());
}
