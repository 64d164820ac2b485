//! [`Observed`]: both sides as last observed, the folder by a scan and the proxy by its index.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::digest::Md5;
use crate::local::{LocalEntry, LocalTree};
use crate::path::RelPath;
use crate::protocol::IndexEntry;
use crate::remote::FetchedIndex;
use crate::state::BaseEntry;
use crate::sync::{Base, IndexTrust, LocalState, RemoteSide, SkipReason};

use super::corrections::{HealTimes, IndexCorrections};
use super::ports::IgnoreFn;

/// Both sides as last observed.
#[derive(Debug, Default)]
pub(in crate::agent) struct Observed {
    pub tree: LocalTree,
    /// When the last scan ended ([`World::elapsed`](crate::agent::World::elapsed)).
    pub scanned_at: Duration,
    /// The last scan went through. If not, the next one is full.
    pub is_scanned: bool,
    /// The whole folder was scanned under the current ignore rules.
    pub knows_rules: bool,
    /// The last scan also looked at every missed file, so that it may prove deletions.
    pub is_confirming: bool,
    pub index: Option<FetchedIndex>,
    pub corrections: IndexCorrections,
    /// When entries of a weak index were healed.
    pub heals: HealTimes,
    /// The proxy may have dropped tombstones that this folder has not obeyed.
    pub has_expired_tombstones: bool,
    /// At least this many synced paths are missing from an index of hints.
    pub missing_entries: usize,
}

impl Observed {
    /// The tree that the base knows. The first scan reads only files that differ from it.
    pub(crate) fn seeded(entries: &BTreeMap<RelPath, BaseEntry>) -> Self {
        let mut tree = LocalTree::default();
        for (path, entry) in entries {
            if let (Base::Synced(md5), Some(stat)) = (entry.base, entry.stat) {
                tree.seed(path.clone(), md5, stat);
            }
        }
        Self { tree, ..Self::default() }
    }

    /// Forgets everything that an earlier proxy or namespace said.
    pub(crate) fn forget_index(&mut self) {
        self.index = None;
        self.corrections.proven.clear();
    }

    /// The index entry of a path. A hint unless the index is exact, but its md5 and its version belong together.
    pub(crate) fn listed(&self, path: &RelPath) -> Option<&IndexEntry> {
        self.index.as_ref()?.files.get(path)
    }

    /// True if the index names the path as live.
    pub(crate) fn is_listed_live(&self, path: &RelPath) -> bool {
        self.listed(path).is_some_and(|entry| !entry.is_deleted)
    }

    /// True if the index is evidence (capability `strong-index`).
    pub(crate) fn has_exact_index(&self) -> bool {
        self.index.as_ref().is_some_and(|index| index.cursor.is_some())
    }

    pub(crate) fn trust(&self) -> IndexTrust {
        if self.has_exact_index() { IndexTrust::Evidence } else { IndexTrust::Hints }
    }

    pub(crate) fn found(&self, path: &RelPath) -> Option<&LocalEntry> {
        self.tree.found().get(path)
    }

    /// Why nothing is known of a path that the scan did not find. `None`: the path is absent.
    pub(crate) fn unknown_absence(&self, ignored: &IgnoreFn, path: &RelPath) -> Option<SkipReason> {
        self.tree.unknown_above(path).or_else(|| ignored(path.as_str(), false).then_some(SkipReason::Ignored))
    }

    /// The content of the local file, where it is known.
    pub(crate) fn local_content(&self, path: &RelPath) -> Option<Md5> {
        match self.found(path)?.local {
            LocalState::File(md5) => Some(md5),
            LocalState::Unknown(_) => None,
        }
    }

    /// True if the file was being written when last scanned.
    pub(crate) fn is_changing(&self, path: &RelPath) -> bool {
        self.found(path).is_some_and(|found| found.local == LocalState::Unknown(SkipReason::Changing))
    }

    /// The bytes that the path has on either side.
    pub(crate) fn size(&self, path: &RelPath) -> u64 {
        let local = self.found(path).map_or(0, |found| found.size);
        local.max(self.listed(path).map_or(0, |entry| entry.size))
    }

    /// Makes the next scan read the file, even if its stat is unchanged.
    pub(crate) fn read_again(&mut self, path: &RelPath) {
        let size = self.found(path).map_or(0, |found| found.size);
        let found = LocalEntry { local: LocalState::Unknown(SkipReason::Changing), stat: None, size };
        self.tree.put(path.clone(), Some(found));
    }

    /// The remote side of a path: the index entry, or the blob's answer where that is newer. An exact index drops
    /// expired tombstones, so an agreed path that it does not name had one.
    pub(crate) fn remote_side(&self, path: &RelPath, base: Option<Base>) -> Option<RemoteSide> {
        let listed = self.listed(path);
        // A blob that was found live serves a deletion. Once the file is back, only the wrong entry leads to its
        // healing.
        let is_moot = |proven: &RemoteSide| matches!(proven, RemoteSide::Live(_)) && self.found(path).is_some();
        if let Some(proven) = self.corrections.proven_side(path, listed).filter(|proven| !is_moot(proven)) {
            return Some(proven);
        }
        match (listed, base) {
            (Some(entry), _) if entry.is_deleted => Some(RemoteSide::Tombstone(entry.md5)),
            (Some(entry), _) => Some(RemoteSide::Live(entry.md5)),
            (None, Some(Base::Synced(md5) | Base::Detached(md5))) if self.has_expired_tombstones => {
                Some(RemoteSide::Tombstone(md5))
            }
            (None, _) => None,
        }
    }
}

/// The remote side of a path that has not changed since base.
pub(super) fn unchanged(base: Base) -> RemoteSide {
    match base {
        Base::Synced(md5) | Base::Detached(md5) => RemoteSide::Live(md5),
        Base::Seen(md5) => RemoteSide::Tombstone(md5),
    }
}
