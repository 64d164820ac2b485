//! The last step of a cycle: make finished outcomes durable in the folder, then commit them to the base (invariant 7).

use std::collections::BTreeSet;
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

use super::error::{CycleError, folder_error, remedy};
use super::leftovers::link_copy;
use super::observed::Observed;
use super::parts::CycleParts;
use super::report::{CycleReport, FinishedAction};
use super::step::StepOutcome;

/// Outcomes that are committed together.
const MAX_BATCH_STEPS: usize = 2048;
/// Bytes, staged or uploaded, that are committed together.
const MAX_BATCH_BYTES: u64 = 256 * 1024 * 1024;

/// Outcomes that are not committed yet.
pub(super) struct OutcomeBatch<D: Disk> {
    outcomes: Vec<(PlanStep, StepOutcome<D>)>,
    bytes: u64,
}

impl<D: Disk> Default for OutcomeBatch<D> {
    fn default() -> Self {
        Self { outcomes: Vec::new(), bytes: 0 }
    }
}

impl<D: Disk> OutcomeBatch<D> {
    pub(super) fn push(&mut self, step: PlanStep, outcome: StepOutcome<D>, bytes: u64) {
        self.outcomes.push((step, outcome));
        self.bytes += bytes;
    }

    pub(super) fn is_full(&self) -> bool {
        self.outcomes.len() >= MAX_BATCH_STEPS || self.bytes >= MAX_BATCH_BYTES
    }
}

/// The result of a commit.
#[derive(Default)]
pub(super) struct CommitResult {
    pub report: CycleReport,
    /// Content of downloads that did not get into the folder.
    pub unarrived_here: BTreeSet<Md5>,
}

/// Makes the outcomes durable in the folder, then commits them to the base.
pub(super) fn commit_outcomes<D: Disk, R: Remote, W: World>(
    parts: &mut CycleParts<D, R, W>,
    batch: OutcomeBatch<D>,
) -> Result<CommitResult, CycleError> {
    if batch.outcomes.is_empty() {
        return Ok(CommitResult::default());
    }
    failpoint::pass("batch.before");
    let mut sorted = SortedOutcomes::default();
    for (step, outcome) in batch.outcomes {
        sorted.add(parts, step, outcome);
    }
    let SortedOutcomes { mut changes, agreed, moving, moves, own_writes, report } = sorted;
    let mut result = CommitResult { report, unarrived_here: BTreeSet::new() };
    let settle: Vec<String> = agreed.iter().map(|file| file.disk_name.clone()).collect();
    let performed = parts.ports.folder.perform(moves, &settle, parts.ports.world.now()).map_err(|e| {
        parts.memory.stage.is_dirty = true;
        folder_error("making changes durable")(e)
    })?;
    parts.memory.stage.is_dirty |= performed.left_over;
    result.report.again |= !performed.unsettled.is_empty();
    for file in agreed {
        let Some(e) = performed.unsettled.get(&file.disk_name) else {
            changes.push(BaseChange::Set(file.path, file.entry));
            continue;
        };
        if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            let why = format!("cannot be made durable: {e}; {}", remedy(e));
            result.report.blocked.insert(file.path.clone(), PathProblem::new(ProblemEffect::Retried, why));
        }
        // The base cannot advance, but the proxy has the content because of us.
        if let (true, Base::Synced(md5)) = (file.is_upload, file.entry.base) {
            parts.uploads.note(&file.path, md5);
        }
    }
    for (moving, moved) in moving.into_iter().zip(performed.moved) {
        if let (Action::Download { remote }, false) = (&moving.step.action, matches!(moved, MoveOutcome::Done { .. })) {
            result.unarrived_here.insert(*remote);
        }
        let (change, report) = take_move(parts, moving, moved);
        changes.extend(change);
        result.report.add(report);
    }
    if !changes.is_empty() || !result.report.conflicts.is_empty() {
        // The index cursor may include a late write already.
        note_own_writes(parts, if parts.transfers.late.is_empty() { own_writes } else { 0 });
        failpoint::pass("commit.before");
        parts.ports.container.commit(changes)?;
        failpoint::pass("commit.done");
    }
    Ok(result)
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
    base: Base,
    version: u64,
    /// Bytes.
    size: u64,
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

impl<D: Disk> Default for SortedOutcomes<D> {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            agreed: Vec::new(),
            moving: Vec::new(),
            moves: Vec::new(),
            own_writes: 0,
            report: CycleReport::default(),
        }
    }
}

impl<D: Disk> SortedOutcomes<D> {
    fn add<R: Remote, W: World>(&mut self, parts: &mut CycleParts<D, R, W>, step: PlanStep, outcome: StepOutcome<D>) {
        if !matches!(outcome, StepOutcome::Move { .. }) {
            parts.observed.corrections.forget(&step.path);
        }
        match outcome {
            StepOutcome::Nothing | StepOutcome::Missing => {}
            StepOutcome::ProvenDeleted(tombstone) => self.prove(parts, &step, RemoteSide::Tombstone(tombstone)),
            StepOutcome::ProvenUnchanged(md5) => self.prove(parts, &step, RemoteSide::Live(md5)),
            StepOutcome::Seen(md5) => {
                // The next plan heals a weak index that names the file as live.
                self.report.again |= parts.observed.is_listed_live(&step.path);
                self.changes.push(seen(parts, &step.path, md5));
            }
            StepOutcome::Deleted(md5) => {
                self.report.deleted_remote += 1;
                self.own_writes += 1;
                enter_own_write(parts, &step.path, tombstone_of(md5));
                self.report.recent.push(FinishedAction::done(&step, None));
                self.changes.push(seen(parts, &step.path, md5));
            }
            StepOutcome::DeletedAgain(md5) => {
                enter_own_write(parts, &step.path, tombstone_of(md5));
                self.changes.push(seen(parts, &step.path, md5));
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
                let size = match &*change {
                    FileMove::Create { staged, .. }
                    | FileMove::Replace { staged, .. }
                    | FileMove::Conflict { staged, .. } => staged.size,
                    FileMove::Trash { .. } => 0,
                };
                self.moving.push(PendingMove { step, base, version, size, device });
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
        parts.memory.quarantine.clear(path);
        let found = parts.observed.found(path);
        let stat = found.filter(|found| found.local == LocalState::File(md5)).and_then(|found| found.stat);
        if is_upload {
            self.own_writes += 1;
            self.report.uploaded += 1;
            let size = found.map_or(0, |found| found.size);
            enter_own_write(parts, path, IndexEntry { md5, size, is_deleted: false, version, cursor: 0 });
            self.report.recent.push(FinishedAction::done(step, None));
        } else {
            self.report.adopted += 1;
        }
        let entry = BaseEntry { base: Base::Synced(md5), stat, version };
        let disk_name = parts.observed.tree.disk_name(path);
        self.agreed.push(AgreedFile { path: path.clone(), disk_name, entry, is_upload });
    }
}

/// Both sides have deleted this content: the change to commit.
fn seen<D: Disk, R: Remote, W: World>(parts: &mut CycleParts<D, R, W>, path: &RelPath, md5: Md5) -> BaseChange {
    parts.uploads.forget(path);
    parts.memory.quarantine.clear(path);
    BaseChange::Set(path.clone(), BaseEntry { base: Base::Seen(md5), stat: None, version: 0 })
}

fn tombstone_of(md5: Md5) -> IndexEntry {
    IndexEntry { md5, size: 0, is_deleted: true, version: 0, cursor: 0 }
}

/// Enters a write of this device into the held index. If another device undoes it before the next fetch, the next index
/// differs from the held one.
fn enter_own_write<D: Disk, R: Remote, W: World>(parts: &mut CycleParts<D, R, W>, path: &RelPath, entry: IndexEntry) {
    if parts.transfers.late.contains(path) {
        // An index fetched since then may have a later write.
        parts.memory.unplanned.add(path);
        return;
    }
    let Observed { index, corrections, .. } = &mut parts.observed;
    if let Some(index) = index {
        corrections.enter_own_write(index, path, entry);
    }
}

/// Moves the known position of the store on by `writes`, to be committed with them. A store that is set back behind these
/// writes while the agent is down is then found out.
fn note_own_writes<D: Disk, R: Remote, W: World>(parts: &mut CycleParts<D, R, W>, writes: u64) {
    if writes == 0 {
        return;
    }
    let container = &mut parts.ports.container;
    let remote = container.header().remote.clone();
    let cursor = remote.cursor.map(|cursor| cursor + writes);
    let history = parts.ports.remote.written_at().or_else(|| remote.history.clone());
    container.set_remote(RemoteState { cursor, history, ..remote });
}

/// Takes in how a change to the folder went: the change to commit, if it was made.
fn take_move<D: Disk, R: Remote, W: World>(
    parts: &mut CycleParts<D, R, W>,
    moving: PendingMove,
    moved: MoveOutcome,
) -> (Option<BaseChange>, CycleReport) {
    let step = &moving.step;
    match moved {
        MoveOutcome::Done { copy, stat } => {
            let mut report = note_copy(parts, copy.clone(), &step.path);
            parts.memory.crash.note_restored(&mut parts.ports.container, &step.path, copy.as_ref());
            parts.uploads.forget(&step.path);
            parts.observed.corrections.forget(&step.path);
            let found = match moving.base {
                Base::Synced(md5) => {
                    report.downloaded += 1;
                    Some(LocalEntry { local: LocalState::File(md5), stat, size: moving.size })
                }
                Base::Seen(_) | Base::Detached(_) => {
                    report.trashed += 1;
                    None
                }
            };
            parts.observed.tree.put(step.path.clone(), found);
            parts.memory.quarantine.clear(&step.path);
            report.recent.push(FinishedAction::done(step, moving.device));
            let entry = BaseEntry { base: moving.base, stat, version: moving.version };
            (Some(BaseChange::Set(moving.step.path, entry)), report)
        }
        MoveOutcome::Stale { copy } => {
            let mut report = note_copy(parts, copy, &step.path);
            parts.observed.read_again(&step.path);
            report.again = true;
            (None, report)
        }
        MoveOutcome::Blocked(why) => {
            let mut report = parts.quarantine(step, why.to_string(), false);
            report.blocked.insert(step.path.clone(), PathProblem::new(ProblemEffect::Retried, why.to_string()));
            (None, report)
        }
        MoveOutcome::Failed(e) => {
            let is_open = e.kind() == io::ErrorKind::ResourceBusy;
            (None, parts.quarantine(step, format!("{e}; {}", remedy(&e)), is_open))
        }
    }
}

/// Notes a conflict copy. It is an ordinary new file, so the next cycle uploads it (row 4).
fn note_copy<D: Disk, R: Remote, W: World>(
    parts: &mut CycleParts<D, R, W>,
    copy: Option<RelPath>,
    original: &RelPath,
) -> CycleReport {
    let Some(copy) = copy else { return CycleReport::default() };
    parts.observed.read_again(&copy);
    link_copy(&mut parts.ports, copy.clone(), original.clone());
    CycleReport { conflicts: vec![copy], again: true, ..CycleReport::default() }
}
