//! Files that a crash of the machine emptied.

use super::*;

/// The second start of the machine, in seconds since the epoch.
const BOOTED: i64 = 1_000;

/// Starts the machine again at [`BOOTED`].
fn boot(story: &Story, id: &str) {
    let uptime = Duration::from_secs(1_700_000_000 - BOOTED as u64);
    *story.clock.1.lock().unwrap() = Some(MachineBoot { id: id.to_owned(), uptime });
}

/// Writes a file at a time in seconds since the epoch.
fn write_at(story: &Story, seconds: i64, path: &str, content: impl Into<bytes::Bytes>) {
    story.disk.set_time(seconds * 1_000_000_000);
    story.disk.user_write(path, content).unwrap();
}

/// Three synced files on a machine that crashed and was started again.
fn crashed(config: FakeConfig) -> Story {
    let mut story = Story::new(config);
    boot(&story, "first");
    story.restart();
    for name in ["empty", "zeros", "edited"] {
        write_at(&story, 10, name, format!("text of {name}"));
    }
    story.settle();
    boot(&story, "second");
    story
}

fn text(story: &Story, path: &str) -> String {
    String::from_utf8(story.disk.user_read(path).unwrap().to_vec()).unwrap()
}

fn copies(story: &Story) -> Vec<String> {
    story.disk.user_tree("").into_keys().filter(|name| name.contains(".conflict-")).collect()
}

#[test]
fn emptied_files_get_the_proxys_text_after_a_crash() {
    for config in [FakeConfig::default(), plain()] {
        let mut story = crashed(config);
        write_at(&story, 20, "empty", "");
        write_at(&story, 20, "zeros", vec![0u8; 13]);
        write_at(&story, 20, "edited", "an edit");
        story.restart();
        story.settle();
        assert_eq!(
            (text(&story, "empty").as_str(), text(&story, "zeros").as_str()),
            ("text of empty", "text of zeros")
        );
        assert_eq!(copies(&story).len(), 2, "the emptied files are kept");
        let there = story.server.contents();
        let is_there = |path: &str| String::from_utf8(there[&RelPath::parse(path).unwrap()].to_vec()).unwrap();
        assert_eq!(["empty", "zeros", "edited"].map(is_there), ["text of empty", "text of zeros", "an edit"]);
        let problems = story.engine.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems.values().all(|p| p.why.contains("when the machine went down")), "{problems:?}");
        story.restart();
        story.settle();
        assert_eq!(story.engine.problems(), problems, "the reason is reported again after a restart");
        for copy in copies(&story) {
            story.disk.user_remove(&copy).unwrap();
        }
        story.settle();
        assert!(story.engine.problems().is_empty());
        story.restart();
        story.settle();
        assert!(story.engine.problems().is_empty());
    }
}

#[test]
fn newer_text_of_others_wins_over_an_emptied_file() {
    let mut story = crashed(FakeConfig::default());
    write_at(&story, 20, "empty", "");
    story.server.foreign_put(&RelPath::parse("empty").unwrap(), "theirs");
    story.restart();
    story.settle();
    assert_eq!((text(&story, "empty").as_str(), copies(&story).len()), ("theirs", 1));
}

#[test]
fn file_emptied_by_its_user_is_uploaded() {
    // After the start of the machine.
    let mut story = crashed(FakeConfig::default());
    write_at(&story, BOOTED + 10, "empty", "");
    story.restart();
    story.settle();
    assert_eq!((text(&story, "empty").as_str(), copies(&story).len()), ("", 0));
    // In the same start, after a restart of the agent.
    write_at(&story, 20, "zeros", "");
    story.restart();
    story.settle();
    assert_eq!((text(&story, "zeros").as_str(), copies(&story).len()), ("", 0));
}

#[test]
fn clean_stop_leaves_nothing_to_check() {
    let mut story = crashed(FakeConfig::default());
    story.restart();
    story.settle();
    story.engine.note_clean_stop().unwrap();
    boot(&story, "third");
    write_at(&story, 20, "empty", "");
    story.restart();
    story.settle();
    assert_eq!((text(&story, "empty").as_str(), copies(&story).len()), ("", 0));
}

#[test]
fn emptied_file_is_held_until_the_proxy_answers() {
    let mut story = crashed(FakeConfig::default());
    write_at(&story, 20, "empty", "");
    // Some runs without an answer, also after another start of the machine.
    for id in ["second", "second", "third"] {
        boot(&story, id);
        story.restart();
        story.server.lose(0, LostPart::Request);
        assert!(story.cycle(ScanScope::full()).is_err());
        assert_eq!(story.engine.problems().len(), 1);
        story.engine.note_clean_stop().unwrap();
    }
    story.restart();
    story.settle();
    assert_eq!((text(&story, "empty").as_str(), copies(&story).len()), ("text of empty", 1));
    // A file that is emptied later is an edit.
    write_at(&story, 30, "zeros", "");
    story.restart();
    story.settle();
    assert_eq!(text(&story, "zeros"), "");
}
