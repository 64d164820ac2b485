//! Large new files, which are read once, during their upload.

use super::*;

/// A synced folder whose new files from 5 bytes on are uploaded without a scan reading them.
fn reading_once() -> Story {
    let mut story = Story::new(FakeConfig::default());
    let options = EngineOptions { unread_from: 5, origin: "https://old".into(), ..options() };
    let remote = Arc::new(story.server.client());
    story.engine.set_options(options, Arc::new(|_: &str, _: bool| false), remote);
    story.disk.user_write("a", "is large").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.set_time(1_600_000_000_000_000_000);
    story
}

#[test]
fn large_new_file_is_read_once() {
    let mut story = reading_once();
    story.disk.user_write("b", "is large too").unwrap();
    story.disk.user_write("c", "tiny").unwrap();
    let scope = ScanScope { paths: ["b".into(), "c".into()].into(), ..ScanScope::default() };
    let report = story.cycle(scope).unwrap();
    assert_eq!((report.scan.hashed, report.uploaded), (1, 2), "the scan reads the small one");
    assert_eq!(story.names(), ["a", "b", "c"]);
    let report = story.cycle(ScanScope::full()).unwrap();
    assert_eq!((report.uploaded, report.wrote()), (0, false));
    // The base is right, so an edit and a deletion arrive.
    story.disk.user_write("b", "is another one").unwrap();
    story.cycle(touched("b")).unwrap();
    assert_eq!(story.server.contents()[&RelPath::parse("b").unwrap()], "is another one");
    story.disk.user_remove("b").unwrap();
    story.cycle(touched("b")).unwrap();
    story.cycle(touched("b")).unwrap();
    assert_eq!(story.names(), ["a", "c"]);
}

#[test]
fn unread_file_is_read_when_another_device_was_faster() {
    for theirs in ["is theirs", "is ours"] {
        let mut story = reading_once();
        let path = RelPath::parse("b").unwrap();
        story.disk.user_write("b", "is ours").unwrap();
        story.server.foreign_put(&path, theirs);
        for _ in 0..3 {
            story.cycle(touched("b")).unwrap();
        }
        assert_eq!(story.server.contents()[&path], theirs);
        let mut here: Vec<_> = story.disk.user_tree("").into_values().collect();
        here.sort();
        let wanted =
            if theirs == "is ours" { vec!["is large", "is ours"] } else { vec!["is large", "is ours", "is theirs"] };
        assert_eq!(here, wanted);
    }
}

#[test]
fn unread_upload_is_recognised_after_a_lost_reply() {
    for what in [LostPart::Request, LostPart::Reply] {
        let mut story = reading_once();
        story.disk.user_write("b", "is large too").unwrap();
        story.server.lose(1, what);
        assert!(story.cycle(touched("b")).is_err());
        for _ in 0..3 {
            story.cycle(ScanScope::default()).unwrap();
        }
        assert_eq!(story.names(), ["a", "b"]);
        assert_eq!(story.disk.user_tree("").len(), 2, "no conflict copy of its own upload");
        assert!(!story.engine.is_unfinished());
    }
}

#[test]
fn renamed_unread_file_arrives_before_its_deletion() {
    let mut story = reading_once();
    story.disk.user_rename("a", "b").unwrap();
    story.cycle(touched("a")).unwrap();
    // The deletion is due, and the upload fails.
    story.disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::Read if op.path == "b" => StepFate::Fail(ErrorKind::Other),
        _ => StepFate::Go,
    })));
    let report = story.cycle(touched("b")).unwrap();
    assert_eq!((story.names(), report.scan.hashed, report.again), (vec!["a".to_owned()], 0, true));
    story.disk.set_hook(None);
    for _ in 0..2 {
        story.cycle(touched("b")).unwrap();
    }
    assert_eq!(story.names(), ["b"]);
}

/// An unread file may be a missing one. This is known when it has arrived.
#[test]
fn renamed_folder_of_large_files_is_no_mass_deletion() {
    let mut story = reading_once();
    for n in 0..12 {
        story.disk.user_write(&format!("d/{n}"), format!("is large: {n}")).unwrap();
    }
    story.settle();
    story.disk.user_rename("d", "e").unwrap();
    // The proxy goes away before any upload arrives.
    story.server.set_silent(|_| true);
    assert!(story.cycle(ScanScope::full()).is_err());
    story.server.set_silent(|_| false);
    let mut hashed = 0;
    for _ in 0..4 {
        let report = story.cycle(ScanScope::full()).unwrap();
        assert_eq!((report.held, story.engine.halts()), (0, Vec::new()));
        hashed += report.scan.hashed;
    }
    assert!(hashed <= 3, "only lost uploads are read twice: {hashed}");
    let names = story.names();
    assert_eq!((names.len(), names.iter().filter(|name| name.starts_with("e/")).count()), (13, 12), "{names:?}");
}

#[test]
fn mass_deletion_is_held_despite_new_large_files() {
    let mut story = reading_once();
    for n in 0..12 {
        story.disk.user_write(&format!("d/{n}"), format!("is large: {n}")).unwrap();
    }
    story.settle();
    story.disk.user_remove_dir_all("d").unwrap();
    story.disk.user_write("e", "is large and new").unwrap();
    // One new file cannot explain twelve deletions. Twelve could, until their content is known.
    story.cycle(touched("d")).unwrap();
    assert_eq!(story.cycle(touched("e")).unwrap().held, 12);
    let id = story.engine.held()[0].id.clone();
    for n in 0..12 {
        story.disk.user_write(&format!("f/{n}"), format!("is large and new: {n}")).unwrap();
    }
    for _ in 0..3 {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert_eq!(story.engine.held().first().map(|h| &h.id), Some(&id));
    assert_eq!(story.names().iter().filter(|name| name.starts_with("d/")).count(), 12);
}

#[test]
fn file_that_outgrows_the_limit_is_not_uploaded() {
    let mut story = reading_once();
    story.disk.user_write("b", "is large too").unwrap();
    let opened = AtomicU64::new(0);
    story.disk.set_hook(Some(Box::new(move |op| {
        // The scan opens it first.
        if op.kind == StepKind::Open && op.path == "b" && opened.fetch_add(1, Ordering::Relaxed) == 1 {
            op.disk.user_write("b", vec![b'x'; 2 << 20]).unwrap();
        }
        StepFate::Go
    })));
    for _ in 0..3 {
        story.cycle(touched("b")).unwrap();
    }
    assert_eq!(story.names(), ["a"]);
    let problems = story.engine.problems();
    assert!(problems[&RelPath::parse("b").unwrap()].why.contains("max_file_size"), "{problems:?}");
}
