//! The last step of a cycle: make finished outcomes durable in the folder, then commit them to the base (invariant 7).

use std::io;

use crate::agent::problems::{PathProblem, ProblemEffect};
use crate::agent::world::World;
use crate::digest::Md5;
use crate::disk::Disk;
use crate::failpoint;
use crate::local::source::FileDigest;
use crate::local::stat_trust::{trusted_stat, unix_ns};
use crate::local::{FileMove, LocalEntry, MoveOutcome};
use crate::path::RelPath;
use crate::protocol::IndexEntry;
use crate::remote::Remote;
use crate::state::{BaseChange, BaseEntry, RemoteState};
use crate::sync::{Action, Base, LocalState, PlanStep, RemoteSide};

use super::leftovers::link_copy;
use super::observed::Observed;
use super::parts::CycleParts;
use super::report::{CycleError, CycleReport, FinishedAction, folder_error, move_verb, remedy};
use super::step::StepOutcome;
use super::unarrived::UnarrivedContent;

/// Outcomes that are committed together.
pub(super) const MAX_BATCH_STEPS: usize = 2048;
/// Bytes, staged or uploaded, that are committed together.
pub(super) const MAX_BATCH_BYTES: u64 = 256 * 1024 * 1024;

/// The results of a run of steps so far.
#[derive(Default)]
pub(super) struct RunResult {
    pub report: CycleReport,
    pub unarrived: UnarrivedContent,
    /// Why the cycle cannot go on.
    pub error: Option<CycleError>,
}

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// Makes the outcomes durable in the folder, then commits them to the base. Adds to the report and to the content
    /// that did not arrive.
    pub(super) fn commit_outcomes(
        &mut self,
        outcomes: Vec<(PlanStep, StepOutcome<D>)>,
        end: &mut RunResult,
    ) -> Result<(), CycleError> {
        if outcomes.is_empty() {
            return Ok(());
        }
        failpoint::pass("batch.before");
        let mut sorted = SortedOutcomes {
            changes: Vec::new(),
            agreed: Vec::new(),
            moving: Vec::new(),
            moves: Vec::new(),
            own_writes: 0,
            report: CycleReport::default(),
        };
        for (step, outcome) in outcomes {
            sorted.add(self, step, outcome);
        }
        let SortedOutcomes { mut changes, agreed, moving, moves, own_writes, mut report } = sorted;
        let settle: Vec<String> = agreed.iter().map(|file| file.disk_name.clone()).collect();
        let performed = self.ports.folder.perform(moves, &settle, self.ports.world.now()).map_err(|e| {
            self.memory.stage.is_dirty = true;
            folder_error("making changes durable")(e)
        })?;
        self.memory.stage.is_dirty |= performed.left_over;
        report.again |= !performed.unsettled.is_empty();
        for file in agreed {
            let Some(e) = performed.unsettled.get(&file.disk_name) else {
                changes.push(BaseChange::Set(file.path, file.entry));
                continue;
            };
            if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                let why = format!("cannot be made durable: {e}; {}", remedy(e));
                report.blocked.insert(file.path.clone(), PathProblem::new(ProblemEffect::Retried, why));
            }
            // The base cannot advance, but the proxy has the content because of us.
            if let (true, Base::Synced(md5)) = (file.is_upload, file.entry.base) {
                self.uploads.note(&file.path, md5);
            }
        }
        for (moving, moved) in moving.into_iter().zip(performed.moved) {
            if !matches!(moved, MoveOutcome::Done { .. }) && matches!(moving.step.action, Action::Download { .. }) {
                end.unarrived.note_action(&moving.step.action);
            }
            changes.extend(self.take_move(moving, moved, &mut report));
        }
        if !changes.is_empty() || !report.conflicts.is_empty() {
            // The index cursor may include a late write already.
            self.note_own_writes(if self.transfers.late.is_empty() { own_writes } else { 0 });
            failpoint::pass("commit.before");
            let agreed = self.texts_to_keep(&changes);
            self.ports.container.commit(changes)?;
            failpoint::pass("commit.done");
            self.keep_texts(&agreed);
        }
        end.report.add(report);
        Ok(())
    }

    /// Enters a write of this device into the held index. If another device undoes it before the next fetch, the next
    /// index differs from the held one.
    fn enter_own_write(&mut self, path: &RelPath, entry: IndexEntry) {
        if self.transfers.late.contains(path) {
            // An index fetched since then may have a later write.
            self.memory.unplanned.add(path);
            return;
        }
        let Observed { index, corrections, .. } = &mut self.observed;
        if let Some(index) = index {
            corrections.enter_own_write(index, path, entry);
        }
    }

    /// Moves the known position of the store on by `writes`, to be committed with them. A store that is set back behind
    /// these writes while the agent is down is then found out.
    fn note_own_writes(&mut self, writes: u64) {
        if writes == 0 {
            return;
        }
        let container = &mut self.ports.container;
        let remote = container.header().remote.clone();
        let cursor = remote.cursor.map(|cursor| cursor + writes);
        let history = self.ports.remote.written_at().or_else(|| remote.history.clone());
        container.set_remote(RemoteState { cursor, history, ..remote });
    }

    /// Takes in how a change to the folder went: the change to commit, if it was made.
    fn take_move(&mut self, moving: PendingMove, moved: MoveOutcome, report: &mut CycleReport) -> Option<BaseChange> {
        let PendingMove { step, verb, is_merge, base, version, placed, device } = moving;
        let path = &step.path;
        match moved {
            MoveOutcome::Done { copy, stat } => {
                self.note_copy(copy.clone(), path, report);
                self.memory.crash.note_restored(&mut self.ports.container, path, copy.as_ref());
                self.uploads.forget(path);
                self.observed.corrections.proven.remove(path);
                let is_base = placed.is_some_and(|(md5, _)| base == Base::Synced(md5));
                match placed {
                    None => report.trashed += 1,
                    Some(_) if is_merge => {
                        // The next cycle uploads the result (row 16).
                        report.merged += 1;
                        report.again = true;
                        self.memory.merges.note(path, self.ports.world.elapsed());
                    }
                    Some(_) => report.downloaded += 1,
                }
                let found = placed.map(|(md5, size)| LocalEntry { local: LocalState::File(md5), stat, size });
                self.observed.tree.put(path.clone(), found);
                self.memory.quarantine.clear(path);
                report.recent.push(FinishedAction::moved(path, verb, device));
                // The stat of the result of a merge does not prove the base.
                let stat = stat.filter(|_| is_base);
                return Some(BaseChange::Set(step.path, BaseEntry { base, stat, version }));
            }
            MoveOutcome::Stale { copy } => {
                self.note_copy(copy, path, report);
                self.observed.read_again(path);
                report.again = true;
            }
            MoveOutcome::Blocked(why) => {
                report.add(self.quarantine(&step, why.to_string(), false));
                report.blocked.insert(path.clone(), PathProblem::new(ProblemEffect::Retried, why.to_string()));
            }
            MoveOutcome::Failed(e) => {
                let is_open = e.kind() == io::ErrorKind::ResourceBusy;
                report.add(self.quarantine(&step, format!("{e}; {}", remedy(&e)), is_open));
            }
        }
        None
    }

    /// Notes a conflict copy. It is an ordinary new file, so the next cycle uploads it (row 4).
    fn note_copy(&mut self, copy: Option<RelPath>, original: &RelPath, report: &mut CycleReport) {
        let Some(copy) = copy else { return };
        self.observed.read_again(&copy);
        link_copy(&mut self.ports, copy.clone(), original.clone());
        report.conflicts.push(copy);
        report.again = true;
    }

    /// Both sides have deleted this content: the change to commit.
    fn seen(&mut self, path: &RelPath, md5: Md5) -> BaseChange {
        self.uploads.forget(path);
        self.memory.quarantine.clear(path);
        BaseChange::Set(path.clone(), BaseEntry { base: Base::Seen(md5), stat: None, version: 0 })
    }
}

/// A file that both sides hold, to be committed once it is durable.
struct AgreedFile {
    path: RelPath,
    disk_name: String,
    entry: BaseEntry,
    is_upload: bool,
}

/// A change to the folder, and the base that it leads to.
struct PendingMove {
    step: PlanStep,
    /// Its name in `recent`.
    verb: &'static str,
    is_merge: bool,
    base: Base,
    version: u64,
    /// The content that it places, with its size in bytes.
    placed: Option<(Md5, u64)>,
    /// The machine that wrote the content.
    device: Option<String>,
}

/// Outcomes, by the way they are committed.
struct SortedOutcomes<D: Disk> {
    changes: Vec<BaseChange>,
    agreed: Vec<AgreedFile>,
    moving: Vec<PendingMove>,
    moves: Vec<FileMove<D>>,
    /// Writes of this device that moved the store on.
    own_writes: u64,
    report: CycleReport,
}

impl<D: Disk> SortedOutcomes<D> {
    fn add<R: Remote, W: World>(&mut self, parts: &mut CycleParts<D, R, W>, step: PlanStep, outcome: StepOutcome<D>) {
        if !matches!(outcome, StepOutcome::Move { .. }) {
            parts.observed.corrections.proven.remove(&step.path);
        }
        match outcome {
            StepOutcome::Nothing | StepOutcome::Missing => {}
            StepOutcome::ProvenDeleted(tombstone) => self.prove(parts, &step, RemoteSide::Tombstone(tombstone)),
            StepOutcome::ProvenUnchanged(md5) => self.prove(parts, &step, RemoteSide::Live(md5)),
            StepOutcome::Seen(md5) => {
                // The next plan heals a weak index that names the file as live.
                self.report.again |= parts.observed.is_listed_live(&step.path);
                self.changes.push(parts.seen(&step.path, md5));
            }
            StepOutcome::Deleted(md5) => {
                self.report.deleted_remote += 1;
                self.own_writes += 1;
                parts.enter_own_write(&step.path, tombstone_of(md5));
                self.report.recent.push(FinishedAction::done(&step));
                self.changes.push(parts.seen(&step.path, md5));
            }
            StepOutcome::DeletedAgain(md5) => {
                parts.enter_own_write(&step.path, tombstone_of(md5));
                self.changes.push(parts.seen(&step.path, md5));
            }
            StepOutcome::Forgotten => {
                parts.uploads.forget(&step.path);
                self.changes.push(BaseChange::Forget(step.path));
            }
            StepOutcome::Agreed { md5, version, uploaded } => self.agree(parts, &step, (md5, version), uploaded),
            StepOutcome::UploadedUnread { digested: FileDigest { md5, stat }, version } => {
                // The upload found the same as a scan would.
                let known = trusted_stat(stat, unix_ns(parts.ports.world.now()));
                let found = LocalEntry { local: LocalState::File(md5), stat: known, size: stat.size };
                parts.observed.tree.put(step.path.clone(), Some(found));
                self.agree(parts, &step, (md5, version), true);
            }
            StepOutcome::Move { step: change, base, version, device } => {
                let placed = change.staged().map(|staged| (staged.md5, staged.size));
                let (verb, is_merge) = (move_verb(&change), matches!(*change, FileMove::Merge { .. }));
                self.moving.push(PendingMove { step, verb, is_merge, base, version, placed, device });
                self.moves.push(*change);
            }
        }
    }

    /// Notes the state that a blob showed, for the next plan.
    fn prove<R: Remote, W: World>(&mut self, parts: &mut CycleParts<D, R, W>, step: &PlanStep, side: RemoteSide) {
        let listed = parts.observed.listed(&step.path).copied();
        parts.observed.corrections.prove(&step.path, listed, side);
        self.report.again = true;
    }

    /// Notes content, with its version, that both sides hold.
    fn agree<R: Remote, W: World>(
        &mut self,
        parts: &mut CycleParts<D, R, W>,
        step: &PlanStep,
        (md5, version): (Md5, u64),
        is_upload: bool,
    ) {
        let path = &step.path;
        parts.uploads.forget(path);
        parts.memory.read_first.remove(path);
        parts.memory.merges.settle(path);
        parts.memory.quarantine.clear(path);
        let found = parts.observed.found(path);
        let stat = found.filter(|found| found.local == LocalState::File(md5)).and_then(|found| found.stat);
        if is_upload {
            self.own_writes += 1;
            self.report.uploaded += 1;
            let size = found.map_or(0, |found| found.size);
            parts.enter_own_write(path, IndexEntry { md5, size, is_deleted: false, version, cursor: 0 });
            self.report.recent.push(FinishedAction::done(step));
        } else {
            self.report.adopted += 1;
        }
        let entry = BaseEntry { base: Base::Synced(md5), stat, version };
        let disk_name = parts.observed.tree.disk_name(path);
        self.agreed.push(AgreedFile { path: path.clone(), disk_name, entry, is_upload });
    }
}

fn tombstone_of(md5: Md5) -> IndexEntry {
    IndexEntry { md5, size: 0, is_deleted: true, version: 0, cursor: 0 }
}
