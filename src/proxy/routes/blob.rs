//! `/blob/{path}` and `/{namespace}/blob/{path}`: reads, conditional writes and conditional deletions.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;

use crate::path::RelPath;
use crate::protocol::{PREFER, PREFERENCE_APPLIED, RETURN_MINIMAL};
use crate::proxy::context::RequestContext;
use crate::proxy::error::{ApiError, SentPrecondition};
use crate::proxy::limits::memory::{MemoryPermit, attach};
use crate::proxy::response::{HttpResponse, ResponseBody, describe, empty, etag, full_body, insert, stream_body};
use crate::proxy::routes::conditions::{ReadOutcome, evaluate};
use crate::proxy::routes::index;
use crate::proxy::routes::meta::{insert_meta, parse_meta, query_version};
use crate::proxy::routes::upload::{receive_content, store_content};
use crate::proxy::routes::write::{
    delete_precondition, delete_result, header_text, promised_md5, put_precondition, sent_precondition,
};
use crate::store::{BlobBody, GetOutcome, IndexEntry, Store, StoredBlob};

const DEFAULT_TYPE: &str = "application/octet-stream";
/// Most memory that a blob on its way out takes, bytes: a piece that is read, and one that is written.
const DOWNLOAD_MEMORY: u64 = 512 * 1024;

/// GET and HEAD, with the conditions of HTTP and one range. `version=N` in the query asks for a version of the path.
pub(super) async fn get<S: Store>(
    ctx: &RequestContext<'_, S>,
    path: &RelPath,
    request: &Parts,
) -> Result<HttpResponse, ApiError> {
    let memory = ctx.reserve(DOWNLOAD_MEMORY).await?;
    let got = match query_version(request.uri.query())? {
        Some(version) => ctx.store().get_version(ctx.ns(), path, version).await?,
        None => ctx.store().get(ctx.ns(), path).await?,
    };
    let blob = match got {
        GetOutcome::Found(blob) => blob,
        GetOutcome::Tombstone(entry) => return Err(ApiError::Tombstone(entry)),
        GetOutcome::Absent => return Err(ApiError::NotFound),
    };
    let size = blob.entry.size;
    // A range of HEAD is ignored. hyper leaves the body out.
    let is_head = request.method == Method::HEAD;
    let part = match evaluate(&request.headers, &etag(&blob.entry), size) {
        ReadOutcome::Part(range) if !is_head => Some(range),
        ReadOutcome::OutOfRange if !is_head => return Err(ApiError::OutOfRange(size)),
        ReadOutcome::Whole | ReadOutcome::Part(_) | ReadOutcome::OutOfRange => None,
        ReadOutcome::NotModified => {
            let mut response = empty(StatusCode::NOT_MODIFIED);
            describe(response.headers_mut(), &blob.entry);
            return Ok(response);
        }
        ReadOutcome::Mismatch(expected) => {
            let sent = SentPrecondition::Md5(expected);
            return Err(ApiError::PreconditionFailed { sent, current: Some(blob.entry) });
        }
    };
    Ok(blob_response(blob, part, memory))
}

/// The whole content or a part of it, which keeps `memory` reserved until it is read.
fn blob_response(blob: StoredBlob, part: Option<Range<u64>>, mut memory: MemoryPermit) -> HttpResponse {
    let size = blob.entry.size;
    let range = part.clone().unwrap_or(0..size);
    let length = range.end - range.start;
    memory.shrink_to(length);
    let memory = Arc::new(memory);
    let mut response = Response::new(body_of(blob.body, &range, memory.clone()));
    response.extensions_mut().insert(memory);
    let headers = response.headers_mut();
    describe(headers, &blob.entry);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert(headers, CONTENT_TYPE, blob.meta.content_type.as_deref().unwrap_or(DEFAULT_TYPE));
    insert_meta(headers, &blob.meta);
    // A browser must not take a stored note for a page of this origin.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if part.is_some() {
        insert(headers, CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn body_of(body: BlobBody, range: &Range<u64>, memory: Arc<MemoryPermit>) -> ResponseBody {
    match body {
        BlobBody::Whole(content) => full_body(attach(content.slice(indexes(range)), memory)),
        BlobBody::Pieces(pieces) => {
            let pieces = cut(pieces, range.clone());
            stream_body(pieces.map(move |piece| piece.map(|piece| attach(piece, memory.clone()))))
        }
    }
}

fn indexes(range: &Range<u64>) -> Range<usize> {
    let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
    index(range.start)..index(range.end)
}

/// The bytes of `range` of a content that comes in pieces.
fn cut(
    pieces: BoxStream<'static, io::Result<Bytes>>,
    range: Range<u64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((pieces, 0), move |(mut pieces, mut at)| {
        let range = range.clone();
        async move {
            while at < range.end {
                let Some(piece) = pieces.try_next().await? else { return Ok(None) };
                let (begin, end) = (at, at + piece.len() as u64);
                at = end;
                let wanted = range.start.clamp(begin, end) - begin..range.end.clamp(begin, end) - begin;
                if !wanted.is_empty() {
                    return Ok(Some((piece.slice(indexes(&wanted)), (pieces, at))));
                }
            }
            Ok(None)
        }
    })
}

pub(super) async fn put<S: Store>(
    ctx: &RequestContext<'_, S>,
    path: &RelPath,
    request: &Parts,
    body: Incoming,
) -> Result<HttpResponse, ApiError> {
    let headers = &request.headers;
    let precondition = put_precondition(headers, ctx.namespace.is_flat())?;
    let promised = promised_md5(headers, ctx.namespace.is_flat())?;
    let meta = ctx.caller.sign(parse_meta(headers, ctx.store().keeps_versions())?);
    let received = receive_content(ctx, path, headers, body, promised).await?;
    let (status, entry) = store_content(ctx, path, precondition, meta, received).await?;
    if !ctx.namespace.is_flat() {
        return Ok(namespaced_response(ctx, status, &entry, headers).await);
    }
    let mut response = empty(status);
    describe(response.headers_mut(), &entry);
    Ok(response)
}

pub(super) async fn delete<S: Store>(
    ctx: &RequestContext<'_, S>,
    path: &RelPath,
    request: &Parts,
) -> Result<HttpResponse, ApiError> {
    let (headers, is_flat) = (&request.headers, ctx.namespace.is_flat());
    let precondition = delete_precondition(headers, is_flat)?;
    let meta = ctx.caller.sign(parse_meta(headers, ctx.store().keeps_versions())?);
    let outcome = ctx.store().delete(ctx.ns(), path, precondition, meta).await?;
    let entry = delete_result(outcome, sent_precondition(precondition, is_flat))?;
    if is_flat {
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let mut response = namespaced_response(ctx, StatusCode::OK, &entry, headers).await;
    // A tag stands for a content, and there is none.
    response.headers_mut().remove(ETAG);
    Ok(response)
}

/// The response to a write in a namespace: the whole index, or nothing if the client prefers that.
///
/// Without a readable index the response is empty too: the write is done, and an error would deny that.
async fn namespaced_response<S: Store>(
    ctx: &RequestContext<'_, S>,
    status: StatusCode,
    entry: &IndexEntry,
    headers: &HeaderMap,
) -> HttpResponse {
    let mut response = if prefers_minimal(headers) {
        let mut response = empty(status);
        insert(response.headers_mut(), PREFERENCE_APPLIED, RETURN_MINIMAL);
        response
    } else {
        match index::whole_index(ctx).await {
            Ok(mut index) => {
                *index.status_mut() = status;
                index
            }
            Err(ApiError::Store(e)) => {
                tracing::error!(id = ctx.id, "a write was answered without the index: {e}");
                ctx.state.metrics.store_errors.inc();
                empty(status)
            }
            Err(_) => {
                let caller = &ctx.caller.id;
                tracing::warn!(id = ctx.id, caller, "a write was answered without the index: no memory was free");
                empty(status)
            }
        }
    };
    describe(response.headers_mut(), entry);
    response
}

/// True for `Prefer: return=minimal` (RFC 7240, sections 2 and 4.2). The first of two preferences of one name counts.
fn prefers_minimal(headers: &HeaderMap) -> bool {
    let all = headers.get_all(PREFER);
    let mut preferences = all.iter().filter_map(header_text).flat_map(|line| line.split(','));
    let value = preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("return").then(|| value.trim().trim_matches('"'))
    });
    value == Some("minimal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_return_preference_counts() {
        for (lines, is_minimal) in [
            (&["return=minimal"][..], true),
            (&["respond-async, RETURN = \"minimal\"; x=1"], true),
            (&["wait=5", "return=minimal"], true),
            (&["return=representation, return=minimal"], false),
            (&["minimal"], false),
            (&["returns=minimal"], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(PREFER, line.parse().unwrap());
            }
            assert_eq!(prefers_minimal(&headers), is_minimal, "{lines:?}");
        }
    }
}
