//! The history of an index object: a random id for each proxy that wrote it, with the time of the index before its first
//! write. An object that is restored from an earlier version lacks the ids that began later.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::super::new_id;
use crate::protocol::HistoryPoint;

/// Limit on the ids.
const MAX_IDS: usize = 256;

/// The history, as the index has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexHistory {
    /// Names the whole history. A proxy without histories drops it, and the next history gets another name.
    name: String,
    /// Each id with the time of the index that it began after, as
    /// [`IndexDocument::modified`](super::index_document::IndexDocument::modified).
    ids: Vec<(String, u64)>,
}

impl IndexHistory {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Begins an id after the index of the time `since`.
    pub(super) fn begin(&mut self, since: u64) {
        if self.ids.is_empty() {
            self.name = new_id().to_string();
        }
        self.ids.push((new_id().to_string(), since));
        let surplus = self.ids.len().saturating_sub(MAX_IDS);
        self.ids.drain(..surplus);
    }

    /// The history point of an index of the time `modified`.
    pub(super) fn point(&self, modified: u64) -> Option<HistoryPoint> {
        let (id, _) = self.ids.last()?;
        Some(HistoryPoint { id: format!("{}.{id}", self.name), cursor: modified })
    }

    /// True if the history up to the time `modified` contains `point`, or belongs to another history.
    pub(super) fn contains_point(&self, point: &HistoryPoint, modified: u64) -> bool {
        let Some((name, id)) = point.id.split_once('.') else { return true };
        if name != self.name {
            return true;
        }
        let Some(at) = self.ids.iter().position(|(known, _)| known == id) else { return false };
        point.cursor <= self.ids.get(at + 1).map_or(modified, |(_, since)| *since)
    }
}

/// Remembers whether this process has begun its id in an index.
#[derive(Debug, Default)]
pub(super) struct OwnHistoryId(Mutex<OwnIdState>);

#[derive(Debug, Default)]
struct OwnIdState {
    has_begun: bool,
    /// The time of the latest index.
    newest: u64,
}

impl OwnHistoryId {
    fn lock(&self) -> MutexGuard<'_, OwnIdState> {
        // A panic of another thread leaves the state whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call after an index of the time `modified` was read. An index from before the latest one was restored, so the next
    /// write begins another id.
    pub(super) fn on_read(&self, modified: u64) {
        let mut state = self.lock();
        state.has_begun &= modified >= state.newest;
        state.newest = state.newest.max(modified);
    }

    /// Call after an index of the time `modified` was written.
    pub(super) fn on_written(&self, modified: u64) {
        *self.lock() = OwnIdState { has_begun: true, newest: modified };
    }

    pub(super) fn has_begun(&self) -> bool {
        self.lock().has_begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_contains_only_its_own_points() {
        let mut history = IndexHistory::default();
        history.begin(0);
        let first = history.point(5).unwrap();
        let copy = history.clone();
        history.begin(7);
        let second = history.point(9).unwrap();
        assert!(history.contains_point(&first, 9) && history.contains_point(&second, 9));
        assert!(
            !history.contains_point(&HistoryPoint { cursor: 8, ..first.clone() }, 9),
            "the next id began before that point"
        );
        assert!(!history.contains_point(&second, 8));
        assert!(!copy.contains_point(&second, 9), "the copy ends before that point");
        let mut anew = IndexHistory::default();
        assert!(anew.contains_point(&second, 1) && anew.point(1).is_none(), "an empty history contains every point");
        anew.begin(0);
        assert!(anew.contains_point(&second, 1), "another history says nothing about the point");
    }

    #[test]
    fn restored_index_gets_a_new_id() {
        let own = OwnHistoryId::default();
        own.on_read(5);
        assert!(!own.has_begun());
        own.on_written(6);
        own.on_read(6);
        own.on_read(8);
        assert!(own.has_begun(), "a later write of another proxy changes nothing");
        own.on_read(7);
        assert!(!own.has_begun());
    }
}
