//! The names of versions in the history folder: the time and kind of each, as people and programs read them.

use jiff::Timestamp;

use super::VersionKind;
use crate::path::MAX_SEGMENT;

/// Bytes of a stamp: `20261120T101112.123Z`.
const STAMP_BYTES: usize = 20;

/// When and how a version came into history. The order is that of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub at: Timestamp,
    /// Tells versions of one millisecond apart.
    pub number: u32,
    pub kind: VersionKind,
}

impl Mark {
    /// `<stamp>-<kind>`, with the number between them where it is not 0.
    pub(super) fn text(self) -> String {
        let number = if self.number == 0 { String::new() } else { format!(".{}", self.number) };
        format!("{}{number}-{}", self.at.strftime("%Y%m%dT%H%M%S.%3fZ"), self.kind.name())
    }

    /// Reads a text that is a mark and nothing else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (rest, kind) = text.rsplit_once('-')?;
        let (stamp, number) = rest.split_at_checked(STAMP_BYTES)?;
        let number = match number.strip_prefix('.') {
            Some(number) => number.parse().ok()?,
            None if number.is_empty() => 0,
            None => return None,
        };
        let at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S%.fZ", stamp).ok()?;
        let at = at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        let mark = Self { at, number, kind: VersionKind::parse(kind)? };
        // A name that this program would have written otherwise is none of its own.
        (mark.text() == text).then_some(mark)
    }
}

/// The file name of a version of a file called `name`; `None` where it would be too long.
pub(super) fn version_name(name: &str, mark: Mark) -> Option<String> {
    let name = format!("{name}.{}", mark.text());
    (name.len() <= MAX_SEGMENT).then_some(name)
}

/// The name of the file of which `text` names a version, and its mark.
pub(super) fn parse_version_name(text: &str) -> Option<(&str, Mark)> {
    let (before_kind, _) = text.rsplit_once('-')?;
    let stamp = before_kind.rfind('Z')?.checked_sub(STAMP_BYTES - 1)?;
    let name = text.get(..stamp)?.strip_suffix('.').filter(|name| !name.is_empty())?;
    Some((name, Mark::parse(&text[stamp..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u32, kind: VersionKind) -> Mark {
        Mark { at: "2026-11-20T10:11:12.123Z".parse().unwrap(), number, kind }
    }

    #[test]
    fn mark_round_trips() {
        for (text, want) in [
            ("20261120T101112.123Z-replaced", mark(0, VersionKind::Replaced)),
            ("20261120T101112.123Z.1-removed", mark(1, VersionKind::Removed)),
        ] {
            assert_eq!(want.text(), text);
            assert_eq!(Mark::parse(text), Some(want));
        }
        for other in ["notes", "20261120T101112.123Z", "20261120T101112.123Z-lost", "20261120T101112.123Z.01-removed"] {
            assert_eq!(Mark::parse(other), None, "{other}");
        }
    }

    #[test]
    fn version_name_round_trips() {
        for name in ["a.md", "a", "résumé", "a.20261120T101112.123Z-replaced", "Z-removed", "a-b.Z"] {
            for mark in [mark(0, VersionKind::Replaced), mark(12, VersionKind::Removed)] {
                let text = version_name(name, mark).unwrap();
                assert_eq!(parse_version_name(&text), Some((name, mark)), "{text}");
            }
        }
        for other in ["a.md", "a.md-replaced", ".20261120T101112.123Z-replaced", "éééééééééééZ-removed"] {
            assert_eq!(parse_version_name(other), None, "{other}");
        }
        assert_eq!(version_name(&"x".repeat(MAX_SEGMENT - 20), mark(0, VersionKind::Replaced)), None);
    }
}
