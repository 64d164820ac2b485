//! Names in an address: namespaces, blob paths, and the values of a query. Each is decoded once and then checked, so no
//! escape hides anything from the check.

use percent_encoding::percent_decode_str;

use crate::path::{MAX_PATH, PathError, RelPath};
use crate::protocol::{INDEX_NAME, Namespace};
use crate::proxy::error::{ApiError, PathFault};

/// Longest name as it stands in an address: every byte of it may be escaped.
const MAX_ENCODED_BYTES: usize = 3 * MAX_PATH;

pub(crate) fn namespace(encoded: &str) -> Result<Namespace, ApiError> {
    Ok(Namespace::parse(&percent_decode(encoded)?)?)
}

pub(crate) fn blob_path(encoded: &str) -> Result<RelPath, PathFault> {
    stored_path(&percent_decode(encoded)?)
}

/// A decoded name under which a blob may be stored.
pub(crate) fn stored_path(name: &str) -> Result<RelPath, PathFault> {
    let path = RelPath::parse(name)?;
    if path.segments().any(|name| name == INDEX_NAME) { Err(PathFault::Reserved) } else { Ok(path) }
}

/// The value of `key` in a query, still encoded.
pub(crate) fn query_value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// Unlike the library, refuses a `%` without two hex digits after it.
pub(crate) fn percent_decode(encoded: &str) -> Result<String, PathFault> {
    if encoded.len() > MAX_ENCODED_BYTES {
        return Err(PathFault::TooLong);
    }
    let is_escape =
        |at: usize| encoded.as_bytes().get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    if encoded.match_indices('%').any(|(at, _)| !is_escape(at)) {
        return Err(PathFault::Escape);
    }
    let decoded = percent_decode_str(encoded).decode_utf8().map_err(|_| PathFault::Name(PathError::NotUtf8))?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_path_is_decoded_once() {
        for (encoded, name) in [
            ("a.md", "a.md"),
            ("topics/a%20b.md", "topics/a b.md"),
            ("caf%C3%A9", "café"),
            ("a%2Fb", "a/b"),
            ("a+b", "a+b"),
            ("100%25", "100%"),
            ("%252e%252e/x", "%2e%2e/x"),
        ] {
            assert_eq!(blob_path(encoded).unwrap().as_str(), name, "{encoded}");
        }
    }

    #[test]
    fn hostile_path_is_refused() {
        let name = |e| Err(PathFault::Name(e));
        for (encoded, error) in [
            ("", name(PathError::Empty)),
            ("a//b", name(PathError::EmptySegment)),
            ("a/", name(PathError::EmptySegment)),
            ("%2Fetc/passwd", name(PathError::EmptySegment)),
            ("..", name(PathError::Dot)),
            ("a/%2e%2e/b", name(PathError::Dot)),
            ("%2e%2e%2fb", name(PathError::Dot)),
            ("a%00b", name(PathError::Control)),
            ("a%5Cb", name(PathError::Backslash)),
            ("a%FFb", name(PathError::NotUtf8)),
            ("%C0%AE%C0%AE/x", name(PathError::NotUtf8)),
            ("%2Ememsync/id", name(PathError::Private)),
            ("a%", Err(PathFault::Escape)),
            ("a%2", Err(PathFault::Escape)),
            ("a%zz", Err(PathFault::Escape)),
            ("a%+1", Err(PathFault::Escape)),
            (".sync-index.json", Err(PathFault::Reserved)),
            ("a/%2Esync-index.json", Err(PathFault::Reserved)),
            (".sync-index.json/a", Err(PathFault::Reserved)),
        ] {
            assert_eq!(blob_path(encoded), error, "{encoded}");
        }
    }
}
