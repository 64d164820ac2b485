//! Checks of a merged note at the places where the two versions meet: numbers of lists, shapes of tables, and names
//! that must be there once.

use std::collections::{HashMap, HashSet};

use super::data::hash_of;
use super::fences;
use super::note_line::{self, LineKind, ListItem};
use super::outcome::{ConflictReason, Merged};
use super::threeway::ThreeWay;

/// Refuses a result that a careful reader would not have written.
pub(super) fn check(sides: &ThreeWay<Vec<&str>>, result: &[&str]) -> Merged<()> {
    if fences::has_open_block(result) && !sides.iter().any(|lines| fences::has_open_block(lines)) {
        return Err(ConflictReason::SameBlock);
    }
    check_neighbours(sides, result)?;
    check_numbers(sides, result)?;
    check_names(sides, result)
}

/// Neighbours that were none in either version must fit.
fn check_neighbours(sides: &ThreeWay<Vec<&str>>, result: &[&str]) -> Merged<()> {
    let kinds: Vec<LineKind<'_>> = result.iter().map(|line| note_line::kind_of(line)).collect();
    let fault = |at: usize| match (kinds[at], kinds[at + 1]) {
        (LineKind::TableRow, LineKind::TableRow)
            if note_line::table_cells(result[at]) != note_line::table_cells(result[at + 1]) =>
        {
            Some(ConflictReason::TableShape)
        }
        // Markdown would take the text for a part of the item or the table.
        (LineKind::Item(_) | LineKind::TableRow, LineKind::Other) if note_line::indent_of(result[at + 1]) == 0 => {
            Some(ConflictReason::Misplaced)
        }
        _ => None,
    };
    let mut faults: Vec<((&str, &str), ConflictReason)> = Vec::new();
    for (at, pair) in result.windows(2).enumerate() {
        faults.extend(fault(at).map(|reason| ((pair[0], pair[1]), reason)));
    }
    if faults.is_empty() {
        return Ok(());
    }
    let sides = [&sides.local, &sides.remote].into_iter();
    let known: HashSet<(&str, &str)> =
        sides.flat_map(|lines| lines.windows(2).map(|pair| (pair[0], pair[1]))).collect();
    match faults.into_iter().find(|(pair, _)| !known.contains(pair)) {
        Some((_, reason)) => Err(reason),
        None => Ok(()),
    }
}

/// The numbers of a list must count on, unless a version has the same two items one after the other.
fn check_numbers(sides: &ThreeWay<Vec<&str>>, result: &[&str]) -> Merged<()> {
    let mut odd = odd_numbers(result);
    if odd.is_empty() {
        return Ok(());
    }
    let known: HashSet<(&str, &str)> =
        [&sides.local, &sides.remote].into_iter().flat_map(|lines| odd_numbers(lines)).collect();
    odd.retain(|pair| !known.contains(pair));
    if odd.is_empty() { Ok(()) } else { Err(ConflictReason::Numbering) }
}

/// Items of one list that follow each other, whose numbers do not.
fn odd_numbers<'t>(lines: &[&'t str]) -> Vec<(&'t str, &'t str)> {
    let mut odd = Vec::new();
    let mut above: Vec<(ListItem<'_>, &str)> = Vec::new();
    for line in lines {
        match note_line::kind_of(line) {
            LineKind::Item(item) => {
                above.retain(|(upper, _)| upper.indent <= item.indent);
                if let Some((last, text)) = above.pop_if(|(upper, _)| upper.indent == item.indent)
                    && !counts_on(last, item)
                {
                    odd.push((text, *line));
                }
                above.push((item, line));
            }
            LineKind::Blank => {}
            LineKind::Other if note_line::indent_of(line) > 0 => {}
            _ => above.clear(),
        }
    }
    odd
}

/// Markdown numbers a list of equal numbers by itself.
fn counts_on(one: ListItem<'_>, next: ListItem<'_>) -> bool {
    match (one.number, next.number) {
        (Some(one), Some(next)) => next == one + 1 || (next == one && one <= 1),
        _ => true,
    }
}

/// No heading and no index row becomes more frequent than it is in one version.
fn check_names(sides: &ThreeWay<Vec<&str>>, result: &[&str]) -> Merged<()> {
    let merged = count_names(result);
    let mut frequent: Vec<(&NoteName<'_>, usize)> =
        merged.iter().filter(|(_, count)| **count > 1).map(|(name, count)| (name, *count)).collect();
    if frequent.is_empty() {
        return Ok(());
    }
    frequent.sort_unstable();
    let [local, remote] = [&sides.local, &sides.remote].map(|lines| count_names(lines));
    let most = |name: &NoteName<'_>| [&local, &remote].iter().filter_map(|side| side.get(name)).max().copied();
    match frequent.into_iter().find(|(name, count)| most(name).is_none_or(|most| *count > most)) {
        Some((NoteName::Heading { text, .. }, _)) => Err(ConflictReason::HeadingTwice((*text).to_owned())),
        Some((NoteName::Target(target), _)) => Err(ConflictReason::RowTwice((*target).to_owned())),
        None => Ok(()),
    }
}

/// A name that a reader looks up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum NoteName<'t> {
    /// A heading below other headings. `above` is a number for those.
    Heading { text: &'t str, above: u64 },
    /// The target of an index row.
    Target(&'t str),
}

fn count_names<'t>(lines: &[&'t str]) -> HashMap<NoteName<'t>, usize> {
    let mut counts = HashMap::new();
    let mut above: Vec<(usize, u64)> = Vec::new();
    for (line, _) in lines.iter().zip(fences::fenced_lines(lines)).filter(|(_, is_fenced)| !is_fenced) {
        let name = match note_line::kind_of(line) {
            LineKind::Heading(level) => {
                above.retain(|(upper, _)| *upper < level);
                let name = (line[level..].trim(), above.last().map_or(0, |(_, path)| *path));
                above.push((level, hash_of(name)));
                NoteName::Heading { text: name.0, above: name.1 }
            }
            LineKind::Item(item) => match note_line::link_target(item.text) {
                Some(target) => NoteName::Target(target),
                None => continue,
            },
            _ => continue,
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(local: &str, remote: &str, result: &str) -> Merged<()> {
        let lines = |text: &'static str| text.split('/').collect::<Vec<_>>();
        let leak = |text: &str| lines(Box::leak(text.to_owned().into_boxed_str()));
        let sides = ThreeWay { base: Vec::new(), local: leak(local), remote: leak(remote) };
        check(&sides, &leak(result))
    }

    #[test]
    fn numbers_of_a_list_count_on() {
        assert_eq!(checked("1. a/2. b", "1. a/2. c", "1. a/2. b/2. c"), Err(ConflictReason::Numbering));
        assert_eq!(checked("1. a/1. b", "1. a/1. c", "1. a/1. b/1. c"), Ok(()));
        assert_eq!(
            checked("1. a/  x/2. b/  y", "1. a/  x/2. c", "1. a/  x/2. b/  y/2. c"),
            Err(ConflictReason::Numbering)
        );
        assert_eq!(checked("1. a//text//1. b", "1. a", "1. a//text//1. b"), Ok(()), "another list");
        assert_eq!(checked("1. a/5. b", "1. a", "1. a/5. b"), Ok(()), "a version is as odd");
    }

    #[test]
    fn rows_have_the_cells_of_their_table() {
        let result = checked("| a | b |/| c | d |", "| a |/| e |", "| a | b |/| c | d |/| e |");
        assert_eq!(result, Err(ConflictReason::TableShape));
    }

    #[test]
    fn names_do_not_become_more_frequent() {
        assert_eq!(checked("# A/x", "y/# A", "# A/x/y/# A"), Err(ConflictReason::HeadingTwice("A".to_owned())));
        assert_eq!(checked("# A/## T", "# B/## T", "# A/## T/# B/## T"), Ok(()), "below other headings");
        assert_eq!(checked("```/# A/```", "x/# A", "```/# A/```/x/# A"), Ok(()), "code has no headings");
        let rows = checked("- [a](x)/b", "b/- [c](x)", "- [a](x)/b/- [c](x)");
        assert_eq!(rows, Err(ConflictReason::RowTwice("x".to_owned())));
    }
}
