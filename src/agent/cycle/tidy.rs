//! Upkeep of the base that is not on the path of an edit.

use std::collections::BTreeSet;
use std::io;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry, StateError};
use crate::sync::Base;

use super::Engine;
use super::parts::CycleParts;

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Commits stats that have become reliable, forgets entries that are of no use any more, and rewrites the container
    /// when its journal has grown.
    pub fn tidy(&mut self) -> Result<(), StateError> {
        let parts = &mut self.parts;
        let mut changes = parts.settled_stats();
        if self.gates.reset.is_none() && parts.observed.has_exact_index() {
            changes.extend(parts.expired_deletions());
        }
        changes.extend(parts.unused_upload_notes());
        let gone = parts.removed_copies();
        let container = &mut parts.ports.container;
        container.retain_copies(|copy| !gone.contains(copy));
        // Without changes this still commits the position of the store. A store that is set back behind that is found
        // out after a restart.
        container.commit(changes)?;
        if container.wants_save() {
            container.save(parts.ports.world.now())?;
        }
        Ok(())
    }
}

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// The stats of unchanged files that were too new when they were committed.
    fn settled_stats(&self) -> Vec<BaseChange> {
        let settled = |(path, entry): (&RelPath, &BaseEntry)| {
            let stat = self.observed.found(path)?.stat?;
            let Base::Synced(md5) = entry.base else { return None };
            let is_same = self.observed.local_content(path) == Some(md5);
            (is_same && entry.stat != Some(stat))
                .then(|| BaseChange::Set(path.clone(), BaseEntry { stat: Some(stat), ..entry.clone() }))
        };
        self.ports.container.entries().iter().filter_map(settled).collect()
    }

    /// The deletions that an exact index does not name any more, because their tombstones have expired. Where a file is
    /// or may be, the entry is still needed: rows 7 and 8 use it to tell a new file from an old upload.
    fn expired_deletions(&self) -> impl Iterator<Item = BaseChange> {
        let deleted = self.ports.container.entries().iter().filter(|(_, entry)| !entry.base.is_synced());
        let expired = deleted.filter(|(path, _)| self.observed.listed(path).is_none() && self.is_absent(path));
        expired.map(|(path, _)| BaseChange::Forget(path.clone()))
    }

    /// The noted uploads of files that are gone and were never agreed on.
    fn unused_upload_notes(&self) -> impl Iterator<Item = BaseChange> {
        let container = &self.ports.container;
        let unused = |path: &&RelPath| !container.entries().contains_key(*path) && self.is_absent(path);
        container.uploads().paths().filter(unused).map(|path| BaseChange::Forget(path.clone()))
    }

    /// The conflict copies that are gone, so that the links to their originals are of no use.
    fn removed_copies(&self) -> BTreeSet<RelPath> {
        let is_gone = |copy: &&RelPath| {
            // A copy that was just made has not been scanned yet.
            let stat = || self.ports.folder.disk().stat(&self.observed.tree.disk_name(copy));
            self.is_absent(copy) && matches!(stat(), Err(e) if e.kind() == io::ErrorKind::NotFound)
        };
        self.ports.container.header().copies.keys().filter(is_gone).cloned().collect()
    }
}
