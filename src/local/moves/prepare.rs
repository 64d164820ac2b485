//! The first half of a batch: checks each path, and writes down the files that the moves are about to displace.

use std::io;

use crate::disk::{Disk, DiskFile, FileKind};

use super::super::stage::displaced_slot;
use super::intent::MoveIntent;
use super::mover::Mover;
use super::types::{FileMove, MoveOutcome};

/// Moves that are ready to be carried out.
pub(super) struct MoveBatch<D: Disk> {
    /// In the order of the moves. A move that cannot be done has its outcome already.
    pub(super) steps: Vec<Result<PreparedMove<D>, MoveOutcome>>,
    pub(super) intents: Vec<MoveIntent>,
    /// Files that must be durable before the first move.
    pub(super) to_sync: Vec<String>,
}

/// A move, and the path that the displaced file goes to. A move that displaces nothing has its staged file there.
pub(super) struct PreparedMove<D: Disk> {
    pub(super) step: FileMove<D>,
    pub(super) slot: String,
}

impl<D: Disk> MoveBatch<D> {
    /// Renames each incoming file that will be exchanged, so that the name of its slot says that a user's file may come
    /// to be there.
    pub(super) fn reserve_slots(&mut self) {
        for prepared in &mut self.steps {
            let Ok(PreparedMove { step, slot }) = prepared else { continue };
            if let FileMove::Replace { staged, .. }
            | FileMove::Merge { staged, .. }
            | FileMove::Swap { staged, .. }
            | FileMove::Conflict { staged, .. } = step
                && let Err(e) = staged.rename_slot(slot)
            {
                *prepared = Err(MoveOutcome::Failed(e));
            }
        }
    }
}

impl<D: Disk> Mover<'_, D> {
    pub(super) fn prepare(&mut self, moves: Vec<FileMove<D>>) -> MoveBatch<D> {
        let mut batch = MoveBatch { steps: Vec::with_capacity(moves.len()), intents: Vec::new(), to_sync: Vec::new() };
        for step in moves {
            let prepared = self.prepare_one(step, &mut batch);
            batch.steps.push(prepared);
        }
        batch
    }

    fn prepare_one(&mut self, step: FileMove<D>, batch: &mut MoveBatch<D>) -> Result<PreparedMove<D>, MoveOutcome> {
        let mut slot = match (&step, step.staged()) {
            (FileMove::Create { .. }, Some(staged)) => staged.slot().to_owned(),
            (_, Some(staged)) => displaced_slot(staged.slot()),
            (_, None) => displaced_slot(&self.folder.slot()),
        };
        if step.staged().is_some() {
            batch.to_sync.push(slot.clone());
        }
        batch.to_sync.extend(step.inputs().iter().map(|input| input.slot().to_owned()));
        let expect = match &step {
            FileMove::Create { .. } => return Ok(PreparedMove { step, slot }),
            FileMove::Replace { expect, .. }
            | FileMove::Merge { expect, .. }
            | FileMove::Swap { expect, .. }
            | FileMove::Trash { expect, .. } => Some(*expect),
            FileMove::Conflict { at, .. } => {
                // The conflict copy must be durable before its name belongs to the content of the server.
                batch.to_sync.push(at.clone());
                None
            }
        };
        if let Some(reserved) = self.prepare_displaced(&step)? {
            slot = reserved;
        }
        batch.intents.push(MoveIntent {
            slot: slot.clone(),
            incoming_inode: step.staged().map_or(0, |staged| staged.meta.inode),
            at: step.at().to_owned(),
            expect,
            put_back: matches!(step, FileMove::Trash { .. }),
        });
        Ok(PreparedMove { step, slot })
    }

    /// Checks the file that is about to be displaced. Returns the path in history that it can move to directly.
    fn prepare_displaced(&mut self, step: &FileMove<D>) -> Result<Option<String>, MoveOutcome> {
        let (disk, at) = (&*self.folder.disk, step.at());
        let meta = match disk.stat(at) {
            Ok(meta) if meta.kind == FileKind::File => meta,
            Ok(_) => return Err(MoveOutcome::stale()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MoveOutcome::stale()),
            Err(e) => return Err(MoveOutcome::Failed(e)),
        };
        if matches!(step, FileMove::Swap { .. }) && disk.open(at).is_ok_and(|file| file.is_open_for_writing()) {
            // Check before the exchange, which other programs can see.
            let why = "a program has it open for writing; try again when that is done";
            return Err(MoveOutcome::Failed(io::Error::new(io::ErrorKind::ResourceBusy, why)));
        }
        for staged in step.staged().into_iter().chain(step.inputs()) {
            // The new file keeps the permissions of the old one.
            let file = staged.open().map_err(MoveOutcome::Failed)?;
            file.set_mode(meta.mode & 0o777).map_err(MoveOutcome::Failed)?;
        }
        if step.staged().is_some() {
            return Ok(None);
        }
        if disk.open(at).is_ok_and(|file| file.is_open_for_writing()) {
            // Later writes would change the version in history. Check before the rename, which other programs can see.
            let why = "a program has it open for writing, it is removed when that is done";
            return Err(MoveOutcome::Failed(io::Error::new(io::ErrorKind::ResourceBusy, why)));
        }
        // If history has no path for it now, the error comes from the attempt to keep it.
        Ok(if meta.links <= 1 { self.history.reserve(disk, at).ok() } else { None })
    }
}
