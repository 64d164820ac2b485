//! An index of hints that is wrong or late.

use super::*;

fn path(name: &str) -> RelPath {
    RelPath::parse(name).unwrap()
}

/// The index entry of this content, live or deleted.
fn entry(content: &str, is_deleted: bool) -> Option<IndexEntry> {
    let size = if is_deleted { 0 } else { content.len() as u64 };
    Some(IndexEntry { md5: Md5::of(content.as_bytes()), size, is_deleted, version: 0, cursor: 0 })
}

impl Story {
    /// Settles, then corrects the index and settles again.
    #[track_caller]
    fn catch_up(&mut self) {
        self.settle();
        self.server.calm();
        self.settle();
        assert!(!self.engine.is_unfinished());
    }
}

/// Rows 6 and 18: the blob that the index names is not there.
#[test]
fn renamed_file_is_uploaded_over_a_stale_index_entry() {
    for before in [None, Some("theirs"), Some("renamed")] {
        let mut story = Story::new(plain());
        story.disk.user_write("old", "renamed").unwrap();
        story.settle();
        if let Some(before) = before {
            story.server.foreign_put(&path("new"), before);
            story.server.server_delete(&path("new"));
        }
        story.server.set_index_entry(&path("new"), entry("stale", false));
        story.disk.user_rename("old", "new").unwrap();
        for _ in 0..4 {
            story.cycle(ScanScope::full()).unwrap();
            let there: Vec<_> = story.server.contents().into_values().collect();
            // A device that never had the file obeys a tombstone of the same content.
            assert!(before == Some("renamed") || there.contains(&"renamed".into()), "{before:?}: {there:?}");
        }
        story.catch_up();
        if before != Some("renamed") {
            assert_eq!((story.names(), story.disk.user_tree("").len()), (vec!["new".to_owned()], 1), "{before:?}");
        }
    }
}

#[test]
fn edit_is_uploaded_when_the_listed_blob_is_gone() {
    for deleted in [false, true] {
        let mut story = Story::new(plain());
        story.disk.user_write("a", "base").unwrap();
        story.settle();
        story.server.server_delete(&path("a"));
        if !deleted {
            story.server.drop_tombstones();
        }
        story.server.set_index_entry(&path("a"), entry("stale", false));
        story.disk.user_write("a", "edited").unwrap();
        story.settle();
        assert_eq!(story.server.contents()[&path("a")], "edited");
        story.catch_up();
        assert_eq!(story.disk.user_read("a").unwrap(), "edited");
    }
}

/// Row 17: the index names the content before this device's last write.
#[test]
fn reverted_edit_stays_reverted_with_a_late_index() {
    for theirs in [false, true] {
        let mut story = Story::new(plain());
        story.disk.user_write("a", "first").unwrap();
        story.settle();
        story.disk.user_write("a", "second").unwrap();
        story.settle();
        story.server.set_index_entry(&path("a"), entry("first", false));
        if theirs {
            story.server.foreign_put(&path("a"), "theirs");
            story.server.set_index_entry(&path("a"), entry("first", false));
        }
        story.disk.user_write("a", "first").unwrap();
        story.catch_up();
        let here: Vec<_> = story.disk.user_tree("").into_values().collect();
        assert!(here.contains(&"first".into()), "{here:?}");
        assert_eq!(story.server.contents()[&path("a")], if theirs { "theirs" } else { "first" });
        assert_eq!(here.len(), 1 + usize::from(theirs), "{here:?}");
    }
}

/// Row 5 with a recorded deletion.
#[test]
fn file_renamed_away_and_back_stays_with_a_late_index() {
    let mut story = Story::new(plain());
    story.disk.user_write("a", "1").unwrap();
    story.settle();
    story.disk.user_rename("a", "b").unwrap();
    story.settle();
    assert_eq!(story.names(), ["b"]);
    story.server.set_index_entry(&path("a"), entry("1", false));
    story.disk.user_rename("b", "a").unwrap();
    story.catch_up();
    assert_eq!((story.names(), story.disk.user_read("a").unwrap()), (vec!["a".to_owned()], "1".into()));
}

/// Row 10: the index names the deletion before the last.
#[test]
fn file_deleted_twice_stays_deleted_with_a_late_index() {
    for theirs in [false, true] {
        let mut story = Story::new(plain());
        story.disk.user_write("other", "other").unwrap();
        for content in ["first", "second"] {
            story.disk.user_write("a", content).unwrap();
            story.settle();
            if theirs && content == "second" {
                story.server.foreign_put(&path("a"), "theirs");
            }
            story.disk.user_remove("a").unwrap();
            story.cycle(ScanScope::full()).unwrap();
            let late = if content == "second" { entry("first", true) } else { entry("first", false) };
            story.server.set_index_entry(&path("a"), late);
            story.settle();
        }
        story.catch_up();
        let left: Vec<_> = if theirs { vec!["a", "other"] } else { vec!["other"] };
        assert_eq!(story.names(), left);
        assert_eq!(story.disk.user_tree("").into_keys().collect::<Vec<_>>(), left, "an edit beats a delete");
    }
}

#[test]
fn first_sync_downloads_nothing_that_is_equal() {
    let mut story = Story::new(plain());
    for n in 0..12 {
        story.disk.user_write(&format!("n{n}"), n.to_string()).unwrap();
        story.server.foreign_put(&path(&format!("n{n}")), n.to_string());
    }
    story.settle();
    assert!(story.server.calls().iter().all(|call| call.request == FakeRequest::Index));
}

/// No later cycle would record it.
#[test]
fn deletion_answered_with_404_records_the_listed_tombstone() {
    let mut story = Story::new(plain());
    story.disk.user_write("a", "ours").unwrap();
    story.settle();
    story.server.foreign_put(&path("a"), "theirs");
    story.server.server_delete(&path("a"));
    story.disk.user_remove("a").unwrap();
    assert!(story.cycle(ScanScope::full()).unwrap().again, "one scan missed it");
    assert!(!story.cycle(ScanScope::full()).unwrap().again);
    let base = story.engine.container().entries().get(&path("a")).map(|entry| entry.base);
    assert_eq!(base, Some(Base::Seen(Md5::of(b"theirs"))));
}
