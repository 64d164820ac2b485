//! A proxy whose store is another one than before, or an older one.

use memsync::testing::{FakeCall, FakeRequest};

use super::*;

/// Its id, where a proxy that was set back holds the cycle up.
fn reset_halt(story: &mut Story) -> Option<String> {
    match story.cycle(ScanScope::full()) {
        Err(CycleError::Halted(halt)) if halt.name() == "server_reset" => Some(halt.id().to_owned()),
        Err(e) => panic!("{e}"),
        Ok(_) => None,
    }
}

#[test]
fn a_proxy_that_was_set_back_waits_for_a_person_over_restarts_and_writes_of_others() {
    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("a", "old").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    let backup = story.server.backup();
    story.disk.user_write("a", "newer").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.server.set_back(backup);
    let id = reset_halt(&mut story).expect("it was set back");
    // Its cursor comes further than it ever was.
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

/// The other writes came first, so that the cursor alone tells nothing.
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

/// An upload moves the store on, and whoever was there may be killed before it has looked how far.
#[test]
fn how_far_an_upload_has_taken_the_proxy_is_known_after_a_crash() {
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

/// The store is where it was before our last write: what it says then is what it said before, but not what we hold.
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
fn our_own_last_write_is_offered_again_to_a_store_that_lost_it() {
    offered_again(false);
}

#[test]
fn our_own_last_write_is_offered_again_also_where_the_approval_could_not_be_written_down() {
    offered_again(true);
}

/// What is counted is never more than what the store has seen: nobody is held up for nothing.
#[test]
fn own_writes_move_the_proxy_no_further_than_it_is() {
    let mut story = Story::new(FakeConfig::default());
    for round in 0..4 {
        for n in 0..12 {
            story.disk.user_write(&format!("n{n}"), format!("{round} {n}")).unwrap();
        }
        story.cycle(ScanScope::full()).unwrap();
        story.disk.user_remove(&format!("n{round}")).unwrap();
        story.cycle(ScanScope::full()).unwrap();
        // A reply that is lost leaves an upload that is found there, and adopted.
        story.disk.user_write("lost", round.to_string()).unwrap();
        story.server.lose(1, LostPart::Reply);
        // Where a deletion goes with it, that is answered, and the cycle goes on.
        let _ = story.cycle(ScanScope::full());
        assert!(!story.server.is_losing());
        story.restart();
        assert_eq!(reset_halt(&mut story), None);
        assert!(story.engine.container().header().remote.cursor <= Some(story.server.cursor()));
        story.settle();
    }
}

#[test]
fn how_far_the_proxy_had_come_is_known_after_a_restart() {
    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("a", "old").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    let backup = story.server.backup();
    story.disk.user_write("a", "newer").unwrap();
    // The second cycle learns where the upload has taken the proxy, and has nothing else to write down.
    for _ in 0..2 {
        story.cycle(ScanScope::full()).unwrap();
        story.engine.tidy().unwrap();
    }
    story.server.set_back(backup);
    story.restart();
    assert!(reset_halt(&mut story).is_some(), "{:?}", story.disk.user_tree(""));
    assert_eq!(story.disk.user_read("a").unwrap(), "newer");
}

/// What a proxy of another kind, which looks before none of its writes, does to what was just written.
fn clobber(story: &Story, names: &[&str]) {
    for name in names {
        story.server.set_index_entry(&RelPath::parse(name).unwrap(), None);
    }
    story.server.foreign_put(&RelPath::parse("theirs").unwrap(), "theirs");
}

/// It is nowhere in what changed: the index that is held was never given it.
#[test]
fn a_write_of_ours_that_the_index_lost_before_we_saw_it_there_is_mended() {
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
fn an_edit_of_ours_that_the_index_lost_is_not_undone_and_mended() {
    let mut story = Story::new(plain());
    let path = RelPath::parse("a").unwrap();
    story.server.foreign_put(&path, "old");
    story.server.foreign_put(&RelPath::parse("other").unwrap(), "other");
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "new").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    let old = IndexEntry { md5: Md5::of(b"old"), size: 3, is_deleted: false, version: 0 };
    story.server.set_index_entry(&path, Some(old));
    story.server.foreign_put(&RelPath::parse("theirs").unwrap(), "theirs");
    story.server.take_calls();
    story.cycle(ScanScope::default()).unwrap();
    assert!(
        story.server.take_calls().iter().any(|call| call.request == FakeRequest::Get(path.clone())),
        "the blob is asked"
    );
    assert_eq!(story.disk.user_read("a").unwrap(), "new");
    assert_eq!(story.server.contents()[&path], "new");
}

/// Six synced files, and one of another device.
fn six(config: FakeConfig) -> (Story, [&'static str; 6]) {
    let mut story = Story::new(config);
    story.server.foreign_put(&RelPath::parse("other").unwrap(), "other");
    story.cycle(ScanScope::full()).unwrap();
    let names = ["a", "b", "c", "d", "e", "f"];
    names.iter().for_each(|name| story.disk.user_write(name, *name).unwrap());
    story.cycle(ScanScope::full()).unwrap();
    (story, names)
}

/// Only changes of the index are told, or all of it.
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

/// The blob was asked because of the deletion. What it told must not hide the wrong entry.
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
fn weak_store_that_lost_its_blobs_waits_for_a_person_once() {
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

/// The state of three files, which cannot be read whole any more, and from which one file went meanwhile. `journal`:
/// nothing of the journal can be read.
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
        // From here on there is a container beside the journal.
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

/// The state was damaged, and whoever recovered it was killed before it had looked at the folder.
#[test]
fn a_recovered_state_that_nobody_has_compared_with_the_folder_deletes_nothing() {
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
            // From here on the state is as good as any.
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
