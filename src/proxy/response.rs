//! Responses: bodies, and the headers that several routes share.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue, LAST_MODIFIED};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

use super::limits::memory::{MemoryPermit, attach};
use crate::protocol::{X_VERSION, timestamp};
use crate::store::IndexEntry;

pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type ResponseBody = UnsyncBoxBody<Bytes, BodyError>;
pub(crate) type HttpResponse = Response<ResponseBody>;

/// Marks a response that goes on until either side ends it. All others hold memory until they are read, so their reader
/// must keep to a minimum speed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndlessResponse;

pub(crate) fn full_body(content: Bytes) -> ResponseBody {
    Full::new(content).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(crate) fn stream_body<E: Into<BodyError>>(
    pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> ResponseBody {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data).map_err(Into::into))).boxed_unsync()
}

/// A response without a body.
pub(crate) fn empty(status: StatusCode) -> HttpResponse {
    let body = Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> HttpResponse {
    match serde_json::to_vec(value) {
        Ok(body) => with_body(status, "application/json", body.into()),
        Err(e) => {
            tracing::error!("a response could not be written as JSON: {e}");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

pub(crate) fn with_body(status: StatusCode, content_type: &'static str, body: Bytes) -> HttpResponse {
    let length = body.len();
    let mut response = Response::new(full_body(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// A 200 whose content keeps `memory` reserved until it is read.
pub(crate) fn with_reserved_body(content_type: &'static str, content: Bytes, mut memory: MemoryPermit) -> HttpResponse {
    memory.shrink_to(content.len() as u64);
    let memory = Arc::new(memory);
    let mut response = with_body(StatusCode::OK, content_type, attach(content, memory.clone()));
    // The encoder moves the reservation to the packed content.
    response.extensions_mut().insert(memory);
    response
}

/// Sets a header. A value that is not printable ASCII is left out.
pub(crate) fn set_header(headers: &mut HeaderMap, name: impl http::header::IntoHeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The length in `Content-Length`.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The `ETag` of a blob.
pub(crate) fn etag(entry: &IndexEntry) -> String {
    format!("\"{}\"", entry.md5)
}

/// `ETag`, `Last-Modified` and `X-Version` of a blob.
pub(crate) fn set_blob_headers(headers: &mut HeaderMap, entry: &IndexEntry) {
    set_header(headers, ETAG, &etag(entry));
    set_header(headers, X_VERSION, &entry.version.to_string());
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    if let Ok(date) = printer.timestamp_to_rfc9110_string(&timestamp(entry.version)) {
        set_header(headers, LAST_MODIFIED, &date);
    }
}
