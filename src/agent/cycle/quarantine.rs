//! [`Quarantine`]: a path that failed is retried with a growing wait, so that one bad file holds up no other
//! (invariant 12).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::digest::Md5;
use crate::path::RelPath;

/// The first wait; each further failure doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// The longest wait for a program to close a file, where no event tells of the close. A try costs one open.
const LONGEST_OPEN: Duration = Duration::from_secs(30);

/// The paths that failed, each with the time of its next try.
#[derive(Debug, Default)]
pub(in crate::agent) struct Quarantine(BTreeMap<RelPath, FailedPath>);

#[derive(Debug)]
struct FailedPath {
    failure: PathFailure,
    /// Failures in a row.
    failures: u32,
    /// The time of the next try ([`World::elapsed`](crate::agent::World::elapsed)).
    until: Duration,
    /// This cycle tries again.
    is_retried: bool,
}

/// Why a path failed.
#[derive(Debug, Clone)]
pub(super) struct PathFailure {
    pub why: String,
    /// The content of the local file. Other content is tried at once.
    pub content: Option<Md5>,
    /// A program has the file open. Its close is a reason to try at once.
    pub is_open: bool,
}

impl Quarantine {
    /// Notes a failure of `path`. `random` spreads the retries.
    pub(super) fn fail(&mut self, path: &RelPath, failure: PathFailure, now: Duration, random: u64) {
        let failures = self.0.get(path).map_or(0, |failed| failed.failures) + 1;
        let longest = if failure.is_open { LONGEST_OPEN } else { LONGEST };
        let wait = FIRST.saturating_mul(1 << failures.min(11).saturating_sub(1)).min(longest);
        // From half of the wait to all of it.
        let jitter = u32::try_from(random % 1000).unwrap_or(0);
        let wait = wait / 2 + wait / 2 * jitter / 1000;
        self.0.insert(path.clone(), FailedPath { failure, failures, until: now + wait, is_retried: false });
    }

    /// Why the path waits now, if it does.
    pub(crate) fn reason(&self, path: &RelPath, content: Option<Md5>, now: Duration) -> Option<&str> {
        let failed = self.0.get(path)?;
        (now < failed.until && failed.failure.content == content).then_some(failed.failure.why.as_str())
    }

    /// Notes which paths this cycle skips. All others are tried again, or are gone.
    pub(crate) fn retry_except(&mut self, is_skipped: impl Fn(&RelPath) -> bool) {
        for (path, failed) in &mut self.0 {
            failed.is_retried = !is_skipped(path);
        }
    }

    /// Forgets the paths that were tried again and did not fail.
    pub(crate) fn forget_retried(&mut self) {
        self.0.retain(|_, failed| !failed.is_retried);
    }

    pub(crate) fn contains(&self, path: &RelPath) -> bool {
        self.0.contains_key(path)
    }

    pub(crate) fn clear(&mut self, path: &RelPath) {
        self.0.remove(path);
    }

    /// Lets a path that waits for a program try again at once where a scan was asked for it.
    pub(crate) fn retry_open(&mut self, is_touched: impl Fn(&RelPath) -> bool) {
        for (path, failed) in &mut self.0 {
            if failed.failure.is_open && is_touched(path) {
                failed.until = Duration::ZERO;
            }
        }
    }

    /// Lets every path try again at once.
    pub(crate) fn retry_all(&mut self) {
        for failed in self.0.values_mut() {
            failed.until = Duration::ZERO;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first path may be tried again.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.0.values().map(|failed| failed.until).min()
    }

    /// The paths that failed, with the reason, also while a retry is due.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RelPath, &str)> {
        self.0.iter().map(|(path, failed)| (path, failed.failure.why.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_waits_longer_each_time() {
        let mut quarantine = Quarantine::default();
        let path = RelPath::parse("a").unwrap();
        let (old, new) = (Some(Md5::of(b"1")), Some(Md5::of(b"2")));
        let fail = |quarantine: &mut Quarantine| {
            let failure = PathFailure { why: "why".into(), content: old, is_open: false };
            quarantine.fail(&path, failure, Duration::ZERO, 0);
        };
        let mut last = Duration::ZERO;
        for _ in 0..30 {
            fail(&mut quarantine);
            let due = quarantine.next_due().unwrap();
            assert!(due >= last && due <= LONGEST);
            last = due;
        }
        assert_eq!(last, LONGEST / 2);
        assert_eq!(quarantine.reason(&path, old, Duration::ZERO), Some("why"));
        assert_eq!(quarantine.reason(&path, new, Duration::ZERO), None, "new content is tried at once");
        assert_eq!(quarantine.reason(&path, old, LONGEST), None);
        quarantine.retry_except(|_| true);
        quarantine.forget_retried();
        assert!(!quarantine.is_empty(), "it waits, and is remembered");
        quarantine.retry_except(|_| false);
        fail(&mut quarantine);
        quarantine.forget_retried();
        assert_eq!(quarantine.next_due(), Some(LONGEST / 2), "it failed again, and waits no shorter");
        quarantine.retry_except(|_| false);
        quarantine.forget_retried();
        assert!(quarantine.is_empty());
    }
}
