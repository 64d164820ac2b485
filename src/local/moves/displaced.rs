//! Displaced files: how they leave their path, and where they go. A displaced file may hold an edit that no scan has
//! seen, so every path through this file keeps its content.

use std::io;

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile};
use crate::failpoint;
use crate::path::{RelPath, dir_of};

use super::super::Folder;
use super::super::conflicts::conflict_name;
use super::super::history::VersionKind;
use super::super::source;
use super::super::stage::StagedFile;
use super::mover::{BEING_WRITTEN, FileOrigin, Mover};

/// How often a displaced file is read before it counts as being written.
const READ_TRIES: usize = 3;

/// Names to try for a conflict copy of one file and content.
const MAX_COPIES: u32 = 100;

impl<D: Disk> Mover<'_, D> {
    /// Moves a displaced file to history.
    pub(super) fn keep(&mut self, slot: &str, at: &str, kind: VersionKind) -> io::Result<()> {
        self.history.take(self.folder, slot, at, kind)
    }

    /// Moves a displaced file back to its origin. If that path is taken, the file becomes a conflict copy.
    pub(super) fn put_back(
        &mut self,
        slot: &str,
        origin: FileOrigin<'_>,
        content: Option<Md5>,
    ) -> io::Result<Option<RelPath>> {
        use io::ErrorKind::{AlreadyExists, NotADirectory, NotFound};
        self.folder.ensure_parents(origin.at, &mut self.touched)?;
        self.touched.insert(dir_of(origin.at).to_owned());
        match self.folder.disk.rename_new(slot, origin.at) {
            Ok(()) => Ok(None),
            Err(e) if matches!(e.kind(), AlreadyExists | NotFound | NotADirectory) => {
                self.set_aside(slot, origin, content.unwrap_or(BEING_WRITTEN))
            }
            Err(e) => Err(e),
        }
    }

    /// Makes a displaced file a conflict copy next to its origin. If that folder is gone or the path is too long, the copy
    /// goes to the nearest folder above. Returns `None` if the file went to history instead: a copy with this content exists already, or no name is free.
    pub(super) fn set_aside(
        &mut self,
        slot: &str,
        origin: FileOrigin<'_>,
        content: Md5,
    ) -> io::Result<Option<RelPath>> {
        let mut dir = dir_of(origin.at);
        for n in 1..=MAX_COPIES {
            let name = conflict_name(origin.path.file_name(), self.folder.device(), content, n);
            let copy_at = self.find_copy_path(&mut dir, &name)?;
            let Ok(copy) = RelPath::from_disk(&copy_at) else { continue };
            match self.folder.disk.rename_new(slot, &copy_at) {
                Ok(()) => {
                    failpoint::pass("conflict.renamed");
                    self.touched.insert(dir_of(&copy_at).to_owned());
                    return Ok(Some(copy));
                }
                // A copy that an earlier attempt made. The user may have edited it since.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    if self.folder.has_content(&copy_at, content) {
                        break;
                    }
                }
                // The user has just removed the folder, or put a file in its place. Try again.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(e),
            }
        }
        self.keep(slot, origin.at, VersionKind::Replaced)?;
        Ok(None)
    }

    /// The path for a copy called `name`: in `dir`, or in the nearest folder above it that is possible. History alone is
    /// not enough for a copy, because old versions are removed.
    fn find_copy_path(&mut self, dir: &mut &str, name: &str) -> io::Result<String> {
        loop {
            let copy_at = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            let fits = dir.is_empty() || RelPath::from_disk(&copy_at).is_ok();
            if fits && self.folder.ensure_parents(&copy_at, &mut self.touched)?.is_none() {
                return Ok(copy_at);
            }
            *dir = dir_of(dir);
        }
    }
}

impl<D: Disk> Folder<D> {
    fn has_content(&self, at: &str, content: Md5) -> bool {
        matches!(source::digest(&*self.disk, at, &mut Vec::new()), Ok(Some(d)) if d.md5 == content)
    }

    /// The digest of a displaced file. [`BEING_WRITTEN`] if a program still writes to it, `None` if it is no readable
    /// file.
    pub(super) fn digest_displaced(&self, slot: &str) -> io::Result<Option<Md5>> {
        let mut buf = Vec::new();
        for _ in 0..READ_TRIES {
            let read = self.disk.open(slot).and_then(|mut file| {
                let digested = source::digest_open(&mut file, &mut buf)?;
                // A program that has the file open could still write to the version in history.
                Ok(digested.filter(|_| !file.is_open_for_writing()))
            });
            match read {
                Ok(Some(digested)) => return Ok(Some(digested.md5)),
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(e),
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(BEING_WRITTEN))
    }

    /// Exchanges the staged file and the file at `at`, so that the slot holds the displaced file. Without
    /// `RENAME_EXCHANGE` it takes three renames: readers may then miss the file for a moment.
    pub(super) fn exchange(&self, staged: &mut StagedFile<D>, at: &str) -> io::Result<()> {
        let slot = staged.slot().to_owned();
        match self.disk.exchange(&slot, at) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
            other => {
                if other.is_ok() {
                    staged.release();
                }
                return other;
            }
        }
        // The intent names this slot for the displaced file, so the incoming file must leave it first.
        let incoming = self.slot();
        self.disk.rename_new(&slot, &incoming)?;
        staged.release();
        let failed = match self.disk.rename_new(at, &slot).and_then(|()| self.place_incoming(&incoming, &slot, at)) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        // If the displaced file could not return, the sweep knows by the incoming file that the exchange was cut off.
        if self.disk.stat(&slot).is_err() {
            self.discard_slot(&incoming);
        }
        Err(failed)
    }

    /// Moves the incoming file to its free path, or the displaced one back from `slot`.
    fn place_incoming(&self, incoming: &str, slot: &str, at: &str) -> io::Result<()> {
        self.disk.rename_new(incoming, at).map_err(|e| match self.disk.rename_new(slot, at) {
            Ok(()) => e,
            // For example, another program has created a file at the path.
            Err(stuck) => io::Error::other(format!("{e}; {stuck}")),
        })
    }
}
