//! [`RecentMerges`]: ends a merge that begins again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::path::RelPath;

/// Merges of one path in [`WINDOW`] whose results did not reach the proxy. After that many both versions are kept.
const MAX_MERGES: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);

/// The merges whose results have not reached the proxy, with their times ([`World::elapsed`](crate::agent::World::elapsed)).
#[derive(Debug, Default)]
pub(in crate::agent) struct RecentMerges(BTreeMap<RelPath, Vec<Duration>>);

impl RecentMerges {
    /// True if the path was merged too often to try again.
    pub(super) fn is_exhausted(&self, path: &RelPath, now: Duration) -> bool {
        self.0.get(path).is_some_and(|times| times.iter().filter(|at| is_recent(**at, now)).count() >= MAX_MERGES)
    }

    /// Notes a merge, and forgets those that are long ago.
    pub(super) fn note(&mut self, path: &RelPath, now: Duration) {
        self.0.entry(path.clone()).or_default().push(now);
        self.0.retain(|_, times| {
            times.retain(|at| is_recent(*at, now));
            !times.is_empty()
        });
    }

    /// Forgets a path on which both sides agree.
    pub(super) fn settle(&mut self, path: &RelPath) {
        self.0.remove(path);
    }
}

fn is_recent(at: Duration, now: Duration) -> bool {
    now.saturating_sub(at) < WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_exhausted_after_three_merges_in_a_minute() {
        let (a, b) = (RelPath::parse("a").unwrap(), RelPath::parse("b").unwrap());
        let at = Duration::from_secs;
        let mut merges = RecentMerges::default();
        [0, 20, 40].into_iter().for_each(|s| merges.note(&a, at(s)));
        assert!(merges.is_exhausted(&a, at(59)) && !merges.is_exhausted(&b, at(59)));
        assert!(!merges.is_exhausted(&a, at(60)), "the first one is a minute ago");
        merges.note(&a, at(61));
        assert!(merges.is_exhausted(&a, at(61)));
        merges.settle(&a);
        assert!(!merges.is_exhausted(&a, at(61)));
    }
}
