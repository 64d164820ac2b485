//! Copies every namespace, path, version, tombstone and record from one store to another.
//!
//! A copy never overwrites newer versions in the target, so an interrupted copy can be run again. It removes nothing.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream;

use super::{
    BlobBody, BodyWriter, GetOutcome, ImportOutcome, IndexEntry, KEY_USES_RECORD, KEYS_RECORD, NamespaceName, Store,
    StoreError,
};
use crate::digest::{Md5, Md5Hasher};
use crate::path::RelPath;

/// Paths that are copied at the same time.
const CONCURRENT_PATHS: usize = 16;
/// Attempts for a path whose versions change during the copy.
const ATTEMPTS: usize = 5;
/// The records to copy. The record of the clock describes a machine, so it is left out.
const RECORDS: &[&str] = &[KEYS_RECORD, KEY_USES_RECORD];

/// Counts of one copy, and everything that it could not copy.
#[derive(Debug, Default)]
pub struct CopyReport {
    /// Copied paths, tombstones included.
    pub paths: usize,
    /// Versions and tombstones written.
    pub written: usize,
    /// Versions and tombstones that the target already had.
    pub kept: usize,
    /// Bytes of content written.
    pub bytes: u64,
    /// Private records written.
    pub records: usize,
    /// One error for each path, index or record that is not copied.
    pub failures: Vec<CopyError>,
}

/// Why one path, index or record is not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{path}: cannot read it from the source: {why}")]
    Source { path: String, why: StoreError },
    #[error("{path}: cannot write it to the target: {why}")]
    Target { path: String, why: StoreError },
    #[error("{0}: the source's content does not match its MD5; `memsync store verify` lists all damaged files")]
    Damaged(String),
    #[error("{0}: the target already has another version; copy into an empty store")]
    Conflict(String),
    #[error("{0}: it changed {ATTEMPTS} times during the copy; stop the writers to the source and copy again")]
    Unstable(String),
    #[error("the record {0:?} differs between the two stores; copy into an empty store")]
    Record(&'static str),
}

/// Versions of one path that were written or already there.
#[derive(Default)]
struct CopiedPath {
    /// `None` if the source no longer has the path.
    newest: Option<IndexEntry>,
    written: usize,
    kept: usize,
    bytes: u64,
}

/// Copies everything, then compares the indexes of both stores. Calls `progress` after every path.
///
/// # Errors
/// Only if the source cannot list its namespaces. Every other failure is in [`CopyReport::failures`].
pub async fn copy(from: &impl Store, to: &impl Store, progress: impl Fn()) -> Result<CopyReport, CopyError> {
    let mut report = CopyReport::default();
    for ns in from.namespaces().await.map_err(source("the list of namespaces"))? {
        copy_namespace(from, to, &ns, &mut report, &progress).await;
    }
    for name in RECORDS {
        match copy_record(from, to, name).await {
            Ok(is_written) => report.records += usize::from(is_written),
            Err(e) => report.failures.push(e),
        }
    }
    Ok(report)
}

async fn copy_namespace(from: &impl Store, to: &impl Store, ns: &str, report: &mut CopyReport, progress: &impl Fn()) {
    let index = match from.index(ns, 0).await.map_err(source(&index_name(ns))) {
        Ok(index) => index,
        Err(e) => return report.failures.push(e),
    };
    let copies = index.entries.iter().map(|(path, _)| async move { (path, copy_path(from, to, ns, path).await) });
    let mut copies = stream::iter(copies).buffer_unordered(CONCURRENT_PATHS);
    // Compare with the versions of the blobs: an index that another proxy wrote may have other times.
    let mut newest = BTreeMap::new();
    while let Some((path, copied)) = copies.next().await {
        match copied {
            Ok(copied) => {
                newest.extend(copied.newest.map(|entry| (path.as_str(), entry)));
                report.paths += 1;
                report.written += copied.written;
                report.kept += copied.kept;
                report.bytes += copied.bytes;
            }
            Err(e) => report.failures.push(e),
        }
        progress();
    }
    match find_conflicts(to, ns, &newest).await {
        Ok(conflicts) => report.failures.extend(conflicts),
        Err(e) => report.failures.push(e),
    }
}

/// Copies all versions of a path, the oldest first.
async fn copy_path(from: &impl Store, to: &impl Store, ns: &str, path: &str) -> Result<CopiedPath, CopyError> {
    let name = &full_name(ns, path);
    let path = RelPath::parse(path).map_err(|e| source(name)(StoreError::Database(e.to_string())))?;
    let mut copied = CopiedPath::default();
    'attempts: for _ in 0..ATTEMPTS {
        let versions = from.versions(ns, &path).await.map_err(source(name))?;
        copied.newest = versions.first().map(|version| version.entry);
        for (at, version) in versions.into_iter().enumerate().rev() {
            let body = match read_body(from, to, ns, &path, &version.entry).await? {
                Some(body) => Some(body),
                None if version.entry.is_deleted => None,
                // Retention removed an earlier version.
                None if at > 0 => continue,
                // The current version was replaced.
                None => continue 'attempts,
            };
            let size = version.entry.size;
            match to.import_version(ns, &path, version, body).await.map_err(target(name))? {
                ImportOutcome::Written => {
                    copied.written += 1;
                    copied.bytes += size;
                }
                ImportOutcome::Held => copied.kept += 1,
            }
        }
        return Ok(copied);
    }
    Err(CopyError::Unstable(name.clone()))
}

/// Reads one version and checks its MD5. `None` for a tombstone and for a version that is gone.
async fn read_body(
    from: &impl Store,
    to: &impl Store,
    ns: &str,
    path: &RelPath,
    version: &IndexEntry,
) -> Result<Option<BodyWriter>, CopyError> {
    if version.is_deleted {
        return Ok(None);
    }
    let name = &full_name(ns, path.as_str());
    match from.read(ns, path, Some(version.version)).await.map_err(source(name))? {
        GetOutcome::Found(blob) => receive(to, name, blob.body, version.md5).await.map(Some),
        GetOutcome::Absent | GetOutcome::Tombstone(_) => Ok(None),
    }
}

async fn receive(to: &impl Store, name: &str, body: BlobBody, md5: Md5) -> Result<BodyWriter, CopyError> {
    let mut copy = to.new_body();
    let mut hasher = Md5Hasher::new();
    match body {
        BlobBody::Whole(content) => {
            hasher.update(&content);
            copy.push(content).await.map_err(target(name))?;
        }
        BlobBody::Pieces(mut pieces) => {
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|e| source(name)(StoreError::Database(e.to_string())))?;
                hasher.update(&piece);
                copy.push(piece).await.map_err(target(name))?;
            }
        }
    }
    if hasher.finish() == md5 { Ok(copy) } else { Err(CopyError::Damaged(name.to_owned())) }
}

/// One error for each path whose entry in the target's index is not the version that was copied.
async fn find_conflicts<T: Store>(
    to: &T,
    ns: &str,
    newest: &BTreeMap<&str, IndexEntry>,
) -> Result<Vec<CopyError>, CopyError> {
    let index = to.index(ns, 0).await.map_err(target(&index_name(ns)))?;
    let entries: BTreeMap<&str, &IndexEntry> =
        index.entries.iter().map(|(path, entry)| (path.as_str(), entry)).collect();
    let is_copied = |path: &str, copied: &IndexEntry| {
        entries.get(path).is_some_and(|entry| {
            (entry.md5, entry.size, entry.is_deleted) == (copied.md5, copied.size, copied.is_deleted)
                // In a weak index the time may be another proxy's.
                && (!T::STRONG || entry.version == copied.version)
        })
    };
    let conflicts = newest.iter().filter(|(path, copied)| !is_copied(path, copied));
    Ok(conflicts.map(|(path, _)| CopyError::Conflict(full_name(ns, path))).collect())
}

/// True if the record was written.
async fn copy_record(from: &impl Store, to: &impl Store, name: &'static str) -> Result<bool, CopyError> {
    let Some(record) = from.record(name).await.map_err(source(name))? else { return Ok(false) };
    match to.record(name).await.map_err(target(name))? {
        // No decision depends on the last uses, so those of the target stay.
        Some(held) if held.content == record.content || name == KEY_USES_RECORD => Ok(false),
        Some(_) => Err(CopyError::Record(name)),
        None if to.put_record(name, None, record.content).await.map_err(target(name))? => Ok(true),
        None => Err(CopyError::Record(name)),
    }
}

/// The path as errors name it.
fn full_name(ns: &str, path: &str) -> String {
    if ns.is_empty() { path.to_owned() } else { format!("{ns}: {path}") }
}

fn index_name(ns: &str) -> String {
    format!("the index of {}", NamespaceName(ns.to_owned()))
}

fn source(path: &str) -> impl Fn(StoreError) -> CopyError {
    move |why| CopyError::Source { path: path.to_owned(), why }
}

fn target(path: &str) -> impl Fn(StoreError) -> CopyError {
    move |why| CopyError::Target { path: path.to_owned(), why }
}
