//! A folder that lost its identity and is approved by a person.

use super::*;

/// Four files were synced. Then the private folder was lost. `a` was deleted here, `b` on the proxy; `c` was edited here,
/// and `d` on both sides.
fn changed() -> Story {
    let mut story = Story::new(FakeConfig::default());
    for name in ["a", "b", "c", "d"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.settle();
    story.disk.user_remove_dir_all(".memsync").unwrap();
    story.disk.user_remove("a").unwrap();
    story.server.server_delete(&RelPath::parse("b").unwrap());
    story.disk.user_write("c", "edited").unwrap();
    story.disk.user_write("d", "mine").unwrap();
    story.server.foreign_put(&RelPath::parse("d").unwrap(), "theirs");
    story
}

/// Opens the folder as its user does, who approves a halt.
fn open(story: &Story) -> Engine<SimDisk, FakeRemote, Clock> {
    match Engine::open(story.parts(3), "id") {
        Err(CycleError::Halted(_)) => Engine::open_approved(story.parts(4), "new-id").unwrap(),
        opened => opened.unwrap(),
    }
}

#[test]
fn lost_identity_halts_until_it_is_approved() {
    let story = changed();
    let halt = match Engine::open(story.parts(2), "id").map(drop) {
        Err(CycleError::Halted(halt)) => halt,
        other => panic!("{other:?}"),
    };
    assert_eq!(halt.name(), "root_missing");
    assert!(story.disk.user_stat(".memsync/id").is_err(), "no new identity is made");
}

#[test]
fn approval_deletes_nothing_wherever_it_is_killed() {
    for number in 0.. {
        let mut story = changed();
        let count = Arc::new(AtomicU64::new(0));
        for disk in [&story.disk, &story.state] {
            let counted = count.clone();
            disk.set_hook(Some(Box::new(move |op| {
                let here = op.kind.writes() && counted.fetch_add(1, Ordering::Relaxed) == number;
                if here { StepFate::Kill } else { StepFate::Go }
            })));
        }
        let was_killed = Engine::open_approved(story.parts(2), "new-id").is_err();
        story.disk.set_hook(None);
        story.state.set_hook(None);
        story.engine = open(&story);
        story.settle();
        story.settle();
        let mut contents: Vec<_> = story.server.contents().into_values().collect();
        contents.sort();
        assert_eq!(contents, ["a", "b", "c", "edited", "mine", "theirs"], "killed at {number}");
        assert_eq!(story.disk.user_tree("").len(), 6, "killed at {number}");
        // Later deletions are obeyed.
        story.disk.user_remove("a").unwrap();
        story.settle();
        assert!(!story.names().contains(&"a".to_owned()), "killed at {number}");
        if !was_killed {
            assert!(number > 5, "the loop covered some writes");
            break;
        }
    }
}
