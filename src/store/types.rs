//! Arguments and results of a [`Store`](super::Store).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream::BoxStream;

use super::error::StoreError;
use super::meta::BlobMeta;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::HistoryPoint;
pub use crate::protocol::{IndexCursor, IndexEntry};

/// The state of a path that a write or a deletion requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteCondition {
    /// The path is absent or a tombstone.
    Absent,
    /// The path has this content, or is the tombstone of it.
    Md5(Md5),
    /// The path has this version, live or deleted (namespaced dialect).
    Version(u64),
}

impl WriteCondition {
    /// True if a path that has the entry `held` meets the precondition.
    pub fn admits(self, held: Option<&IndexEntry>) -> bool {
        match self {
            Self::Absent => held.is_none_or(|e| e.is_deleted),
            Self::Md5(md5) => held.is_some_and(|e| e.md5 == md5),
            Self::Version(version) => held.is_some_and(|e| e.version == version),
        }
    }
}

/// The state of a namespace's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexState {
    /// Changes whenever the index changes; visible ASCII without quotes.
    pub tag: Arc<str>,
    /// `None` in a weak index, which is not written in one step with the blobs: its entries are hints.
    pub mark: Option<IndexCursor>,
    /// When the last change was, or when the store was created: milliseconds since the epoch.
    pub modified: u64,
    /// `None` before the first write, and in a store without history.
    pub history: Option<HistoryPoint>,
}

/// Entries, and the state of the index that they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSnapshot {
    pub state: IndexState,
    /// Tombstones included, in no order.
    pub entries: Vec<(String, IndexEntry)>,
}

/// The content of a blob that is read.
pub enum BlobBody {
    Whole(Bytes),
    /// Exactly [`IndexEntry::size`] bytes, or an error.
    Pieces(BoxStream<'static, io::Result<Bytes>>),
}

/// A live blob.
pub struct StoredBlob {
    pub entry: IndexEntry,
    pub meta: BlobMeta,
    pub body: BlobBody,
}

/// Result of a get.
pub enum GetOutcome {
    Found(StoredBlob),
    Tombstone(IndexEntry),
    Absent,
}

/// Result of a put. A lost race is an outcome, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The path was absent or a tombstone.
    Created(IndexEntry),
    Updated(IndexEntry),
    /// Nothing was written. Has the path's entry.
    Mismatch(Option<IndexEntry>),
}

/// Result of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// The new tombstone.
    Done(IndexEntry),
    /// The path was already a tombstone.
    Tombstone(IndexEntry),
    Absent,
    /// Nothing was deleted. Has the path's entry.
    Mismatch(IndexEntry),
}

/// One write of a batch.
pub enum BatchWrite {
    /// As [`Store::put`](super::Store::put).
    Put { expect: WriteCondition, content: Bytes },
    /// As [`Store::delete`](super::Store::delete).
    Delete { expect: Option<WriteCondition> },
}

/// Result of a [`BatchWrite`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    Put(PutOutcome),
    Deleted(DeleteOutcome),
}

impl WriteOutcome {
    /// The new entry if the path changed.
    pub(crate) fn entry(&self) -> Option<IndexEntry> {
        match *self {
            Self::Put(PutOutcome::Created(entry) | PutOutcome::Updated(entry))
            | Self::Deleted(DeleteOutcome::Done(entry)) => Some(entry),
            Self::Put(PutOutcome::Mismatch(_)) | Self::Deleted(_) => None,
        }
    }

    /// True if the path changed.
    pub fn happened(&self) -> bool {
        self.entry().is_some()
    }
}

/// A committed change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobChange {
    pub cursor: u64,
    pub ns: String,
    pub path: RelPath,
}

/// Committed changes in the order of their cursors.
pub type BlobChanges = Arc<[BlobChange]>;

/// Gives milliseconds since the epoch. Tests pass their own clock.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> WallClock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A version of a path that can still be read, or the path's tombstone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobVersion {
    /// Its cursor is 0.
    pub entry: IndexEntry,
    pub meta: BlobMeta,
}

/// Result of [`Store::import_version`](super::Store::import_version).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportOutcome {
    Written,
    /// The path already has this version or a later one.
    Held,
}

/// The record with the keys of the proxy.
pub const KEYS_RECORD: &str = "keys";
/// The record with the times when keys were last used. It is a record of its own, so that a use does not change the keys.
pub const KEY_USES_RECORD: &str = "keys-used";
/// The record with the proxy's wall clock. It describes the machine, so a copy leaves it out.
pub const CLOCK_RECORD: &str = "clock";

/// How long a store keeps earlier versions and tombstones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Limit on the earlier versions of a path.
    pub versions: u32,
    /// The newest earlier versions of a path, which stay whatever their age.
    pub ageless: u32,
    /// Maximum age, counted from the replacement or deletion.
    pub age: Duration,
    /// Maximum age of a tombstone, counted from the deletion.
    pub tombstones: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self { versions: 20, ageless: 5, age: 30 * DAY, tombstones: 90 * DAY }
    }
}

/// Counts of one sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Expired paths that became tombstones.
    pub expired: usize,
    /// Earlier versions removed.
    pub versions: usize,
    /// Tombstones removed.
    pub tombstones: usize,
}

/// Counts of requests for index objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexTraffic {
    /// Answers that the object is unchanged included.
    pub reads: u64,
    /// Lost races included.
    pub writes: u64,
}

/// A small private file of the proxy, such as its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateRecord {
    /// Changes with every write.
    pub tag: String,
    pub content: Bytes,
}

/// Groups of changes that a subscriber may lag behind before it loses the oldest.
pub(crate) const BACKLOG: usize = 1024;

/// The state of a strong index. `history` is the newest history id.
pub(crate) fn strong_state(mark: IndexCursor, modified: u64, history: Option<&str>) -> IndexState {
    // Clients must notice a moved floor, too.
    let tag = format!("{}-{}-{}-{}", mark.epoch, history.unwrap_or("0"), mark.cursor, mark.floor).into();
    let history = history.map(|id| HistoryPoint { id: id.to_owned(), cursor: mark.cursor });
    IndexState { tag, mark: Some(mark), modified, history }
}

/// A random id: 128 bits in hex.
pub(crate) fn new_id() -> Arc<str> {
    format!("{:032x}", fastrand::u128(..)).into()
}

/// Locks a value that changes in one step, so that a panic of another thread leaves it whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on a blocking thread.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)
}
