//! [`IndexCorrections`]: facts that contradict an index of hints.
//!
//! The answer of a blob is evidence (invariant 3). It counts until the index entry of that path changes. Writes of this
//! device are entered into the held index at once, so that the next index differs if another device undoes them.

use std::collections::BTreeMap;

use crate::path::RelPath;
use crate::protocol::IndexEntry;
use crate::remote::FetchedIndex;
use crate::sync::RemoteSide;

#[derive(Debug, Default)]
pub(in crate::agent) struct IndexCorrections {
    /// The state that a blob showed, with the index entry that contradicts it.
    proven: BTreeMap<RelPath, (Option<IndexEntry>, RemoteSide)>,
    /// The entries that the index of hints had before own writes, since it was fetched.
    overwritten: BTreeMap<RelPath, Option<IndexEntry>>,
}

impl IndexCorrections {
    /// Notes the state that a blob showed, for the next plan. `listed`: the index entry of the path.
    pub(crate) fn prove(&mut self, path: &RelPath, listed: Option<IndexEntry>, side: RemoteSide) {
        self.proven.insert(path.clone(), (listed, side));
    }

    /// The proven state of a path, unless its index entry has changed since.
    pub(crate) fn proven_side(&self, path: &RelPath, listed: Option<&IndexEntry>) -> Option<RemoteSide> {
        self.proven.get(path).filter(|(entry, _)| entry.as_ref() == listed).map(|(_, side)| *side)
    }

    pub(crate) fn is_proven(&self, path: &RelPath) -> bool {
        self.proven.contains_key(path)
    }

    /// The paths whose state was proven.
    pub(crate) fn paths(&self) -> impl ExactSizeIterator<Item = &RelPath> {
        self.proven.keys()
    }

    /// Forgets the proven state of the path.
    pub(crate) fn forget(&mut self, path: &RelPath) {
        self.proven.remove(path);
    }

    pub(crate) fn forget_all(&mut self) {
        self.proven.clear();
    }

    /// Forgets the proofs whose index entry has changed.
    pub(crate) fn retain_current(&mut self, index: &FetchedIndex) {
        self.proven.retain(|path, (entry, _)| entry.as_ref() == index.files.get(path));
    }

    /// Enters a write of this device into the index.
    pub(crate) fn enter_own_write(&mut self, index: &mut FetchedIndex, path: &RelPath, entry: IndexEntry) {
        let before = index.files.insert(path.clone(), entry);
        if index.cursor.is_none() {
            self.overwritten.entry(path.clone()).or_insert(before);
        }
    }

    /// Forgets own writes, because a whole index was fetched.
    pub(crate) fn forget_own_writes(&mut self) {
        self.overwritten.clear();
    }

    /// Takes own writes out of the index that `delta` does not confirm: the index has lost them. Gives their paths.
    pub(crate) fn undo_lost_writes(&mut self, index: &mut FetchedIndex, delta: &FetchedIndex) -> Vec<RelPath> {
        let mut lost = Vec::new();
        for (path, before) in std::mem::take(&mut self.overwritten) {
            if delta.files.contains_key(&path) {
                continue;
            }
            match before {
                Some(before) => index.files.insert(path.clone(), before),
                None => index.files.remove(&path),
            };
            lost.push(path);
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Md5;

    fn entry(content: &[u8]) -> IndexEntry {
        IndexEntry { md5: Md5::of(content), size: content.len() as u64, is_deleted: false, version: 0, cursor: 0 }
    }

    #[test]
    fn proof_ends_when_the_index_entry_changes() {
        let path = RelPath::parse("a").unwrap();
        let mut corrections = IndexCorrections::default();
        let side = RemoteSide::Tombstone(Md5::of(b"1"));
        corrections.prove(&path, Some(entry(b"1")), side);
        assert_eq!(corrections.proven_side(&path, Some(&entry(b"1"))), Some(side));
        assert_eq!(corrections.proven_side(&path, None), None);
        corrections.retain_current(&FetchedIndex::default());
        assert!(!corrections.is_proven(&path));
    }

    #[test]
    fn own_write_that_a_delta_does_not_confirm_is_undone() {
        let (a, b) = (RelPath::parse("a").unwrap(), RelPath::parse("b").unwrap());
        let mut index = FetchedIndex::default();
        let mut corrections = IndexCorrections::default();
        for path in [&a, &b] {
            corrections.enter_own_write(&mut index, path, entry(b"1"));
        }
        let delta = FetchedIndex { files: [(b.clone(), entry(b"1"))].into(), ..FetchedIndex::default() };
        assert_eq!(corrections.undo_lost_writes(&mut index, &delta), std::slice::from_ref(&a));
        assert!(!index.files.contains_key(&a) && index.files.contains_key(&b));
    }
}
