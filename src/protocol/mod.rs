//! What agent and proxy share: wire types, header names, capabilities.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{Md5, NotMd5};

pub mod batch;
pub mod encoding;
mod history;
mod namespace;
mod pin;
mod transport;

pub use crate::sync::Precondition;
pub use history::HistoryPoint;
pub use namespace::{INDEX_NAME, Namespace, NamespaceError};
pub use pin::{NotAPin, Pin};
pub use transport::{install_provider, is_loopback};

/// Precondition of a flat PUT: `new` or the md5 the server must hold. Not the body digest of RFC 1864.
pub const CONTENT_MD5: &str = "content-md5";
/// On the 404 of a tombstone: the md5 of what was deleted (`honest-412`).
pub const X_TOMBSTONE: &str = "x-tombstone";
/// What a namespaced write expects: 0, or the version that the path must have.
pub const IF_MATCH_VERSION: &str = "if-match-version";
/// The version of a blob or a tombstone, on answers of the namespaced dialect.
pub const X_VERSION: &str = "x-version";
/// RFC 7240; with [`RETURN_MINIMAL`] a namespaced write is answered without the index.
pub const PREFER: &str = "prefer";
/// RFC 7240, on the answer to [`PREFER`].
pub const PREFERENCE_APPLIED: &str = "preference-applied";
pub const RETURN_MINIMAL: &str = "return=minimal";
/// The device that writes, percent-encoded.
pub const X_MEMSYNC_DEVICE: &str = "x-memsync-device";
/// Names a request in the logs of both sides.
pub const X_REQUEST_ID: &str = "x-request-id";
/// Of a flat PUT: the MD5 that its plain content must have (`encoding`).
pub const X_MEMSYNC_MD5: &str = "x-memsync-md5";
/// When a path becomes a tombstone by itself: RFC 3339, or [`NEVER`] (`versions`).
pub const X_MEMSYNC_EXPIRES: &str = "x-memsync-expires";
/// Takes an expiry back.
pub const NEVER: &str = "never";
/// Beginning of the headers that carry a version's free metadata (`versions`).
pub const X_MEMSYNC_META: &str = "x-memsync-meta-";
/// On an index: the store has never stood at the [`HistoryPoint`] that the request names.
pub const X_MEMSYNC_SET_BACK: &str = "x-memsync-set-back";
/// On the answer to a write: the [`HistoryPoint`] where the store stands with it.
pub const X_MEMSYNC_HISTORY: &str = "x-memsync-history";
/// `error_code` of a 412.
pub const PRECONDITION_FAILED: &str = "PRECONDITION_FAILED";

/// Capabilities, as `GET /health` names them.
pub mod capability {
    pub const HONEST_412: &str = "honest-412";
    pub const STRONG_INDEX: &str = "strong-index";
    pub const INDEX_ETAG: &str = "index-etag";
    pub const DELTA: &str = "delta";
    /// A delta from the index with a known ETag, where there is no cursor.
    pub const ETAG_DELTA: &str = "etag-delta";
    pub const EVENTS: &str = "events";
    pub const HTTP_PRECONDITIONS: &str = "http-preconditions";
    /// `%2F` inside a namespaced path is part of it, and never ends the namespace.
    pub const ENCODED_SLASH: &str = "encoded-slash";
    pub const BATCH: &str = "batch";
    pub const VERSIONS: &str = "versions";
    pub const ENCODING: &str = "encoding";
}

/// `GET /health`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    pub status: String,
    pub storage: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// The proxy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What is wrong, in words, where `status` is not `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What will be wrong soon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One file of the index on the wire.
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
    /// The [`HistoryPoint`] where this index stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_history: Option<String>,
    /// Present and true where only entries changed since the asked cursor (`delta`) or ETag (`etag-delta`) are listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delta: bool,
    /// Of a delta from an ETag: which, without quotes.
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
    /// Who wrote it.
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

/// `GET /versions/{path}`: the newest first, beginning with what the path holds now.
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

/// What a 412 tells.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ErrorContext {
    /// The md5 held, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_md5: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provided_md5: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_deleted: Option<bool>,
    /// The version held (namespaced dialect); 0 for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub current_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub provided_version: Option<String>,
}

/// Proxies write versions in either form; anything else says nothing.
fn text_or_number<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(d)? {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

impl fmt::Display for Precondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Holds(md5) => md5.fmt(f),
        }
    }
}

impl FromStr for Precondition {
    type Err = NotMd5;
    fn from_str(s: &str) -> Result<Self, NotMd5> {
        if s == "new" { Ok(Self::New) } else { s.parse().map(Self::Holds) }
    }
}

/// A percent-encoded name of a machine; `None`: it is no text, or could steer a terminal.
pub fn decode_name(raw: &str) -> Option<String> {
    let name = percent_encoding::percent_decode_str(raw).decode_utf8().ok()?;
    (!name.chars().any(char::is_control)).then(|| name.into_owned())
}

/// `path` percent-encoded per segment, as it stands in a URL.
pub fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(b)),
            _ => {
                out.push('%');
                out.push(char::from(b"0123456789ABCDEF"[usize::from(b >> 4)]));
                out.push(char::from(b"0123456789ABCDEF"[usize::from(b & 15)]));
            }
        }
    }
    out
}
