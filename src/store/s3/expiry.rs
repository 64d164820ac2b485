//! Notes of paths that expire. A listing does not show a blob's expiry, so a note beside the prefix, named by the time, is
//! written before the blob. A note is only a reminder: the blob's metadata decides.

use bytes::Bytes;
use futures::stream::TryStreamExt;
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize};

use super::super::{StoreError, new_id};
use super::blobs::BucketBlobs;
use super::bucket::{ConditionalPut, FetchOutcome, modified, read_whole};
use super::layout::EXPIRIES;
use super::object_metadata::ObjectMetadata;
use super::spool::SpooledBody;
use crate::path::RelPath;

/// Age in milliseconds after which a note without effect is removed. A younger one may belong to a write in flight.
const STALE_MS: u64 = 3600 * 1000;
/// Limit on a note.
const MAX_NOTE_BYTES: u64 = 16 * 1024;

/// A note of a path that has expired.
pub(super) struct DueNote {
    pub(super) key: Key,
    /// True if its write cannot be in flight any more.
    pub(super) is_stale: bool,
}

/// The content of a note.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NoteContent {
    pub(super) namespace: String,
    pub(super) path: String,
}

impl BucketBlobs {
    /// Notes that `path` expires at `at`. The note is durable when this returns.
    pub(super) async fn note_expiry(&self, ns: &str, path: &RelPath, at: u64) -> Result<(), StoreError> {
        // A unique name: removing one note does not remove the note of another write.
        let key = self.layout.beside(&format!("{EXPIRIES}/{at:020}-{}", new_id()))?;
        let content = NoteContent { namespace: ns.to_owned(), path: path.as_str().to_owned() };
        let json = serde_json::to_vec(&content).map_err(|e| StoreError::S3(e.to_string()))?;
        match self.bucket.put(&key, None, &ObjectMetadata::default(), &SpooledBody::Inline(Bytes::from(json))).await? {
            // The name is unique, so an object that is there is this note.
            ConditionalPut::Written(_) | ConditionalPut::Lost => Ok(()),
            ConditionalPut::Unknown(e) if self.bucket.head(&key).await?.is_none() => Err(e),
            ConditionalPut::Unknown(_) => Ok(()),
        }
    }

    /// The notes of expired paths.
    pub(super) async fn due_notes(&self, now: u64) -> Result<Vec<DueNote>, StoreError> {
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
    pub(super) async fn noted_path(&self, due: &DueNote) -> Result<Option<(String, RelPath)>, StoreError> {
        let FetchOutcome::Found(_, body) = self.bucket.get(&due.key, None).await? else { return Ok(None) };
        let note = serde_json::from_slice::<NoteContent>(&read_whole(body, MAX_NOTE_BYTES).await?).ok();
        Ok(note.and_then(|NoteContent { namespace, path }| Some((namespace, RelPath::parse(&path).ok()?))))
    }
}
