//! Blobs in the bucket: what one holds, and writing over exactly that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use tokio::time::sleep;

use super::super::StoreError;
use super::bucket::{Bucket, Fetched, Landing, Object};
use super::index::Row;
use super::layout::{Described, Layout};
use super::ledger::write_id;
use super::spool::Content;
use crate::digest::{Md5, Md5Hasher};
use crate::failpoint;
use crate::path::RelPath;

/// How often a lost race for a blob is looked at again. Each means that somebody else's write went through, or
/// that the store wants it later.
const RACES: u32 = 100;
/// How often a write of which nothing is known is sent again.
const FAILURES: u32 = 5;

/// The blobs of a bucket.
#[derive(Clone)]
pub struct Blobs {
    pub bucket: Arc<Bucket>,
    pub layout: Layout,
    /// Whether there is a place beside the prefix, for earlier versions and expiry.
    pub keeps: bool,
}

/// A blob or tombstone that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub row: Row,
    pub object: Object,
}

/// What is to be written.
pub struct New {
    pub row: Row,
    pub content: Content,
    pub content_type: Option<String>,
    /// Further metadata of ours, by its name after `memsync-`.
    pub ours: BTreeMap<String, String>,
    /// When it expires: milliseconds since the epoch.
    pub expires: Option<u64>,
    /// Whether it is another version even where the content is what was there.
    pub is_another: bool,
}

impl New {
    /// Whether writing this over `old` takes a version away, which is to be kept.
    fn displaces(&self, old: &Row) -> bool {
        !old.is_deleted && (self.is_another || self.row.md5 != old.md5)
    }
}

/// What became of a write.
#[derive(Debug)]
pub enum Swapped {
    /// `row` is there, in the place of `before`.
    Done { before: Option<Row>, row: Row },
    /// It was decided against; what is there.
    Refused(Option<Found>),
}

impl Blobs {
    /// What is at `path`. Where the metadata does not tell the MD5, the content is read for it.
    pub async fn look(&self, ns: &str, path: &RelPath) -> Result<Option<Found>, StoreError> {
        let key = self.layout.blob(ns, path)?;
        let Some(object) = self.bucket.head(&key).await? else { return Ok(None) };
        if let Some(row) = row(&object) {
            return Ok(Some(Found { row, object }));
        }
        let Fetched::Found(object, mut body) = self.bucket.get(&key, None).await? else { return Ok(None) };
        if let Some(row) = row(&object) {
            return Ok(Some(Found { row, object }));
        }
        let mut hasher = Md5Hasher::new();
        while let Some(piece) = body.next().await {
            hasher.update(&piece?);
        }
        Ok(Some(Found { row: row_with(&object, hasher.finish()), object }))
    }

    /// What is at `path`, with its content; the row is missing where only the content tells the MD5.
    pub async fn fetch(
        &self,
        ns: &str,
        path: &RelPath,
    ) -> Result<Option<(Option<Row>, Object, BoxStream<'static, Result<Bytes, StoreError>>)>, StoreError> {
        match self.bucket.get(&self.layout.blob(ns, path)?, None).await? {
            Fetched::Found(object, body) => Ok(Some((row(&object), object, body))),
            Fetched::Absent | Fetched::Unchanged => Ok(None),
        }
    }

    /// Writes what `decide` makes of what is there, over exactly that: when something else comes between, it
    /// decides again. `blind`: the caller expects nothing to be there, so the first attempt need not look.
    ///
    /// # Errors
    /// Also when a write may have landed and was then written over, so that nobody can tell.
    pub async fn swap(
        &self,
        ns: &str,
        path: &RelPath,
        blind: bool,
        decide: impl Fn(Option<&Found>) -> Option<New>,
    ) -> Result<Swapped, StoreError> {
        let key = self.layout.blob(ns, path)?;
        let write = write_id();
        let (mut races, mut failures) = (0, 0);
        // What was there when a write went out of which nothing is known.
        let mut unknown: Option<(Option<Found>, StoreError)> = None;
        let mut looked = !blind;
        // What was there when a write was said to have lost.
        let mut lost = None;
        // What is kept of the past and noted of the future already, for this write.
        let (mut kept, mut noted) = (None, None);
        loop {
            let found = if looked { self.look(ns, path).await? } else { None };
            let ours = found.as_ref().filter(|f| f.object.described.write.as_deref() == Some(&write));
            // Something between here and the store sent it twice: the second was told that it lost, to the first.
            if let (Some(ours), Some(before)) = (ours, lost.take()) {
                return Ok(Swapped::Done { before, row: ours.row });
            }
            if let Some((before, e)) = unknown.take() {
                if let Some(ours) = ours {
                    return Ok(Swapped::Done { before: before.map(|b| b.row), row: ours.row });
                }
                if found != before {
                    return Err(e);
                }
                unknown = Some((before, e));
            }
            looked = true;
            let Some(new) = decide(found.as_ref()) else { return Ok(Swapped::Refused(found)) };
            // Both before the write: once it is there, nothing may be missing.
            if let Some(old) = found.as_ref().filter(|old| self.keeps && new.displaces(&old.row)) {
                let this = (old.object.etag.clone(), old.row.version);
                if kept.as_ref() != Some(&this) {
                    self.keep(ns, path, old, new.row.version).await?;
                    failpoint::pass("s3-version-kept");
                    kept = Some(this);
                }
            }
            let expires = new.expires.filter(|at| self.keeps && *at != u64::MAX);
            // What is carried on was noted when it was first said.
            let before = found.as_ref().and_then(|old| old.object.described.expires());
            if let Some(at) = expires.filter(|at| before != Some(*at) && noted != Some(*at)) {
                self.note_expiry(ns, path, at).await?;
                failpoint::pass("s3-expiry-noted");
                noted = Some(at);
            }
            let described = Described {
                md5: Some(new.row.md5),
                is_deleted: new.row.is_deleted,
                version: Some(new.row.version),
                write: Some(write.clone()),
                content_type: new.content_type,
                ours: new.ours,
            };
            let etag = found.as_ref().map(|f| f.object.etag.as_str());
            match self.bucket.put(&key, etag, &described, &new.content).await? {
                Landing::Landed(_) => {
                    failpoint::pass("s3-blob-written");
                    return Ok(Swapped::Done { before: found.map(|f| f.row), row: new.row });
                }
                Landing::Lost if races < RACES => {
                    lost = Some(found.map(|f| f.row));
                    races += 1;
                    if races > 3 {
                        sleep(Duration::from_millis(fastrand::u64(0..=u64::from(races.min(20)) * 5))).await;
                    }
                }
                Landing::Lost => return Err(StoreError::S3(format!("{key}: too many write there at once"))),
                Landing::Unsure(e) if failures < FAILURES => {
                    failures += 1;
                    sleep(Duration::from_millis(10 << (2 * failures))).await;
                    unknown = Some((found, e));
                }
                Landing::Unsure(e) => return Err(e),
            }
        }
    }

    /// Writes `tombstone` over `row`, and keeps no version of that; if something else is there by now, that stays.
    pub async fn overwrite(&self, ns: &str, path: &RelPath, row: &Row, tombstone: &Row) -> Result<(), StoreError> {
        let Some(found) = self.look(ns, path).await?.filter(|found| found.row == *row) else { return Ok(()) };
        let described = Described {
            md5: Some(tombstone.md5),
            is_deleted: true,
            version: Some(tombstone.version),
            write: Some(write_id()),
            ..Described::default()
        };
        let (key, nothing) = (self.layout.blob(ns, path)?, Content::Inline(Bytes::new()));
        match self.bucket.put(&key, Some(&found.object.etag), &described, &nothing).await? {
            Landing::Landed(_) | Landing::Lost => Ok(()),
            Landing::Unsure(e) => Err(e),
        }
    }
}

/// What an object's metadata tells; `None` where the MD5 is missing.
pub fn row(object: &Object) -> Option<Row> {
    let described = &object.described;
    // Of a tombstone without an MD5 nothing is left to derive it from.
    let md5 = described.md5.or_else(|| described.is_deleted.then(|| Md5::of(b"")))?;
    Some(row_with(object, md5))
}

fn row_with(object: &Object, md5: Md5) -> Row {
    let described = &object.described;
    Row {
        md5,
        size: if described.is_deleted { 0 } else { object.size },
        is_deleted: described.is_deleted,
        version: described.version.unwrap_or(object.modified),
    }
}
