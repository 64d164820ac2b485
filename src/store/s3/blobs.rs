//! Blobs in the bucket: finding one, and replacing it by compare-and-swap on its ETag.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::StreamExt;
use object_store::path::Path as Key;
use tokio::time::sleep;

use super::super::body::BodyContent;
use super::super::{BlobMeta, BlobVersion, IndexEntry, Retention, StoreError, WallClock, new_id};
use super::bucket::{Bucket, ConditionalPut, FetchOutcome, ObjectInfo};
use super::layout::Layout;
use super::object_metadata::ObjectMetadata;
use crate::digest::{Md5, Md5Hasher};
use crate::failpoint;
use crate::path::RelPath;

/// Attempts of a write that loses races. Each lost race means that another write succeeded, or that the store is busy.
const MAX_RACES: u32 = 100;
/// Attempts of a write that gets no answer.
const MAX_FAILURES: u32 = 5;

/// The blobs of a bucket.
#[derive(Clone)]
pub(super) struct BucketBlobs {
    pub(super) bucket: Arc<Bucket>,
    pub(super) layout: Layout,
    pub(super) clock: WallClock,
    pub(super) retention: Retention,
    /// True if the bucket allows objects beside the prefix, where earlier versions and expiry notes are.
    pub(super) keeps_versions: bool,
}

/// A blob or tombstone in the bucket.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FoundBlob {
    pub(super) entry: IndexEntry,
    pub(super) object: ObjectInfo,
}

/// A blob or tombstone to be written.
pub(super) struct NewBlob {
    entry: IndexEntry,
    content: BodyContent,
    metadata: ObjectMetadata,
    /// True if this is a new version even with the same content.
    is_another: bool,
}

impl NewBlob {
    /// A put. The same content makes no new version.
    pub(super) fn new(BlobVersion { entry, meta }: BlobVersion, content: BodyContent) -> Self {
        Self { entry, content, metadata: ObjectMetadata::new(&entry, meta), is_another: false }
    }

    /// A blob that is a version of its own even with the same content.
    pub(super) fn another(version: BlobVersion, content: BodyContent) -> Self {
        Self { is_another: true, ..Self::new(version, content) }
    }
}

/// Result of [`BucketBlobs::swap`].
pub(super) enum SwapOutcome<R> {
    /// `entry` replaced `before`.
    Done { before: Option<IndexEntry>, entry: IndexEntry },
    /// The caller decided against the write.
    Refused(R),
}

impl BucketBlobs {
    /// The blob at `path`, without its content. Reads the content only if the metadata lacks the MD5.
    pub(super) async fn find(&self, ns: &str, path: &RelPath) -> Result<Option<FoundBlob>, StoreError> {
        let key = self.layout.blob(ns, path)?;
        let Some(object) = self.bucket.head(&key).await? else { return Ok(None) };
        if let Some(entry) = entry_of(&object) {
            return Ok(Some(FoundBlob { entry, object }));
        }
        let FetchOutcome::Found(object, mut body) = self.bucket.get(&key, None).await? else { return Ok(None) };
        let object = *object;
        if let Some(entry) = entry_of(&object) {
            return Ok(Some(FoundBlob { entry, object }));
        }
        let mut hasher = Md5Hasher::new();
        while let Some(piece) = body.next().await {
            hasher.update(&piece?);
        }
        Ok(Some(FoundBlob { entry: entry_with(&object, hasher.finish()), object }))
    }

    /// Writes the blob that `decide` makes of the current one, over exactly that one. If another write comes first, it
    /// decides again. With `blind` the first attempt expects no blob and does not look for one.
    ///
    /// # Errors
    /// Also if a write got no answer and the blob then changed again: the write may have succeeded in between.
    pub(super) async fn swap<R>(
        &self,
        ns: &str,
        path: &RelPath,
        blind: bool,
        decide: impl Fn(Option<&FoundBlob>) -> Result<NewBlob, R>,
    ) -> Result<SwapOutcome<R>, StoreError> {
        let mut swap = BlobSwap::new(self, ns, path)?;
        let mut found = if blind { None } else { self.find(ns, path).await? };
        loop {
            let new = match decide(found.as_ref()) {
                Ok(new) => new,
                Err(refused) => return Ok(SwapOutcome::Refused(refused)),
            };
            swap.prepare(found.as_ref(), &new).await?;
            if let Some(entry) = swap.write(found.as_ref(), new).await? {
                return Ok(SwapOutcome::Done { before: found.map(|found| found.entry), entry });
            }
            found = self.find(ns, path).await?;
            if let Some((before, entry)) = swap.recognize(found.as_ref())? {
                return Ok(SwapOutcome::Done { before, entry });
            }
        }
    }

    /// Writes `tombstone` over `entry` without keeping a version. Another blob stays.
    pub(super) async fn replace_by_tombstone(
        &self,
        ns: &str,
        path: &RelPath,
        entry: &IndexEntry,
        tombstone: &IndexEntry,
    ) -> Result<(), StoreError> {
        let Some(found) = self.find(ns, path).await?.filter(|found| found.entry == *entry) else { return Ok(()) };
        let metadata = ObjectMetadata::new(tombstone, BlobMeta::default()).with_write(&new_id());
        let (key, nothing) = (self.layout.blob(ns, path)?, BodyContent::Inline(Bytes::new()));
        match self.bucket.put(&key, Some(&found.object.etag), &metadata, &nothing).await? {
            ConditionalPut::Written(_) | ConditionalPut::Lost => Ok(()),
            ConditionalPut::Unknown(e) => Err(e),
        }
    }
}

/// The attempts of one [`BucketBlobs::swap`].
struct BlobSwap<'a> {
    blobs: &'a BucketBlobs,
    ns: &'a str,
    path: &'a RelPath,
    key: Key,
    /// Identifies this write in the object's metadata.
    write_id: String,
    races: u32,
    failures: u32,
    /// A write without an answer, with the blob before it.
    unanswered: Option<(Option<FoundBlob>, StoreError)>,
    /// The blob before a write that the store reported as lost.
    lost: Option<Option<IndexEntry>>,
    /// ETag and version of the blob that was copied as an earlier version.
    copied: Option<(String, u64)>,
    /// The expiry that was noted.
    noted: Option<u64>,
}

impl<'a> BlobSwap<'a> {
    fn new(blobs: &'a BucketBlobs, ns: &'a str, path: &'a RelPath) -> Result<Self, StoreError> {
        Ok(Self {
            blobs,
            ns,
            path,
            key: blobs.layout.blob(ns, path)?,
            write_id: new_id().to_string(),
            races: 0,
            failures: 0,
            unanswered: None,
            lost: None,
            copied: None,
            noted: None,
        })
    }

    /// Copies the earlier version and notes the expiry. Both must exist before the blob does.
    async fn prepare(&mut self, found: Option<&FoundBlob>, new: &NewBlob) -> Result<(), StoreError> {
        if !self.blobs.keeps_versions {
            return Ok(());
        }
        if let Some(old) =
            found.filter(|old| !old.entry.is_deleted && (new.is_another || old.entry.md5 != new.entry.md5))
        {
            let this = (old.object.etag.clone(), old.entry.version);
            if self.copied.as_ref() != Some(&this) {
                self.blobs.copy_version(self.ns, self.path, &old.entry, new.entry.version).await?;
                failpoint::pass("s3-version-kept");
                self.copied = Some(this);
            }
        }
        // An inherited expiry has its note already.
        let inherited = found.and_then(|old| old.object.metadata.meta.expires);
        let expires = new.metadata.meta.expires.filter(|at| *at != BlobMeta::NO_EXPIRY);
        if let Some(at) = expires.filter(|at| inherited != Some(*at) && self.noted != Some(*at)) {
            self.blobs.note_expiry(self.ns, self.path, at).await?;
            failpoint::pass("s3-expiry-noted");
            self.noted = Some(at);
        }
        Ok(())
    }

    /// Writes `new` over `found`. Gives its entry, or `None` if the blob must be looked at again.
    async fn write(&mut self, found: Option<&FoundBlob>, new: NewBlob) -> Result<Option<IndexEntry>, StoreError> {
        let metadata = new.metadata.with_write(&self.write_id);
        let etag = found.map(|found| found.object.etag.as_str());
        match self.blobs.bucket.put(&self.key, etag, &metadata, &new.content).await? {
            ConditionalPut::Written(_) => {
                failpoint::pass("s3-blob-written");
                Ok(Some(new.entry))
            }
            ConditionalPut::Lost if self.races < MAX_RACES => {
                self.lost = Some(found.map(|found| found.entry));
                self.races += 1;
                if self.races > 3 {
                    sleep(race_pause(self.races)).await;
                }
                Ok(None)
            }
            ConditionalPut::Lost => Err(StoreError::S3(format!("{}: too many concurrent writes; try again", self.key))),
            ConditionalPut::Unknown(e) if self.failures < MAX_FAILURES => {
                self.failures += 1;
                sleep(Duration::from_millis(10 << (2 * self.failures))).await;
                self.unanswered = Some((found.cloned(), e));
                Ok(None)
            }
            ConditionalPut::Unknown(e) => Err(e),
        }
    }

    /// Finds out whether an earlier attempt of this write succeeded. Gives the entry before it, and the new one.
    fn recognize(&mut self, found: Option<&FoundBlob>) -> Result<Option<(Option<IndexEntry>, IndexEntry)>, StoreError> {
        let ours = found.filter(|found| found.object.metadata.write.as_deref() == Some(&self.write_id));
        // A network device may send a request twice. The second copy then loses to the first.
        if let (Some(ours), Some(before)) = (ours, self.lost.take()) {
            return Ok(Some((before, ours.entry)));
        }
        let Some((before, e)) = self.unanswered.take() else { return Ok(None) };
        if let Some(ours) = ours {
            return Ok(Some((before.map(|before| before.entry), ours.entry)));
        }
        if found != before.as_ref() {
            return Err(e);
        }
        self.unanswered = Some((before, e));
        Ok(None)
    }
}

/// A random pause after a lost race. It grows with the number of races, so that every proxy succeeds in the end.
pub(super) fn race_pause(races: u32) -> Duration {
    Duration::from_millis(fastrand::u64(0..=u64::from(races.min(20)) * 5))
}

/// The entry in an object's metadata; `None` if the MD5 is missing.
pub(super) fn entry_of(object: &ObjectInfo) -> Option<IndexEntry> {
    let metadata = &object.metadata;
    // The MD5 of a deleted content cannot be computed any more.
    let md5 = metadata.md5.or_else(|| metadata.is_deleted.then(|| Md5::of(b"")))?;
    Some(entry_with(object, md5))
}

/// The entry of an object with the MD5 `md5`.
pub(super) fn entry_with(object: &ObjectInfo, md5: Md5) -> IndexEntry {
    let ObjectMetadata { is_deleted, version, .. } = object.metadata;
    let size = if is_deleted { 0 } else { object.size };
    IndexEntry { md5, size, is_deleted, version: version.unwrap_or(object.modified), cursor: 0 }
}
