//! Expiry of paths, and removal of old versions and tombstones.
//!
//! An old tombstone only leaves the index. Its object stays, so that a client that was away for years still learns about
//! the deletion and does not upload the file again.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use futures::stream::{self, StreamExt};

use super::super::{BlobMeta, DeleteOutcome, Retention, StoreError, SweepReport, WriteCondition};
use super::blobs::FoundBlob;
use super::core::S3Core;
use super::expiry::DueNote;
use super::reindex;

/// Concurrent expiries.
const CONCURRENCY: usize = 16;

/// Runs `work` to its end even if the caller is dropped. It must not stop between a blob and its index entry.
pub(super) async fn run_to_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(work).await.map_err(|_| StoreError::Closed)?
}

impl S3Core {
    /// Deletes the expired paths. Gives their number.
    ///
    /// # Errors
    /// The first failure, after all paths were tried.
    pub(super) async fn expire(self: &Arc<Self>) -> Result<usize, StoreError> {
        if !self.blobs.keeps_versions {
            return Ok(0);
        }
        let now = (self.clock)();
        let due = self.blobs.due_notes(now).await?;
        let mut done = stream::iter(due).map(|due| self.expire_one(due, now)).buffer_unordered(CONCURRENCY);
        let (mut sum, mut failure) = (0, None);
        while let Some(expired) = done.next().await {
            match expired {
                Ok(expired) => sum += usize::from(expired),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        failure.map_or(Ok(sum), Err)
    }

    async fn expire_one(self: &Arc<Self>, due: DueNote, now: u64) -> Result<bool, StoreError> {
        let noted = self.blobs.noted_path(&due).await?;
        let found = match &noted {
            Some((ns, path)) => self.blobs.find(ns, path).await?,
            None => None,
        };
        if let (Some((ns, path)), Some(found)) = (&noted, found.as_ref().filter(|found| found.row.is_deleted)) {
            // A crash may have lost the entry of this tombstone, and no later request corrects it.
            self.index(ns)?.compare(path, &found.row);
        }
        let is_due =
            |found: &FoundBlob| !found.row.is_deleted && found.object.metadata.expires().is_some_and(|at| at <= now);
        let mut expired = false;
        if let (Some((ns, path)), Some(found)) = (noted, found.filter(is_due)) {
            // Delete only this version: a later write has its own expiry.
            let expect = Some(WriteCondition::Version(found.row.version));
            let core = self.clone();
            match run_to_end(async move { core.delete(&ns, &path, expect, BlobMeta::default()).await }).await {
                Ok(DeleteOutcome::Done(_)) => expired = true,
                // The next run checks the later write.
                Ok(_) => return Ok(false),
                // The object now belongs to another namespace, where it does not expire.
                Err(StoreError::OtherNamespace { .. } | StoreError::NamespaceOccupied { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        if expired || due.is_stale {
            self.blobs.bucket.remove(&due.key).await?;
        }
        Ok(expired)
    }

    /// Runs [`S3Core::expire`], then removes version copies and index entries of tombstones that are past their retention.
    ///
    /// # Errors
    /// The first failure, after everything else was done.
    pub(super) async fn sweep(self: &Arc<Self>) -> Result<SweepReport, StoreError> {
        let (mut report, mut failure) = (SweepReport::default(), None);
        match self.expire().await {
            Ok(expired) => report.expired = expired,
            Err(e) => failure = Some(e),
        }
        if self.blobs.keeps_versions {
            let removed = self.blobs.sweep_copies(&Retention::default(), (self.clock)()).await;
            report.versions = removed.count;
            failure = failure.or(removed.failure);
        }
        let namespaces = reindex::namespaces(&self.blobs).await.unwrap_or_else(|e| {
            failure.get_or_insert(e);
            BTreeSet::new()
        });
        for ns in namespaces {
            let removed = match self.index(&ns) {
                Ok(index) => index.remove_old_tombstones().await,
                Err(e) => Err(e),
            };
            match removed {
                Ok(removed) => report.tombstones += removed,
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        failure.map_or(Ok(report), Err)
    }
}
