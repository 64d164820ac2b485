//! [`Namespace`]: the part of a proxy that a request is about. Validated once, at the edge. Also the percent coding of paths
//! and device names.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::path::{PathError, RelPath};

/// Names that a namespace cannot begin with, because `/sync/a/blob/b` could then mean the index of one namespace or a blob
/// of another. `health` is allowed: `/health` takes no path.
pub(super) const RESERVED: &[&str] = &["blob", "sync", "events", "batch", "versions"];

/// The object that holds a namespace's index in a bucket, beside its files. No path and no namespace contains this name.
pub const INDEX_NAME: &str = ".sync-index.json";

/// The empty namespace is the flat dialect's. Any other name follows the rules of a path ([`RelPath`]), does not begin with
/// one of `RESERVED`, and does not contain `INDEX_NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Namespace(Option<Arc<str>>);

/// The rule that a namespace's name breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceError {
    #[error("it begins with `{0}`, which is an address of the proxy's own; choose another name")]
    Reserved(&'static str),
    #[error("`{INDEX_NAME}` is the name of the index")]
    Index,
    #[error(transparent)]
    Name(#[from] PathError),
}

impl Namespace {
    /// The namespace of the flat dialect.
    pub const FLAT: Self = Self(None);

    /// Checks `text`. The empty text is [`Namespace::FLAT`].
    pub fn parse(text: &str) -> Result<Self, NamespaceError> {
        if text.is_empty() {
            return Ok(Self::FLAT);
        }
        let path = RelPath::parse(text)?;
        if path.segments().any(|name| name == INDEX_NAME) {
            return Err(NamespaceError::Index);
        }
        let first = path.segments().next().unwrap_or_default();
        match RESERVED.iter().find(|name| **name == first) {
            Some(name) => Err(NamespaceError::Reserved(name)),
            None => Ok(Self(Some(text.into()))),
        }
    }

    /// The name, `""` for the flat dialect.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    pub fn is_flat(&self) -> bool {
        self.0.is_none()
    }

    /// The URL path of an index or of events. `root`: `/sync` or `/events`.
    pub fn below(&self, root: &str) -> String {
        match &self.0 {
            None => root.to_owned(),
            Some(name) => format!("{root}/{}", encode_path(name)),
        }
    }

    /// The URL path of a blob. In a namespace the last `/blob/` ends the namespace's name, so the slash after a folder
    /// called `blob` is encoded.
    pub fn blob(&self, path: &RelPath) -> String {
        let encoded = encode_path(path.as_str());
        match &self.0 {
            None => format!("/blob/{encoded}"),
            Some(name) => {
                // A later `/blob/` would be read as the end of the namespace.
                let mut url = format!("/{}/blob/", encode_path(name));
                for (i, segment) in encoded.split('/').enumerate() {
                    if i > 0 {
                        url.push_str(if url.ends_with("/blob") || url.ends_with("%2Fblob") { "%2F" } else { "/" });
                    }
                    url.push_str(segment);
                }
                url
            }
        }
    }

    /// The URL path of the versions of a path. In a namespace, the proxy separates the names at the last `/blob/` or
    /// `/versions/`, so the slashes of a name that contains such a folder are encoded.
    pub fn versions(&self, path: &RelPath) -> String {
        let encoded = encode_path(path.as_str());
        let Some(name) = &self.0 else { return format!("/versions/{encoded}") };
        let hide_slashes = |text: String| {
            let separates = text.split('/').any(|segment| matches!(segment, "blob" | "versions"));
            if separates { text.replace('/', "%2F") } else { text }
        };
        format!("/{}/versions/{}", hide_slashes(encode_path(name)), hide_slashes(encoded))
    }

    /// True if [`Namespace::blob`] encodes a slash. Not every proxy supports this.
    pub fn hides_slash(&self, path: &RelPath) -> bool {
        !self.is_flat() && path.ancestors().any(|above| above == "blob" || above.ends_with("/blob"))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Every byte but the unreserved ones of RFC 3986 and `/`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The path, percent-encoded per segment, as a URL holds it.
pub fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, ESCAPED).to_string()
}

/// Decodes the percent-encoded name of a device. `None`: the name is no UTF-8, or has control characters, which could
/// steer a terminal.
pub fn decode_name(raw: &str) -> Option<String> {
    let name = percent_decode_str(raw).decode_utf8().ok()?;
    (!name.chars().any(char::is_control)).then(|| name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_rejects_routes_and_bad_paths() {
        for good in ["team", "team/notes", "ü/a b", "health", "blobs", "a/blob", "a/sync/b", "a.b"] {
            assert_eq!(Namespace::parse(good).unwrap().as_str(), good);
        }
        assert_eq!(Namespace::parse(""), Ok(Namespace::FLAT));
        for name in RESERVED {
            assert_eq!(Namespace::parse(name), Err(NamespaceError::Reserved(name)));
            assert_eq!(Namespace::parse(&format!("{name}/x")), Err(NamespaceError::Reserved(name)));
        }
        for name in [INDEX_NAME, "a/.sync-index.json", ".sync-index.json/a"] {
            assert_eq!(Namespace::parse(name), Err(NamespaceError::Index));
        }
        for (bad, why) in [
            ("/a", PathError::EmptySegment),
            ("a/", PathError::EmptySegment),
            ("a//b", PathError::EmptySegment),
            ("..", PathError::Dot),
            ("a/../b", PathError::Dot),
            ("a\u{7}", PathError::Control),
            ("a\\b", PathError::Backslash),
            (".memsync", PathError::Private),
        ] {
            assert_eq!(Namespace::parse(bad), Err(NamespaceError::Name(why)), "{bad:?}");
        }
    }

    #[test]
    fn blob_url_encodes_slash_after_blob_folder() {
        let ns = Namespace::parse("team/a b").unwrap();
        for (path, url, hidden) in [
            ("x.md", "/team/a%20b/blob/x.md", false),
            ("d/x.md", "/team/a%20b/blob/d/x.md", false),
            ("blob", "/team/a%20b/blob/blob", false),
            ("a/blob", "/team/a%20b/blob/a/blob", false),
            ("blob/x", "/team/a%20b/blob/blob%2Fx", true),
            ("a/blob/x/y", "/team/a%20b/blob/a/blob%2Fx/y", true),
            ("blob/blob/x", "/team/a%20b/blob/blob%2Fblob%2Fx", true),
            ("blobs/x", "/team/a%20b/blob/blobs/x", false),
            ("nblob/x", "/team/a%20b/blob/nblob/x", false),
        ] {
            let path = RelPath::parse(path).unwrap();
            assert_eq!((ns.blob(&path), ns.hides_slash(&path)), (url.to_owned(), hidden));
            assert!(!Namespace::FLAT.hides_slash(&path));
        }
        assert_eq!(Namespace::FLAT.blob(&RelPath::parse("blob/x").unwrap()), "/blob/blob/x");
        assert_eq!((ns.below("/sync"), Namespace::FLAT.below("/sync")), ("/sync/team/a%20b".into(), "/sync".into()));
    }

    #[test]
    fn versions_url_encodes_slashes_of_ambiguous_names() {
        for (ns, path, url) in [
            ("", "blob/versions/x y", "/versions/blob/versions/x%20y"),
            ("team", "d/x.md", "/team/versions/d/x.md"),
            ("team/b", "versions", "/team/b/versions/versions"),
            ("team", "versions/x/y", "/team/versions/versions%2Fx%2Fy"),
            ("a/blob/b", "x/y", "/a%2Fblob%2Fb/versions/x/y"),
        ] {
            let path = RelPath::parse(path).unwrap();
            assert_eq!(Namespace::parse(ns).unwrap().versions(&path), url);
        }
    }
}
