//! The stage: files in `.memsync/stage/` on their way into the folder.
//!
//! The name of a slot says what may be in it. `<run>-<number>` is a download, which the sweep may remove. A name that ends
//! in `.displaced` may be a user's file, which is never removed.

use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use crate::digest::{Md5, Md5Hasher};
use crate::disk::{Disk, DiskFile, FileMeta};

use super::Folder;
use super::folder::STAGE;

/// Suffix of a slot that a user's file may move to.
const DISPLACED: &str = ".displaced";

/// The path for the file that is displaced by the download in `slot`.
pub(super) fn displaced_slot(slot: &str) -> String {
    format!("{slot}{DISPLACED}")
}

/// The path to which the sweep renames the presumed download with this inode, before it checks.
pub(super) fn taken_slot(slot: &str, inode: u64) -> String {
    format!("{slot}.{inode}{DISPLACED}")
}

/// The inode of the download in a slot without an intent, by the name of the slot. `listed` is the inode of the file in
/// it. `None` if it may be a user's file.
pub(super) fn download_inode(slot: &str, listed: u64) -> Option<u64> {
    let name = slot.rsplit_once('/').map_or(slot, |(_, name)| name);
    if let Some((_, inode)) = name.strip_suffix(DISPLACED).and_then(|name| name.split_once('.')) {
        return inode.parse().ok();
    }
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let (run, number) = name.split_once('-')?;
    (run.len() == 16 && is_hex(run) && is_hex(number)).then_some(listed)
}

/// A download that is being written. Drop removes the file of an unfinished one.
pub struct StagedWriter<D: Disk> {
    folder: Folder<D>,
    slot: String,
    file: Option<D::File>,
    digest: StageDigest,
    size: u64,
}

/// Whole content in `stage/`, not yet durable. Drop removes the file, unless it was placed.
pub struct StagedFile<D: Disk> {
    folder: Folder<D>,
    slot: Option<String>,
    /// The metadata after the last write.
    pub(super) meta: FileMeta,
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
}

impl<D: Disk> Folder<D> {
    /// Opens a new file in `stage/`.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn stage(&self) -> io::Result<StagedWriter<D>> {
        let slot = self.slot();
        let file = match self.disk.create(&slot) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // The user has removed the stage. If all of .memsync is gone, this fails too: the check of the identity reports it.
                self.ensure_dir(STAGE)?;
                self.disk.create(&slot)?
            }
            other => other?,
        };
        let digest = StageDigest::Here(Md5Hasher::new());
        Ok(StagedWriter { folder: self.clone(), slot, file: Some(file), digest, size: 0 })
    }
}

impl<D: Disk> StagedWriter<D> {
    /// Appends a piece of the content.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn write(&mut self, piece: Bytes) -> io::Result<()> {
        self.size += piece.len() as u64;
        if self.size > LARGE_BYTES {
            self.digest.move_to_thread();
        }
        self.digest.update(piece.clone());
        match &mut self.file {
            Some(file) => file.write_all(&piece),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Ends the content, which must be `expected`.
    ///
    /// # Errors
    /// `InvalidData` if it is other content.
    pub fn finish(mut self, expected: Md5) -> io::Result<StagedFile<D>> {
        let md5 = std::mem::replace(&mut self.digest, StageDigest::Here(Md5Hasher::new())).finish()?;
        if md5 != expected {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the content received has the md5 {md5}, not {expected}"),
            ));
        }
        let meta = self.file.take().ok_or(io::ErrorKind::NotFound)?.meta()?;
        let slot = std::mem::take(&mut self.slot);
        Ok(StagedFile { folder: self.folder.clone(), slot: Some(slot), meta, md5, size: self.size })
    }
}

impl<D: Disk> Drop for StagedWriter<D> {
    fn drop(&mut self) {
        if !self.slot.is_empty() {
            self.folder.discard_slot(&self.slot);
        }
    }
}

impl<D: Disk> StagedFile<D> {
    pub(super) fn slot(&self) -> &str {
        self.slot.as_deref().unwrap_or_default()
    }

    /// Opens the content for reading.
    pub(crate) fn open(&self) -> io::Result<D::File> {
        self.folder.disk.open(self.slot())
    }

    pub(super) fn rename_slot(&mut self, to: &str) -> io::Result<()> {
        self.folder.disk.rename_new(self.slot(), to)?;
        self.slot = Some(to.to_owned());
        Ok(())
    }

    /// Forgets the slot, because the content has left it.
    pub(super) fn release(&mut self) {
        self.slot = None;
    }
}

impl<D: Disk> Drop for StagedFile<D> {
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            self.folder.discard_slot(slot);
        }
    }
}

/// A larger download is digested on its own thread while the next piece arrives.
const LARGE_BYTES: u64 = 1024 * 1024;
/// Bytes handed to that thread at once, so that it does not wake for every piece.
const PARCEL_BYTES: usize = 256 * 1024;
/// Parcels that may wait for that thread.
const MAX_PARCELS: usize = 2;

/// The digest of the content so far.
enum StageDigest {
    Here(Md5Hasher),
    OnThread { parcel: Vec<Bytes>, bytes: usize, parcels: SyncSender<Vec<Bytes>>, thread: JoinHandle<Md5Hasher> },
}

impl StageDigest {
    fn update(&mut self, piece: Bytes) {
        match self {
            Self::Here(hasher) => hasher.update(&piece),
            Self::OnThread { parcel, bytes, parcels, .. } => {
                *bytes += piece.len();
                parcel.push(piece);
                if *bytes >= PARCEL_BYTES {
                    *bytes = 0;
                    // This fails only if the thread has panicked. `finish` reports that.
                    let _ = parcels.send(std::mem::take(parcel));
                }
            }
        }
    }

    fn move_to_thread(&mut self) {
        let Self::Here(hasher) = self else { return };
        let mut hasher = std::mem::take(hasher);
        let (parcels, received) = mpsc::sync_channel::<Vec<Bytes>>(MAX_PARCELS);
        let thread = thread::spawn(move || {
            received.iter().flatten().for_each(|piece| hasher.update(&piece));
            hasher
        });
        *self = Self::OnThread { parcel: Vec::new(), bytes: 0, parcels, thread };
    }

    fn finish(self) -> io::Result<Md5> {
        match self {
            Self::Here(hasher) => Ok(hasher.finish()),
            Self::OnThread { parcel, parcels, thread, .. } => {
                let sent = parcels.send(parcel);
                drop(parcels);
                let hasher = thread.join().ok().filter(|_| sent.is_ok());
                hasher.map(Md5Hasher::finish).ok_or_else(|| io::Error::other("the digest of the download failed"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::tests::folder;

    #[test]
    fn download_of_any_size_is_verified() {
        let (disk, folder) = folder();
        for size in [0, 1, 256 * 1024, 1024 * 1024, 1024 * 1024 + 1, 3 * 1024 * 1024 + 7] {
            let content: Bytes = (0..size).map(|i: u32| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
            let whole = |expected| {
                let mut writer = folder.stage().unwrap();
                for piece in content.chunks(100_000) {
                    writer.write(content.slice_ref(piece)).unwrap();
                }
                writer.finish(expected)
            };
            let staged = whole(Md5::of(&content)).unwrap();
            assert_eq!((staged.md5, staged.size), (Md5::of(&content), u64::from(size)));
            assert_eq!(whole(Md5::of(b"something else")).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidData));
            drop(staged);
            assert!(disk.user_tree(".memsync/stage").is_empty(), "a download that is not placed is removed");
        }
    }
}
