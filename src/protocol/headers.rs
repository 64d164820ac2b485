//! Names of headers, preferences and error codes, and the text form of [`Precondition`].

use std::fmt;
use std::str::FromStr;

use crate::digest::NotMd5;
pub use crate::sync::Precondition;

/// Precondition of a flat PUT: `new`, or the MD5 that the path must hold. This is not the body digest of RFC 1864.
pub const CONTENT_MD5: &str = "content-md5";
/// On the 404 of a tombstone: the MD5 of the deleted content (`honest-412`).
pub const X_TOMBSTONE: &str = "x-tombstone";
/// Precondition of a namespaced write: the version that the path must have; 0 for a new path.
pub const IF_MATCH_VERSION: &str = "if-match-version";
/// The version of a blob or a tombstone, on answers of both dialects.
pub const X_VERSION: &str = "x-version";
/// RFC 7240. With [`RETURN_MINIMAL`] the answer to a namespaced write leaves out the index.
pub const PREFER: &str = "prefer";
/// RFC 7240: the answer to [`PREFER`].
pub const PREFERENCE_APPLIED: &str = "preference-applied";
pub const RETURN_MINIMAL: &str = "return=minimal";
/// The device that writes, percent-encoded.
pub const X_MEMSYNC_DEVICE: &str = "x-memsync-device";
/// Names a request in the logs of both sides.
pub const X_REQUEST_ID: &str = "x-request-id";
/// On a compressed flat PUT: the MD5 of the plain content (`encoding`).
pub const X_MEMSYNC_MD5: &str = "x-memsync-md5";
/// The time when a path expires and becomes a tombstone: RFC 3339, or [`NEVER`] (`versions`).
pub const X_MEMSYNC_EXPIRES: &str = "x-memsync-expires";
/// Removes an expiry.
pub const NEVER: &str = "never";
/// Prefix of the headers that carry a version's free metadata (`versions`).
pub const X_MEMSYNC_META: &str = "x-memsync-meta-";
/// On an index: the store has never stood at the history point that the request names.
pub const X_MEMSYNC_SET_BACK: &str = "x-memsync-set-back";
/// On the answer to a write: the history point of the store after the write.
pub const X_MEMSYNC_HISTORY: &str = "x-memsync-history";
/// `error_code` of a 412.
pub const PRECONDITION_FAILED: &str = "PRECONDITION_FAILED";

/// As `Content-MD5` and the frames of a batch carry it.
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
