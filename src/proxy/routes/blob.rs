//! `/blob/{path}` and `/{namespace}/blob/{path}`: reads, conditional writes and conditional deletions.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::{Body as _, Incoming};

use crate::digest::Md5Hasher;
use crate::path::RelPath;
use crate::protocol::{PREFER, PREFERENCE_APPLIED, RETURN_MINIMAL};
use crate::proxy::body::{BodyReader, BodyTerms, content_coding};
use crate::proxy::context::RequestContext;
use crate::proxy::error::{ApiError, SentPrecondition};
use crate::proxy::limits::memory::{DOWNLOAD_MEMORY, MemoryPermit, UPLOAD_MEMORY, attach};
use crate::proxy::quota::QuotaPermit;
use crate::proxy::response::{
    HttpResponse, ResponseBody, empty, etag, full_body, set_blob_headers, set_header, stream_body,
};
use crate::proxy::routes::conditions::{ReadOutcome, evaluate};
use crate::proxy::routes::index;
use crate::proxy::routes::versions::{query_version, set_meta_headers, write_meta};
use crate::proxy::routes::write::{ParsedWrite, WriteAction, header_text, write_result};
use crate::store::{BlobBody, BodyWriter, GetOutcome, Store, StoredBlob, WriteOutcome};

const DEFAULT_TYPE: &str = "application/octet-stream";
/// Quota is reserved in steps of so many bytes for a body of unknown length.
const QUOTA_STEP: u64 = 4 * 1024 * 1024;

/// GET and HEAD, with the conditions of HTTP and one range. `version=N` in the query asks for a version of the path.
pub(super) async fn get<S: Store>(
    ctx: &RequestContext<'_, S>,
    path: &RelPath,
    request: &Parts,
) -> Result<HttpResponse, ApiError> {
    let memory = ctx.reserve(DOWNLOAD_MEMORY).await?;
    let version = query_version(request.uri.query().unwrap_or_default())?;
    let blob = match ctx.store().read(ctx.ns(), path, version).await? {
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
            set_blob_headers(response.headers_mut(), &blob.entry);
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
    set_blob_headers(headers, &blob.entry);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set_header(headers, CONTENT_TYPE, blob.meta.content_type.as_deref().unwrap_or(DEFAULT_TYPE));
    set_meta_headers(headers, &blob.meta);
    // A browser must not take a stored note for a page of this origin.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if part.is_some() {
        set_header(headers, CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
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

/// PUT and DELETE.
pub(super) async fn write<S: Store>(
    ctx: &RequestContext<'_, S>,
    path: RelPath,
    request: &Parts,
    body: Incoming,
) -> Result<HttpResponse, ApiError> {
    let (headers, is_flat) = (&request.headers, ctx.namespace.is_flat());
    let write = ParsedWrite::from_request(path, request, is_flat)?;
    let meta = write_meta(ctx, headers)?;
    let (action, sent) = (write.action, write.sent_precondition(is_flat));
    let outcome = match action {
        WriteAction::Put(precondition) => {
            let (content, reserved) = receive_content(ctx, &write, headers, body).await?;
            let (store, ns) = (ctx.state.store.clone(), ctx.ns().to_owned());
            let put =
                async move { store.put(&ns, &write.path, precondition, meta, content).await.map(WriteOutcome::Put) };
            let happened = |outcome: &Result<_, _>| outcome.as_ref().is_ok_and(WriteOutcome::happened);
            ctx.state.quotas.run_write(ctx.ns(), put, reserved, happened).await?.0?
        }
        WriteAction::Delete(precondition) => {
            WriteOutcome::Deleted(ctx.store().delete(ctx.ns(), &write.path, precondition, meta).await?)
        }
    };
    let (status, entry) = write_result(outcome, sent)?;
    let mut response = match (action, is_flat) {
        (WriteAction::Put(_), true) => empty(status),
        (WriteAction::Put(_), false) => namespaced_response(ctx, status, headers).await,
        (WriteAction::Delete(_), true) => return Ok(empty(status)),
        (WriteAction::Delete(_), false) => namespaced_response(ctx, StatusCode::OK, headers).await,
    };
    set_blob_headers(response.headers_mut(), &entry);
    if let WriteAction::Delete(_) = action {
        // A tag stands for a content, and there is none.
        response.headers_mut().remove(ETAG);
    }
    Ok(response)
}

/// Receives the content of a PUT into the store's spool, within the quota of its user. Gives its reservations beside it.
async fn receive_content<S: Store>(
    ctx: &RequestContext<'_, S>,
    write: &ParsedWrite,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<(BodyWriter, (Option<QuotaPermit>, MemoryPermit)), ApiError> {
    let admit = |size| ctx.state.quotas.admit(&ctx.caller, ctx.ns(), &write.path, size);
    let coding = content_coding(headers)?;
    // The length of a packed body says little about its unpacked size.
    let mut admitted = if coding.is_none() { body.size_hint().lower() } else { 0 };
    // The client can be refused before it sends the body.
    let mut quota = if admitted > 0 { admit(admitted).await? } else { None };
    let exact = body.size_hint().exact().filter(|_| coding.is_none());
    let memory = exact.map_or(UPLOAD_MEMORY, |length| length.min(UPLOAD_MEMORY));
    let terms = BodyTerms { coding, limit: ctx.state.options.max_body, memory };
    let mut body = BodyReader::open(ctx.state, &ctx.caller, terms, body).await?;
    let (mut content, mut hasher) = (ctx.store().new_body(), write.promised.map(|_| Md5Hasher::new()));
    while let Some(piece) = body.next().await? {
        if body.size > admitted {
            // The old reservation must not count beside the new one.
            drop(quota.take());
            admitted = body.size.next_multiple_of(QUOTA_STEP);
            quota = match admit(admitted).await {
                Err(ApiError::QuotaExceeded { .. }) => {
                    // The bytes received so far may still fit.
                    admitted = body.size;
                    admit(admitted).await?
                }
                granted => granted?,
            };
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(&piece);
        }
        content.push(piece).await?;
    }
    let md5 = hasher.map(Md5Hasher::finish);
    if let Some(md5) = md5.filter(|md5| Some(*md5) != write.promised) {
        return Err(ApiError::DigestMismatch(md5));
    }
    if body.size != admitted {
        drop(quota.take());
        quota = admit(body.size).await?;
    }
    Ok((content, (quota, body.memory)))
}

/// The response to a write in a namespace: the whole index, or nothing if the client prefers that.
///
/// Without a readable index the response is empty too: the write is done, and an error would deny that.
async fn namespaced_response<S: Store>(
    ctx: &RequestContext<'_, S>,
    status: StatusCode,
    headers: &HeaderMap,
) -> HttpResponse {
    let mut response = empty(status);
    if prefers_minimal(headers) {
        set_header(response.headers_mut(), PREFERENCE_APPLIED, RETURN_MINIMAL);
        return response;
    }
    match index::whole_index(ctx).await {
        Ok(index) => {
            response = index;
            *response.status_mut() = status;
        }
        Err(ApiError::Store(e)) => {
            tracing::error!(id = ctx.id, "a write was answered without the index: {e}");
            ctx.state.metrics.store_errors.inc();
        }
        Err(_) => {
            let caller = &ctx.caller.id;
            tracing::warn!(id = ctx.id, caller, "a write was answered without the index: no memory was free");
        }
    }
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
