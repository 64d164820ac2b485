//! Listings of a bucket that other programs use, too. The S3 client refuses a whole page if it cannot name one key on it, as
//! one with an empty segment or a control character.

use bytes::Bytes;
use object_store::ObjectMeta;
use object_store::path::Path as Key;

/// An object in a listing.
#[derive(Debug)]
pub(super) enum ListedObject {
    Named(ObjectMeta),
    /// The key of an object that the client cannot name.
    Unnamable(String),
}

/// The keys that were removed from a page.
#[derive(Debug, Clone, Default)]
pub(super) struct UnnamableKeys(pub Vec<String>);

/// Removes the objects that the client cannot name. Other bodies than listings stay as they are.
pub(super) fn without_unnamable_keys(page: Bytes) -> (Bytes, UnnamableKeys) {
    let mut unnamable = UnnamableKeys::default();
    let Ok(text) = std::str::from_utf8(&page) else { return (page, unnamable) };
    let (mut out, mut rest) = (String::new(), text);
    // A key cannot end its element, because XML escapes `<`.
    while let Some((before, object)) = rest.split_once("<Contents>")
        && let Some((object, after)) = object.split_once("</Contents>")
    {
        out.push_str(before);
        match escaped_key(object).map(namable_key) {
            Some(Err(key)) => unnamable.0.push(key),
            Some(Ok(())) | None => out.extend(["<Contents>", object, "</Contents>"]),
        }
        rest = after;
    }
    if unnamable.0.is_empty() {
        return (page, unnamable);
    }
    out.push_str(rest);
    (out.into(), unnamable)
}

/// The key in an object's element, as XML escapes it.
fn escaped_key(object: &str) -> Option<&str> {
    let (_, key) = object.split_once("<Key>")?;
    key.split_once("</Key>").map(|(key, _)| key)
}

/// Checks that the client can name a key. It reads XML as this does, so a key with an invalid escape fails there too. Such
/// a key is given as it stands. The error is the key.
fn namable_key(escaped: &str) -> Result<(), String> {
    let key = quick_xml::escape::unescape(escaped).map_err(|_| escaped.to_owned())?;
    Key::parse(&key).map(drop).map_err(|_| key.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_loses_only_unnamable_keys() {
        let object = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let page = |keys: &[&str]| {
            let objects: String = keys.iter().map(|key| object(key)).collect();
            Bytes::from(format!("<List><Name>b</Name>{objects}<IsTruncated>true</IsTruncated></List>"))
        };
        let all = [
            "m/a",
            "m//b",
            "m/&#x1;",
            "m/x&amp;y&lt;/Key&gt;",
            "m/&#9;&quot;&apos;",
            "m/../c",
            "m/&none;",
            "m/&#0;",
            "m/d",
        ];
        let (rest, unnamable) = without_unnamable_keys(page(&all));
        assert_eq!(rest, page(&["m/a", "m/x&amp;y&lt;/Key&gt;", "m/d"]));
        assert_eq!(unnamable.0, ["m//b", "m/\u{1}", "m/\t\"'", "m/../c", "m/&none;", "m/&#0;"]);
        for other in [&b"<Error/>"[..], b"", b"<Contents>", b"\xff<Contents><Key>//</Key></Contents>"] {
            assert_eq!(without_unnamable_keys(Bytes::from_static(other)).0, other);
        }
    }
}
