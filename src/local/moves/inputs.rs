//! The inputs of a merge go to history before its result replaces anything.

use std::collections::BTreeMap;
use std::io;

use crate::disk::Disk;
use crate::failpoint;

use super::super::history::VersionKind;
use super::super::stage::StagedFile;
use super::mover::Mover;
use super::prepare::{MoveBatch, PreparedMove};
use super::types::{FileMove, MoveOutcome};

impl<D: Disk> Mover<'_, D> {
    /// Moves the inputs of all merges to history, and makes them durable there. A merge whose inputs cannot be kept fails
    /// before it displaces anything. `unsynced`: the files whose content is not durable.
    ///
    /// # Errors
    /// The names in history cannot be made durable. Carry out no move then.
    pub(super) fn keep_inputs(
        &mut self,
        batch: &mut MoveBatch<D>,
        unsynced: &mut BTreeMap<String, io::Error>,
    ) -> io::Result<()> {
        let mut has_merge = false;
        for prepared in &mut batch.steps {
            let Ok(PreparedMove { step: FileMove::Merge { at, inputs, .. }, .. }) = prepared else { continue };
            has_merge = true;
            let mut keep = |input: &mut StagedFile<D>| match unsynced.remove(input.slot()) {
                Some(e) => Err(e),
                None => self.history.take(self.folder, input.slot(), at, VersionKind::Merged).map(|()| input.release()),
            };
            if let Err(e) = inputs.iter_mut().try_for_each(&mut keep) {
                *prepared = Err(MoveOutcome::Failed(e));
            }
        }
        if !has_merge {
            return Ok(());
        }
        failpoint::pass("merge.moved");
        self.folder.sync_dirs(&self.history.dirs())?;
        failpoint::pass("merge.kept");
        Ok(())
    }
}
