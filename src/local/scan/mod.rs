//! The scan: finds the current content of the folder.
//!
//! Watcher events are only hints; the scan decides. It does not read a file again whose stat is unchanged and old enough
//! (see [`super::stat_trust`]).

use std::io;

use crate::disk::Disk;

use super::tree::LocalTree;
use super::{Folder, ScanScope};
use walk::{ScanBatch, ScanJob, ScanWalk};

mod narrow;
mod options;
mod queue;
mod read;
mod walk;

pub use options::{ScanOptions, ScanStats};

impl<D: Disk> Folder<D> {
    /// Brings `tree` up to date within `scope`. A path below the root that cannot be read becomes
    /// [`LocalState::Unknown`](crate::sync::LocalState::Unknown) in the tree.
    ///
    /// # Errors
    /// The root itself cannot be read.
    pub fn scan(&self, tree: &mut LocalTree, scope: &ScanScope, options: &ScanOptions<'_>) -> io::Result<ScanStats> {
        let root = self.disk.stat("")?;
        let walk = ScanWalk::new(&*self.disk, tree, scope.full, options, root.device);
        let mut gone = Vec::new();
        if scope.full {
            walk.push(ScanJob::Dir(String::new()));
        } else {
            gone = self.queue_narrow(&walk, scope);
        }
        let batches = walk.run_threads();
        let found = collect(batches);
        walk.finish()?;
        let mut stats = found.stats;
        if scope.full {
            tree.renew(found.same, found.items, found.excluded, options.base);
        } else {
            tree.refresh(gone, found.items, found.excluded, options.base);
        }
        tree.note_hard_links(found.hard_links);
        stats.files = tree.found().len() as u64;
        Ok(stats)
    }
}

/// Merges the batches of all threads, sorted by path.
fn collect(batches: Vec<ScanBatch>) -> ScanBatch {
    let mut all = ScanBatch::default();
    for batch in batches {
        all.stats.hashed += batch.stats.hashed;
        all.stats.bytes += batch.stats.bytes;
        all.items.extend(batch.items);
        all.same.extend(batch.same);
        all.excluded.extend(batch.excluded);
        all.hard_links.extend(batch.hard_links);
    }
    all.items.sort_by(|a, b| a.path.cmp(&b.path).then_with(|| a.disk_name.cmp(&b.disk_name)));
    // Several paths of a narrow scan may have led to one folder.
    all.items.dedup_by(|a, b| a.path == b.path && a.disk_name == b.disk_name);
    all
}

#[cfg(test)]
mod tests;
