//! How soon the next cycle comes, and when the container is tidied up: decisions alone.

use std::time::{Duration, Instant};

use crate::agent::session::CONFIRM;
use crate::remote::RemoteError;

/// How soon a proxy that did not answer is asked again; doubled each time, up to the poll's interval.
pub(in crate::agent) const FIRST_RETRY: Duration = Duration::from_millis(500);
/// How soon after its scan a cycle that left something to do is followed by another.
const AGAIN: Duration = CONFIRM.saturating_add(Duration::from_millis(10));
/// The shortest such wait.
const LEAST_AGAIN: Duration = Duration::from_millis(10);
/// The longest such wait, for what does not come to rest.
const LONGEST_AGAIN: Duration = Duration::from_secs(5);
/// So many cycles in vain are nothing unusual.
const USUAL: u32 = 3;
/// Quiet time before the container is tidied up.
const TIDY: Duration = Duration::from_secs(1);
/// Under steady change it is tidied up after this time all the same.
const TIDY_AT_LAST: Duration = Duration::from_secs(30);

/// The wait after a cycle that left something to do, whose scan ended `passed` ago. `in_vain`: how many in a row did so
/// and did nothing: a file that never holds still is looked at less and less often.
pub(super) fn again(in_vain: u32, passed: Duration) -> Duration {
    if in_vain <= USUAL {
        return AGAIN.saturating_sub(passed).max(LEAST_AGAIN);
    }
    AGAIN.saturating_mul(1 << (in_vain - USUAL).min(10)).min(LONGEST_AGAIN)
}

/// The wait before a proxy that failed with `e`, for the `failures`th time in a row, is asked again. `interval` is the
/// poll's. `random` adds up to a quarter, so that many agents do not come back at once. Nothing is taken off, because
/// `Retry-After` names the earliest time.
pub(super) fn retry(e: &RemoteError, failures: u32, interval: Duration, random: u64) -> Duration {
    let ordinary = FIRST_RETRY.saturating_mul(1 << failures.min(8).saturating_sub(1)).min(interval);
    let wait = match e {
        // Some proxies send a short `Retry-After` and go on refusing.
        RemoteError::Throttled { after: Some(after), .. } => ordinary.max(*after),
        RemoteError::Auth { .. } => interval,
        _ => ordinary,
    };
    let jitter = u32::try_from(random % 256).unwrap_or(0);
    wait + wait / 4 * jitter / 256
}

/// When the container is tidied up.
#[derive(Debug, Default)]
pub(super) struct Tidy {
    at: Option<Instant>,
    /// However much goes on changing.
    by: Option<Instant>,
}

impl Tidy {
    /// Something has changed.
    pub(super) fn changed(&mut self, now: Instant) {
        let by = *self.by.get_or_insert(now + TIDY_AT_LAST);
        self.at = Some((now + TIDY).min(by));
    }

    /// Something is left to tidy up at this time.
    pub(super) fn again(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
        self.by.get_or_insert(at);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.at
    }

    /// Whether it is time; it is not again until something changes.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.at.is_some_and(|at| at <= now);
        if due {
            *self = Self::default();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_holds_still_is_looked_at_less_and_less_often() {
        let waits: Vec<_> = (0..40).map(|in_vain| again(in_vain, Duration::ZERO)).collect();
        assert!(waits[..=3].iter().all(|wait| *wait == AGAIN), "a deletion that is confirmed is no such thing");
        assert!(waits[3..9].windows(2).all(|pair| pair[1] == (pair[0] * 2).min(LONGEST_AGAIN)), "{waits:?}");
        assert_eq!(waits[39], LONGEST_AGAIN);
        let slow = Duration::from_secs(20);
        assert_eq!((again(1, slow), again(20, slow)), (LEAST_AGAIN, LONGEST_AGAIN), "however long each of them takes");
    }

    #[test]
    fn a_proxy_that_is_away_is_asked_less_and_less_often_up_to_the_poll() {
        let away = RemoteError::Unreachable { url: "u".to_owned(), why: "w".to_owned() };
        let interval = Duration::from_secs(30);
        let waits: Vec<_> = (1..50).map(|n| retry(&away, n, interval, 0)).collect();
        assert_eq!(waits[..4], [500, 1000, 2000, 4000].map(Duration::from_millis));
        assert_eq!((waits[6], waits[48]), (interval, interval));
        for random in [1, 255, u64::MAX] {
            let wait = retry(&away, 4, interval, random);
            assert!(wait > waits[3] && wait <= waits[3] * 5 / 4, "{wait:?}");
        }
    }

    #[test]
    fn a_proxy_that_says_how_long_and_one_that_refuses_the_token_are_left_alone_for_long() {
        let interval = Duration::from_secs(30);
        let after = Duration::from_secs(300);
        let busy = RemoteError::Throttled { url: "u".to_owned(), status: 429, after: Some(after) };
        for random in [0, 1, 128, 255, u64::MAX] {
            let wait = retry(&busy, 1, interval, random);
            assert!(wait >= after && wait <= after * 5 / 4, "{wait:?} after {after:?} was asked for");
        }
        for after in [None, Some(Duration::ZERO), Some(Duration::from_millis(1))] {
            let busy = RemoteError::Throttled { url: "u".to_owned(), status: 503, after };
            let waits: Vec<_> = (1..9).map(|n| retry(&busy, n, interval, 0)).collect();
            assert_eq!((waits[0], waits[7]), (FIRST_RETRY, interval), "it is not asked without end: {waits:?}");
        }
        let refused = RemoteError::Auth { url: "u".to_owned(), status: 401 };
        assert_eq!(retry(&refused, 1, interval, 0), interval);
    }

    #[test]
    fn the_container_is_tidied_up_in_a_quiet_moment_or_under_steady_change_at_last() {
        let start = Instant::now();
        let mut tidy = Tidy::default();
        assert!(tidy.next().is_none() && !tidy.take_due(start + TIDY_AT_LAST), "nothing has changed");
        tidy.changed(start);
        assert!(!tidy.take_due(start + TIDY / 2));
        assert!(tidy.take_due(start + TIDY) && !tidy.take_due(start + TIDY), "once");
        let mut tidied = Vec::new();
        for n in 0..200 {
            let now = start + TIDY / 2 * n;
            tidy.changed(now);
            if tidy.take_due(now) {
                tidied.push(now - start);
            }
        }
        assert_eq!(tidied.len(), 3, "every half a minute of a hundred seconds: {tidied:?}");
    }
}
