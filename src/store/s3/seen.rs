//! An index as it was last seen, and what changed between the states of it that were seen to follow one another: for
//! who holds an earlier one and asks for no more than the difference.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::index::{Document, Row};
use crate::path::RelPath;

/// Changes remembered of one index. A state counts for one at least.
const MOST: usize = 1024;

/// An index as it was found.
#[derive(Debug, Clone)]
pub struct Kept {
    /// `None` where there is no index object yet.
    pub etag: Option<String>,
    pub document: Arc<Document>,
}

impl Kept {
    /// Names the content of the index: the ETag of its object, which all who use the bucket see alike.
    pub fn tag(&self) -> &str {
        self.etag.as_deref().map_or("none", |etag| etag.trim_start_matches("W/").trim_matches('"'))
    }
}

/// What is known of an index without asking for it.
#[derive(Debug, Default)]
pub struct Seen {
    /// How often it was read or written.
    turn: u64,
    kept: Option<Kept>,
    /// Ends with what is kept.
    recent: Recent,
}

impl Seen {
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// What was last read or written.
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// Keeps `now`. It differs from `before` in `changed`. Where something else than the two is kept that may be newer, and
    /// nothing is kept.
    pub fn follow(&mut self, before: &Kept, now: Kept, changed: &[RelPath]) {
        if !self.kept.as_ref().is_some_and(|kept| [before.tag(), now.tag()].contains(&kept.tag())) {
            self.forget();
            return;
        }
        self.recent.follow(before.tag(), now.tag(), changed);
        self.turn += 1;
        self.kept = Some(now);
    }

    /// Keeps `now`, of which nobody knows in what it differs from what was kept.
    pub fn begin(&mut self, now: Kept) {
        self.recent = Recent::from(now.tag());
        self.turn += 1;
        self.kept = Some(now);
    }

    /// Keeps nothing: it is no more what it was.
    pub fn forget(&mut self) {
        *self = Self { turn: self.turn + 1, ..Self::default() };
    }

    /// What is kept, and the paths that changed since the index had `tag`, where that is known.
    pub fn since(&self, tag: &str) -> Option<(&Kept, BTreeSet<&RelPath>)> {
        Some((self.kept.as_ref()?, self.recent.since(tag)?))
    }
}

/// The paths in which `new` differs from `old`, those that only one of them has included.
pub fn differing(old: &Document, new: &Document) -> Vec<RelPath> {
    let changed = new.rows.iter().filter(|(path, row)| old.rows.get(*path) != Some(row)).map(|(path, _)| path);
    let gone = old.rows.keys().filter(|path| !new.rows.contains_key(*path));
    changed.chain(gone).cloned().collect()
}

/// The rows of `paths`; `None` where that is not less than the whole index, or where one has left it, which a row cannot
/// tell.
pub fn rows_of(document: &Document, paths: &BTreeSet<&RelPath>) -> Option<Vec<(RelPath, Row)>> {
    if paths.len() >= document.rows.len() {
        return None;
    }
    paths.iter().map(|path| Some(((*path).clone(), *document.rows.get(*path)?))).collect()
}

/// States of one index, each with what changed in it.
#[derive(Debug, Default)]
struct Recent {
    /// The newest last, each with the paths in which it differs from the one before.
    states: VecDeque<(String, Vec<RelPath>)>,
    /// How much they count for together.
    weight: usize,
}

impl Recent {
    fn from(tag: &str) -> Self {
        Self { states: [(tag.to_owned(), Vec::new())].into(), weight: 1 }
    }

    fn follow(&mut self, before: &str, now: &str, changed: &[RelPath]) {
        let last = self.states.back().map(|(tag, _)| tag.as_str());
        // Somebody else may read what was written before its writer hears that it landed.
        if last == Some(now) {
            return;
        }
        if last != Some(before) || changed.len() >= MOST {
            *self = Self::from(now);
            return;
        }
        self.states.push_back((now.to_owned(), changed.to_vec()));
        self.weight += weight(changed);
        while self.weight > MOST
            && let Some((_, oldest)) = self.states.pop_front()
        {
            self.weight -= weight(&oldest);
        }
    }

    /// The paths that changed after the index was last at `tag`.
    fn since(&self, tag: &str) -> Option<BTreeSet<&RelPath>> {
        let at = self.states.iter().rposition(|(of, _)| of == tag)?;
        Some(self.states.iter().skip(at + 1).flat_map(|(_, changed)| changed).collect())
    }
}

fn weight(changed: &[RelPath]) -> usize {
    changed.len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Md5;

    fn paths(names: &str) -> Vec<RelPath> {
        names.split_whitespace().map(|name| RelPath::parse(name).unwrap()).collect()
    }

    fn since(recent: &Recent, tag: &str) -> Option<String> {
        let paths = recent.since(tag)?;
        Some(paths.iter().map(|path| path.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_changed_is_known_for_states_that_followed_one_another() {
        let mut recent = Recent::default();
        assert_eq!(since(&recent, "1"), None);
        recent.follow("1", "2", &paths("a"));
        assert_eq!(since(&recent, "1"), None, "nobody saw how it came to its first state");
        recent.follow("2", "3", &paths("b a"));
        recent.follow("3", "4", &paths("c a"));
        assert_eq!(since(&recent, "2").unwrap(), "a b c");
        assert_eq!(since(&recent, "3").unwrap(), "a c");
        assert_eq!(since(&recent, "4").unwrap(), "");
        recent.follow("3", "4", &paths("c a"));
        assert_eq!(since(&recent, "2").unwrap(), "a b c", "who wrote it hears of it later than who read it");
        // What came between was not seen.
        recent.follow("5", "6", &paths("d"));
        assert_eq!((since(&recent, "4"), since(&recent, "6").unwrap()), (None, String::new()));
    }

    #[test]
    fn who_hears_late_that_a_write_landed_does_not_set_back_what_is_kept() {
        let kept = |tag: &str| Kept { etag: Some(tag.to_owned()), document: Arc::default() };
        let tag = |seen: &Seen| seen.kept().map(|kept| kept.tag().to_owned());
        let mut seen = Seen::default();
        seen.begin(kept("1"));
        seen.follow(&kept("1"), kept("2"), &paths("a"));
        seen.follow(&kept("1"), kept("2"), &paths("a"));
        assert_eq!((tag(&seen), seen.since("1").unwrap().1.len()), (Some("2".to_owned()), 1));
        seen.follow(&kept("2"), kept("3"), &paths("b"));
        let turn = seen.turn();
        seen.follow(&kept("1"), kept("2"), &paths("a"));
        assert_eq!(tag(&seen), None, "which is newer nobody knows");
        assert!(seen.turn() > turn && seen.since("2").is_none());
    }

    #[test]
    fn an_index_that_is_what_it_was_before_changed_since_the_last_time() {
        let mut recent = Recent::from("1");
        recent.follow("1", "2", &paths("a"));
        recent.follow("2", "1", &paths("a"));
        recent.follow("1", "3", &paths("b"));
        assert_eq!(since(&recent, "1").unwrap(), "b");
        assert_eq!(since(&recent, "2").unwrap(), "a b");
    }

    #[test]
    fn no_more_is_remembered_than_has_its_place() {
        let mut recent = Recent::from("0");
        let tag = |n: usize| n.to_string();
        for n in 0..3 * MOST {
            // Half of them change nothing that is served.
            let changed = if n % 2 == 0 { paths("a b c") } else { Vec::new() };
            recent.follow(&tag(n), &tag(n + 1), &changed);
            assert!(recent.weight <= MOST);
            assert_eq!(recent.weight, recent.states.iter().map(|(_, changed)| weight(changed)).sum::<usize>());
        }
        assert_eq!(since(&recent, &tag(3 * MOST - 2)).unwrap(), "a b c");
        assert_eq!(since(&recent, &tag(2 * MOST)), None);
        let many: Vec<RelPath> = (0..MOST).map(|n| RelPath::parse(&tag(n)).unwrap()).collect();
        recent.follow(&tag(3 * MOST), "x", &many);
        assert_eq!((recent.states.len(), recent.weight), (1, 1));
    }

    #[test]
    fn rows_tell_of_paths_that_are_there_and_only_where_that_is_less() {
        let mut document = Document::default();
        for path in paths("a b c") {
            let row = Row { md5: Md5::of(b"x"), size: 1, is_deleted: false, version: 1 };
            document.rows.insert(path, row);
        }
        let rows = |names: &str| {
            let paths = paths(names);
            rows_of(&document, &paths.iter().collect()).map(|rows| rows.len())
        };
        assert_eq!((rows(""), rows("a c"), rows("a b c"), rows("a d")), (Some(0), Some(2), None, None));
    }
}
