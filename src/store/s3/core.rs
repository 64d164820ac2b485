//! State that the clones of an S3 store share.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::OwnedMutexGuard;

use super::super::{StoreError, WallClock};
use super::blobs::BucketBlobs;
use super::change_feed::ChangeFeed;
use super::namespace_cache::NamespaceCache;
use super::namespace_index::NamespaceIndex;
use crate::path::RelPath;

/// With more indexes than this, those of namespaces that do not exist are dropped.
const MAX_INDEXES: usize = 256;
/// With more named locks than this, unused ones are dropped.
const MAX_LOCKS: usize = 1024;

/// An open store on S3.
pub(super) struct S3Core {
    pub(super) blobs: BucketBlobs,
    /// The directory for large bodies.
    pub(super) spool: Arc<Path>,
    pub(super) feed: Arc<ChangeFeed>,
    pub(super) clock: WallClock,
    /// When each namespace's usage was last read from the bucket.
    pub(super) usage_read_at: Mutex<HashMap<String, Instant>>,
    /// `s3://bucket/prefix`.
    pub(super) url: String,
    pub(super) namespaces: NamespaceCache,
    indexes: Mutex<HashMap<String, Arc<NamespaceIndex>>>,
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl S3Core {
    pub(super) fn new(blobs: BucketBlobs, spool: Arc<Path>, clock: WallClock, url: String) -> Self {
        Self {
            blobs,
            spool,
            feed: Arc::default(),
            clock,
            usage_read_at: Mutex::default(),
            url,
            namespaces: NamespaceCache::default(),
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
        let index = Arc::new(NamespaceIndex::open(ns, key, self.blobs.clone(), self.clock.clone(), self.feed.clone()));
        if indexes.len() >= MAX_INDEXES {
            // Requests may name any number of namespaces. Keep those that exist or are in use.
            indexes.retain(|ns, index| ns.is_empty() || index.is_there() || Arc::strong_count(index) > 1);
        }
        indexes.insert(ns.to_owned(), index.clone());
        Ok(index)
    }

    /// Locks a path for one writer of this process. Other writers would lose the race in the bucket. The lock also orders
    /// writes that have the same ETag, such as two tombstones.
    pub(super) async fn lock_path(&self, ns: &str, path: &RelPath) -> OwnedMutexGuard<()> {
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
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded values change in one step, so a panic of another thread leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
