//! The state of a path, and the state and history of a whole index.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::Md5;

/// The state of a path on the proxy: a live blob or a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// MD5 of the content. A tombstone has the MD5 of the deleted content.
    pub md5: Md5,
    /// Bytes; 0 for a tombstone.
    pub size: u64,
    pub is_deleted: bool,
    /// Milliseconds since the epoch when it was written. Grows with every write of the path, even if the clock goes back.
    /// On the agent's side 0 in the flat dialect, which has no versions.
    pub version: u64,
    /// The store-wide number of the change that wrote it. 0 where it is not known: on the agent's side, and in a store without
    /// cursors.
    pub cursor: u64,
}

/// The position of a strong index in its own history (capability `strong-index`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexCursor {
    /// Random. A store gets a new epoch when it is created and when it is restored from a copy.
    pub epoch: Arc<str>,
    /// The number of the namespace's last change; 0 before the first.
    pub cursor: u64,
    /// Tombstones older than this cursor may be gone.
    pub floor: u64,
}

/// The newest history id of a store and its cursor, as an index gives them. It tells a store that was set back from one
/// that went on. `id:cursor` on the wire.
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
