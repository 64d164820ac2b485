//! [`TransferDeadline`]: the minimum speed of a body, in either direction.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes a second that a body must keep up over its whole length. It is low, because several may share a slow link.
const MIN_BYTES_PER_SECOND: u64 = 1024;

/// When the next piece of a body is due. A peer that moves a byte now and then misses it, and so does a peer that stalls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransferDeadline {
    /// The peer's start, moved on by the time that it had to wait for the proxy.
    began: Instant,
    stall_timeout: Duration,
}

impl TransferDeadline {
    /// `stall_timeout`: how long the peer may take for the next piece.
    pub(crate) fn start(stall_timeout: Duration) -> Self {
        Self { began: Instant::now(), stall_timeout }
    }

    /// When the next piece is due, after `bytes` came.
    pub(crate) fn next_due(&self, bytes: u64, now: Instant) -> Instant {
        let whole = self.began + self.stall_timeout + Duration::from_secs(bytes / MIN_BYTES_PER_SECOND);
        whole.min(now + self.stall_timeout)
    }

    /// Excludes a time in which the peer had to wait, such as for memory or the store.
    pub(crate) fn exclude(&mut self, time: Duration) {
        self.began += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_excludes_delays_of_the_proxy() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let mut deadline = TransferDeadline { began, stall_timeout: 30 * second };
        assert_eq!(deadline.next_due(0, began), began + 30 * second);
        assert_eq!(deadline.next_due(29, began + 29 * second), began + 30 * second, "a byte a second is too slow");
        assert_eq!(deadline.next_due(10 * MIN_BYTES_PER_SECOND, began + 29 * second), began + 40 * second);
        let fast = deadline.next_due(1000 * MIN_BYTES_PER_SECOND, began + 29 * second);
        assert_eq!(fast, began + 59 * second, "a fast peer may not stall either");
        deadline.exclude(29 * second);
        deadline.exclude(25 * second);
        assert_eq!(deadline.next_due(0, began + 60 * second), began + 84 * second, "the delay exceeds the own time");
    }
}
