//! Trait [`Store`]: the operations that a store must have, and defaults for the rest.

use std::future::Future;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::sync::broadcast;

use super::body::BodyWriter;
use super::error::StoreError;
use super::meta::BlobMeta;
use super::types::{
    BatchWrite, BlobChanges, BlobVersion, DeleteOutcome, GetOutcome, ImportOutcome, IndexSnapshot, IndexState,
    IndexTraffic, PrivateRecord, PutOutcome, SweepReport, WriteCondition, WriteOutcome,
};
use crate::path::RelPath;
use crate::protocol::HistoryPoint;

/// Operations of one batch that run at the same time, in a store that has no batches of its own.
const CONCURRENT_OPERATIONS: usize = 32;

/// Blobs with compare-and-swap, and an index of them. Every method takes a namespace; `""` is the flat dialect's.
pub trait Store: RecordStore + 'static {
    /// True if the store writes the index in one step with the blob (capability `strong-index`). Then [`IndexState::mark`]
    /// is present and entries are evidence.
    const STRONG: bool;

    /// Begins a body. It is digested as it arrives.
    fn new_body(&self) -> BodyWriter;

    /// Writes `body` to `path` if `expect` holds. After `Created` and `Updated` the blob and its index entry are durable.
    /// Fields that `meta` leaves out are inherited from the live version ([`BlobMeta::inherit`]).
    fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: WriteCondition,
        meta: BlobMeta,
        body: BodyWriter,
    ) -> impl Future<Output = Result<PutOutcome, StoreError>> + Send;

    /// Turns `path` into a tombstone if `expect` holds; `None` always holds. The tombstone keeps the device and key of
    /// `meta`.
    fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> impl Future<Output = Result<DeleteOutcome, StoreError>> + Send;

    /// Reads the current version of a path, or the one with the number `version`, current or earlier.
    fn read(
        &self,
        ns: &str,
        path: &RelPath,
        version: Option<u64>,
    ) -> impl Future<Output = Result<GetOutcome, StoreError>> + Send;

    /// The entries of a namespace that changed after the cursor `since`. 0 gives all entries. A weak index has no cursors
    /// and always gives all.
    fn index(&self, ns: &str, since: u64) -> impl Future<Output = Result<IndexSnapshot, StoreError>> + Send;

    /// The state of a namespace's index, without its entries. It covers every acknowledged write. A store with other
    /// writers notices their changes here and sends them to its subscribers.
    fn state(&self, ns: &str) -> impl Future<Output = Result<IndexState, StoreError>> + Send;

    /// Receives every change that is committed from now on, in all namespaces. A receiver that lags loses the oldest
    /// changes and gets an error.
    fn subscribe(&self) -> broadcast::Receiver<BlobChanges>;

    /// Checks that reads work and that no known fault prevents writes. Writes nothing.
    fn health(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The versions of a path that can still be read, the newest first. The first is the path's entry, which may be a
    /// tombstone.
    fn versions(&self, ns: &str, path: &RelPath) -> impl Future<Output = Result<Vec<BlobVersion>, StoreError>> + Send;

    /// The namespaces that have entries, tombstones included.
    fn namespaces(&self) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send;

    /// Writes a version of another store with its number and metadata. It replaces an earlier version only. `body` is
    /// `None` for a tombstone.
    fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<BodyWriter>,
    ) -> impl Future<Output = Result<ImportOutcome, StoreError>> + Send;

    /// Turns expired paths into tombstones and gives their number. Cheap if there are none. A failure is reported after
    /// all other paths are done.
    fn expire(&self) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// Removes versions and tombstones that are past their [`Retention`](super::Retention). A failure is reported after
    /// everything else is done.
    fn remove_old(&self) -> impl Future<Output = Result<SweepReport, StoreError>> + Send;

    /// [`Store::expire`], then [`Store::remove_old`]. A failure is reported after both are done.
    fn sweep(&self) -> impl Future<Output = Result<SweepReport, StoreError>> + Send {
        async move {
            let (expired, removed) = (self.expire().await, self.remove_old().await);
            Ok(SweepReport { expired: expired?, ..removed? })
        }
    }

    /// Reads the current version of a path.
    fn get(&self, ns: &str, path: &RelPath) -> impl Future<Output = Result<GetOutcome, StoreError>> + Send {
        self.read(ns, path, None)
    }

    /// Applies independent writes to different paths. Gives their outcomes in order. Every write gets the same `meta`.
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
        stream::iter(writes.collect::<Vec<_>>()).buffered(CONCURRENT_OPERATIONS).collect()
    }

    /// [`Store::get`] of many paths, in order.
    fn get_many(
        &self,
        ns: &str,
        paths: Vec<RelPath>,
    ) -> impl Future<Output = Vec<Result<GetOutcome, StoreError>>> + Send {
        let gets = paths.into_iter().map(move |path| async move { self.get(ns, &path).await });
        stream::iter(gets.collect::<Vec<_>>()).buffered(CONCURRENT_OPERATIONS).collect()
    }

    /// [`Store::put`] of content in memory, without metadata.
    fn put_bytes(
        &self,
        ns: &str,
        path: &RelPath,
        expect: WriteCondition,
        content: Bytes,
    ) -> impl Future<Output = Result<PutOutcome, StoreError>> + Send {
        async move {
            let mut body = self.new_body();
            body.push(content).await?;
            self.put(ns, path, expect, BlobMeta::default(), body).await
        }
    }

    /// The entries that changed since a weak index had the tag `tag`, with the state that [`Store::state`] last gave or a
    /// later one. Sends no request. `None` if the changes are unknown, an entry left the index, or the whole index would
    /// be no larger. A strong index has cursors for this and always gives `None`.
    fn index_since_tag(&self, ns: &str, tag: &str) -> Option<IndexSnapshot> {
        let _ = (ns, tag);
        None
    }

    /// True if the index of a namespace, as [`Store::state`] last gave it, contains the history up to `point`. False means
    /// that the store was reset to an earlier copy. A store without history contains every point.
    fn contains_point(&self, ns: &str, point: &HistoryPoint) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let _ = (ns, point);
        std::future::ready(Ok(true))
    }

    /// The history point of the last acknowledged write. Sends no request.
    fn history_point(&self, ns: &str) -> Option<HistoryPoint> {
        let _ = ns;
        None
    }

    /// Free bytes for writes, if the store knows. May block.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// True if the store keeps earlier versions and expires paths (capability `versions`).
    fn keeps_versions(&self) -> bool {
        true
    }

    /// The bytes of a namespace's live entries. Writes of other processes may be counted some seconds late.
    fn usage(&self, ns: &str) -> impl Future<Output = Result<u64, StoreError>> + Send {
        async move { Ok(self.index(ns, 0).await?.entries.iter().map(|(_, entry)| entry.size).sum()) }
    }

    /// The size of each path in order; 0 if it is absent or a tombstone.
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

    /// This process's requests for index objects, in a store that has such objects.
    fn index_traffic(&self) -> IndexTraffic {
        IndexTraffic::default()
    }
}

/// The private records of a store that is open here, or that another process serves ([`SqliteRecords`]). Clients cannot
/// reach records by any path.
///
/// [`SqliteRecords`]: super::sqlite::SqliteRecords
pub trait RecordStore: Send + Sync {
    /// Reads one of the records `*_RECORD`.
    fn record(&self, name: &'static str) -> impl Future<Output = Result<Option<PrivateRecord>, StoreError>> + Send;

    /// Writes a record if its tag is still `expected`; `None` requires that there is no record. False: another write came
    /// first, and nothing was written.
    fn put_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}
