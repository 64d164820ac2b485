//! Expiry of paths, and removal of old versions and tombstones.
//!
//! A listing does not show a blob's expiry, so a note beside the prefix, named by the time, is written before the blob. A
//! note is only a reminder: the blob's metadata decides.
//!
//! An old tombstone only leaves the index. Its object stays, so that a client that was away for years still learns about
//! the deletion and does not upload the file again.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize};

use super::super::body::BodyContent;
use super::super::{BlobMeta, DeleteOutcome, StoreError, SweepReport, WriteCondition, new_id};
use super::blobs::{BucketBlobs, FoundBlob};
use super::bucket::{ConditionalPut, FetchOutcome, modified, read_whole};
use super::core::{S3Core, run_to_end};
use super::layout::EXPIRIES;
use super::object_metadata::ObjectMetadata;
use super::reindex;
use crate::path::RelPath;

/// Concurrent expiries.
const CONCURRENCY: usize = 16;
/// Age in milliseconds after which a note without effect is removed. A younger one may belong to a write in flight.
const STALE_MS: u64 = 3600 * 1000;
/// Limit on a note.
const MAX_NOTE_BYTES: u64 = 16 * 1024;

/// A note of a path that has expired.
struct DueNote {
    key: Key,
    /// True if its write cannot be in flight any more.
    is_stale: bool,
}

/// The content of a note.
#[derive(Debug, Serialize, Deserialize)]
struct NoteContent {
    namespace: String,
    path: String,
}

impl BucketBlobs {
    /// Notes that `path` expires at `at`. The note is durable when this returns.
    pub(super) async fn note_expiry(&self, ns: &str, path: &RelPath, at: u64) -> Result<(), StoreError> {
        // A unique name: removing one note does not remove the note of another write.
        let key = self.layout.beside(&format!("{EXPIRIES}/{at:020}-{}", new_id()))?;
        let content = NoteContent { namespace: ns.to_owned(), path: path.as_str().to_owned() };
        let json = serde_json::to_vec(&content).map_err(|e| StoreError::S3(e.to_string()))?;
        let content = BodyContent::Inline(Bytes::from(json));
        let metadata = ObjectMetadata::default().with_write(&new_id());
        match self.bucket.put_once(&key, None, &metadata, &content).await? {
            // The name is unique, so an object that is there is this note.
            ConditionalPut::Written(_) | ConditionalPut::Lost => Ok(()),
            ConditionalPut::Unknown(e) => Err(e),
        }
    }

    /// The notes of expired paths.
    async fn due_notes(&self, now: u64) -> Result<Vec<DueNote>, StoreError> {
        let folder = self.layout.beside(EXPIRIES)?;
        let mut notes = self.bucket.list(Some(&folder));
        let mut due = Vec::new();
        while let Some(meta) = notes.try_next().await? {
            let at = meta.location.filename().and_then(|name| name.split_once('-')?.0.parse::<u64>().ok());
            if let Some(at) = at.filter(|at| *at <= now) {
                let is_stale = at.max(modified(&meta)).saturating_add(STALE_MS) < now;
                due.push(DueNote { key: meta.location, is_stale });
            }
        }
        Ok(due)
    }

    /// Namespace and path of a note; `None` if the note is gone or unreadable.
    async fn noted_path(&self, due: &DueNote) -> Result<Option<(String, RelPath)>, StoreError> {
        let FetchOutcome::Found(_, body) = self.bucket.get(&due.key, None).await? else { return Ok(None) };
        let note = serde_json::from_slice::<NoteContent>(&read_whole(body, MAX_NOTE_BYTES).await?).ok();
        Ok(note.and_then(|NoteContent { namespace, path }| Some((namespace, RelPath::parse(&path).ok()?))))
    }
}

impl S3Core {
    /// As [`Store::expire`](super::super::Store::expire).
    pub(super) async fn expire(self: &Arc<Self>) -> Result<usize, StoreError> {
        if !self.blobs.keeps_versions {
            return Ok(0);
        }
        let now = (self.blobs.clock)();
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
        if let (Some((ns, path)), Some(found)) = (&noted, found.as_ref().filter(|found| found.entry.is_deleted)) {
            // A crash may have lost the entry of this tombstone, and no later request corrects it.
            self.index(ns)?.compare(path, &found.entry);
        }
        let is_due = |found: &FoundBlob| {
            !found.entry.is_deleted && found.object.metadata.meta.expires.is_some_and(|at| at <= now)
        };
        let mut expired = false;
        if let (Some((ns, path)), Some(found)) = (noted, found.filter(is_due)) {
            // Delete only this version: a later write has its own expiry.
            let expect = Some(WriteCondition::Version(found.entry.version));
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

    /// Removes version copies, and index entries of tombstones.
    pub(super) async fn remove_old(self: &Arc<Self>) -> Result<SweepReport, StoreError> {
        let (mut report, mut failure) = (SweepReport::default(), None);
        if self.blobs.keeps_versions {
            failure = self.blobs.sweep_copies(&mut report).await.err();
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
