//! What the engine asks of the world besides disk and network, so that it also runs in a simulated one.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Clock and chance.
pub trait World: Send + Sync + 'static {
    /// The wall clock. Shown and written down; it decides nothing (invariant 13) but which stat is young.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment, never going back.
    fn elapsed(&self) -> Duration;
    /// A random number, for jitter.
    fn random(&self) -> u64;
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
}
