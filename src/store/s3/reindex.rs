//! The index made right again from the blobs: after a crash between a blob and its entry, or where a proxy without
//! compare-and-swap has lost entries.
//!
//! It may run beside proxies that serve. Every difference is looked at once more after the index was read, and the
//! index is only written where it is still what was read: what a proxy records later stands.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;

use super::super::StoreError;
use super::blobs::Blobs;
use super::borders::joined;
use super::bucket::modified;
use super::index::{Document, Row};
use super::ledger::Ledger;
use super::listing::Listed;
use super::seen::Kept;
use crate::digest::Md5;
use crate::path::{self, RelPath};
use crate::protocol::INDEX_NAME;

/// Objects looked at side by side.
const SIDE_BY_SIDE: usize = 32;
/// How often a lost race for the index is run again.
const RACES: u32 = 50;

/// What was mended in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Files and tombstones that are there.
    pub blobs: usize,
    pub added: Vec<RelPath>,
    pub corrected: Vec<RelPath>,
    /// Entries without a blob.
    pub dropped: Vec<RelPath>,
    /// Keys that are no name a client could use.
    pub left_out: Vec<String>,
}

impl RepairReport {
    pub fn is_nothing(&self) -> bool {
        self.added.is_empty() && self.corrected.is_empty() && self.dropped.is_empty()
    }
}

/// Mends the index of `ns`; `others` are namespaces that have an index of their own, and those that begin are seen.
/// `trusting` believes an entry whose blob still has the entry's MD5 for its ETag, and looks at the others alone.
///
/// # Errors
/// What the store says.
pub async fn mend(
    blobs: &Blobs,
    ledger: &Ledger,
    ns: &str,
    others: &BTreeSet<String>,
    trusting: bool,
) -> Result<RepairReport, StoreError> {
    let mut mended = RepairReport::default();
    let (mut listed, mut odd, mut others) = (Vec::new(), Vec::new(), others.clone());
    let folder = blobs.layout.folder(ns)?;
    let mut objects = blobs.bucket.list_all(folder.as_ref());
    while let Some(object) = objects.try_next().await? {
        let meta = match object {
            Listed::Object(meta) => meta,
            Listed::Odd(key) => {
                odd.extend(blobs.layout.below(ns, &key).filter(|name| !is_private(name)).map(str::to_owned));
                continue;
            }
        };
        let Some(name) = blobs.layout.below(ns, meta.location.as_ref()) else { continue };
        // A namespace that began since the others were listed has its files to itself as well.
        if let Some(begun) = name.strip_suffix(INDEX_NAME).and_then(|folder| folder.strip_suffix('/')) {
            others.insert(joined(ns, begun));
        }
        if !is_private(name) {
            listed.push((name.to_owned(), meta));
        }
    }
    listed.retain(|(name, _)| !is_anothers(ns, name, &others));
    odd.retain(|name| !is_anothers(ns, name, &others));
    mended.left_out = odd;
    let (mut found, others) = (BTreeMap::new(), &others);
    for (name, meta) in listed {
        match RelPath::parse(&name) {
            Ok(path) => drop(found.insert(path, meta)),
            Err(_) => mended.left_out.push(name),
        }
    }
    let listed = found;
    mended.blobs = listed.len();

    // Everything is a suspect at first; later only what still differs is.
    let mut truth = BTreeMap::new();
    let mut first = true;
    for _ in 0..RACES {
        let seen = ledger.fresh_or_empty().await?;
        let suspects: Vec<RelPath> = if first {
            let trusted = |path: &RelPath, meta: &ObjectMeta| trusting && is_certain(&seen.document, path, meta);
            let unsure = listed.iter().filter(|(path, meta)| !trusted(path, meta)).map(|(path, _)| path);
            unsure.chain(seen.document.rows.keys().filter(|path| !listed.contains_key(*path))).cloned().collect()
        } else {
            differing(&truth, &seen, ledger)
        };
        first = false;
        let found: Vec<(RelPath, Option<Row>)> = futures::stream::iter(suspects)
            .map(|path| async move {
                // What lies in another namespace is none of this one's files.
                let is_ours = !is_anothers(ns, path.as_str(), others);
                let found = if is_ours { blobs.look(ns, &path).await? } else { None };
                Ok::<_, StoreError>((path, found.map(|f| f.row)))
            })
            .buffer_unordered(SIDE_BY_SIDE)
            .try_collect()
            .await?;
        truth.extend(found);
        let changes: BTreeMap<RelPath, Option<Row>> =
            differing(&truth, &seen, ledger).into_iter().map(|path| (path.clone(), truth[&path])).collect();
        if changes.is_empty() && (seen.etag.is_some() || mended.blobs == 0) {
            return Ok(mended);
        }
        if ledger.replace(&seen, &changes).await? {
            for (path, row) in changes {
                let list = match (row, seen.document.rows.contains_key(&path)) {
                    (None, _) => &mut mended.dropped,
                    (Some(_), true) => &mut mended.corrected,
                    (Some(_), false) => &mut mended.added,
                };
                list.push(path);
            }
            return Ok(mended);
        }
    }
    Err(StoreError::S3("the index is being written by too many; run it again when there is less to do".to_owned()))
}

/// The paths of which blobs and index say different things.
fn differing(truth: &BTreeMap<RelPath, Option<Row>>, seen: &Kept, ledger: &Ledger) -> Vec<RelPath> {
    let is_owed = |row: &Row| !ledger.is_forgotten(row);
    truth
        .iter()
        .filter(|(path, row)| match (seen.document.rows.get(*path), row) {
            (None, Some(row)) => is_owed(row),
            (has, row) => has != row.as_ref(),
        })
        .map(|(path, _)| path.clone())
        .collect()
}

/// Whether the listing alone shows that the entry is right: most stores give a content's MD5 for its ETag.
fn is_certain(document: &Document, path: &RelPath, meta: &ObjectMeta) -> bool {
    let etag = meta.e_tag.as_deref().and_then(|etag| etag.trim_matches('"').parse::<Md5>().ok());
    document.rows.get(path).is_some_and(|row| {
        // An empty body may be an empty file or a tombstone, and a write of the same content shows in the time alone:
        // by the store's clock, in seconds.
        !row.is_deleted
            && meta.size > 0
            && (etag, meta.size) == (Some(row.md5), row.size)
            && row.version.saturating_add(60_000) >= modified(meta)
    })
}

/// Whether the index or what is below `.memsync` at any depth.
fn is_private(name: &str) -> bool {
    name.split('/').any(|part| part == INDEX_NAME || path::is_private(part))
}

/// Whether a key below `ns` is in a namespace further down, which has an index of its own.
fn is_anothers(ns: &str, name: &str, others: &BTreeSet<String>) -> bool {
    name.match_indices('/').any(|(at, _)| others.contains(&joined(ns, &name[..at])))
}

/// The namespaces that have an index, `""` included where it has one.
pub async fn namespaces(blobs: &Blobs) -> Result<BTreeSet<String>, StoreError> {
    let folder = blobs.layout.folder("")?;
    let mut found = BTreeSet::new();
    let mut objects = blobs.bucket.list(folder.as_ref());
    while let Some(meta) = objects.try_next().await? {
        let below = blobs.layout.below("", meta.location.as_ref());
        if let Some(ns) = below.and_then(|name| name.strip_suffix(INDEX_NAME)) {
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
    fn a_key_belongs_to_the_deepest_namespace_with_an_index() {
        let others: BTreeSet<String> = ["", "team", "team/a"].map(str::to_owned).into();
        assert!(!is_anothers("", "notes/x.md", &others));
        assert!(is_anothers("", "team/x.md", &others));
        assert!(is_anothers("team", "a/x.md", &others));
        assert!(!is_anothers("team", "b/x.md", &others));
        assert!(!is_anothers("team/a", "x.md", &others));
    }

    #[test]
    fn what_is_private_is_no_file() {
        assert!(is_private(".sync-index.json") && is_private("a/.sync-index.json") && is_private(".memsync/keys"));
        assert!(!is_private("a/index.json") && !is_private("memsync/a"));
    }
}
