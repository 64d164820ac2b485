//! Keys of the objects in a bucket. Other proxies use the same keys, so that a bucket can change hands.

use object_store::path::Path as Key;

use super::super::StoreError;
use crate::path::{PRIVATE_DIR, RelPath};
use crate::protocol::INDEX_NAME;

/// Folder beside the prefix with copies of earlier versions.
pub(super) const VERSIONS: &str = "versions";
/// Folder beside the prefix with notes of paths that expire.
pub(super) const EXPIRIES: &str = "expires";

/// S3's limit on a key.
const MAX_KEY_BYTES: usize = 1024;

/// The keys of a store's objects.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    prefix: String,
}

impl Layout {
    /// Slashes at the ends of `prefix` do not count. It may be empty.
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_matches('/').to_owned() }
    }

    fn key(parts: &[&str]) -> Result<Key, StoreError> {
        let text = joined(parts);
        Key::parse(&text).map_err(|e| StoreError::S3(format!("{text:?} cannot be a key: {e}")))
    }

    /// The key of a name that clients choose. A long one is [`StoreError::TooLong`].
    fn client_key(&self, name: &[&str]) -> Result<Key, StoreError> {
        let key = Self::key(&[&[self.prefix.as_str()], name].concat())?;
        if key.as_ref().len() > MAX_KEY_BYTES {
            let name = joined(name);
            return Err(StoreError::TooLong {
                room: MAX_KEY_BYTES.saturating_sub(key.as_ref().len() - name.len()),
                name,
            });
        }
        Ok(key)
    }

    pub(super) fn blob(&self, ns: &str, path: &RelPath) -> Result<Key, StoreError> {
        self.client_key(&[ns, path.as_str()])
    }

    pub(super) fn index(&self, ns: &str) -> Result<Key, StoreError> {
        self.client_key(&[ns, INDEX_NAME])
    }

    /// A key below the prefix that no client's path can name.
    pub(super) fn private(&self, name: &str) -> Result<Key, StoreError> {
        Self::key(&[&self.prefix, PRIVATE_DIR, name])
    }

    /// A key beside the prefix, which other proxies do not list. With an empty prefix it is a private key inside the bucket.
    pub(super) fn beside(&self, name: &str) -> Result<Key, StoreError> {
        Self::key(&[&format!("{}{PRIVATE_DIR}", self.prefix), name])
    }

    /// The folder, beside the prefix, with the copies of a blob's earlier versions. It is a hash, because the blob's key may
    /// have the maximum length already. The hash includes the namespace: an object may pass from the flat namespace to
    /// another one, whose users must not read the versions from before.
    pub(super) fn versions_folder(&self, ns: &str, path: &RelPath) -> String {
        let mut hasher = blake3::Hasher::new();
        if !ns.is_empty() {
            hasher.update(ns.as_bytes()).update(b"\n");
        }
        hasher.update(b"/").update(path.as_str().as_bytes());
        format!("{VERSIONS}/{}", &hasher.finalize().to_hex()[..32])
    }

    /// The folder of a namespace; `None` is the whole bucket.
    pub(super) fn folder(&self, ns: &str) -> Result<Option<Key>, StoreError> {
        if self.prefix.is_empty() && ns.is_empty() {
            return Ok(None);
        }
        Self::key(&[&self.prefix, ns]).map(Some)
    }

    /// The part of `key` after the prefix and the namespace; `None` if it is not below both.
    pub(super) fn name_in<'a>(&self, ns: &str, key: &'a str) -> Option<&'a str> {
        [self.prefix.as_str(), ns]
            .iter()
            .filter(|part| !part.is_empty())
            .try_fold(key, |rest, part| rest.strip_prefix(part)?.strip_prefix('/'))
    }
}

/// The name of a file of `ns` in the flat namespace.
pub(super) fn flat_name(ns: &str, name: &str) -> String {
    if ns.is_empty() { name.to_owned() } else { format!("{ns}/{name}") }
}

fn joined(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    #[test]
    fn keys_match_other_proxies() {
        let layout = Layout::new("/memory/");
        assert_eq!(layout.blob("", &path("topics/ai.md")).unwrap().as_ref(), "memory/topics/ai.md");
        assert_eq!(layout.blob("team/a", &path("x y%é.md")).unwrap().as_ref(), "memory/team/a/x y%é.md");
        assert_eq!(layout.index("").unwrap().as_ref(), "memory/.sync-index.json");
        assert_eq!(layout.index("team").unwrap().as_ref(), "memory/team/.sync-index.json");
        assert_eq!(layout.private("keys").unwrap().as_ref(), "memory/.memsync/keys");
        assert_eq!(layout.beside("versions/x").unwrap().as_ref(), "memory.memsync/versions/x");
        assert_eq!(layout.name_in("", "memory.memsync/versions/x"), None, "no other proxy lists it");
        assert_eq!(Layout::new("").beside("x").unwrap().as_ref(), ".memsync/x");
        let hash = blake3::hash(b"/team/a/x").to_hex();
        assert_eq!(layout.versions_folder("", &path("team/a/x")), format!("versions/{}", &hash[..32]));
        let apart = [("", "team/a/x"), ("team", "a/x"), ("team/a", "x"), ("", "team/a/y"), ("team", "a/y")];
        let folders: BTreeSet<_> = apart.iter().map(|(ns, name)| layout.versions_folder(ns, &path(name))).collect();
        assert_eq!(folders.len(), apart.len(), "each namespace has its own versions of one object");
        assert_eq!(layout.name_in("team", "memory/team/a.md"), Some("a.md"));
        assert_eq!(layout.name_in("team", "memory/teams/a.md"), None);
        let bare = Layout::new("");
        assert_eq!(bare.blob("", &path("a")).unwrap().as_ref(), "a");
        assert_eq!((bare.name_in("", "a/b"), bare.folder("").unwrap()), (Some("a/b"), None));
    }

    #[test]
    fn long_key_is_refused() {
        let layout = Layout::new("memory");
        let folders = |n| vec!["x".repeat(99); n].join("/");
        let long = |len: usize| path(&format!("{}/{}", folders(10), "x".repeat(len)));
        assert_eq!(layout.blob("", &long(17)).unwrap().as_ref().len(), MAX_KEY_BYTES);
        assert!(matches!(layout.blob("", &long(18)), Err(StoreError::TooLong { room: 1017, .. })));
        assert!(layout.blob("a", &long(15)).is_ok() && layout.blob("a", &long(16)).is_err());
        assert!(layout.index(&folders(10)).is_ok());
        assert!(matches!(layout.index(&format!("{}/x", folders(10))), Err(StoreError::TooLong { room: 1017, .. })));
    }
}
