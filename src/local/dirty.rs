//! [`DirtySet`]: the paths that events have named, and when each is due for a scan. Pure: the caller passes the time.
//!
//! A rename or removal is due at once. A file that was written and closed is due a moment later, because a program that
//! saves in pieces opens it again within that moment. Each reopening doubles the moment, up to the debounce time of a file
//! that may still be open. After a maximum wait, a file is due even if writes never stop. All of this is only hints: the
//! scan decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ScanScope;

/// The first wait after a file was closed. A program that reopens it does so within a millisecond or two, and a person
/// does not notice the delay.
const SETTLE: Duration = Duration::from_millis(5);

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TouchKind {
    /// Renamed or removed. No more writes are expected.
    Finished,
    /// Written and closed. No more writes are expected, unless the file is opened again.
    Closed,
    /// Created or written. More writes may follow.
    Writing,
    /// The mode, owner or times changed. The writes before it stay finished.
    Metadata,
}

#[derive(Debug, Clone, Copy)]
struct DirtyPath {
    first: Instant,
    last: Instant,
    kind: TouchKind,
    /// The wait after the file was closed.
    settle: Duration,
}

/// The maximum wait for a file that writes never leave alone.
pub(crate) fn max_wait(debounce: Duration) -> Duration {
    (debounce * 10).max(Duration::from_secs(1))
}

/// The paths touched since they were last taken.
#[derive(Debug)]
pub struct DirtySet {
    debounce: Duration,
    max_wait: Duration,
    max_paths: usize,
    paths: BTreeMap<String, DirtyPath>,
    subtrees: BTreeSet<String>,
    full: bool,
    /// A lower bound for the next due time. A later write may have moved the real time.
    next: Option<Instant>,
}

impl DirtySet {
    /// `debounce`: quiet time of a file that may still be open; zero makes every path due at once. `max_paths`: see
    /// [`MAX_SCOPE_PATHS`](super::scope::MAX_SCOPE_PATHS).
    pub fn new(debounce: Duration, max_paths: usize) -> Self {
        Self {
            debounce,
            max_wait: max_wait(debounce),
            max_paths,
            paths: BTreeMap::new(),
            subtrees: BTreeSet::new(),
            full: false,
            next: None,
        }
    }

    /// Records an event. Returns true if [`DirtySet::next_due`] is earlier now, so that a waiting caller must wake.
    pub fn touch(&mut self, path: &str, kind: TouchKind, now: Instant) -> bool {
        if self.full {
            // The full scan covers every event but a write that goes on after it.
            if kind != TouchKind::Writing {
                return false;
            }
        }
        let entry = match self.paths.get_mut(path) {
            Some(entry) => entry,
            None => {
                if self.paths.len() >= self.max_paths {
                    return self.touch_all(now);
                }
                let new = DirtyPath { first: now, last: now, kind: TouchKind::Writing, settle: SETTLE };
                self.paths.entry(path.to_owned()).or_insert(new)
            }
        };
        entry.last = now;
        if kind != TouchKind::Metadata {
            if (entry.kind, kind) == (TouchKind::Closed, TouchKind::Writing) {
                entry.settle = (entry.settle * 2).min(self.debounce);
            }
            entry.kind = kind;
        }
        let at = due_at(entry, self.debounce, self.max_wait);
        self.advance(at)
    }

    /// Records that a folder must be scanned with everything below it (`""`: the root). Due at once. Returns the same as
    /// [`DirtySet::touch`].
    pub(crate) fn touch_subtree(&mut self, dir: &str, now: Instant) -> bool {
        if dir.is_empty() || self.subtrees.len() >= self.max_paths {
            return self.touch_all(now);
        }
        if !self.full && !self.subtrees.contains(dir) {
            self.subtrees.insert(dir.to_owned());
        }
        self.advance(now)
    }

    /// Records that any path may have changed. Due at once. Returns the same as [`DirtySet::touch`].
    pub(crate) fn touch_all(&mut self, now: Instant) -> bool {
        self.full = true;
        self.subtrees.clear();
        // A file that is still being written needs another scan when it is quiet. A flood of paths is not worth that.
        if self.paths.len() >= self.max_paths {
            self.paths.clear();
        } else {
            self.paths.retain(|_, entry| entry.kind == TouchKind::Writing);
        }
        self.advance(now)
    }

    /// Takes the paths that are due at `now`.
    pub fn due(&mut self, now: Instant) -> ScanScope {
        if self.next.is_none_or(|next| next > now) {
            return ScanScope::default();
        }
        let mut due = ScanScope {
            paths: BTreeSet::new(),
            subtrees: std::mem::take(&mut self.subtrees),
            full: std::mem::take(&mut self.full),
        };
        self.next = None;
        for (path, entry) in std::mem::take(&mut self.paths) {
            let at = due_at(&entry, self.debounce, self.max_wait);
            if at <= now {
                due.paths.insert(path);
            } else {
                self.next = Some(self.next.map_or(at, |next| next.min(at)));
                self.paths.insert(path, entry);
            }
        }
        due.tidy();
        due
    }

    /// When to call [`DirtySet::due`] next. It may return nothing then. `None` while no path is dirty.
    pub fn next_due(&self) -> Option<Instant> {
        self.next
    }

    fn advance(&mut self, at: Instant) -> bool {
        let earlier = self.next.is_none_or(|next| at < next);
        if earlier {
            self.next = Some(at);
        }
        earlier
    }
}

fn due_at(entry: &DirtyPath, debounce: Duration, max_wait: Duration) -> Instant {
    let wait = match entry.kind {
        TouchKind::Finished => return entry.first,
        TouchKind::Closed => entry.settle.min(debounce),
        TouchKind::Writing | TouchKind::Metadata => debounce,
    };
    if debounce.is_zero() { entry.first } else { (entry.last + wait).min(entry.first + max_wait) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBOUNCE: Duration = Duration::from_millis(200);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn set() -> (DirtySet, Instant) {
        (DirtySet::new(DEBOUNCE, 100), Instant::now())
    }

    fn paths(due: &ScanScope) -> Vec<&str> {
        assert!(!due.full && due.subtrees.is_empty(), "{due:?}");
        due.paths.iter().map(String::as_str).collect()
    }

    #[test]
    fn renamed_or_removed_path_is_due_at_once() {
        let (mut set, t) = set();
        assert_eq!(set.next_due(), None);
        assert!(set.touch("a", TouchKind::Writing, t));
        assert_eq!(set.next_due(), Some(t + DEBOUNCE));
        assert!(set.due(t + ms(5)).is_empty());
        assert!(set.touch("a", TouchKind::Finished, t + ms(10)));
        assert!(set.next_due().unwrap() <= t + ms(10));
        assert_eq!(paths(&set.due(t + ms(10))), ["a"]);
        assert_eq!(set.next_due(), None);
        assert!(set.due(t + ms(9999)).is_empty());
    }

    #[test]
    fn closed_file_is_due_in_a_moment() {
        let (mut set, t) = set();
        set.touch("a", TouchKind::Writing, t);
        assert!(set.touch("a", TouchKind::Closed, t + ms(10)));
        assert_eq!(set.next_due(), Some(t + ms(10) + SETTLE));
        assert!(set.due(t + ms(14)).is_empty());
        assert_eq!(paths(&set.due(t + ms(15))), ["a"]);
        // The next save starts afresh.
        set.touch("a", TouchKind::Writing, t + ms(16));
        set.touch("a", TouchKind::Closed, t + ms(17));
        assert_eq!(paths(&set.due(t + ms(22))), ["a"]);
        // It never waits longer than a file that is still open.
        let mut quick = DirtySet::new(ms(2), 100);
        quick.touch("a", TouchKind::Closed, t);
        assert_eq!(quick.next_due(), Some(t + ms(2)));
    }

    #[test]
    fn file_saved_in_pieces_is_due_after_the_last_piece() {
        let (mut set, t) = set();
        // `{ echo one; } > a; echo two >> a; …` writes each piece within a moment of the last.
        let mut now = t;
        for (piece, settle) in [5, 10, 20, 40, 80, 160, 200, 200].into_iter().enumerate() {
            set.touch("a", TouchKind::Writing, now);
            set.touch("a", TouchKind::Closed, now + ms(1));
            now += ms(1 + settle);
            assert!(set.due(now - ms(1)).is_empty(), "piece {piece}");
            now -= ms(1);
        }
        assert_eq!(paths(&set.due(now + ms(1))), ["a"]);
    }

    #[test]
    fn file_appended_to_without_end_is_due_after_the_maximum() {
        let (mut set, t) = set();
        for i in 0..1000 {
            set.touch("log", TouchKind::Writing, t + ms(i * 2));
            set.touch("log", TouchKind::Closed, t + ms(i * 2 + 1));
            assert!(set.due(t + ms(i * 2 + 1)).is_empty(), "{i}");
        }
        set.touch("log", TouchKind::Writing, t + ms(2000));
        assert_eq!(paths(&set.due(t + ms(2000))), ["log"]);
    }

    #[test]
    fn unfinished_write_waits_for_quiet() {
        let (mut set, t) = set();
        set.touch("a", TouchKind::Writing, t);
        // A later write needs no wake: it only postpones the due time.
        assert!(!set.touch("a", TouchKind::Writing, t + ms(150)));
        assert!(set.due(t + ms(200)).is_empty());
        assert_eq!(set.next_due(), Some(t + ms(350)));
        assert!(set.due(t + ms(349)).is_empty());
        assert_eq!(paths(&set.due(t + ms(350))), ["a"]);
    }

    #[test]
    fn file_that_is_never_quiet_is_due_after_the_maximum_wait() {
        let (mut set, t) = set();
        for i in 0..40 {
            let now = t + ms(i * 50);
            set.touch("log", TouchKind::Writing, now);
            assert!(set.due(now).is_empty(), "{i}");
        }
        set.touch("log", TouchKind::Writing, t + ms(2000));
        assert_eq!(paths(&set.due(t + ms(2000))), ["log"]);

        let mut quick = DirtySet::new(ms(10), 100);
        quick.touch("log", TouchKind::Writing, t);
        for i in 1..200 {
            quick.touch("log", TouchKind::Writing, t + ms(i * 5));
            assert!(quick.due(t + ms(i * 5)).is_empty(), "the maximum wait is a second at least: {i}");
        }
        quick.touch("log", TouchKind::Writing, t + ms(1000));
        assert_eq!(paths(&quick.due(t + ms(1000))), ["log"]);
    }

    #[test]
    fn rewrite_waits_again_but_a_chmod_does_not() {
        let (mut set, t) = set();
        set.touch("a", TouchKind::Finished, t);
        set.touch("b", TouchKind::Finished, t);
        set.touch("a", TouchKind::Writing, t + ms(1));
        set.touch("b", TouchKind::Metadata, t + ms(1));
        assert_eq!(paths(&set.due(t + ms(2))), ["b"]);
        assert_eq!(paths(&set.due(t + ms(201))), ["a"]);
        set.touch("c", TouchKind::Metadata, t);
        assert!(set.due(t + ms(199)).is_empty());
        assert_eq!(paths(&set.due(t + ms(200))), ["c"]);
    }

    #[test]
    fn zero_debounce_makes_paths_due_at_once() {
        let t = Instant::now();
        let mut set = DirtySet::new(Duration::ZERO, 100);
        assert!(set.touch("a", TouchKind::Writing, t));
        assert_eq!(paths(&set.due(t)), ["a"]);
    }

    #[test]
    fn paths_not_yet_due_stay_in_the_set() {
        let (mut set, t) = set();
        set.touch("slow", TouchKind::Writing, t);
        set.touch("slower", TouchKind::Writing, t + ms(100));
        set.touch("quick", TouchKind::Finished, t + ms(100));
        assert_eq!(paths(&set.due(t + ms(100))), ["quick"]);
        assert_eq!(set.next_due(), Some(t + ms(200)));
        assert_eq!(paths(&set.due(t + ms(200))), ["slow"]);
        assert_eq!(set.next_due(), Some(t + ms(300)));
    }

    #[test]
    fn subtree_covers_the_paths_below_it() {
        let (mut set, t) = set();
        assert!(set.touch_subtree("a", t));
        assert!(!set.touch_subtree("a/b", t));
        set.touch_subtree("a-b", t);
        for path in ["a", "a/x", "a/b/y", "a-b/z", "a.md", "c/a"] {
            set.touch(path, TouchKind::Finished, t);
        }
        let due = set.due(t);
        assert_eq!(due.subtrees.iter().collect::<Vec<_>>(), ["a", "a-b"]);
        assert_eq!(due.paths.iter().collect::<Vec<_>>(), ["a.md", "c/a"]);
        set.touch_subtree("", t);
        assert_eq!(set.due(t), ScanScope::full());
    }

    #[test]
    fn full_scan_covers_all_but_unfinished_writes() {
        let (mut set, t) = set();
        set.touch("done", TouchKind::Finished, t);
        set.touch_subtree("dir", t);
        set.touch("writing", TouchKind::Writing, t);
        set.touch_all(t);
        set.touch("done2", TouchKind::Finished, t);
        set.touch("writing2", TouchKind::Writing, t);
        assert_eq!(set.due(t), ScanScope::full());
        assert_eq!(paths(&set.due(t + DEBOUNCE)), ["writing", "writing2"]);
    }

    #[test]
    fn flood_of_paths_becomes_one_full_scan() {
        let (mut set, t) = set();
        for i in 0..100 {
            set.touch(&i.to_string(), TouchKind::Writing, t);
        }
        assert!(set.due(t).is_empty());
        assert!(set.touch("one more", TouchKind::Writing, t), "a full scan is due before the debounce time");
        assert_eq!(set.due(t), ScanScope::full());
        assert_eq!(set.next_due(), None);
        for i in 0..=100 {
            set.touch_subtree(&i.to_string(), t);
        }
        assert_eq!(set.due(t), ScanScope::full());
    }
}
