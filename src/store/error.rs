//! [`StoreError`] and its texts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// A namespace as error texts name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceName(pub String);

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("the flat namespace") } else { write!(f, "the namespace {:?}", self.0) }
    }
}

/// Why an operation failed. Nothing was acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("{}: another memsync proxy uses this store; stop it or give --store another directory", .0.display())]
    Locked(PathBuf),
    #[error(
        "{}: written by a newer memsync (format {found}, this one knows {known}); upgrade memsync", .path.display()
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{}: not a memsync store ({why}); give --store another directory", .path.display())]
    NotAStore { path: PathBuf, why: String },
    #[error("{}: {why}", .path.display())]
    Io { path: PathBuf, why: String },
    #[error("the store's database failed: {0}")]
    Database(String),
    #[error("the disk of the store is full ({0}); make room, and writes work again")]
    Full(String),
    /// S3 answered with an error, or did not answer. A retry may succeed.
    #[error("the S3 store failed: {0}")]
    S3(String),
    /// S3 denies the request or does not support it. A retry fails, too.
    #[error("the S3 store failed: {0}")]
    S3Denied(String),
    /// The options are wrong, or the store lacks a required feature.
    #[error("{0}")]
    S3Refused(String),
    /// The path's object belongs to another namespace.
    #[error("{path:?} belongs to {namespace}; ask for it there")]
    OtherNamespace { path: String, namespace: NamespaceName },
    /// The new namespace would take over files of `above`.
    #[error(
        "the namespace {namespace:?} cannot begin: {above} has files in a folder of that name; choose another name"
    )]
    NamespaceOccupied { namespace: String, above: NamespaceName },
    /// The key, which includes the prefix, would be longer than the store allows.
    #[error("{name:?} is too long: this store takes names of {room} bytes, namespace included")]
    TooLong { name: String, room: usize },
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub(crate) fn io(path: &Path, e: &io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(format!("{}: {e}", path.display())),
            _ => Self::Io { path: path.to_owned(), why: e.to_string() },
        }
    }

    /// The error for anyone who can reach the proxy: without paths, addresses and bucket names.
    pub fn public_message(&self) -> String {
        match self {
            Self::Io { why, .. } => format!("the disk of the store failed: {why}"),
            Self::Closed => "the store is closed".to_owned(),
            Self::Full(_) => "the disk of the store is full".to_owned(),
            Self::S3(why) | Self::S3Denied(why) => public_s3_message(why).to_owned(),
            // These errors may quote a path.
            _ => "the storage failed; see the proxy's log".to_owned(),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(e.to_string()),
            _ => Self::Database(e.to_string()),
        }
    }
}

/// Describes an S3 error by its code, which stands in parentheses at the end or is the whole text.
fn public_s3_message(why: &str) -> &'static str {
    let code = why.strip_suffix(')').and_then(|rest| rest.rsplit_once('(')).map_or(why, |(_, code)| code);
    match code {
        "NoSuchBucket" => "the S3 bucket does not exist",
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => "S3 denies the proxy access to the bucket",
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            "S3 rejects the proxy's keys"
        }
        "RequestTimeTooSkewed" => "S3 rejects the proxy's requests because its clock is wrong; set the clock",
        "SlowDown" | "ServiceUnavailable" | "InternalError" => "S3 reports an internal error or too many requests",
        _ => "S3 failed or cannot be reached; see the proxy's log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_s3_message_follows_the_error_code() {
        for (why, word) in [
            ("The specified bucket does not exist (NoSuchBucket)", "not exist"),
            ("AccessDenied", "denies"),
            ("The key AKID1 is unknown (InvalidAccessKeyId)", "keys"),
            ("Generic S3 error: https://10.0.0.1/notes: connection refused", "reached"),
        ] {
            let message = public_s3_message(why);
            assert!(message.contains(word), "{why}: {message}");
        }
    }
}
