//! Listings of a bucket in which other programs have their objects, too. One key that the client of S3 cannot write down,
//! as with an empty segment or a control character in it, would make it refuse the page that the key is on.

use bytes::Bytes;
use object_store::ObjectMeta;
use object_store::path::Path as Key;

/// What a listing has.
#[derive(Debug)]
pub enum Listed {
    Object(ObjectMeta),
    /// An object whose key cannot be asked for, by that key.
    Odd(String),
}

/// The keys that were left out of a page.
#[derive(Debug, Clone, Default)]
pub struct LeftOut(pub Vec<String>);

/// A page without the objects that the client cannot name. What is no page stays as it is.
pub fn readable(page: Bytes) -> (Bytes, LeftOut) {
    let mut left_out = LeftOut::default();
    let Ok(text) = std::str::from_utf8(&page) else { return (page, left_out) };
    let (mut kept, mut rest) = (String::new(), text);
    // A key cannot end the element that it is in: `<` stands escaped there.
    while let Some((before, object)) = rest.split_once("<Contents>")
        && let Some((object, after)) = object.split_once("</Contents>")
    {
        kept.push_str(before);
        match key(object).filter(|key| Key::parse(key).is_err()) {
            Some(key) => left_out.0.push(key),
            None => kept.extend(["<Contents>", object, "</Contents>"]),
        }
        rest = after;
    }
    if left_out.0.is_empty() {
        return (page, left_out);
    }
    kept.push_str(rest);
    (kept.into(), left_out)
}

/// The key in what a page says of an object.
fn key(object: &str) -> Option<String> {
    let (_, key) = object.split_once("<Key>")?;
    let (key, _) = key.split_once("</Key>")?;
    Some(unescape(key))
}

/// Text of XML with its references resolved; one that is none stands for itself.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, reference)) = rest.split_once('&') {
        out.push_str(before);
        let resolved = reference.split_once(';').and_then(|(name, after)| Some((resolve(name)?, after)));
        match resolved {
            Some((c, after)) => {
                out.push(c);
                rest = after;
            }
            None => {
                out.push('&');
                rest = reference;
            }
        }
    }
    out + rest
}

fn resolve(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let number = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            char::from_u32(number.ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_goes_on_without_what_cannot_be_named() {
        let object = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let page = |keys: &[&str]| {
            let objects: String = keys.iter().map(|key| object(key)).collect();
            Bytes::from(format!("<List><Name>b</Name>{objects}<IsTruncated>true</IsTruncated></List>"))
        };
        let all =
            ["m/a", "m//b", "m/&#x1;", "m/x&amp;y&lt;/Key&gt;", "m/&#9;&quot;&apos;", "m/../c", "m/&none; &", "m/d"];
        let (kept, left_out) = readable(page(&all));
        assert_eq!(kept, page(&["m/a", "m/x&amp;y&lt;/Key&gt;", "m/&none; &", "m/d"]));
        assert_eq!(left_out.0, ["m//b", "m/\u{1}", "m/\t\"'", "m/../c"]);
        for other in [&b"<Error/>"[..], b"", b"<Contents>", b"\xff<Contents><Key>//</Key></Contents>"] {
            assert_eq!(readable(Bytes::from_static(other)).0, other);
        }
    }
}
