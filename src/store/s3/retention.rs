//! Versions as they are asked for, and what becomes of things with time: expiry, the end of earlier versions, and old
//! tombstones, which only leave the index. The object of a tombstone stays, so that whoever asks for the blob still
//! hears that it was deleted, however long ago: nothing that was deleted can come back from a device that was away.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::super::{
    BlobBody, BlobMeta, BlobVersion, DeleteOutcome, GetOutcome, IndexEntry, Precondition, Retention, StoreError,
    StoredBlob, SweepReport,
};
use super::blobs::Found;
use super::bucket::{Fetched, whole};
use super::expiry::Due;
use super::inner::{Inner, WHOLE, read_meta, version};
use super::{reindex, to_its_end};
use crate::digest::Md5;
use crate::path::RelPath;

/// Objects looked at side by side.
const SIDE_BY_SIDE: usize = 16;

impl Inner {
    /// The versions of `path`, the newest first, its own entry before all.
    pub async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        let (found, ()) = tokio::try_join!(self.blobs.look(ns, path), self.stay_within(ns, path))?;
        let Some(found) = found else { return Ok(Vec::new()) };
        let (mut candidates, mut distinct, mut last) = (Vec::new(), 0, found.row.version);
        for copy in self.blobs.earlier(ns, path).await? {
            // A copy of what is there now was made for a write that did not come to pass, or not yet.
            if copy.version >= found.row.version {
                continue;
            }
            distinct += u32::from(copy.version != last);
            last = copy.version;
            if distinct > Retention::default().versions {
                break;
            }
            candidates.push(copy);
        }
        let mut all = vec![version(&found.row, &found.object)];
        let mut looked = stream::iter(candidates)
            .map(|copy| async move { self.blobs.bucket.head(&copy.key).await.map(|object| (copy, object)) })
            .buffered(SIDE_BY_SIDE);
        while let Some((copy, object)) = looked.try_next().await? {
            let Some(object) = object.filter(|object| copy.agrees(object)) else { continue };
            if all.last().is_some_and(|newer| newer.version > copy.version) {
                let meta = read_meta(&object.described);
                all.push(BlobVersion {
                    version: copy.version,
                    md5: copy.md5,
                    size: copy.size,
                    is_deleted: false,
                    meta,
                });
            }
        }
        Ok(all)
    }

    /// The version `wanted` of `path`, the current one or a copy.
    pub async fn get_version(&self, ns: &str, path: &RelPath, wanted: u64) -> Result<GetOutcome, StoreError> {
        let (found, ()) = tokio::try_join!(self.blobs.look(ns, path), self.stay_within(ns, path))?;
        let current = found.map(|found| found.row.version);
        if current == Some(wanted) {
            let got = self.get(ns, path).await?;
            let held = match &got {
                GetOutcome::Found(blob) => Some(blob.entry.version),
                GetOutcome::Tombstone(entry) => Some(entry.version),
                GetOutcome::Absent => None,
            };
            // Else it was replaced in this moment, and there is a copy.
            if held == Some(wanted) {
                return Ok(got);
            }
        }
        let copies = self.blobs.earlier(ns, path).await?;
        for copy in copies.into_iter().filter(|copy| copy.version == wanted) {
            let Fetched::Found(object, body) = self.blobs.bucket.get(&copy.key, None).await? else { continue };
            if !copy.agrees(&object) {
                continue;
            }
            let body = if object.size <= WHOLE {
                let content = whole(body, WHOLE).await?;
                if Md5::of(&content) != copy.md5 {
                    continue;
                }
                BlobBody::Whole(content)
            } else {
                BlobBody::Pieces(body.map_err(std::io::Error::other).boxed())
            };
            let entry = IndexEntry { md5: copy.md5, size: object.size, is_deleted: false, version: wanted, cursor: 0 };
            return Ok(GetOutcome::Found(StoredBlob { entry, meta: read_meta(&object.described), body }));
        }
        Ok(GetOutcome::Absent)
    }

    /// Deletes what has expired; gives how many paths that was.
    ///
    /// # Errors
    /// The first failure, after all that is due was tried.
    pub async fn expire(self: &Arc<Self>) -> Result<usize, StoreError> {
        if !self.blobs.keeps {
            return Ok(0);
        }
        let now = (self.clock)();
        let due = self.blobs.due(now).await?;
        // One that fails holds up no other, and stops none between its blob and its entry.
        let mut done = stream::iter(due).map(|due| self.expire_one(due, now)).buffer_unordered(SIDE_BY_SIDE);
        let (mut sum, mut failure) = (0, None);
        while let Some(expired) = done.next().await {
            match expired {
                Ok(expired) => sum += usize::from(expired),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        failure.map_or(Ok(sum), Err)
    }

    async fn expire_one(self: &Arc<Self>, due: Due, now: u64) -> Result<bool, StoreError> {
        let about = self.blobs.about(&due).await?;
        let found = match &about {
            Some((ns, path)) => self.blobs.look(ns, path).await?,
            None => None,
        };
        if let (Some((ns, path)), Some(found)) = (&about, found.as_ref().filter(|found| found.row.is_deleted)) {
            // Its entry may be missing: the deletion was the last that anybody did here.
            self.ledger(ns)?.compare(path, &found.row);
        }
        let is_due =
            |found: &Found| !found.row.is_deleted && found.object.described.expires().is_some_and(|at| at <= now);
        let mut expired = false;
        if let (Some((ns, path)), Some(found)) = (about, found.filter(is_due)) {
            // Just what expired: a write that comes between has the last word, and its own time.
            let expect = Some(Precondition::Version(found.row.version));
            let inner = self.clone();
            match to_its_end(async move { inner.delete(&ns, &path, expect, BlobMeta::default()).await }).await {
                Ok(DeleteOutcome::Done(_)) => expired = true,
                // What came between may be due as well: that is found out the next time.
                Ok(_) => return Ok(false),
                // It has become another namespace's since; there it has no time.
                Err(StoreError::OtherNamespace { .. } | StoreError::NamespaceOccupied { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        if expired || due.is_stale {
            self.blobs.bucket.remove(&due.key).await?;
        }
        Ok(expired)
    }

    /// [`Inner::expire`], and removes copies and old entries of tombstones.
    ///
    /// # Errors
    /// A failure, after all else was done.
    pub async fn sweep(self: &Arc<Self>) -> Result<SweepReport, StoreError> {
        // Whatever fails holds up nothing else.
        let (mut swept, mut failure) = (SweepReport::default(), None);
        match self.expire().await {
            Ok(expired) => swept.expired = expired,
            Err(e) => failure = Some(e),
        }
        let (retention, now) = (Retention::default(), (self.clock)());
        if self.blobs.keeps {
            let removals = self.blobs.sweep_earlier(&retention, now).await;
            swept.versions = removals.count;
            failure = failure.or(removals.failure);
        }
        let namespaces = reindex::namespaces(&self.blobs).await.unwrap_or_else(|e| {
            failure.get_or_insert(e);
            BTreeSet::new()
        });
        for ns in namespaces {
            let forgotten = match self.ledger(&ns) {
                Ok(ledger) => ledger.forget().await,
                Err(e) => Err(e),
            };
            match forgotten {
                Ok(forgotten) => swept.tombstones += forgotten,
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        failure.map_or(Ok(swept), Err)
    }
}

/// Until when tombstones are no longer owed an entry in the index: milliseconds since the epoch.
pub fn forgotten_before(now: u64) -> u64 {
    now.saturating_sub(u64::try_from(Retention::default().tombstones.as_millis()).unwrap_or(u64::MAX))
}
