//! Paths that leave the scope of sync, and come back into it (invariant 5).

use crate::disk::Disk;
use crate::local::{LocalEntry, TouchedPaths};
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry};
use crate::sync::{Base, LocalState, SkipReason};

use super::World;
use super::engine::{CycleError, Engine};

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Detaches the base of each path that has left the scope, and attaches it again where the file is back and is
    /// what base says (invariant 5). Called right after a scan, so that it is remembered whatever the proxy answers.
    pub(super) fn note_scope(&mut self) -> Result<(), CycleError> {
        let entries = self.container.entries();
        let among: Box<dyn Iterator<Item = &RelPath>> = match &self.open {
            TouchedPaths::Everywhere => Box::new(entries.keys()),
            TouchedPaths::Paths(paths) => Box::new(paths.iter()),
        };
        let moved = |path: &RelPath| {
            let entry = entries.get(path)?;
            let base = match entry.base {
                Base::Synced(md5) if self.has_left_scope(path) => Base::Detached(md5),
                Base::Detached(md5)
                    if self.tree.found().get(path).is_some_and(|f| f.local == LocalState::File(md5)) =>
                {
                    Base::Synced(md5)
                }
                _ => return None,
            };
            Some(BaseChange::Set(path.clone(), BaseEntry { base, ..entry.clone() }))
        };
        let changes: Vec<BaseChange> = among.filter_map(moved).collect();
        // An upload that nobody answered stands for a base where there is none.
        self.sent.retain(|path| entries.contains_key(path) || !self.has_left_scope(path));
        if changes.is_empty() {
            // The paths may be detached in memory only. After a restart, a file that was removed since would pass for one
            // that the user deleted.
            return Ok(self.container.finish_commit()?);
        }
        Ok(self.container.commit(changes)?)
    }

    /// True if the path takes no part for a reason that lasts. An absent file counts as too large where the one on the
    /// proxy is.
    fn has_left_scope(&self, path: &RelPath) -> bool {
        let why = match self.tree.found().get(path) {
            Some(LocalEntry { local: LocalState::Unknown(why), .. }) => Some(why.clone()),
            Some(_) => None,
            None => {
                let listed = self.index.as_ref().and_then(|i| i.files.get(path));
                let too_large = listed.filter(|e| !e.is_deleted && e.size > self.options.max_file_size);
                too_large.map(|e| SkipReason::TooLarge(e.size)).or_else(|| {
                    // The scan has already asked the rules about a missed file.
                    if self.missed.contains_key(path) { None } else { self.unknown_absence(path) }
                })
            }
        };
        why.is_some_and(|why| why.leaves_scope())
    }
}
