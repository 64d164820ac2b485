//! Where the proxy keeps blobs: trait [`Store`], with an implementation in memory, one on disk and one on S3.
//!
//! A store decides every conditional write in one step, so that of any number of racing writers exactly one
//! wins, and a write is acknowledged when it is in the index too. Names arrive validated; the wire format,
//! authentication and limits are the proxy's.
//!
//! One thing less is promised of a bucket that several proxies share, see [`s3`].

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::sync::broadcast;

use crate::path::RelPath;
use crate::protocol::HistoryPoint;

pub mod copy;
pub mod memory;
pub mod s3;
pub mod sqlite;
mod types;

pub use memory::Memory;
pub use s3::S3Store;
pub use sqlite::SqliteStore;
pub use types::{
    BatchWrite, BlobBody, BlobChange, BlobChanges, BlobMeta, BlobVersion, CLOCK_RECORD, DeleteOutcome, GetOutcome,
    ImportOutcome, IndexEntry, IndexMark, IndexSnapshot, IndexState, IndexTraffic, NamespaceName, Precondition,
    PrivateRecord, PutOutcome, RECORDS, Retention, StoreError, StoredBlob, SweepReport, WallClock, WriteOutcome,
    kept_size, system_clock,
};

/// A body on its way in. Dropped before the put, it leaves nothing behind.
pub trait BodyWriter: Send + 'static {
    /// Takes the next piece.
    ///
    /// # Errors
    /// When it cannot be kept, as on a full disk.
    fn push(&mut self, piece: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// The private records of a store: one that is open, or one that another process serves ([`sqlite::SqliteRecords`]).
pub trait RecordStore: Send + Sync {
    /// As [`Store::record`].
    fn read_record(&self, name: &'static str)
    -> impl Future<Output = Result<Option<PrivateRecord>, StoreError>> + Send;

    /// As [`Store::put_record`].
    fn write_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

impl<S: Store> RecordStore for S {
    fn read_record(
        &self,
        name: &'static str,
    ) -> impl Future<Output = Result<Option<PrivateRecord>, StoreError>> + Send {
        self.record(name)
    }

    fn write_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        self.put_record(name, expected, content)
    }
}

/// Blobs with compare-and-swap, and an index of them. Every method takes a namespace; the flat dialect's is `""`.
pub trait Store: Send + Sync + 'static {
    /// Whether the index is written with the blob in one step, so that [`IndexState::mark`] is there and entries are
    /// evidence (capability `strong-index`).
    const STRONG: bool;

    type BodyWriter: BodyWriter;

    /// Begins a body. The store digests it as it comes.
    fn new_body(&self) -> Self::BodyWriter;

    /// Writes `body` to `path` if it holds what is expected. When this gives `Created` or `Updated` the write is
    /// durable, and so is its entry in the index. `meta` is laid over that of a live version ([`BlobMeta::over`]).
    fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Precondition,
        meta: BlobMeta,
        body: Self::BodyWriter,
    ) -> impl Future<Output = Result<PutOutcome, StoreError>> + Send;

    /// Turns `path` into a tombstone if it holds what is expected, or whatever it holds where that is `None`. Of
    /// `meta` only who did it counts.
    fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<Precondition>,
        meta: BlobMeta,
    ) -> impl Future<Output = Result<DeleteOutcome, StoreError>> + Send;

    fn get(&self, ns: &str, path: &RelPath) -> impl Future<Output = Result<GetOutcome, StoreError>> + Send;

    /// Many writes of different paths, each with what became of it, in their order. They are independent: some may
    /// happen and others not. `meta` is that of each. A store that commits in groups overrides this.
    fn write_many(
        &self,
        ns: &str,
        writes: Vec<(RelPath, BatchWrite)>,
        meta: &BlobMeta,
    ) -> impl Future<Output = Vec<Result<WriteOutcome, StoreError>>> + Send {
        let writes = writes.into_iter().map(move |(path, operation)| async move {
            match operation {
                BatchWrite::Put { expect, content } => {
                    let mut body = self.new_body();
                    body.push(content).await?;
                    self.put(ns, &path, expect, meta.clone(), body).await.map(WriteOutcome::Put)
                }
                BatchWrite::Delete { expect } => {
                    self.delete(ns, &path, expect, meta.clone()).await.map(WriteOutcome::Deleted)
                }
            }
        });
        stream::iter(writes.collect::<Vec<_>>()).buffered(SIDE_BY_SIDE).collect()
    }

    /// [`Store::get`] of many paths, in their order.
    fn get_many(
        &self,
        ns: &str,
        paths: Vec<RelPath>,
    ) -> impl Future<Output = Vec<Result<GetOutcome, StoreError>>> + Send {
        let gets = paths.into_iter().map(move |path| async move { self.get(ns, &path).await });
        stream::iter(gets.collect::<Vec<_>>()).buffered(SIDE_BY_SIDE).collect()
    }

    /// The entries of one namespace that changed after the cursor `since`; 0 gives all, and so does a store whose
    /// index is not exact.
    fn index(&self, ns: &str, since: u64) -> impl Future<Output = Result<IndexSnapshot, StoreError>> + Send;

    /// The entries of one namespace that changed since its index had the tag `tag`, and the state that [`Store::state`]
    /// last gave, or a later one. Asks nobody for it. `None`: it is not known what changed, an entry has left the index,
    /// or all of it would be no more. A store whose index is exact has cursors for this, and always gives `None`.
    fn index_since_tag(&self, ns: &str, tag: &str) -> Option<IndexSnapshot> {
        let _ = (ns, tag);
        None
    }

    /// Where the index of a namespace stands, without reading it: at least as new as every acknowledged write. A store
    /// that others write to as well sees by this what they changed, and tells its subscribers.
    fn state(&self, ns: &str) -> impl Future<Output = Result<IndexState, StoreError>> + Send;

    /// True if the index of a namespace, as [`Store::state`] last gave it, once stood at `point`. False: the store was set
    /// back to an earlier copy of itself, and may have made other changes since. A store that keeps no history has stood at
    /// every point.
    fn contains_point(&self, ns: &str, point: &HistoryPoint) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let _ = (ns, point);
        std::future::ready(Ok(true))
    }

    /// The point of its history where the index of a namespace stood with the last acknowledged write. Asks nobody.
    fn history_point(&self, ns: &str) -> Option<HistoryPoint> {
        let _ = ns;
        None
    }

    /// Every change committed from now on, of all namespaces. A receiver that lags loses the oldest and is told.
    fn subscribe(&self) -> broadcast::Receiver<BlobChanges>;

    /// Whether reads work, and nothing is known that keeps writes from being taken. Nothing is written for it.
    fn health(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Bytes that can still be written, where the store knows. May block.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// Whether earlier versions and expiry are kept (capability `versions`). Without, a path has its current version alone.
    fn keeps_versions(&self) -> bool {
        true
    }

    /// The versions of a path that can still be read, the newest first. The first is the path's own entry, which may
    /// be a tombstone.
    fn versions(&self, ns: &str, path: &RelPath) -> impl Future<Output = Result<Vec<BlobVersion>, StoreError>> + Send;

    /// An earlier version, or the current one by its number.
    fn get_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: u64,
    ) -> impl Future<Output = Result<GetOutcome, StoreError>> + Send;

    /// The namespaces that have anything, tombstones included.
    fn namespaces(&self) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send;

    /// Writes a version as it was in another store, with its number and metadata: over what the path holds where that is
    /// an earlier version, otherwise not at all. `body`: `None` for a tombstone.
    fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<Self::BodyWriter>,
    ) -> impl Future<Output = Result<ImportOutcome, StoreError>> + Send;

    /// Turns what has expired into tombstones, and gives how many paths that was. Cheap when there are none. A failure is
    /// told when all else is done.
    fn expire(&self) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// [`Store::expire`], and removes versions and tombstones that are older than they are kept. As there, a failure holds
    /// up nothing else.
    fn sweep(&self) -> impl Future<Output = Result<SweepReport, StoreError>> + Send;

    /// The record called `name`, one of [`RECORDS`] or [`CLOCK_RECORD`]. No client's path reaches it.
    fn record(&self, name: &'static str) -> impl Future<Output = Result<Option<PrivateRecord>, StoreError>> + Send;

    /// Writes a record if it still has the tag `expected`, or if there is none where that is `None`. False: another
    /// write came first, and nothing was written.
    fn put_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The bytes of a namespace's live entries. A store that does not keep count reads its index for it. What other
    /// processes wrote to the same store may count some seconds later.
    fn usage(&self, ns: &str) -> impl Future<Output = Result<u64, StoreError>> + Send {
        async move { Ok(self.index(ns, 0).await?.entries.iter().map(|(_, entry)| entry.size).sum()) }
    }

    /// The bytes that each of these paths holds, in their order; 0 where that is nothing or a tombstone.
    fn held_bytes(&self, ns: &str, paths: &[RelPath]) -> impl Future<Output = Result<Vec<u64>, StoreError>> + Send {
        async move {
            let mut sizes = Vec::with_capacity(paths.len());
            for path in paths {
                sizes.push(match self.get(ns, path).await? {
                    GetOutcome::Found(blob) => blob.entry.size,
                    GetOutcome::Tombstone(_) | GetOutcome::Absent => 0,
                });
            }
            Ok(sizes)
        }
    }

    /// How often this process read and wrote index objects, where the store keeps its index in such.
    fn index_traffic(&self) -> IndexTraffic {
        IndexTraffic::default()
    }

    /// [`Store::put`] of content that is in memory, with nothing said of it.
    fn put_bytes(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Precondition,
        content: Bytes,
    ) -> impl Future<Output = Result<PutOutcome, StoreError>> + Send {
        async move {
            let mut body = self.new_body();
            body.push(content).await?;
            self.put(ns, path, expect, BlobMeta::default(), body).await
        }
    }
}

/// The version of a write at `now` over what is held.
fn next_version(now: u64, held: Option<&IndexEntry>) -> u64 {
    held.map_or(now, |e| now.max(e.version + 1))
}

/// The state of an exact index. `history`: the store's newest history id.
fn strong_state(mark: IndexMark, modified: u64, history: Option<&str>) -> IndexState {
    // A moved floor tells clients something too.
    let tag = format!("{}-{}-{}-{}", mark.epoch, history.unwrap_or("0"), mark.cursor, mark.floor).into();
    let history = history.map(|id| HistoryPoint { id: id.to_owned(), cursor: mark.cursor });
    IndexState { tag, mark: Some(mark), modified, history }
}

/// A fresh epoch or history id: 128 random bits in hex.
fn new_id() -> Arc<str> {
    format!("{:032x}", fastrand::u128(..)).into()
}

/// Operations of one batch under way at once, where a store takes them one by one.
const SIDE_BY_SIDE: usize = 32;

/// How many groups of changes a subscriber may lag behind before it must read the index instead.
const BACKLOG: usize = 1024;
