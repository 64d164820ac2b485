//! Earlier versions. Before a blob is replaced or deleted, the bucket copies it to a folder beside the prefix, which other
//! proxies do not list.
//!
//! A copy has a unique name and never changes, so copies need no compare-and-swap. A writer that loses its race or crashes
//! leaves at most one copy too many. The name has the version, and when it was replaced. If the blob changed before it was
//! copied, the copy's metadata contradicts its name, and the copy is ignored.

use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path as Key;

use super::super::{
    BlobBody, BlobVersion, GetOutcome, IndexEntry, Retention, StoreError, StoredBlob, SweepReport, rules,
};
use super::blobs::BucketBlobs;
use super::bucket::{FetchOutcome, ObjectInfo};
use super::core::{S3Core, read_small};
use super::layout::VERSIONS;
use crate::digest::Md5;
use crate::path::RelPath;

/// Concurrent requests.
const CONCURRENCY: usize = 16;
/// Age in milliseconds after which a second copy of a version may be removed. A younger one may belong to a write in flight.
const SETTLED_MS: u64 = 3600 * 1000;

/// A copy of an earlier version, as its name describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct VersionCopy {
    key: Key,
    entry: IndexEntry,
    /// When it was replaced: milliseconds since the epoch.
    until: u64,
}

impl VersionCopy {
    fn parse(key: &Key, size: u64) -> Option<Self> {
        let mut parts = key.filename()?.split('-');
        let (version, until, md5) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let entry = IndexEntry { md5: md5.parse().ok()?, size, is_deleted: false, version, cursor: 0 };
        parts.next()?;
        Some(Self { key: key.clone(), entry, until })
    }

    /// True if the copy's object is the version in its name.
    fn matches(&self, object: &ObjectInfo) -> bool {
        let metadata = &object.metadata;
        !metadata.is_deleted
            && metadata.version.is_none_or(|version| version == self.entry.version)
            && metadata.md5.is_none_or(|md5| md5 == self.entry.md5)
    }
}

impl S3Core {
    /// The versions of `path`, the newest first. The first is its entry.
    pub(super) async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        let (found, ()) = tokio::try_join!(self.blobs.find(ns, path), self.check_owner(ns, path))?;
        let Some(found) = found else { return Ok(Vec::new()) };
        let (mut candidates, mut distinct, mut last) = (Vec::new(), 0, found.entry.version);
        for copy in self.blobs.version_copies(ns, path).await? {
            // A copy of the current version belongs to a write that failed, or that is in flight.
            if copy.entry.version >= found.entry.version {
                continue;
            }
            distinct += u32::from(copy.entry.version != last);
            last = copy.entry.version;
            if distinct > self.blobs.retention.versions {
                break;
            }
            candidates.push(copy);
        }
        let mut all = vec![BlobVersion { entry: found.entry, meta: found.object.metadata.meta }];
        let mut objects = stream::iter(candidates)
            .map(|copy| async move { self.blobs.bucket.head(&copy.key).await.map(|object| (copy, object)) })
            .buffered(CONCURRENCY);
        while let Some((copy, object)) = objects.try_next().await? {
            let Some(object) = object.filter(|object| copy.matches(object)) else { continue };
            if all.last().is_some_and(|newer| newer.entry.version > copy.entry.version) {
                all.push(BlobVersion { entry: copy.entry, meta: object.metadata.meta });
            }
        }
        Ok(all)
    }

    /// Reads the version `wanted` of `path`, current or earlier.
    pub(super) async fn get_version(&self, ns: &str, path: &RelPath, wanted: u64) -> Result<GetOutcome, StoreError> {
        let (found, ()) = tokio::try_join!(self.blobs.find(ns, path), self.check_owner(ns, path))?;
        if found.is_some_and(|found| found.entry.version == wanted) {
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
        for copy in copies.into_iter().filter(|copy| copy.entry.version == wanted) {
            let FetchOutcome::Found(object, body) = self.blobs.bucket.get(&copy.key, None).await? else { continue };
            if !copy.matches(&object) {
                continue;
            }
            let body = read_small(body, object.size).await?;
            if matches!(&body, BlobBody::Whole(content) if Md5::of(content) != copy.entry.md5) {
                continue;
            }
            let entry = IndexEntry { size: object.size, ..copy.entry };
            return Ok(GetOutcome::Found(StoredBlob { entry, meta: object.metadata.meta, body }));
        }
        Ok(GetOutcome::Absent)
    }
}

impl BucketBlobs {
    /// Copies the blob `old` that the version `until` is about to replace. The copy is durable when this returns.
    pub(super) async fn copy_version(
        &self,
        ns: &str,
        path: &RelPath,
        old: &IndexEntry,
        until: u64,
    ) -> Result<(), StoreError> {
        let name = format!("{:020}-{until:020}-{}-{:08x}", old.version, old.md5, fastrand::u32(..));
        let from = self.layout.blob(ns, path)?;
        let to = self.layout.beside(&format!("{}/{name}", self.layout.versions_folder(ns, path)))?;
        // If the blob is gone, the write notices it.
        self.bucket.copy(&from, &to).await.map(drop)
    }

    /// The copies of a path's earlier versions, the newest first.
    async fn version_copies(&self, ns: &str, path: &RelPath) -> Result<Vec<VersionCopy>, StoreError> {
        if !self.keeps_versions {
            return Ok(Vec::new());
        }
        let folder = self.layout.beside(&self.layout.versions_folder(ns, path))?;
        let objects = self.bucket.list(Some(&folder));
        let all = objects.try_filter_map(async |meta| Ok(VersionCopy::parse(&meta.location, meta.size)));
        let mut all: Vec<VersionCopy> = all.try_collect().await?;
        newest_first(&mut all);
        Ok(all)
    }

    /// Removes copies that are past their retention, and second copies of a version. Counts them in `report`, and goes on
    /// after a failure. Gives the first failure.
    pub(super) async fn sweep_copies(&self, report: &mut SweepReport) -> Result<(), StoreError> {
        let mut objects = self.bucket.list(Some(&self.layout.beside(VERSIONS)?));
        // Each path has a folder, and a listing has the copies of one folder in a row.
        let (mut current, mut copies, mut done) = (String::new(), Vec::new(), Ok(()));
        loop {
            let meta = match objects.try_next().await {
                Ok(Some(meta)) => meta,
                Ok(None) => return done.and(self.sweep_folder(copies, report).await),
                // Leave the last folder: the listing may lack its newest versions.
                Err(e) => return done.and(Err(e)),
            };
            let Some(copy) = VersionCopy::parse(&meta.location, meta.size) else { continue };
            let folder = meta.location.as_ref().rsplit_once('/').map_or("", |(folder, _)| folder);
            if folder != current {
                done = done.and(self.sweep_folder(std::mem::take(&mut copies), report).await);
                folder.clone_into(&mut current);
            }
            copies.push(copy);
        }
    }

    async fn sweep_folder(&self, copies: Vec<VersionCopy>, report: &mut SweepReport) -> Result<(), StoreError> {
        let SurplusCopies { mut expired, duplicates } = find_surplus(copies, &self.retention, (self.clock)());
        let mut done = Ok(());
        for copies in duplicates {
            match self.surplus_duplicates(copies).await {
                Ok(surplus) => expired.extend(surplus),
                Err(e) => done = done.and(Err(e)),
            }
        }
        let mut removals = stream::iter(expired)
            .map(|copy| async move { self.bucket.remove(&copy.key).await })
            .buffer_unordered(CONCURRENCY);
        while let Some(removed) = removals.next().await {
            report.versions += usize::from(removed.is_ok());
            done = done.and(removed);
        }
        done
    }

    /// All copies of one version except the first that matches its name.
    async fn surplus_duplicates(&self, copies: Vec<VersionCopy>) -> Result<Vec<VersionCopy>, StoreError> {
        let mut surplus = Vec::new();
        let mut found = false;
        for copy in copies {
            let object = self.bucket.head(&copy.key).await?;
            let is_kept = !found && object.is_some_and(|object| copy.matches(&object));
            found |= is_kept;
            if !is_kept {
                surplus.push(copy);
            }
        }
        Ok(surplus)
    }
}

fn newest_first(copies: &mut [VersionCopy]) {
    copies.sort_unstable_by(|a, b| (b.entry.version, &b.key).cmp(&(a.entry.version, &a.key)));
}

/// Copies of one path that a sweep may remove.
struct SurplusCopies {
    expired: Vec<VersionCopy>,
    /// Several copies of one version each. One of them must stay.
    duplicates: Vec<Vec<VersionCopy>>,
}

fn find_surplus(mut copies: Vec<VersionCopy>, retention: &Retention, now: u64) -> SurplusCopies {
    let oldest = rules::time_before(now, retention.age);
    newest_first(&mut copies);
    let mut versions: Vec<Vec<VersionCopy>> = Vec::new();
    let mut expired = Vec::new();
    for copy in copies {
        let count = versions.len();
        let duplicates = versions.last_mut().filter(|copies| copies[0].entry.version == copy.entry.version);
        let newer = if duplicates.is_some() { count - 1 } else { count };
        match duplicates {
            _ if copy.until < oldest && newer >= retention.ageless as usize => expired.push(copy),
            Some(duplicates) => duplicates.push(copy),
            None if count < retention.versions as usize => versions.push(vec![copy]),
            None => expired.push(copy),
        }
    }
    let is_settled = |copies: &[VersionCopy]| copies.iter().all(|copy| copy.until.saturating_add(SETTLED_MS) < now);
    let duplicates = versions.into_iter().filter(|copies| copies.len() > 1 && is_settled(copies)).collect();
    SurplusCopies { expired, duplicates }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn copy(version: u64, until: u64, of: &str) -> VersionCopy {
        let name = format!("m.memsync/v/h/{version:020}-{until:020}-{}-{:08x}", Md5::of(b"x"), of.len());
        VersionCopy::parse(&Key::from(name), 1).unwrap()
    }

    #[test]
    fn other_names_are_not_copies() {
        for name in ["a/b", "a/1-2-3-4", "a/1-2", "a/1-2-0cc175b9c0f1b6a831c399e269772661"] {
            assert_eq!(VersionCopy::parse(&Key::from(name), 1), None, "{name}");
        }
        assert_eq!((copy(7, 9, "").entry.version, copy(7, 9, "").until), (7, 9));
    }

    #[test]
    fn newest_copies_stay_for_their_retention() {
        let age = Duration::from_millis(10);
        let retention = Retention { versions: 2, ageless: 0, age, ..Retention::default() };
        let versions = |copies: &[VersionCopy]| copies.iter().map(|c| c.entry.version).collect::<Vec<_>>();
        let all = vec![copy(3, 4, ""), copy(1, 2, ""), copy(4, 5, ""), copy(2, 3, "")];
        assert_eq!(versions(&find_surplus(all.clone(), &retention, 6).expired), [2, 1]);
        assert_eq!(versions(&find_surplus(all.clone(), &retention, 15).expired), [3, 2, 1]);
        assert_eq!(versions(&find_surplus(all.clone(), &retention, 16).expired), [4, 3, 2, 1]);
        let ageless = Retention { versions: 20, ageless: 3, ..retention };
        assert_eq!(versions(&find_surplus(all, &ageless, 1000).expired), [1], "the newest stay whatever their age");
    }

    #[test]
    fn duplicates_count_once_and_stay_while_writes_may_run() {
        let retention = Retention { versions: 2, ..Retention::default() };
        let all = vec![copy(3, 4, ""), copy(3, 4, "other"), copy(2, 3, "")];
        let of_the_newest = Retention { ageless: 1, age: Duration::ZERO, ..retention };
        assert_eq!(find_surplus(all.clone(), &of_the_newest, 100).expired.len(), 1, "both copies of the newest stay");
        let early = find_surplus(all.clone(), &retention, 5);
        assert!(early.expired.is_empty() && early.duplicates.is_empty());
        let late = find_surplus(all, &retention, SETTLED_MS + 5);
        assert!(late.expired.is_empty());
        assert_eq!(late.duplicates.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    }
}
