//! The history of an index object: a random id for each proxy that wrote it, with the time of the index after which it
//! began. An object that is put back from an earlier version lacks the ids that came after it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::super::new_id;
use crate::protocol::HistoryPoint;

/// Ids kept.
const KEPT: usize = 256;

/// As it stands in the index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Another proxy that writes the index drops its history. The next one has another name, and says nothing of the last.
    name: String,
    /// Each with [`Document::modified`](super::index::Document::modified) of the index that it began after.
    ids: Vec<(String, u64)>,
}

impl History {
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Begins an id after the index of `since`.
    pub fn begin(&mut self, since: u64) {
        if self.ids.is_empty() {
            self.name = new_id().to_string();
        }
        self.ids.push((new_id().to_string(), since));
        let surplus = self.ids.len().saturating_sub(KEPT);
        self.ids.drain(..surplus);
    }

    /// The point where an index of `modified` stands.
    pub fn point(&self, modified: u64) -> Option<HistoryPoint> {
        let (id, _) = self.ids.last()?;
        Some(HistoryPoint { id: format!("{}.{id}", self.name), cursor: modified })
    }

    /// True if the index, which is of `modified`, once stood at `point`, or has no history that could tell.
    pub fn contains_point(&self, point: &HistoryPoint, modified: u64) -> bool {
        let Some((name, id)) = point.id.split_once('.') else { return true };
        if name != self.name {
            return true;
        }
        let Some(at) = self.ids.iter().position(|(known, _)| known == id) else { return false };
        point.cursor <= self.ids.get(at + 1).map_or(modified, |(_, since)| *since)
    }
}

/// Remembers if this process has begun its id.
#[derive(Debug, Default)]
pub struct Begun(Mutex<BegunState>);

#[derive(Debug, Default)]
struct BegunState {
    has_begun: bool,
    /// The latest index that was seen.
    newest: u64,
}

impl Begun {
    fn lock(&self) -> MutexGuard<'_, BegunState> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An index of `modified` was read. One from before the latest was put back: what is written over it is another
    /// history.
    pub fn saw(&self, modified: u64) {
        let mut state = self.lock();
        state.has_begun &= modified >= state.newest;
        state.newest = state.newest.max(modified);
    }

    /// An index of `modified` was written.
    pub fn wrote(&self, modified: u64) {
        *self.lock() = BegunState { has_begun: true, newest: modified };
    }

    pub fn has_begun(&self) -> bool {
        self.lock().has_begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_knows_its_own_past_only() {
        let mut history = History::default();
        history.begin(0);
        let first = history.point(5).unwrap();
        let copy = history.clone();
        history.begin(7);
        let second = history.point(9).unwrap();
        assert!(history.contains_point(&first, 9) && history.contains_point(&second, 9));
        assert!(!history.contains_point(&HistoryPoint { cursor: 8, ..first.clone() }, 9), "the next id began before");
        assert!(!history.contains_point(&second, 8));
        assert!(!copy.contains_point(&second, 9), "an earlier copy");
        let mut anew = History::default();
        assert!(anew.contains_point(&second, 1) && anew.point(1).is_none(), "no history tells nothing");
        anew.begin(0);
        assert!(anew.contains_point(&second, 1), "nor does another one");
    }

    #[test]
    fn process_begins_anew_over_an_index_that_was_put_back() {
        let begun = Begun::default();
        begun.saw(5);
        assert!(!begun.has_begun());
        begun.wrote(6);
        begun.saw(6);
        begun.saw(8);
        assert!(begun.has_begun(), "others wrote");
        begun.saw(7);
        assert!(!begun.has_begun());
    }
}
