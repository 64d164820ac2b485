//! [`StageLeftovers`]: files that a crash or a failure left in `.memsync/stage`, and the conflict copies made of them.

use std::io;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::conflicts::is_conflict_name;
use crate::local::moves::StageReport;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::CopyLink;

use super::ports::EnginePorts;
use super::report::{CycleError, folder_error, remedy};

/// The files that are left in the stage of a folder.
#[derive(Debug, Default)]
pub(in crate::agent) struct StageLeftovers {
    /// Something new may be there.
    pub is_dirty: bool,
    /// The files that the last sweep could not put in order, with the reason. Every full scan tries them again.
    pub stuck: Vec<(Option<RelPath>, String)>,
}

impl StageLeftovers {
    pub(crate) fn is_empty(&self) -> bool {
        !self.is_dirty && self.stuck.is_empty()
    }

    /// Puts the stage in order. A file that cannot be put where it belongs is safe there and holds up no other.
    pub(crate) fn sweep<D: Disk, R: Remote, W: World>(
        &mut self,
        ports: &mut EnginePorts<D, R, W>,
    ) -> Result<(), CycleError> {
        let StageReport { left, copies, unknown } =
            ports.folder.sweep(ports.world.now()).map_err(folder_error(".memsync/stage"))?;
        self.is_dirty = false;
        for path in unknown {
            tracing::warn!("{path}: a file of unknown origin was in .memsync/stage; `memsync history` has it now");
        }
        let describe = |e: &io::Error| format!("its old content waits in .memsync/stage: {e}; {}", remedy(e));
        self.stuck = left.into_iter().map(|left| (left.path, describe(&left.source))).collect();
        for (path, why) in &self.stuck {
            match path {
                // The log has it once, as a problem of the path.
                Some(path) => tracing::debug!("{path}: {why}"),
                None => tracing::warn!(".memsync/stage: {why}"),
            }
        }
        if copies.is_empty() {
            return Ok(());
        }
        for (copy, original) in copies {
            link_copy(ports, copy, original);
        }
        // The commit may fail, so it comes last: the stuck files must be known by then.
        Ok(ports.container.commit(Vec::new())?)
    }
}

/// Notes which file a conflict copy is of. A copy of a copy belongs to the first original. The caller commits.
pub(super) fn link_copy<D: Disk, R: Remote, W: World>(
    ports: &mut EnginePorts<D, R, W>,
    copy: RelPath,
    original: RelPath,
) {
    let original = match ports.container.header().copies.get(&original) {
        Some(link) => link.original.clone(),
        // Another machine made this copy. Its name says which file it is of, and the new copy's name does too.
        None if is_conflict_name(original.file_name()) => return,
        None => original,
    };
    let device = ports.folder.device().to_owned();
    ports.container.link_copy(copy, CopyLink { original, device, is_emptied: false });
}
