//! The third step of a cycle: carry out a plan.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::agent::problems::PathProblem;
use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::dirty::max_wait;
use crate::path::RelPath;
use crate::remote::{Remote, RemoteError};
use crate::sync::{Action, Plan, PlanStep, SkipReason};

use super::batch::{NextFlight, StepQueue, send_batch};
use super::commit::{OutcomeBatch, commit_outcomes};
use super::error::{CycleError, remedy};
use super::flight::{FlightResult, StepFlight, fly};
use super::parts::CycleParts;
use super::report::CycleReport;
use super::silence::SilenceCheck;
use super::step::{StepError, StepOutcome};
use super::transit::{MAX_CYCLE_WAIT, SlowStep, SlowSteps, max_flights};
use super::unarrived::UnarrivedContent;
use super::upload::MAX_ATTEMPTS;

/// Carries out the plan and commits its outcomes. Deletions come last, because a rename is an acknowledged upload before
/// a deletion.
pub(super) async fn apply<D: Disk, R: Remote, W: World>(
    parts: &mut CycleParts<D, R, W>,
    plan: Plan,
) -> Result<CycleReport, CycleError> {
    let mut skipped = SkippedPaths::review(parts, &plan);
    let mut report = std::mem::take(&mut skipped.report);
    parts.memory.quarantine.retry_except(|path| skipped.in_quarantine.contains(path));
    let steps = plan.steps.into_iter().filter(|step| !matches!(step.action, Action::Skip(_)));
    let (deletions, others): (VecDeque<PlanStep>, VecDeque<PlanStep>) =
        steps.partition(|step| step.action.deletes().is_some());
    parts.ports.progress.start(others.len() + deletions.len());
    let mut silence = SilenceCheck::default();
    let unarrived = run_steps(parts, &mut silence, others).await?.finish(parts, &mut report)?;
    note_in_transit(parts, &mut skipped.unarrived);
    let was = |step: &PlanStep| parts.ports.container.entries().get(&step.path).and_then(|entry| entry.stat);
    let waits_for = |step: &PlanStep, unarrived: &UnarrivedContent| {
        unarrived.holds_back(&step.action, was(step), parts.observed.size(&step.path))
    };
    let (waiting, ready): (VecDeque<PlanStep>, VecDeque<PlanStep>) =
        deletions.into_iter().partition(|step| waits_for(step, &unarrived) || waits_for(step, &skipped.unarrived));
    report.again |= waiting.iter().any(|step| waits_for(step, &unarrived));
    report.waiting = waiting.len();
    parts.memory.waiting_deletions = waiting.len();
    run_steps(parts, &mut silence, ready).await?.finish(parts, &mut report)?;
    if let Some(error) = silence.into_error() {
        parts.memory.cut_off.append(&mut report.recent);
        return Err(CycleError::Remote(error));
    }
    parts.memory.quarantine.forget_retried();
    Ok(report)
}

/// The paths that a plan skips, and the content that is missing because of them.
struct SkippedPaths {
    unarrived: UnarrivedContent,
    in_quarantine: BTreeSet<RelPath>,
    report: CycleReport,
}

impl SkippedPaths {
    /// Looks at the skipped paths of the plan. A file that must be read first is read by the next scan.
    fn review<D: Disk, R: Remote, W: World>(parts: &mut CycleParts<D, R, W>, plan: &Plan) -> Self {
        let mut skipped = Self {
            unarrived: UnarrivedContent::default(),
            in_quarantine: BTreeSet::new(),
            report: CycleReport::default(),
        };
        let is_deleting = plan.steps.iter().any(|step| step.action.deletes().is_some());
        for step in &plan.steps {
            if let Action::Skip(why) = &step.action {
                skipped.note(parts, &step.path, why, is_deleting);
            }
        }
        skipped
    }

    fn note<D: Disk, R: Remote, W: World>(
        &mut self,
        parts: &mut CycleParts<D, R, W>,
        path: &RelPath,
        why: &SkipReason,
        is_deleting: bool,
    ) {
        match why {
            SkipReason::Vanished => self.report.again = true,
            // The path waits for a file that is being written, or for a deletion. A held deletion takes a person.
            SkipReason::Changing => {
                self.report.again |= is_deleting || parts.observed.is_changing(path);
                self.unarrived.has_unknown |= may_be_renamed(parts, path);
            }
            // The path is not new any more, so its upload needs a digest.
            SkipReason::Unread => {
                parts.observed.read_again(path);
                parts.memory.read_first.insert(path.clone());
                self.unarrived.has_unknown = true;
                self.report.again = true;
            }
            SkipReason::Unreadable(_) => {
                let stat = parts.observed.found(path).and_then(|found| found.stat);
                stat.iter().for_each(|stat| self.unarrived.note_unreadable(stat));
            }
            SkipReason::Quarantined(_) => {
                self.in_quarantine.insert(path.clone());
                self.unarrived.on_proxy.extend(parts.observed.local_content(path));
            }
            SkipReason::Clash(_) | SkipReason::Collides(_) | SkipReason::Ambiguous(_) | SkipReason::TooLarge(_) => {
                self.report.blocked.extend(PathProblem::of(why).map(|problem| (path.clone(), problem)));
            }
            _ => {}
        }
    }
}

/// True if a file that is being written is new, so that it may be a renamed one. A file that is written without end holds
/// up nothing.
fn may_be_renamed<D: Disk, R: Remote, W: World>(parts: &CycleParts<D, R, W>, path: &RelPath) -> bool {
    let is_synced = parts.ports.container.entries().get(path).is_some_and(|entry| entry.base.content().is_some());
    let limit = max_wait(parts.ports.options.quiet);
    let since = parts.memory.changing.get(path);
    !is_synced && since.is_some_and(|since| parts.ports.world.elapsed().saturating_sub(*since) < limit)
}

/// Notes the content of slow transfers. The file may have been edited since its transfer began.
fn note_in_transit<D: Disk, R: Remote, W: World>(parts: &CycleParts<D, R, W>, unarrived: &mut UnarrivedContent) {
    for (path, slow) in &parts.transfers.steps {
        unarrived.note_action(&slow.step.action);
        unarrived.on_proxy.extend(parts.observed.local_content(path));
    }
}

/// How a run of steps ended.
#[derive(Default)]
struct RunEnd {
    report: CycleReport,
    unarrived: UnarrivedContent,
    /// Why the cycle cannot go on.
    error: Option<CycleError>,
}

impl RunEnd {
    /// Adds the run's report to the cycle's. After an error the finished actions are kept for the status.
    fn finish<D: Disk, R: Remote, W: World>(
        self,
        parts: &mut CycleParts<D, R, W>,
        report: &mut CycleReport,
    ) -> Result<UnarrivedContent, CycleError> {
        report.add(self.report);
        match self.error {
            Some(error) => {
                parts.memory.cut_off.append(&mut report.recent);
                Err(error)
            }
            None => Ok(self.unarrived),
        }
    }
}

/// Runs steps side by side, and commits their outcomes in batches.
async fn run_steps<D: Disk, R: Remote, W: World>(
    parts: &mut CycleParts<D, R, W>,
    silence: &mut SilenceCheck,
    steps: VecDeque<PlanStep>,
) -> Result<RunEnd, CycleError> {
    let queue = StepQueue::new(parts, steps);
    let (in_flight, slow) = parts.transfers.take();
    let batch = OutcomeBatch::default();
    let mut run = StepRun { parts, silence, queue, in_flight, slow, batch, end: RunEnd::default() };
    loop {
        if run.parts.ports.is_stopping() {
            run.end.error.get_or_insert(CycleError::Stopped);
        }
        if run.end.error.is_some() {
            run.queue.stop();
        }
        run.launch()?;
        match run.land().await {
            None => break,
            Some(FlightResult::Slow { step, rest }) => run.set_aside(step, rest),
            Some(FlightResult::Step(step, result)) => run.take_step(step, result)?,
            Some(FlightResult::Batch(works, result)) => {
                let taken = run.queue.take_batch(works, result, &mut run.parts.transfers.pacing);
                if let Err(e) = taken {
                    run.end.error.get_or_insert(CycleError::Remote(e));
                }
            }
        }
    }
    let (in_flight, slow) = (std::mem::take(&mut run.in_flight), std::mem::take(&mut run.slow));
    run.parts.transfers.resume(in_flight, slow);
    run.commit()?;
    Ok(run.end)
}

/// Steps in flight.
struct StepRun<'a, D: Disk, R: Remote, W: World> {
    parts: &'a mut CycleParts<D, R, W>,
    silence: &'a mut SilenceCheck,
    queue: StepQueue<D, R>,
    in_flight: FuturesUnordered<StepFlight<D, R>>,
    /// The flights that take long.
    slow: SlowSteps,
    batch: OutcomeBatch<D>,
    end: RunEnd,
}

impl<D: Disk, R: Remote, W: World> StepRun<'_, D, R, W> {
    /// Begins as many flights as the options allow.
    fn launch(&mut self) -> Result<(), CycleError> {
        while self.in_flight.len() < max_flights(self.parts.ports.options.concurrency, self.slow.len()) {
            self.parts.ports.container.note_uploads(self.queue.uploads_ahead())?;
            let parts = &*self.parts;
            self.in_flight.push(match self.queue.next(|step| parts.prepare(step)) {
                None => break,
                Some(NextFlight::Batch(steps)) => send_batch(parts, steps),
                Some(NextFlight::Step(work)) => fly(work, parts.ports.world.sleep(MAX_CYCLE_WAIT)),
            });
        }
        Ok(())
    }

    /// The next flight that ends. `None`: only slow flights are left, and all of them go on.
    async fn land(&mut self) -> Option<FlightResult<D, R>> {
        if self.in_flight.len() > self.slow.len() || !self.queue.is_empty() {
            self.in_flight.next().await
        } else {
            self.in_flight.next().now_or_never().flatten()
        }
    }

    fn set_aside(&mut self, step: PlanStep, rest: StepFlight<D, R>) {
        let now = self.parts.ports.world.elapsed();
        self.slow.insert(step.path.clone(), SlowStep::new(step, now));
        self.in_flight.push(rest);
    }

    fn take_step(&mut self, step: PlanStep, result: Result<StepOutcome<D>, StepError>) -> Result<(), CycleError> {
        if self.slow.remove(&step.path).is_some() {
            self.parts.transfers.late.insert(step.path.clone());
            self.end.report.again = true;
        }
        self.parts.ports.progress.done.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(outcome) => self.take_outcome(step, outcome),
            Err(e) => {
                self.take_failure(&step, e);
                Ok(())
            }
        }
    }

    fn take_outcome(&mut self, step: PlanStep, outcome: StepOutcome<D>) -> Result<(), CycleError> {
        if !matches!(step.action, Action::RecordSeen { .. } | Action::Adopt { .. }) {
            self.silence.note_answer();
        }
        self.end.unarrived.note_outcome(&step.action, &outcome);
        let is_upload = matches!(step.action, Action::Upload { .. } | Action::Conflict { .. });
        if is_upload && matches!(outcome, StepOutcome::Nothing) {
            let why =
                format!("it changed on the proxy during each of {MAX_ATTEMPTS} uploads; it is uploaded again later");
            self.end.report.add(self.parts.quarantine(&step, why, false));
        }
        let bytes = self.parts.observed.size(&step.path);
        self.batch.push(step, outcome, bytes);
        if self.batch.is_full() { self.commit() } else { Ok(()) }
    }

    fn take_failure(&mut self, step: &PlanStep, e: StepError) {
        self.end.unarrived.note_action(&step.action);
        let error = self.note_failure(step, e);
        if self.parts.transfers.late.contains(&step.path) {
            // The proxy has given its index since this request was sent.
            self.silence.note_answer();
        } else if let Some(error) = error {
            self.end.error.get_or_insert(error);
        }
    }

    /// Notes a failed step. `Some`: the cycle cannot go on.
    fn note_failure(&mut self, step: &PlanStep, e: StepError) -> Option<CycleError> {
        let error = match &e {
            StepError::Remote(e @ RemoteError::Unreachable { .. }) => self.note_silence(&step.path, e),
            StepError::Remote(e) if e.ends_cycle() => return Some(CycleError::Remote(e.clone())),
            _ => None,
        };
        // The upload is tried again with a digest. If it fails again, it is put in quarantine.
        if step.action == Action::UploadUnread {
            self.parts.memory.read_first.insert(step.path.clone());
            self.read_again(&step.path);
            return error;
        }
        let why = match e {
            StepError::Changed => {
                self.read_again(&step.path);
                return None;
            }
            StepError::Remote(e) | StepError::Forbidden(e) => e.to_string(),
            StepError::Local(e) => format!("{e}; {}", remedy(&e)),
        };
        self.end.report.add(self.parts.quarantine(step, why, false));
        error
    }

    /// Notes a request for `path` without an answer. `Some`: the proxy is gone.
    fn note_silence(&mut self, path: &RelPath, e: &RemoteError) -> Option<CycleError> {
        let memory = &self.parts.memory;
        let is_first = !memory.quarantine.contains(path) && !memory.read_first.contains(path);
        self.silence.note_silence(path, e, is_first).then(|| CycleError::Remote(e.clone()))
    }

    fn read_again(&mut self, path: &RelPath) {
        self.parts.observed.read_again(path);
        self.end.report.again = true;
    }

    /// Makes the finished outcomes durable, and commits them.
    fn commit(&mut self) -> Result<(), CycleError> {
        let committed = commit_outcomes(self.parts, std::mem::take(&mut self.batch))?;
        self.end.unarrived.here.extend(committed.unarrived_here);
        self.end.report.add(committed.report);
        Ok(())
    }
}
