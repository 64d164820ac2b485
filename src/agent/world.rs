//! What the engine asks of the world besides disk and network, so that it also runs in a simulated one.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;

use crate::disk::boot::{Boot, read_boot};

/// Clock, chance and company.
pub trait World: Send + Sync + 'static {
    /// The wall clock. Shown and written down; it decides nothing (invariant 13) but which stat is young.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment, never going back.
    fn elapsed(&self) -> Duration;
    /// A random number, for jitter.
    fn random(&self) -> u64;
    /// Which start of the machine this is; `None` where nothing tells.
    fn boot(&self) -> Option<Boot> {
        None
    }

    /// Ends after `time`. In a simulated world it need not.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let _ = time;
        std::future::pending().boxed()
    }
    /// Does work that takes a while beside what else there is to do. A simulated world does it at once.
    fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> BoxFuture<'static, T> {
        std::future::ready(work()).boxed()
    }
}

/// The real one.
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

    fn boot(&self) -> Option<Boot> {
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
                // The runtime ends, and whoever waits for this with it.
                Err(Err(_)) => std::future::pending().await,
            }
        }
        .boxed()
    }
}
