//! Two versions without a common base. Only texts that extend each other, or that have different parts behind the same
//! head, are merged. The result never has the whole text twice.

use super::driver::{MergeDriver, MergeRules};
use super::insertions;
use super::jsonl;
use super::note_line::{self, is_blank};
use super::outcome::{ConflictReason, Merged};
use super::places;
use super::seams;
use super::text_lines::{self, check_lines, lines_of};
use super::threeway::ThreeWay;
use super::units::LineStyle;

pub(super) fn merge(rules: MergeRules, local: &str, remote: &str) -> Merged<String> {
    let [one, other] = [local, remote].map(lines_of);
    if insertions::contains_in_order(&one, &other) {
        return Ok(local.to_owned());
    }
    if insertions::contains_in_order(&other, &one) {
        return Ok(remote.to_owned());
    }
    let merged = match rules.driver {
        MergeDriver::Markdown | MergeDriver::Text if rules.is_prose => merge_tails(&one, &other, rules.is_journal)?,
        MergeDriver::Jsonl => return jsonl::merge_appends(&one, &other, rules.is_log),
        _ => return Err(ConflictReason::NoBase),
    };
    let sides = ThreeWay { base: Vec::new(), local: one, remote: other };
    seams::check(&sides, &merged)?;
    places::check(&sides, &merged)?;
    check_lines(&sides, &merged)?;
    Ok(merged.join("\n"))
}

/// The same head, and then appends to a journal or sections of different names.
fn merge_tails<'t>(one: &[&'t str], other: &[&'t str], is_journal: bool) -> Merged<Vec<&'t str>> {
    let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let blanks = one[..same].iter().rev().take_while(|line| is_blank(line)).count();
    let (head, one) = one.split_at(same - blanks);
    let other = &other[head.len()..];
    let first_text = |lines: &[&'t str]| lines.iter().copied().find(|line| !is_blank(line)).unwrap_or_default();
    let are_sections = [one, other].iter().all(|tail| note_line::heading_level(first_text(tail)) == Some(2));
    let has_common_line = text_lines::common_line(one, other).is_some();
    let are_appends = is_journal && head.iter().any(|line| !is_blank(line)) && !has_common_line;
    if !are_sections && !are_appends {
        return Err(ConflictReason::NoBase);
    }
    let tail = insertions::combine(one, other, LineStyle::Note).map_err(|_| ConflictReason::NoBase)?;
    Ok([head, &tail].concat())
}
