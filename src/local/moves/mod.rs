//! Changes the user's files: create, replace, merge, trash, and set a conflict copy aside.
//!
//! **Displace, then verify** (invariant 6). A move first renames the file in its way, in one step, and reads it only
//! then. So an edit of the last moment is never lost. The displaced file goes to history if its content is the one that
//! the plan saw. Otherwise it becomes a conflict copy.
//!
//! **Order on disk** (invariant 7), for a whole batch at once: contents and intents durable → moves → names durable →
//! the caller commits the base. [`Folder::sweep`] repairs the state that a crash leaves between any two steps, because
//! the *intent* of the batch records each displaced file: its origin and its expected content.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use jiff::Timestamp;

use crate::disk::Disk;
use crate::failpoint;
use crate::path::dir_of;

use super::Folder;
use super::folder::STAGE;
use mover::{Mover, is_in_history};
use prepare::{MoveBatch, PreparedMove};

mod displaced;
mod durable;
mod folders;
mod inputs;
mod intent;
mod mover;
mod prepare;
mod steps;
mod swap;
mod sweep;
mod types;

pub use sweep::{StageReport, SweepFailure};
pub use types::{FileMove, MoveOutcome, MoveReport};

impl<D: Disk> Folder<D> {
    /// Carries out a batch of moves and makes it durable, together with the content of the files in `settle` (names on
    /// the disk). The caller may then commit them to the base.
    ///
    /// # Errors
    /// The disk cannot be made durable. Commit nothing then; the next cycle finds out the state of the folder.
    pub fn perform(&self, moves: Vec<FileMove<D>>, settle: &[String], now: Timestamp) -> io::Result<MoveReport> {
        let mut mover = Mover::new(self, now);
        let mut batch = mover.prepare(moves);
        let intent = if batch.intents.is_empty() { None } else { Some(self.write_intents(&batch.intents)?) };
        failpoint::pass("moves.intended");
        batch.reserve_slots();
        failpoint::pass("moves.marked");
        let mut unsynced = self.sync_before(&batch, settle, intent.as_deref()).inspect_err(|_| {
            // Nothing has been displaced yet.
            intent.iter().for_each(|name| self.discard_slot(name));
        })?;
        failpoint::pass("moves.durable");
        mover
            .keep_inputs(&mut batch, &mut unsynced)
            .inspect_err(|_| intent.iter().for_each(|name| self.discard_slot(name)))?;
        let (moved, left_over) = mover.carry_out(batch, &mut unsynced);
        mover.sync_names()?;
        failpoint::pass("moves.placed");
        // After a failure the intent stays for the sweep.
        if let (Some(intent), false) = (intent, left_over) {
            match self.disk.unlink(&intent) {
                // The sweep of another process has removed it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        unsynced.retain(|name, _| settle.contains(name));
        Ok(MoveReport { moved, unsettled: unsynced, left_over })
    }

    /// Makes everything durable that must be so before the first move. Returns the files that are not.
    fn sync_before(
        &self,
        batch: &MoveBatch<D>,
        settle: &[String],
        intent: Option<&str>,
    ) -> io::Result<BTreeMap<String, io::Error>> {
        let files: Vec<String> =
            settle.iter().chain(&batch.to_sync).cloned().chain(intent.map(str::to_owned)).collect();
        let mut dirs: BTreeSet<String> = settle.iter().map(|path| dir_of(path).to_owned()).collect();
        if !batch.steps.is_empty() {
            dirs.insert(STAGE.to_owned());
        }
        let mut unsynced = self.sync_contents(&files, &dirs)?;
        // No file may be displaced unless the sweep would find its intent.
        match intent.and_then(|name| unsynced.remove(name)) {
            Some(e) => Err(e),
            None => Ok(unsynced),
        }
    }
}

impl<D: Disk> Mover<'_, D> {
    /// Carries out the moves of a batch whose files are durable, but for those in `unsynced`. Returns the outcome of
    /// each, and true if a displaced file is left in the stage.
    fn carry_out(
        &mut self,
        batch: MoveBatch<D>,
        unsynced: &mut BTreeMap<String, io::Error>,
    ) -> (Vec<MoveOutcome>, bool) {
        let mut moved = Vec::with_capacity(batch.steps.len());
        let mut left_over = false;
        let mut vacated = BTreeSet::new();
        if !batch.steps.is_empty() {
            self.touched.insert(STAGE.to_owned());
        }
        for prepared in batch.steps {
            let PreparedMove { step, slot } = match prepared {
                Ok(prepared) => prepared,
                Err(outcome) => {
                    moved.push(outcome);
                    continue;
                }
            };
            if let Some(outcome) = refuse_unsynced(&step, &slot, unsynced) {
                moved.push(outcome);
                continue;
            }
            let origin = matches!(step, FileMove::Trash { .. }).then(|| dir_of(step.at()).to_owned());
            let outcome = self.carry_out_one(step, &slot);
            left_over |= matches!(outcome, MoveOutcome::Failed(_));
            vacated.extend(match outcome {
                MoveOutcome::Done { .. } => origin,
                _ if is_in_history(&slot) => Some(dir_of(&slot).to_owned()),
                _ => None,
            });
            moved.push(outcome);
        }
        for failed in self.history.place_copies(self.folder) {
            tracing::warn!("{}: its old content waits in {STAGE}: {}", failed.at, failed.source);
            left_over = true;
        }
        // Remove empty folders only now: a later move may have needed one of them.
        for dir in vacated.iter().rev() {
            self.folder.remove_empty(dir, &mut self.touched);
        }
        (moved, left_over)
    }
}

/// The outcome of a move whose content is not durable; `None` if it is. Such a move displaces nothing.
fn refuse_unsynced<D: Disk>(
    step: &FileMove<D>,
    slot: &str,
    unsynced: &mut BTreeMap<String, io::Error>,
) -> Option<MoveOutcome> {
    if let Some(e) = unsynced.remove(slot) {
        return Some(if durable::is_users_doing(&e) { MoveOutcome::stale() } else { MoveOutcome::Failed(e) });
    }
    let is_conflict = matches!(step, FileMove::Conflict { .. });
    match unsynced.get(step.at()) {
        Some(e) if is_conflict && !durable::is_users_doing(e) => {
            Some(MoveOutcome::Failed(io::Error::new(e.kind(), e.to_string())))
        }
        _ => None,
    }
}
