//! A proxy with another store than before, or an older one.

use memsync::testing::{FakeCall, FakeRequest};

use super::*;

/// Runs a cycle. Gives the id of the halt `server_reset`.
fn reset_halt(story: &mut Story) -> Option<String> {
    match story.cycle(ScanScope::full()) {
        Err(CycleError::Halted(halt)) if halt.name() == "server_reset" => Some(halt.id().to_owned()),
        Err(e) => panic!("{e}"),
        Ok(_) => None,
    }
}

#[test]
fn proxy_that_was_set_back_halts_across_restarts() {
    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("a", "old").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    let backup = story.server.backup();
    story.disk.user_write("a", "newer").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.server.set_back(backup);
    let id = reset_halt(&mut story).expect("it was set back");
    // Writes move its cursor past the last known one.
    for name in ["b", "c", "d"] {
        story.server.foreign_put(&RelPath::parse(name).unwrap(), "theirs");
    }
    assert_eq!(reset_halt(&mut story).as_deref(), Some(&*id));
    story.restart();
    assert_eq!(reset_halt(&mut story).as_deref(), Some(&*id));
    assert_eq!(story.disk.user_read("a").unwrap(), "newer");
    assert_eq!(story.disk.user_tree("").len(), 1);
    assert!(story.engine.approve(&id).unwrap());
    story.restart();
    for _ in 0..3 {
        assert_eq!(reset_halt(&mut story), None);
    }
    assert_eq!(story.disk.user_read("a").unwrap(), "old", "the proxy keeps the name");
    assert!(story.disk.user_tree("").into_values().any(|content| content == "newer"), "and ours is a copy");
    assert_eq!(story.names().len(), 5);
}

/// Other writes came before the first check, so that the cursor alone shows nothing.
#[test]
fn store_that_came_to_its_cursor_another_way_halts() {
    for restarts in [false, true] {
        let mut story = Story::new(FakeConfig::default());
        story.disk.user_write("a", "old").unwrap();
        story.settle();
        let backup = story.server.backup();
        story.disk.user_write("a", "newer").unwrap();
        story.cycle(ScanScope::full()).unwrap();
        story.server.set_back(backup);
        for name in ["b", "c", "d"] {
            story.server.foreign_put(&RelPath::parse(name).unwrap(), "theirs");
        }
        if restarts {
            story.restart();
        }
        let id = reset_halt(&mut story).expect("it was set back");
        assert_eq!(reset_halt(&mut story).as_deref(), Some(&*id), "until it is approved");
        assert_eq!(story.disk.user_read("a").unwrap(), "newer");
        assert_eq!(story.disk.user_tree("").len(), 1, "nothing is taken from it");
        assert!(story.engine.approve(&id).unwrap());
        for _ in 0..3 {
            assert_eq!(reset_halt(&mut story), None);
        }
        assert!(story.disk.user_tree("").into_values().any(|content| content == "newer"), "nothing is lost");
    }
}

/// An upload moves the cursor on. The agent may die before it fetches the index again.
#[test]
fn store_position_of_an_upload_is_known_after_a_crash() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["a", "b", "c"] {
        story.disk.user_write(name, "old").unwrap();
    }
    story.settle();
    let backup = story.server.backup();
    story.disk.user_write("a", "newer").unwrap();
    story.disk.user_remove("b").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.restart();
    story.server.set_back(backup);
    assert!(reset_halt(&mut story).is_some(), "{:?}", story.disk.user_tree(""));
    assert_eq!(story.disk.user_read("a").unwrap(), "newer");
}

/// The store is set back to before the last write. Its index is then the one that was fetched last.
fn offered_again(full: bool) {
    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("a", "1").unwrap();
    story.settle();
    story.cycle(ScanScope::full()).unwrap();
    let backup = story.server.backup();
    story.disk.user_write("b", "2").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.server.set_back(backup);
    let id = reset_halt(&mut story).expect("it was set back");
    if full {
        story.state.set_hook(Some(Box::new(|op| match op.kind {
            StepKind::Create => StepFate::Fail(ErrorKind::StorageFull),
            _ => StepFate::Go,
        })));
        assert!(story.engine.approve(&id).is_err());
        story.state.set_hook(None);
    } else {
        assert!(story.engine.approve(&id).unwrap());
    }
    story.settle();
    assert_eq!(story.names(), ["a", "b"]);
}

#[test]
fn own_last_write_is_offered_to_a_store_that_lost_it() {
    offered_again(false);
}

#[test]
fn own_last_write_is_offered_when_the_approval_is_unsaved() {
    offered_again(true);
}

/// A count that is too high would halt for nothing.
#[test]
fn own_writes_never_overstate_the_store_position() {
    let mut story = Story::new(FakeConfig::default());
    for round in 0..4 {
        for n in 0..12 {
            story.disk.user_write(&format!("n{n}"), format!("{round} {n}")).unwrap();
        }
        story.cycle(ScanScope::full()).unwrap();
        story.disk.user_remove(&format!("n{round}")).unwrap();
        story.cycle(ScanScope::full()).unwrap();
        // After a lost reply the upload is found on the proxy and adopted.
        story.disk.user_write("lost", round.to_string()).unwrap();
        story.server.lose(1, LostPart::Reply);
        // If a deletion of this cycle is answered, the cycle goes on.
        let _ = story.cycle(ScanScope::full());
        assert!(!story.server.is_losing());
        story.restart();
        assert_eq!(reset_halt(&mut story), None);
        assert!(story.engine.container().header().remote.cursor <= Some(story.server.cursor()));
        story.settle();
    }
}

#[test]
fn store_position_is_known_after_a_restart() {
    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("a", "old").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    let backup = story.server.backup();
    story.disk.user_write("a", "newer").unwrap();
    // The second cycle learns the cursor of the upload, and has nothing else to save.
    for _ in 0..2 {
        story.cycle(ScanScope::full()).unwrap();
        story.engine.tidy().unwrap();
    }
    story.server.set_back(backup);
    story.restart();
    assert!(reset_halt(&mut story).is_some(), "{:?}", story.disk.user_tree(""));
    assert_eq!(story.disk.user_read("a").unwrap(), "newer");
}

/// Removes entries from the index, as a proxy does that overwrites it without reading it first.
fn clobber(story: &Story, names: &[&str]) {
    for name in names {
        story.server.set_index_entry(&RelPath::parse(name).unwrap(), None);
    }
    story.server.foreign_put(&RelPath::parse("theirs").unwrap(), "theirs");
}

/// No delta shows the loss, because the held index never had the entry.
#[test]
fn own_write_that_the_index_lost_at_once_is_healed() {
    let mut story = Story::new(plain());
    story.server.foreign_put(&RelPath::parse("other").unwrap(), "other");
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "1").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    clobber(&story, &["a"]);
    story.server.take_calls();
    story.cycle(ScanScope::default()).unwrap();
    story.cycle(ScanScope::default()).unwrap();
    let calls = story.server.take_calls();
    let writes: Vec<_> = calls.iter().filter(|call| call.wrote).collect();
    assert!(
        matches!(&writes[..], [FakeCall { request: FakeRequest::Put { path, .. }, .. }] if path.as_str() == "a"),
        "{calls:?}"
    );
    assert_eq!(story.disk.user_tree("").len(), 3);
}

#[test]
fn own_edit_that_the_index_lost_is_healed() {
    let mut story = Story::new(plain());
    let path = RelPath::parse("a").unwrap();
    story.server.foreign_put(&path, "old");
    story.server.foreign_put(&RelPath::parse("other").unwrap(), "other");
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "new").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    let old = IndexEntry { md5: Md5::of(b"old"), size: 3, is_deleted: false, version: 0, cursor: 0 };
    story.server.set_index_entry(&path, Some(old));
    story.server.foreign_put(&RelPath::parse("theirs").unwrap(), "theirs");
    story.server.take_calls();
    story.cycle(ScanScope::default()).unwrap();
    assert!(
        story.server.take_calls().iter().any(|call| call.request == FakeRequest::Get(path.clone())),
        "the blob is fetched"
    );
    assert_eq!(story.disk.user_read("a").unwrap(), "new");
    assert_eq!(story.server.contents()[&path], "new");
}

/// Six synced files of this device, and one of another.
fn six(config: FakeConfig) -> (Story, [&'static str; 6]) {
    let mut story = Story::new(config);
    story.server.foreign_put(&RelPath::parse("other").unwrap(), "other");
    story.cycle(ScanScope::full()).unwrap();
    let names = ["a", "b", "c", "d", "e", "f"];
    names.iter().for_each(|name| story.disk.user_write(name, *name).unwrap());
    story.cycle(ScanScope::full()).unwrap();
    (story, names)
}

/// With deltas of the index, or whole indexes.
#[test]
fn weak_index_that_lost_many_entries_is_healed() {
    for etag_delta in [true, false] {
        let (mut story, names) = six(FakeConfig { etag_delta, ..plain() });
        clobber(&story, &names);
        story.settle();
        assert_eq!((story.disk.user_tree("").len(), story.server.contents().len()), (8, 8));
        for name in names {
            let entry = story.server.index_entry(&RelPath::parse(name).unwrap());
            assert_eq!(entry.map(|e| (e.md5, e.is_deleted)), Some((Md5::of(name.as_bytes()), false)), "{name}");
        }
    }
}

/// The blob was fetched because of the deletion. Its answer must not hide the wrong entry.
#[test]
fn weak_index_is_healed_when_a_deleted_file_comes_back() {
    let (mut story, names) = six(plain());
    let path = RelPath::parse(names[0]).unwrap();
    let entry = story.server.index_entry(&path).unwrap();
    story.server.set_index_entry(&path, Some(IndexEntry { md5: Md5::of(b"older"), ..entry }));
    story.disk.user_remove(names[0]).unwrap();
    while !story.server.take_calls().iter().any(|call| call.request == FakeRequest::Get(path.clone())) {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert!(story.server.contents().contains_key(&path), "it is not deleted yet");
    story.disk.user_write(names[0], names[0]).unwrap();
    story.settle();
    assert_eq!(story.server.index_entry(&path).map(|e| e.md5), Some(Md5::of(names[0].as_bytes())));
}

#[test]
fn weak_store_that_lost_its_blobs_halts_once() {
    for left in [0, 2] {
        let (mut story, names) = six(plain());
        story.server.reset(None);
        for name in &names[..left] {
            story.server.foreign_put(&RelPath::parse(name).unwrap(), *name);
            story.server.set_index_entry(&RelPath::parse(name).unwrap(), None);
        }
        let id = reset_halt(&mut story).expect("it was reset");
        assert_eq!((story.disk.user_tree("").len(), story.server.contents().len()), (7, left), "nothing moves");
        assert!(story.engine.approve(&id).unwrap());
        story.settle();
        story.restart();
        story.settle();
        assert_eq!((story.disk.user_tree("").len(), story.server.contents().len()), (7, 7), "{left} blobs were left");
        assert!(names.iter().all(|n| story.server.index_entry(&RelPath::parse(n).unwrap()).is_some()));
    }
}

/// A damaged state of three files, one of which was removed meanwhile. `journal`: the whole journal is unreadable, not
/// only its last line.
fn damaged(journal: bool) -> Story {
    let mut story = Story::new(FakeConfig::default());
    for name in ["a", "b", "c"] {
        story.disk.user_write(name, name).unwrap();
        story.settle();
    }
    if journal {
        let written = StateOptions { format: StateFormat::Json, pretty: false, session_id: "here".into() };
        let state = Arc::new(story.state.handle());
        let (mut container, _) = Container::open(state, "state.json", written, Timestamp::UNIX_EPOCH).unwrap();
        // Now there is a container beside the journal.
        container.save(Timestamp::UNIX_EPOCH).unwrap();
        story.state.user_write("state.json.journal", "no journal\n").unwrap();
    } else {
        let mut journal = story.state.user_read("state.json.journal").unwrap().to_vec();
        let last = journal.len() - 10;
        journal[last] ^= 1;
        story.state.user_write("state.json.journal", journal).unwrap();
    }
    story.disk.user_remove("a").unwrap();
    story
}

/// The state was damaged. The run that recovered it was killed before it scanned the folder.
#[test]
fn recovered_state_deletes_nothing() {
    for journal in [false, true] {
        for number in 0.. {
            let mut story = damaged(journal);
            let count = Arc::new(AtomicU64::new(0));
            let counted = count.clone();
            story.state.set_hook(Some(Box::new(move |op| {
                let here = op.kind.writes() && counted.fetch_add(1, Ordering::Relaxed) == number;
                if here { StepFate::Kill } else { StepFate::Go }
            })));
            let written = StateOptions { format: StateFormat::Json, pretty: false, session_id: "here".into() };
            let state = Arc::new(story.state.handle());
            drop(Container::open(state, "state.json", written, Timestamp::UNIX_EPOCH));
            story.state.set_hook(None);
            story.restart();
            story.settle();
            story.settle();
            assert_eq!(story.names(), ["a", "b", "c"], "journal: {journal}, killed at {number}");
            assert_eq!(story.disk.user_tree("").len(), 3, "it comes back");
            // Later deletions are obeyed.
            story.restart();
            story.disk.user_remove("a").unwrap();
            story.settle();
            assert_eq!(story.names(), ["b", "c"]);
            if count.load(Ordering::Relaxed) <= number {
                break;
            }
        }
    }
}
