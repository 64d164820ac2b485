//! The differences between two sequences of lines, in time that depends on their length and not on their content.
//!
//! Short sequences go to Myers' algorithm. Long ones are first divided at the lines that are unique in both.

use std::collections::HashMap;
use std::ops::Range;

use similar::{Algorithm, DiffOp, capture_diff_slices};

/// Myers' algorithm takes at most this many steps at once, and [`MAX_STEPS`] in total.
const MAX_STEPS_AT_ONCE: usize = 1 << 20;
const MAX_STEPS: usize = 1 << 24;
/// A part without a unique line is divided no further.
const MAX_DIVISIONS: usize = 16;

/// Lines of the base, and the lines of a side that stand in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiffHunk {
    pub(super) base: Range<usize>,
    pub(super) side: Range<usize>,
}

/// Numbers for lines: equal lines have equal numbers.
#[derive(Debug, Default)]
pub(super) struct LineNumbers<'a> {
    known: HashMap<&'a str, u32>,
}

impl<'a> LineNumbers<'a> {
    pub(super) fn of(&mut self, lines: &[&'a str]) -> Vec<u32> {
        let number = |line: &&'a str| {
            let next = self.known.len() as u32;
            *self.known.entry(line).or_insert(next)
        };
        lines.iter().map(number).collect()
    }
}

/// The hunks in order. Between two hunks is at least one line that both have.
pub(super) fn diff(base: &[u32], side: &[u32]) -> Vec<DiffHunk> {
    let mut steps_left = MAX_STEPS;
    let mut open = vec![(0..base.len(), 0..side.len(), 0)];
    let mut equal: Vec<(usize, usize, usize)> = Vec::new();
    while let Some((in_base, in_side, division)) = open.pop() {
        let (in_base, in_side) = trim(base, side, in_base, in_side, &mut equal);
        if in_base.is_empty() || in_side.is_empty() {
            continue;
        }
        let steps = myers_steps(in_base.len(), in_side.len());
        if steps <= MAX_STEPS_AT_ONCE.min(steps_left) {
            steps_left -= steps;
            let ops = capture_diff_slices(Algorithm::Myers, &base[in_base.clone()], &side[in_side.clone()]);
            for op in ops {
                if let DiffOp::Equal { old_index, new_index, len } = op {
                    equal.push((in_base.start + old_index, in_side.start + new_index, len));
                }
            }
        } else if division < MAX_DIVISIONS {
            open.extend(divide(base, side, &in_base, &in_side).into_iter().map(|(b, s)| (b, s, division + 1)));
        }
    }
    equal.sort_unstable();
    let mut hunks = hunks_between(&equal, base.len(), side.len());
    slide_down(&mut hunks, base, side);
    hunks
}

/// The most steps for sequences of these lengths, roughly. Very different lengths make many steps.
fn myers_steps(base: usize, side: usize) -> usize {
    base.saturating_mul(side).saturating_add(base.abs_diff(side).saturating_mul(base + side) / 4)
}

/// Takes equal lines off both ends.
fn trim(
    base: &[u32],
    side: &[u32],
    in_base: Range<usize>,
    in_side: Range<usize>,
    equal: &mut Vec<(usize, usize, usize)>,
) -> (Range<usize>, Range<usize>) {
    let (old, new) = (&base[in_base.clone()], &side[in_side.clone()]);
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    if head > 0 {
        equal.push((in_base.start, in_side.start, head));
    }
    if tail > 0 {
        equal.push((in_base.end - tail, in_side.end - tail, tail));
    }
    (in_base.start + head..in_base.end - tail, in_side.start + head..in_side.end - tail)
}

/// The parts from one unique line to the next, each with that line at its head. Empty if no line is unique in both.
fn divide(
    base: &[u32],
    side: &[u32],
    in_base: &Range<usize>,
    in_side: &Range<usize>,
) -> Vec<(Range<usize>, Range<usize>)> {
    let places = unique_in_both(base, side, in_base, in_side);
    let anchors = longest_rising(&places);
    if anchors.is_empty() {
        return Vec::new();
    }
    let starts = anchors.iter().copied();
    let ends = anchors.iter().copied().skip(1).chain([(in_base.end, in_side.end)]);
    let first = (in_base.start..anchors[0].0, in_side.start..anchors[0].1);
    let parts = starts.zip(ends).map(|((b, s), (b_end, s_end))| (b..b_end, s..s_end));
    [first].into_iter().chain(parts).collect()
}

/// The lines that are unique in both parts: their places in base and side, in the order of base.
fn unique_in_both(base: &[u32], side: &[u32], in_base: &Range<usize>, in_side: &Range<usize>) -> Vec<(usize, usize)> {
    #[derive(Default)]
    struct LinePlaces {
        counts: [u32; 2],
        places: [usize; 2],
    }
    let mut found: HashMap<u32, LinePlaces> = HashMap::new();
    for (which, (lines, range)) in [(base, in_base), (side, in_side)].into_iter().enumerate() {
        for at in range.clone() {
            let line = found.entry(lines[at]).or_default();
            line.counts[which] += 1;
            line.places[which] = at;
        }
    }
    let mut unique: Vec<_> =
        found.values().filter(|line| line.counts == [1, 1]).map(|line| (line.places[0], line.places[1])).collect();
    unique.sort_unstable();
    unique
}

/// The longest run of pairs whose second numbers rise too.
fn longest_rising(pairs: &[(usize, usize)]) -> Vec<(usize, usize)> {
    // `ends[n]` is the pair that ends the best run of length n + 1.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    for (at, pair) in pairs.iter().enumerate() {
        let length = ends.partition_point(|end| pairs[*end].1 < pair.1);
        before.push(length.checked_sub(1).map(|n| ends[n]));
        if length == ends.len() {
            ends.push(at);
        } else {
            ends[length] = at;
        }
    }
    let mut run = Vec::with_capacity(ends.len());
    let mut next = ends.last().copied();
    while let Some(at) = next {
        run.push(pairs[at]);
        next = before[at];
    }
    run.reverse();
    run
}

fn hunks_between(equal: &[(usize, usize, usize)], base_len: usize, side_len: usize) -> Vec<DiffHunk> {
    let (mut at_base, mut at_side) = (0, 0);
    let mut hunks = Vec::new();
    for (in_base, in_side, len) in equal.iter().copied().chain([(base_len, side_len, 0)]) {
        if in_base > at_base || in_side > at_side {
            hunks.push(DiffHunk { base: at_base..in_base, side: at_side..in_side });
        }
        (at_base, at_side) = (in_base + len, in_side + len);
    }
    hunks
}

/// Moves each pure insertion or removal down as far as the text stays the same, so that equal changes of both sides stand
/// at equal places.
fn slide_down(hunks: &mut [DiffHunk], base: &[u32], side: &[u32]) {
    let mut limit = (base.len(), side.len());
    for hunk in hunks.iter_mut().rev() {
        // One line stays between two hunks.
        while hunk.base.end < limit.0 && hunk.side.end < limit.1 {
            let moves = if hunk.base.is_empty() {
                side[hunk.side.start] == side[hunk.side.end]
            } else {
                hunk.side.is_empty() && base[hunk.base.start] == base[hunk.base.end]
            };
            if !moves {
                break;
            }
            hunk.base = hunk.base.start + 1..hunk.base.end + 1;
            hunk.side = hunk.side.start + 1..hunk.side.end + 1;
        }
        limit = (hunk.base.start.saturating_sub(1), hunk.side.start.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(hunks: &[DiffHunk], base: &[u32], side: &[u32]) -> Vec<u32> {
        let (mut out, mut at) = (Vec::new(), 0);
        for hunk in hunks {
            assert!(at < hunk.base.start || at == 0, "hunks touch: {hunks:?}");
            out.extend_from_slice(&base[at..hunk.base.start]);
            out.extend_from_slice(&side[hunk.side.clone()]);
            at = hunk.base.end;
        }
        out.extend_from_slice(&base[at..]);
        out
    }

    #[test]
    fn hunks_lead_from_base_to_side() {
        let mut rng = fastrand::Rng::with_seed(crate::testing::seed());
        for _ in 0..2_000 {
            let symbols = rng.u32(1..12);
            let mut line = |_| rng.u32(..symbols);
            let base: Vec<u32> = (0..20).map(&mut line).collect();
            let side: Vec<u32> = (0..25).map(&mut line).collect();
            assert_eq!(apply(&diff(&base, &side), &base, &side), side);
        }
    }

    #[test]
    fn long_sequences_are_divided_at_unique_lines() {
        let base: Vec<u32> = (0..40_000).map(|n| if n % 2 == 0 { 0 } else { n }).collect();
        let mut side = base.clone();
        side.remove(30_001);
        side.insert(10_000, 50_000);
        let hunks = diff(&base, &side);
        assert_eq!(apply(&hunks, &base, &side), side);
        let changed: usize = hunks.iter().map(|h| h.base.len() + h.side.len()).sum();
        assert!(changed <= 4, "{hunks:?}");
    }

    #[test]
    fn long_sequences_without_unique_lines_end() {
        let base: Vec<u32> = (0..50_000).map(|n| n % 7).collect();
        let side: Vec<u32> = (0..50_000).map(|n| n * n % 7).collect();
        assert_eq!(apply(&diff(&base, &side), &base, &side), side);
    }

    #[test]
    fn sequences_of_very_different_lengths_end() {
        let base: Vec<u32> = (0..20).collect();
        let side: Vec<u32> = (0..50_000).map(|n| if n % 5_000 == 77 { n / 5_000 } else { 100 }).collect();
        assert_eq!(apply(&diff(&base, &side), &base, &side), side);
    }

    #[test]
    fn insertion_slides_to_its_last_place() {
        let hunks = diff(&[1, 2, 3], &[1, 2, 2, 3]);
        assert_eq!(hunks, [DiffHunk { base: 2..2, side: 2..3 }]);
    }
}
