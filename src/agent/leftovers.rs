//! The stage of a folder between cycles: what a crash or a failure left in it, and the conflict copies that come of it.

use std::io;

use crate::disk::Disk;
use crate::local::conflicts::is_conflict_name;
use crate::local::moves::StageReport;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::CopyLink;

use super::World;
use super::engine::{CycleError, Engine, folder_error, remedy};

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Puts in order what a crash or a failure left in `stage/`. One file that cannot be put where it belongs is safe
    /// there, and holds up nothing else.
    pub(super) fn sweep(&mut self) -> Result<(), CycleError> {
        let StageReport { left, copies, unknown } =
            self.folder.sweep(self.world.now()).map_err(folder_error(".memsync/stage"))?;
        self.leftovers = false;
        for path in unknown {
            tracing::warn!("{path}: a file of unknown origin was in .memsync/stage; `memsync history` has it now");
        }
        let told = |e: &io::Error| format!("its old content waits in .memsync/stage: {e}; {}", remedy(e));
        self.stuck = left.into_iter().map(|left| (left.path, told(&left.source))).collect();
        for (path, why) in &self.stuck {
            // With a path it is in `problems`, which are told once.
            match path {
                Some(path) => tracing::debug!("{path}: {why}"),
                None => tracing::warn!(".memsync/stage: {why}"),
            }
        }
        if copies.is_empty() {
            return Ok(());
        }
        for (copy, original) in copies {
            self.link_copy(copy, original);
        }
        // This may fail, so it comes last: what is left in the stage must be known by then.
        Ok(self.container.commit(Vec::new())?)
    }

    /// Notes the file that a conflict copy is of. A copy of a copy is one of the first original. The caller commits.
    pub(super) fn link_copy(&mut self, copy: RelPath, original: RelPath) {
        let original = match self.container.header().copies.get(&original) {
            Some(link) => link.original.clone(),
            // Made elsewhere: its name, which the new copy has too, says what it is of.
            None if is_conflict_name(original.file_name()) => return,
            None => original,
        };
        let device = self.folder.device().to_owned();
        self.container.link_copy(copy, CopyLink { original, device, is_emptied: false });
    }

    /// Whether something that was displaced could not be put where it belongs yet.
    pub fn has_leftovers(&self) -> bool {
        self.leftovers || !self.stuck.is_empty()
    }
}
