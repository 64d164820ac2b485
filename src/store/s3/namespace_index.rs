//! The index of one namespace: its cached object, and the task that writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;

use object_store::path::Path as Key;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::super::{IndexEntry, IndexSnapshot, StoreError};
use super::blobs::{BucketBlobs, race_pause};
use super::bucket::ConditionalPut;
use super::change_feed::ChangeFeed;
use super::index_cache::{BucketIndex, entries_of};
use super::index_document::IndexDocument;
use super::index_object::{EntryChanges, IndexObject, WriteInFlight};
use super::index_writer::{self, IndexJob, IndexRequest, MAX_RACES, QUEUE_SIZE};
use crate::path::RelPath;

/// One namespace's index.
pub(super) struct NamespaceIndex {
    object: Arc<IndexObject>,
    jobs: mpsc::Sender<IndexJob>,
    /// Held while the index object is created or withdrawn.
    creation: tokio::sync::Mutex<()>,
}

impl Deref for NamespaceIndex {
    type Target = IndexObject;

    fn deref(&self) -> &IndexObject {
        &self.object
    }
}

impl NamespaceIndex {
    /// Starts the task that writes the index. It ends when this is dropped. Call it inside a runtime.
    pub(super) fn open(ns: &str, key: Key, blobs: BucketBlobs, feed: Arc<ChangeFeed>) -> Self {
        let object = Arc::new(IndexObject::new(ns, key, blobs, feed));
        let (jobs, waiting) = mpsc::channel(QUEUE_SIZE);
        tokio::spawn(index_writer::serve(object.clone(), waiting));
        Self { object, jobs, creation: tokio::sync::Mutex::default() }
    }

    pub(super) fn begin_write(&self) -> WriteInFlight {
        WriteInFlight::begin(&self.object)
    }

    /// Records `entry`. Returns when the index has it, or a newer one, durably.
    pub(super) async fn record(
        &self,
        path: &RelPath,
        entry: IndexEntry,
        in_flight: Option<WriteInFlight>,
    ) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        let job = IndexJob { path: path.clone(), request: IndexRequest::Record(entry), reply: Some(reply) };
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        drop(in_flight);
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Compares a blob with the cached index, and requests a correction if they differ. A crash may have lost the entry, or
    /// another proxy may have overwritten it.
    pub(super) fn compare(&self, path: &RelPath, found: &IndexEntry) {
        // Versions may differ, since some proxies keep only seconds.
        let is_same = |entry: &IndexEntry| (entry.md5, entry.is_deleted) == (found.md5, found.is_deleted);
        let has_it = |index: BucketIndex| index.document.entries.get(path).is_some_and(is_same);
        let needs_entry = || !self.is_forgotten(found) || self.has_entry(path);
        if !self.cached().is_some_and(has_it) && needs_entry() {
            // If the queue is full, the next reader requests it again.
            drop(self.jobs.try_send(IndexJob { path: path.clone(), request: IndexRequest::Lookup, reply: None }));
        }
    }

    /// The cached index, or the current one if none is cached.
    pub(super) async fn cached_or_fresh(&self) -> Result<BucketIndex, StoreError> {
        match self.cached() {
            Some(cached) => Ok(cached),
            None => self.fresh().await,
        }
    }

    /// The cached index with its entries that changed since it had `tag`. `None` if the changes are unknown, or if they need
    /// the whole index.
    pub(super) fn changes_since(&self, tag: &str) -> Option<IndexSnapshot> {
        let cache = self.cache();
        let (latest, changed) = cache.changes_since(tag)?;
        Some(IndexSnapshot { state: latest.state(), entries: entries_of(&latest.document, &changed)? })
    }

    /// True if the cached index has an entry for `path`, tombstones included.
    pub(super) fn has_entry(&self, path: &RelPath) -> bool {
        self.cached().is_some_and(|index| index.document.entries.contains_key(path))
    }

    /// True if the cached index has `path` as a file.
    pub(super) fn has_file(&self, path: &RelPath) -> bool {
        self.cached().is_some_and(|index| index.document.entries.get(path).is_some_and(|entry| !entry.is_deleted))
    }

    /// True if there is an index object.
    pub(super) async fn exists(&self) -> Result<bool, StoreError> {
        Ok(self.is_there() || self.fresh().await?.etag.is_some())
    }

    /// Creates the index object if it is missing; it makes the namespace. `allow` is checked before and after, and the object
    /// stays only if both succeed. True if the object is new.
    pub(super) async fn ensure<F>(&self, allow: impl Fn() -> F) -> Result<bool, StoreError>
    where
        F: Future<Output = Result<(), StoreError>>,
    {
        if self.is_there() {
            return Ok(false);
        }
        let _one_at_a_time = self.creation.lock().await;
        let existed = self.exists().await?;
        if self.is_there() {
            return Ok(false);
        }
        if !existed {
            allow().await?;
            index_writer::commit(&self.object, &mut BTreeMap::new(), BTreeSet::new(), true).await?;
        }
        // This sees every entry from before the index object. Later writers see the object.
        match allow().await {
            Err(refused @ StoreError::NamespaceOccupied { .. }) if self.remove_empty().await? => {
                return Err(refused);
            }
            // The namespace exists nevertheless: another proxy has files in it, or created it without this check.
            Err(StoreError::NamespaceOccupied { .. }) => {}
            allowed => allowed?,
        }
        self.settle();
        Ok(!existed)
    }

    /// Deletes the index object if it is empty and memsync wrote it. True if it is gone.
    pub(super) async fn withdraw(&self) -> Result<bool, StoreError> {
        let _one_at_a_time = self.creation.lock().await;
        self.remove_empty().await
    }

    /// Removes the entries of tombstones past their retention. Gives their number.
    pub(super) async fn remove_old_tombstones(&self) -> Result<usize, StoreError> {
        let old = |seen: &IndexDocument| {
            let old = seen.entries.iter().filter(|(_, entry)| self.is_forgotten(entry));
            old.map(|(path, _)| (path.clone(), None)).collect()
        };
        self.change(old).await
    }

    /// Replaces the entry `entry` by `now`; `None` removes it. Another entry stays.
    pub(super) async fn amend(
        &self,
        path: &RelPath,
        entry: &IndexEntry,
        now: Option<IndexEntry>,
    ) -> Result<(), StoreError> {
        let change = |seen: &IndexDocument| {
            let is_same = seen.entries.get(path) == Some(entry);
            is_same.then(|| (path.clone(), now)).into_iter().collect()
        };
        self.change(change).await.map(drop)
    }

    /// Applies the changes that `find` makes of the index. Gives their number.
    async fn change(&self, find: impl Fn(&IndexDocument) -> EntryChanges) -> Result<usize, StoreError> {
        for race in 0..MAX_RACES {
            let seen = self.fresh().await?;
            let changes = find(&seen.document);
            if changes.is_empty() || self.replace(&seen, &changes).await? {
                return Ok(changes.len());
            }
            sleep(race_pause(race)).await;
        }
        Err(index_writer::too_many_writers())
    }

    /// Writes `changes` over the index `seen`. False: the index has changed.
    pub(super) async fn replace(&self, seen: &BucketIndex, changes: &EntryChanges) -> Result<bool, StoreError> {
        match self.put(seen, changes).await? {
            ConditionalPut::Written(_) => Ok(true),
            ConditionalPut::Lost => Ok(false),
            ConditionalPut::Unknown(e) => Err(e),
        }
    }
}
