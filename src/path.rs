//! [`RelPath`]: the path of a file inside a memory folder, validated once at the edge. Blobs on the wire have the same type.

use std::borrow::Borrow;
use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// The private folder inside each root. It is never synced, at any depth and in any letter case (`.MEMSYNC` is the same folder
/// on a case-insensitive filesystem).
pub(crate) const PRIVATE_DIR: &str = ".memsync";

/// True if any filesystem takes this name for [`PRIVATE_DIR`]. A case-insensitive one folds `ſ` into `s`. HFS+ and a
/// case-folding ext4 also ignore invisible characters.
pub(crate) fn is_private(name: &str) -> bool {
    if name.is_ascii() {
        return name.eq_ignore_ascii_case(PRIVATE_DIR);
    }
    let folded = name.chars().filter(|c| !is_invisible(*c)).map(|c| if c == '\u{17f}' { 's' } else { c });
    folded.map(|c| c.to_ascii_lowercase()).eq(PRIVATE_DIR.chars())
}

/// Unicode's `Default_Ignorable_Code_Point`.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// True if a character changes the direction of the text or ends its line.
pub(crate) fn is_turning(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text that is safe to show. Escapes characters that could control a terminal or change the direction, as `\u{202e}`.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_turning(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A name with every non-ASCII character escaped, so that two Unicode forms of it look different.
pub(crate) fn ascii_name(name: &str) -> String {
    let mut shown = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_graphic() || c == ' ' {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    shown
}

/// A name of any bytes that is safe to show, like [`visible`]. Different names look different: `\xff` stands for a byte that
/// is not UTF-8, and two backslashes for one.
pub(crate) fn shown_name(name: &[u8]) -> String {
    let mut shown = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        shown.push_str(&visible(&chunk.valid().replace('\\', "\\\\")));
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// The folder part of a `/`-separated path, or `""` at the top.
pub(crate) fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// The entries of `map` below the folder `dir`.
pub(crate) fn subtree_range<'a, V>(map: &'a BTreeMap<RelPath, V>, dir: &str) -> btree_map::Range<'a, RelPath, V> {
    // `0` is the character after `/`.
    let (from, to) = (format!("{dir}/"), format!("{dir}0"));
    map.range::<str, _>((Bound::Included(from.as_str()), Bound::Excluded(to.as_str())))
}

/// Maximum length of a path in bytes of UTF-8 (the S3 key limit).
pub(crate) const MAX_PATH: usize = 1024;
/// Maximum length of a segment in bytes of UTF-8 (`NAME_MAX` of the common filesystems).
pub(crate) const MAX_SEGMENT: usize = 255;

/// A relative, `/`-separated path without empty, `.` or `..` segments, control characters and backslashes, and outside
/// `.memsync`. Ordered by bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Arc<str>);

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path is empty")]
    Empty,
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
    #[error("a name in the path is longer than {MAX_SEGMENT} bytes")]
    SegmentTooLong,
    #[error("the path has an empty name (a leading, trailing or double `/`)")]
    EmptySegment,
    #[error("the path has a `.` or `..` in it")]
    Dot,
    #[error("the name has a control character in it")]
    Control,
    #[error("the name has a backslash in it")]
    Backslash,
    #[error("`{PRIVATE_DIR}` is private to memsync")]
    Private,
    #[error("the name is not UTF-8")]
    NotUtf8,
    #[error("the name is not in Unicode normalisation form C")]
    NotNfc,
}

impl RelPath {
    /// Validates `text` without a change to its Unicode form (see [`RelPath::is_nfc`]).
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        for segment in text.split('/') {
            match segment {
                "" => return Err(PathError::EmptySegment),
                "." | ".." => return Err(PathError::Dot),
                s if s.len() > MAX_SEGMENT => return Err(PathError::SegmentTooLong),
                s if is_private(s) => return Err(PathError::Private),
                _ => {}
            }
        }
        for c in text.chars() {
            if c.is_control() {
                return Err(PathError::Control);
            }
            if c == '\\' {
                return Err(PathError::Backslash);
            }
        }
        Ok(Self(text.into()))
    }

    /// Like [`RelPath::parse`] for a path from a disk. Converts it to NFC, the form on the wire.
    ///
    /// # Errors
    /// As [`RelPath::parse`].
    pub(crate) fn from_disk(text: &str) -> Result<Self, PathError> {
        if is_nfc_quick(text.chars()) == IsNormalized::Yes {
            Self::parse(text)
        } else {
            Self::parse(&text.nfc().collect::<String>())
        }
    }

    /// True if the path is in Unicode normalisation form C. The agent blocks remote paths that are not.
    pub(crate) fn is_nfc(&self) -> bool {
        unicode_normalization::is_nfc(&self.0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The last segment.
    pub fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The folder part, or `""` at the top.
    pub fn dir(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(dir, _)| dir)
    }

    /// Every proper ancestor, nearest first: `a/b/c` gives `a/b`, `a`.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = &str> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            rest = rest.rsplit_once('/')?.0;
            Some(rest)
        })
    }

    /// The same key for all paths that are equal on a case-insensitive filesystem.
    pub fn fold(&self) -> String {
        self.0.chars().flat_map(char::to_lowercase).nfc().collect()
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl FromStr for RelPath {
    type Err = PathError;
    fn from_str(s: &str) -> Result<Self, PathError> {
        Self::parse(s)
    }
}

impl Borrow<str> for RelPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(|e| serde::de::Error::custom(format!("{text:?}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_file_names_are_accepted() {
        for ok in [
            "a",
            "topics/ai.md",
            "with space/ü ñ 日本.md",
            ".hidden",
            "a..b/...",
            "x/.memsyncignore",
            "~",
            "a:b?*",
            ".mem\u{17f}yncs",
            "me\u{200d}m",
            // Names that only look like `.memsync`.
            ".\u{ff4d}emsync",
            ".m\u{435}msync",
        ] {
            assert_eq!(RelPath::parse(ok).unwrap().as_str(), ok);
        }
    }

    #[test]
    fn path_that_leaves_the_folder_or_hides_is_refused() {
        let long = "x".repeat(256);
        let deep = "y/".repeat(600) + "z";
        for (bad, why) in [
            ("", PathError::Empty),
            ("/etc/passwd", PathError::EmptySegment),
            ("a//b", PathError::EmptySegment),
            ("a/", PathError::EmptySegment),
            ("..", PathError::Dot),
            ("a/../b", PathError::Dot),
            ("./a", PathError::Dot),
            ("a\0b", PathError::Control),
            ("a\nb", PathError::Control),
            ("a\u{9b}b", PathError::Control),
            ("..\\..\\x", PathError::Backslash),
            (".memsync/id", PathError::Private),
            ("sub/.MemSync/id", PathError::Private),
            (".mem\u{17f}ync/id", PathError::Private),
            ("sub/.MEM\u{17f}YNC", PathError::Private),
            (".mem\u{200c}sync/id", PathError::Private),
            ("\u{feff}.memsync", PathError::Private),
            (".memsync\u{e0020}", PathError::Private),
            (long.as_str(), PathError::SegmentTooLong),
            (deep.as_str(), PathError::TooLong),
        ] {
            assert_eq!(RelPath::parse(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn shown_names_are_escaped_and_distinct() {
        assert_eq!(visible("a\u{1b}[2Jb\n\u{202e}c \u{fffd}"), "a\\u{1b}[2Jb\\n\\u{202e}c \u{fffd}");
        let names: [&[u8]; 6] = [b"a\xff", b"a\\xff", "a\u{fffd}".as_bytes(), b"a\n", b"a\\n", "a\u{202e}".as_bytes()];
        let shown = names.map(shown_name);
        assert_eq!(
            (ascii_name("cafe\u{301} 1"), ascii_name("caf\u{e9}")),
            ("cafe\\u{301} 1".into(), "caf\\u{e9}".into())
        );
        assert_eq!(shown, ["a\\xff", "a\\\\xff", "a\u{fffd}", "a\\n", "a\\\\n", "a\\u{202e}"]);
    }

    #[test]
    fn path_from_disk_is_in_nfc() {
        let nfd = "cafe\u{301}.md";
        assert_eq!(RelPath::from_disk(nfd).unwrap().as_str(), "caf\u{e9}.md");
        assert!(!RelPath::parse(nfd).unwrap().is_nfc());
    }

    #[test]
    fn parts_of_a_path() {
        let p = RelPath::parse("a/b/c.md").unwrap();
        assert_eq!((p.dir(), p.file_name()), ("a/b", "c.md"));
        assert_eq!(p.ancestors().collect::<Vec<_>>(), ["a/b", "a"]);
    }
}
