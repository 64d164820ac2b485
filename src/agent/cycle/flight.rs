//! [`StepFlight`]: the requests of one step, or a batch of many steps, in flight.

use futures::FutureExt;
use futures::future::{BoxFuture, Either, select};

use crate::disk::Disk;
use crate::remote::{Remote, RemoteError};
use crate::sync::PlanStep;

use super::step::{FirstAnswer, StepError, StepOutcome, StepWork};

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

/// Carries out one step. When `pause` ends first, the flight ends as [`FlightResult::Slow`].
pub(super) fn fly<D: Disk, R: Remote>(work: Box<StepWork<D, R>>, pause: BoxFuture<'static, ()>) -> StepFlight<D, R> {
    let step = work.step.clone();
    let run = async move {
        let result = work.run().await;
        FlightResult::Step(work.step, result)
    };
    async move {
        match select(run.boxed(), pause).await {
            Either::Left((result, _)) => result,
            Either::Right(((), rest)) => FlightResult::Slow { step, rest },
        }
    }
    .boxed()
}
