//! [`HistoryPoint`]: a place in the history of a store, by which a store that was set back is told from one that went on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The newest history id of a store and its cursor, as an index gave them. `id:cursor` on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPoint {
    /// Random; a store begins a new one with its first write after each start.
    pub id: String,
    pub cursor: u64,
}

impl fmt::Display for HistoryPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.cursor)
    }
}

/// A text that is no [`HistoryPoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a point of a history (id:cursor)")]
pub struct NotAPoint;

impl FromStr for HistoryPoint {
    type Err = NotAPoint;

    fn from_str(text: &str) -> Result<Self, NotAPoint> {
        let (id, cursor) = text.rsplit_once(':').ok_or(NotAPoint)?;
        Ok(Self { id: id.to_owned(), cursor: cursor.parse().map_err(|_| NotAPoint)? })
    }
}
