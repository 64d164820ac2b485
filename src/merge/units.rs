//! The units of a text: lines that belong together, so that changes of different units do not touch each other.

use std::cmp::Ordering;

use super::note_line::{self, LineIdentity, LineKind, is_blank, kind_of};
use super::record;
use super::stamp::{self, WrittenTime};

/// How the lines of a text belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineStyle {
    /// Items and table rows are units. All other text is divided by blank lines and headings.
    Note,
    /// Each line is a record. A log line without a time belongs to the line above it.
    Log,
    /// No line is independent of its neighbours.
    Strict,
}

/// Lines that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LineUnit<'a, 't> {
    /// With the blank lines that separate the unit from its neighbour.
    pub(super) lines: &'a [&'t str],
    /// Without them.
    pub(super) body: &'a [&'t str],
}

impl<'a, 't> LineUnit<'a, 't> {
    fn whole(lines: &'a [&'t str]) -> Self {
        Self { lines, body: lines }
    }

    pub(super) fn identity(&self) -> Option<LineIdentity<'t>> {
        self.body.first().and_then(|line| note_line::identity_of(line))
    }

    pub(super) fn time(&self) -> Option<WrittenTime> {
        self.body.first().and_then(|line| record::line_time(line))
    }
}

/// True if every line belongs to a list item or a table row that begins in `lines`.
pub(super) fn are_items(lines: &[&str], style: LineStyle) -> bool {
    match style {
        LineStyle::Log => true,
        LineStyle::Strict => false,
        LineStyle::Note => {
            let is_item = |line: &str| matches!(kind_of(line), LineKind::Item(_) | LineKind::TableRow);
            lines.first().is_none_or(|line| is_item(line))
                && lines.iter().all(|line| is_item(line) || continues_item(line))
        }
    }
}

/// An indented line that is no item itself, such as the second line of an item.
pub(super) fn continues_item(line: &str) -> bool {
    kind_of(line) == LineKind::Other && note_line::indent_of(line) >= 2 && note_line::fence_mark(line).is_none()
}

/// Divides lines that [`are_items`] into single items, each with its continuation lines.
pub(super) fn single_items<'a, 't>(lines: &'a [&'t str]) -> Vec<LineUnit<'a, 't>> {
    divide(lines, |line| !continues_item(line))
}

/// Divides inserted lines: items with the items below them, log entries, sections, or paragraphs with the blank lines
/// before them.
pub(super) fn inserted_units<'a, 't>(lines: &'a [&'t str], style: LineStyle) -> Vec<LineUnit<'a, 't>> {
    let Some(first) = lines.iter().find(|line| !is_blank(line)) else {
        return if lines.is_empty() { Vec::new() } else { vec![LineUnit::whole(lines)] };
    };
    if style == LineStyle::Log {
        let is_timed = stamp::leading_time(first).is_some();
        return divide(lines, |line| !is_timed || stamp::leading_time(line).is_some());
    }
    if are_items(lines, style) {
        let top = note_line::indent_of(first);
        return divide(lines, |line| !continues_item(line) && note_line::indent_of(line) <= top);
    }
    let level = note_line::heading_level(first);
    let begins_block = |line: &str, after_blank: bool| match level {
        Some(level) => note_line::heading_level(line).is_some_and(|l| l <= level),
        None => after_blank || note_line::heading_level(line).is_some(),
    };
    divide_blocks(lines, begins_block)
}

fn divide<'a, 't>(lines: &'a [&'t str], begins: impl Fn(&str) -> bool) -> Vec<LineUnit<'a, 't>> {
    let mut units = Vec::new();
    let mut start = 0;
    for (at, line) in lines.iter().enumerate().skip(1) {
        if begins(line) {
            units.push(LineUnit::whole(&lines[start..at]));
            start = at;
        }
    }
    if start < lines.len() {
        units.push(LineUnit::whole(&lines[start..]));
    }
    units
}

/// Blank lines belong to the block behind them. Fenced blocks are not divided.
fn divide_blocks<'a, 't>(lines: &'a [&'t str], begins: impl Fn(&str, bool) -> bool) -> Vec<LineUnit<'a, 't>> {
    let mut starts = Vec::new();
    let mut fence: Option<&str> = None;
    let (mut blanks_from, mut seen_text) = (0, false);
    for (at, line) in lines.iter().enumerate() {
        if fence.is_none() && is_blank(line) {
            continue;
        }
        let after_blank = at > blanks_from && seen_text;
        if fence.is_none() && (!seen_text || begins(line, after_blank)) {
            starts.push((blanks_from, at));
        }
        fence = match fence {
            None => note_line::fence_mark(line),
            open => open.filter(|open| !note_line::closes_fence(line, open)),
        };
        (blanks_from, seen_text) = (at + 1, true);
    }
    let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([lines.len()]);
    let unit = |((start, body), end): (&(usize, usize), usize)| LineUnit {
        lines: &lines[*start..end],
        body: &lines[*body..end],
    };
    starts.iter().zip(ends).map(unit).collect()
}

/// The order of two insertions at one place: the earlier one by its time, else by its text.
pub(super) fn compare_units(one: &[LineUnit<'_, '_>], other: &[LineUnit<'_, '_>]) -> Ordering {
    let time = |units: &[LineUnit<'_, '_>]| units.first().and_then(LineUnit::time);
    let by_time = match (time(one), time(other)) {
        (Some(a), Some(b)) => match (a.is_later(b), b.is_later(a)) {
            (Some(true), _) => Ordering::Greater,
            (_, Some(true)) => Ordering::Less,
            _ => Ordering::Equal,
        },
        _ => Ordering::Equal,
    };
    let bodies = |units: &[LineUnit<'_, '_>]| -> Vec<String> {
        units.iter().flat_map(|unit| unit.body.iter().map(|line| (*line).to_owned())).collect()
    };
    by_time.then_with(|| bodies(one).cmp(&bodies(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(text: &str, style: LineStyle) -> Vec<String> {
        let lines: Vec<&str> = text.split('\n').collect();
        inserted_units(&lines, style).iter().map(|unit| unit.body.join("/")).collect()
    }

    #[test]
    fn items_keep_their_continuation_and_the_items_below() {
        assert_eq!(bodies("- a\n  more\n  - b\n- c", LineStyle::Note), ["- a/  more/  - b", "- c"]);
        assert_eq!(bodies("| a | 1 |\n| b | 2 |", LineStyle::Note), ["| a | 1 |", "| b | 2 |"]);
    }

    #[test]
    fn paragraphs_and_sections_are_divided_outside_of_fences() {
        assert_eq!(bodies("\na\nb\n\n```\nx\n\ny\n```\n\nc", LineStyle::Note), ["a/b", "```/x//y/```", "c"]);
        assert_eq!(bodies("## A\n\nx\n\n### B\n\n## C\ny", LineStyle::Note), ["## A//x//### B", "## C/y"]);
    }

    #[test]
    fn log_lines_without_a_time_belong_to_the_line_above() {
        let text = "10:00:00 start\n  at main\n10:00:01 end";
        assert_eq!(bodies(text, LineStyle::Log), ["10:00:00 start/  at main", "10:00:01 end"]);
        assert_eq!(bodies("a\nb", LineStyle::Log), ["a", "b"]);
    }
}
