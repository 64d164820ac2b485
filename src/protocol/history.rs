//! [`HistoryPoint`]: a point in a store's history. It tells a store that was set back from one that went on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The newest history id of a store and its cursor, as an index gives them. `id:cursor` on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPoint {
    /// Random. A store begins a new id with its first write after each start.
    pub id: String,
    pub cursor: u64,
}

impl fmt::Display for HistoryPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.cursor)
    }
}

/// The text is no [`HistoryPoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a point of a history (id:cursor)")]
pub struct BadHistoryPoint;

impl FromStr for HistoryPoint {
    type Err = BadHistoryPoint;

    fn from_str(text: &str) -> Result<Self, BadHistoryPoint> {
        let (id, cursor) = text.rsplit_once(':').ok_or(BadHistoryPoint)?;
        Ok(Self { id: id.to_owned(), cursor: cursor.parse().map_err(|_| BadHistoryPoint)? })
    }
}
