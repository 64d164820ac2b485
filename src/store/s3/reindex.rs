//! Repairs an index from the blobs, after a crash between a blob and its entry, or after another proxy lost entries.
//!
//! Proxies may serve meanwhile. Every difference is checked once more after the index was read, and the index is only
//! written over the one that was read, so later changes of a proxy stay.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;

use super::super::{IndexEntry, StoreError};
use super::blobs::BucketBlobs;
use super::bucket::modified;
use super::index_cache::BucketIndex;
use super::index_document::IndexDocument;
use super::index_object::EntryChanges;
use super::layout::flat_name;
use super::listing::ListedObject;
use super::namespace_index::NamespaceIndex;
use crate::digest::Md5;
use crate::path::{self, RelPath};
use crate::protocol::INDEX_NAME;

/// Concurrent requests.
const CONCURRENCY: usize = 32;
/// Attempts of an index write that loses races.
const MAX_RACES: u32 = 50;
/// An entry may be this much older than its object by the store's clock, in milliseconds.
const CLOCK_TOLERANCE_MS: u64 = 60_000;

/// The repair of one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Files and tombstones in the bucket.
    pub blobs: usize,
    pub added: Vec<RelPath>,
    pub corrected: Vec<RelPath>,
    /// Entries without a blob.
    pub dropped: Vec<RelPath>,
    /// Keys that clients cannot name.
    pub left_out: Vec<String>,
}

impl RepairReport {
    pub fn is_nothing(&self) -> bool {
        self.added.is_empty() && self.corrected.is_empty() && self.dropped.is_empty()
    }
}

/// The objects of one namespace.
struct NamespaceListing {
    files: BTreeMap<RelPath, ObjectMeta>,
    /// Keys that clients cannot name.
    left_out: Vec<String>,
    /// The other namespaces, including those that the listing showed.
    others: BTreeSet<String>,
}

/// Repairs the index of `ns`. `others` are the other namespaces with an index. With `trusting` it believes entries whose MD5
/// is the ETag of their blob, and checks only the rest.
pub(super) async fn repair(
    blobs: &BucketBlobs,
    index: &NamespaceIndex,
    ns: &str,
    others: &BTreeSet<String>,
    trusting: bool,
) -> Result<RepairReport, StoreError> {
    let mut listing = list(blobs, ns, others.clone()).await?;
    let left_out = std::mem::take(&mut listing.left_out);
    let mut report = RepairReport { blobs: listing.files.len(), left_out, ..RepairReport::default() };
    let mut truth = BTreeMap::new();
    for race in 0..MAX_RACES {
        let seen = index.read(true).await?;
        // At first every path is doubtful. After a lost race only those that still differ are.
        let doubtful = match race {
            0 => find_doubtful(&listing, &seen.document, trusting),
            _ => differing(&truth, &seen, index),
        };
        truth.extend(read_entries(blobs, ns, &listing.others, doubtful).await?);
        let changes: EntryChanges =
            differing(&truth, &seen, index).into_iter().map(|path| (path.clone(), truth[&path])).collect();
        if changes.is_empty() && (seen.etag.is_some() || report.blobs == 0) {
            return Ok(report);
        }
        if index.replace(&seen, &changes).await? {
            for (path, entry) in changes {
                let list = match (entry, seen.document.entries.contains_key(&path)) {
                    (None, _) => &mut report.dropped,
                    (Some(_), true) => &mut report.corrected,
                    (Some(_), false) => &mut report.added,
                };
                list.push(path);
            }
            return Ok(report);
        }
    }
    Err(StoreError::S3("too many writes change the index; run it again when fewer clients write".to_owned()))
}

/// Lists the files of a namespace, without those of inner namespaces.
async fn list(blobs: &BucketBlobs, ns: &str, mut others: BTreeSet<String>) -> Result<NamespaceListing, StoreError> {
    let (mut named, mut unnamable) = (Vec::new(), Vec::new());
    let folder = blobs.layout.folder(ns)?;
    let mut objects = blobs.bucket.list_all(folder.as_ref());
    while let Some(object) = objects.try_next().await? {
        let meta = match object {
            ListedObject::Named(meta) => meta,
            ListedObject::Unnamable(key) => {
                unnamable.extend(blobs.layout.name_in(ns, &key).filter(|name| !is_private(name)).map(str::to_owned));
                continue;
            }
        };
        let Some(name) = blobs.layout.name_in(ns, meta.location.as_ref()) else { continue };
        // A namespace may have begun since `others` was listed.
        if let Some(begun) = name.strip_suffix(INDEX_NAME).and_then(|folder| folder.strip_suffix('/')) {
            others.insert(flat_name(ns, begun));
        }
        if !is_private(name) {
            named.push((name.to_owned(), meta));
        }
    }
    named.retain(|(name, _)| !is_in_other(ns, name, &others));
    unnamable.retain(|name| !is_in_other(ns, name, &others));
    let (mut files, mut left_out) = (BTreeMap::new(), unnamable);
    for (name, meta) in named {
        match RelPath::parse(&name) {
            Ok(path) => drop(files.insert(path, meta)),
            Err(_) => left_out.push(name),
        }
    }
    Ok(NamespaceListing { files, left_out, others })
}

/// The paths whose entry the listing alone does not confirm.
fn find_doubtful(listing: &NamespaceListing, document: &IndexDocument, trusting: bool) -> Vec<RelPath> {
    let is_trusted = |path: &RelPath, meta: &ObjectMeta| trusting && is_certain(document, path, meta);
    let unsure = listing.files.iter().filter(|(path, meta)| !is_trusted(path, meta)).map(|(path, _)| path);
    let without_blob = document.entries.keys().filter(|path| !listing.files.contains_key(*path));
    unsure.chain(without_blob).cloned().collect()
}

/// Reads the blobs of `paths`. A path in another namespace counts as absent.
async fn read_entries(
    blobs: &BucketBlobs,
    ns: &str,
    others: &BTreeSet<String>,
    paths: Vec<RelPath>,
) -> Result<Vec<(RelPath, Option<IndexEntry>)>, StoreError> {
    futures::stream::iter(paths)
        .map(|path| async move {
            let found = if is_in_other(ns, path.as_str(), others) { None } else { blobs.find(ns, &path).await? };
            Ok::<_, StoreError>((path, found.map(|found| found.entry)))
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}

/// The paths whose blob and entry differ.
fn differing(
    truth: &BTreeMap<RelPath, Option<IndexEntry>>,
    seen: &BucketIndex,
    index: &NamespaceIndex,
) -> Vec<RelPath> {
    truth
        .iter()
        .filter(|(path, entry)| match (seen.document.entries.get(*path), entry) {
            (None, Some(entry)) => !index.is_forgotten(entry),
            (has, entry) => has != entry.as_ref(),
        })
        .map(|(path, _)| path.clone())
        .collect()
}

/// True if the listing confirms the entry: in most stores the ETag is the content's MD5.
fn is_certain(document: &IndexDocument, path: &RelPath, meta: &ObjectMeta) -> bool {
    let etag = meta.e_tag.as_deref().and_then(|etag| etag.trim_matches('"').parse::<Md5>().ok());
    document.entries.get(path).is_some_and(|entry| {
        // An empty object may be an empty file or a tombstone. A later write of the same content shows only in the time.
        !entry.is_deleted
            && meta.size > 0
            && (etag, meta.size) == (Some(entry.md5), entry.size)
            && entry.version.saturating_add(CLOCK_TOLERANCE_MS) >= modified(meta)
    })
}

/// True for an index, and for anything below a `.memsync` folder.
fn is_private(name: &str) -> bool {
    name.split('/').any(|part| part == INDEX_NAME || path::is_private(part))
}

/// True if the name in `ns` belongs to an inner namespace.
fn is_in_other(ns: &str, name: &str, others: &BTreeSet<String>) -> bool {
    name.match_indices('/').any(|(at, _)| others.contains(&flat_name(ns, &name[..at])))
}

/// The namespaces that have an index, including `""` if it has one.
pub(super) async fn namespaces(blobs: &BucketBlobs) -> Result<BTreeSet<String>, StoreError> {
    let folder = blobs.layout.folder("")?;
    let mut found = BTreeSet::new();
    let mut objects = blobs.bucket.list(folder.as_ref());
    while let Some(meta) = objects.try_next().await? {
        let name = blobs.layout.name_in("", meta.location.as_ref());
        if let Some(ns) = name.and_then(|name| name.strip_suffix(INDEX_NAME)) {
            if ns.is_empty() {
                found.insert(String::new());
            } else if let Some(ns) = ns.strip_suffix('/').filter(|ns| !is_private(ns)) {
                found.insert(ns.to_owned());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_belongs_to_the_deepest_namespace() {
        let others: BTreeSet<String> = ["", "team", "team/a"].map(str::to_owned).into();
        assert!(!is_in_other("", "notes/x.md", &others));
        assert!(is_in_other("", "team/x.md", &others));
        assert!(is_in_other("team", "a/x.md", &others));
        assert!(!is_in_other("team", "b/x.md", &others));
        assert!(!is_in_other("team/a", "x.md", &others));
    }

    #[test]
    fn private_names_are_not_files() {
        assert!(is_private(".sync-index.json") && is_private("a/.sync-index.json") && is_private(".memsync/keys"));
        assert!(!is_private("a/index.json") && !is_private("memsync/a"));
    }
}
