//! Pruning: versions that are too old or too much leave the history.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use jiff::Timestamp;

use super::super::Folder;
use super::super::folder::HISTORY;
use super::super::moves::dir_of;
use super::walk::{Stored, Walked};
use crate::disk::Disk;

/// The newest versions of a path, which stay whatever their age.
const AGELESS: usize = 5;

/// How long and how much history keeps.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    /// `None`: the clock cannot be trusted, so that no version is removed for its age.
    pub keep: Option<Duration>,
    /// Bytes on the disk, folders included.
    pub max_size: u64,
}

/// What a prune removed and left.
#[derive(Debug, Default)]
pub struct PruneReport {
    /// Versions removed.
    pub removed: usize,
    /// Bytes that the history takes on the disk now.
    pub size: u64,
    /// What could not be read or removed. All else was pruned.
    pub failed: Vec<PruneFailure>,
}

/// A version or folder of the history that could not be removed or looked into.
#[derive(Debug)]
pub struct PruneFailure {
    /// Below the root.
    pub path: String,
    pub source: io::Error,
}

impl<D: Disk> Folder<D> {
    /// Removes versions that are too old, then the oldest until the rest takes at most `max_size`. The newest five of a
    /// path are never removed for their age. A version that cannot be removed holds up no other.
    pub fn prune(&self, limits: HistoryLimits, now: Timestamp) -> PruneReport {
        let Walked { mut versions, folders, unreadable } = self.walk_history();
        let failed = unreadable.into_iter().map(|(path, source)| PruneFailure { path, source }).collect();
        let size = versions.iter().map(|v| v.allocated).sum::<u64>() + folders.iter().map(|f| f.allocated).sum::<u64>();
        let mut pruning = Pruning {
            folder: self,
            folders: folders.into_iter().map(|f| (f.path, (f.names, f.allocated))).collect(),
            report: PruneReport { removed: 0, size, failed },
        };
        pruning.remove_empty_folders();
        versions.sort_by_key(|stored| Reverse(stored.mark));
        let mut left = Vec::new();
        for (stored, is_ageless) in with_rank(versions) {
            let age = Duration::try_from(now.duration_since(stored.mark.at)).unwrap_or_default();
            if !is_ageless && limits.keep.is_some_and(|keep| age > keep) {
                pruning.remove(&stored);
            } else {
                left.push(stored);
            }
        }
        for oldest in left.iter().rev() {
            if pruning.report.size <= limits.max_size {
                break;
            }
            pruning.remove(oldest);
        }
        pruning.report
    }
}

/// Each version with whether it is one of the newest of its path. `versions` come with the newest first.
fn with_rank(versions: Vec<Stored>) -> impl Iterator<Item = (Stored, bool)> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    versions.into_iter().map(move |stored| {
        let newer = seen.entry(stored.path.clone()).or_default();
        *newer += 1;
        let is_ageless = *newer <= AGELESS;
        (stored, is_ageless)
    })
}

struct Pruning<'a, D: Disk> {
    folder: &'a Folder<D>,
    /// The names in each folder of the history, and the bytes that it takes itself.
    folders: BTreeMap<String, (usize, u64)>,
    report: PruneReport,
}

impl<D: Disk> Pruning<'_, D> {
    fn remove(&mut self, stored: &Stored) {
        match self.folder.disk.unlink(&stored.file) {
            Ok(()) => self.report.removed += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                self.report.failed.push(PruneFailure { path: stored.file.clone(), source });
                return;
            }
        }
        self.report.size = self.report.size.saturating_sub(stored.allocated);
        self.leave(dir_of(&stored.file));
    }

    /// Takes in that a name left the folder `dir`, which goes with its last one.
    fn leave(&mut self, dir: &str) {
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
            // Something came into it since.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => return,
            Err(source) => return self.report.failed.push(PruneFailure { path: dir.to_owned(), source }),
        }
        let (_, allocated) = self.folders.remove(dir).unwrap_or_default();
        self.report.size = self.report.size.saturating_sub(allocated);
        self.leave(dir_of(dir));
    }

    fn remove_empty_folders(&mut self) {
        let empty: Vec<String> =
            self.folders.iter().filter(|(_, (names, _))| *names == 0).map(|(dir, _)| dir.clone()).collect();
        for dir in empty {
            self.remove_folder(&dir);
        }
    }
}
