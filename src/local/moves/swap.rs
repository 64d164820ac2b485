//! The move for a compare-and-swap: replaces the expected content, or puts everything back.

use std::io;

use crate::digest::Md5;
use crate::disk::Disk;
use crate::failpoint;
use crate::path::RelPath;

use super::super::history::VersionKind;
use super::super::stage::{StagedFile, displaced_slot};
use super::mover::{BEING_WRITTEN, FileOrigin, Mover};
use super::types::MoveOutcome;

impl<D: Disk> Mover<'_, D> {
    /// Exchanges the staged file and the file at its path, then verifies the displaced file. If its content is not
    /// `expect`, it returns to its path.
    pub(super) fn swap(
        &mut self,
        origin: FileOrigin<'_>,
        mut staged: StagedFile<D>,
        expect: Md5,
    ) -> io::Result<MoveOutcome> {
        let slot = staged.slot().to_owned();
        failpoint::pass("swap.before");
        if !self.exchange(&mut staged, origin.at)? {
            return Ok(MoveOutcome::stale());
        }
        failpoint::pass("swap.exchanged");
        let displaced = self.folder.digest_displaced(&slot)?;
        if displaced == Some(expect) {
            self.keep(&slot, origin.at, VersionKind::Replaced)?;
            failpoint::pass("swap.kept");
            return Ok(MoveOutcome::Done { copy: None, stat: self.placed_stat(origin.at, &staged) });
        }
        let copy = self.swap_back(&slot, origin, displaced, staged.md5)?;
        Ok(MoveOutcome::Stale { copy })
    }

    /// Returns a displaced file to its path, and removes the incoming file with the content `incoming` from there. An
    /// incoming file that a program has edited meanwhile becomes a conflict copy.
    fn swap_back(
        &mut self,
        slot: &str,
        origin: FileOrigin<'_>,
        displaced: Option<Md5>,
        incoming: Md5,
    ) -> io::Result<Option<RelPath>> {
        let disk = &*self.folder.disk;
        let mut taken = slot.to_owned();
        match disk.exchange(slot, origin.at) {
            Ok(()) => {}
            // A program has removed the incoming file.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return self.put_back(slot, origin, displaced);
            }
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                taken = displaced_slot(&self.folder.slot());
                disk.rename_new(origin.at, &taken)?;
                disk.rename_new(slot, origin.at)?;
            }
            Err(e) => return Err(e),
        }
        failpoint::pass("swap.returned");
        match self.folder.digest_displaced(&taken)? {
            Some(md5) if md5 == incoming => {
                self.folder.disk.unlink(&taken)?;
                Ok(None)
            }
            other => self.set_aside(&taken, origin, other.unwrap_or(BEING_WRITTEN)),
        }
    }
}
