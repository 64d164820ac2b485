//! State that the clones of an S3 store share, and reads and writes of one blob together with its index entry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use tokio::sync::OwnedMutexGuard;

use super::super::body::{BodyContent, BodyDir, BodyWriter, FinishedBody};
use super::super::{
    BlobBody, BlobMeta, BlobVersion, DeleteOutcome, GetOutcome, ImportOutcome, IndexEntry, PutOutcome, StoreError,
    StoredBlob, WriteCondition, lock, rules,
};
use super::blobs::{BucketBlobs, FoundBlob, NewBlob, SwapOutcome, entry_of, entry_with};
use super::bucket::{FetchOutcome, ObjectInfo, read_whole};
use super::change_feed::ChangeFeed;
use super::namespace_cache::NamespaceCache;
use super::namespace_index::NamespaceIndex;
use crate::path::RelPath;

/// With more indexes than this, those of namespaces that do not exist are dropped.
const MAX_INDEXES: usize = 256;
/// With more named locks than this, unused ones are dropped.
const MAX_LOCKS: usize = 1024;
/// Writes of other proxies may be counted this late.
const USAGE_MAX_AGE: Duration = Duration::from_secs(5);
/// With more namespaces than this, stale times of a usage are dropped.
const MAX_USAGES: usize = 1024;
/// Bodies up to this many bytes are read completely before the answer begins.
const MAX_WHOLE_BYTES: u64 = 256 * 1024;

/// An open store on S3.
pub(super) struct S3Core {
    pub(super) blobs: BucketBlobs,
    /// The directory for large bodies.
    pub(super) spool: Arc<BodyDir>,
    pub(super) feed: Arc<ChangeFeed>,
    /// `s3://bucket/prefix`.
    pub(super) url: String,
    pub(super) namespaces: NamespaceCache,
    /// When each namespace's usage was last read from the bucket.
    usage_read_at: Mutex<HashMap<String, Instant>>,
    indexes: Mutex<HashMap<String, Arc<NamespaceIndex>>>,
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl S3Core {
    pub(super) fn new(blobs: BucketBlobs, spool: Arc<BodyDir>, url: String) -> Self {
        Self {
            blobs,
            spool,
            feed: Arc::default(),
            url,
            namespaces: NamespaceCache::default(),
            usage_read_at: Mutex::default(),
            indexes: Mutex::default(),
            locks: Mutex::default(),
        }
    }

    /// The index of a namespace.
    pub(super) fn index(&self, ns: &str) -> Result<Arc<NamespaceIndex>, StoreError> {
        let mut indexes = lock(&self.indexes);
        if let Some(index) = indexes.get(ns) {
            return Ok(index.clone());
        }
        let key = self.blobs.layout.index(ns)?;
        let index = Arc::new(NamespaceIndex::open(ns, key, self.blobs.clone(), self.feed.clone()));
        if indexes.len() >= MAX_INDEXES {
            // Requests may name any number of namespaces. Keep those that exist or are in use.
            indexes.retain(|ns, index| ns.is_empty() || index.is_there() || Arc::strong_count(index) > 1);
        }
        indexes.insert(ns.to_owned(), index.clone());
        Ok(index)
    }

    /// Locks a path for one writer of this process. Other writers would lose the race in the bucket. The lock also orders
    /// writes that have the same ETag, such as two tombstones.
    async fn lock_path(&self, ns: &str, path: &RelPath) -> OwnedMutexGuard<()> {
        self.lock_named(format!("{ns}\n{path}")).await
    }

    pub(super) async fn lock_named(&self, name: String) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut locks = lock(&self.locks);
            if locks.len() > MAX_LOCKS {
                locks.retain(|_, mutex| mutex.strong_count() > 0);
            }
            let known = locks.get(&name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let new = Arc::new(tokio::sync::Mutex::new(()));
                locks.insert(name, Arc::downgrade(&new));
                new
            })
        };
        mutex.lock_owned().await
    }

    pub(super) async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: WriteCondition,
        meta: BlobMeta,
        body: BodyWriter,
    ) -> Result<PutOutcome, StoreError> {
        let body = body.finish().await?;
        let index = self.index(ns)?;
        self.check_owner(ns, path).await?;
        let decide = |found: Option<&FoundBlob>| {
            let held = found.map(|found| (&found.entry, &found.object.metadata.meta));
            match rules::put(held, expect, &body, &meta, (self.blobs.clock)()) {
                Some(new) => Ok(NewBlob::new(new, body.content.clone())),
                None => Err(PutOutcome::Mismatch(compared_entry(&index, path, found))),
            }
        };
        if !expect.admits(None) && !index.exists().await? {
            // A write that will be refused must not create the namespace.
            let found = self.blobs.find(ns, path).await?;
            if let Err(refused) = decide(found.as_ref()) {
                return Ok(refused);
            }
        }
        self.begin_namespace(ns).await?;
        let _lock = self.lock_path(ns, path).await;
        // A write is in flight only once it has the lock. The index writer waits for every write in flight.
        let in_flight = matches!(body.content, BodyContent::Inline(_)).then(|| index.begin_write());
        // Most new files have no blob. If the index has a tombstone, a blind write would only fail.
        let blind = expect.admits(None) && !index.has_entry(path);
        match self.blobs.swap(ns, path, blind, decide).await? {
            SwapOutcome::Done { before, entry } => {
                self.record_write(ns, path, before, entry, in_flight).await?;
                Ok(rules::put_outcome(entry, before.as_ref()))
            }
            SwapOutcome::Refused(refused) => Ok(refused),
        }
    }

    pub(super) async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        let index = self.index(ns)?;
        self.check_owner(ns, path).await?;
        let decide = |found: Option<&FoundBlob>| {
            let tombstone = rules::delete(found.map(|found| found.entry), expect, &meta, (self.blobs.clock)());
            if tombstone.is_err() {
                compared_entry(&index, path, found);
            }
            tombstone.map(|tombstone| NewBlob::another(tombstone, BodyContent::Inline(Bytes::new())))
        };
        if !index.exists().await? {
            // A tombstone needs an index, but a deletion that will be refused must not create the namespace.
            let found = self.blobs.find(ns, path).await?;
            if let Err(refused) = decide(found.as_ref()) {
                return Ok(refused);
            }
            self.begin_namespace(ns).await?;
        }
        let _lock = self.lock_path(ns, path).await;
        let in_flight = index.begin_write();
        match self.blobs.swap(ns, path, false, decide).await? {
            SwapOutcome::Done { entry, .. } => {
                index.record(path, entry, Some(in_flight)).await?;
                Ok(DeleteOutcome::Done(entry))
            }
            SwapOutcome::Refused(refused) => Ok(refused),
        }
    }

    pub(super) async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        mut version: BlobVersion,
        body: Option<BodyWriter>,
    ) -> Result<ImportOutcome, StoreError> {
        let content = match body {
            Some(body) => body.finish().await?.content,
            None => BodyContent::Inline(Bytes::new()),
        };
        // Other stores have room for more metadata.
        version.meta = version.meta.cut_to_fit();
        let index = self.index(ns)?;
        self.check_owner(ns, path).await?;
        self.begin_namespace(ns).await?;
        let _lock = self.lock_path(ns, path).await;
        let in_flight = index.begin_write();
        let swapped = self.blobs.swap(ns, path, !index.has_entry(path), |found| {
            if !rules::imports(&version, found.map(|found| &found.entry)) {
                return Err(compared_entry(&index, path, found));
            }
            // Keep two versions of the same content: a deletion may have been between them.
            Ok(NewBlob::another(version.clone(), content.clone()))
        });
        match swapped.await? {
            SwapOutcome::Done { before, entry } => {
                self.record_write(ns, path, before, entry, Some(in_flight)).await?;
                Ok(ImportOutcome::Written)
            }
            SwapOutcome::Refused(_) => Ok(ImportOutcome::Held),
        }
    }

    pub(super) async fn get(&self, ns: &str, path: &RelPath) -> Result<GetOutcome, StoreError> {
        let key = self.blobs.layout.blob(ns, path)?;
        let (found, ()) = tokio::try_join!(self.blobs.bucket.get(&key, None), self.check_owner(ns, path))?;
        let FetchOutcome::Found(object, body) = found else { return Ok(GetOutcome::Absent) };
        let index = self.index(ns)?;
        // The index is corrected even if the body cannot be read.
        let known = entry_of(&object).inspect(|entry| index.compare(path, entry));
        let (entry, body) = match known {
            Some(entry) if entry.is_deleted => (entry, BlobBody::Whole(Bytes::new())),
            Some(entry) => (entry, read_small(body, entry.size).await?),
            None => {
                let (entry, body) = self.digest_body(&object, body).await?;
                index.compare(path, &entry);
                (entry, body)
            }
        };
        if entry.is_deleted {
            return Ok(GetOutcome::Tombstone(entry));
        }
        Ok(GetOutcome::Found(StoredBlob { entry, meta: object.metadata.meta, body }))
    }

    /// Reads a blob of another program, whose metadata lacks the MD5.
    async fn digest_body(
        &self,
        object: &ObjectInfo,
        mut pieces: BoxStream<'static, Result<Bytes, StoreError>>,
    ) -> Result<(IndexEntry, BlobBody), StoreError> {
        let mut body = BodyWriter::new(self.spool.clone());
        while let Some(piece) = pieces.next().await {
            body.push(piece?).await?;
        }
        let FinishedBody { md5, content, .. } = body.finish().await?;
        let body = match content {
            BodyContent::Inline(bytes) => BlobBody::Whole(bytes),
            BodyContent::File(file) => BlobBody::Pieces(file.pieces()),
        };
        Ok((entry_with(object, md5), body))
    }

    /// The bytes of a namespace's live entries, by the index: exact enough for quotas, and cheap.
    pub(super) async fn usage(&self, ns: &str) -> Result<u64, StoreError> {
        let index = self.index(ns)?;
        // The cached index has all writes of this process.
        let is_fresh = lock(&self.usage_read_at).get(ns).is_some_and(|at| at.elapsed() < USAGE_MAX_AGE);
        let latest = match index.cached().filter(|_| is_fresh) {
            Some(cached) => cached,
            None => {
                let (now, latest) = (Instant::now(), index.fresh().await?);
                let mut read_at = lock(&self.usage_read_at);
                if read_at.len() >= MAX_USAGES {
                    read_at.retain(|_, at| at.elapsed() < USAGE_MAX_AGE);
                }
                read_at.insert(ns.to_owned(), now);
                latest
            }
        };
        Ok(latest.document.entries.values().map(|entry| entry.size).sum())
    }
}

/// Runs `work` to its end even if the caller is dropped. It must not stop between a blob and its index entry.
pub(super) async fn run_to_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(work).await.map_err(|_| StoreError::Closed)?
}

/// A body of `size` bytes: complete if it is small, otherwise as a stream.
pub(super) async fn read_small(
    body: BoxStream<'static, Result<Bytes, StoreError>>,
    size: u64,
) -> Result<BlobBody, StoreError> {
    if size <= MAX_WHOLE_BYTES {
        return Ok(BlobBody::Whole(read_whole(body, MAX_WHOLE_BYTES).await?));
    }
    Ok(BlobBody::Pieces(body.map_err(std::io::Error::other).boxed()))
}

/// The entry of a blob, which is also compared with the index.
fn compared_entry(index: &NamespaceIndex, path: &RelPath, found: Option<&FoundBlob>) -> Option<IndexEntry> {
    let entry = found?.entry;
    index.compare(path, &entry);
    Some(entry)
}
