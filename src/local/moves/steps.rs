//! The moves: create, replace, trash.

use std::io;

use crate::digest::Md5;
use crate::disk::{Disk, FileKind, FileStat};
use crate::failpoint;
use crate::path::dir_of;
use crate::sync::SkipReason;

use super::super::history::VersionKind;
use super::super::stage::StagedFile;
use super::super::stat_trust::unchanged_stat;
use super::mover::{BEING_WRITTEN, FileOrigin, Mover, is_in_history};
use super::types::{FileMove, MoveOutcome};

impl<D: Disk> Mover<'_, D> {
    pub(super) fn carry_out_one(&mut self, step: FileMove<D>, slot: &str) -> MoveOutcome {
        let outcome = match step {
            FileMove::Create { at, staged, .. } => self.create(&at, staged),
            FileMove::Replace { path, at, staged, expect } | FileMove::Merge { path, at, staged, expect, .. } => {
                self.replace(FileOrigin { path: &path, at: &at }, staged, Some(expect))
            }
            FileMove::Conflict { path, at, staged } => self.replace(FileOrigin { path: &path, at: &at }, staged, None),
            FileMove::Swap { path, at, staged, expect } => {
                self.swap(FileOrigin { path: &path, at: &at }, staged, expect)
            }
            FileMove::Trash { path, at, expect } => self.trash(FileOrigin { path: &path, at: &at }, slot, expect),
        };
        outcome.unwrap_or_else(MoveOutcome::Failed)
    }

    fn create(&mut self, at: &str, mut staged: StagedFile<D>) -> io::Result<MoveOutcome> {
        // The folder exists if this batch has just placed another file in it.
        if !self.touched.contains(dir_of(at))
            && let Some(clash) = self.folder.ensure_parents(at, &mut self.touched)?
        {
            return Ok(MoveOutcome::Blocked(SkipReason::Clash(clash)));
        }
        failpoint::pass("create.before");
        let disk = &*self.folder.disk;
        let placed = match disk.rename_new(staged.slot(), at) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if !disk.stat(at).is_ok_and(|meta| meta.kind == FileKind::Dir) {
                    return Ok(MoveOutcome::stale());
                }
                // An empty folder of the user makes room for the file.
                if !self.folder.make_room(at)? {
                    return Ok(MoveOutcome::Blocked(SkipReason::Clash(at.to_owned())));
                }
                disk.rename_new(staged.slot(), at)
            }
            placed => placed,
        };
        match placed {
            Ok(()) => staged.release(),
            // The user created a file here, or removed the folder, a moment ago.
            Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                return Ok(MoveOutcome::stale());
            }
            Err(e) => return Err(e),
        }
        failpoint::pass("create.renamed");
        self.touched.insert(dir_of(at).to_owned());
        Ok(MoveOutcome::Done { copy: None, stat: self.placed_stat(at, &staged) })
    }

    /// The stat of a file just placed, if it proves that the file still has the staged content.
    pub(super) fn placed_stat(&self, at: &str, staged: &StagedFile<D>) -> Option<FileStat> {
        unchanged_stat(&staged.meta, &self.folder.disk.stat(at).ok()?)
    }

    /// Exchanges the staged file and the file at its path. False if no file is there any more.
    pub(super) fn exchange(&mut self, staged: &mut StagedFile<D>, at: &str) -> io::Result<bool> {
        match self.folder.exchange(staged, at) {
            Ok(()) => {
                self.touched.insert(dir_of(at).to_owned());
                Ok(true)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Replaces the content `expect`, which goes to history. Any other content becomes a conflict copy.
    fn replace(
        &mut self,
        origin: FileOrigin<'_>,
        mut staged: StagedFile<D>,
        expect: Option<Md5>,
    ) -> io::Result<MoveOutcome> {
        let slot = staged.slot().to_owned();
        failpoint::pass("replace.before");
        if !self.exchange(&mut staged, origin.at)? {
            return Ok(MoveOutcome::stale());
        }
        failpoint::pass("replace.exchanged");
        let Some(displaced) = self.folder.digest_displaced(&slot)? else {
            return self.undo_exchange(&slot, origin, staged.md5);
        };
        let copy = if expect == Some(displaced) || displaced == staged.md5 {
            self.keep(&slot, origin.at, VersionKind::Replaced)?;
            None
        } else {
            self.set_aside(&slot, origin, displaced)?
        };
        failpoint::pass("replace.kept");
        Ok(MoveOutcome::Done { copy, stat: self.placed_stat(origin.at, &staged) })
    }

    /// Puts back a displaced path that is no readable file. The download may have been edited in its place meanwhile.
    fn undo_exchange(&mut self, slot: &str, origin: FileOrigin<'_>, download: Md5) -> io::Result<MoveOutcome> {
        self.folder.disk.exchange(slot, origin.at)?;
        let copy = match self.folder.digest_displaced(slot)? {
            Some(md5) if md5 == download => {
                self.folder.disk.unlink(slot)?;
                None
            }
            other => self.set_aside(slot, origin, other.unwrap_or(BEING_WRITTEN))?,
        };
        Ok(MoveOutcome::Stale { copy })
    }

    fn trash(&mut self, origin: FileOrigin<'_>, slot: &str, expect: Md5) -> io::Result<MoveOutcome> {
        use io::ErrorKind::{AlreadyExists, NotADirectory, NotFound};
        failpoint::pass("trash.before");
        match self.folder.disk.rename_new(origin.at, slot) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), NotFound | NotADirectory | AlreadyExists) => return Ok(MoveOutcome::stale()),
            Err(e) => return Err(e),
        }
        failpoint::pass("trash.displaced");
        self.touched.insert(dir_of(origin.at).to_owned());
        let displaced = self.folder.digest_displaced(slot)?;
        if displaced == Some(expect) {
            if !is_in_history(slot) {
                self.keep(slot, origin.at, VersionKind::Removed)?;
            }
            failpoint::pass("trash.kept");
            return Ok(MoveOutcome::Done { copy: None, stat: None });
        }
        Ok(MoveOutcome::Stale { copy: self.put_back(slot, origin, displaced)? })
    }
}
