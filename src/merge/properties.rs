//! Line ends, byte order mark and final newline. They are properties of a file and no part of its lines.

use std::borrow::Cow;

const BOM: &str = "\u{feff}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnds {
    Lf,
    CrLf,
    Mixed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextProperties {
    has_bom: bool,
    /// `None` if the text is one line without an end.
    line_ends: Option<LineEnds>,
    /// `None` if the text is empty.
    ends_with_newline: Option<bool>,
}

impl TextProperties {
    pub(super) fn of(text: &str) -> Self {
        let body = text.strip_prefix(BOM).unwrap_or(text);
        let all = body.bytes().filter(|b| *b == b'\n').count();
        let crlf = body.as_bytes().windows(2).filter(|pair| *pair == b"\r\n").count();
        let line_ends = match (all, crlf) {
            (0, _) => None,
            (_, 0) => Some(LineEnds::Lf),
            _ if all == crlf => Some(LineEnds::CrLf),
            _ => Some(LineEnds::Mixed),
        };
        let ends_with_newline = if body.is_empty() { None } else { Some(body.ends_with('\n')) };
        Self { has_bom: text.starts_with(BOM), line_ends, ends_with_newline }
    }

    /// Some lines end with CRLF and others with LF. Then the CR is part of the line, in all three texts.
    pub(super) fn has_mixed_ends(self) -> bool {
        self.line_ends == Some(LineEnds::Mixed)
    }

    /// For each property: the value of the side that changed it.
    pub(super) fn merge(base: Option<Self>, local: Self, remote: Self) -> Self {
        let of = |property: fn(Self) -> bool, preferred: bool| {
            merge_property(base.map(property), property(local), property(remote), preferred)
        };
        let known = |base: Option<Option<_>>, local: Option<_>, remote: Option<_>, preferred| match (local, remote) {
            (Some(local), Some(remote)) => Some(merge_property(base.flatten(), local, remote, preferred)),
            (known, None) | (None, known) => known,
        };
        let (line_ends, newline) = (base.map(|b| b.line_ends), base.map(|b| b.ends_with_newline));
        Self {
            has_bom: of(|p| p.has_bom, true),
            line_ends: known_ends(line_ends, local.line_ends, remote.line_ends),
            ends_with_newline: known(newline, local.ends_with_newline, remote.ends_with_newline, true),
        }
    }

    /// Gives a text of plain lines these properties.
    pub(super) fn apply(self, text: &str, is_mixed: bool) -> Vec<u8> {
        let mut out = String::with_capacity(text.len() + 4);
        if self.has_bom {
            out.push_str(BOM);
        }
        if self.line_ends == Some(LineEnds::CrLf) && !is_mixed {
            out.push_str(&text.replace('\n', "\r\n"));
        } else {
            out.push_str(text);
        }
        if self.ends_with_newline == Some(true) {
            out.push_str(if self.line_ends == Some(LineEnds::CrLf) && !is_mixed { "\r\n" } else { "\n" });
        }
        out.into_bytes()
    }
}

fn known_ends(base: Option<Option<LineEnds>>, local: Option<LineEnds>, remote: Option<LineEnds>) -> Option<LineEnds> {
    match (local, remote) {
        (Some(local), Some(remote)) => Some(merge_property(base.flatten(), local, remote, LineEnds::Lf)),
        (known, None) | (None, known) => known,
    }
}

fn merge_property<T: PartialEq>(base: Option<T>, local: T, remote: T, preferred: T) -> T {
    if local == remote || base.as_ref() == Some(&remote) {
        local
    } else if base.as_ref() == Some(&local) {
        remote
    } else {
        preferred
    }
}

/// A text without its properties: lines that are separated by LF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlainText<'a> {
    pub(super) text: Cow<'a, str>,
}

impl<'a> PlainText<'a> {
    pub(super) fn of(text: &'a str, is_mixed: bool) -> Self {
        let body = text.strip_prefix(BOM).unwrap_or(text);
        let body = if is_mixed || !body.contains("\r\n") {
            Cow::Borrowed(body)
        } else {
            Cow::Owned(body.replace("\r\n", "\n"))
        };
        let text = match body {
            Cow::Borrowed(body) => Cow::Borrowed(body.strip_suffix('\n').unwrap_or(body)),
            Cow::Owned(mut body) => {
                if body.ends_with('\n') {
                    body.pop();
                }
                Cow::Owned(body)
            }
        };
        Self { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(base: Option<&str>, local: &str, remote: &str, text: &str) -> String {
        let merged =
            TextProperties::merge(base.map(TextProperties::of), TextProperties::of(local), TextProperties::of(remote));
        String::from_utf8(merged.apply(text, false)).unwrap()
    }

    #[test]
    fn changed_property_wins() {
        assert_eq!(merged(Some("a\r\n"), "a\n", "b\r\n", "b"), "b\n");
        assert_eq!(merged(Some("a\n"), "a\r\nb\r\n", "b\n", "b"), "b\r\n");
        assert_eq!(merged(Some("a\n"), "\u{feff}a\n", "b\n", "b"), "\u{feff}b\n");
        assert_eq!(merged(Some("a\n"), "a", "b\n", "b"), "b");
        assert_eq!(merged(Some("a"), "a\n", "b", "b"), "b\n");
    }

    #[test]
    fn text_without_line_ends_has_no_say() {
        assert_eq!(merged(Some("a\r\nb\r\n"), "a", "b\r\nc\r\n", "c\nd"), "c\r\nd");
        assert_eq!(merged(None, "a", "a\r\n", "a"), "a\r\n");
    }

    #[test]
    fn plain_text_and_properties_give_the_text_back() {
        for text in ["", "a", "a\n", "\n", "\n\n", "a\r\nb", "a\r\nb\r\n", "\u{feff}a\n", "a\rb\n", "a\r\nb\n"] {
            let properties = TextProperties::of(text);
            let plain = PlainText::of(text, properties.has_mixed_ends());
            assert_eq!(properties.apply(&plain.text, properties.has_mixed_ends()), text.as_bytes(), "{text:?}");
        }
    }
}
