//! The requests in flight, and [`SlowTransfers`]: transfers that go on between cycles.
//!
//! The cycle that began such a transfer goes on with other paths and ends without it. A later cycle takes in its
//! result.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::{BoxFuture, Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, future};

use crate::agent::problems::{PathProblem, ProblemEffect};
use crate::disk::Disk;
use crate::path::RelPath;
use crate::remote::{Remote, RemoteError};
use crate::sync::{PlanStep, SkipReason};

use super::step::{FirstAnswer, StepError, StepOutcome, StepWork};

/// A cycle that has nothing else to do waits this long for one transfer.
pub(super) const MAX_CYCLE_WAIT: Duration = Duration::from_secs(3);
/// Requests that may be in flight beyond the limit while others take long, so that those do not stop everything.
const EXTRA_FLIGHTS: usize = 2;
/// The status names a transfer that takes longer.
const NAMED_AFTER: Duration = Duration::from_secs(10);
/// Batches are halved at most this often. They are then as small as a single large request.
const MAX_HALVINGS: u32 = 6;

/// Requests in flight.
pub(super) type StepFlight<D, R> = BoxFuture<'static, FlightResult<D, R>>;

/// The answers to a batch, one for each step; `None`: the proxy takes no batches now.
pub(super) type BatchResult<D> = Result<Option<Vec<Option<FirstAnswer<D>>>>, RemoteError>;

/// How a flight ended.
pub(super) enum FlightResult<D: Disk, R: Remote> {
    Step(PlanStep, Result<StepOutcome<D>, StepError>),
    /// The step takes long. `rest` carries it on.
    Slow {
        step: PlanStep,
        rest: StepFlight<D, R>,
    },
    Batch(Vec<StepWork<D, R>>, BatchResult<D>),
}

/// Carries out one step. When `limit` ends first, the flight ends as [`FlightResult::Slow`].
pub(super) fn fly<D: Disk, R: Remote>(work: Box<StepWork<D, R>>, limit: BoxFuture<'static, ()>) -> StepFlight<D, R> {
    let step = work.step.clone();
    let run = async move {
        let result = work.run().await;
        FlightResult::Step(work.step, result)
    };
    async move {
        match select(run.boxed(), limit).await {
            Either::Left((result, _)) => result,
            Either::Right(((), rest)) => FlightResult::Slow { step, rest },
        }
    }
    .boxed()
}

/// Requests that may be in flight while `slow` of them take long.
pub(super) fn max_flights(concurrency: usize, slow: usize) -> usize {
    concurrency.max(1) + slow.min(EXTRA_FLIGHTS)
}

/// A step that no cycle waits for.
#[derive(Debug)]
pub(in crate::agent) struct SlowStep {
    pub step: PlanStep,
    /// When the status names it ([`World::elapsed`](crate::agent::World::elapsed)).
    named_at: Duration,
    is_named: bool,
}

impl SlowStep {
    pub(crate) fn new(step: PlanStep, now: Duration) -> Self {
        Self { step, named_at: now + NAMED_AFTER, is_named: false }
    }
}

/// The steps that no cycle waits for.
pub(in crate::agent) type SlowSteps = BTreeMap<RelPath, SlowStep>;

/// Transfers that go on between cycles, and how batches went.
pub(in crate::agent) struct SlowTransfers<D: Disk, R: Remote> {
    pub(super) flights: FuturesUnordered<StepFlight<D, R>>,
    /// Flights that ended since the last cycle.
    landed: Vec<FlightResult<D, R>>,
    pub steps: SlowSteps,
    /// Paths whose slow transfer ended in this cycle.
    pub(super) late: BTreeSet<RelPath>,
    pub(super) pacing: BatchPacing,
}

impl<D: Disk, R: Remote> Default for SlowTransfers<D, R> {
    fn default() -> Self {
        Self {
            flights: FuturesUnordered::new(),
            landed: Vec::new(),
            steps: SlowSteps::new(),
            late: BTreeSet::new(),
            pacing: BatchPacing::default(),
        }
    }
}

impl<D: Disk, R: Remote> SlowTransfers<D, R> {
    /// Hands the flights of earlier cycles over, with their steps. A cycle that ends early loses both, and the next one
    /// plans them again.
    pub(super) fn take(&mut self) -> (FuturesUnordered<StepFlight<D, R>>, SlowSteps) {
        self.late.clear();
        let flights = std::mem::take(&mut self.flights);
        self.landed.drain(..).for_each(|result| flights.push(future::ready(result).boxed()));
        (flights, std::mem::take(&mut self.steps))
    }

    /// Waits for the end of a slow transfer, forever without one. The next cycle takes in the result.
    pub(crate) async fn wait_for_end(&mut self) {
        match self.flights.next().await {
            Some(result) => self.landed.push(result),
            None => future::pending().await,
        }
    }

    /// Gives up all slow transfers. The caller plans their paths again.
    pub(crate) fn drop_all(&mut self) -> impl Iterator<Item = RelPath> + use<D, R> {
        (self.flights, self.landed) = (FuturesUnordered::new(), Vec::new());
        self.late.clear();
        std::mem::take(&mut self.steps).into_keys()
    }

    /// When the status must name a transfer.
    pub(crate) fn next_named(&self) -> Option<Duration> {
        self.steps.values().filter(|slow| !slow.is_named).map(|slow| slow.named_at).min()
    }

    /// Names the transfers that are due. True if any were due.
    pub(super) fn name_due(&mut self, now: Duration) -> bool {
        let mut any = false;
        for slow in self.steps.values_mut() {
            let is_due = !slow.is_named && slow.named_at <= now;
            any |= is_due;
            slow.is_named |= is_due;
        }
        any
    }

    /// The problems that name transfers.
    pub(crate) fn problems(&self) -> impl Iterator<Item = (RelPath, PathProblem)> {
        let named = self.steps.iter().filter(|(_, slow)| slow.is_named);
        named.map(|(path, _)| {
            (path.clone(), PathProblem::new(ProblemEffect::Retried, SkipReason::InTransit.to_string()))
        })
    }
}

/// How much is sent at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchLimits {
    /// Batches in flight.
    pub at_once: usize,
    /// Requests in one batch.
    pub most: usize,
    /// Bytes of content in one batch.
    pub bytes: u64,
}

/// How the last batches went.
#[derive(Debug, Default)]
pub(super) struct BatchPacing {
    halvings: u32,
    is_failing: bool,
}

impl BatchPacing {
    /// The limits that the link can carry. After a lost batch they are smaller, and batches go one after another.
    pub(super) fn limit(&self, full: BatchLimits) -> BatchLimits {
        if self.halvings == 0 {
            return full;
        }
        BatchLimits { at_once: 1, most: (full.most >> self.halvings).max(1), bytes: full.bytes >> self.halvings }
    }

    /// Notes a batch that was answered whole.
    pub(super) fn note_answer(&mut self) {
        self.halvings = self.halvings.saturating_sub(1);
        self.is_failing = false;
    }

    /// Notes a failed batch; `is_lost`: no answer came. True for the first failure since the last answer, which is to
    /// be logged.
    pub(super) fn note_failure(&mut self, is_lost: bool) -> bool {
        if is_lost {
            self.halvings = (self.halvings + 1).min(MAX_HALVINGS);
        }
        !std::mem::replace(&mut self.is_failing, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: BatchLimits = BatchLimits { at_once: 3, most: 512, bytes: 1 << 22 };

    #[test]
    fn batches_shrink_while_they_are_lost() {
        let mut pacing = BatchPacing::default();
        assert_eq!(pacing.limit(FULL), FULL);
        pacing.note_failure(true);
        assert_eq!(pacing.limit(FULL), BatchLimits { at_once: 1, most: 256, bytes: 1 << 21 });
        for _ in 0..20 {
            pacing.note_failure(true);
        }
        assert_eq!(pacing.limit(FULL), BatchLimits { at_once: 1, most: 8, bytes: 1 << 16 });
        (0..MAX_HALVINGS).for_each(|_| pacing.note_answer());
        assert_eq!(pacing.limit(FULL), FULL);
    }

    #[test]
    fn refused_batch_keeps_its_size() {
        let mut pacing = BatchPacing::default();
        pacing.note_failure(false);
        assert_eq!(pacing.limit(FULL), FULL);
    }

    #[test]
    fn failing_batches_are_logged_once() {
        let mut pacing = BatchPacing::default();
        assert_eq!([true, false, true].map(|is_lost| pacing.note_failure(is_lost)), [true, false, false]);
        pacing.note_answer();
        assert!(pacing.note_failure(false), "it is another failure");
    }
}
