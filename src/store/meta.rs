//! Metadata of a blob's version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything a store keeps about a version besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlobMeta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The name that the writing device gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The name of the key that authorized the write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When the path expires and becomes a tombstone: milliseconds since the epoch, or [`BlobMeta::NO_EXPIRY`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Values that clients set, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub free: BTreeMap<String, String>,
}

impl BlobMeta {
    /// An expiry that never comes. A write with it takes back an inherited one.
    pub const NO_EXPIRY: u64 = u64::MAX;

    /// Limit on the names in `free`. Each becomes an HTTP header, and many clients accept only 100 headers.
    pub const MAX_NAMES: usize = 32;
    /// Limit on the size of `free`, by [`stored_size`]. S3 takes 2 KB of metadata, which must also hold the other fields.
    pub const MAX_FREE_BYTES: usize = 1024;

    /// Fills the fields that a write left out from `old`, the metadata of the live version that it replaces. The writer's
    /// names are not inherited, and neither are values that no longer fit.
    #[must_use]
    pub fn inherit(mut self, old: &Self) -> Self {
        self.content_type = self.content_type.or_else(|| old.content_type.clone());
        self.expires = self.expires.or(old.expires);
        self.add_missing(&old.free);
        self
    }

    /// True if `free` is within its limits.
    pub fn fits(&self) -> bool {
        self.free.len() <= Self::MAX_NAMES && self.free_size() <= Self::MAX_FREE_BYTES
    }

    /// Drops values until `free` is within its limits. The first names stay.
    #[must_use]
    pub fn cut_to_fit(mut self) -> Self {
        let all = std::mem::take(&mut self.free);
        self.add_missing(&all);
        self
    }

    fn add_missing(&mut self, free: &BTreeMap<String, String>) {
        let mut size = self.free_size();
        for (name, value) in free {
            let more = pair_size(name, value);
            let has_room = self.free.len() < Self::MAX_NAMES && size + more <= Self::MAX_FREE_BYTES;
            if has_room && !self.free.contains_key(name) {
                self.free.insert(name.clone(), value.clone());
                size += more;
            }
        }
    }

    fn free_size(&self) -> usize {
        self.free.iter().map(|(name, value)| pair_size(name, value)).sum()
    }

    /// The part that a tombstone keeps: the device and key that deleted the path.
    #[must_use]
    pub fn for_tombstone(self) -> Self {
        Self { device: self.device, key: self.key, ..Self::default() }
    }
}

/// Bytes that `text` takes in S3 metadata, as JSON with unprintable bytes escaped.
pub fn stored_size(text: &str) -> usize {
    let size = |byte| match byte {
        b'"' | b'\\' => 2,
        b'%' | 0x7f.. => 3,
        b' '.. => 1,
        _ => 6,
    };
    text.bytes().map(size).sum()
}

/// A name with its value, quotes and separators included.
fn pair_size(name: &str, value: &str) -> usize {
    stored_size(name) + stored_size(value) + r#""":"","#.len()
}
