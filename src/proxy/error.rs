//! [`ApiError`]: a request that fails, with its status, `error_code` and headers.

use std::time::Duration;

use http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};

use super::auth::caller::AccessDenied;
use super::limits::memory::MemoryBusy;
use super::response::{HttpResponse, json, set_header};
use crate::digest::Md5;
use crate::path::PathError;
use crate::protocol::encoding::CodingError;
use crate::protocol::{ErrorContext, NamespaceError, PRECONDITION_FAILED, WireError, X_TOMBSTONE, X_VERSION};
use crate::store::{IndexEntry, StoreError};

/// A failed request. Its text is the `detail` of the response, so it contains no path, address or secret of the proxy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("this request needs a valid token")]
    Unauthorized { token_shown: bool },
    /// Too many requests of a caller, or too many invalid tokens from an address. May be tried again after this time.
    #[error("too many requests, or too many invalid tokens; wait, then try again")]
    RateLimited(Duration),
    #[error("this key has as many connections open as one may have; close some, then try again")]
    TooManyConnections,
    #[error(transparent)]
    Forbidden(#[from] AccessDenied),
    #[error("the owner of this token cannot be determined now; try again")]
    AuthUnavailable,
    /// Bytes.
    #[error("this write would exceed the quota: {used} of {limit} bytes are used")]
    QuotaExceeded { limit: u64, used: u64 },
    /// A name that belongs to another namespace.
    #[error("{0}")]
    OtherNamespace(String),
    #[error("there is nothing at this address")]
    NoSuchRoute,
    /// The allowed methods, as in `Allow`.
    #[error("this address answers {0}")]
    MethodNotAllowed(&'static str),
    #[error(transparent)]
    Path(#[from] PathFault),
    #[error("this is not a valid name for a namespace: {0}")]
    Namespace(#[from] NamespaceError),
    #[error("send Content-MD5: `new`, or the MD5 of the content this is to replace (or If-None-Match: *, or If-Match)")]
    PreconditionRequired,
    #[error("send If-Match-Version: 0, or the version of the content this is to replace")]
    VersionRequired,
    #[error("If-Match-Version is not a number")]
    InvalidVersion,
    #[error("in a namespace Content-MD5 is the MD5 of the body (32 lower-case hex digits)")]
    InvalidDigest,
    #[error("the body that came has the MD5 {0}, not the one that its header promises; send it again")]
    DigestMismatch(Md5),
    /// The name of the header.
    #[error("{0} is not an MD5 (32 lower-case hex digits)")]
    InvalidPrecondition(&'static str),
    #[error("send If-None-Match: *, or If-Match with one MD5, and not both")]
    ConflictingConditions,
    #[error("{0}")]
    InvalidHeader(&'static str),
    /// A lost race.
    #[error("the path holds something else than the request expects")]
    PreconditionFailed { sent: SentPrecondition, current: Option<IndexEntry> },
    /// The size of the content in bytes.
    #[error("nothing of the content lies in that range: it has {0} bytes")]
    OutOfRange(u64),
    #[error("nothing is stored at this path")]
    NotFound,
    #[error("the content of this path was deleted")]
    Tombstone(IndexEntry),
    #[error("{0}")]
    InvalidBatch(String),
    #[error("send a batch, with its Content-Type (application/vnd.memsync.batch)")]
    NotABatch,
    /// The limit in bytes.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    #[error("send the content as it is, or with one Content-Encoding: zstd or gzip")]
    UnsupportedEncoding,
    #[error("{}", coding_detail(*.0))]
    Coding(#[from] CodingError),
    #[error("too many bodies are in flight, of this key or of all; wait, then try again")]
    Busy,
    #[error("the body stopped coming")]
    BodyTimeout,
    #[error("the body was cut off or malformed")]
    BodyBroken,
    #[error("{}", storage_detail(.0))]
    Store(StoreError),
}

/// The precondition of a write or a read that failed, as the client sent it.
#[derive(Debug)]
pub(crate) enum SentPrecondition {
    Md5(String),
    /// In the namespaced dialect.
    Version(u64),
}

/// A name that no blob can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathFault {
    #[error("the path has a `%` without two hex digits after it")]
    Escape,
    #[error("`.sync-index.json` is the name of the index")]
    Reserved,
    #[error("the path is too long to be stored")]
    TooLong,
    #[error(transparent)]
    Name(#[from] PathError),
}

impl From<MemoryBusy> for ApiError {
    fn from(MemoryBusy: MemoryBusy) -> Self {
        Self::Busy
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::OtherNamespace { .. } | StoreError::NamespaceOccupied { .. } => {
                Self::OtherNamespace(e.to_string())
            }
            StoreError::TooLong { .. } => Self::Path(PathFault::TooLong),
            other => Self::Store(other),
        }
    }
}

impl ApiError {
    /// `id`: the request's, for the log.
    pub(crate) fn into_response(self, id: &str) -> HttpResponse {
        let headers = self.headers();
        let (status, body) = self.into_parts(id);
        let mut response = json(status, &body);
        response.headers_mut().extend(headers);
        response
    }

    /// The status and the body. Logs an error that is the proxy's own fault.
    pub(crate) fn into_parts(self, id: &str) -> (StatusCode, WireError) {
        match &self {
            Self::Coding(e @ CodingError::Failed(..)) => tracing::error!(id, "{e}"),
            Self::Store(e) => tracing::error!(id, "{e}"),
            _ => {}
        }
        let (status, code) = self.status_and_code();
        let detail = self.to_string();
        let context = match self {
            Self::PreconditionFailed { sent, current } => Some(error_context(sent, current)),
            _ => None,
        };
        (status, WireError { detail, error_code: Some(code.to_owned()), context })
    }

    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::RateLimited(_) => (StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS"),
            Self::TooManyConnections => (StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_CONNECTIONS"),
            Self::Forbidden(AccessDenied::Namespace(_)) => (StatusCode::FORBIDDEN, "NAMESPACE_FORBIDDEN"),
            Self::Forbidden(AccessDenied::ReadOnly) => (StatusCode::FORBIDDEN, "READ_ONLY"),
            Self::AuthUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "AUTH_UNAVAILABLE"),
            Self::QuotaExceeded { .. } => (StatusCode::INSUFFICIENT_STORAGE, "QUOTA_EXCEEDED"),
            Self::OtherNamespace(_) => (StatusCode::CONFLICT, "OTHER_NAMESPACE"),
            Self::NoSuchRoute => (StatusCode::NOT_FOUND, "NO_SUCH_ROUTE"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED"),
            Self::Path(PathFault::TooLong) => (StatusCode::URI_TOO_LONG, "PATH_TOO_LONG"),
            Self::Path(_) => (StatusCode::BAD_REQUEST, "INVALID_PATH"),
            Self::Namespace(_) => (StatusCode::BAD_REQUEST, "INVALID_NAMESPACE"),
            Self::PreconditionRequired => (StatusCode::PRECONDITION_REQUIRED, "PRECONDITION_REQUIRED"),
            Self::VersionRequired => (StatusCode::UNPROCESSABLE_ENTITY, "VERSION_REQUIRED"),
            Self::InvalidVersion => (StatusCode::BAD_REQUEST, "INVALID_VERSION"),
            Self::InvalidDigest => (StatusCode::BAD_REQUEST, "INVALID_DIGEST"),
            Self::DigestMismatch(_) => (StatusCode::BAD_REQUEST, "DIGEST_MISMATCH"),
            Self::InvalidPrecondition(_) | Self::ConflictingConditions => {
                (StatusCode::BAD_REQUEST, "INVALID_PRECONDITION")
            }
            Self::InvalidHeader(_) => (StatusCode::BAD_REQUEST, "INVALID_HEADER"),
            Self::PreconditionFailed { .. } => (StatusCode::PRECONDITION_FAILED, PRECONDITION_FAILED),
            Self::OutOfRange(_) => (StatusCode::RANGE_NOT_SATISFIABLE, "OUT_OF_RANGE"),
            Self::NotFound | Self::Tombstone(_) => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            Self::InvalidBatch(_) => (StatusCode::BAD_REQUEST, "INVALID_BATCH"),
            Self::NotABatch => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "NOT_A_BATCH"),
            Self::TooLarge(_) | Self::Coding(CodingError::Window) => (StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE"),
            Self::UnsupportedEncoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_ENCODING"),
            Self::Coding(CodingError::Failed(..)) => (StatusCode::SERVICE_UNAVAILABLE, "ENCODING_FAILED"),
            Self::Coding(_) => (StatusCode::BAD_REQUEST, "INVALID_ENCODING"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "BUSY"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, "BODY_BROKEN"),
            Self::Store(StoreError::Full(_)) => (StatusCode::INSUFFICIENT_STORAGE, "STORAGE_FULL"),
            Self::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "STORAGE_FAILED"),
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Self::Unauthorized { .. } => set_header(&mut headers, WWW_AUTHENTICATE, "Bearer"),
            Self::AuthUnavailable | Self::Busy | Self::TooManyConnections => set_header(&mut headers, RETRY_AFTER, "5"),
            Self::UnsupportedEncoding => set_header(&mut headers, ACCEPT_ENCODING, "zstd, gzip"),
            Self::OutOfRange(size) => set_header(&mut headers, CONTENT_RANGE, &format!("bytes */{size}")),
            Self::RateLimited(wait) => set_header(&mut headers, RETRY_AFTER, &(wait.as_secs() + 1).to_string()),
            Self::MethodNotAllowed(allowed) => set_header(&mut headers, ALLOW, allowed),
            Self::Tombstone(entry) => {
                set_header(&mut headers, X_TOMBSTONE, &entry.md5.to_string());
                set_header(&mut headers, X_VERSION, &entry.version.to_string());
            }
            _ => {}
        }
        headers
    }
}

fn error_context(sent: SentPrecondition, current: Option<IndexEntry>) -> ErrorContext {
    let mut context = ErrorContext {
        current_md5: Some(current.map_or_else(|| "none".to_owned(), |e| e.md5.to_string())),
        is_deleted: Some(current.is_some_and(|e| e.is_deleted)),
        ..ErrorContext::default()
    };
    match sent {
        SentPrecondition::Md5(md5) => context.provided_md5 = Some(md5),
        SentPrecondition::Version(version) => {
            context.provided_version = Some(version.to_string());
            context.current_version = Some(current.map_or_else(|| "none".to_owned(), |e| e.version.to_string()));
        }
    }
    context
}

fn coding_detail(e: CodingError) -> String {
    match e {
        CodingError::Window => e.to_string(),
        CodingError::Failed(..) => "the body could not be unpacked; try again".to_owned(),
        other => format!("the body cannot be unpacked: {other}; send it again"),
    }
}

fn storage_detail(e: &StoreError) -> &'static str {
    match e {
        StoreError::Full(_) => {
            "the disk of the proxy is full; nothing was written. Free some space there, or ask its operator to"
        }
        _ => "the storage failed; nothing was acknowledged",
    }
}
