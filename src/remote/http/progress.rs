//! [`Progress`]: the idle timeout of a transfer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{self, Instant};

/// The time of the last progress of a transfer. `None`: all bytes are sent, so no more progress can be seen.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<Option<Instant>>>);

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    pub(super) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// All bytes are sent. Bytes in buffers on the way cannot be observed.
    pub(super) fn all_sent(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns after `idle_timeout` without progress, or at `deadline`.
    pub(super) async fn idle(&self, idle_timeout: Duration, deadline: Instant) {
        loop {
            let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let due = seen.map_or(deadline, |at| (at + idle_timeout).min(deadline));
            if Instant::now() >= due {
                return;
            }
            time::sleep_until(due).await;
        }
    }
}
