//! An index of hints that is wrong, or late.

use super::*;

fn path(name: &str) -> RelPath {
    RelPath::parse(name).unwrap()
}

/// What an index says of this content where it is there, or was deleted.
fn entry(content: &str, is_deleted: bool) -> Option<IndexEntry> {
    let size = if is_deleted { 0 } else { content.len() as u64 };
    Some(IndexEntry { md5: Md5::of(content.as_bytes()), size, is_deleted, version: 0 })
}

impl Story {
    /// The index comes to be right, and all comes to rest.
    #[track_caller]
    fn catch_up(&mut self) {
        self.settle();
        self.server.calm();
        self.settle();
        assert!(!self.engine.unfinished());
    }
}

/// Rows 6 and 18: the blob that the index names is not there.
#[test]
fn a_renamed_file_goes_up_to_a_name_that_the_index_wrongly_calls_taken() {
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
            story.cycle(Scope::full()).unwrap();
            let there: Vec<_> = story.server.contents().into_values().collect();
            // A tombstone of the very same content is a deletion, which a device that never had the file obeys.
            assert!(before == Some("renamed") || there.contains(&"renamed".into()), "{before:?}: {there:?}");
        }
        story.catch_up();
        if before != Some("renamed") {
            assert_eq!((story.names(), story.disk.user_tree("").len()), (vec!["new".to_owned()], 1), "{before:?}");
        }
    }
}

#[test]
fn an_edit_goes_up_where_the_index_names_a_blob_that_is_gone() {
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
