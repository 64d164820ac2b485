//! [`SlowTransfers`]: transfers that go on between cycles.
//!
//! The cycle that began such a transfer goes on with other paths and ends without it. A later cycle takes in its result.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, future};

use crate::agent::problems::{PathProblem, ProblemEffect};
use crate::disk::Disk;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::sync::{PlanStep, SkipReason};

use super::flight::{FlightResult, StepFlight};
use super::pacing::BatchPacing;

/// A cycle that has nothing else to do waits this long for one transfer.
pub(super) const MAX_CYCLE_WAIT: Duration = Duration::from_secs(3);
/// Requests that may be in flight beyond the limit while others take long, so that those do not stop everything.
const EXTRA_FLIGHTS: usize = 2;
/// The status names a transfer that takes longer.
const NAMED_AFTER: Duration = Duration::from_secs(10);

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
    flights: FuturesUnordered<StepFlight<D, R>>,
    /// Flights that ended since the last cycle.
    landed: Vec<FlightResult<D, R>>,
    pub(super) steps: SlowSteps,
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

    /// Goes on with the flights that a cycle leaves.
    pub(super) fn resume(&mut self, flights: FuturesUnordered<StepFlight<D, R>>, steps: SlowSteps) {
        (self.flights, self.steps) = (flights, steps);
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

    pub(crate) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.steps.keys()
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

/// Requests that may be in flight while `slow` of them take long.
pub(super) fn max_flights(concurrency: usize, slow: usize) -> usize {
    concurrency.max(1) + slow.min(EXTRA_FLIGHTS)
}
