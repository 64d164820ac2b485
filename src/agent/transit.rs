//! Transfers that take long. The cycle that began one goes on with other paths and ends without it; the transfer goes on
//! between cycles, and a later cycle takes in its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::{BoxFuture, Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, future};

use crate::disk::Disk;
use crate::local::LocalEntry;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::sync::{Action, LocalState, PlanStep, SkipReason};

use super::World;
use super::apply::Work;
use super::batch::Flown;
use super::cycle::NotArrived;
use super::engine::Engine;
use super::problems::{Effect, PathProblem};

/// A cycle does not wait longer for one transfer while there is nothing else to do.
const MAX_CYCLE_WAIT: Duration = Duration::from_secs(3);
/// Requests that may be in flight beyond the limit while others take long, so that these do not stop everything.
const EXTRA_FLIGHTS: usize = 2;

/// Requests on their way.
pub(super) type Flight<D, R> = BoxFuture<'static, Flown<D, R>>;

/// A transfer that takes longer is named in the status.
const NAMED_AFTER: Duration = Duration::from_secs(10);

/// A step that takes long, to be gone on with.
pub(super) struct SlowStep<D: Disk, R: Remote> {
    pub step: PlanStep,
    pub rest: Flight<D, R>,
}

/// A step that no cycle waits for.
#[derive(Debug)]
pub(super) struct Transit {
    pub step: PlanStep,
    /// When it is named, by the clock of [`World::elapsed`].
    named_at: Duration,
    pub is_named: bool,
}

/// The steps that no cycle waits for.
pub(super) type Transits = BTreeMap<RelPath, Transit>;

/// Transfers that go on between cycles.
pub(super) struct Transfers<D: Disk, R: Remote> {
    flights: FuturesUnordered<Flight<D, R>>,
    /// What has ended since the last cycle.
    landed: Vec<Flown<D, R>>,
    pub steps: Transits,
    /// The paths whose transfers have ended in this cycle.
    pub late: BTreeSet<RelPath>,
}

impl<D: Disk, R: Remote> Default for Transfers<D, R> {
    fn default() -> Self {
        Self { flights: FuturesUnordered::new(), landed: Vec::new(), steps: Transits::new(), late: BTreeSet::new() }
    }
}

impl<D: Disk, R: Remote> Transfers<D, R> {
    /// Goes on with what a cycle leaves in flight.
    pub fn resume(&mut self, flights: FuturesUnordered<Flight<D, R>>, steps: Transits) {
        (self.flights, self.steps) = (flights, steps);
    }
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Carries a step out by itself; it gives itself back when it takes long.
    pub(super) fn fly(&self, work: Box<Work<D, R>>) -> Flight<D, R> {
        let (step, pause) = (work.step.clone(), self.world.sleep(MAX_CYCLE_WAIT));
        let run = async move {
            let result = work.run().await;
            Flown::One(work.step, result)
        };
        async move {
            match select(run.boxed(), pause).await {
                Either::Left((flown, _)) => flown,
                Either::Right(((), rest)) => Flown::Slow(SlowStep { step, rest }),
            }
        }
        .boxed()
    }

    /// Requests that may be in flight while so many take long.
    pub(super) fn max_flights(&self, slow: usize) -> usize {
        self.options.concurrency.max(1) + slow.min(EXTRA_FLIGHTS)
    }

    /// What is in flight from earlier cycles, with the steps. A cycle that ends early loses both, and they are planned anew.
    pub(super) fn take_flights(&mut self) -> (FuturesUnordered<Flight<D, R>>, Transits) {
        let Transfers { flights, landed, steps, .. } = std::mem::take(&mut self.transfers);
        landed.into_iter().for_each(|flown| flights.push(future::ready(flown).boxed()));
        (flights, steps)
    }

    /// Waits for the end of a transfer that takes long, for ever where there is none. The next cycle takes it in.
    pub async fn transfer_ends(&mut self) {
        match self.transfers.flights.next().await {
            Some(flown) => {
                self.transfers.landed.push(flown);
                self.unfinished = true;
            }
            None => future::pending().await,
        }
    }

    pub(super) fn transit(&self, step: PlanStep) -> Transit {
        Transit { step, named_at: self.world.elapsed() + NAMED_AFTER, is_named: false }
    }

    /// When a transfer that takes long is to be named, by the clock of [`World::elapsed`].
    pub fn next_named(&self) -> Option<Duration> {
        self.transfers.steps.values().filter(|transit| !transit.is_named).map(|transit| transit.named_at).min()
    }

    /// Whether there are transfers to be named from now on.
    pub(super) fn name_transits(&mut self, now: Duration) -> bool {
        let mut any = false;
        for transit in self.transfers.steps.values_mut() {
            let is_due = !transit.is_named && transit.named_at <= now;
            any |= is_due;
            transit.is_named |= is_due;
        }
        any
    }

    /// The paths whose transfer takes long.
    pub fn in_transit(&self) -> impl Iterator<Item = &RelPath> {
        self.transfers.steps.keys()
    }

    /// The paths that are named, with what is to be said of them.
    pub(super) fn transit_problems(&self) -> impl Iterator<Item = (RelPath, PathProblem)> {
        let named = self.transfers.steps.iter().filter(|(_, transit)| transit.is_named);
        named.map(|(path, _)| (path.clone(), PathProblem::new(Effect::Retried, SkipReason::InTransit.to_string())))
    }

    /// Gives up the transfers that take long. The next plan begins anew.
    pub(super) fn drop_transfers(&mut self) {
        for path in std::mem::take(&mut self.transfers).steps.into_keys() {
            self.open.add(&path);
            self.unfinished = true;
        }
    }

    /// Notes the content that has not arrived because its transfer takes long.
    pub(super) fn note_in_transit(&self, missing: &mut NotArrived) {
        for (path, transit) in &self.transfers.steps {
            missing.note(&transit.step.action);
            // It may be edited since.
            if let Some(LocalEntry { local: LocalState::File(md5), .. }) = self.tree.found().get(path) {
                missing.contents.insert(*md5);
            }
        }
    }
}

impl NotArrived {
    /// Notes what an action was to bring to the other side and did not.
    pub(super) fn note(&mut self, action: &Action) {
        match action {
            Action::Upload { local, .. } | Action::Conflict { local, .. } => {
                self.contents.insert(*local);
            }
            Action::UploadUnread => self.unknown = true,
            Action::Download { remote } => {
                self.here.insert(*remote);
            }
            _ => {}
        }
    }
}
