//! What the bucket holds: keys, and what stands in an object's user metadata. The names are the field's, so that a
//! bucket can change hands between proxies; what is only ours begins with `memsync-`.

use std::collections::BTreeMap;

use object_store::path::Path as Key;
use object_store::{Attribute, AttributeValue, Attributes};

use super::super::StoreError;
use crate::digest::Md5;
use crate::path::{PRIVATE_DIR, RelPath};
use crate::protocol::INDEX_NAME;

/// Below which copies of what blobs held are, in the place beside the prefix.
pub const EARLIER: &str = "versions";
/// Below which it is noted when paths expire, in the place beside the prefix.
pub const EXPIRIES: &str = "expires";

/// Longest key, bytes.
const LONGEST: usize = 1024;

const CONTENT_MD5: &str = "content-md5";
const IS_DELETED: &str = "is-deleted";
const VERSION: &str = "version";
const WRITE: &str = "memsync-write";

/// Where things are in the bucket.
#[derive(Debug, Clone)]
pub struct Layout {
    prefix: String,
}

impl Layout {
    /// `prefix` without slashes at its ends; it may be empty.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_matches('/').to_owned() }
    }

    fn key(parts: &[&str]) -> Result<Key, StoreError> {
        let text = joined(parts);
        Key::parse(&text).map_err(|e| StoreError::S3(format!("{text:?} cannot be a key: {e}")))
    }

    /// The key of what clients name, where there is room for it.
    fn named(&self, name: &[&str]) -> Result<Key, StoreError> {
        let key = Self::key(&[&[self.prefix.as_str()], name].concat())?;
        if key.as_ref().len() > LONGEST {
            let name = joined(name);
            return Err(StoreError::TooLong { room: LONGEST.saturating_sub(key.as_ref().len() - name.len()), name });
        }
        Ok(key)
    }

    pub fn blob(&self, ns: &str, path: &RelPath) -> Result<Key, StoreError> {
        self.named(&[ns, path.as_str()])
    }

    pub fn index(&self, ns: &str) -> Result<Key, StoreError> {
        self.named(&[ns, INDEX_NAME])
    }

    /// Where no path of a client leads.
    pub fn private(&self, name: &str) -> Result<Key, StoreError> {
        Self::key(&[&self.prefix, PRIVATE_DIR, name])
    }

    /// What is ours and no other proxy shall list: beside the prefix. Where that is empty there is no beside, and it is
    /// where no path of a client leads.
    pub fn beside(&self, name: &str) -> Result<Key, StoreError> {
        Self::key(&[&format!("{}{PRIVATE_DIR}", self.prefix), name])
    }

    /// The folder of the copies of what a blob held, in the place beside the prefix. A hash: a key has its longest
    /// length, and the name of the blob may need it all. Namespace and path are told apart by what neither may contain:
    /// the object of a folder's file may come to be a namespace's, but what it held before is for nobody there to read.
    pub fn earlier(&self, ns: &str, path: &RelPath) -> String {
        let mut hasher = blake3::Hasher::new();
        if !ns.is_empty() {
            hasher.update(ns.as_bytes()).update(b"\n");
        }
        hasher.update(b"/").update(path.as_str().as_bytes());
        format!("{EARLIER}/{}", &hasher.finalize().to_hex()[..32])
    }

    /// Below which all of a namespace is; `None` is the whole bucket.
    pub fn folder(&self, ns: &str) -> Result<Option<Key>, StoreError> {
        if self.prefix.is_empty() && ns.is_empty() {
            return Ok(None);
        }
        Self::key(&[&self.prefix, ns]).map(Some)
    }

    /// What stands after the prefix and the namespace, where `key` is below both.
    pub fn below<'a>(&self, ns: &str, key: &'a str) -> Option<&'a str> {
        [self.prefix.as_str(), ns]
            .iter()
            .filter(|part| !part.is_empty())
            .try_fold(key, |rest, part| rest.strip_prefix(part)?.strip_prefix('/'))
    }
}

fn joined(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join("/")
}

/// What an object's metadata says, as far as it can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    pub md5: Option<Md5>,
    pub is_deleted: bool,
    pub version: Option<u64>,
    /// Names the write; of ours only.
    pub write: Option<String>,
    pub content_type: Option<String>,
    /// Further metadata of ours, by its name after `memsync-`, decoded.
    pub ours: BTreeMap<String, String>,
}

impl Described {
    /// When it expires: milliseconds since the epoch.
    pub fn expires(&self) -> Option<u64> {
        self.ours.get("expires").and_then(|at| at.parse().ok())
    }

    pub fn read(attributes: &Attributes) -> Self {
        let mut described = Self::default();
        for (attribute, value) in attributes {
            match attribute {
                Attribute::ContentType => described.content_type = Some(value.to_string()),
                Attribute::Metadata(name) => described.take(&name.to_ascii_lowercase(), value.trim()),
                _ => {}
            }
        }
        described
    }

    fn take(&mut self, name: &str, value: &str) {
        match name {
            CONTENT_MD5 => self.md5 = value.trim_matches('"').to_ascii_lowercase().parse().ok(),
            IS_DELETED => self.is_deleted = value.eq_ignore_ascii_case("true"),
            VERSION => self.version = value.parse().ok(),
            WRITE => self.write = Some(value.to_owned()),
            _ => {
                if let Some(name) = name.strip_prefix("memsync-") {
                    self.ours.insert(name.to_owned(), decode(value));
                }
            }
        }
    }

    pub fn written(&self) -> Attributes {
        let mut attributes = Attributes::new();
        let mut set = |name: String, value: String| {
            attributes.insert(Attribute::Metadata(name.into()), AttributeValue::from(value));
        };
        if let Some(md5) = self.md5 {
            set(CONTENT_MD5.to_owned(), md5.to_string());
        }
        set(IS_DELETED.to_owned(), self.is_deleted.to_string());
        if let Some(version) = self.version {
            set(VERSION.to_owned(), version.to_string());
        }
        if let Some(write) = &self.write {
            set(WRITE.to_owned(), write.clone());
        }
        for (name, value) in &self.ours {
            set(format!("memsync-{name}"), encode(value));
        }
        if let Some(content_type) = self.content_type.as_ref().filter(|t| http::HeaderValue::from_str(t).is_ok()) {
            attributes.insert(Attribute::ContentType, AttributeValue::from(content_type.clone()));
        }
        attributes
    }
}

/// Text as it may stand in a header: what is not printable ASCII, and `%`, as `%XX`. Spaces at the ends would be lost.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let plain = byte.is_ascii_graphic() && byte != b'%' || byte == b' ' && at != 0 && at != last;
        if plain {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    out
}

/// What [`encode`] made; an escape that is none stands for itself.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit =
            |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (bytes[at], digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    #[test]
    fn keys_are_those_of_the_field() {
        let layout = Layout::new("/memory/");
        assert_eq!(layout.blob("", &path("topics/ai.md")).unwrap().as_ref(), "memory/topics/ai.md");
        assert_eq!(layout.blob("team/a", &path("x y%é.md")).unwrap().as_ref(), "memory/team/a/x y%é.md");
        assert_eq!(layout.index("").unwrap().as_ref(), "memory/.sync-index.json");
        assert_eq!(layout.index("team").unwrap().as_ref(), "memory/team/.sync-index.json");
        assert_eq!(layout.private("keys").unwrap().as_ref(), "memory/.memsync/keys");
        assert_eq!(layout.beside("versions/x").unwrap().as_ref(), "memory.memsync/versions/x");
        assert_eq!(layout.below("", "memory.memsync/versions/x"), None, "no other proxy lists it");
        assert_eq!(Layout::new("").beside("x").unwrap().as_ref(), ".memsync/x");
        let hash = blake3::hash(b"/team/a/x").to_hex();
        assert_eq!(layout.earlier("", &path("team/a/x")), format!("versions/{}", &hash[..32]));
        let apart = [("", "team/a/x"), ("team", "a/x"), ("team/a", "x"), ("", "team/a/y"), ("team", "a/y")];
        let folders: BTreeSet<_> = apart.iter().map(|(ns, name)| layout.earlier(ns, &path(name))).collect();
        assert_eq!(folders.len(), apart.len(), "one object, and each who asks for it has a past of its own");
        assert_eq!(layout.below("team", "memory/team/a.md"), Some("a.md"));
        assert_eq!(layout.below("team", "memory/teams/a.md"), None);
        let bare = Layout::new("");
        assert_eq!(bare.blob("", &path("a")).unwrap().as_ref(), "a");
        assert_eq!((bare.below("", "a/b"), bare.folder("").unwrap()), (Some("a/b"), None));
    }

    #[test]
    fn a_key_has_its_longest_length() {
        let layout = Layout::new("memory");
        let folders = |n| vec!["x".repeat(99); n].join("/");
        let long = |len: usize| path(&format!("{}/{}", folders(10), "x".repeat(len)));
        assert_eq!(layout.blob("", &long(17)).unwrap().as_ref().len(), LONGEST);
        assert!(matches!(layout.blob("", &long(18)), Err(StoreError::TooLong { room: 1017, .. })));
        assert!(layout.blob("a", &long(15)).is_ok() && layout.blob("a", &long(16)).is_err());
        assert!(layout.index(&folders(10)).is_ok());
        assert!(matches!(layout.index(&format!("{}/x", folders(10))), Err(StoreError::TooLong { room: 1017, .. })));
    }

    #[test]
    fn metadata_comes_back_as_it_was_written() {
        let described = Described {
            md5: Some(Md5::of(b"a")),
            is_deleted: true,
            version: Some(1_700_000_000_123),
            write: Some("w1".to_owned()),
            content_type: Some("text/markdown; charset=utf-8".to_owned()),
            ours: [("device", "büro 7"), ("odd", " 100%é "), ("empty", "")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        let attributes = described.written();
        assert_eq!(Described::read(&attributes), described);
        let text = |name: &'static str| attributes.get(&Attribute::Metadata(name.into())).map_or("", |v| v.as_ref());
        assert_eq!(text("is-deleted"), "true");
        assert_eq!(text("content-md5"), "0cc175b9c0f1b6a831c399e269772661");
        assert_eq!(text("memsync-device"), "b%C3%BCro 7");
        assert!(attributes.iter().all(|(_, value)| value.is_ascii()));
    }

    #[test]
    fn odd_metadata_is_unknown_rather_than_an_error() {
        let mut attributes = Attributes::new();
        for (name, value) in
            [("Content-MD5", "\"0CC175B9C0F1B6A831C399E269772661\""), ("Is-Deleted", "True"), ("version", "soon")]
        {
            attributes.insert(Attribute::Metadata(name.into()), value.into());
        }
        let described = Described::read(&attributes);
        assert_eq!((described.md5, described.is_deleted, described.version), (Some(Md5::of(b"a")), true, None));
        attributes.insert(Attribute::Metadata("Content-MD5".into()), "1B2M2Y8AsgTpgAmY7PhCfg==".into());
        assert_eq!(Described::read(&attributes).md5, None, "a digest in base64 is another header's");
        assert_eq!(Described::read(&Attributes::new()), Described::default());
    }
}
