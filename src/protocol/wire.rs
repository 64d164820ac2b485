//! The JSON bodies of the protocol.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Md5;

/// A time in milliseconds since the epoch, clamped to the range of timestamps.
pub fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
}

/// A time in milliseconds since the epoch as RFC 3339 in UTC.
pub fn rfc3339(ms: u64) -> String {
    timestamp(ms).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// `GET /health`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    pub status: String,
    pub storage: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// The proxy's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The fault in words, where `status` is not `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Conditions that will become faults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One file of [`WireIndex`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireEntry {
    pub md5: Md5,
    /// RFC 3339, milliseconds, UTC.
    #[serde(default)]
    pub last_modified: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub is_deleted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// `GET /sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireIndex {
    pub files: BTreeMap<String, WireEntry>,
    #[serde(default)]
    pub index_last_modified: String,
    /// Namespaced dialect: grows with the versions of the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_epoch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_cursor: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone_floor: Option<u64>,
    /// The [`HistoryPoint`](super::HistoryPoint) of this index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_history: Option<String>,
    /// True if the index lists only the entries that changed since the requested cursor (`delta`) or ETag (`etag-delta`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delta: bool,
    /// The ETag, without quotes, that a delta from an ETag starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_base: Option<String>,
}

/// One version of a path: the current one or an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireVersion {
    /// Its number, for `GET /blob/{path}?version=N`.
    pub version: u64,
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
    pub is_deleted: bool,
    /// RFC 3339, milliseconds, UTC.
    pub last_modified: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The device that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The name of the key it was written with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// `GET /versions/{path}`: the newest first, beginning with the current one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireVersions {
    pub path: String,
    pub versions: Vec<WireVersion>,
}

/// The body of every error answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WireError {
    pub detail: String,
    pub error_code: Option<String>,
    pub context: Option<ErrorContext>,
}

/// The facts that a 412 gives about the path.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ErrorContext {
    /// The MD5 that the path holds, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_md5: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provided_md5: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_deleted: Option<bool>,
    /// The version that the path holds (namespaced dialect); 0 if it has no version.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub current_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub provided_version: Option<String>,
}

/// Proxies write versions as text or as numbers. Any other value counts as missing.
fn text_or_number<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(d)? {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}
