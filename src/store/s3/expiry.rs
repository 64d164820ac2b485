//! When paths expire. A blob's metadata says so, but no listing tells it; so a note in the place beside the prefix, named
//! by the time, is written before the blob is. A note is a reminder only: what the blob says then counts.

use bytes::Bytes;
use futures::stream::TryStreamExt;
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize};

use super::super::StoreError;
use super::blobs::Blobs;
use super::bucket::{Fetched, Landing, modified, whole};
use super::layout::{Described, EXPIRIES};
use super::ledger::write_id;
use super::spool::Content;
use crate::path::RelPath;

/// A note of which nothing came is removed after this, in milliseconds: the write that it was made for may still be under way.
const STALE: u64 = 3600 * 1000;
/// Longest note, in bytes.
const LONGEST: u64 = 16 * 1024;

/// A note whose time has come.
pub struct Due {
    pub key: Key,
    /// Whether the write that it was made for must be over.
    pub is_stale: bool,
}

/// What a note is about.
#[derive(Debug, Serialize, Deserialize)]
pub struct About {
    pub namespace: String,
    pub path: String,
}

impl Blobs {
    /// Notes that `path` expires at `at`. Durable when it returns.
    pub async fn note_expiry(&self, ns: &str, path: &RelPath, at: u64) -> Result<(), StoreError> {
        // Each its own: whoever removes one does not remove another's.
        let key = self.layout.beside(&format!("{EXPIRIES}/{at:020}-{}", write_id()))?;
        let about = About { namespace: ns.to_owned(), path: path.as_str().to_owned() };
        let json = serde_json::to_vec(&about).map_err(|e| StoreError::S3(e.to_string()))?;
        match self.bucket.put(&key, None, &Described::default(), &Content::Inline(Bytes::from(json))).await? {
            // Nobody else writes to this name: what is there is this note.
            Landing::Landed(_) | Landing::Lost => Ok(()),
            Landing::Unsure(e) if self.bucket.head(&key).await?.is_none() => Err(e),
            Landing::Unsure(_) => Ok(()),
        }
    }

    /// The notes whose time has come.
    pub async fn due(&self, now: u64) -> Result<Vec<Due>, StoreError> {
        let folder = self.layout.beside(EXPIRIES)?;
        let mut notes = self.bucket.list(Some(&folder));
        let mut due = Vec::new();
        while let Some(meta) = notes.try_next().await? {
            let at = meta.location.filename().and_then(|name| name.split_once('-')?.0.parse::<u64>().ok());
            if let Some(at) = at.filter(|at| *at <= now) {
                let is_stale = at.max(modified(&meta)).saturating_add(STALE) < now;
                due.push(Due { key: meta.location, is_stale });
            }
        }
        Ok(due)
    }

    /// What a note is about; `None` where it is gone, or none of ours.
    pub async fn about(&self, due: &Due) -> Result<Option<(String, RelPath)>, StoreError> {
        let Fetched::Found(_, body) = self.bucket.get(&due.key, None).await? else { return Ok(None) };
        let note = serde_json::from_slice::<About>(&whole(body, LONGEST).await?).ok();
        Ok(note.and_then(|About { namespace, path }| Some((namespace, RelPath::parse(&path).ok()?))))
    }
}
