//! Paths that leave the scope of sync, and come back into it (invariant 5).

use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::{LocalEntry, TouchedPaths};
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry};
use crate::sync::{Base, LocalState, SkipReason};

use super::error::CycleError;
use super::memory::CycleMemory;
use super::observed::{Observed, unknown_absence};
use super::ports::Ports;
use super::unconfirmed::UnconfirmedUploads;

/// Detaches the base of each path that has left the scope, and attaches it again where the file is back with the content
/// of the base. This runs right after the scan, so that it is committed whether the proxy answers or not.
pub(super) fn commit_scope<D: Disk, R: Remote, W: World>(
    ports: &mut Ports<D, R, W>,
    observed: &Observed,
    memory: &CycleMemory,
    uploads: &UnconfirmedUploads,
) -> Result<(), CycleError> {
    let entries = ports.container.entries();
    let among: Box<dyn Iterator<Item = &RelPath>> = match &memory.unplanned {
        TouchedPaths::Everywhere => Box::new(entries.keys()),
        TouchedPaths::Paths(paths) => Box::new(paths.iter()),
    };
    let has_left = |path: &RelPath| has_left_scope(ports, observed, memory, path);
    let change = |path: &RelPath| {
        let entry = entries.get(path)?;
        let base = match entry.base {
            Base::Synced(md5) if has_left(path) => Base::Detached(md5),
            Base::Detached(md5) if observed.local_content(path) == Some(md5) => Base::Synced(md5),
            _ => return None,
        };
        Some(BaseChange::Set(path.clone(), BaseEntry { base, ..entry.clone() }))
    };
    let changes: Vec<BaseChange> = among.filter_map(change).collect();
    // An unconfirmed upload stands in for the base of a path without one. A tombstone cannot say that it is detached.
    let has_content = |path: &RelPath| entries.get(path).is_some_and(|entry| entry.base.content().is_some());
    uploads.retain(|path| has_content(path) || !has_left(path));
    if changes.is_empty() {
        // An earlier commit may have failed on the disk. After a restart, a file that was removed meanwhile would count as
        // deleted.
        return Ok(ports.container.finish_commit()?);
    }
    Ok(ports.container.commit(changes)?)
}

/// True if the path is out of scope for a lasting reason. An absent file counts as too large where the proxy's is.
fn has_left_scope<D: Disk, R: Remote, W: World>(
    ports: &Ports<D, R, W>,
    observed: &Observed,
    memory: &CycleMemory,
    path: &RelPath,
) -> bool {
    let why = match observed.found(path) {
        Some(LocalEntry { local: LocalState::Unknown(why), .. }) => Some(why.clone()),
        Some(_) => None,
        None => {
            let limit = ports.options.max_file_size;
            let too_large = observed.listed(path).filter(|entry| !entry.is_deleted && entry.size > limit);
            too_large.map(|entry| SkipReason::TooLarge(entry.size)).or_else(|| {
                // The scan has already checked a missed file against the rules.
                let is_missed = memory.missed.contains(path);
                if is_missed { None } else { unknown_absence(&observed.tree, &ports.ignored, path) }
            })
        }
    };
    why.is_some_and(|why| why.leaves_scope())
}
