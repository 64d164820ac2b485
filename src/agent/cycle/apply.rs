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
use super::commit::{MAX_BATCH_BYTES, MAX_BATCH_STEPS, RunResult};
use super::parts::CycleParts;
use super::report::{CycleError, CycleReport, remedy};
use super::step::{StepError, StepOutcome};
use super::transit::{FlightResult, MAX_CYCLE_WAIT, SlowStep, SlowSteps, StepFlight, fly, max_flights};
use super::unarrived::UnarrivedContent;
use super::upload::MAX_ATTEMPTS;

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// Carries out the plan and commits its outcomes. Deletions come last, because a rename is an acknowledged upload
    /// before a deletion.
    pub(super) async fn apply(&mut self, plan: Plan) -> Result<CycleReport, CycleError> {
        let mut skipped = self.review_skipped(&plan);
        let mut report = std::mem::take(&mut skipped.report);
        self.memory.quarantine.retry_except(|path| skipped.in_quarantine.contains(path));
        let steps = plan.steps.into_iter().filter(|step| !matches!(step.action, Action::Skip(_)));
        let (deletions, others): (VecDeque<PlanStep>, VecDeque<PlanStep>) =
            steps.partition(|step| step.action.deletes().is_some());
        self.signals.progress.start(others.len() + deletions.len());
        let mut silence = SilenceCheck::default();
        let unarrived = self.run_steps(&mut silence, others, &mut report).await?;
        // The file of a slow transfer may have been edited since its transfer began.
        for (path, slow) in &self.transfers.steps {
            skipped.unarrived.note_action(&slow.step.action);
            skipped.unarrived.on_proxy.extend(self.observed.local_content(path));
        }
        let was = |step: &PlanStep| self.ports.container.entries().get(&step.path).and_then(|entry| entry.stat);
        let waits_for = |step: &PlanStep, unarrived: &UnarrivedContent| {
            unarrived.holds_back(&step.action, was(step), self.observed.size(&step.path))
        };
        let (waiting, ready): (VecDeque<PlanStep>, VecDeque<PlanStep>) =
            deletions.into_iter().partition(|step| waits_for(step, &unarrived) || waits_for(step, &skipped.unarrived));
        report.again |= waiting.iter().any(|step| waits_for(step, &unarrived));
        report.waiting = waiting.len();
        self.memory.waiting_deletions = waiting.len();
        self.run_steps(&mut silence, ready, &mut report).await?;
        if let Some(error) = silence.into_error() {
            self.memory.cut_off.append(&mut report.recent);
            return Err(CycleError::Remote(error));
        }
        self.memory.quarantine.forget_retried();
        Ok(report)
    }

    /// Looks at the skipped paths of the plan. A file that must be read first is read by the next scan.
    fn review_skipped(&mut self, plan: &Plan) -> SkippedPaths {
        let mut skipped = SkippedPaths::default();
        let is_deleting = plan.steps.iter().any(|step| step.action.deletes().is_some());
        for PlanStep { path, action, .. } in &plan.steps {
            let Action::Skip(why) = action else { continue };
            match why {
                SkipReason::Vanished => skipped.report.again = true,
                // The path waits for a file that is being written, or for a deletion. A held deletion takes a person.
                SkipReason::Changing => {
                    skipped.report.again |= is_deleting || self.observed.is_changing(path);
                    skipped.unarrived.has_unknown |= self.may_be_renamed(path);
                }
                // The path is not new any more, so its upload needs a digest.
                SkipReason::Unread => {
                    self.observed.read_again(path);
                    self.memory.read_first.insert(path.clone());
                    skipped.unarrived.has_unknown = true;
                    skipped.report.again = true;
                }
                SkipReason::Unreadable(_) => {
                    let stat = self.observed.found(path).and_then(|found| found.stat);
                    stat.iter().for_each(|stat| skipped.unarrived.note_unreadable(stat));
                }
                SkipReason::Quarantined(_) => {
                    skipped.in_quarantine.insert(path.clone());
                    skipped.unarrived.on_proxy.extend(self.observed.local_content(path));
                }
                SkipReason::Clash(_) | SkipReason::Collides(_) | SkipReason::Ambiguous(_) | SkipReason::TooLarge(_) => {
                    skipped.report.blocked.extend(PathProblem::of(why).map(|problem| (path.clone(), problem)));
                }
                _ => {}
            }
        }
        skipped
    }

    /// True if a file that is being written is new, so that it may be a renamed one. A file that is written without end
    /// holds up nothing.
    fn may_be_renamed(&self, path: &RelPath) -> bool {
        let entry = self.ports.container.entries().get(path);
        let is_synced = entry.is_some_and(|entry| entry.base.content().is_some());
        let limit = max_wait(self.ports.options.quiet);
        let since = self.memory.changing.get(path);
        !is_synced && since.is_some_and(|since| self.ports.world.elapsed().saturating_sub(*since) < limit)
    }

    /// Runs steps side by side, and commits their outcomes in batches. Adds to the cycle's report, and gives the
    /// content that did not arrive. After an error the finished actions are kept for the status.
    async fn run_steps(
        &mut self,
        silence: &mut SilenceCheck,
        steps: VecDeque<PlanStep>,
        report: &mut CycleReport,
    ) -> Result<UnarrivedContent, CycleError> {
        let queue = StepQueue::new(self, steps);
        let (in_flight, slow) = self.transfers.take();
        let end = RunResult::default();
        let mut run = StepRun { parts: self, silence, queue, in_flight, slow, outcomes: Vec::new(), bytes: 0, end };
        run.run_to_end().await?;
        let (flights, steps) = (std::mem::take(&mut run.in_flight), std::mem::take(&mut run.slow));
        (run.parts.transfers.flights, run.parts.transfers.steps) = (flights, steps);
        run.commit()?;
        let RunResult { report: of_run, unarrived, error } = run.end;
        report.add(of_run);
        match error {
            Some(error) => {
                self.memory.cut_off.append(&mut report.recent);
                Err(error)
            }
            None => Ok(unarrived),
        }
    }
}

/// The paths that a plan skips, and the content that is missing because of them.
#[derive(Default)]
struct SkippedPaths {
    unarrived: UnarrivedContent,
    in_quarantine: BTreeSet<RelPath>,
    report: CycleReport,
}

/// Steps in flight.
struct StepRun<'a, D: Disk, R: Remote, W: World> {
    parts: &'a mut CycleParts<D, R, W>,
    silence: &'a mut SilenceCheck,
    queue: StepQueue<D, R>,
    in_flight: FuturesUnordered<StepFlight<D, R>>,
    /// The flights that take long.
    slow: SlowSteps,
    /// Outcomes that are not committed yet.
    outcomes: Vec<(PlanStep, StepOutcome<D>)>,
    /// The bytes of these outcomes.
    bytes: u64,
    end: RunResult,
}

impl<D: Disk, R: Remote, W: World> StepRun<'_, D, R, W> {
    /// Begins flights and takes in their results until only slow flights are left.
    async fn run_to_end(&mut self) -> Result<(), CycleError> {
        loop {
            if self.parts.signals.is_stopping() {
                self.end.error.get_or_insert(CycleError::Stopped);
            }
            if self.end.error.is_some() {
                self.queue.stop();
            }
            self.launch()?;
            let has_work = self.in_flight.len() > self.slow.len() || !self.queue.is_empty();
            let next = self.in_flight.next();
            match if has_work { next.await } else { next.now_or_never().flatten() } {
                None => return Ok(()),
                Some(FlightResult::Slow { step, rest }) => {
                    let now = self.parts.ports.world.elapsed();
                    self.slow.insert(step.path.clone(), SlowStep::new(step, now));
                    self.in_flight.push(rest);
                }
                Some(FlightResult::Step(step, result)) => self.take_step(step, result)?,
                Some(FlightResult::Batch(works, result)) => {
                    let taken = self.queue.take_batch(works, result, &mut self.parts.transfers.pacing);
                    if let Err(e) = taken {
                        self.end.error.get_or_insert(CycleError::Remote(e));
                    }
                }
            }
        }
    }

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

    fn take_step(&mut self, step: PlanStep, result: Result<StepOutcome<D>, StepError>) -> Result<(), CycleError> {
        if self.slow.remove(&step.path).is_some() {
            self.parts.transfers.late.insert(step.path.clone());
            self.end.report.again = true;
        }
        self.parts.signals.progress.done.fetch_add(1, Ordering::Relaxed);
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(e) => {
                self.take_failure(&step, e);
                return Ok(());
            }
        };
        if !matches!(step.action, Action::RecordSeen { .. } | Action::Adopt { .. }) {
            self.silence.note_answer();
        }
        self.end.unarrived.note_outcome(&step.action, &outcome);
        let is_upload = matches!(step.action, Action::Upload { .. } | Action::Conflict { .. });
        if is_upload && matches!(outcome, StepOutcome::Nothing) {
            let why = format!(
                "each of {MAX_ATTEMPTS} uploads found another state on the proxy than it expected; it is uploaded again \
                 later"
            );
            self.end.report.add(self.parts.quarantine(&step, why, false));
        }
        self.bytes += self.parts.observed.size(&step.path);
        self.outcomes.push((step, outcome));
        let is_full = self.outcomes.len() >= MAX_BATCH_STEPS || self.bytes >= MAX_BATCH_BYTES;
        if is_full { self.commit() } else { Ok(()) }
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

    fn commit(&mut self) -> Result<(), CycleError> {
        self.bytes = 0;
        self.parts.commit_outcomes(std::mem::take(&mut self.outcomes), &mut self.end)
    }
}

/// Tells a proxy that is gone from one path whose requests are never answered. It holds the last unanswered request of
/// this cycle, if no request was answered since. The proxy has given its index in this cycle, so one silent request may
/// be due to its path. Two silent paths without an answer in between mean that the proxy is gone.
#[derive(Debug, Default)]
struct SilenceCheck(Option<SilentRequest>);

#[derive(Debug)]
struct SilentRequest {
    path: RelPath,
    error: RemoteError,
    is_first: bool,
}

impl SilenceCheck {
    fn note_answer(&mut self) {
        self.0 = None;
    }

    /// Notes a request without an answer. `is_first`: the path has not failed before. True: the proxy is gone.
    fn note_silence(&mut self, path: &RelPath, error: &RemoteError, is_first: bool) -> bool {
        let request = SilentRequest { path: path.clone(), error: error.clone(), is_first };
        self.0.replace(request).is_some_and(|last| last.path != *path)
    }

    /// The error of a silent request that nothing followed. The cycle ends with it, and the next one finds out whether
    /// the proxy is gone. A path that failed before is no news.
    fn into_error(self) -> Option<RemoteError> {
        self.0.filter(|request| request.is_first).map(|request| request.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_is_gone_after_two_silent_paths() {
        let (a, b) = (RelPath::parse("a").unwrap(), RelPath::parse("b").unwrap());
        let error = RemoteError::Unreachable { url: "url".to_owned(), why: "why".to_owned() };
        let mut silence = SilenceCheck::default();
        assert!(!silence.note_silence(&a, &error, true) && !silence.note_silence(&a, &error, false));
        assert!(silence.note_silence(&b, &error, true));
        silence.note_answer();
        assert!(!silence.note_silence(&a, &error, true), "an answer came in between");
        assert_eq!(silence.into_error(), Some(error.clone()));
        let mut silence = SilenceCheck::default();
        silence.note_silence(&a, &error, false);
        assert_eq!(silence.into_error(), None, "the path failed before");
    }
}
