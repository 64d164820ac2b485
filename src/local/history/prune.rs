//! Removes versions that are too old, and the oldest versions when the history is too large.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use jiff::Timestamp;

use super::super::Folder;
use super::super::folder::HISTORY;
use super::walk::{HistoryListing, StoredVersion};
use crate::disk::Disk;
use crate::path::dir_of;

/// The newest versions of a path never expire by age.
const AGELESS_VERSIONS: usize = 5;

/// The limits of the history.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    /// Maximum age. `None`: the clock cannot be trusted, so no version expires.
    pub keep: Option<Duration>,
    /// Maximum size on the disk in bytes, with folders.
    pub max_size: u64,
}

/// The outcome of a prune.
#[derive(Debug, Default)]
pub struct PruneReport {
    /// Number of removed versions.
    pub removed: usize,
    /// Bytes that remain on the disk.
    pub size: u64,
    /// Paths that could not be read or removed. Everything else was pruned.
    pub failed: Vec<PruneFailure>,
}

/// A version or folder that could not be removed or listed.
#[derive(Debug)]
pub struct PruneFailure {
    /// Path below the root.
    pub path: String,
    pub source: io::Error,
}

impl<D: Disk> Folder<D> {
    /// Removes expired versions, then the oldest ones until the rest takes at most `max_size`. The newest five of a path
    /// never expire. A version that cannot be removed does not stop the others. A file on its way through the history
    /// stays; an intent that cannot be read might name any file, so nothing is removed then.
    pub fn prune(&self, limits: HistoryLimits, now: Timestamp) -> PruneReport {
        let HistoryListing { mut versions, folders, unreadable } = self.walk_history();
        let failed = unreadable.into_iter().map(|(path, source)| PruneFailure { path, source }).collect();
        let size = versions.iter().map(|v| v.allocated).sum::<u64>() + folders.iter().map(|f| f.allocated).sum::<u64>();
        let mut pruner = HistoryPruner {
            folder: self,
            folders: folders.into_iter().map(|f| (f.path, (f.names, f.allocated))).collect(),
            report: PruneReport { removed: 0, size, failed },
        };
        // Read after the walk: a file that had an intent then, and has none now, has been checked.
        let moving = match self.intended_slots() {
            Ok(moving) => moving,
            Err((path, source)) => {
                pruner.report.failed.push(PruneFailure { path, source });
                return pruner.report;
            }
        };
        versions.retain(|stored| !moving.contains(&stored.file));
        pruner.remove_empty_folders();
        versions.sort_by_key(|stored| Reverse(stored.stamp));
        let mut left = Vec::new();
        for (stored, is_ageless) in mark_ageless(versions) {
            let age = Duration::try_from(now.duration_since(stored.stamp.at)).unwrap_or_default();
            if !is_ageless && limits.keep.is_some_and(|keep| age > keep) {
                pruner.remove(&stored);
            } else {
                left.push(stored);
            }
        }
        for oldest in left.iter().rev() {
            if pruner.report.size <= limits.max_size {
                break;
            }
            pruner.remove(oldest);
        }
        pruner.report
    }
}

/// Pairs each version with true if it is one of the newest of its path. `versions` are sorted newest first.
fn mark_ageless(versions: Vec<StoredVersion>) -> impl Iterator<Item = (StoredVersion, bool)> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    versions.into_iter().map(move |stored| {
        let newer = seen.entry(stored.path.clone()).or_default();
        *newer += 1;
        let is_ageless = *newer <= AGELESS_VERSIONS;
        (stored, is_ageless)
    })
}

struct HistoryPruner<'a, D: Disk> {
    folder: &'a Folder<D>,
    /// The number of names in each folder, and the bytes allocated for the folder itself.
    folders: BTreeMap<String, (usize, u64)>,
    report: PruneReport,
}

impl<D: Disk> HistoryPruner<'_, D> {
    fn remove(&mut self, stored: &StoredVersion) {
        match self.folder.disk.unlink(&stored.file) {
            Ok(()) => self.report.removed += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                self.report.failed.push(PruneFailure { path: stored.file.clone(), source });
                return;
            }
        }
        self.report.size = self.report.size.saturating_sub(stored.allocated);
        self.remove_name(dir_of(&stored.file));
    }

    /// Counts a name less in the folder `dir`, and removes the folder with its last name.
    fn remove_name(&mut self, dir: &str) {
        let Some((names, _)) = self.folders.get_mut(dir) else { return };
        *names = names.saturating_sub(1);
        if *names == 0 {
            self.remove_folder(dir);
        }
    }

    fn remove_folder(&mut self, dir: &str) {
        if dir == HISTORY {
            return;
        }
        match self.folder.disk.rmdir(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // Another version has just come into it.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => return,
            Err(source) => return self.report.failed.push(PruneFailure { path: dir.to_owned(), source }),
        }
        let (_, allocated) = self.folders.remove(dir).unwrap_or_default();
        self.report.size = self.report.size.saturating_sub(allocated);
        self.remove_name(dir_of(dir));
    }

    fn remove_empty_folders(&mut self) {
        let empty: Vec<String> =
            self.folders.iter().filter(|(_, (names, _))| *names == 0).map(|(dir, _)| dir.clone()).collect();
        for dir in empty {
            self.remove_folder(&dir);
        }
    }
}
