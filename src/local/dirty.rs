//! [`DirtySet`]: what was touched and when it is worth a look. Pure: the caller says what time it is.
//!
//! What is known to be whole, as after a rename, is due at once. A file that was written and closed is due a moment
//! later: a program that saves in pieces opens it again by then. Each time one does, the moment gets twice as long, up
//! to the quiet time after which a file counts that may still be written to. After a maximum wait a file is due even if
//! it never is quiet. What this names are hints: the scan is the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ScanScope;

/// More touched paths than this are one full scan.
pub const MAX_PATHS: usize = 20_000;

/// What a file that was closed waits at first. Programs that open it again at once do so within a millisecond or two;
/// a person does not notice it.
const SETTLE: Duration = Duration::from_millis(5);

/// What an event says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// Renamed or removed: nothing more is to come.
    Finished,
    /// Written and closed. Unless it is opened again, nothing more is to come.
    Closed,
    /// Made or written to; more may come.
    Writing,
    /// Mode, owner or times. Takes nothing from a write that is finished.
    Metadata,
}

#[derive(Debug, Clone, Copy)]
struct DirtyPath {
    first: Instant,
    last: Instant,
    state: Touch,
    /// The wait after it was closed.
    settle: Duration,
}

/// How long a file is waited for that never is quiet, where `debounce` is the quiet time.
pub fn max_wait(debounce: Duration) -> Duration {
    (debounce * 10).max(Duration::from_secs(1))
}

/// What was touched since it was last taken.
#[derive(Debug)]
pub struct DirtySet {
    debounce: Duration,
    max_wait: Duration,
    max_paths: usize,
    paths: BTreeMap<String, DirtyPath>,
    subtrees: BTreeSet<String>,
    full: bool,
    /// Nothing is due before this. May be too early (a file was written to again since), never too late.
    next: Option<Instant>,
}

impl DirtySet {
    /// `debounce`: the quiet time of a write that may go on, which is waited for no longer than [`max_wait`]; zero:
    /// nothing waits. `max_paths`: as [`MAX_PATHS`].
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

    /// Notes an event. Gives whether [`DirtySet::next_due`] is earlier now, so that who waits for it must wake.
    pub fn touch(&mut self, path: &str, touch: Touch, now: Instant) -> bool {
        if self.full {
            // The scan to come sees it, but for a write that goes on after it.
            if touch != Touch::Writing {
                return false;
            }
        }
        let entry = match self.paths.get_mut(path) {
            Some(entry) => entry,
            None => {
                if self.paths.len() >= self.max_paths {
                    return self.touch_all(now);
                }
                let new = DirtyPath { first: now, last: now, state: Touch::Writing, settle: SETTLE };
                self.paths.entry(path.to_owned()).or_insert(new)
            }
        };
        entry.last = now;
        if touch != Touch::Metadata {
            if (entry.state, touch) == (Touch::Closed, Touch::Writing) {
                entry.settle = (entry.settle * 2).min(self.debounce);
            }
            entry.state = touch;
        }
        let at = due_at(entry, self.debounce, self.max_wait);
        self.advance(at)
    }

    /// Notes that a folder must be scanned with all that is below it (`""`: everything). Due at once. Gives what
    /// [`DirtySet::touch`] gives.
    pub fn touch_subtree(&mut self, dir: &str, now: Instant) -> bool {
        if dir.is_empty() || self.subtrees.len() >= self.max_paths {
            return self.touch_all(now);
        }
        if !self.full && !self.subtrees.contains(dir) {
            self.subtrees.insert(dir.to_owned());
        }
        self.advance(now)
    }

    /// Notes that anything may have changed. Due at once. Gives what [`DirtySet::touch`] gives.
    pub fn touch_all(&mut self, now: Instant) -> bool {
        self.full = true;
        self.subtrees.clear();
        // What is still being written must be looked at once more when it is quiet; a flood of paths need not.
        if self.paths.len() >= self.max_paths {
            self.paths.clear();
        } else {
            self.paths.retain(|_, entry| entry.state == Touch::Writing);
        }
        self.advance(now)
    }

    /// Takes what is due at `now`.
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

    /// When to call [`DirtySet::due`] next; `None` while nothing is touched. What it gives then may be nothing.
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
    let wait = match entry.state {
        Touch::Finished => return entry.first,
        Touch::Closed => entry.settle.min(debounce),
        Touch::Writing | Touch::Metadata => debounce,
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
    fn what_was_renamed_or_removed_is_due_at_once() {
        let (mut set, t) = set();
        assert_eq!(set.next_due(), None);
        assert!(set.touch("a", Touch::Writing, t));
        assert_eq!(set.next_due(), Some(t + DEBOUNCE));
        assert!(set.due(t + ms(5)).is_empty());
        assert!(set.touch("a", Touch::Finished, t + ms(10)));
        assert!(set.next_due().unwrap() <= t + ms(10));
        assert_eq!(paths(&set.due(t + ms(10))), ["a"]);
        assert_eq!(set.next_due(), None);
        assert!(set.due(t + ms(9999)).is_empty());
    }

    #[test]
    fn a_closed_file_is_due_in_a_moment() {
        let (mut set, t) = set();
        set.touch("a", Touch::Writing, t);
        assert!(set.touch("a", Touch::Closed, t + ms(10)));
        assert_eq!(set.next_due(), Some(t + ms(10) + SETTLE));
        assert!(set.due(t + ms(14)).is_empty());
        assert_eq!(paths(&set.due(t + ms(15))), ["a"]);
        // The next save is another one.
        set.touch("a", Touch::Writing, t + ms(16));
        set.touch("a", Touch::Closed, t + ms(17));
        assert_eq!(paths(&set.due(t + ms(22))), ["a"]);
        // It never waits longer than one that is still being written.
        let mut quick = DirtySet::new(ms(2), 100);
        quick.touch("a", Touch::Closed, t);
        assert_eq!(quick.next_due(), Some(t + ms(2)));
    }

    #[test]
    fn a_file_saved_in_pieces_is_due_when_no_more_come() {
        let (mut set, t) = set();
        // `{ echo one; } > a; echo two >> a; …`: each piece is written, and the file closed, within a moment of the last.
        let mut now = t;
        for (piece, settle) in [5, 10, 20, 40, 80, 160, 200, 200].into_iter().enumerate() {
            set.touch("a", Touch::Writing, now);
            set.touch("a", Touch::Closed, now + ms(1));
            now += ms(1 + settle);
            assert!(set.due(now - ms(1)).is_empty(), "piece {piece}");
            now -= ms(1);
        }
        assert_eq!(paths(&set.due(now + ms(1))), ["a"]);
    }

    #[test]
    fn a_file_that_is_appended_to_without_end_is_due_after_the_maximum_wait() {
        let (mut set, t) = set();
        for i in 0..1000 {
            set.touch("log", Touch::Writing, t + ms(i * 2));
            set.touch("log", Touch::Closed, t + ms(i * 2 + 1));
            assert!(set.due(t + ms(i * 2 + 1)).is_empty(), "{i}");
        }
        set.touch("log", Touch::Writing, t + ms(2000));
        assert_eq!(paths(&set.due(t + ms(2000))), ["log"]);
    }

    #[test]
    fn an_unfinished_write_waits_for_quiet() {
        let (mut set, t) = set();
        set.touch("a", Touch::Writing, t);
        // Later writes never need a wake: the time that is waited for only moves away.
        assert!(!set.touch("a", Touch::Writing, t + ms(150)));
        assert!(set.due(t + ms(200)).is_empty());
        assert_eq!(set.next_due(), Some(t + ms(350)));
        assert!(set.due(t + ms(349)).is_empty());
        assert_eq!(paths(&set.due(t + ms(350))), ["a"]);
    }

    #[test]
    fn a_file_that_is_never_quiet_is_due_after_the_maximum_wait() {
        let (mut set, t) = set();
        for i in 0..40 {
            let now = t + ms(i * 50);
            set.touch("log", Touch::Writing, now);
            assert!(set.due(now).is_empty(), "{i}");
        }
        set.touch("log", Touch::Writing, t + ms(2000));
        assert_eq!(paths(&set.due(t + ms(2000))), ["log"]);

        let mut quick = DirtySet::new(ms(10), 100);
        quick.touch("log", Touch::Writing, t);
        for i in 1..200 {
            quick.touch("log", Touch::Writing, t + ms(i * 5));
            assert!(quick.due(t + ms(i * 5)).is_empty(), "the maximum wait is a second at least: {i}");
        }
        quick.touch("log", Touch::Writing, t + ms(1000));
        assert_eq!(paths(&quick.due(t + ms(1000))), ["log"]);
    }

    #[test]
    fn writing_again_after_a_finished_write_waits_again_but_a_chmod_does_not() {
        let (mut set, t) = set();
        set.touch("a", Touch::Finished, t);
        set.touch("b", Touch::Finished, t);
        set.touch("a", Touch::Writing, t + ms(1));
        set.touch("b", Touch::Metadata, t + ms(1));
        assert_eq!(paths(&set.due(t + ms(2))), ["b"]);
        assert_eq!(paths(&set.due(t + ms(201))), ["a"]);
        set.touch("c", Touch::Metadata, t);
        assert!(set.due(t + ms(199)).is_empty());
        assert_eq!(paths(&set.due(t + ms(200))), ["c"]);
    }

    #[test]
    fn no_debounce_means_at_once() {
        let t = Instant::now();
        let mut set = DirtySet::new(Duration::ZERO, 100);
        assert!(set.touch("a", Touch::Writing, t));
        assert_eq!(paths(&set.due(t)), ["a"]);
    }

    #[test]
    fn only_what_is_due_is_taken() {
        let (mut set, t) = set();
        set.touch("slow", Touch::Writing, t);
        set.touch("slower", Touch::Writing, t + ms(100));
        set.touch("quick", Touch::Finished, t + ms(100));
        assert_eq!(paths(&set.due(t + ms(100))), ["quick"]);
        assert_eq!(set.next_due(), Some(t + ms(200)));
        assert_eq!(paths(&set.due(t + ms(200))), ["slow"]);
        assert_eq!(set.next_due(), Some(t + ms(300)));
    }

    #[test]
    fn a_folder_covers_what_is_below_it() {
        let (mut set, t) = set();
        assert!(set.touch_subtree("a", t));
        assert!(!set.touch_subtree("a/b", t));
        set.touch_subtree("a-b", t);
        for path in ["a", "a/x", "a/b/y", "a-b/z", "a.md", "c/a"] {
            set.touch(path, Touch::Finished, t);
        }
        let due = set.due(t);
        assert_eq!(due.subtrees.iter().collect::<Vec<_>>(), ["a", "a-b"]);
        assert_eq!(due.paths.iter().collect::<Vec<_>>(), ["a.md", "c/a"]);
        set.touch_subtree("", t);
        assert_eq!(set.due(t), ScanScope::full());
    }

    #[test]
    fn a_full_scan_covers_all_but_what_is_still_written() {
        let (mut set, t) = set();
        set.touch("done", Touch::Finished, t);
        set.touch_subtree("dir", t);
        set.touch("writing", Touch::Writing, t);
        set.touch_all(t);
        set.touch("done2", Touch::Finished, t);
        set.touch("writing2", Touch::Writing, t);
        assert_eq!(set.due(t), ScanScope::full());
        assert_eq!(paths(&set.due(t + DEBOUNCE)), ["writing", "writing2"]);
    }

    #[test]
    fn a_flood_is_one_full_scan() {
        let (mut set, t) = set();
        for i in 0..100 {
            set.touch(&i.to_string(), Touch::Writing, t);
        }
        assert!(set.due(t).is_empty());
        assert!(set.touch("one more", Touch::Writing, t), "due earlier than the quiet time");
        assert_eq!(set.due(t), ScanScope::full());
        assert_eq!(set.next_due(), None);
        for i in 0..=100 {
            set.touch_subtree(&i.to_string(), t);
        }
        assert_eq!(set.due(t), ScanScope::full());
    }
}
