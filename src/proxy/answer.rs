//! Answers: the errors of the protocol and the headers they share.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, LAST_MODIFIED, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;

use super::memory::{Allotment, SharedAllotment, hold};
use crate::digest::Md5;
use crate::path::PathError;
use crate::protocol::encoding::CodingError;
use crate::protocol::{ErrorContext, NamespaceError, PRECONDITION_FAILED, WireError, X_TOMBSTONE, X_VERSION};
use crate::store::{IndexEntry, StoreError};

pub type Answer = Response<Body>;

/// Why a request is refused.
pub enum Refusal {
    /// `wrong`: a token was shown, and it was not valid.
    Unauthorized {
        wrong: bool,
    },
    /// Too many requests, or too many failures from that address; may be tried again after this time.
    TooOften(Duration),
    /// The caller has as many connections open as it may.
    TooManyConnections,
    /// Known, but not for this.
    Forbidden(Forbidden),
    /// Who calls could not be found out.
    Unverified,
    /// Bytes.
    Quota {
        limit: u64,
        used: u64,
    },
    /// A name that crosses the border between two namespaces; says which.
    Border(String),
    NoSuchRoute,
    /// The methods there are, for `Allow`.
    Method(&'static str),
    Path(PathFault),
    Namespace(NamespaceError),
    PreconditionRequired,
    /// The namespaced dialect's: `If-Match-Version` is missing.
    VersionRequired,
    /// `If-Match-Version` is no number.
    BadVersion,
    /// `Content-MD5` is no digest of a body.
    BadDigest,
    /// The body has another digest than is promised.
    DigestMismatch(Md5),
    /// A precondition that is none; the text is the header's name.
    BadPrecondition(&'static str),
    /// Conditions of HTTP that are none of those there are.
    Condition,
    /// A header or a query that makes no sense; the text says which and why.
    BadHeader(&'static str),
    /// A lost race: what was asked for and what is held.
    Precondition {
        provided: Provided,
        held: Option<IndexEntry>,
    },
    /// A range of which nothing lies in the content, whose bytes these are.
    OutOfRange(u64),
    Absent,
    Tombstone(IndexEntry),
    /// A batch that is none as a whole: nothing of it was done.
    Batch(String),
    /// Not the content type of a batch.
    NoBatch,
    /// Bytes that would have been taken.
    TooLarge(u64),
    /// A coding of the body that is none of those there are, or more than one.
    Encoding,
    /// A body that could not be unpacked.
    Coding(CodingError),
    /// No turn in time.
    Busy,
    BodyTimeout,
    BodyBroken,
    Store(StoreError),
}

/// What a write that lost a race had asked for.
pub enum Provided {
    Md5(String),
    /// Of the namespaced dialect.
    Version(u64),
}

/// What a key is not for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    #[error("this key does not open the namespace {0:?}")]
    Namespace(String),
    #[error("this key may read and not write")]
    ReadOnly,
}

/// What is wrong with a name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    #[error("the path has a `%` without two hex digits after it")]
    Escape,
    #[error("`.sync-index.json` is the name of the index")]
    Reserved,
    #[error("the path is longer than any that can be stored")]
    TooLong,
    #[error(transparent)]
    Name(#[from] PathError),
}

impl From<PathFault> for Refusal {
    fn from(fault: PathFault) -> Self {
        Self::Path(fault)
    }
}

impl From<NamespaceError> for Refusal {
    fn from(fault: NamespaceError) -> Self {
        Self::Namespace(fault)
    }
}

impl From<CodingError> for Refusal {
    fn from(e: CodingError) -> Self {
        Self::Coding(e)
    }
}

impl From<StoreError> for Refusal {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::OtherNamespace { .. } | StoreError::NamespaceOccupied { .. } => Self::Border(e.to_string()),
            StoreError::TooLong { .. } => Self::Path(PathFault::TooLong),
            other => Self::Store(other),
        }
    }
}

impl Refusal {
    /// The answer; `id` names the request in the log.
    pub fn into_answer(self, id: &str) -> Answer {
        let mut extra = HeaderMap::new();
        match &self {
            Self::Unauthorized { .. } => insert(&mut extra, WWW_AUTHENTICATE, "Bearer"),
            Self::Unverified | Self::Busy | Self::TooManyConnections => insert(&mut extra, RETRY_AFTER, "5"),
            Self::Encoding => insert(&mut extra, ACCEPT_ENCODING, "zstd, gzip"),
            Self::OutOfRange(size) => insert(&mut extra, CONTENT_RANGE, &format!("bytes */{size}")),
            Self::TooOften(wait) => insert(&mut extra, RETRY_AFTER, &(wait.as_secs() + 1).to_string()),
            Self::Method(allowed) => insert(&mut extra, ALLOW, allowed),
            Self::Tombstone(entry) => {
                insert(&mut extra, X_TOMBSTONE, &entry.md5.to_string());
                insert(&mut extra, X_VERSION, &entry.version.to_string());
            }
            _ => {}
        }
        let (status, told) = self.into_told(id);
        let mut answer = json(status, &told);
        answer.headers_mut().extend(extra);
        answer
    }

    /// The status and what the body of the answer tells.
    pub fn into_told(self, id: &str) -> (StatusCode, WireError) {
        let plain = |status, code: &str, detail: &str| told(status, code, detail.to_owned(), None);
        match self {
            Self::Unauthorized { .. } => plain(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "this needs a valid token"),
            Self::Forbidden(why) => {
                let code = match why {
                    Forbidden::Namespace(_) => "NAMESPACE_FORBIDDEN",
                    Forbidden::ReadOnly => "READ_ONLY",
                };
                plain(StatusCode::FORBIDDEN, code, &why.to_string())
            }
            Self::Unverified => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "AUTH_UNAVAILABLE",
                "who this token belongs to cannot be found out for now; try again",
            ),
            Self::Quota { limit, used } => {
                let detail = format!("this would go beyond the quota: {used} of {limit} bytes are used");
                told(StatusCode::INSUFFICIENT_STORAGE, "QUOTA_EXCEEDED", detail, None)
            }
            Self::TooOften(_) => plain(
                StatusCode::TOO_MANY_REQUESTS,
                "TOO_MANY_REQUESTS",
                "too many requests, or too many tokens that were not valid; wait, then try again",
            ),
            Self::TooManyConnections => plain(
                StatusCode::TOO_MANY_REQUESTS,
                "TOO_MANY_CONNECTIONS",
                "this key has as many connections open as one may have; close some, then try again",
            ),
            Self::Border(detail) => told(StatusCode::CONFLICT, "OTHER_NAMESPACE", detail, None),
            Self::NoSuchRoute => plain(StatusCode::NOT_FOUND, "NO_SUCH_ROUTE", "there is nothing at this address"),
            Self::Method(allowed) => {
                let detail = format!("this address answers {allowed}");
                told(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", detail, None)
            }
            Self::Path(fault @ PathFault::TooLong) => {
                plain(StatusCode::URI_TOO_LONG, "PATH_TOO_LONG", &fault.to_string())
            }
            Self::Path(fault) => plain(StatusCode::BAD_REQUEST, "INVALID_PATH", &fault.to_string()),
            Self::Namespace(fault) => {
                let detail = format!("this is no name of a namespace: {fault}");
                told(StatusCode::BAD_REQUEST, "INVALID_NAMESPACE", detail, None)
            }
            Self::VersionRequired => plain(
                StatusCode::UNPROCESSABLE_ENTITY,
                "VERSION_REQUIRED",
                "send If-Match-Version: 0, or the version of the content this is to replace",
            ),
            Self::BadVersion => plain(StatusCode::BAD_REQUEST, "INVALID_VERSION", "If-Match-Version is not a number"),
            Self::BadDigest => plain(
                StatusCode::BAD_REQUEST,
                "INVALID_DIGEST",
                "in a namespace Content-MD5 is the MD5 of the body (32 lower-case hex digits)",
            ),
            Self::DigestMismatch(md5) => {
                let detail = format!(
                    "the body that came has the MD5 {md5}, not the one that its header promises; send it again"
                );
                told(StatusCode::BAD_REQUEST, "DIGEST_MISMATCH", detail, None)
            }
            Self::PreconditionRequired => plain(
                StatusCode::PRECONDITION_REQUIRED,
                "PRECONDITION_REQUIRED",
                "send Content-MD5: `new`, or the MD5 of the content this is to replace (or If-None-Match: *, or If-Match)",
            ),
            Self::BadPrecondition(header) => {
                let detail = format!("{header} is not an MD5 (32 lower-case hex digits)");
                told(StatusCode::BAD_REQUEST, "INVALID_PRECONDITION", detail, None)
            }
            Self::Condition => plain(
                StatusCode::BAD_REQUEST,
                "INVALID_PRECONDITION",
                "send If-None-Match: *, or If-Match with one MD5, and not both",
            ),
            Self::BadHeader(why) => plain(StatusCode::BAD_REQUEST, "INVALID_HEADER", why),
            Self::Precondition { provided, held } => {
                let mut context = ErrorContext {
                    current_md5: Some(held.map_or_else(|| "none".to_owned(), |e| e.md5.to_string())),
                    is_deleted: Some(held.is_some_and(|e| e.is_deleted)),
                    ..ErrorContext::default()
                };
                match provided {
                    Provided::Md5(md5) => context.provided_md5 = Some(md5),
                    Provided::Version(version) => {
                        context.provided_version = Some(version.to_string());
                        let current = held.map_or_else(|| "none".to_owned(), |e| e.version.to_string());
                        context.current_version = Some(current);
                    }
                }
                let detail = "the path holds something else than the request expects".to_owned();
                told(StatusCode::PRECONDITION_FAILED, PRECONDITION_FAILED, detail, Some(context))
            }
            Self::OutOfRange(size) => {
                let detail = format!("nothing of the content lies in that range: it has {size} bytes");
                told(StatusCode::RANGE_NOT_SATISFIABLE, "OUT_OF_RANGE", detail, None)
            }
            Self::Absent => plain(StatusCode::NOT_FOUND, "NOT_FOUND", "nothing is stored at this path"),
            Self::Tombstone(_) => plain(StatusCode::NOT_FOUND, "NOT_FOUND", "what was stored at this path was deleted"),
            Self::Batch(why) => told(StatusCode::BAD_REQUEST, "INVALID_BATCH", why, None),
            Self::NoBatch => plain(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "NOT_A_BATCH",
                "send a batch, with its Content-Type (application/vnd.memsync.batch)",
            ),
            Self::TooLarge(limit) => {
                let detail = format!("the body is larger than {limit} bytes");
                told(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", detail, None)
            }
            Self::Encoding => plain(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_ENCODING",
                "send the content as it is, or with one Content-Encoding: zstd or gzip",
            ),
            Self::Coding(e @ CodingError::Window) => plain(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", &e.to_string()),
            Self::Coding(e @ CodingError::Failed(..)) => {
                tracing::error!(id, "{e}");
                plain(StatusCode::SERVICE_UNAVAILABLE, "ENCODING_FAILED", "the body could not be unpacked; try again")
            }
            Self::Coding(e) => {
                let detail = format!("the body cannot be unpacked: {e}; send it again");
                told(StatusCode::BAD_REQUEST, "INVALID_ENCODING", detail, None)
            }
            Self::Busy => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "BUSY",
                "too many bodies are in flight, of this key or of all; wait, then try again",
            ),
            Self::BodyTimeout => plain(StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT", "the body stopped coming"),
            Self::BodyBroken => plain(StatusCode::BAD_REQUEST, "BODY_BROKEN", "the body was cut off or malformed"),
            Self::Store(e @ StoreError::Full(_)) => {
                tracing::error!(id, "{e}");
                plain(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "STORAGE_FULL",
                    "the disk of the proxy is full; nothing was written. Make room there, or ask whoever runs it",
                )
            }
            Self::Store(e) => {
                tracing::error!(id, "{e}");
                plain(StatusCode::SERVICE_UNAVAILABLE, "STORAGE_FAILED", "the storage failed; nothing was acknowledged")
            }
        }
    }
}

fn told(status: StatusCode, code: &str, detail: String, context: Option<ErrorContext>) -> (StatusCode, WireError) {
    (status, WireError { detail, error_code: Some(code.to_owned()), context })
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with_body(status, "application/json", body.into()),
        Err(e) => {
            tracing::error!("an answer could not be written as JSON: {e}");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// An answer with a body of known length.
pub fn with_body(status: StatusCode, content_type: &'static str, body: bytes::Bytes) -> Answer {
    let length = body.len();
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    answer
}

/// A 200 whose content holds `memory` until it is read.
pub fn with_held_body(content_type: &'static str, content: bytes::Bytes, mut memory: Allotment) -> Answer {
    memory.shrink_to(content.len() as u64);
    let memory: SharedAllotment = Arc::new(memory);
    let mut answer = with_body(StatusCode::OK, content_type, hold(content, memory.clone()));
    // For the content as it is packed.
    answer.extensions_mut().insert(memory);
    answer
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// Sets a header whose value is known to be printable ASCII; any other is left out.
pub fn insert(headers: &mut HeaderMap, name: impl http::header::IntoHeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The `ETag` of a blob.
pub fn etag(entry: &IndexEntry) -> String {
    format!("\"{}\"", entry.md5)
}

/// `ETag`, `Last-Modified` and `X-Version` of a blob.
pub fn describe(headers: &mut HeaderMap, entry: &IndexEntry) {
    insert(headers, ETAG, &etag(entry));
    insert(headers, X_VERSION, &entry.version.to_string());
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    if let Ok(date) = printer.timestamp_to_rfc9110_string(&timestamp(entry.version)) {
        insert(headers, LAST_MODIFIED, &date);
    }
}

/// A time of the store, clamped to what a timestamp can be.
pub fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
}

/// RFC 3339, UTC, milliseconds.
pub fn rfc3339(ms: u64) -> String {
    timestamp(ms).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
