//! Conditions and the range of a read (RFC 9110, sections 13 and 14). Pure.

use std::ops::Range;

use http::HeaderMap;
use http::header::{IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE};

/// The outcome of the conditions and the range of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    Whole,
    /// These bytes of the content.
    Part(Range<u64>),
    /// 304: the client has it.
    NotModified,
    /// 412: the client expects this tag instead.
    Mismatch(String),
    /// 416: the range lies outside the content.
    OutOfRange,
}

/// Evaluates the headers of a read of `size` bytes. `etag` includes its quotes. A malformed range, or several, give the
/// whole content.
pub(crate) fn evaluate(headers: &HeaderMap, etag: &str, size: u64) -> ReadOutcome {
    let all = |name| headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
    if headers.contains_key(IF_MATCH) && !all(IF_MATCH).any(|value| lists_tag(value, etag, false)) {
        let expected = all(IF_MATCH).map(|value| String::from_utf8_lossy(value)).collect::<Vec<_>>().join(", ");
        return ReadOutcome::Mismatch(expected);
    }
    if all(IF_NONE_MATCH).any(|value| lists_tag(value, etag, true)) {
        return ReadOutcome::NotModified;
    }
    let is_same = headers.get(IF_RANGE).is_none_or(|value| value.as_bytes().trim_ascii() == etag.as_bytes());
    match headers.get(RANGE).filter(|_| is_same).and_then(|value| byte_range(value.to_str().ok()?, size)) {
        None => ReadOutcome::Whole,
        Some(range) if range.is_empty() => ReadOutcome::OutOfRange,
        Some(range) => ReadOutcome::Part(range),
    }
}

/// True if a list of tags contains `etag`. `allows_weak`: weak tags match too.
pub(crate) fn lists_tag(value: &[u8], etag: &str, allows_weak: bool) -> bool {
    value.split(|b| *b == b',').any(|tag| {
        let tag = tag.trim_ascii();
        let tag = tag.strip_prefix(b"W/").filter(|_| allows_weak).unwrap_or(tag);
        tag == b"*" || tag == etag.as_bytes()
    })
}

/// A single range of bytes, cut to `size`, and empty if it lies outside. `None`: the text is no such range.
fn byte_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| if text.bytes().all(|b| b.is_ascii_digit()) { text.parse::<u64>().ok() } else { None };
    match (first, last) {
        ("", last) => Some(size.saturating_sub(number(last)?)..size),
        (first, "") => Some(number(first)?.min(size)..size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| first.min(size)..last.saturating_add(1).min(size))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::HeaderName;

    use super::*;

    const TAG: &str = "\"5d41\"";

    fn outcome(given: &[(HeaderName, &str)]) -> ReadOutcome {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(name, value.parse().unwrap());
        }
        evaluate(&headers, TAG, 100)
    }

    #[test]
    fn condition_is_met_by_the_same_tag() {
        for (given, wanted) in [
            (&[][..], ReadOutcome::Whole),
            (&[(IF_NONE_MATCH, "\"5d41\"")], ReadOutcome::NotModified),
            (&[(IF_NONE_MATCH, "\"x\", W/\"5d41\"")], ReadOutcome::NotModified),
            (&[(IF_NONE_MATCH, "*")], ReadOutcome::NotModified),
            (&[(IF_NONE_MATCH, "\"5d4\"")], ReadOutcome::Whole),
            (&[(IF_MATCH, "\"5d41\"")], ReadOutcome::Whole),
            (&[(IF_MATCH, "\"x\""), (IF_MATCH, "\"5d41\"")], ReadOutcome::Whole),
            (&[(IF_MATCH, "*")], ReadOutcome::Whole),
            // A weak tag does not promise the same bytes.
            (&[(IF_MATCH, "W/\"5d41\"")], ReadOutcome::Mismatch("W/\"5d41\"".to_owned())),
            (&[(IF_MATCH, "\"x\""), (IF_NONE_MATCH, "*")], ReadOutcome::Mismatch("\"x\"".to_owned())),
        ] {
            assert_eq!(outcome(given), wanted, "{given:?}");
        }
    }

    #[test]
    fn range_is_cut_to_the_content() {
        for (range, wanted) in [
            ("bytes=0-9", ReadOutcome::Part(0..10)),
            ("bytes=90-", ReadOutcome::Part(90..100)),
            ("bytes=90-900", ReadOutcome::Part(90..100)),
            ("bytes=-10", ReadOutcome::Part(90..100)),
            ("bytes=-1000", ReadOutcome::Part(0..100)),
            ("bytes=100-", ReadOutcome::OutOfRange),
            ("bytes=-0", ReadOutcome::OutOfRange),
            ("bytes=9-0", ReadOutcome::Whole),
            ("bytes=0-1,5-6", ReadOutcome::Whole),
            ("bytes=+1-2", ReadOutcome::Whole),
            ("lines=0-9", ReadOutcome::Whole),
            ("bytes=99999999999999999999-", ReadOutcome::Whole),
        ] {
            assert_eq!(outcome(&[(RANGE, range)]), wanted, "{range}");
        }
        assert_eq!(outcome(&[(RANGE, "bytes=0-9"), (IF_RANGE, TAG)]), ReadOutcome::Part(0..10));
        assert_eq!(outcome(&[(RANGE, "bytes=0-9"), (IF_RANGE, "\"other\"")]), ReadOutcome::Whole);
        assert_eq!(
            outcome(&[(RANGE, "bytes=0-9"), (IF_MATCH, "\"other\"")]),
            ReadOutcome::Mismatch("\"other\"".into())
        );
    }
}
