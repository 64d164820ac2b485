//! The three-way merge by line: changes of different places are joined, and changes of one place are compared by item.

use super::changes::{self, LineChange, NumberedLines};
use super::diff::LineNumbers;
use super::fences;
use super::insertions;
use super::note_line::{self, LineKind, is_blank};
use super::outcome::{ConflictReason, Merged};
use super::threeway::ThreeWay;
use super::units::LineStyle;

/// Merges lines. Each line of the result is a line of one of the three texts.
pub(super) fn merge_lines<'t>(lines: &ThreeWay<Vec<&'t str>>, style: LineStyle) -> Merged<Vec<&'t str>> {
    let mut known = LineNumbers::default();
    let numbers = lines.map(|lines| known.of(lines));
    let base = NumberedLines { lines: &lines.base, numbers: &numbers.base };
    let local = NumberedLines { lines: &lines.local, numbers: &numbers.local };
    let remote = NumberedLines { lines: &lines.remote, numbers: &numbers.remote };
    let (local, remote) = (changes::changes(base, local, style), changes::changes(base, remote, style));
    if style == LineStyle::Note {
        fences::refuse_shared_blocks(&lines.base, &local, &remote)?;
    }
    let mut weaver = Weaver { base: &lines.base, style, out: Vec::new(), at: 0, last: [None, None], counts: [0; 3] };
    weaver.weave(&local, &remote)?;
    weaver.finish()
}

/// The two versions.
const LOCAL: usize = 0;
const REMOTE: usize = 1;
/// Equal changes of both sides in which a number counts on.
const COUNTERS: usize = 2;

/// Writes the result from the first line to the last one.
struct Weaver<'a, 't> {
    base: &'a [&'t str],
    style: LineStyle,
    out: Vec<&'t str>,
    /// The next line of the base.
    at: usize,
    /// The last change of each side.
    last: [Option<&'a LineChange<'a, 't>>; 2],
    /// Changes of one side only, for each side, and [`COUNTERS`].
    counts: [usize; 3],
}

impl<'a, 't> Weaver<'a, 't> {
    fn weave(&mut self, local: &'a [LineChange<'a, 't>], remote: &'a [LineChange<'a, 't>]) -> Merged<()> {
        let (mut local, mut remote) = (local.iter().peekable(), remote.iter().peekable());
        loop {
            match (local.peek().copied(), remote.peek().copied()) {
                (None, None) => return Ok(()),
                (Some(a), Some(b)) if a.base == b.base => {
                    self.take_both(a, b)?;
                    local.next();
                    remote.next();
                }
                (Some(a), Some(b)) if a.base.end <= b.base.start => self.take(LOCAL, a, &mut local)?,
                (Some(a), Some(b)) if b.base.end <= a.base.start => self.take(REMOTE, b, &mut remote)?,
                (Some(a), Some(b)) => return Err(ConflictReason::SameLine(a.base.start.max(b.base.start) + 1)),
                (Some(a), None) => self.take(LOCAL, a, &mut local)?,
                (None, Some(b)) => self.take(REMOTE, b, &mut remote)?,
            }
        }
    }

    fn take(
        &mut self,
        side: usize,
        change: &'a LineChange<'a, 't>,
        changes: &mut impl Iterator<Item = &'a LineChange<'a, 't>>,
    ) -> Merged<()> {
        changes.next();
        self.require_apart(self.last[1 - side], change)?;
        self.write(change, change.added);
        self.last[side] = Some(change);
        self.counts[side] += 1;
        Ok(())
    }

    /// Both sides changed the same lines, or inserted at the same place.
    fn take_both(&mut self, local: &'a LineChange<'a, 't>, remote: &'a LineChange<'a, 't>) -> Merged<()> {
        let (a, b) = (local.added, remote.added);
        if a == b {
            self.counts[COUNTERS] += usize::from(counts_on(local));
            self.write(local, a);
        } else if self.style == LineStyle::Strict {
            return Err(ConflictReason::SameLine(local.base.start + 1));
        } else if local.base.is_empty() {
            let both = insertions::combine(a, b, self.style)?;
            self.write(local, &both);
            self.counts[LOCAL] += 1;
            self.counts[REMOTE] += 1;
        } else {
            let longer = extended(a, b).ok_or(ConflictReason::SameLine(local.base.start + 1))?;
            self.write(local, longer);
        }
        self.require_apart(self.last[LOCAL], remote)?;
        self.require_apart(self.last[REMOTE], local)?;
        self.last = [Some(local), Some(remote)];
        Ok(())
    }

    fn write(&mut self, change: &LineChange<'_, 't>, lines: &[&'t str]) {
        self.out.extend_from_slice(&self.base[self.at..change.base.start]);
        self.out.extend_from_slice(lines);
        self.at = change.base.end;
    }

    /// Refuses two changes of different sides that touch each other, unless they are of different units.
    fn require_apart(&self, before: Option<&LineChange<'a, 't>>, change: &LineChange<'a, 't>) -> Merged<()> {
        let Some(before) = before.filter(|before| before.base.end == change.base.start) else { return Ok(()) };
        let are_apart = match self.style {
            LineStyle::Log => true,
            LineStyle::Strict => false,
            LineStyle::Note => {
                let are_items =
                    before.ends_with_item(self.base, self.style) && change.is_of_items(self.base, self.style);
                are_items || are_blocks(before, change)
            }
        };
        if are_apart { Ok(()) } else { Err(ConflictReason::SameLine(change.base.start.max(1))) }
    }

    fn finish(mut self) -> Merged<Vec<&'t str>> {
        self.out.extend_from_slice(&self.base[self.at..]);
        let [local, remote, counters] = self.counts;
        if counters > 0 && local > 0 && remote > 0 && self.style == LineStyle::Note {
            return Err(ConflictReason::Counter);
        }
        Ok(self.out)
    }
}

/// One side made the change of the other one, and added lines before or behind it.
fn extended<'a, 't>(a: &'a [&'t str], b: &'a [&'t str]) -> Option<&'a [&'t str]> {
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    (!short.is_empty() && (long.starts_with(short) || long.ends_with(short))).then_some(long)
}

/// True if a blank line or a heading divides two changes that follow each other, and the second one does not belong to a
/// heading that the first one removed.
fn are_blocks(before: &LineChange<'_, '_>, change: &LineChange<'_, '_>) -> bool {
    let is_heading = |line: &str| matches!(note_line::kind_of(line), LineKind::Heading(_));
    let headings = |lines: &[&str]| lines.iter().filter(|line| is_heading(line)).count();
    if headings(before.removed) > headings(before.added) {
        let lines = if change.removed.is_empty() { change.added } else { change.removed };
        let level = |lines: &[&str]| lines.iter().find(|l| !is_blank(l)).and_then(|l| note_line::heading_level(l));
        let removed = before.removed.iter().filter_map(|line| note_line::heading_level(line)).min();
        return level(lines).is_some_and(|level| removed.is_some_and(|removed| level <= removed));
    }
    let ends = texts_of(before).iter().all(|lines| lines.last().is_some_and(|line| is_blank(line)));
    let begins =
        texts_of(change).iter().all(|lines| lines.first().is_some_and(|line| is_blank(line) || is_heading(line)));
    ends || begins
}

/// The old text and the new one, if there are any.
fn texts_of<'a, 't>(change: &LineChange<'a, 't>) -> Vec<&'a [&'t str]> {
    [change.removed, change.added].into_iter().filter(|lines| !lines.is_empty()).collect()
}

/// True if exactly one number of one line changed, and it is no part of a date or a time.
fn counts_on(change: &LineChange<'_, '_>) -> bool {
    let ([old], [new]) = (change.removed, change.added) else { return false };
    let [old, new] = [old, new].map(|line| line.split_inclusive(char::is_whitespace).collect::<Vec<_>>());
    let mut differing = old.iter().zip(&new).filter(|(a, b)| a != b);
    let (Some((a, b)), None) = (differing.next(), differing.next()) else { return false };
    let number = |word: &str| {
        let word = word.trim().trim_matches(|c: char| "*_().,:;".contains(c));
        word.parse::<u64>().ok()
    };
    old.len() == new.len() && number(a).is_some() && number(b).is_some()
}
