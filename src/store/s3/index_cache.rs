//! The index as it was last read or written, and its recent changes, from which the proxy answers clients that have an
//! earlier state.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::super::{IndexEntry, IndexState};
use super::index_document::IndexDocument;
use crate::path::RelPath;

/// Limit on the remembered changes of one index. A state counts as at least one.
const MAX_CHANGES: usize = 1024;

/// An index and its ETag.
#[derive(Debug, Clone)]
pub(super) struct BucketIndex {
    /// `None` if there is no index object.
    pub(super) etag: Option<String>,
    pub(super) document: Arc<IndexDocument>,
}

impl BucketIndex {
    /// Names this content of the index: the ETag, which is the same for all proxies on the bucket.
    pub(super) fn tag(&self) -> &str {
        self.etag.as_deref().map_or("none", |etag| etag.trim_start_matches("W/").trim_matches('"'))
    }

    pub(super) fn state(&self) -> IndexState {
        let IndexDocument { modified, history, .. } = &*self.document;
        IndexState { tag: self.tag().into(), mark: None, modified: *modified, history: history.point(*modified) }
    }
}

/// The latest known state of an index.
#[derive(Debug, Default)]
pub(super) struct BucketIndexCache {
    /// Counts the updates.
    generation: u64,
    latest: Option<BucketIndex>,
    /// Ends with `latest`.
    recent: RecentChanges,
    /// True if this process has begun its history id in the index.
    has_begun_history: bool,
    /// The time of the newest index that was read or written.
    newest: u64,
}

impl BucketIndexCache {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The state that was last read or written.
    pub(super) fn latest(&self) -> Option<&BucketIndex> {
        self.latest.as_ref()
    }

    /// Replaces the state `before` by `now`, which differs in `changed`. Clears the cache if it has another state, because
    /// that may be newer.
    pub(super) fn advance(&mut self, before: &BucketIndex, now: BucketIndex, changed: &[RelPath]) {
        if !self.latest.as_ref().is_some_and(|latest| [before.tag(), now.tag()].contains(&latest.tag())) {
            self.clear();
            return;
        }
        self.recent.push(before.tag(), now.tag(), changed);
        self.generation += 1;
        self.latest = Some(now);
    }

    /// Replaces the state by `now`, whose changes are unknown.
    pub(super) fn reset(&mut self, now: BucketIndex) {
        self.recent = RecentChanges::from(now.tag());
        self.generation += 1;
        self.latest = Some(now);
    }

    pub(super) fn clear(&mut self) {
        self.generation += 1;
        self.latest = None;
        self.recent = RecentChanges::default();
    }

    pub(super) fn has_begun_history(&self) -> bool {
        self.has_begun_history
    }

    /// Call after an index of the time `modified` was read. An index from before the newest one was restored, so the next
    /// write begins another history id.
    pub(super) fn on_read(&mut self, modified: u64) {
        self.has_begun_history &= modified >= self.newest;
        self.newest = self.newest.max(modified);
    }

    /// Call after an index of the time `modified` was written with a history id of this process.
    pub(super) fn on_written(&mut self, modified: u64) {
        (self.has_begun_history, self.newest) = (true, modified);
    }

    /// The latest state, and the paths that changed since the index had `tag`. `None` if the changes are unknown.
    pub(super) fn changes_since(&self, tag: &str) -> Option<(&BucketIndex, BTreeSet<&RelPath>)> {
        Some((self.latest.as_ref()?, self.recent.since(tag)?))
    }
}

/// The paths in which `new` and `old` differ, including paths that only one of them has.
pub(super) fn differing_paths(old: &IndexDocument, new: &IndexDocument) -> Vec<RelPath> {
    let changed =
        new.entries.iter().filter(|(path, entry)| old.entries.get(*path) != Some(entry)).map(|(path, _)| path);
    let gone = old.entries.keys().filter(|path| !new.entries.contains_key(*path));
    changed.chain(gone).cloned().collect()
}

/// The entries of `paths`. `None` if they are the whole index, or if one path has no entry any more.
pub(super) fn entries_of(document: &IndexDocument, paths: &BTreeSet<&RelPath>) -> Option<Vec<(String, IndexEntry)>> {
    if paths.len() >= document.entries.len() {
        return None;
    }
    paths.iter().map(|path| Some((path.as_str().to_owned(), *document.entries.get(*path)?))).collect()
}

/// Successive states of one index, with the changes of each.
#[derive(Debug, Default)]
struct RecentChanges {
    /// The newest last. Each has the paths in which it differs from the one before.
    states: VecDeque<(String, Vec<RelPath>)>,
    /// The sum of the states' weights.
    weight: usize,
}

impl RecentChanges {
    fn from(tag: &str) -> Self {
        Self { states: [(tag.to_owned(), Vec::new())].into(), weight: 1 }
    }

    fn push(&mut self, before: &str, now: &str, changed: &[RelPath]) {
        let last = self.states.back().map(|(tag, _)| tag.as_str());
        // A read may return the new state before its writer gets the answer.
        if last == Some(now) {
            return;
        }
        if last != Some(before) || changed.len() >= MAX_CHANGES {
            *self = Self::from(now);
            return;
        }
        self.states.push_back((now.to_owned(), changed.to_vec()));
        self.weight += weight(changed);
        while self.weight > MAX_CHANGES
            && let Some((_, oldest)) = self.states.pop_front()
        {
            self.weight -= weight(&oldest);
        }
    }

    /// The paths that changed since the index last had `tag`.
    fn since(&self, tag: &str) -> Option<BTreeSet<&RelPath>> {
        let at = self.states.iter().rposition(|(of, _)| of == tag)?;
        Some(self.states.iter().skip(at + 1).flat_map(|(_, changed)| changed).collect())
    }
}

fn weight(changed: &[RelPath]) -> usize {
    changed.len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Md5;

    fn paths(names: &str) -> Vec<RelPath> {
        names.split_whitespace().map(|name| RelPath::parse(name).unwrap()).collect()
    }

    fn since(recent: &RecentChanges, tag: &str) -> Option<String> {
        let paths = recent.since(tag)?;
        Some(paths.iter().map(|path| path.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn changes_are_known_for_successive_states() {
        let mut recent = RecentChanges::default();
        assert_eq!(since(&recent, "1"), None);
        recent.push("1", "2", &paths("a"));
        assert_eq!(since(&recent, "1"), None, "the changes before the first state are unknown");
        recent.push("2", "3", &paths("b a"));
        recent.push("3", "4", &paths("c a"));
        assert_eq!(since(&recent, "2").unwrap(), "a b c");
        assert_eq!(since(&recent, "3").unwrap(), "a c");
        assert_eq!(since(&recent, "4").unwrap(), "");
        recent.push("3", "4", &paths("c a"));
        assert_eq!(since(&recent, "2").unwrap(), "a b c", "the writer reports a state that a read already gave");
        // The states between 4 and 5 are unknown.
        recent.push("5", "6", &paths("d"));
        assert_eq!((since(&recent, "4"), since(&recent, "6").unwrap()), (None, String::new()));
    }

    #[test]
    fn late_write_result_does_not_reset_the_cache() {
        let index = |tag: &str| BucketIndex { etag: Some(tag.to_owned()), document: Arc::default() };
        let tag = |cache: &BucketIndexCache| cache.latest().map(|latest| latest.tag().to_owned());
        let mut cache = BucketIndexCache::default();
        cache.reset(index("1"));
        cache.advance(&index("1"), index("2"), &paths("a"));
        cache.advance(&index("1"), index("2"), &paths("a"));
        assert_eq!((tag(&cache), cache.changes_since("1").unwrap().1.len()), (Some("2".to_owned()), 1));
        cache.advance(&index("2"), index("3"), &paths("b"));
        let generation = cache.generation();
        cache.advance(&index("1"), index("2"), &paths("a"));
        assert_eq!(tag(&cache), None, "either state may be the newer one");
        assert!(cache.generation() > generation && cache.changes_since("2").is_none());
    }

    #[test]
    fn restored_index_gets_a_new_history_id() {
        let mut cache = BucketIndexCache::default();
        cache.on_read(5);
        assert!(!cache.has_begun_history());
        cache.on_written(6);
        cache.on_read(6);
        cache.on_read(8);
        assert!(cache.has_begun_history(), "a later write of another proxy changes nothing");
        cache.clear();
        cache.on_read(7);
        assert!(!cache.has_begun_history());
    }

    #[test]
    fn repeated_tag_counts_from_its_last_occurrence() {
        let mut recent = RecentChanges::from("1");
        recent.push("1", "2", &paths("a"));
        recent.push("2", "1", &paths("a"));
        recent.push("1", "3", &paths("b"));
        assert_eq!(since(&recent, "1").unwrap(), "b");
        assert_eq!(since(&recent, "2").unwrap(), "a b");
    }

    #[test]
    fn remembered_changes_are_limited() {
        let mut recent = RecentChanges::from("0");
        let tag = |n: usize| n.to_string();
        for n in 0..3 * MAX_CHANGES {
            // Every second state changes no path.
            let changed = if n % 2 == 0 { paths("a b c") } else { Vec::new() };
            recent.push(&tag(n), &tag(n + 1), &changed);
            assert!(recent.weight <= MAX_CHANGES);
            assert_eq!(recent.weight, recent.states.iter().map(|(_, changed)| weight(changed)).sum::<usize>());
        }
        assert_eq!(since(&recent, &tag(3 * MAX_CHANGES - 2)).unwrap(), "a b c");
        assert_eq!(since(&recent, &tag(2 * MAX_CHANGES)), None);
        let many: Vec<RelPath> = (0..MAX_CHANGES).map(|n| RelPath::parse(&tag(n)).unwrap()).collect();
        recent.push(&tag(3 * MAX_CHANGES), "x", &many);
        assert_eq!((recent.states.len(), recent.weight), (1, 1));
    }

    #[test]
    fn entries_of_needs_existing_paths_and_a_smaller_set() {
        let mut document = IndexDocument::default();
        for path in paths("a b c") {
            let entry = IndexEntry { md5: Md5::of(b"x"), size: 1, is_deleted: false, version: 1, cursor: 0 };
            document.entries.insert(path, entry);
        }
        let count = |names: &str| {
            let paths = paths(names);
            entries_of(&document, &paths.iter().collect()).map(|entries| entries.len())
        };
        assert_eq!((count(""), count("a c"), count("a b c"), count("a d")), (Some(0), Some(2), None, None));
    }
}
