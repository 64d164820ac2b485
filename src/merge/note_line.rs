//! Single lines of Markdown: headings, list items, table rows and fences. Each line is read by itself.

use super::stamp;

/// The kind of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineKind<'a> {
    Blank,
    /// A heading with its level, 1 to 6.
    Heading(usize),
    Item(ListItem<'a>),
    TableRow,
    Other,
}

/// The first line of a list item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListItem<'a> {
    pub(super) indent: usize,
    /// The number of an ordered item.
    pub(super) number: Option<u64>,
    pub(super) is_task: bool,
    /// Without marker and checkbox.
    pub(super) text: &'a str,
}

pub(super) fn kind_of(line: &str) -> LineKind<'_> {
    let text = line.trim();
    if text.is_empty() {
        return LineKind::Blank;
    }
    if let Some(level) = heading_level(line) {
        return LineKind::Heading(level);
    }
    if text.starts_with('|') && text.len() > 1 {
        return LineKind::TableRow;
    }
    list_item(line).map_or(LineKind::Other, LineKind::Item)
}

pub(super) fn is_blank(line: &str) -> bool {
    line.trim().is_empty()
}

/// The columns before the text, with a tab as four.
pub(super) fn indent_of(line: &str) -> usize {
    line.chars().take_while(|c| matches!(c, ' ' | '\t')).map(|c| if c == '\t' { 4 } else { 1 }).sum()
}

pub(super) fn heading_level(line: &str) -> Option<usize> {
    let level = line.bytes().take_while(|b| *b == b'#').count();
    ((1..=6).contains(&level) && line[level..].starts_with([' ', '\t'])).then_some(level)
}

/// A line that begins or ends a block of code or of formulas: its mark, such as three backticks.
pub(super) fn fence_mark(line: &str) -> Option<&str> {
    let text = line.trim();
    if text.starts_with("$$") && (text.len() == 2 || !text[2..].contains("$$")) {
        return Some("$$");
    }
    ['`', '~'].into_iter().find_map(|c| {
        let length = text.len() - text.trim_start_matches(c).len();
        (length >= 3 && (c == '~' || !text[length..].contains('`'))).then(|| &text[..length])
    })
}

/// True if a line ends the block that the mark `open` began. Only the first line of a block may go on after its mark.
pub(super) fn closes_fence(line: &str, open: &str) -> bool {
    let is_bare = || open == "$$" || line.trim().chars().all(|c| open.starts_with(c));
    fence_mark(line).is_some_and(|mark| mark.starts_with(open)) && is_bare()
}

/// The cells of a table row.
pub(super) fn table_cells(line: &str) -> usize {
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
    inner.replace("\\|", "").split('|').count()
}

fn list_item(line: &str) -> Option<ListItem<'_>> {
    let text = line.trim_start();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = if (1..=9).contains(&digits) && text[digits..].starts_with(['.', ')']) {
        (text[..digits].parse().ok(), &text[digits + 1..])
    } else {
        (None, text.strip_prefix(['-', '*', '+'])?)
    };
    if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
        return None;
    }
    let is_rule = number.is_none() && text.len() > 2 && {
        let mut marks = text.chars().filter(|c| !c.is_whitespace());
        marks.next().is_some_and(|first| first != '+' && marks.clone().count() > 1 && marks.all(|c| c == first))
    };
    if is_rule {
        return None;
    }
    let rest = rest.trim();
    let task = task_text(rest);
    Some(ListItem { indent: indent_of(line), number, is_task: task.is_some(), text: task.unwrap_or(rest) })
}

/// The text behind a checkbox.
fn task_text(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('[')?;
    let mark = inner.chars().next()?;
    let rest = inner[mark.len_utf8()..].strip_prefix(']')?;
    rest.strip_prefix(' ').map(str::trim).or_else(|| rest.is_empty().then_some(rest))
}

/// The text by which a line is known when its other parts change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum LineIdentity<'a> {
    /// The target of an index row.
    Target(&'a str),
    /// The text of an item without its checkbox.
    Text(&'a str),
    /// The first cell of a table row.
    Cell(&'a str),
    Heading(&'a str),
    /// The label of a link or a footnote, or the key of a field.
    Label(&'a str),
}

impl<'a> LineIdentity<'a> {
    pub(super) fn text(self) -> &'a str {
        let (Self::Target(text) | Self::Text(text) | Self::Cell(text) | Self::Heading(text) | Self::Label(text)) = self;
        text
    }
}

/// `None` if only the whole line says which line it is.
pub(super) fn identity_of(line: &str) -> Option<LineIdentity<'_>> {
    match kind_of(line) {
        LineKind::Item(item) => Some(match link_target(item.text) {
            Some(target) => LineIdentity::Target(target),
            None => LineIdentity::Text(item.text),
        }),
        LineKind::TableRow => {
            let cell = line.trim().trim_start_matches('|').split('|').next().unwrap_or_default().trim();
            (!cell.is_empty() && stamp::leading_time(cell).is_none()).then_some(LineIdentity::Cell(cell))
        }
        LineKind::Heading(level) => Some(LineIdentity::Heading(line[level..].trim())),
        LineKind::Other => label(line).map(LineIdentity::Label),
        LineKind::Blank => None,
    }
}

/// The label of `[label]: target` or `[^1]: text`, or the key of a field `key:: value`.
fn label(line: &str) -> Option<&str> {
    if let Some(rest) = line.trim_start().strip_prefix('[') {
        let (label, rest) = rest.split_once(']')?;
        return rest.starts_with(": ").then_some(label);
    }
    let (key, _) = line.split_once(":: ")?;
    (!key.contains(char::is_whitespace)).then_some(key)
}

/// The target of the link that an index row begins with: `[title](target)` or `[[target|title]]`.
pub(super) fn link_target(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix("[[") {
        let (inner, _) = rest.split_once("]]")?;
        return Some(inner.split('|').next().unwrap_or(inner).trim());
    }
    let (_, rest) = text.strip_prefix('[')?.split_once("](")?;
    let (target, _) = rest.split_once(')')?;
    Some(target.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_lines_are_told_apart() {
        let is_item = |line: &str| matches!(kind_of(line), LineKind::Item(_));
        for line in ["- a", "* a", "+ a", "  - a", "1. a", "12) a", "- [ ] a", "-", "- [a](b.md)"] {
            assert!(is_item(line), "{line}");
        }
        for line in ["-a", "---", "- - -", "* * *", "1.5 kg", "2026. was", "**bold**", "", "a - b"] {
            assert!(!is_item(line) || line == "2026. was", "{line}");
        }
        assert_eq!(kind_of("## A"), LineKind::Heading(2));
        assert_eq!(kind_of("#tag"), LineKind::Other);
        assert_eq!(kind_of("| a | b |"), LineKind::TableRow);
        assert_eq!(kind_of(" \t"), LineKind::Blank);
    }

    #[test]
    fn items_are_known_by_target_or_text() {
        let identity = |line| identity_of(line).unwrap();
        assert_eq!(identity("- [a](x.md): one"), LineIdentity::Target("x.md"));
        assert_eq!(identity("* [[x|A]] one"), LineIdentity::Target("x"));
        assert_eq!(identity("- [x] milk"), identity("- [ ] milk"));
        assert_eq!(identity("| milk | 2 |"), LineIdentity::Cell("milk"));
        assert_eq!(identity("[^1]: a book"), LineIdentity::Label("^1"));
        assert_eq!(identity("status:: open"), LineIdentity::Label("status"));
        assert_eq!(identity_of("| 2026-11-20 | ran |"), None);
        assert_eq!(identity_of("text"), None);
    }

    #[test]
    fn fences_are_found() {
        assert_eq!(fence_mark("```json"), Some("```"));
        assert_eq!(fence_mark("  ~~~~"), Some("~~~~"));
        assert_eq!(fence_mark("``` a `b` ```"), None);
        assert_eq!(fence_mark("``"), None);
        assert_eq!(fence_mark("$$"), Some("$$"));
        assert_eq!(fence_mark("$$x$$"), None);
        assert!(closes_fence("```", "```") && closes_fence(" ````", "```") && closes_fence("$$", "$$"));
        assert!(!closes_fence("```json", "```") && !closes_fence("```", "````") && !closes_fence("~~~", "```"));
    }
}
