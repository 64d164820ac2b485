//! Conditions and ranges of a read, as HTTP has them (RFC 9110, sections 13 and 14). Pure.

use std::ops::Range;

use http::HeaderMap;
use http::header::{IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE};

/// The outcome of the conditions and the range of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    Whole,
    /// These bytes of it.
    Part(Range<u64>),
    /// 304: the client has it.
    NotModified,
    /// 412: it is not what the client expects, which is this.
    Mismatch(String),
    /// 416: nothing of it lies there.
    OutOfRange,
}

/// Judges a read of a content of `size` bytes with the tag `etag`, quotes and all. A malformed range, or several, ask for
/// the whole.
pub fn read(headers: &HeaderMap, etag: &str, size: u64) -> Reading {
    let all = |name| headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
    if headers.contains_key(IF_MATCH) && !all(IF_MATCH).any(|value| lists(value, etag, false)) {
        let expected = all(IF_MATCH).map(|value| String::from_utf8_lossy(value)).collect::<Vec<_>>().join(", ");
        return Reading::Mismatch(expected);
    }
    if all(IF_NONE_MATCH).any(|value| lists(value, etag, true)) {
        return Reading::NotModified;
    }
    let is_same = headers.get(IF_RANGE).is_none_or(|value| value.as_bytes().trim_ascii() == etag.as_bytes());
    match headers.get(RANGE).filter(|_| is_same).and_then(|value| bytes(value.to_str().ok()?, size)) {
        None => Reading::Whole,
        Some(range) if range.is_empty() => Reading::OutOfRange,
        Some(range) => Reading::Part(range),
    }
}

/// True if a list of tags has `etag`. `weakly`: a weak tag counts as well.
pub fn lists(value: &[u8], etag: &str, weakly: bool) -> bool {
    value.split(|b| *b == b',').any(|tag| {
        let tag = tag.trim_ascii();
        let tag = tag.strip_prefix(b"W/").filter(|_| weakly).unwrap_or(tag);
        tag == b"*" || tag == etag.as_bytes()
    })
}

/// One range of bytes, cut to `size`; empty where it lies outside. `None`: the text is no such range.
fn bytes(text: &str, size: u64) -> Option<Range<u64>> {
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

    fn reading(given: &[(HeaderName, &str)]) -> Reading {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(name, value.parse().unwrap());
        }
        read(&headers, TAG, 100)
    }

    #[test]
    fn condition_is_met_by_the_same_tag() {
        for (given, wanted) in [
            (&[][..], Reading::Whole),
            (&[(IF_NONE_MATCH, "\"5d41\"")], Reading::NotModified),
            (&[(IF_NONE_MATCH, "\"x\", W/\"5d41\"")], Reading::NotModified),
            (&[(IF_NONE_MATCH, "*")], Reading::NotModified),
            (&[(IF_NONE_MATCH, "\"5d4\"")], Reading::Whole),
            (&[(IF_MATCH, "\"5d41\"")], Reading::Whole),
            (&[(IF_MATCH, "\"x\""), (IF_MATCH, "\"5d41\"")], Reading::Whole),
            (&[(IF_MATCH, "*")], Reading::Whole),
            // A weak tag says nothing about bytes.
            (&[(IF_MATCH, "W/\"5d41\"")], Reading::Mismatch("W/\"5d41\"".to_owned())),
            (&[(IF_MATCH, "\"x\""), (IF_NONE_MATCH, "*")], Reading::Mismatch("\"x\"".to_owned())),
        ] {
            assert_eq!(reading(given), wanted, "{given:?}");
        }
    }

    #[test]
    fn range_is_cut_to_the_content() {
        for (range, wanted) in [
            ("bytes=0-9", Reading::Part(0..10)),
            ("bytes=90-", Reading::Part(90..100)),
            ("bytes=90-900", Reading::Part(90..100)),
            ("bytes=-10", Reading::Part(90..100)),
            ("bytes=-1000", Reading::Part(0..100)),
            ("bytes=100-", Reading::OutOfRange),
            ("bytes=-0", Reading::OutOfRange),
            ("bytes=9-0", Reading::Whole),
            ("bytes=0-1,5-6", Reading::Whole),
            ("bytes=+1-2", Reading::Whole),
            ("lines=0-9", Reading::Whole),
            ("bytes=99999999999999999999-", Reading::Whole),
        ] {
            assert_eq!(reading(&[(RANGE, range)]), wanted, "{range}");
        }
        assert_eq!(reading(&[(RANGE, "bytes=0-9"), (IF_RANGE, TAG)]), Reading::Part(0..10));
        assert_eq!(reading(&[(RANGE, "bytes=0-9"), (IF_RANGE, "\"other\"")]), Reading::Whole);
        assert_eq!(reading(&[(RANGE, "bytes=0-9"), (IF_MATCH, "\"other\"")]), Reading::Mismatch("\"other\"".into()));
    }
}
