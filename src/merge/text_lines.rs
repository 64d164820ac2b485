//! The lines of a text, and the run-time check of merged lines.

use std::collections::HashSet;

use super::facts;
use super::note_line::is_blank;
use super::outcome::{ConflictReason, Merged};
use super::threeway::ThreeWay;

/// The lines of a text without its final newline.
pub(super) fn lines_of(text: &str) -> Vec<&str> {
    if text.is_empty() { Vec::new() } else { text.split('\n').collect() }
}

/// A line that both have and that is not blank: the first one in alphabetical order.
pub(super) fn common_line<'t>(one: &[&'t str], other: &[&str]) -> Option<&'t str> {
    let lines: HashSet<&str> = other.iter().copied().filter(|line| !is_blank(line)).collect();
    one.iter().copied().filter(|line| lines.contains(line)).min()
}

/// Refuses a result that lost a line, or has one too many. Blank lines do not count.
pub(super) fn check_lines<'t>(sides: &ThreeWay<Vec<&'t str>>, result: &[&'t str]) -> Merged<()> {
    let text = |lines: &[&'t str]| lines.iter().copied().filter(|line| !is_blank(line)).collect::<Vec<_>>();
    if facts::are_kept(sides.map(|lines| text(lines)), text(result)) {
        Ok(())
    } else {
        Err(ConflictReason::CheckFailed)
    }
}
