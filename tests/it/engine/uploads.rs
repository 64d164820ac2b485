//! Uploads that may have arrived although no answer came.

use super::*;

/// A pause drops requests in flight.
#[test]
fn dropped_upload_that_arrived_is_no_conflict() {
    for files in [1, 9] {
        let mut story = Story::new(FakeConfig { yields: 1.0, ..FakeConfig::default() });
        story.cycle(ScanScope::full()).unwrap();
        let names: Vec<String> = (0..files).map(|n| format!("n{n}")).collect();
        names.iter().for_each(|n| story.disk.user_write(n, "first").unwrap());
        let server = story.server.clone();
        assert!(
            story.cycle_while(ScanScope::full(), || server.contents().len() < files).is_none(),
            "the cycle is dropped"
        );
        assert_eq!(story.names().len(), files);
        names.iter().for_each(|n| story.disk.user_write(n, "and then second").unwrap());
        story.settle();
        assert!(story.server.contents().into_values().all(|content| content == "and then second"));
        assert_eq!(story.disk.user_tree("").len(), files, "no copies: {:?}", story.disk.user_tree(""));
    }
}

/// The process dies before the answer to its upload. The user edits the file meanwhile.
#[test]
fn upload_of_a_killed_run_is_no_conflict() {
    for (config, files) in [(FakeConfig::default(), 1), (FakeConfig::default(), 9), (plain(), 1), (plain(), 9)] {
        for edited in [false, true] {
            let mut story = Story::new(FakeConfig { yields: 1.0, ..config });
            let names: Vec<String> = (0..files).map(|n| format!("n{n}")).collect();
            let write = |story: &Story, what: &str| {
                names.iter().for_each(|n| story.disk.user_write(n, format!("{what} {n}")).unwrap());
            };
            if edited {
                write(&story, "the base");
            }
            story.settle();
            write(&story, "sent");
            let server = story.server.clone();
            let has_all = || server.contents().values().filter(|c| c.starts_with(b"sent")).count() == files;
            assert!(
                story.cycle_while(ScanScope::full(), || !has_all()).is_none(),
                "the process dies before the answer"
            );
            story.restart();
            write(&story, "and then more");
            story.settle();
            let what = format!("{files} files, edited: {edited}");
            assert!(
                server.contents().into_values().all(|c| c.starts_with(b"and then")),
                "{what}: {:?}",
                server.contents()
            );
            assert_eq!(story.disk.user_tree("").len(), files, "{what}: no copies");
            story.engine.tidy().unwrap();
            assert_eq!(story.engine.container().uploads().paths().count(), 0, "{what}: every note is settled");
        }
    }
}

/// After the power cut, only the proxy has the newest content.
#[test]
fn upload_before_a_power_cut_survives_an_older_file() {
    let mut story = Story::new(FakeConfig { yields: 1.0, ..FakeConfig::default() });
    story.disk.user_write("a", "the base").unwrap();
    story.settle();
    story.disk.user_write_volatile("a", "and newer").unwrap();
    let server = story.server.clone();
    let is_there = || server.contents().into_values().any(|content| content == "and newer");
    assert!(story.cycle_while(ScanScope::full(), || !is_there()).is_none());
    for disk in [&story.disk, &story.state] {
        disk.power_cut(&mut fastrand::Rng::with_seed(1));
    }
    story.restart();
    story.disk.user_write("a", "an older text").unwrap();
    story.settle();
    assert!(is_there(), "{:?}", server.contents());
    let here: Vec<_> = story.disk.user_tree("").into_values().collect();
    assert!(here.iter().any(|c| c == "and newer") && here.iter().any(|c| c == "an older text"), "{here:?}");
}

/// A power cut may have removed a file whose upload an earlier run noted.
#[test]
fn file_missing_after_a_killed_upload_comes_back() {
    let mut story = Story::new(FakeConfig { yields: 1.0, ..FakeConfig::default() });
    story.settle();
    story.disk.user_write("a", "sent").unwrap();
    let server = story.server.clone();
    assert!(story.cycle_while(ScanScope::full(), || server.contents().is_empty()).is_none());
    story.restart();
    story.disk.user_remove("a").unwrap();
    story.settle();
    assert_eq!(story.disk.user_read("a").unwrap(), "sent");
}

/// Content that was never sent is not this device's own, even if another device writes the same.
#[test]
fn upload_is_not_noted_when_its_file_changed_before() {
    for files in [1, 9] {
        let mut story = Story::new(FakeConfig::default());
        story.cycle(ScanScope::full()).unwrap();
        (1..files).for_each(|n| story.disk.user_write(&format!("n{n}"), "1").unwrap());
        story.disk.user_write("n0", "theirs").unwrap();
        let opened = AtomicU64::new(0);
        story.disk.set_hook(Some(Box::new(move |op| {
            // The scan opens it first.
            if op.kind == StepKind::Open && op.path == "n0" && opened.fetch_add(1, Ordering::Relaxed) == 1 {
                op.disk.user_write("n0", "mine").unwrap();
            }
            StepFate::Go
        })));
        // The batch with this upload is answered, or lost.
        if files > 1 {
            story.server.lose(1, LostPart::Reply);
        }
        let _ = story.cycle(ScanScope::full());
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
fn unconfirmed_upload_is_forgotten_with_its_deletion() {
    let mut story = Story::new(FakeConfig::default());
    let path = RelPath::parse("a").unwrap();
    story.disk.user_write("a", "first").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    // It is read for an upload that never arrives, then deleted.
    story.disk.user_write("a", "second").unwrap();
    story.server.lose(1, LostPart::Request);
    assert!(story.cycle(touched("a")).is_err());
    story.disk.user_remove("a").unwrap();
    for _ in 0..3 {
        story.cycle(touched("a")).unwrap();
    }
    assert!(story.names().is_empty());
    // Another device writes the same content. That is its own file.
    story.disk.user_write("a", "third").unwrap();
    story.server.foreign_put(&path, "second");
    for _ in 0..3 {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert_eq!(story.server.contents()[&path], "second");
    assert!(story.disk.user_tree("").into_values().any(|content| content == "third"), "kept as a conflict copy");
}

/// Another device is always faster and reverts its write before the fetch.
#[test]
fn lost_race_is_retried_three_times_a_cycle() {
    let mut story = Story::new(FakeConfig { yields: 1.0, ..FakeConfig::default() });
    let path = RelPath::parse("a").unwrap();
    story.disk.user_write("a", "base").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "what we wrote").unwrap();
    for _ in 0..3 {
        let server = story.server.clone();
        server.take_calls();
        story
            .cycle_while(ScanScope::full(), || {
                let calls = server.calls();
                let looked = calls.last().is_some_and(|c| !matches!(c.request, FakeRequest::Put { .. }));
                server.foreign_put(&path, if looked { "faster" } else { "base" });
                true
            })
            .expect("it runs to its end")
            .unwrap();
        let puts = server.calls().iter().filter(|c| matches!(c.request, FakeRequest::Put { .. })).count();
        assert_eq!(puts, 3, "{:?}", server.calls());
    }
    story.server.foreign_put(&path, "base");
    story.settle();
    assert_eq!(story.server.contents()[&path], "what we wrote");
    assert_eq!(story.disk.user_tree("").len(), 1, "no copies: {:?}", story.disk.user_tree(""));
}

/// The proxy holds the content that this device sent, and the file is gone here.
#[test]
fn deletion_after_a_lost_upload_reply_is_not_undone() {
    for (config, files) in [(FakeConfig::default(), 1), (FakeConfig::default(), 9), (plain(), 1), (plain(), 9)] {
        for edited in [false, true] {
            let mut story = Story::new(config);
            let names: Vec<String> = (0..files).map(|n| format!("n{n}")).collect();
            let write = |story: &Story, what: &str| {
                names.iter().for_each(|n| story.disk.user_write(n, format!("{what} {n}")).unwrap());
            };
            if edited {
                write(&story, "before");
            }
            story.disk.user_write("other", "stays").unwrap();
            story.settle();
            write(&story, "sent");
            story.server.lose(1, LostPart::Reply);
            let _ = story.cycle(ScanScope::full());
            names.iter().for_each(|n| story.disk.user_remove(n).unwrap());
            assert!(story.cycle(ScanScope::full()).unwrap().again, "one scan missed them");
            let sent = story.names().len();
            let mut downloaded = 0;
            for _ in 0..4 {
                downloaded += story.cycle(ScanScope::full()).unwrap().downloaded;
            }
            assert!(
                sent > 1 && downloaded == 0,
                "{files} files, edited: {edited}: {sent} there, {downloaded} came back"
            );
            assert_eq!((story.names(), story.disk.user_tree("").len()), (vec!["other".to_owned()], 1));
        }
    }
}

#[test]
fn unconfirmed_upload_is_deleted_after_two_scans() {
    let path = RelPath::parse("a").unwrap();
    let sent = || {
        let mut story = Story::new(FakeConfig::default());
        story.cycle(ScanScope::full()).unwrap();
        story.disk.user_write("a", "sent").unwrap();
        story.server.lose(1, LostPart::Reply);
        assert!(story.cycle(touched("a")).is_err());
        story
    };
    // A program removes the old file before it saves.
    let mut story = sent();
    story.disk.user_remove("a").unwrap();
    story.cycle(touched("a")).unwrap();
    story.disk.user_write("a", "and then edited").unwrap();
    story.settle();
    assert_eq!(story.server.contents()[&path], "and then edited");
    assert_eq!(story.disk.user_tree("").len(), 1);
    // Another device edited it.
    let mut story = sent();
    story.server.foreign_put(&path, "theirs");
    story.disk.user_remove("a").unwrap();
    story.settle();
    assert_eq!(story.disk.user_read("a").unwrap(), "theirs");
    // Another device writes the same content long after the deletion.
    let mut story = Story::new(FakeConfig::default());
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "sent").unwrap();
    story.server.lose(1, LostPart::Request);
    assert!(story.cycle(touched("a")).is_err());
    story.disk.user_remove("a").unwrap();
    story.settle();
    story.server.foreign_put(&path, "sent");
    story.settle();
    assert_eq!(story.disk.user_read("a").unwrap(), "sent");
}

#[test]
fn rejected_deletion_of_unconfirmed_uploads_is_undone() {
    let mut story = Story::new(FakeConfig::default());
    story.cycle(ScanScope::full()).unwrap();
    let names: Vec<String> = (0..12).map(|n| format!("n{n}")).collect();
    // Each is uploaded alone, and its reply is lost.
    for name in &names {
        story.disk.user_write(name, name.clone()).unwrap();
        story.server.lose(1, LostPart::Reply);
        assert!(story.cycle(touched(name)).is_err());
    }
    names.iter().for_each(|name| story.disk.user_remove(name).unwrap());
    story.cycle(ScanScope::full()).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    let id = story.engine.held().first().expect("they are held").id.clone();
    assert!(story.engine.reject(&id).unwrap());
    story.settle();
    assert_eq!((story.names().len(), story.disk.user_tree("").len()), (12, 12));
}

/// Refused content is not on the proxy. Another device may write the same later.
#[test]
fn refused_upload_is_not_noted_as_sent() {
    let mut story = Story::new(FakeConfig::default());
    let path = RelPath::parse("a").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.server.set_largest(3);
    story.disk.user_write("a", "mine").unwrap();
    assert_eq!(story.cycle(touched("a")).unwrap().failed, 1);
    story.server.set_largest(u64::MAX);
    story.disk.user_write("a", "mine, edited").unwrap();
    story.server.foreign_put(&path, "mine");
    story.settle();
    assert_eq!(story.server.contents()[&path], "mine");
    assert!(story.disk.user_tree("").into_values().any(|content| content == "mine, edited"), "a conflict copy");
}

/// An index of hints does not show that the upload never arrived.
#[test]
fn lost_upload_is_forgotten_with_an_index_of_hints() {
    let path = RelPath::parse("a").unwrap();
    let mut story = Story::new(plain());
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "sent").unwrap();
    story.server.lose(1, LostPart::Request);
    assert!(story.cycle(touched("a")).is_err());
    story.disk.user_remove("a").unwrap();
    // These cycles take ten minutes.
    (0..300).for_each(|_| drop(story.cycle(ScanScope::default()).unwrap()));
    story.server.foreign_put(&path, "sent");
    story.settle();
    assert_eq!(story.disk.user_read("a").unwrap(), "sent");
    assert_eq!(story.names(), ["a"]);
}

/// Another device takes the new name, so the renamed file becomes a conflict copy.
#[test]
fn old_name_is_deleted_after_its_conflict_copy_arrived() {
    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("old", "renamed").unwrap();
    story.settle();
    story.disk.user_remove("old").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("new", "renamed").unwrap();
    story.server.foreign_put(&RelPath::parse("new").unwrap(), "theirs");
    for _ in 0..6 {
        story.cycle(ScanScope::full()).unwrap();
        let there: Vec<_> = story.server.contents().into_values().collect();
        assert!(there.iter().any(|content| content == "renamed"), "{:?}", story.names());
    }
    assert_eq!((story.names().len(), story.disk.user_tree("").len()), (2, 2), "theirs, and the copy");
}

/// A gateway may block one file, or the proxy's disk may hang on it.
#[test]
fn unanswered_upload_holds_up_no_other() {
    for size in [1, 100] {
        let mut story = Story::new(FakeConfig::default());
        story.set(EngineOptions { unread_from: 50, ..options() });
        for name in ["gone", "stays", "there"] {
            story.disk.user_write(name, name).unwrap();
        }
        story.settle();
        story.server.set_silent(|path| path.as_str() == "unanswered");
        story.disk.user_write("unanswered", vec![b'x'; size]).unwrap();
        story.disk.user_remove("gone").unwrap();
        story.server.server_delete(&RelPath::parse("there").unwrap());
        let offline = (0..40).filter(|_| story.cycle(ScanScope::full()).is_err()).count();
        assert_eq!(story.names(), ["stays"]);
        assert_eq!(story.disk.user_tree("").into_keys().collect::<Vec<_>>(), ["stays", "unanswered"]);
        assert!(offline <= 2, "the proxy is there: {offline}");
        assert!(story.engine.problems().contains_key(&RelPath::parse("unanswered").unwrap()));
        story.server.set_silent(|_| false);
        story.engine.retry_all();
        story.settle();
        assert_eq!(story.names(), ["stays", "unanswered"]);
    }
}

#[test]
fn cycle_ends_soon_when_the_proxy_goes_away() {
    for files in [1, 20] {
        let mut story = Story::new(FakeConfig { batch: false, ..FakeConfig::default() });
        story.cycle(ScanScope::full()).unwrap();
        (0..files).for_each(|n| story.disk.user_write(&format!("n{n}"), n.to_string()).unwrap());
        story.server.set_silent(|_| true);
        assert!(matches!(story.cycle(ScanScope::full()), Err(CycleError::Remote(_))), "{files} files");
        assert!(story.engine.failing() <= 3, "no further step is begun: {}", story.engine.failing());
        story.server.set_silent(|_| false);
        story.settle();
        assert_eq!(story.names().len(), files);
    }
}

#[test]
fn refused_writes_hold_up_no_download_or_deletion() {
    for files in [1, 20] {
        let mut story = Story::new(FakeConfig::default());
        for name in ["deleted", "removed", "stays"] {
            story.disk.user_write(name, name).unwrap();
        }
        story.settle();
        story.server.set_read_only(true);
        (0..files).for_each(|n| story.disk.user_write(&format!("n{n}"), n.to_string()).unwrap());
        story.disk.user_remove("removed").unwrap();
        story.server.server_delete(&RelPath::parse("deleted").unwrap());
        story.server.foreign_put(&RelPath::parse("theirs").unwrap(), "theirs");
        for _ in 0..3 {
            story.cycle(ScanScope::full()).unwrap();
        }
        let here: Vec<_> = story.disk.user_tree("").into_keys().filter(|name| !name.starts_with('n')).collect();
        assert_eq!(here, ["stays", "theirs"], "{files} files");
        assert_eq!(story.names(), ["removed", "stays", "theirs"], "nothing was written");
        let problems = story.engine.problems();
        assert_eq!(problems.len(), files + 1, "{problems:?}");
        assert!(problems.values().all(|p| p.why.contains("may not write to it (403)")), "{problems:?}");
        story.server.set_read_only(false);
        story.engine.retry_all();
        story.settle();
        assert_eq!((story.names().len(), story.engine.problems().len()), (files + 2, 0), "{files} files");
    }
}
