//! History: the files that sync replaced or removed, kept in `.memsync/history/` until they are too old or too many.
//!
//! A version of `notes/a.md` is the file `notes/a.md.<stamp>-<kind>` there. So a person can find it without memsync, and a
//! small version costs one inode and no folder of its own.

use std::io;

use crate::disk::Disk;

use super::Folder;

mod prune;
mod version;
mod walk;
mod writer;

pub use prune::{HistoryLimits, PruneFailure, PruneReport};
pub use version::{HistoryVersion, VersionKind};
pub(super) use writer::{CopyFailure, HistoryWriter};

impl<D: Disk> Folder<D> {
    /// The versions of one path, or of all paths, newest first. The path of a folder means every file below it.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn versions(&self, path: Option<&str>) -> io::Result<Vec<HistoryVersion>> {
        let mut found = match path {
            Some(path) => self.walk_path(path)?,
            None => self.walk_history().into_versions()?,
        };
        found.sort_by(|a, b| b.stamp.cmp(&a.stamp).then_with(|| a.path.cmp(&b.path)));
        Ok(found.into_iter().map(HistoryVersion::from).collect())
    }
}
