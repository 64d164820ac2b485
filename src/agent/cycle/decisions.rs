//! Decisions of a person: a changed folder, a proxy that was reset, a held deletion.

use std::collections::BTreeMap;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry, RemoteState, StateError};
use crate::sync::safety::{Halt, reject};
use crate::sync::{Base, LocalState};

use super::Engine;
use super::parts::CycleParts;

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Lets the plan or the reset `id` through with the next cycle. False if it does not exist.
    pub fn approve(&mut self, id: &str) -> Result<bool, StateError> {
        if self.gates.reset.as_ref().map(Halt::id) == Some(id) {
            self.parts.accept_reset()?;
            self.gates.reset = None;
            return Ok(true);
        }
        let Some(held) = self.gates.take_held(id) else { return Ok(false) };
        self.gates.approved.extend(held.steps.into_iter().map(|step| step.path));
        self.parts.memory.plan_everything();
        Ok(true)
    }

    /// Has the next cycle bring back the files of the held plan `id`. False if it does not exist.
    pub fn reject(&mut self, id: &str) -> Result<bool, StateError> {
        let Some(held) = self.gates.take_held(id) else { return Ok(false) };
        held.steps.iter().for_each(|step| self.parts.uploads.forget(&step.path));
        let change = |(path, base): (RelPath, Option<Base>)| match base {
            Some(base) => BaseChange::Set(path, BaseEntry { base, stat: None, version: 0 }),
            None => BaseChange::Forget(path),
        };
        self.parts.ports.container.commit(reject(&held).into_iter().map(change).collect())?;
        self.parts.memory.plan_everything();
        Ok(true)
    }
}

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// Offers the local content to a store that was reset, with `new` as the precondition. Differences become
    /// conflicts. Nothing is deleted, even where the store has tombstones.
    fn accept_reset(&mut self) -> Result<(), StateError> {
        self.keep_union();
        self.ports.container.set_remote(RemoteState::default());
        // The held index has our own last writes, which the store may have lost.
        self.observed.forget_index();
        self.ports.remote.forget_index();
        self.drop_transfers();
        self.memory.plan_everything();
        // If this fails, the next commit writes it.
        self.ports.container.save(self.ports.world.now())
    }

    /// Reduces the base to the entries that a union of both sides needs. A file that is here is compared again, and no
    /// tombstone removes it. A file that the scan did not find is no evidence of a deletion.
    pub(crate) fn keep_union(&mut self) {
        let Self { ports, observed, .. } = self;
        let seen = |base: Base| BaseEntry { base: Base::Seen(base.md5()), stat: None, version: 0 };
        let entries = ports.container.entries();
        let mut union = BTreeMap::new();
        for (path, entry) in entries {
            if observed.unknown_absence(&ports.ignored, path).is_some() {
                union.insert(path.clone(), seen(entry.base));
            }
        }
        for (path, found) in observed.tree.found() {
            let base = match (&found.local, entries.get(path)) {
                (LocalState::File(md5), _) => Base::Seen(*md5),
                (LocalState::Unknown(_), Some(entry)) => entry.base,
                (LocalState::Unknown(_), None) => continue,
            };
            union.insert(path.clone(), seen(base));
        }
        ports.container.replace_all(union);
        self.memory.missed.clear();
        self.uploads.clear();
    }
}
