//! The versions that are refused before a merge begins.

use super::outcome::{ConflictReason, Merged};
use super::properties::PlainText;
use super::threeway::ThreeWay;

/// Larger versions are not merged.
pub const MAX_MERGE_BYTES: usize = 1 << 20;
/// Versions with more lines are not merged.
pub const MAX_MERGE_LINES: usize = 50_000;

/// The text of a version.
pub(super) fn text_of(bytes: &[u8]) -> Merged<&str> {
    if bytes.len() > MAX_MERGE_BYTES {
        return Err(ConflictReason::TooLarge);
    }
    let text = str::from_utf8(bytes).map_err(|_| ConflictReason::NotText)?;
    if text.contains('\0') {
        return Err(ConflictReason::NotText);
    }
    if bytes.iter().filter(|b| **b == b'\n').count() > MAX_MERGE_LINES {
        return Err(ConflictReason::TooManyLines);
    }
    Ok(text)
}

/// Refuses versions with conflict markers, and a version that lost its whole text.
pub(super) fn refuse(texts: &ThreeWay<PlainText<'_>>) -> Merged<()> {
    refuse_markers([&texts.local, &texts.remote])?;
    let is_blank = |text: &PlainText<'_>| text.text.trim().is_empty();
    if !is_blank(&texts.base) && (is_blank(&texts.local) || is_blank(&texts.remote)) {
        return Err(ConflictReason::Emptied);
    }
    Ok(())
}

/// Refuses versions with conflict markers, because a person is still resolving that conflict.
pub(super) fn refuse_markers(texts: [&PlainText<'_>; 2]) -> Merged<()> {
    if texts.iter().any(|text| has_markers(&text.text)) { Err(ConflictReason::Markers) } else { Ok(()) }
}

/// The marker `=======` alone also underlines a heading, and `>>>>>>>` alone also quotes a mail.
fn has_markers(text: &str) -> bool {
    let mut is_divided = false;
    for line in text.split('\n') {
        let is_marker = |marker: &str| {
            line.strip_prefix(marker).is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with(' '))
        };
        if is_marker("<<<<<<<") || (is_divided && is_marker(">>>>>>>")) {
            return true;
        }
        is_divided |= line.trim_end() == "=======";
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_from_text_that_looks_alike() {
        for (text, expected) in [
            ("<<<<<<< ours\na\n", true),
            ("a\n<<<<<<<\n", true),
            ("a\n=======\nb\n>>>>>>> theirs", true),
            ("Title\n=======\ntext", false),
            (">>>>>>> quoted seven times", false),
            ("<<<<<<<<<<<< arrows", false),
            ("    <<<<<<< indented", false),
        ] {
            assert_eq!(has_markers(text), expected, "{text:?}");
        }
    }

    #[test]
    fn binary_and_huge_versions_are_refused() {
        assert_eq!(text_of(b"a\xff"), Err(ConflictReason::NotText));
        assert_eq!(text_of(b"a\0b"), Err(ConflictReason::NotText));
        assert_eq!(text_of(&vec![b'a'; MAX_MERGE_BYTES + 1]), Err(ConflictReason::TooLarge));
        assert_eq!(text_of(&vec![b'\n'; MAX_MERGE_LINES + 1]), Err(ConflictReason::TooManyLines));
        assert!(text_of(&vec![b'a'; MAX_MERGE_BYTES]).is_ok());
    }
}
