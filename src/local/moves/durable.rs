//! Makes contents and names durable, a batch at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::disk::{Disk, DiskFile, FileKind};
use crate::path::dir_of;

use super::super::Folder;
use super::super::folder::STAGE;

/// Up to this many files or folders are synced one by one. One `syncfs` is cheaper for more.
const SYNC_ONE_BY_ONE: usize = 8;

impl<D: Disk> Folder<D> {
    /// Syncs the content of `files`, then the names in `dirs`. Returns the files that are not durable, each with the
    /// reason: the failure of one file does not stop the others.
    ///
    /// # Errors
    /// A folder or the whole filesystem cannot be synced. Nothing counts as durable then.
    pub(in crate::local) fn sync_contents(
        &self,
        files: &[String],
        dirs: &BTreeSet<String>,
    ) -> io::Result<BTreeMap<String, io::Error>> {
        let mut failed = BTreeMap::new();
        if files.is_empty() && dirs.is_empty() {
            return Ok(failed);
        }
        if files.len() > SYNC_ONE_BY_ONE {
            self.disk.sync_all()?;
            return Ok(failed);
        }
        for file in files {
            match self.disk.open(file).and_then(|open| open.sync()) {
                Ok(()) => {}
                // The user removed the file. The sync of its folder below makes the removal durable.
                Err(e) if e.kind() == io::ErrorKind::NotFound && self.is_removed(file) => {}
                Err(e) => drop(failed.insert(file.clone(), e)),
            }
        }
        self.sync_dirs(dirs)?;
        Ok(failed)
    }

    /// True if the user removed the missing `file`: it was not in the stage, and its folder still exists.
    fn is_removed(&self, file: &str) -> bool {
        let dir = dir_of(file);
        dir != STAGE && self.disk.stat(dir).is_ok_and(|m| m.kind == FileKind::Dir)
    }

    pub(in crate::local) fn sync_dirs(&self, dirs: &BTreeSet<String>) -> io::Result<()> {
        if dirs.len() > SYNC_ONE_BY_ONE {
            return self.disk.sync_all();
        }
        for dir in dirs {
            match self.disk.sync_dir(dir) {
                Ok(()) => {}
                // The user removed the folder meanwhile, with everything in it.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// True if the user's own files explain the error: the path is gone, closed to us, or no regular file any more.
pub(super) fn is_users_doing(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
    )
}
