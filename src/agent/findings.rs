//! [`CycleFindings`]: the result of a finished cycle, as the status of the agent and of `memsync sync` shows it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::disk::Disk;
use crate::remote::Remote;

use super::cycle::{CycleReport, Engine};
use super::problems::{PathProblem, ProblemEffect};
use super::status::{FolderStatus, HaltStatus, Pending, ProblemStatus, SyncState, halt_status};
use super::world::World;

/// The result of a finished cycle.
pub(super) struct CycleFindings {
    pending: Pending,
    /// Nothing is left to do.
    is_done: bool,
    halt: Option<HaltStatus>,
    /// `None`: the cycle made no plan, so these figures have not changed.
    planned: Option<PlannedFigures>,
}

struct PlannedFigures {
    files: usize,
    /// Bytes.
    bytes: u64,
    conflicts: usize,
    problems: BTreeMap<String, PathProblem>,
}

impl CycleFindings {
    /// `others`: problems of private files and of the ignore file, by path. They do not keep the folder from being in
    /// sync.
    pub(super) fn of<D: Disk, R: Remote, W: World>(
        engine: &Engine<D, R, W>,
        report: &CycleReport,
        others: BTreeMap<String, String>,
        before: &FolderStatus,
    ) -> Self {
        let planned = report.planned.then(|| {
            let (files, bytes) = engine.totals();
            let all = engine.problems().into_iter().chain(report.blocked.clone());
            let all = all.map(|(path, problem)| (path.to_string(), problem)).chain(engine.left_out());
            let mut problems: BTreeMap<String, PathProblem> = all.collect();
            problems
                .extend(others.into_iter().map(|(path, why)| (path, PathProblem::new(ProblemEffect::LeftOut, why))));
            PlannedFigures { files, bytes, conflicts: engine.conflicts(), problems }
        });
        let is_blocked = planned.as_ref().map_or_else(
            || before.problems.iter().any(|p| p.effect != ProblemEffect::LeftOut),
            |planned| planned.problems.values().any(|p| p.effect != ProblemEffect::LeftOut),
        );
        let is_in_transit = engine.in_transit().next().is_some();
        let rests = report.waiting > 0 || !engine.held().is_empty() || engine.failing() > 0 || is_in_transit;
        let is_clean = !report.again && report.failed == 0 && !rests && !is_blocked;
        let pending = if is_clean { Pending::default() } else { engine.pending() };
        let halt = engine.halts().first().map(|h| halt_status(h, engine.held()));
        Self { is_done: is_clean && pending == Pending::default() && halt.is_none(), pending, halt, planned }
    }

    /// Writes the figures of a cycle that ended early into the status.
    pub(super) fn enter_partly<D: Disk, R: Remote, W: World>(
        engine: &Engine<D, R, W>,
        status: &mut FolderStatus,
        now: Timestamp,
    ) {
        if !engine.parts.observed.is_scanned {
            return;
        }
        let pending = engine.pending();
        // Without an index, keep the last known number of downloads.
        let download = if engine.parts.observed.index.is_some() { pending.download } else { status.pending.download };
        status.pending = Pending { download, ..pending };
        (status.files, status.bytes) = engine.totals();
        status.counted_at = Some(now);
    }

    /// Writes the result into the folder's status.
    pub(super) fn enter(self, status: &mut FolderStatus, now: Timestamp) {
        status.state = if self.halt.is_some() { SyncState::Halted } else { SyncState::Idle };
        status.waits_for = None;
        status.reason = self.halt.as_ref().map(|h| h.reason.clone());
        status.in_sync = self.is_done;
        status.halt = self.halt;
        status.pending = self.pending;
        status.last_success = Some(now);
        status.counted_at = Some(now);
        let Some(planned) = self.planned else { return };
        (status.files, status.bytes, status.conflicts) = (planned.files, planned.bytes, planned.conflicts);
        let since: BTreeMap<String, Timestamp> =
            std::mem::take(&mut status.problems).into_iter().map(|p| (p.path, p.since)).collect();
        let problem = |(path, found): (String, PathProblem)| ProblemStatus {
            since: since.get(&path).copied().unwrap_or(now),
            path,
            problem: found.why,
            effect: found.effect,
        };
        status.problems = planned.problems.into_iter().map(problem).collect();
    }
}
