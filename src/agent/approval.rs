//! What a person decides: a changed folder, a proxy that was reset, a held deletion.

use std::collections::BTreeMap;

use crate::digest::Md5;
use crate::disk::Disk;
use crate::local::ScanScope;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry, StateError};
use crate::sync::safety::{self, Halt};
use crate::sync::{Base, LocalState};

use super::World;
use super::engine::{CycleError, Engine, Parts};

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// As [`Engine::open`], for a folder that a person has approved. The container is bound to the identity that the
    /// folder has now, or to `new_id`. The next cycle starts with the union of both sides; it deletes nothing.
    ///
    /// # Errors
    /// When the folder cannot be read, or the state cannot be written. Approving again is safe.
    pub fn open_approved(parts: Parts<D, R, W>, new_id: &str) -> Result<Self, CycleError> {
        let mut engine = Self::new(parts);
        engine.scan(&ScanScope::full())?;
        engine.keep_union();
        let id = engine.take_identity(new_id)?;
        engine.container.bind_folder(&id);
        engine.container.commit(Vec::new())?;
        engine.prepare()
    }

    /// Lets the plan `id` through with the next cycle. False: no such plan is held.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn approve(&mut self, id: &str) -> Result<bool, StateError> {
        if self.reset.as_ref().map(Halt::id) == Some(id) {
            // Local content is offered again with [new]; differences become conflicts; nothing is deleted, whatever
            // tombstones the store has come back with.
            self.keep_union();
            self.container.set_remote(crate::state::RemoteState::default());
            // It holds what the store had before: our own last writes, where nobody wrote since it was set back.
            self.index = None;
            self.remote.forget_index();
            self.proven.clear();
            self.drop_transfers();
            self.look_everywhere();
            // What cannot be written now goes with the next commit.
            self.container.save(self.world.now())?;
            self.reset = None;
            return Ok(true);
        }
        let Some(at) = self.held.iter().position(|h| h.id == id) else { return Ok(false) };
        let held = self.held.remove(at);
        self.approved.extend(held.steps.into_iter().map(|s| s.path));
        self.look_everywhere();
        Ok(true)
    }

    /// Has the files of the held plan `id` brought back by the next cycle. False: no such plan is held.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn reject(&mut self, id: &str) -> Result<bool, StateError> {
        let Some(at) = self.held.iter().position(|h| h.id == id) else { return Ok(false) };
        let held = self.held.remove(at);
        held.steps.iter().for_each(|step| self.sent.forget(&step.path));
        let changes = safety::reject(&held)
            .into_iter()
            .map(|(path, base)| match base {
                Some(base) => BaseChange::Set(path, BaseEntry { base, stat: None, version: 0 }),
                None => BaseChange::Forget(path),
            })
            .collect();
        self.container.commit(changes)?;
        self.look_everywhere();
        Ok(true)
    }

    /// Reduces the base to what a union of both sides needs. A file that is here is compared anew, and no tombstone
    /// takes it away. A file that the scan did not find is no evidence of a deletion.
    fn keep_union(&mut self) {
        let seen = |md5| BaseEntry { base: Base::Seen(md5), stat: None, version: 0 };
        let mut keep = BTreeMap::new();
        for (path, entry) in self.container.entries() {
            if self.unknown_absence(path).is_some() {
                keep.insert(path.clone(), seen(content_of(entry.base)));
            }
        }
        for (path, found) in self.tree.found() {
            let content = match (&found.local, self.container.entries().get(path)) {
                (LocalState::File(md5), _) => *md5,
                (LocalState::Unknown(_), Some(entry)) => content_of(entry.base),
                (LocalState::Unknown(_), None) => continue,
            };
            keep.insert(path.clone(), seen(content));
        }
        self.container.replace_all(keep);
        self.missed.clear();
        self.sent.clear();
    }
}

/// The content that an entry is about, live or deleted.
fn content_of(base: Base) -> Md5 {
    match base {
        Base::Synced(md5) | Base::Detached(md5) | Base::Seen(md5) => md5,
    }
}
