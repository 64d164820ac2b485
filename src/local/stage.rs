//! Downloads on their way: written to `.memsync/stage/`, placed by [`super::moves`].

use std::io;

use crate::digest::{Hasher, Md5};
use crate::disk::{Disk, DiskFile, Meta};

use super::Folder;

/// A download being written. Dropped unfinished, its file is removed.
pub struct Staging<D: Disk> {
    folder: Folder<D>,
    slot: String,
    file: Option<D::File>,
    hasher: Hasher,
    size: u64,
}

/// Content that is whole in `stage/`, not yet durable. Dropped before it is placed, its file is removed.
pub struct Staged<D: Disk> {
    folder: Folder<D>,
    slot: Option<String>,
    /// Of the staged file, once it is about to be placed.
    pub(super) meta: Option<Meta>,
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
}

impl<D: Disk> Folder<D> {
    /// Opens a new file in `stage/`.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn stage(&self) -> io::Result<Staging<D>> {
        let slot = self.slot();
        let file = match self.disk.create(&slot) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // The user may have cleared .memsync; its identity is checked apart from this.
                self.ensure_dir(super::folder::STAGE)?;
                self.disk.create(&slot)?
            }
            other => other?,
        };
        Ok(Staging { folder: self.clone(), slot, file: Some(file), hasher: Hasher::new(), size: 0 })
    }
}

impl<D: Disk> Staging<D> {
    /// # Errors
    /// As `write(2)`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The end of the content, which must be `expected`.
    ///
    /// # Errors
    /// `InvalidData` when it is not.
    pub fn finish(mut self, expected: Md5) -> io::Result<Staged<D>> {
        let md5 = std::mem::take(&mut self.hasher).finish();
        if md5 != expected {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the content received has the md5 {md5}, not {expected}"),
            ));
        }
        self.file = None;
        let slot = std::mem::take(&mut self.slot);
        Ok(Staged { folder: self.folder.clone(), slot: Some(slot), meta: None, md5, size: self.size })
    }
}

impl<D: Disk> Drop for Staging<D> {
    fn drop(&mut self) {
        if !self.slot.is_empty() {
            // Best effort: what stays is swept at start-up.
            let _ = self.folder.disk.unlink(&self.slot);
        }
    }
}

impl<D: Disk> Staged<D> {
    pub(super) fn slot(&self) -> &str {
        self.slot.as_deref().unwrap_or_default()
    }

    /// Says that the slot holds this content no more (it was moved, or exchanged for another file).
    pub(super) fn placed(&mut self) {
        self.slot = None;
    }
}

impl<D: Disk> Drop for Staged<D> {
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            // Best effort: what stays is swept at start-up.
            let _ = self.folder.disk.unlink(slot);
        }
    }
}
