//! [`Folder`]: the root of a memory folder and its private `.memsync/`.
//!
//! ```text
//! .memsync/id         the identity of the folder, created once, bound to the state container
//! .memsync/.gitignore keeps git from committing or stashing all this
//! .memsync/stage/     downloads not yet placed, displaced files not yet verified, and intents
//! .memsync/fetched/   earlier texts from the proxy, on their way into the folder
//! .memsync/history/   the files that sync replaced or removed: <path>.<stamp>-<kind>
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, DiskFile, FileKind};
use crate::path::PRIVATE_DIR;

const GITIGNORE: &str = ".memsync/.gitignore";
pub(super) const STAGE: &str = ".memsync/stage";
pub(super) const HISTORY: &str = ".memsync/history";

/// The root of one memory folder. Cheap to clone.
pub struct Folder<D: Disk> {
    pub(super) disk: Arc<D>,
    /// Prefix of every name in `stage/` that this run of the program makes.
    run: Arc<str>,
    next: Arc<AtomicU64>,
    device: Arc<str>,
}

impl<D: Disk> Clone for Folder<D> {
    fn clone(&self) -> Self {
        Self { disk: self.disk.clone(), run: self.run.clone(), next: self.next.clone(), device: self.device.clone() }
    }
}

impl<D: Disk> Folder<D> {
    /// A folder on `disk`. Conflict copies are named after `device`. `run` is unique to this run of the program.
    pub fn new(disk: Arc<D>, device: &str, run: u64) -> Self {
        Self { disk, run: format!("{run:016x}").into(), next: Arc::new(AtomicU64::new(0)), device: device.into() }
    }

    pub fn disk(&self) -> &D {
        &self.disk
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// Creates `.memsync/` and the folders in it.
    ///
    /// # Errors
    /// A folder cannot be created, or a file has its name.
    pub fn ensure_private(&self) -> io::Result<()> {
        let mut made = false;
        for dir in [PRIVATE_DIR, STAGE, HISTORY] {
            made |= self.ensure_dir(dir)?;
        }
        if made {
            self.disk.sync_dir(PRIVATE_DIR)?;
            self.disk.sync_dir("")?;
        }
        Ok(())
    }

    /// Creates a folder unless it exists. Returns true if it was missing.
    pub(super) fn ensure_dir(&self, dir: &str) -> io::Result<bool> {
        match self.disk.mkdir(dir) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.disk.stat(dir)?.kind {
                FileKind::Dir => Ok(false),
                _ => Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{dir} is no folder"))),
            },
            Err(e) => Err(e),
        }
    }

    /// Writes a `.gitignore` into the private folder, unless it has one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn hide_from_git(&self) -> io::Result<()> {
        match self.disk.stat(GITIGNORE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            found => return found.map(drop),
        }
        let slot = self.slot();
        let mut file = self.disk.create(&slot)?;
        file.write_all(b"*\n")?;
        file.sync()?;
        match self.disk.rename_new(&slot, GITIGNORE) {
            // Another memsync command has just written it.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.disk.unlink(&slot),
            placed => placed,
        }
    }

    /// A free path in `stage/`.
    pub(super) fn slot(&self) -> String {
        format!("{STAGE}/{}-{:x}", self.run, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Removes a file of the stage that holds no user's content. Best effort: the sweep at start-up removes it otherwise.
    pub(super) fn discard_slot(&self, slot: &str) {
        let _ = self.disk.unlink(slot);
    }
}
