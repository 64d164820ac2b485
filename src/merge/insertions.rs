//! Two insertions at one place: both are kept, with their common parts once.

use std::collections::{HashMap, HashSet};

use super::diff;
use super::fences;
use super::note_line::{self, LineIdentity, is_blank};
use super::outcome::{ConflictReason, Merged};
use super::stamp::WrittenTime;
use super::text_lines;
use super::units::{self, LineStyle, LineUnit};

/// Combines the lines that both sides inserted at one place.
pub(super) fn combine<'t>(one: &[&'t str], other: &[&'t str], style: LineStyle) -> Merged<Vec<&'t str>> {
    // The alignment of equal units may depend on the order of the two.
    let (one, other) = (one.min(other), one.max(other));
    if style != LineStyle::Log {
        if fences::has_open_block(one) || fences::has_open_block(other) {
            return Err(ConflictReason::SameBlock);
        }
        if contains_in_order(other, one) {
            return Ok(other.to_vec());
        }
        if contains_in_order(one, other) {
            return Ok(one.to_vec());
        }
    }
    let [a, b] = [one, other].map(BlankEdges::of);
    if a != b {
        return combine_unlike((one, a), (other, b));
    }
    if a.head == 0 && a.tail > 0 && !units::are_items(a.inner(one), style) {
        return combine_before_blanks(one, other, style);
    }
    let mut out = Vec::with_capacity(one.len() + other.len());
    let has_items = units::are_items(a.inner(one), style) && units::are_items(b.inner(other), style);
    let head = if has_items { a.head } else { 0 };
    out.extend_from_slice(&one[..head]);
    out.extend(combine_units(&one[head..one.len() - a.tail], &other[head..other.len() - b.tail], style)?);
    out.extend_from_slice(&one[one.len() - a.tail..]);
    Ok(out)
}

/// True if `long` has all lines of `short` in their order.
pub(super) fn contains_in_order(long: &[&str], short: &[&str]) -> bool {
    let mut lines = long.iter();
    short.iter().all(|line| lines.any(|l| l == line))
}

/// The numbers of blank lines at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct BlankEdges {
    head: usize,
    tail: usize,
}

impl BlankEdges {
    fn of(lines: &[&str]) -> Self {
        let head = lines.iter().take_while(|line| is_blank(line)).count();
        let tail = lines[head..].iter().rev().take_while(|line| is_blank(line)).count();
        Self { head, tail }
    }

    fn inner<'a, 't>(self, lines: &'a [&'t str]) -> &'a [&'t str] {
        &lines[self.head..lines.len() - self.tail]
    }
}

/// The insertion without a blank line at its head continues the text before it, so it comes first.
fn combine_unlike<'t>(one: (&[&'t str], BlankEdges), other: (&[&'t str], BlankEdges)) -> Merged<Vec<&'t str>> {
    let (first, second) = if one.1 < other.1 { (one.0, other.0) } else { (other.0, one.0) };
    if let Some(line) = text_lines::common_line(first, second) {
        return Err(ConflictReason::AddedTwice(line.to_owned()));
    }
    Ok([first, second].concat())
}

/// Blocks that each end with blank lines, such as two sections before a third one.
fn combine_before_blanks<'t>(one: &[&'t str], other: &[&'t str], style: LineStyle) -> Merged<Vec<&'t str>> {
    let blanks = BlankEdges::of(one).tail;
    let [one, other] = [one, other].map(|lines| {
        let (text, tail) = lines.split_at(lines.len() - blanks);
        [tail, text].concat()
    });
    let mut out = combine_units(&one, &other, style)?;
    out.rotate_left(blanks);
    Ok(out)
}

/// Common units once, in their order. Between them the units of both sides.
fn combine_units<'a, 't>(one: &'a [&'t str], other: &'a [&'t str], style: LineStyle) -> Merged<Vec<&'t str>> {
    let (a, b) = (units::inserted_units(one, style), units::inserted_units(other, style));
    let mut known: HashMap<&'a [&'t str], u32> = HashMap::new();
    let mut number = |unit: &LineUnit<'a, 't>| {
        let next = known.len() as u32;
        *known.entry(unit.body).or_insert(next)
    };
    let a_numbers: Vec<u32> = a.iter().map(&mut number).collect();
    let b_numbers: Vec<u32> = b.iter().map(&mut number).collect();
    let hunks = diff::diff(&a_numbers, &b_numbers);
    let only_a: Vec<_> = hunks.iter().flat_map(|hunk| hunk.base.clone()).collect();
    let only_b: Vec<_> = hunks.iter().flat_map(|hunk| hunk.side.clone()).collect();
    if style != LineStyle::Log {
        let numbers_a: HashSet<u32> = only_a.iter().map(|at| a_numbers[*at]).collect();
        let again = only_b.iter().any(|at| numbers_a.contains(&b_numbers[*at]));
        if again {
            return Err(ConflictReason::Reordered);
        }
        refuse_equal_identities(only_a.iter().map(|at| &a[*at]), only_b.iter().map(|at| &b[*at]))?;
    }
    let mut out = Vec::with_capacity(one.len() + other.len());
    let (mut at, mut at_b) = (0, 0);
    for hunk in hunks {
        add_common(&a[at..hunk.base.start], &b[at_b..hunk.side.start], &mut out);
        add_both(&a[hunk.base.clone()], &b[hunk.side.clone()], &mut out);
        (at, at_b) = (hunk.base.end, hunk.side.end);
    }
    add_common(&a[at..], &b[at_b..], &mut out);
    Ok(out)
}

/// Two new rows for one target, or two new sections of one name, are no two additions.
fn refuse_equal_identities<'u, 'a: 'u, 't: 'a>(
    a: impl Iterator<Item = &'u LineUnit<'a, 't>>,
    b: impl Iterator<Item = &'u LineUnit<'a, 't>>,
) -> Merged<()> {
    let identities: HashSet<LineIdentity<'t>> = a.filter_map(LineUnit::identity).collect();
    let twice = b.filter_map(LineUnit::identity).filter(|identity| identities.contains(identity)).min();
    match twice {
        Some(identity) => Err(ConflictReason::AddedTwice(identity.text().to_owned())),
        None => Ok(()),
    }
}

/// Units that both sides have. The separating blank lines may differ.
fn add_common<'t>(a: &[LineUnit<'_, 't>], b: &[LineUnit<'_, 't>], out: &mut Vec<&'t str>) {
    for (a, b) in a.iter().zip(b) {
        out.extend_from_slice(a.lines.max(b.lines));
    }
}

/// Units that only one side has, of both sides.
fn add_both<'t>(a: &[LineUnit<'_, 't>], b: &[LineUnit<'_, 't>], out: &mut Vec<&'t str>) {
    if let Some(merged) = merge_by_time(a, b) {
        merged.iter().for_each(|unit| out.extend_from_slice(unit.lines));
        return;
    }
    let indent = |units: &[LineUnit<'_, '_>]| {
        units.first().and_then(|unit| unit.body.first()).map_or(0, |line| note_line::indent_of(line))
    };
    // The more indented one belongs to the item above.
    let order = indent(b).cmp(&indent(a)).then_with(|| units::compare_units(a, b));
    let (first, second) = if order.is_le() { (a, b) } else { (b, a) };
    first.iter().chain(second).for_each(|unit| out.extend_from_slice(unit.lines));
}

/// Both runs in the order of their times, if all units have times of one form and each run is in order.
fn merge_by_time<'u, 'a, 't>(
    a: &'u [LineUnit<'a, 't>],
    b: &'u [LineUnit<'a, 't>],
) -> Option<Vec<&'u LineUnit<'a, 't>>> {
    let timed = |units: &'u [LineUnit<'a, 't>]| -> Option<Vec<(WrittenTime, &'u LineUnit<'a, 't>)>> {
        let timed: Vec<_> = units.iter().map(|unit| Some((unit.time()?, unit))).collect::<Option<_>>()?;
        let is_ordered = timed.windows(2).all(|pair| pair[0].0.is_later(pair[1].0) == Some(false));
        (is_ordered && !timed.is_empty()).then_some(timed)
    };
    let (a, b) = (timed(a)?, timed(b)?);
    a[0].0.is_later(b[0].0)?;
    let mut all = [a, b].concat();
    // Stable: the units of one side stay in order.
    all.sort_by(|(x, one), (y, other)| x.cmp(y).then_with(|| one.body.cmp(other.body)));
    Some(all.into_iter().map(|(_, unit)| unit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both orders give the same text, with `/` for line ends.
    fn combined(one: &str, other: &str, style: LineStyle) -> Merged<String> {
        let [a, b] = [one, other].map(|text| text.split('/').collect::<Vec<_>>());
        let result = combine(&a, &b, style);
        assert_eq!(result, combine(&b, &a, style), "{one} {other}");
        result.map(|lines| lines.join("/"))
    }

    fn note(one: &str, other: &str) -> Merged<String> {
        combined(one, other, LineStyle::Note)
    }

    #[test]
    fn common_items_are_there_once() {
        assert_eq!(note("- idea/- call", "- idea/- dentist").unwrap(), "- idea/- call/- dentist");
        assert_eq!(note("- a/- b", "- b").unwrap(), "- a/- b");
        assert_eq!(note("/- a", "/- b").unwrap(), "/- a/- b");
    }

    #[test]
    fn sections_keep_the_blank_lines_between_them() {
        assert_eq!(note("/## A/a", "/## B/b").unwrap(), "/## A/a//## B/b");
        assert_eq!(note("## B/b/", "## A/a/").unwrap(), "## A/a//## B/b/");
        assert_eq!(note("/One.", "/Two.").unwrap(), "/One.//Two.");
    }

    #[test]
    fn insertion_that_continues_a_block_comes_first() {
        assert_eq!(note("/## A/a", "- z").unwrap(), "- z//## A/a");
        assert_eq!(note("  - below", "- after").unwrap(), "  - below/- after");
    }

    #[test]
    fn equal_identities_are_a_conflict() {
        assert!(note("- [b](b.md): red", "- [b](b.md): blue").is_err());
        assert!(note("/## P/one", "/## P/two").is_err());
        assert!(note("- [x] tea", "- [ ] tea").is_err());
        assert!(note("| milk | 1 |", "| milk | 2 |").is_err());
    }

    #[test]
    fn open_fence_is_a_conflict() {
        assert_eq!(note("```/a", "```/b"), Err(ConflictReason::SameBlock));
    }

    #[test]
    fn log_entries_go_by_time() {
        let log = |one, other| combined(one, other, LineStyle::Log).unwrap();
        assert_eq!(log("10:05 a/  at x/10:20 c", "10:10 b"), "10:05 a/  at x/10:10 b/10:20 c");
        assert_eq!(log("10:20 c/10:05 a", "10:10 b"), "10:10 b/10:20 c/10:05 a", "an unordered run stays");
        assert_eq!(log("10:01 x/10:02 a", "10:01 x/10:03 b"), "10:01 x/10:02 a/10:03 b");
    }
}
