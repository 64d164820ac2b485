//! Making contents and names durable, a batch at a time.

use std::collections::BTreeSet;
use std::io;

use crate::disk::{Disk, DiskFile, FileKind};

use super::super::Folder;
use super::super::folder::STAGE;
use super::dir_of;

/// Up to this many files or folders are made durable one by one; more by one `syncfs`.
const SYNC_ONE_BY_ONE: usize = 8;

impl<D: Disk> Folder<D> {
    /// Returns the files that are not there to be synced, or may not be opened: one of them holds up no other.
    pub(in crate::local) fn sync_contents(
        &self,
        files: &[String],
        dirs: &BTreeSet<String>,
    ) -> io::Result<BTreeSet<String>> {
        let mut refused = BTreeSet::new();
        if files.is_empty() && dirs.is_empty() {
            return Ok(refused);
        }
        if files.len() > SYNC_ONE_BY_ONE {
            self.disk.sync_all()?;
            return Ok(refused);
        }
        for file in files {
            match self.disk.open(file) {
                Ok(open) => open.sync()?,
                // Gone since, but its folder is there: that it is gone is made durable below, and is the user's wish.
                Err(e) if e.kind() == io::ErrorKind::NotFound && self.is_gone(file) => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound
                            | io::ErrorKind::NotADirectory
                            | io::ErrorKind::PermissionDenied
                            | io::ErrorKind::InvalidInput
                    ) =>
                {
                    refused.insert(file.clone());
                }
                Err(e) => return Err(e),
            }
        }
        self.sync_dirs(dirs)?;
        Ok(refused)
    }

    /// Whether a user's file is no more, in a folder that is still there.
    fn is_gone(&self, file: &str) -> bool {
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
                // Removed again by the user, with all that was in it.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
