//! The changes of one side, line by line. Changes of items are divided into changes of single items.

use std::collections::HashMap;
use std::ops::Range;

use super::diff::{self, DiffHunk};
use super::note_line::LineIdentity;
use super::units::{self, LineStyle, LineUnit};

/// Lines of the base, and the lines that a side has in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LineChange<'a, 't> {
    pub(super) base: Range<usize>,
    pub(super) removed: &'a [&'t str],
    pub(super) added: &'a [&'t str],
}

impl LineChange<'_, '_> {
    /// True if the change is of items, and ends with the last line of one. `base` is the whole base.
    pub(super) fn ends_with_item(&self, base: &[&str], style: LineStyle) -> bool {
        let is_continued = |at: Option<usize>| {
            style == LineStyle::Note && at.and_then(|at| base.get(at)).is_some_and(|line| units::continues_item(line))
        };
        let inside = |lines: &[&str]| lines.iter().take_while(|line| units::continues_item(line)).count();
        // The change may begin inside of an item.
        let before = self.base.start.checked_sub(1);
        let is_in_item = is_continued(before) || before.is_some_and(|at| units::are_items(&base[at..=at], style));
        let skipped = |lines: &[&str]| if is_in_item { inside(lines) } else { 0 };
        !is_continued(Some(self.base.end))
            && units::are_items(&self.removed[skipped(self.removed)..], style)
            && units::are_items(&self.added[skipped(self.added)..], style)
    }

    /// True if the change replaces, removes or inserts whole items.
    pub(super) fn is_of_items(&self, base: &[&str], style: LineStyle) -> bool {
        let begins_with_item = |lines: &[&str]| lines.first().is_none_or(|line| !units::continues_item(line));
        self.ends_with_item(base, style) && begins_with_item(self.removed) && begins_with_item(self.added)
    }
}

/// A text, with the numbers of its lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct NumberedLines<'a, 't> {
    pub(super) lines: &'a [&'t str],
    pub(super) numbers: &'a [u32],
}

/// The changes from `base` to `side` in the order of the base.
pub(super) fn changes<'a, 't>(
    base: NumberedLines<'a, 't>,
    side: NumberedLines<'a, 't>,
    style: LineStyle,
) -> Vec<LineChange<'a, 't>> {
    let hunks = diff::diff(base.numbers, side.numbers);
    let change = |hunk: DiffHunk| LineChange {
        removed: &base.lines[hunk.base.clone()],
        added: &side.lines[hunk.side.clone()],
        base: hunk.base,
    };
    hunks.into_iter().map(change).flat_map(|change| divide_items(change, base.lines, style)).collect()
}

/// Finds the items that were changed and not replaced, by their identities.
fn divide_items<'a, 't>(change: LineChange<'a, 't>, base: &[&str], style: LineStyle) -> Vec<LineChange<'a, 't>> {
    let is_divisible = style == LineStyle::Note && !change.removed.is_empty() && !change.added.is_empty();
    if !is_divisible || !change.is_of_items(base, style) {
        return vec![change];
    }
    let (old, new) = (units::single_items(change.removed), units::single_items(change.added));
    let mut numbers = IdentityNumbers::default();
    let hunks = diff::diff(&numbers.of(&old), &numbers.of(&new));
    let starts = [starts_of(&old), starts_of(&new)];
    let mut divided = DividedChange { change: &change, old: &old, new: &new, starts, parts: Vec::new() };
    let mut at = (0, 0);
    for hunk in hunks {
        divided.add_pairs(at, hunk.base.start);
        divided.add(hunk.base.clone(), hunk.side.clone());
        at = (hunk.base.end, hunk.side.end);
    }
    divided.add_pairs(at, old.len());
    divided.parts
}

/// Numbers for the identities of items. An item without an identity equals no other.
#[derive(Default)]
struct IdentityNumbers<'t> {
    known: HashMap<LineIdentity<'t>, u32>,
    next: u32,
}

impl<'t> IdentityNumbers<'t> {
    fn of(&mut self, units: &[LineUnit<'_, 't>]) -> Vec<u32> {
        units.iter().map(|unit| self.number(unit.identity())).collect()
    }

    fn number(&mut self, identity: Option<LineIdentity<'t>>) -> u32 {
        if let Some(known) = identity.and_then(|identity| self.known.get(&identity)) {
            return *known;
        }
        self.next += 1;
        if let Some(identity) = identity {
            self.known.insert(identity, self.next);
        }
        self.next
    }
}

struct DividedChange<'c, 'a, 't> {
    change: &'c LineChange<'a, 't>,
    old: &'c [LineUnit<'a, 't>],
    new: &'c [LineUnit<'a, 't>],
    /// Where each old and each new item begins, and the ends.
    starts: [Vec<usize>; 2],
    parts: Vec<LineChange<'a, 't>>,
}

/// The number of the first line of each unit, and of the line behind the last one.
fn starts_of(units: &[LineUnit<'_, '_>]) -> Vec<usize> {
    let ends = units.iter().scan(0, |end, unit| {
        *end += unit.lines.len();
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

impl DividedChange<'_, '_, '_> {
    /// Adds the pairs of equal identities from `at` to the item `end` of the base.
    fn add_pairs(&mut self, at: (usize, usize), end: usize) {
        for n in 0..end - at.0 {
            let (old, new) = (at.0 + n, at.1 + n);
            if self.old[old].lines != self.new[new].lines {
                self.add(old..old + 1, new..new + 1);
            }
        }
    }

    /// Adds the change of some items.
    fn add(&mut self, old: Range<usize>, new: Range<usize>) {
        let [old_starts, new_starts] = &self.starts;
        let (from, to) = (old_starts[old.start], old_starts[old.end]);
        let (new_from, new_to) = (new_starts[new.start], new_starts[new.end]);
        let start = self.change.base.start;
        self.parts.push(LineChange {
            base: start + from..start + to,
            removed: &self.change.removed[from..to],
            added: &self.change.added[new_from..new_to],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::diff::LineNumbers;

    fn parts(base: &str, side: &str) -> Vec<(Range<usize>, String)> {
        let [base, side] = [base, side].map(|text| text.split('\n').collect::<Vec<_>>());
        let mut numbers = LineNumbers::default();
        let [old, new] = [&base, &side].map(|lines| numbers.of(lines));
        let changes = changes(
            NumberedLines { lines: &base, numbers: &old },
            NumberedLines { lines: &side, numbers: &new },
            LineStyle::Note,
        );
        changes.into_iter().map(|change| (change.base, change.added.join("/"))).collect()
    }

    #[test]
    fn ticks_of_neighbours_are_changes_of_their_own() {
        let found = parts("- [ ] a\n- [ ] b\n- [ ] c", "- [x] a\n- [x] b\n- [ ] c");
        assert_eq!(found, [(0..1, "- [x] a".to_owned()), (1..2, "- [x] b".to_owned())]);
    }

    #[test]
    fn reworded_row_is_divided_from_a_new_row() {
        let found = parts("- [a](a.md): one", "- [a](a.md): two\n- [b](b.md): new");
        assert_eq!(found, [(0..1, "- [a](a.md): two".to_owned()), (1..1, "- [b](b.md): new".to_owned())]);
    }

    #[test]
    fn paragraph_lines_stay_one_change() {
        assert_eq!(parts("a\nb", "c\nd"), [(0..2, "c/d".to_owned())]);
    }
}
