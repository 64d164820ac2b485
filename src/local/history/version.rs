//! Versions of files: their kinds, and the names that they have in the history folder.

use jiff::Timestamp;

use crate::path::MAX_SEGMENT;

/// Length of a time stamp, in bytes: `20261120T101112.123Z`.
const STAMP_BYTES: usize = 20;

/// Why a version is in history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VersionKind {
    /// Newer content replaced it.
    Replaced,
    /// Another device deleted the file.
    Removed,
    /// It went into the result of a merge, as the version of this device or of the proxy.
    Merged,
}

impl VersionKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Removed => "removed",
            Self::Merged => "merged",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Replaced, Self::Removed, Self::Merged].into_iter().find(|k| k.name() == text)
    }
}

/// One old version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryVersion {
    /// The path that the file had on the disk.
    pub path: String,
    /// When sync displaced it.
    pub at: Timestamp,
    pub kind: VersionKind,
    /// Bytes.
    pub size: u64,
    /// Path of the version below the root.
    pub file: String,
}

/// When and why a version came into history. Ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VersionStamp {
    pub at: Timestamp,
    /// Distinguishes versions of the same millisecond.
    pub number: u32,
    pub kind: VersionKind,
}

impl VersionStamp {
    /// `<time>[.<number>]-<kind>`, without a number that is 0.
    pub(super) fn text(self) -> String {
        let number = if self.number == 0 { String::new() } else { format!(".{}", self.number) };
        format!("{}{number}-{}", self.at.strftime("%Y%m%dT%H%M%S.%3fZ"), self.kind.name())
    }

    /// Parses a text that is a stamp and nothing else.
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
        let parsed = Self { at, number, kind: VersionKind::parse(kind)? };
        // Refuse a spelling that memsync would not write.
        (parsed.text() == text).then_some(parsed)
    }
}

/// The name of a version of the file `name`. `None` if it would be too long.
pub(super) fn version_name(name: &str, stamp: VersionStamp) -> Option<String> {
    let name = format!("{name}.{}", stamp.text());
    (name.len() <= MAX_SEGMENT).then_some(name)
}

/// Splits the name of a version into the name of its file and its stamp.
pub(super) fn parse_version_name(text: &str) -> Option<(&str, VersionStamp)> {
    let (before_kind, _) = text.rsplit_once('-')?;
    let stamp = before_kind.rfind('Z')?.checked_sub(STAMP_BYTES - 1)?;
    let name = text.get(..stamp)?.strip_suffix('.').filter(|name| !name.is_empty())?;
    Some((name, VersionStamp::parse(&text[stamp..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(number: u32, kind: VersionKind) -> VersionStamp {
        VersionStamp { at: "2026-11-20T10:11:12.123Z".parse().unwrap(), number, kind }
    }

    #[test]
    fn stamp_round_trips() {
        for (text, want) in [
            ("20261120T101112.123Z-replaced", stamp(0, VersionKind::Replaced)),
            ("20261120T101112.123Z.1-removed", stamp(1, VersionKind::Removed)),
            ("20261120T101112.123Z-merged", stamp(0, VersionKind::Merged)),
        ] {
            assert_eq!(want.text(), text);
            assert_eq!(VersionStamp::parse(text), Some(want));
        }
        for other in ["notes", "20261120T101112.123Z", "20261120T101112.123Z-lost", "20261120T101112.123Z.01-removed"] {
            assert_eq!(VersionStamp::parse(other), None, "{other}");
        }
    }

    #[test]
    fn version_name_round_trips() {
        for name in ["a.md", "a", "résumé", "a.20261120T101112.123Z-replaced", "Z-removed", "a-b.Z"] {
            for stamp in [stamp(0, VersionKind::Replaced), stamp(12, VersionKind::Removed)] {
                let text = version_name(name, stamp).unwrap();
                assert_eq!(parse_version_name(&text), Some((name, stamp)), "{text}");
            }
        }
        for other in ["a.md", "a.md-replaced", ".20261120T101112.123Z-replaced", "éééééééééééZ-removed"] {
            assert_eq!(parse_version_name(other), None, "{other}");
        }
        assert_eq!(version_name(&"x".repeat(MAX_SEGMENT - 20), stamp(0, VersionKind::Replaced)), None);
    }
}
