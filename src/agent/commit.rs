//! What a batch of finished steps comes to: durable in the folder, then committed to the base (invariant 7).

use std::collections::BTreeSet;
use std::io;

use crate::digest::Md5;
use crate::disk::Disk;
use crate::failpoint;
use crate::local::source::FileDigest;
use crate::local::stat_trust::trusted_stat;
use crate::local::stat_trust::unix_ns;
use crate::local::{FileMove, LocalEntry, MoveOutcome};
use crate::path::RelPath;
use crate::protocol::IndexEntry;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry, RemoteState, StateError};
use crate::sync::{Action, Base, LocalState, PlanStep, RemoteSide};

use super::World;
use super::apply::Done;
use super::cycle::{Recent, Report, verb};
use super::engine::{CycleError, Engine, folder_error, remedy};
use super::problems::{Effect, PathProblem};

/// Steps under way, their outcomes not yet committed.
pub(super) struct Batch<D: Disk> {
    pub done: Vec<(PlanStep, Done<D>)>,
    pub bytes: u64,
}

/// A step whose change to the folder is under way, and what base becomes with it.
struct Moving {
    step: PlanStep,
    base: Base,
    version: u64,
    /// Bytes.
    size: u64,
    /// The machine that the content comes from.
    device: Option<String>,
}

impl<D: Disk> Default for Batch<D> {
    fn default() -> Self {
        Self { done: Vec::new(), bytes: 0 }
    }
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Makes a batch durable in the folder, then commits it to the base (invariant 7). Gives the content that was to come
    /// into the folder and did not.
    pub(super) fn flush(&mut self, batch: Batch<D>, report: &mut Report) -> Result<BTreeSet<Md5>, CycleError> {
        let mut missing = BTreeSet::new();
        if batch.done.is_empty() {
            return Ok(missing);
        }
        failpoint::pass("batch.before");
        let conflicts = report.conflicts.len();
        let mut moves = Vec::new();
        let mut moving = Vec::new();
        let mut agreed = Vec::new();
        let mut changes = Vec::new();
        let mut own_writes = 0;
        for (step, done) in batch.done {
            if !matches!(done, Done::Move { .. }) {
                self.proven.remove(&step.path);
            }
            match done {
                Done::Nothing => {}
                Done::Gone(tombstone) => self.prove(&step.path, RemoteSide::Tombstone(tombstone), report),
                Done::Unchanged(md5) => self.prove(&step.path, RemoteSide::Live(md5), report),
                Done::Seen(md5) => {
                    // A weak index that names the file as live is healed by the next plan.
                    report.again |= self.listed(&step.path).is_some_and(|entry| !entry.is_deleted);
                    changes.push(self.seen(&step.path, md5));
                }
                Done::Deleted(md5) => {
                    report.deleted_remote += 1;
                    own_writes += 1;
                    self.note_own_write(&step.path, tombstone_of(md5));
                    note(report, &step, None);
                    changes.push(self.seen(&step.path, md5));
                }
                Done::DeletedAgain(md5) => {
                    self.note_own_write(&step.path, tombstone_of(md5));
                    changes.push(self.seen(&step.path, md5));
                }
                Done::Forget => {
                    self.sent.forget(&step.path);
                    changes.push(BaseChange::Forget(step.path));
                }
                Done::Agreed { md5, version, uploaded } => {
                    own_writes += u64::from(uploaded);
                    agreed.push((self.agreed(&step, md5, version, uploaded, report), uploaded));
                }
                Done::Read { digested: FileDigest { md5, stat }, version } => {
                    // What the upload found out about the file is what a scan would have found.
                    let known = trusted_stat(stat, unix_ns(self.world.now()));
                    let found = LocalEntry { local: LocalState::File(md5), stat: known, size: stat.size };
                    self.tree.put(step.path.clone(), Some(found));
                    own_writes += 1;
                    agreed.push((self.agreed(&step, md5, version, true, report), true));
                }
                Done::Move { step: change, base, version, device } => {
                    let size = match &*change {
                        FileMove::Create { staged, .. }
                        | FileMove::Replace { staged, .. }
                        | FileMove::Conflict { staged, .. } => staged.size,
                        FileMove::Trash { .. } => 0,
                    };
                    moving.push(Moving { step, base, version, size, device });
                    moves.push(*change);
                }
            }
        }
        let settle: Vec<String> = agreed.iter().map(|((at, _), _)| at.clone()).collect();
        let performed = self.folder.perform(moves, &settle, self.world.now()).map_err(|e| {
            self.leftovers = true;
            folder_error("making changes durable")(e)
        })?;
        self.leftovers |= performed.left_over;
        report.again |= !performed.unsettled.is_empty();
        for ((at, change), uploaded) in agreed {
            let Some(e) = performed.unsettled.get(&at) else {
                changes.push(change);
                continue;
            };
            let BaseChange::Set(path, entry) = change else { continue };
            if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                let why = format!("cannot be made durable: {e}; {}", remedy(e));
                report.blocked.insert(path.clone(), PathProblem::new(Effect::Retried, why));
            }
            // The base cannot advance, but the proxy has the content because of us.
            if let (Base::Synced(md5), true) = (entry.base, uploaded) {
                self.sent.note(&path, md5);
            }
        }
        for (moving, moved) in moving.into_iter().zip(performed.moved) {
            if let (Action::Download { remote }, false) =
                (&moving.step.action, matches!(moved, MoveOutcome::Done { .. }))
            {
                missing.insert(*remote);
            }
            if let Some(change) = self.moved(moving, moved, report) {
                changes.push(change);
            }
        }
        if !changes.is_empty() || report.conflicts.len() > conflicts {
            // The cursor of the index may include a late write already.
            self.note_advance(if self.transfers.late.is_empty() { own_writes } else { 0 });
            failpoint::pass("commit.before");
            self.container.commit(changes)?;
            failpoint::pass("commit.done");
        }
        Ok(missing)
    }

    /// Notes what a blob told, for the next plan.
    fn prove(&mut self, path: &RelPath, side: RemoteSide, report: &mut Report) {
        self.proven.insert(path.clone(), (self.listed(path), side));
        report.again = true;
    }

    fn listed(&self, path: &RelPath) -> Option<IndexEntry> {
        self.index.as_ref().and_then(|index| index.files.get(path)).copied()
    }

    /// Both sides have deleted this content: what to commit.
    fn seen(&mut self, path: &RelPath, md5: Md5) -> BaseChange {
        self.sent.forget(path);
        self.quarantine.clear(path);
        BaseChange::Set(path.clone(), BaseEntry { base: Base::Seen(md5), stat: None, version: 0 })
    }

    /// Both sides hold this content: what the file is called, and what to commit once it is durable.
    fn agreed(
        &mut self,
        step: &PlanStep,
        md5: Md5,
        version: u64,
        uploaded: bool,
        report: &mut Report,
    ) -> (String, BaseChange) {
        self.sent.forget(&step.path);
        self.read_first.remove(&step.path);
        self.quarantine.clear(&step.path);
        let found = self.tree.found().get(&step.path);
        let stat = found.filter(|f| f.local == LocalState::File(md5)).and_then(|f| f.stat);
        if uploaded {
            report.uploaded += 1;
            let size = found.map_or(0, |f| f.size);
            self.note_own_write(&step.path, IndexEntry { md5, size, is_deleted: false, version });
            note(report, step, None);
        } else {
            report.adopted += 1;
        }
        let entry = BaseEntry { base: Base::Synced(md5), stat, version };
        (self.tree.disk_name(&step.path), BaseChange::Set(step.path.clone(), entry))
    }

    /// What we wrote to the proxy ourselves. In the index that is held it must show at once: if others undo it before the
    /// next one is fetched, that one differs.
    fn note_own_write(&mut self, path: &RelPath, entry: IndexEntry) {
        if self.transfers.late.contains(path) {
            // The index may have been fetched since, and may know of a later write.
            self.open.add(path);
            return;
        }
        if let Some(index) = &mut self.index {
            let before = index.files.insert(path.clone(), entry);
            if index.cursor.is_none() {
                self.overwritten.entry(path.clone()).or_insert(before);
            }
        }
    }

    /// So many changes of ours have moved the store on, at least. That is committed with them, lest a store that is set
    /// back behind them while we are down pass for one that is as we left it.
    fn note_advance(&mut self, writes: u64) {
        if writes == 0 {
            return;
        }
        let remote = self.container.header().remote.clone();
        let cursor = remote.cursor.map(|cursor| cursor + writes);
        let history = self.remote.written_at().or_else(|| remote.history.clone());
        self.container.set_remote(RemoteState { cursor, history, ..remote });
    }

    fn moved(&mut self, moving: Moving, moved: MoveOutcome, report: &mut Report) -> Option<BaseChange> {
        let Moving { step, base, version, size, device } = moving;
        match moved {
            MoveOutcome::Done { copy, stat } => {
                self.copied(copy.clone(), &step.path, report);
                self.note_restored(&step.path, copy.as_ref());
                self.sent.forget(&step.path);
                self.proven.remove(&step.path);
                let found = match base {
                    Base::Synced(md5) => {
                        report.downloaded += 1;
                        Some(LocalEntry { local: LocalState::File(md5), stat, size })
                    }
                    Base::Seen(_) | Base::Detached(_) => {
                        report.trashed += 1;
                        None
                    }
                };
                self.tree.put(step.path.clone(), found);
                self.quarantine.clear(&step.path);
                note(report, &step, device);
                Some(BaseChange::Set(step.path, BaseEntry { base, stat, version }))
            }
            MoveOutcome::Stale { copy } => {
                self.copied(copy, &step.path, report);
                self.look_again(&step.path);
                report.again = true;
                None
            }
            MoveOutcome::Blocked(why) => {
                report.blocked.insert(step.path.clone(), PathProblem::new(Effect::Retried, why.to_string()));
                self.quarantine_step(&step, why.to_string(), false, report);
                None
            }
            MoveOutcome::Failed(e) => {
                let open = e.kind() == io::ErrorKind::ResourceBusy;
                self.quarantine_step(&step, format!("{e}; {}", remedy(&e)), open, report);
                None
            }
        }
    }

    /// A conflict copy is an ordinary new file: the next cycle uploads it (row 4).
    fn copied(&mut self, copy: Option<RelPath>, original: &RelPath, report: &mut Report) {
        if let Some(copy) = copy {
            self.look_again(&copy);
            self.link_copy(copy.clone(), original.clone());
            report.conflicts.push(copy);
            report.again = true;
        }
    }

    /// What must not be on the path of an edit: the container is written anew when its journal has grown, young stats
    /// that have become trustworthy are kept, and deletions that the proxy has forgotten are forgotten.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn tidy(&mut self) -> Result<(), StateError> {
        let settled: Vec<BaseChange> = self
            .container
            .entries()
            .iter()
            .filter_map(|(path, entry)| {
                let found = self.tree.found().get(path)?;
                let same = matches!((&found.local, entry.base), (LocalState::File(l), Base::Synced(b)) if *l == b);
                (same && found.stat.is_some() && found.stat != entry.stat)
                    .then(|| BaseChange::Set(path.clone(), BaseEntry { stat: found.stat, ..entry.clone() }))
            })
            .collect();
        // With nothing settled there may still be news of how far the proxy has come: a proxy that is set back behind
        // that must show after a restart, too.
        let forgotten: Vec<BaseChange> = self.forgotten().into_iter().chain(self.stale_notes()).collect();
        let gone = self.settled_copies();
        self.container.retain_copies(|copy| !gone.contains(copy));
        self.container.commit(settled.into_iter().chain(forgotten).collect())?;
        if self.container.wants_save() {
            self.container.save(self.world.now())?;
        }
        Ok(())
    }

    /// The conflict copies that are gone, so that their links to the originals are of no use.
    fn settled_copies(&self) -> BTreeSet<RelPath> {
        let is_gone = |copy: &&RelPath| {
            let stat = || self.folder.disk().stat(&self.tree.disk_name(copy));
            // A copy that was made a moment ago has not been scanned yet.
            !self.tree.found().contains_key(*copy)
                && self.unknown_absence(copy).is_none()
                && matches!(stat(), Err(e) if e.kind() == io::ErrorKind::NotFound)
        };
        self.container.header().copies.keys().filter(is_gone).cloned().collect()
    }

    /// The noted uploads of files that are gone, and on which nothing was agreed.
    fn stale_notes(&self) -> Vec<BaseChange> {
        let is_gone = |path: &&RelPath| {
            !self.container.entries().contains_key(*path)
                && !self.tree.found().contains_key(*path)
                && self.unknown_absence(path).is_none()
        };
        self.container.uploads().paths().filter(is_gone).map(|path| BaseChange::Forget(path.clone())).collect()
    }

    /// The paths that need not be remembered: an exact index does not name them any more, because the tombstones have
    /// expired, and no file is here. Where a file is or may be, the entry is still needed: rows 7 and 8 tell the user's
    /// new file from an old upload by it.
    fn forgotten(&self) -> Vec<BaseChange> {
        let Some(index) = self.index.as_ref().filter(|i| i.cursor.is_some() && self.reset.is_none()) else {
            return Vec::new();
        };
        let gone = |path: &RelPath| !self.tree.found().contains_key(path) && self.unknown_absence(path).is_none();
        let gone_here = self.container.entries().iter().filter(|(_, entry)| !entry.base.is_synced());
        gone_here
            .filter(|(path, _)| !index.files.contains_key(*path) && gone(path))
            .map(|(path, _)| BaseChange::Forget(path.clone()))
            .collect()
    }
}

fn tombstone_of(md5: Md5) -> IndexEntry {
    IndexEntry { md5, size: 0, is_deleted: true, version: 0 }
}

fn note(report: &mut Report, step: &PlanStep, device: Option<String>) {
    let (path, action) = (step.path.clone(), verb(&step.action));
    report.recent.push(Recent { path, action, outcome: "done".to_owned(), device });
}
