//! Keeps namespaces apart.
//!
//! In this layout the file `x` of the namespace `team` and the flat file `team/x` are the same object. A key for one
//! namespace must not reach another's files by their longer name, and no file may be in two indexes. So a path that leads
//! into an inner namespace is refused, and so is a new namespace in whose folder an outer one has files.
//!
//! A proxy does not know of the others, so it checks again after a write. After a new entry it looks for inner namespaces,
//! and after a new index for files in its folder. The second of two writers sees the first.

use std::time::Instant;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::super::{IndexEntry, NamespaceName, StoreError, rules};
use super::core::S3Core;
use super::index_object::WriteInFlight;
use super::layout::flat_name;
use super::namespace_cache::fresh_since;
use crate::digest::Md5;
use crate::path::RelPath;

/// Concurrent requests for the folders of one path.
const CONCURRENCY: usize = 8;

impl S3Core {
    /// Refuses a path that belongs to another namespace with [`StoreError::OtherNamespace`]: to an inner one, or, if `ns`
    /// does not exist, to an outer one.
    pub(super) async fn check_owner(&self, ns: &str, path: &RelPath) -> Result<(), StoreError> {
        if let Err(refused) = self.refuse_inner_namespace(ns, path, fresh_since()).await {
            if let StoreError::OtherNamespace { namespace, .. } = &refused {
                self.remove_foreign_entry(ns, path, &namespace.0).await?;
            }
            return Err(refused);
        }
        if ns.is_empty() || self.index(ns)?.exists().await? {
            return Ok(());
        }
        self.namespaces.wait_for_repair().await?;
        for outer in self.existing_namespaces(outer_namespaces(ns), fresh_since()).await? {
            let name = format!("{}/{path}", relative_to(&outer, ns));
            let index = self.index(&outer)?.fresh().await?;
            if index.document.entries.contains_key(name.as_str()) {
                return Err(other_namespace(ns, path, outer));
            }
        }
        Ok(())
    }

    /// Removes the entry of a path that belongs to `owner` from the index of `ns`. Its writer failed before it noticed the
    /// owner. An owner without entries may be younger than the entry, and gives way to it.
    async fn remove_foreign_entry(&self, ns: &str, path: &RelPath, owner: &str) -> Result<(), StoreError> {
        let index = self.index(ns)?;
        if !index.has_file(path) || self.index(owner)?.fresh().await?.document.entries.is_empty() {
            return Ok(());
        }
        match index.cached().and_then(|index| index.document.entries.get(path).copied()) {
            Some(entry) => index.amend(path, &entry, None).await,
            None => Ok(()),
        }
    }

    /// Refuses a path of an inner namespace with [`StoreError::OtherNamespace`]. Facts from `since` or later count.
    async fn refuse_inner_namespace(&self, ns: &str, path: &RelPath, since: Instant) -> Result<(), StoreError> {
        let folders = path.ancestors().map(|folder| flat_name(ns, folder)).collect();
        // The deepest comes first, and it owns the file.
        let owner = self.existing_namespaces(folders, since).await?.into_iter().next();
        owner.map_or(Ok(()), |owner| Err(other_namespace(ns, path, owner)))
    }

    /// Records the blob `entry`, which replaced `before`. A namespace that begins meanwhile is refused if it sees the
    /// entry. If it checked before the entry was there, this call sees the namespace, undoes the write, and fails with
    /// [`StoreError::OtherNamespace`].
    pub(super) async fn record_write(
        &self,
        ns: &str,
        path: &RelPath,
        before: Option<IndexEntry>,
        entry: IndexEntry,
        in_flight: Option<WriteInFlight>,
    ) -> Result<(), StoreError> {
        let index = self.index(ns)?;
        let was_live = before.is_some_and(|before| !before.is_deleted);
        // A new namespace has seen a file that was listed all the time, and it does not mind tombstones.
        let needs_no_check = entry.is_deleted || was_live && index.has_file(path);
        index.record(path, entry, in_flight).await?;
        if needs_no_check {
            return Ok(());
        }
        match self.refuse_inner_namespace(ns, path, Instant::now()).await {
            Err(StoreError::OtherNamespace { path: name, namespace }) => {
                self.undo_write(ns, path, before, entry, (&name, &namespace.0)).await?;
                Err(StoreError::OtherNamespace { path: name, namespace })
            }
            other => other,
        }
    }

    /// Undoes the write of a file that belongs to the namespace `owner`. `name` is the flat name of the file.
    async fn undo_write(
        &self,
        ns: &str,
        path: &RelPath,
        before: Option<IndexEntry>,
        entry: IndexEntry,
        (name, owner): (&str, &str),
    ) -> Result<(), StoreError> {
        let was_live = before.is_some_and(|before| !before.is_deleted);
        let version = rules::next_version((self.blobs.clock)(), Some(&entry));
        let md5 = before.map_or_else(|| Md5::of(b""), |before| before.md5);
        let tombstone = IndexEntry { md5, size: 0, is_deleted: true, version, cursor: 0 };
        // S3 has no conditional delete, so a tombstone replaces the blob. A blob that replaced live content stays, because
        // its writer knew that content.
        if !was_live {
            self.blobs.replace_by_tombstone(ns, path, &entry, &tombstone).await?;
        }
        let was_deleted = before.filter(|before| before.is_deleted);
        self.index(ns)?.amend(path, &entry, was_deleted.map(|_| tombstone)).await?;
        if was_live && let Ok(inner) = RelPath::parse(relative_to(owner, name)) {
            // The blob belongs to the owner, whose index still has the old entry. Request a comparison.
            self.index(owner)?.compare(&inner, &entry);
        }
        Ok(())
    }

    /// Creates the namespace's index if it is missing, or refuses the namespace with [`StoreError::NamespaceOccupied`].
    pub(super) async fn begin_namespace(&self, ns: &str) -> Result<(), StoreError> {
        let created = self.index(ns)?.ensure(|| self.refuse_occupied(ns)).await;
        match &created {
            Ok(true) => self.namespaces.remember(ns, true, Instant::now()),
            Err(StoreError::NamespaceOccupied { .. }) => self.namespaces.forget(ns),
            Ok(false) | Err(_) => {}
        }
        created.map(drop)
    }

    /// True if the index of `ns` makes it a namespace. An index without entries, below an outer namespace with files there,
    /// is left from a proxy that crashed before it withdrew the index. This withdraws it.
    pub(super) async fn confirm_namespace(&self, ns: &str) -> Result<bool, StoreError> {
        let index = self.index(ns)?;
        // An unreadable index counts as a namespace; its repair reports the error.
        if !index.fresh().await.is_ok_and(|index| index.document.entries.is_empty()) {
            return Ok(true);
        }
        let is_occupied = matches!(self.refuse_occupied(ns).await, Err(StoreError::NamespaceOccupied { .. }));
        if !is_occupied || !index.withdraw().await? {
            return Ok(true);
        }
        self.namespaces.forget(ns);
        Ok(false)
    }

    /// Refuses a new namespace in whose folder an outer one has files with [`StoreError::NamespaceOccupied`].
    async fn refuse_occupied(&self, ns: &str) -> Result<(), StoreError> {
        for outer in self.existing_namespaces(outer_namespaces(ns), Instant::now()).await? {
            let index = self.index(&outer)?.fresh().await?;
            let folder = relative_to(&outer, ns);
            let is_inside =
                |path: &RelPath| path.as_str().strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
            if index.document.entries.iter().any(|(path, entry)| !entry.is_deleted && is_inside(path)) {
                return Err(StoreError::NamespaceOccupied { namespace: ns.to_owned(), above: NamespaceName(outer) });
            }
        }
        Ok(())
    }

    /// The folders that are namespaces, in order. The flat one always is. Facts from `since` or later count.
    async fn existing_namespaces(&self, folders: Vec<String>, since: Instant) -> Result<Vec<String>, StoreError> {
        let checked = stream::iter(folders).map(|folder| async move {
            Ok::<_, StoreError>(self.is_namespace(&folder, since).await?.then_some(folder))
        });
        checked.buffered(CONCURRENCY).try_filter_map(async |folder| Ok(folder)).try_collect().await
    }

    async fn is_namespace(&self, folder: &str, since: Instant) -> Result<bool, StoreError> {
        let known = || if folder.is_empty() { Some(true) } else { self.namespaces.is_namespace(folder, since) };
        if let Some(known) = known() {
            return Ok(known);
        }
        // Only the first of many concurrent writes sends a request.
        let _lock = self.lock_named(format!("{folder}/")).await;
        if let Some(known) = known() {
            return Ok(known);
        }
        let index = match self.blobs.layout.index(folder) {
            // The key of an index would be too long, so there is none.
            Err(StoreError::TooLong { .. }) => return Ok(false),
            index => index?,
        };
        let began = Instant::now();
        let is_namespace = self.blobs.bucket.head(&index).await?.is_some();
        self.namespaces.remember(folder, is_namespace, if is_namespace { Instant::now() } else { began });
        Ok(is_namespace)
    }
}

fn other_namespace(ns: &str, path: &RelPath, owner: String) -> StoreError {
    StoreError::OtherNamespace { path: flat_name(ns, path.as_str()), namespace: NamespaceName(owner) }
}

/// The possible outer namespaces, the flat one first.
fn outer_namespaces(ns: &str) -> Vec<String> {
    let slashes = ns.match_indices('/').map(|(at, _)| &ns[..at]);
    std::iter::once("").filter(|_| !ns.is_empty()).chain(slashes).map(str::to_owned).collect()
}

/// A flat name as it is in the namespace `outer`.
fn relative_to<'a>(outer: &str, name: &'a str) -> &'a str {
    name.strip_prefix(outer).map_or(name, |rest| rest.trim_start_matches('/'))
}
