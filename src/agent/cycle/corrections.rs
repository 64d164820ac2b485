//! A weak index that is wrong: [`IndexCorrections`], the facts that contradict it, and [`HealTimes`], when it was
//! healed.
//!
//! The answer of a blob is evidence (invariant 3). It counts until the index entry of that path changes. Writes of this
//! device are entered into the held index at once, so that the next index differs if another device undoes them.
//!
//! An index of hints may keep an entry that its blob contradicts. The agent then writes the same bytes again, or
//! repeats the deletion, and the proxy makes a new entry. Heals are limited.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::path::RelPath;
use crate::protocol::IndexEntry;
use crate::remote::FetchedIndex;
use crate::sync::RemoteSide;

/// The shortest time between two heals of one path.
const HEAL_INTERVAL: Duration = Duration::from_secs(60);
/// Heals in a row at that interval. Each further one waits twice as long.
const HEALS_AT_INTERVAL: u32 = 5;
/// The longest wait. A heal that holds for as long is forgotten.
const MAX_HEAL_WAIT: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub(in crate::agent) struct IndexCorrections {
    /// The state that a blob showed, with the index entry that contradicts it.
    pub(super) proven: BTreeMap<RelPath, (Option<IndexEntry>, RemoteSide)>,
    /// The entries that the index of hints had before own writes, since it was fetched as a whole.
    pub(super) overwritten: BTreeMap<RelPath, Option<IndexEntry>>,
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

#[derive(Debug, Clone, Copy)]
struct HealRecord {
    /// When the path may be healed again ([`World::elapsed`](crate::agent::World::elapsed)).
    due: Duration,
    /// Heals in a row.
    tries: u32,
    /// A cycle has checked the path since it was due.
    is_checked: bool,
}

/// Clones share their state.
#[derive(Debug, Clone, Default)]
pub(in crate::agent) struct HealTimes {
    paths: Arc<Mutex<BTreeMap<RelPath, HealRecord>>>,
    /// Held during a heal. Proxies with a weak index lose updates that come at the same time.
    pub(super) lock: Arc<futures::lock::Mutex<()>>,
}

impl HealTimes {
    fn records(&self) -> MutexGuard<'_, BTreeMap<RelPath, HealRecord>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a heal of `path`. False if it is too soon after the last one.
    pub(crate) fn begin(&self, path: &RelPath, now: Duration) -> bool {
        let mut paths = self.records();
        let tries = match paths.get(path) {
            Some(heal) if now < heal.due => return false,
            Some(heal) => heal.tries.saturating_add(1),
            None => 1,
        };
        let wait =
            HEAL_INTERVAL.saturating_mul(1 << tries.saturating_sub(HEALS_AT_INTERVAL).min(10)).min(MAX_HEAL_WAIT);
        paths.insert(path.clone(), HealRecord { due: now + wait, tries, is_checked: false });
        true
    }

    /// When a healed path must be checked again, because the heal may have been lost too.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.records().values().filter(|heal| !heal.is_checked).map(|heal| heal.due).min()
    }

    /// The paths to plan again now, each once. The index may answer as before, so nothing else opens them.
    pub(crate) fn take_due(&self, now: Duration) -> Vec<RelPath> {
        let mut due = Vec::new();
        self.records().retain(|path, heal| {
            if heal.due <= now && !heal.is_checked {
                heal.is_checked = true;
                due.push(path.clone());
            }
            now < heal.due + MAX_HEAL_WAIT
        });
        due
    }

    pub(crate) fn clear(&self) {
        self.records().clear();
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
        assert!(corrections.proven.is_empty());
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

    #[test]
    fn path_is_healed_once_a_minute_and_then_less_often() {
        let (heals, path) = (HealTimes::default(), RelPath::parse("a").unwrap());
        let mut now = Duration::from_secs(7);
        let mut waits = Vec::new();
        for _ in 0..20 {
            assert!(heals.begin(&path, now));
            let due = heals.next_due().unwrap();
            waits.push((due - now).as_secs());
            assert!(!heals.begin(&path, due - Duration::from_millis(1)), "too soon");
            assert!(heals.take_due(due - Duration::from_millis(1)).is_empty());
            assert_eq!((heals.take_due(due), heals.take_due(due)), (vec![path.clone()], vec![]), "it is given once");
            assert_eq!(heals.next_due(), None);
            now = due;
        }
        assert_eq!(waits[..7], [60, 60, 60, 60, 60, 120, 240]);
        assert_eq!(*waits.last().unwrap(), MAX_HEAL_WAIT.as_secs());
        let other = RelPath::parse("b").unwrap();
        assert!(heals.begin(&path, now) && heals.begin(&other, now), "each path for itself");
        let later = now + 2 * MAX_HEAL_WAIT;
        assert_eq!(heals.take_due(later), [path.clone(), other]);
        assert!(heals.begin(&path, later));
        assert_eq!(heals.next_due(), Some(later + HEAL_INTERVAL), "a heal that held is forgotten");
    }
}
