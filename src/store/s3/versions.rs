//! Reads of earlier versions.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::super::{BlobBody, BlobVersion, GetOutcome, IndexEntry, Retention, StoreError, StoredBlob};
use super::bucket::{FetchOutcome, read_whole};
use super::convert::{meta_of, version_of};
use super::core::S3Core;
use super::operations::MAX_WHOLE_BYTES;
use crate::digest::Md5;
use crate::path::RelPath;

/// Concurrent requests.
const CONCURRENCY: usize = 16;

impl S3Core {
    /// The versions of `path`, the newest first. The first is its entry.
    pub(super) async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        let (found, ()) = tokio::try_join!(self.blobs.find(ns, path), self.check_owner(ns, path))?;
        let Some(found) = found else { return Ok(Vec::new()) };
        let (mut candidates, mut distinct, mut last) = (Vec::new(), 0, found.row.version);
        for copy in self.blobs.version_copies(ns, path).await? {
            // A copy of the current version belongs to a write that failed, or that is in flight.
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
        let mut all = vec![version_of(&found.row, &found.object)];
        let mut objects = stream::iter(candidates)
            .map(|copy| async move { self.blobs.bucket.head(&copy.key).await.map(|object| (copy, object)) })
            .buffered(CONCURRENCY);
        while let Some((copy, object)) = objects.try_next().await? {
            let Some(object) = object.filter(|object| copy.matches(object)) else { continue };
            if all.last().is_some_and(|newer| newer.version > copy.version) {
                let meta = meta_of(&object.metadata);
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

    /// Reads the version `wanted` of `path`, current or earlier.
    pub(super) async fn get_version(&self, ns: &str, path: &RelPath, wanted: u64) -> Result<GetOutcome, StoreError> {
        let (found, ()) = tokio::try_join!(self.blobs.find(ns, path), self.check_owner(ns, path))?;
        if found.is_some_and(|found| found.row.version == wanted) {
            let got = self.get(ns, path).await?;
            let held = match &got {
                GetOutcome::Found(blob) => Some(blob.entry.version),
                GetOutcome::Tombstone(entry) => Some(entry.version),
                GetOutcome::Absent => None,
            };
            // If it was replaced in this moment, there is a copy.
            if held == Some(wanted) {
                return Ok(got);
            }
        }
        let copies = self.blobs.version_copies(ns, path).await?;
        for copy in copies.into_iter().filter(|copy| copy.version == wanted) {
            let FetchOutcome::Found(object, body) = self.blobs.bucket.get(&copy.key, None).await? else { continue };
            if !copy.matches(&object) {
                continue;
            }
            let body = if object.size <= MAX_WHOLE_BYTES {
                let content = read_whole(body, MAX_WHOLE_BYTES).await?;
                if Md5::of(&content) != copy.md5 {
                    continue;
                }
                BlobBody::Whole(content)
            } else {
                BlobBody::Pieces(body.map_err(std::io::Error::other).boxed())
            };
            let entry = IndexEntry { md5: copy.md5, size: object.size, is_deleted: false, version: wanted, cursor: 0 };
            return Ok(GetOutcome::Found(StoredBlob { entry, meta: meta_of(&object.metadata), body }));
        }
        Ok(GetOutcome::Absent)
    }
}
