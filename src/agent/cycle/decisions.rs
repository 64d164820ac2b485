//! Decisions of a person: a changed folder, a proxy that was reset, a held deletion.

use std::collections::BTreeMap;

use crate::agent::world::World;
use crate::digest::Md5;
use crate::disk::Disk;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry, RemoteState, StateError};
use crate::sync::safety::{Halt, reject};
use crate::sync::{Base, LocalState};

use super::gates::Gates;
use super::observed::unknown_absence;
use super::parts::CycleParts;

/// Lets the plan or the reset `id` through with the next cycle. False if it does not exist.
pub(in crate::agent) fn approve<D: Disk, R: Remote, W: World>(
    parts: &mut CycleParts<D, R, W>,
    gates: &mut Gates,
    id: &str,
) -> Result<bool, StateError> {
    if gates.reset.as_ref().map(Halt::id) == Some(id) {
        accept_reset(parts)?;
        gates.reset = None;
        return Ok(true);
    }
    let Some(held) = gates.take_held(id) else { return Ok(false) };
    gates.approved.extend(held.steps.into_iter().map(|step| step.path));
    parts.memory.plan_everything();
    Ok(true)
}

/// Offers the local content to a store that was reset, with `new` as the precondition. Differences become conflicts.
/// Nothing is deleted, even where the store has tombstones.
fn accept_reset<D: Disk, R: Remote, W: World>(parts: &mut CycleParts<D, R, W>) -> Result<(), StateError> {
    keep_union(parts);
    parts.ports.container.set_remote(RemoteState::default());
    // The held index has our own last writes, which the store may have lost.
    parts.observed.forget_index();
    parts.ports.remote.forget_index();
    parts.drop_transfers();
    parts.memory.plan_everything();
    // If this fails, the next commit writes it.
    parts.ports.container.save(parts.ports.world.now())
}

/// Has the next cycle bring back the files of the held plan `id`. False if it does not exist.
pub(in crate::agent) fn reject_held<D: Disk, R: Remote, W: World>(
    parts: &mut CycleParts<D, R, W>,
    gates: &mut Gates,
    id: &str,
) -> Result<bool, StateError> {
    let Some(held) = gates.take_held(id) else { return Ok(false) };
    held.steps.iter().for_each(|step| parts.uploads.forget(&step.path));
    let change = |(path, base): (RelPath, Option<Base>)| match base {
        Some(base) => BaseChange::Set(path, BaseEntry { base, stat: None, version: 0 }),
        None => BaseChange::Forget(path),
    };
    parts.ports.container.commit(reject(&held).into_iter().map(change).collect())?;
    parts.memory.plan_everything();
    Ok(true)
}

/// Reduces the base to the entries that a union of both sides needs. A file that is here is compared again, and no
/// tombstone removes it. A file that the scan did not find is no evidence of a deletion.
pub(in crate::agent) fn keep_union<D: Disk, R: Remote, W: World>(parts: &mut CycleParts<D, R, W>) {
    let seen = |md5| BaseEntry { base: Base::Seen(md5), stat: None, version: 0 };
    let entries = parts.ports.container.entries();
    let mut union = BTreeMap::new();
    for (path, entry) in entries {
        if unknown_absence(&parts.observed.tree, &parts.ports.ignored, path).is_some() {
            union.insert(path.clone(), seen(content_of(entry.base)));
        }
    }
    for (path, found) in parts.observed.tree.found() {
        let content = match (&found.local, entries.get(path)) {
            (LocalState::File(md5), _) => *md5,
            (LocalState::Unknown(_), Some(entry)) => content_of(entry.base),
            (LocalState::Unknown(_), None) => continue,
        };
        union.insert(path.clone(), seen(content));
    }
    parts.ports.container.replace_all(union);
    parts.memory.missed.clear();
    parts.uploads.clear();
}

/// The content that an entry is about, live or deleted.
fn content_of(base: Base) -> Md5 {
    match base {
        Base::Synced(md5) | Base::Detached(md5) | Base::Seen(md5) => md5,
    }
}
