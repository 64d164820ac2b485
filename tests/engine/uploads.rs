//! Uploads of which nobody heard whether they arrived.

use super::*;

/// A pause drops what is in flight.
#[test]
fn an_upload_that_was_dropped_and_arrived_is_no_conflict() {
    for files in [1, 9] {
        let mut story = Story::new(Config { yields: 1.0, ..Config::default() });
        story.cycle(Scope::full()).unwrap();
        let names: Vec<String> = (0..files).map(|n| format!("n{n}")).collect();
        names.iter().for_each(|n| story.disk.user_write(n, "first").unwrap());
        let server = story.server.clone();
        assert!(story.cycle_while(Scope::full(), || server.contents().len() < files).is_none(), "it is dropped");
        assert_eq!(story.names().len(), files);
        names.iter().for_each(|n| story.disk.user_write(n, "and then second").unwrap());
        story.settle();
        assert!(story.server.contents().into_values().all(|content| content == "and then second"));
        assert_eq!(story.disk.user_tree("").len(), files, "no copies: {:?}", story.disk.user_tree(""));
    }
}

/// What was never sent is not ours, even where somebody else writes the same.
#[test]
fn an_upload_whose_file_changed_before_it_was_sent_was_not_sent() {
    for files in [1, 9] {
        let mut story = Story::new(Config::default());
        story.cycle(Scope::full()).unwrap();
        (1..files).for_each(|n| story.disk.user_write(&format!("n{n}"), "1").unwrap());
        story.disk.user_write("n0", "theirs").unwrap();
        let opened = AtomicU64::new(0);
        story.disk.set_hook(Some(Box::new(move |op| {
            // The scan opens it first.
            if op.kind == OpKind::Open && op.path == "n0" && opened.fetch_add(1, Ordering::Relaxed) == 1 {
                op.disk.user_write("n0", "mine").unwrap();
            }
            Verdict::Go
        })));
        // The batch that it was to go in is answered, or lost.
        if files > 1 {
            story.server.lose(1, Losing::Reply);
        }
        let _ = story.cycle(Scope::full());
        story.disk.set_hook(None);
        let path = RelPath::parse("n0").unwrap();
        assert!(!story.server.contents().contains_key(&path));
        story.server.foreign_put(&path, "theirs");
        story.settle();
        let here: Vec<_> = story.disk.user_tree("").into_values().collect();
        assert!(here.iter().any(|c| c == "theirs") && here.iter().any(|c| c == "mine"), "{here:?}");
    }
}

#[test]
fn what_was_sent_before_a_deletion_is_nobodys_own_after_it() {
    let mut story = Story::new(Config::default());
    let path = RelPath::parse("a").unwrap();
    story.disk.user_write("a", "first").unwrap();
    story.cycle(Scope::full()).unwrap();
    // Read for an upload that never arrives, then deleted.
    story.disk.user_write("a", "second").unwrap();
    story.server.lose(1, Losing::Request);
    assert!(story.cycle(touched("a")).is_err());
    story.disk.user_remove("a").unwrap();
    for _ in 0..3 {
        story.cycle(touched("a")).unwrap();
    }
    assert!(story.names().is_empty());
    // Another device has the same thought. That is its file.
    story.disk.user_write("a", "third").unwrap();
    story.server.foreign_put(&path, "second");
    for _ in 0..3 {
        story.cycle(Scope::full()).unwrap();
    }
    assert_eq!(story.server.contents()[&path], "second");
    assert!(story.disk.user_tree("").into_values().any(|content| content == "third"), "kept as a conflict copy");
}

/// Somebody is always faster, and takes it back before we look: a cycle does not run after that for ever.
#[test]
fn a_write_that_always_comes_too_late_is_tried_three_times_a_cycle() {
    let mut story = Story::new(Config { yields: 1.0, ..Config::default() });
    let path = RelPath::parse("a").unwrap();
    story.disk.user_write("a", "base").unwrap();
    story.cycle(Scope::full()).unwrap();
    story.disk.user_write("a", "what we wrote").unwrap();
    for _ in 0..3 {
        let server = story.server.clone();
        server.take_calls();
        story
            .cycle_while(Scope::full(), || {
                let calls = server.calls();
                let looked = calls.last().is_some_and(|c| !matches!(c.request, Request::Put { .. }));
                server.foreign_put(&path, if looked { "faster" } else { "base" });
                true
            })
            .expect("it runs to its end")
            .unwrap();
        let puts = server.calls().iter().filter(|c| matches!(c.request, Request::Put { .. })).count();
        assert_eq!(puts, 3, "{:?}", server.calls());
    }
    story.server.foreign_put(&path, "base");
    story.settle();
    assert_eq!(story.server.contents()[&path], "what we wrote");
    assert_eq!(story.disk.user_tree("").len(), 1, "no copies: {:?}", story.disk.user_tree(""));
}
