//! The difference between two texts, by line, with the changed words marked. Control characters are escaped.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use similar::{Algorithm, DiffOp, capture_diff_slices_deadline, group_diff_ops};

use super::format;

const REMOVED: Style = AnsiColor::Red.on_default();
const ADDED: Style = AnsiColor::Green.on_default();
const PLACE: Style = AnsiColor::Cyan.on_default();
/// Unchanged lines around a change.
const CONTEXT_LINES: usize = 3;
/// Comparisons that take longer together give a coarser result.
const MAX_TIME: Duration = Duration::from_secs(2);
/// The words of larger changes are not compared.
const MAX_WORDS: usize = 20_000;

/// How a difference is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiffLook {
    /// Marks words by colours, instead of `[-…-]` and `{+…+}`.
    pub(crate) has_colors: bool,
    /// Most lines written.
    pub(crate) max_lines: usize,
}

/// Lines of the old text, and the lines of the new text in their place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ChangedLines<'t> {
    /// Number of the first line. Lines count from 1.
    pub(super) old_line: usize,
    pub(super) old: Vec<&'t str>,
    new_line: usize,
    pub(super) new: Vec<&'t str>,
}

/// The changes from `old` to `new`, without context.
pub(crate) fn changed_lines<'t>(old: &'t str, new: &'t str) -> Vec<ChangedLines<'t>> {
    let (old, new) = (lines_of(old), lines_of(new));
    let changes =
        compare(&old, &new, Instant::now() + MAX_TIME).into_iter().filter(|op| !matches!(op, DiffOp::Equal { .. }));
    let lines = |op: DiffOp| {
        let (in_old, in_new) = (op.old_range(), op.new_range());
        ChangedLines {
            old_line: in_old.start + 1,
            old: old[in_old].to_vec(),
            new_line: in_new.start + 1,
            new: new[in_new].to_vec(),
        }
    };
    changes.map(lines).collect()
}

/// Writes the changes from `old` to `new` with some lines around them.
pub(crate) fn write_diff(out: &mut dyn Write, old: &str, new: &str, look: DiffLook) -> io::Result<()> {
    let (old, new) = (lines_of(old), lines_of(new));
    let deadline = Instant::now() + MAX_TIME;
    let mut shown = Vec::new();
    for group in group_diff_ops(compare(&old, &new, deadline), CONTEXT_LINES) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let in_old = first.old_range().start..last.old_range().end;
        let in_new = first.new_range().start..last.new_range().end;
        let place = format!("@@ -{} +{} @@", line_numbers(&in_old), line_numbers(&in_new));
        shown.push(format::painted(PLACE, &place));
        for op in group {
            match op {
                DiffOp::Equal { old_index, len, .. } => {
                    shown.extend(old[old_index..old_index + len].iter().flat_map(|line| whole_line(' ', line)));
                }
                op => shown.extend(changed(&old[op.old_range()], &new[op.new_range()], look.has_colors, deadline)),
            }
        }
    }
    for line in shown.iter().take(look.max_lines) {
        writeln!(out, "{line}")?;
    }
    match shown.len().checked_sub(look.max_lines) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(out, "… {}", format::count(more, "more line")),
    }
}

fn compare(old: &[&str], new: &[&str], deadline: Instant) -> Vec<DiffOp> {
    let mut known = HashMap::new();
    let [old, new] = [old, new].map(|texts| {
        let number = |text: &&str| {
            let next = known.len();
            *known.entry((*text).to_owned()).or_insert(next)
        };
        texts.iter().map(number).collect::<Vec<usize>>()
    });
    capture_diff_slices_deadline(Algorithm::Myers, &old, &new, Some(deadline))
}

fn lines_of(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

/// `first,count`, as in other tools.
fn line_numbers(lines: &Range<usize>) -> String {
    let first = if lines.is_empty() { lines.start } else { lines.start + 1 };
    if lines.len() == 1 { first.to_string() } else { format!("{first},{}", lines.len()) }
}

/// The removed and the added lines, with the changed words marked if some words stay.
fn changed(old: &[&str], new: &[&str], has_colors: bool, deadline: Instant) -> Vec<String> {
    let (old_text, new_text) = (old.concat(), new.concat());
    let (old_words, new_words) = (words_of(&old_text), words_of(&new_text));
    let is_small = old_words.len() + new_words.len() <= MAX_WORDS;
    let ops = if is_small && !old.is_empty() && !new.is_empty() {
        compare(&old_words, &new_words, deadline)
    } else {
        Vec::new()
    };
    let keeps_words = ops.iter().any(|op| {
        let is_word = |word: &&str| word.contains(char::is_alphanumeric);
        matches!(op, DiffOp::Equal { .. }) && old_words[op.old_range()].iter().any(is_word)
    });
    if !keeps_words {
        let removed = old.iter().flat_map(|line| whole_line('-', line));
        return removed.chain(new.iter().flat_map(|line| whole_line('+', line))).collect();
    }
    let is_change = |op: &&DiffOp| !matches!(op, DiffOp::Equal { .. });
    let removed: Vec<_> = ops.iter().filter(is_change).map(DiffOp::old_range).collect();
    let added: Vec<_> = ops.iter().filter(is_change).map(DiffOp::new_range).collect();
    let mut lines = marked_lines('-', &old_words, &removed, has_colors);
    lines.extend(marked_lines('+', &new_words, &added, has_colors));
    lines
}

/// Words, runs of spaces, line ends, and single other characters.
fn words_of(text: &str) -> Vec<&str> {
    let class = |c: char| match c {
        '\n' => 0,
        c if c.is_alphanumeric() || c == '_' => 1,
        c if c.is_whitespace() => 2,
        _ => 3,
    };
    let mut words = Vec::new();
    let mut start = 0;
    let mut before = None;
    for (at, c) in text.char_indices() {
        let now = class(c);
        if at > start && (before != Some(now) || matches!(now, 0 | 3)) {
            words.push(&text[start..at]);
            start = at;
        }
        before = Some(now);
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

/// A line without marks, and a note if it is a last line without a line end.
fn whole_line(sign: char, line: &str) -> Vec<String> {
    let text = format!("{sign}{}", plain(line));
    let text = match style_of(sign) {
        Some(style) => format::painted(style, &text),
        None => text,
    };
    end_line(text, line)
}

/// `line` with a note below it, if `text` has no line end.
fn end_line(line: String, text: &str) -> Vec<String> {
    let mut lines = vec![line];
    if !text.ends_with('\n') {
        lines.push("\\ no line end".to_owned());
    }
    lines
}

/// Lines with the words of `marked` marked.
fn marked_lines(sign: char, words: &[&str], marked: &[Range<usize>], has_colors: bool) -> Vec<String> {
    let style = style_of(sign).unwrap_or_default();
    let (begin, end) = if sign == '-' { ("[-", "-]") } else { ("{+", "+}") };
    let mut lines = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let line_end = words[at..].iter().position(|word| *word == "\n").map_or(words.len(), |n| at + n);
        let mut line = format::painted(style, &sign.to_string());
        while at < line_end {
            let inside = marked.iter().find(|range| range.contains(&at));
            let next = marked.iter().map(|range| range.start).find(|start| *start > at).unwrap_or(line_end);
            let until = inside.map_or(next, |range| range.end).min(line_end);
            let text = plain(&words[at..until].concat());
            line += &match inside {
                None => format::painted(style, &text),
                Some(_) if has_colors => format::painted(style.bold().invert(), &text),
                Some(_) => format!("{begin}{text}{end}"),
            };
            at = until;
        }
        lines.extend(end_line(line, words.get(at).copied().unwrap_or_default()));
        at += 1;
    }
    lines
}

fn style_of(sign: char) -> Option<Style> {
    match sign {
        '-' => Some(REMOVED),
        '+' => Some(ADDED),
        _ => None,
    }
}

/// A line as it is safe to show, without its line end.
fn plain(line: &str) -> String {
    format::text_line(line.strip_suffix('\n').unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(old: &str, new: &str, has_colors: bool) -> String {
        let mut out = Vec::new();
        write_diff(&mut out, old, new, DiffLook { has_colors, max_lines: 100 }).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn without_colors(old: &str, new: &str) -> String {
        anstream::adapter::strip_str(&shown(old, new, false)).to_string()
    }

    #[test]
    fn changed_words_are_marked() {
        assert_eq!(
            without_colors("a\nthe quick fox\nz\n", "a\nthe slow fox, old\nz\n"),
            "@@ -1,3 +1,3 @@\n a\n-the [-quick-] fox\n+the {+slow+} fox{+, old+}\n z\n"
        );
        assert_eq!(without_colors("one\n", "two\n"), "@@ -1 +1 @@\n-one\n+two\n", "no word stays");
        let colored = shown("the quick fox\n", "the slow fox\n", true);
        assert!(!colored.contains("[-") && colored.contains("\u{1b}[7m") && colored.contains("quick"), "{colored:?}");
    }

    #[test]
    fn whole_lines_have_signs() {
        assert_eq!(without_colors("a\nb\n", "a\nb\n"), "");
        assert_eq!(without_colors("", "a\nb"), "@@ -0,0 +1,2 @@\n+a\n+b\n\\ no line end\n");
        let long: String = (0..20).map(|n| format!("{n}\n")).collect();
        let diff = without_colors(&long, &long.replace("10\n", ""));
        assert_eq!(diff, "@@ -8,7 +8,6 @@\n 7\n 8\n 9\n-10\n 11\n 12\n 13\n");
    }

    #[test]
    fn control_characters_are_escaped() {
        let diff = without_colors("a\tb\u{1b}[2Jc\n", "a\tb\r\n");
        assert_eq!(diff, "@@ -1 +1 @@\n-a\tb[-\\u{1b}[2Jc-]\n+a\tb{+\\r+}\n");
    }

    #[test]
    fn long_difference_is_cut() {
        let mut out = Vec::new();
        let long: String = (0..20).map(|n| format!("{n}\n")).collect();
        write_diff(&mut out, "", &long, DiffLook { has_colors: false, max_lines: 3 }).unwrap();
        let text = anstream::adapter::strip_str(str::from_utf8(&out).unwrap()).to_string();
        assert_eq!(text, "@@ -0,0 +1,20 @@\n+0\n+1\n… 18 more lines\n");
    }

    #[test]
    fn changed_lines_have_their_numbers() {
        let found = changed_lines("a\nb\nc\n", "a\nB\nc\nd\n");
        let second = ChangedLines { old_line: 4, old: vec![], new_line: 4, new: vec!["d\n"] };
        assert_eq!(found, [ChangedLines { old_line: 2, old: vec!["b\n"], new_line: 2, new: vec!["B\n"] }, second]);
    }

    #[test]
    fn text_of_random_changes_is_shown_whole() {
        let mut rng = fastrand::Rng::with_seed(crate::testing::seed());
        for _ in 0..300 {
            let mut text =
                || -> String { (0..rng.usize(..40)).map(|_| ["a", "b ", "\n", ".", "é"][rng.usize(..5)]).collect() };
            let (old, new) = (text(), text());
            let changes = changed_lines(&old, &new);
            let (mut at, mut rebuilt) = (0, String::new());
            let lines = lines_of(&old);
            for change in changes {
                rebuilt += &lines[at..change.old_line - 1].concat();
                rebuilt += &change.new.concat();
                at = change.old_line - 1 + change.old.len();
            }
            assert_eq!(rebuilt + &lines[at..].concat(), new);
            assert_eq!(words_of(&old).concat(), old);
        }
    }
}
