//! Upkeep of the base that is not on the path of an edit.

use std::collections::BTreeSet;
use std::io;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry, StateError};
use crate::sync::Base;

use super::observed::unknown_absence;
use super::parts::CycleParts;

/// Commits stats that have become reliable, forgets entries that are of no use any more, and rewrites the container when
/// its journal has grown. `forget_expired`: also forget deletions whose tombstones have expired.
pub(in crate::agent) fn tidy<D: Disk, R: Remote, W: World>(
    parts: &mut CycleParts<D, R, W>,
    forget_expired: bool,
) -> Result<(), StateError> {
    let mut changes = settled_stats(parts);
    if forget_expired {
        changes.extend(expired_deletions(parts));
    }
    changes.extend(unused_upload_notes(parts));
    let gone = removed_copies(parts);
    let container = &mut parts.ports.container;
    container.retain_copies(|copy| !gone.contains(copy));
    // Without changes this still commits the position of the store. A store that is set back behind that is found out
    // after a restart.
    container.commit(changes)?;
    if container.wants_save() {
        container.save(parts.ports.world.now())?;
    }
    Ok(())
}

/// The stats of unchanged files that were too new when they were committed.
fn settled_stats<D: Disk, R: Remote, W: World>(parts: &CycleParts<D, R, W>) -> Vec<BaseChange> {
    let settled = |(path, entry): (&RelPath, &BaseEntry)| {
        let stat = parts.observed.found(path)?.stat?;
        let Base::Synced(md5) = entry.base else { return None };
        let is_same = parts.observed.local_content(path) == Some(md5);
        (is_same && entry.stat != Some(stat))
            .then(|| BaseChange::Set(path.clone(), BaseEntry { stat: Some(stat), ..entry.clone() }))
    };
    parts.ports.container.entries().iter().filter_map(settled).collect()
}

/// True if no file is at the path for certain.
fn is_absent<D: Disk, R: Remote, W: World>(parts: &CycleParts<D, R, W>, path: &RelPath) -> bool {
    parts.observed.found(path).is_none() && unknown_absence(&parts.observed.tree, &parts.ports.ignored, path).is_none()
}

/// The deletions that an exact index does not name any more, because their tombstones have expired. Where a file is or may
/// be, the entry is still needed: rows 7 and 8 use it to tell a new file from an old upload.
fn expired_deletions<D: Disk, R: Remote, W: World>(parts: &CycleParts<D, R, W>) -> Vec<BaseChange> {
    if !parts.observed.has_exact_index() {
        return Vec::new();
    }
    let deleted = parts.ports.container.entries().iter().filter(|(_, entry)| !entry.base.is_synced());
    let expired = deleted.filter(|(path, _)| parts.observed.listed(path).is_none() && is_absent(parts, path));
    expired.map(|(path, _)| BaseChange::Forget(path.clone())).collect()
}

/// The noted uploads of files that are gone and were never agreed on.
fn unused_upload_notes<D: Disk, R: Remote, W: World>(parts: &CycleParts<D, R, W>) -> Vec<BaseChange> {
    let container = &parts.ports.container;
    let is_unused = |path: &&RelPath| !container.entries().contains_key(*path) && is_absent(parts, path);
    container.uploads().paths().filter(is_unused).map(|path| BaseChange::Forget(path.clone())).collect()
}

/// The conflict copies that are gone, so that the links to their originals are of no use.
fn removed_copies<D: Disk, R: Remote, W: World>(parts: &CycleParts<D, R, W>) -> BTreeSet<RelPath> {
    let disk = parts.ports.folder.disk();
    let is_gone = |copy: &&RelPath| {
        // A copy that was just made has not been scanned yet.
        let stat = || disk.stat(&parts.observed.tree.disk_name(copy));
        is_absent(parts, copy) && matches!(stat(), Err(e) if e.kind() == io::ErrorKind::NotFound)
    };
    parts.ports.container.header().copies.keys().filter(is_gone).cloned().collect()
}
