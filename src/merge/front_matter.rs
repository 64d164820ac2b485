//! The front matter of a note: a YAML block between two lines `---` at the head of the text.

use super::merged_line::MergedLine;
use super::outcome::{ConflictReason, Merged};
use super::places;
use super::text_lines::check_lines;
use super::threeway::ThreeWay;
use super::yaml::{check_yaml, merge_yaml_lines};
use super::yaml_data::parse_yaml;

/// A note in two parts. A note without front matter has an empty block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoteParts<'a, 't> {
    /// The lines between the fences.
    pub(super) block: &'a [&'t str],
    /// The line before the block and the line behind it.
    pub(super) fences: Option<(&'t str, &'t str)>,
    pub(super) body: &'a [&'t str],
}

impl<'a, 't> NoteParts<'a, 't> {
    pub(super) fn of(lines: &'a [&'t str]) -> Self {
        let is_open = lines.first().is_some_and(|line| line.trim_end() == "---");
        let close = lines.iter().skip(1).position(|line| matches!(line.trim_end(), "---" | "..."));
        match close.filter(|_| is_open) {
            Some(close) => {
                Self { block: &lines[1..=close], fences: Some((lines[0], lines[close + 1])), body: &lines[close + 2..] }
            }
            None => Self { block: &[], fences: None, body: lines },
        }
    }
}

/// Merges the blocks, with their fences. If the base has a block, both sides have one too.
pub(super) fn merge_front_matter<'t>(notes: &ThreeWay<NoteParts<'_, 't>>) -> Merged<Vec<MergedLine<'t>>> {
    let fences = notes.map(|note| note.fences);
    let fences = fences.resolve().copied().ok_or_else(|| ConflictReason::SameKey("---".to_owned()))?;
    let block = notes.map(|note| note.block.to_vec());
    if let Some(lines) = block.resolve() {
        return Ok(fenced(fences, lines.iter().copied().map(MergedLine::Kept).collect()));
    }
    let merged = merge_yaml_lines(&block)?;
    let texts = block.map(|lines| lines.join("\n"));
    let texts = texts.map(String::as_str);
    let result: Vec<&str> = merged.iter().map(MergedLine::text).collect();
    places::check_comments(&block, &result)?;
    let result = result.join("\n");
    // A template need not be YAML.
    if parse_yaml(texts.base).is_ok() {
        check_yaml(&texts, &result)?;
    } else {
        check_plain_block(&block, &merged)?;
    }
    Ok(fenced(fences, merged))
}

/// Without YAML, only lines that a version has are right.
fn check_plain_block<'t>(block: &ThreeWay<Vec<&'t str>>, merged: &[MergedLine<'t>]) -> Merged<()> {
    let kept = merged.iter().map(|line| match line {
        MergedLine::Kept(line) => Ok(*line),
        MergedLine::Stamp(_) | MergedLine::List(_) => Err(ConflictReason::CheckFailed),
    });
    check_lines(block, &kept.collect::<Merged<Vec<_>>>()?)
}

fn fenced<'t>(fences: Option<(&'t str, &'t str)>, lines: Vec<MergedLine<'t>>) -> Vec<MergedLine<'t>> {
    let Some((open, close)) = fences else { return lines };
    [vec![MergedLine::Kept(open)], lines, vec![MergedLine::Kept(close)]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_is_only_at_the_head() {
        let parts = |text: &'static str| {
            let lines: Vec<&str> = text.split('\n').collect();
            let parts = NoteParts::of(&lines);
            (parts.block.join("/"), parts.body.join("/"))
        };
        assert_eq!(parts("---\na: 1\n---\nx"), ("a: 1".to_owned(), "x".to_owned()));
        assert_eq!(parts("---\n---\nx"), (String::new(), "x".to_owned()));
        assert_eq!(parts("x\n---\na: 1\n---"), (String::new(), "x/---/a: 1/---".to_owned()));
        assert_eq!(parts("---\nno end"), (String::new(), "---/no end".to_owned()));
    }
}
