//! [`MissedFiles`]: tracked files that a scan did not find, until a second scan proves their deletion.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::path::{RelPath, subtree_range};

/// The longest time that a deletion waits for others that are still coming in.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Tracked files that a scan missed, each with the time of the first such scan.
#[derive(Debug, Default)]
pub(in crate::agent) struct MissedFiles(BTreeMap<RelPath, Duration>);

impl MissedFiles {
    pub(crate) fn contains(&self, path: &RelPath) -> bool {
        self.0.contains_key(path)
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.0.keys()
    }

    /// The paths inside the folder `path`.
    pub(crate) fn below(&self, path: &RelPath) -> impl Iterator<Item = &RelPath> {
        subtree_range(&self.0, path.as_str()).map(|(path, _)| path)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The files that the scan of `now` missed. Those missed before keep their time.
    pub(crate) fn renewed<'a>(&self, missed: impl Iterator<Item = &'a RelPath>, now: Duration) -> Self {
        Self(missed.map(|path| (path.clone(), self.0.get(path).copied().unwrap_or(now))).collect())
    }

    /// True if a scan that begins at `now` can prove a deletion. While files keep vanishing, deletions wait, so that
    /// the gate judges them together.
    pub(crate) fn may_confirm(&self, now: Duration, confirm: Duration) -> bool {
        let oldest = self.0.values().min().copied().unwrap_or_default();
        now >= self.newest() + confirm || now >= oldest + MAX_WAIT
    }

    /// Tells which deletions the scan that ended at `scanned_at` proves.
    pub(crate) fn proven(&self, scanned_at: Duration, confirm: Duration) -> impl Fn(&RelPath) -> bool {
        let newest = self.newest();
        move |path| {
            self.0.get(path).is_some_and(|first| {
                scanned_at >= *first + confirm && (scanned_at >= newest + confirm || scanned_at >= *first + MAX_WAIT)
            })
        }
    }

    fn newest(&self) -> Duration {
        self.0.values().max().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIRM: Duration = Duration::from_secs(1);

    fn path(name: &str) -> RelPath {
        RelPath::parse(name).unwrap()
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn deletion_is_proven_by_a_second_scan() {
        let a = path("a");
        let missed = MissedFiles::default().renewed([&a].into_iter(), secs(10));
        assert!(!missed.may_confirm(secs(10), CONFIRM) && !missed.proven(secs(10), CONFIRM)(&a));
        let missed = missed.renewed([&a].into_iter(), secs(11));
        assert!(missed.may_confirm(secs(11), CONFIRM) && missed.proven(secs(11), CONFIRM)(&a));
        assert!(!missed.proven(secs(11), CONFIRM)(&path("b")), "no scan missed it");
    }

    #[test]
    fn deletion_waits_for_later_ones_for_a_minute() {
        let (a, b) = (path("a"), path("b"));
        let missed = MissedFiles::default().renewed([&a].into_iter(), secs(10));
        let missed = missed.renewed([&a, &b].into_iter(), secs(69));
        assert!(!missed.may_confirm(secs(69), CONFIRM) && !missed.proven(secs(69), CONFIRM)(&a));
        let missed = missed.renewed([&a, &b].into_iter(), secs(70));
        assert!(missed.proven(secs(70), CONFIRM)(&a), "the minute is over");
    }
}
