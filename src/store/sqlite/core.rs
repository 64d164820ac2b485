//! State that the SQLite store, its writer and its readers share.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::broadcast;

use super::super::{
    BACKLOG, BlobChanges, IndexCursor, IndexState, Retention, StoreError, WallClock, strong_state, system_clock,
};
use super::schema;
use super::spool::BodyFiles;

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
    pub(super) spool: Arc<BodyFiles>,
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

/// A committed change of one entry.
pub(super) struct CommittedEntry<'a> {
    pub(super) ns: &'a str,
    pub(super) cursor: u64,
    /// Milliseconds since the epoch.
    pub(super) modified: u64,
    /// Bytes by which the live entries grew.
    pub(super) growth: i64,
}

impl SqliteCore {
    pub(super) fn new(dir: PathBuf, lock: File, settings: SqliteSettings, positions: IndexPositions) -> Self {
        Self {
            spool: BodyFiles::new(dir.join(schema::BODIES)),
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

    /// Records committed changes. `history` is the id that began with them.
    pub(super) fn advance<'a>(&self, history: Option<Arc<str>>, changes: impl Iterator<Item = CommittedEntry<'a>>) {
        let mut now = self.positions();
        now.history = history.or(now.history.take());
        for CommittedEntry { ns, cursor, modified, growth } in changes {
            now.cursor = cursor;
            match now.bytes.get_mut(ns) {
                Some(bytes) => *bytes = bytes.saturating_add_signed(growth),
                None => drop(now.bytes.insert(ns.to_owned(), 0u64.saturating_add_signed(growth))),
            }
            match now.last.get_mut(ns) {
                Some(last) => *last = (cursor, modified),
                None => drop(now.last.insert(ns.to_owned(), (cursor, modified))),
            }
        }
    }

    /// Runs `work` on a read connection.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let idle = lock(&self.readers).pop();
        let db = match idle {
            Some(db) => db,
            None => schema::open_reader(&self.dir).map_err(StoreError::database)?,
        };
        // A connection that failed is not used again.
        let value = work(&db).map_err(StoreError::database)?;
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

/// The guarded values are replaced in one step, so a panic of another thread leaves them whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
