//! Markdown and plain text. Front matter is merged by key, and the body by line and by item.

use super::front_matter::{NoteParts, merge_front_matter};
use super::lines::merge_lines;
use super::merged_line::MergedLine;
use super::outcome::{ConflictReason, Merged};
use super::seams;
use super::text_lines::{check_lines, lines_of};
use super::threeway::ThreeWay;
use super::units::LineStyle;

/// Merges notes with front matter.
pub(super) fn merge(texts: &ThreeWay<&str>) -> Merged<String> {
    let lines = texts.map(|text| lines_of(text));
    let notes = lines.map(|lines| NoteParts::of(lines));
    if notes.base.fences.is_some() && notes.iter().any(|note| note.fences.is_none()) {
        // A side removed the front matter, or wrote a text before it.
        return joined(&merge_body(&lines)?);
    }
    let front = merge_front_matter(&notes)?;
    let body = merge_body(&notes.map(|note| note.body.to_vec()))?;
    let merged: Vec<&str> = front.iter().map(MergedLine::text).chain(body).collect();
    // A line may have moved from one part to the other. Stamps and joined lists are lines of no version.
    if !front.is_empty() && front.iter().all(|line| matches!(line, MergedLine::Kept(_))) {
        check_lines(&lines, &merged)?;
    }
    joined(&merged)
}

/// Merges texts without front matter.
pub(super) fn merge_text(texts: &ThreeWay<&str>) -> Merged<String> {
    joined(&merge_body(&texts.map(|text| lines_of(text)))?)
}

fn merge_body<'t>(lines: &ThreeWay<Vec<&'t str>>) -> Merged<Vec<&'t str>> {
    if let Some(lines) = lines.resolve() {
        return Ok(lines.clone());
    }
    let merged = merge_lines(lines, LineStyle::Note)?;
    seams::check(lines, &merged)?;
    check_lines(lines, &merged)?;
    Ok(merged)
}

/// Both sides together may have removed everything.
fn joined(lines: &[&str]) -> Merged<String> {
    let text = lines.join("\n");
    if text.trim().is_empty() { Err(ConflictReason::Emptied) } else { Ok(text) }
}
