//! The index object of one namespace: cached reads, and writes by compare-and-swap.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use object_store::path::Path as Key;

use super::super::body::BodyContent;
use super::super::{BlobMeta, IndexEntry, StoreError, lock, new_id, rules};
use super::blobs::BucketBlobs;
use super::bucket::{ConditionalPut, FetchOutcome, read_whole};
use super::change_feed::ChangeFeed;
use super::index_cache::{BucketIndex, BucketIndexCache, differing_paths};
use super::index_document::{IndexDocument, IndexHistory};
use super::object_metadata::ObjectMetadata;
use crate::path::RelPath;

/// A larger index is refused.
const MAX_INDEX_BYTES: u64 = 1024 * 1024 * 1024;

/// Changes to an index; `None` removes the entry.
pub(super) type EntryChanges = BTreeMap<RelPath, Option<IndexEntry>>;

/// The index object of one namespace.
pub(super) struct IndexObject {
    pub(super) ns: String,
    pub(super) blobs: BucketBlobs,
    key: Key,
    feed: Arc<ChangeFeed>,
    cache: Mutex<BucketIndexCache>,
    /// Small blobs that are being written and will be recorded soon.
    writes_in_flight: AtomicUsize,
    /// True after this process confirmed that the namespace may exist although its index was empty.
    is_settled: AtomicBool,
}

/// A blob that is being written. The index writer waits a moment for it.
pub(super) struct WriteInFlight(Arc<IndexObject>);

impl WriteInFlight {
    pub(super) fn begin(index: &Arc<IndexObject>) -> Self {
        index.writes_in_flight.fetch_add(1, Ordering::Relaxed);
        Self(index.clone())
    }
}

impl Drop for WriteInFlight {
    fn drop(&mut self) {
        self.0.writes_in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl IndexObject {
    pub(super) fn new(ns: &str, key: Key, blobs: BucketBlobs, feed: Arc<ChangeFeed>) -> Self {
        Self {
            ns: ns.to_owned(),
            blobs,
            key,
            feed,
            cache: Mutex::default(),
            writes_in_flight: AtomicUsize::new(0),
            is_settled: AtomicBool::new(false),
        }
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, BucketIndexCache> {
        lock(&self.cache)
    }

    /// The index as last read or written.
    pub(super) fn cached(&self) -> Option<BucketIndex> {
        self.cache().latest().cloned()
    }

    pub(super) fn has_writes_in_flight(&self) -> bool {
        self.writes_in_flight.load(Ordering::Relaxed) > 0
    }

    /// True for a tombstone past its retention: the index may lack it.
    pub(super) fn is_forgotten(&self, entry: &IndexEntry) -> bool {
        let oldest = rules::time_before((self.blobs.clock)(), self.blobs.retention.tombstones);
        entry.is_deleted && entry.version < oldest
    }

    /// True if the index as last seen exists and will stay. An index without entries may belong to a namespace that is
    /// about to be refused.
    pub(super) fn is_there(&self) -> bool {
        let stays = |index: &BucketIndex| !index.document.entries.is_empty() || self.is_settled.load(Ordering::Relaxed);
        self.cached().is_some_and(|index| index.etag.is_some() && stays(&index))
    }

    /// Call when the namespace was found to be allowed.
    pub(super) fn settle(&self) {
        self.is_settled.store(true, Ordering::Relaxed);
    }

    /// Reads the current index.
    pub(super) async fn fresh(&self) -> Result<BucketIndex, StoreError> {
        self.read(false).await
    }

    /// Reads the current index. With `damaged_is_empty` a damaged index counts as empty, and the next write replaces it.
    pub(super) async fn read(&self, damaged_is_empty: bool) -> Result<BucketIndex, StoreError> {
        let (generation, cached) = {
            let cache = self.cache();
            (cache.generation(), cache.latest().cloned())
        };
        let known = cached.as_ref().and_then(|cached| cached.etag.as_deref());
        self.blobs.bucket.index_reads.fetch_add(1, Ordering::Relaxed);
        let new = match (self.blobs.bucket.get(&self.key, known).await?, &cached) {
            (FetchOutcome::Unchanged, Some(cached)) => return Ok(cached.clone()),
            (FetchOutcome::Unchanged, None) => {
                return Err(StoreError::S3("the store answered 304 to a request without a condition".to_owned()));
            }
            (FetchOutcome::Absent, _) => {
                self.is_settled.store(false, Ordering::Relaxed);
                BucketIndex { etag: None, document: Arc::default() }
            }
            (FetchOutcome::Found(object, body), _) => {
                let json = read_whole(body, MAX_INDEX_BYTES).await?;
                let mut document = match parse(&self.key, json).await {
                    Err(StoreError::S3(why)) if damaged_is_empty => {
                        tracing::warn!("{why}");
                        IndexDocument::default()
                    }
                    parsed => parsed?,
                };
                if object.metadata.write.is_none() {
                    // Another kind of proxy wrote it and copied fields that it does not know. The index may be an older state.
                    document.history = IndexHistory::default();
                }
                BucketIndex { etag: Some(object.etag), document: Arc::new(document) }
            }
        };
        self.remember(generation, cached.as_ref(), new.clone());
        Ok(new)
    }

    /// Caches an index that was read while `old` was cached, unless the cache changed meanwhile. Sends the differences to
    /// the subscribers, because another proxy made them.
    fn remember(&self, generation: u64, old: Option<&BucketIndex>, new: BucketIndex) {
        let is_there = new.etag.is_some();
        if is_there {
            self.cache().on_read(new.document.modified);
        }
        let changed = old.map(|old| (old, differing_paths(&old.document, &new.document)));
        {
            let mut cache = self.cache();
            match &changed {
                _ if cache.generation() != generation => {}
                Some((old, changed)) => cache.advance(old, new, changed),
                None => cache.reset(new),
            }
        }
        if let Some((_, changed)) = changed.filter(|(_, changed)| is_there && !changed.is_empty()) {
            self.feed.send(&self.ns, changed);
        }
    }

    /// Writes `changes` over the index `seen`.
    pub(super) async fn put(&self, seen: &BucketIndex, changes: &EntryChanges) -> Result<ConditionalPut, StoreError> {
        let mut next = (*seen.document).clone();
        for (path, entry) in changes {
            next.set(path.clone(), *entry);
        }
        next.modified = (self.blobs.clock)().max(seen.document.modified + 1);
        if !self.cache().has_begun_history() || next.history.is_empty() {
            next.history.begin(seen.document.modified);
        }
        let (next, json) = tokio::task::spawn_blocking(move || next.render().map(|json| (next, json)))
            .await
            .map_err(|_| StoreError::Closed)?
            .map_err(|e| StoreError::S3(e.to_string()))?;
        let meta = BlobMeta { content_type: Some("application/json".to_owned()), ..BlobMeta::default() };
        let metadata = ObjectMetadata { meta, ..ObjectMetadata::default() }.with_write(&new_id());
        let bucket = &self.blobs.bucket;
        bucket.index_writes.fetch_add(1, Ordering::Relaxed);
        let held = seen.etag.as_deref();
        let put = bucket.put_once(&self.key, held, &metadata, &BodyContent::Inline(json.into())).await?;
        let ConditionalPut::Written(etag) = &put else { return Ok(put) };
        let changed: Vec<RelPath> = changes.keys().cloned().collect();
        {
            let mut cache = self.cache();
            cache.on_written(next.modified);
            cache.advance(seen, BucketIndex { etag: Some(etag.clone()), document: Arc::new(next) }, &changed);
        }
        if !changed.is_empty() {
            self.feed.send(&self.ns, changed);
        }
        Ok(put)
    }

    /// Deletes the index object if it is empty and memsync wrote it. True if it is gone. A concurrent write of the first
    /// entry notices that.
    pub(super) async fn remove_empty(&self) -> Result<bool, StoreError> {
        let seen = self.fresh().await?;
        let Some(now) = self.blobs.bucket.head(&self.key).await? else { return Ok(true) };
        let is_ours = seen.etag.as_ref() == Some(&now.etag) && now.metadata.write.is_some();
        if !is_ours || !seen.document.entries.is_empty() {
            return Ok(false);
        }
        self.is_settled.store(false, Ordering::Relaxed);
        self.blobs.bucket.remove_without_retry(&self.key).await?;
        self.cache().clear();
        Ok(true)
    }
}

async fn parse(key: &Key, json: Bytes) -> Result<IndexDocument, StoreError> {
    let parsed =
        tokio::task::spawn_blocking(move || IndexDocument::parse(&json)).await.map_err(|_| StoreError::Closed)?;
    parsed.map_err(|why| {
        StoreError::S3(format!("the index {key} is damaged ({why}); `memsync reindex` rebuilds it from the files"))
    })
}
