//! Downloads on their way: written to `.memsync/stage/`, placed by [`super::moves`].
//!
//! The name of a slot says what it may hold. A plain one, `<run>-<number>`, holds a download and nothing else, so that
//! the sweep may remove it. One that ends in `.displaced` may hold a user's file, which is never removed.

use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use crate::digest::{Md5, Md5Hasher};
use crate::disk::{Disk, DiskFile, FileMeta};

use super::Folder;

/// A download being written. Dropped unfinished, its file is removed.
pub struct StagedWriter<D: Disk> {
    folder: Folder<D>,
    slot: String,
    file: Option<D::File>,
    digest: Digesting,
    size: u64,
}

/// Ends the name of a slot that a user's file may be moved to.
const DISPLACED: &str = ".displaced";

/// The name under which a file that is displaced by way of `slot` stands in the stage.
pub(super) fn displaced_slot(slot: &str) -> String {
    format!("{slot}{DISPLACED}")
}

/// The name to which the sweep takes what should be the download of this inode, before it looks.
pub(super) fn taken_slot(slot: &str, inode: u64) -> String {
    format!("{slot}.{inode}{DISPLACED}")
}

/// The inode of the download in a slot that no intent names, by the slot's name. `listed` is the inode of the file there.
/// `None`: it may be a user's file.
pub(super) fn download_inode(slot: &str, listed: u64) -> Option<u64> {
    let name = slot.rsplit_once('/').map_or(slot, |(_, name)| name);
    if let Some((_, inode)) = name.strip_suffix(DISPLACED).and_then(|name| name.split_once('.')) {
        return inode.parse().ok();
    }
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let (run, number) = name.split_once('-')?;
    (run.len() == 16 && is_hex(run) && is_hex(number)).then_some(listed)
}

/// From this many bytes on, a download is digested on a thread of its own while the next piece comes in.
const LARGE: u64 = 1024 * 1024;
/// Bytes handed to that thread at once, so that it is not woken for every piece.
const HEAP: usize = 256 * 1024;
/// Heaps that wait for that thread at most.
const AHEAD: usize = 2;

/// The digest of what was written so far.
enum Digesting {
    Here(Md5Hasher),
    Aside { heap: Vec<Bytes>, bytes: usize, heaps: SyncSender<Vec<Bytes>>, thread: JoinHandle<Md5Hasher> },
}

impl Digesting {
    fn update(&mut self, piece: Bytes) {
        match self {
            Self::Here(hasher) => hasher.update(&piece),
            Self::Aside { heap, bytes, heaps, .. } => {
                *bytes += piece.len();
                heap.push(piece);
                if *bytes >= HEAP {
                    *bytes = 0;
                    // It is refused only when the thread has panicked, which the end tells.
                    let _ = heaps.send(std::mem::take(heap));
                }
            }
        }
    }

    fn move_aside(&mut self) {
        let Self::Here(hasher) = self else { return };
        let mut hasher = std::mem::take(hasher);
        let (heaps, coming) = mpsc::sync_channel::<Vec<Bytes>>(AHEAD);
        let thread = thread::spawn(move || {
            coming.iter().flatten().for_each(|piece| hasher.update(&piece));
            hasher
        });
        *self = Self::Aside { heap: Vec::new(), bytes: 0, heaps, thread };
    }

    fn finish(self) -> io::Result<Md5> {
        match self {
            Self::Here(hasher) => Ok(hasher.finish()),
            Self::Aside { heap, heaps, thread, .. } => {
                let rest = heaps.send(heap);
                drop(heaps);
                let hasher = thread.join().ok().filter(|_| rest.is_ok());
                hasher.map(Md5Hasher::finish).ok_or_else(|| io::Error::other("the digest of the download failed"))
            }
        }
    }
}

/// Content that is whole in `stage/`, not yet durable. Dropped before it is placed, its file is removed.
pub struct StagedFile<D: Disk> {
    folder: Folder<D>,
    slot: Option<String>,
    /// Of the staged file, after its last write.
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
                // The user may have cleared .memsync; its identity is checked apart from this.
                self.ensure_dir(super::folder::STAGE)?;
                self.disk.create(&slot)?
            }
            other => other?,
        };
        Ok(StagedWriter {
            folder: self.clone(),
            slot,
            file: Some(file),
            digest: Digesting::Here(Md5Hasher::new()),
            size: 0,
        })
    }
}

impl<D: Disk> StagedWriter<D> {
    /// # Errors
    /// As `write(2)`.
    pub fn write(&mut self, piece: Bytes) -> io::Result<()> {
        self.size += piece.len() as u64;
        if self.size > LARGE {
            self.digest.move_aside();
        }
        self.digest.update(piece.clone());
        match &mut self.file {
            Some(file) => file.write_all(&piece),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The end of the content, which must be `expected`.
    ///
    /// # Errors
    /// `InvalidData` when it is not.
    pub fn finish(mut self, expected: Md5) -> io::Result<StagedFile<D>> {
        let md5 = std::mem::replace(&mut self.digest, Digesting::Here(Md5Hasher::new())).finish()?;
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
            // Best effort: what stays is swept at start-up.
            let _ = self.folder.disk.unlink(&self.slot);
        }
    }
}

impl<D: Disk> StagedFile<D> {
    pub(super) fn slot(&self) -> &str {
        self.slot.as_deref().unwrap_or_default()
    }

    /// Moves the content to another slot.
    pub(super) fn rename_slot(&mut self, to: &str) -> io::Result<()> {
        self.folder.disk.rename_new(self.slot(), to)?;
        self.slot = Some(to.to_owned());
        Ok(())
    }

    /// Says that the slot holds this content no more (it was moved, or exchanged for another file).
    pub(super) fn placed(&mut self) {
        self.slot = None;
    }
}

impl<D: Disk> Drop for StagedFile<D> {
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            // Best effort: what stays is swept at start-up.
            let _ = self.folder.disk.unlink(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::tests::folder;

    #[test]
    fn a_download_is_checked_whatever_its_size() {
        let (disk, folder) = folder();
        for size in [0, 1, 256 * 1024, 1024 * 1024, 1024 * 1024 + 1, 3 * 1024 * 1024 + 7] {
            let content: Bytes = (0..size).map(|i: u32| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
            let whole = |expected| {
                let mut staging = folder.stage().unwrap();
                for piece in content.chunks(100_000) {
                    staging.write(content.slice_ref(piece)).unwrap();
                }
                staging.finish(expected)
            };
            let staged = whole(Md5::of(&content)).unwrap();
            assert_eq!((staged.md5, staged.size), (Md5::of(&content), u64::from(size)));
            assert_eq!(whole(Md5::of(b"something else")).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidData));
            drop(staged);
            assert!(disk.user_tree(".memsync/stage").is_empty(), "what is not placed goes");
        }
    }
}
