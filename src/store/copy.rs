//! From one store to another: every namespace, path, version, tombstone and record.
//!
//! What is there already is left alone, so a copy that broke off is begun again and goes on. Nothing is removed from
//! either store.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream;

use super::{BlobBody, BlobVersion, BodyWriter, GetOutcome, ImportOutcome, IndexEntry, RECORDS, Store, StoreError};
use crate::digest::Md5;
use crate::path::RelPath;

/// Paths under way at once.
const SIDE_BY_SIDE: usize = 16;
/// How often a path is begun again that was written to meanwhile.
const ATTEMPTS: usize = 5;
/// The record that only tells what was seen, and stays what it is where there is one already.
const SEEN: &str = "keys-used";

/// What a copy came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Paths that the source knows, tombstones included.
    pub paths: usize,
    /// Versions and tombstones written.
    pub written: usize,
    /// Versions and tombstones that the target had already.
    pub kept: usize,
    /// Bytes of content written.
    pub bytes: u64,
    /// Private records, such as keys, written.
    pub records: usize,
}

/// Why a copy stopped.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{path}: the source failed: {why}")]
    Source { path: String, why: StoreError },
    #[error("{path}: the target failed: {why}")]
    Target { path: String, why: StoreError },
    #[error("{0}: the source's content is damaged: it does not match its MD5; `memsync store verify` lists all such")]
    Damaged(String),
    #[error("{0}: the target already has something else there; copy into an empty store")]
    Other(String),
    #[error("{0}: it was written again and again meanwhile; stop what writes to the source, and begin again")]
    Restless(String),
    #[error("the record {0:?} is in both stores and differs; copy into an empty store")]
    Record(&'static str),
}

/// Copies all of `from` to `to`, then compares their indexes. `progress` is told of every path that is done.
///
/// # Errors
/// The first thing that could not be copied. What was written before stays.
pub async fn copy(from: &impl Store, to: &impl Store, progress: impl Fn()) -> Result<Copied, CopyError> {
    let mut copied = Copied::default();
    for ns in from.namespaces().await.map_err(source("the namespaces"))? {
        let index = from.index(&ns, 0).await.map_err(source("the index"))?;
        let mut done = stream::iter(index.entries.iter().map(|(path, _)| copy_path(from, to, &ns, path)))
            .buffer_unordered(SIDE_BY_SIDE);
        // What each path was copied as. The blobs tell: an index of another proxy may have other times.
        let mut placed = BTreeMap::new();
        while let Some(part) = done.next().await {
            let (path, newest, part) = part?;
            placed.extend(newest.map(|newest| (path, newest)));
            copied.paths += 1;
            copied.written += part.written;
            copied.kept += part.kept;
            copied.bytes += part.bytes;
            progress();
        }
        drop(done);
        compare(to, &ns, &placed).await?;
    }
    for name in RECORDS {
        copied.records += usize::from(copy_record(from, to, name).await?);
    }
    Ok(copied)
}

fn source(path: &str) -> impl Fn(StoreError) -> CopyError {
    move |why| CopyError::Source { path: path.to_owned(), why }
}

fn target(path: &str) -> impl Fn(StoreError) -> CopyError {
    move |why| CopyError::Target { path: path.to_owned(), why }
}

/// Copies all versions of a path, and gives the newest: `None` where nothing was there any more.
async fn copy_path<'a>(
    from: &impl Store,
    to: &impl Store,
    ns: &str,
    name: &'a str,
) -> Result<(&'a str, Option<BlobVersion>, Copied), CopyError> {
    let mut copied = Copied::default();
    let path = RelPath::parse(name).map_err(|e| source(name)(StoreError::Database(e.to_string())))?;
    for _ in 0..ATTEMPTS {
        let versions = from.versions(ns, &path).await.map_err(source(name))?;
        let newest = versions.first().cloned();
        let mut whole = true;
        for (at, version) in versions.into_iter().enumerate().rev() {
            let body = if version.is_deleted {
                None
            } else {
                match from.get_version(ns, &path, version.version).await.map_err(source(name))? {
                    GetOutcome::Found(blob) => Some(receive(to, name, blob.body, version.md5).await?),
                    // An earlier version went, as versions do; the current one was written over.
                    GetOutcome::Absent | GetOutcome::Tombstone(_) => {
                        whole &= at > 0;
                        continue;
                    }
                }
            };
            let size = version.size;
            match to.import_version(ns, &path, version, body).await.map_err(target(name))? {
                ImportOutcome::Written => {
                    copied.written += 1;
                    copied.bytes += size;
                }
                ImportOutcome::Held => copied.kept += 1,
            }
        }
        if whole {
            return Ok((name, newest, copied));
        }
    }
    Err(CopyError::Restless(name.to_owned()))
}

/// Content on its way over, checked as it goes.
async fn receive<T: Store>(to: &T, name: &str, body: BlobBody, md5: Md5) -> Result<T::BodyWriter, CopyError> {
    let mut incoming = to.new_body();
    let mut hasher = crate::digest::Hasher::new();
    match body {
        BlobBody::Whole(content) => {
            hasher.update(&content);
            incoming.push(content).await.map_err(target(name))?;
        }
        BlobBody::Pieces(mut pieces) => {
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|e| source(name)(StoreError::Database(e.to_string())))?;
                hasher.update(&piece);
                incoming.push(piece).await.map_err(target(name))?;
            }
        }
    }
    if hasher.finish() == md5 { Ok(incoming) } else { Err(CopyError::Damaged(name.to_owned())) }
}

/// Whether the target now says of every path what was placed there.
async fn compare<T: Store>(to: &T, ns: &str, placed: &BTreeMap<&str, BlobVersion>) -> Result<(), CopyError> {
    let there = to.index(ns, 0).await.map_err(target("the index"))?;
    let there: BTreeMap<&str, &IndexEntry> = there.entries.iter().map(|(path, entry)| (path.as_str(), entry)).collect();
    for (path, BlobVersion { version, md5, size, is_deleted, .. }) in placed {
        let is_it = |entry: &&IndexEntry| {
            // Times in an index that is not exact are another proxy's, as may be.
            (entry.md5, entry.size, entry.is_deleted) == (*md5, *size, *is_deleted)
                && (!T::STRONG || entry.version == *version)
        };
        if !there.get(path).is_some_and(is_it) {
            return Err(CopyError::Other((*path).to_owned()));
        }
    }
    Ok(())
}

async fn copy_record(from: &impl Store, to: &impl Store, name: &'static str) -> Result<bool, CopyError> {
    let Some(record) = from.record(name).await.map_err(source(name))? else { return Ok(false) };
    match to.record(name).await.map_err(target(name))? {
        Some(there) if there.content == record.content || name == SEEN => Ok(false),
        Some(_) => Err(CopyError::Record(name)),
        None if to.put_record(name, None, record.content).await.map_err(target(name))? => Ok(true),
        None => Err(CopyError::Record(name)),
    }
}
