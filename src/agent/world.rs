//! [`World`]: clock and randomness. The simulator has its own, so that it runs the same engine.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;

use crate::disk::boot::{MachineBoot, read_boot};

/// Clock and randomness of one engine.
pub trait World: Send + Sync + 'static {
    /// The wall clock. It is shown and saved, and it decides only which stat is young (invariant 13).
    fn now(&self) -> Timestamp;
    /// The monotonic clock: the time since a fixed moment.
    fn elapsed(&self) -> Duration;
    /// A random number, for jitter.
    fn random(&self) -> u64;
    /// The start of the machine. `None` where the system does not say.
    fn boot(&self) -> Option<MachineBoot> {
        None
    }

    /// Ends after `time`. In a simulated world it may never end.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let _ = time;
        std::future::pending().boxed()
    }
    /// Does slow work on another thread. A simulated world does it at once.
    fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> BoxFuture<'static, T> {
        std::future::ready(work()).boxed()
    }
}

/// The world of a real machine.
pub struct RealWorld(Instant);

impl Default for RealWorld {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl World for RealWorld {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }

    fn boot(&self) -> Option<MachineBoot> {
        read_boot().inspect_err(|e| tracing::debug!("the start of the machine is unknown: {e}")).ok()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(time).boxed()
    }

    fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> BoxFuture<'static, T> {
        let done = tokio::task::spawn_blocking(work);
        async {
            match done.await.map_err(tokio::task::JoinError::try_into_panic) {
                Ok(done) => done,
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                // The runtime ends, and with it the task that waits.
                Err(Err(_)) => std::future::pending().await,
            }
        }
        .boxed()
    }
}
