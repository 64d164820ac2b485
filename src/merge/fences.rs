//! Fenced blocks of a note: code, formulas, drawings and other data. A block is one unit, because lines of two versions
//! joined together may not be valid data.

use std::ops::Range;

use super::changes::LineChange;
use super::note_line;
use super::outcome::{ConflictReason, Merged};

/// The lines of a fenced block, with its fences. A block that is never closed ends with the text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FencedLines {
    lines: Range<usize>,
    is_closed: bool,
}

impl FencedLines {
    fn all(lines: &[&str]) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut open: Option<(usize, &str)> = None;
        for (at, line) in lines.iter().enumerate() {
            open = match open {
                None => note_line::fence_mark(line).map(|mark| (at, mark)),
                Some((start, mark)) if note_line::closes_fence(line, mark) => {
                    blocks.push(Self { lines: start..at + 1, is_closed: true });
                    None
                }
                open => open,
            };
        }
        blocks.extend(open.map(|(start, _)| Self { lines: start..lines.len(), is_closed: false }));
        blocks
    }

    fn is_changed_by(&self, change: &LineChange<'_, '_>) -> bool {
        let Range { start, end } = self.lines;
        let end = if self.is_closed { end } else { usize::MAX };
        let is_inside = if change.base.is_empty() { change.base.start > start } else { change.base.end > start };
        is_inside && change.base.start < end
    }
}

/// True if a block is never closed.
pub(super) fn has_open_block(lines: &[&str]) -> bool {
    FencedLines::all(lines).last().is_some_and(|block| !block.is_closed)
}

/// For each line: true if it is in a fenced block.
pub(super) fn fenced_lines(lines: &[&str]) -> Vec<bool> {
    let mut is_fenced = vec![false; lines.len()];
    for block in FencedLines::all(lines) {
        is_fenced[block.lines].fill(true);
    }
    is_fenced
}

/// Refuses different changes of both sides in one block of `base`.
pub(super) fn refuse_shared_blocks(
    base: &[&str],
    local: &[LineChange<'_, '_>],
    remote: &[LineChange<'_, '_>],
) -> Merged<()> {
    for block in FencedLines::all(base) {
        let [local, remote] = [local, remote].map(|changes| changes_inside(&block, changes));
        if !local.is_empty() && !remote.is_empty() && local != remote {
            return Err(ConflictReason::SameBlock);
        }
    }
    Ok(())
}

fn changes_inside<'c, 'a, 't>(block: &FencedLines, changes: &'c [LineChange<'a, 't>]) -> Vec<&'c LineChange<'a, 't>> {
    let first = changes.partition_point(|change| change.base.end < block.lines.start);
    let near = changes[first..].iter().take_while(|change| change.base.start <= block.lines.end);
    near.filter(|change| block.is_changed_by(change)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_with_an_equal_fence() {
        let lines: Vec<&str> = "a\n```json\n{}\n```\n~~~\n```\n~~~\n$$\nx".split('\n').collect();
        let found = FencedLines::all(&lines).into_iter().map(|block| (block.lines, block.is_closed));
        assert_eq!(found.collect::<Vec<_>>(), [(1..4, true), (4..7, true), (7..9, false)]);
        assert!(has_open_block(&["```md", "```json", "x"]) && !has_open_block(&["```md", "```json", "```"]));
    }

    #[test]
    fn change_beside_a_block_is_outside() {
        let block = FencedLines { lines: 2..5, is_closed: true };
        let is_inside = |base: Range<usize>| block.is_changed_by(&LineChange { base, removed: &[], added: &[] });
        assert!(!is_inside(2..2) && !is_inside(5..5) && !is_inside(0..2) && !is_inside(5..6));
        assert!(is_inside(3..3) && is_inside(0..3) && is_inside(4..9) && is_inside(2..3));
        let open = FencedLines { lines: 2..5, is_closed: false };
        assert!(open.is_changed_by(&LineChange { base: 5..5, removed: &[], added: &[] }));
    }
}
