//! Quarantine: a path that failed is left alone for a while, so that one bad file holds up nothing (invariant 12).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::digest::Md5;
use crate::path::RelPath;

/// The first wait; each further failure doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// The longest wait for a program to close a file, where nothing tells of the close. It costs a look at the file.
const LONGEST_OPEN: Duration = Duration::from_secs(30);

/// The paths that failed, and until when each rests.
#[derive(Debug, Default)]
pub struct Quarantine(BTreeMap<RelPath, Rest>);

#[derive(Debug)]
struct Rest {
    /// By the clock of [`super::World::elapsed`].
    until: Duration,
    failures: u32,
    why: String,
    /// What the local file held; other content is a new try.
    content: Option<Md5>,
    /// A program has the file open; its close is a new try.
    open: bool,
    /// This cycle tries again.
    retried: bool,
}

impl Quarantine {
    /// Notes a failure of `path`; `open`: because a program has it open. `random` spreads the retries.
    pub fn fail(&mut self, path: &RelPath, content: Option<Md5>, why: String, open: bool, now: Duration, random: u64) {
        let failures = self.0.get(path).map_or(0, |r| r.failures) + 1;
        let longest = if open { LONGEST_OPEN } else { LONGEST };
        let wait = FIRST.saturating_mul(1 << failures.min(11).saturating_sub(1)).min(longest);
        // Between half of it and the whole.
        let jitter = u32::try_from(random % 1000).unwrap_or(0);
        let wait = wait / 2 + wait / 2 * jitter / 1000;
        self.0.insert(path.clone(), Rest { until: now + wait, failures, why, content, open, retried: false });
    }

    /// Why the path rests now, if it does.
    pub fn resting(&self, path: &RelPath, content: Option<Md5>, now: Duration) -> Option<&str> {
        let rest = self.0.get(path)?;
        (now < rest.until && rest.content == content).then_some(rest.why.as_str())
    }

    /// Says which paths this cycle leaves alone; all others are tried again, or gone.
    pub fn retry(&mut self, resting: impl Fn(&RelPath) -> bool) {
        for (path, rest) in &mut self.0 {
            rest.retried = !resting(path);
        }
    }

    /// Forgets what was tried again and did not fail.
    pub fn forgive(&mut self) {
        self.0.retain(|_, rest| !rest.retried);
    }

    pub fn clear(&mut self, path: &RelPath) {
        self.0.remove(path);
    }

    /// Lets those try again at once that wait for a program, and that something has happened to.
    pub fn clear_open(&mut self, touched: impl Fn(&RelPath) -> bool) {
        for (path, rest) in &mut self.0 {
            if rest.open && touched(path) {
                rest.until = Duration::ZERO;
            }
        }
    }

    /// Lets every path try again at once.
    pub fn clear_all(&mut self) {
        for rest in self.0.values_mut() {
            rest.until = Duration::ZERO;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first path may be tried again.
    pub fn next_due(&self) -> Option<Duration> {
        self.0.values().map(|r| r.until).min()
    }

    /// Paths that failed and what was wrong, also while a retry is due.
    pub fn iter(&self) -> impl Iterator<Item = (&RelPath, &str)> {
        self.0.iter().map(|(p, r)| (p, r.why.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_longer_each_time_and_forgives_new_content() {
        let mut q = Quarantine::default();
        let p = RelPath::parse("a").unwrap();
        let (old, new) = (Some(Md5::of(b"1")), Some(Md5::of(b"2")));
        let mut last = Duration::ZERO;
        for _ in 0..30 {
            q.fail(&p, old, "why".into(), false, Duration::ZERO, 0);
            let due = q.next_due().unwrap();
            assert!(due >= last && due <= LONGEST);
            last = due;
        }
        assert_eq!(last, LONGEST / 2);
        assert_eq!(q.resting(&p, old, Duration::ZERO), Some("why"));
        assert_eq!(q.resting(&p, new, Duration::ZERO), None);
        assert_eq!(q.resting(&p, old, LONGEST), None);
        q.retry(|_| true);
        q.forgive();
        assert!(!q.is_empty(), "it rests, and is remembered");
        q.retry(|_| false);
        q.fail(&p, old, "again".into(), false, Duration::ZERO, 0);
        q.forgive();
        assert_eq!(q.next_due(), Some(LONGEST / 2), "it failed again, and waits no shorter");
        q.retry(|_| false);
        q.forgive();
        assert!(q.is_empty());
    }
}
