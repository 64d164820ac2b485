//! State that the SQLite store, its writer and its readers share, and the conversion of rows to the store's types.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use rusqlite::{Connection, Row};
use tokio::sync::broadcast;

use super::super::body::BodyDir;
use super::super::{
    BACKLOG, BlobChange, BlobChanges, BlobMeta, IndexCursor, IndexEntry, IndexState, Retention, StoreError, WallClock,
    lock, strong_state, system_clock,
};
use super::schema;
use crate::digest::Md5;

/// Idle read connections kept open.
const MAX_IDLE_READERS: usize = 4;

/// Settings of a SQLite store.
#[derive(Clone)]
pub struct SqliteSettings {
    /// Writes that would make the database larger than this many bytes fail. `None`: only the disk limits it.
    pub max_database_bytes: Option<u64>,
    pub retention: Retention,
    pub clock: WallClock,
}

impl Default for SqliteSettings {
    fn default() -> Self {
        Self { max_database_bytes: None, retention: Retention::default(), clock: system_clock() }
    }
}

/// An open store without its writer.
pub(super) struct SqliteCore {
    pub(super) dir: PathBuf,
    pub(super) bodies: Arc<BodyDir>,
    pub(super) retention: Retention,
    pub(super) changes: broadcast::Sender<BlobChanges>,
    pub(super) clock: WallClock,
    positions: Mutex<IndexPositions>,
    readers: Mutex<Vec<Connection>>,
    /// Held while the store may touch the directory.
    _lock: File,
}

/// The positions of the indexes, in memory.
pub(super) struct IndexPositions {
    pub(super) epoch: Arc<str>,
    pub(super) floor: u64,
    /// The newest id of the history.
    pub(super) history: Option<Arc<str>>,
    /// Milliseconds since the epoch.
    pub(super) created: u64,
    /// The number of the last change.
    pub(super) cursor: u64,
    /// The number and time of each namespace's last change.
    pub(super) last: HashMap<String, (u64, u64)>,
    /// The bytes of each namespace's live entries.
    pub(super) bytes: HashMap<String, u64>,
}

impl SqliteCore {
    pub(super) fn new(dir: PathBuf, lock: File, settings: SqliteSettings, positions: IndexPositions) -> Self {
        Self {
            bodies: BodyDir::durable(dir.join(schema::BODIES)),
            dir,
            retention: settings.retention,
            changes: broadcast::channel(BACKLOG).0,
            clock: settings.clock,
            positions: Mutex::new(positions),
            readers: Mutex::new(Vec::new()),
            _lock: lock,
        }
    }

    pub(super) fn positions(&self) -> MutexGuard<'_, IndexPositions> {
        lock(&self.positions)
    }

    pub(super) fn state(&self, ns: &str) -> IndexState {
        let now = self.positions();
        let (cursor, modified) = now.last.get(ns).copied().unwrap_or((0, now.created));
        // The last change may be a tombstone that was removed; the floor covers its cursor.
        let cursor = cursor.max(now.floor);
        let mark = IndexCursor { epoch: now.epoch.clone(), cursor, floor: now.floor };
        strong_state(mark, modified, now.history.as_deref())
    }

    /// Records committed changes in the order of their cursors: each with its time, and the bytes by which the live
    /// entries grew. `history` is the id that began with them.
    pub(super) fn advance(&self, history: Option<Arc<str>>, changes: &[(BlobChange, u64, i64)]) {
        let mut now = self.positions();
        now.history = history.or(now.history.take());
        for (BlobChange { ns, cursor, .. }, modified, growth) in changes {
            now.cursor = *cursor;
            let bytes = now.bytes.entry(ns.clone()).or_default();
            *bytes = bytes.saturating_add_signed(*growth);
            now.last.insert(ns.clone(), (*cursor, *modified));
        }
    }

    /// Runs `work` on a read connection.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let idle = lock(&self.readers).pop();
        let db = match idle {
            Some(db) => db,
            None => schema::open_reader(&self.dir)?,
        };
        // A connection that failed is not used again.
        let value = work(&db)?;
        let mut readers = lock(&self.readers);
        if readers.len() < MAX_IDLE_READERS {
            readers.push(db);
        }
        Ok(value)
    }

    pub(super) fn close_idle_readers(&self) {
        lock(&self.readers).clear();
    }
}

/// The entry in the first five columns: md5, size, is_deleted, version, cursor.
pub(super) fn entry_of(row: &Row<'_>) -> rusqlite::Result<IndexEntry> {
    Ok(IndexEntry {
        md5: Md5::from_bytes(row.get(0)?),
        size: unsigned(row, 1)?,
        is_deleted: row.get(2)?,
        version: unsigned(row, 3)?,
        cursor: unsigned(row, 4)?,
    })
}

/// Metadata as JSON; empty for empty metadata.
pub(super) fn meta_text(meta: &BlobMeta) -> String {
    if *meta == BlobMeta::default() {
        return String::new();
    }
    // Strings and numbers always serialize.
    serde_json::to_string(meta).unwrap_or_default()
}

/// Reads [`meta_text`]. Unreadable metadata counts as empty, because no decision depends on it.
pub(super) fn read_meta(text: &str) -> BlobMeta {
    serde_json::from_str(text).unwrap_or_default()
}

/// Converts to SQLite's signed integers. Stored numbers are far below the limit; a client's cursor may be above it.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A column that is never negative.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let n: i64 = row.get(column)?;
    u64::try_from(n).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, n))
}
