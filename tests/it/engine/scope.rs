//! Paths that leave the scope of sync and come back. A file that went missing outside of the scope is not deleted.

use super::*;

fn path(name: &str) -> RelPath {
    RelPath::parse(name).unwrap()
}

fn base(story: &Story, name: &str) -> Option<Base> {
    story.engine.container().entries().get(&path(name)).map(|e| e.base)
}

/// A synced folder with these files. The content of each is its name.
fn synced(config: FakeConfig, names: &[&str]) -> Story {
    let mut story = Story::new(config);
    for name in names {
        story.disk.user_write(name, (*name).to_owned()).unwrap();
    }
    story.settle();
    story.settle();
    story
}

#[test]
fn file_comes_back_when_removed_under_an_ignore_rule() {
    for config in [FakeConfig::default(), plain()] {
        for restarts in [false, true] {
            let mut story = synced(config, &["a", "b"]);
            story.ignore(&["a"]);
            story.settle();
            assert_eq!(base(&story, "a"), Some(Base::Detached(Md5::of(b"a"))));
            story.disk.user_remove("a").unwrap();
            story.settle();
            if restarts {
                story.restart();
            } else {
                story.ignore(&[]);
            }
            story.settle();
            assert_eq!(story.names(), ["a", "b"], "restarts: {restarts}");
            assert_eq!(story.disk.user_read("a").unwrap(), "a");
            assert_eq!(base(&story, "a"), Some(Base::Synced(Md5::of(b"a"))));
        }
    }
}

#[test]
fn rule_is_remembered_when_the_proxy_was_away() {
    let mut story = synced(FakeConfig::default(), &["a"]);
    story.ignore(&["a"]);
    story.server.lose(0, LostPart::Request);
    assert!(story.cycle(ScanScope::full()).is_err());
    story.disk.user_remove("a").unwrap();
    story.restart();
    story.settle();
    assert_eq!(story.names(), ["a"]);
}

#[test]
fn rule_is_remembered_when_the_state_could_not_be_written() {
    let mut story = synced(FakeConfig::default(), &["a"]);
    story.ignore(&["a"]);
    story.state.set_hook(Some(Box::new(|op| match op.kind {
        kind if kind.writes() => StepFate::Fail(ErrorKind::StorageFull),
        _ => StepFate::Go,
    })));
    story.cycle(ScanScope::full()).unwrap_err();
    story.state.set_hook(None);
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_remove("a").unwrap();
    story.restart();
    story.settle();
    assert_eq!(story.names(), ["a"]);
    assert_eq!(story.disk.user_read("a").unwrap(), "a");
}

#[test]
fn file_that_comes_back_unchanged_can_be_deleted() {
    let mut story = synced(FakeConfig::default(), &["a", "b"]);
    story.ignore(&["a"]);
    story.settle();
    story.ignore(&[]);
    story.settle();
    assert_eq!(base(&story, "a"), Some(Base::Synced(Md5::of(b"a"))));
    story.disk.user_remove("a").unwrap();
    story.settle();
    assert_eq!(story.names(), ["b"]);
}

#[test]
fn edit_under_a_rule_is_compared_with_the_base() {
    for theirs in [None, Some("theirs")] {
        let mut story = synced(FakeConfig::default(), &["a"]);
        story.ignore(&["a"]);
        story.settle();
        story.disk.user_write("a", "ours").unwrap();
        if let Some(theirs) = theirs {
            story.server.foreign_put(&path("a"), theirs);
        }
        story.settle();
        story.ignore(&[]);
        story.settle();
        let contents = story.server.contents();
        assert_eq!(contents[&path("a")], theirs.unwrap_or("ours"));
        let copies = usize::from(theirs.is_some());
        assert_eq!((contents.len(), story.disk.user_tree("").len()), (1 + copies, 1 + copies));
    }
}

#[test]
fn remote_edit_and_deletion_under_a_rule_arrive_afterwards() {
    let mut story = synced(FakeConfig::default(), &["a", "b", "c"]);
    story.ignore(&["a", "b", "c"]);
    story.settle();
    story.server.foreign_put(&path("a"), "theirs");
    story.server.server_delete(&path("b"));
    story.server.server_delete(&path("c"));
    story.disk.user_remove("c").unwrap();
    story.settle();
    assert_eq!(story.disk.user_tree("").len(), 2, "nothing happens to ignored files");
    story.ignore(&[]);
    story.settle();
    assert_eq!(story.disk.user_read("a").unwrap(), "theirs");
    assert_eq!((story.names(), story.disk.user_tree("").len()), (vec!["a".to_owned()], 1));
}

#[test]
fn file_comes_back_when_removed_while_too_large() {
    // The file is removed after a scan under the lower limit, or before one.
    for is_seen in [true, false] {
        let mut story = synced(FakeConfig::default(), &["a is long", "b"]);
        let limit = |story: &mut Story, max_file_size| {
            let options = EngineOptions { max_file_size, ..options() };
            story.engine.set_options(options, Arc::new(|_: &str, _: bool| false), Arc::new(story.server.client()));
        };
        limit(&mut story, 4);
        if is_seen {
            story.settle();
        }
        story.disk.user_remove("a is long").unwrap();
        story.settle();
        assert_eq!(story.names(), ["a is long", "b"]);
        limit(&mut story, 1 << 20);
        story.settle();
        assert_eq!(story.disk.user_tree("").len(), 2, "seen: {is_seen}");
        assert_eq!(story.names(), ["a is long", "b"]);
    }
}

#[test]
fn file_comes_back_when_removed_while_unreadable() {
    let mut story = synced(FakeConfig::default(), &["a"]);
    story.disk.set_time(1_600_000_000_000_000_000);
    story.disk.set_unreadable("a", true).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_remove("a").unwrap();
    story.settle();
    assert_eq!((story.names(), story.disk.user_read("a").unwrap()), (vec!["a".to_owned()], "a".into()));
}

/// The reply to the upload was lost, so the proxy has a file without a base here.
#[test]
fn unconfirmed_upload_comes_back_when_removed_under_a_rule() {
    for was_deleted_before in [false, true] {
        let mut story = synced(FakeConfig::default(), &["b"]);
        if was_deleted_before {
            story.disk.user_write("a", "older").unwrap();
            story.settle();
            story.disk.user_remove("a").unwrap();
            story.settle();
            assert!(matches!(base(&story, "a"), Some(Base::Seen(_))));
        }
        story.disk.user_write("a", "a").unwrap();
        story.server.lose(1, LostPart::Reply);
        assert!(story.cycle(ScanScope::full()).is_err());
        story.ignore(&["a"]);
        story.settle();
        story.disk.user_remove("a").unwrap();
        story.ignore(&[]);
        story.settle();
        let files = (story.names(), story.disk.user_tree("").len());
        assert_eq!(files, (vec!["a".to_owned(), "b".to_owned()], 2), "deleted before: {was_deleted_before}");
    }
}

#[test]
fn detached_entry_is_forgotten_with_its_tombstone() {
    let mut story = synced(FakeConfig::default(), &["a", "b"]);
    story.ignore(&["a"]);
    story.settle();
    story.disk.user_remove("a").unwrap();
    story.server.server_delete(&path("a"));
    story.server.drop_tombstones();
    story.settle();
    story.engine.tidy().unwrap();
    assert!(base(&story, "a").is_some(), "an ignored path stays as it was");
    story.ignore(&[]);
    story.settle();
    story.engine.tidy().unwrap();
    assert_eq!((base(&story, "a"), story.names()), (None, vec!["b".to_owned()]));
}
