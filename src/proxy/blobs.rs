//! `/blob/{path}`: reading, conditional writing, conditional deleting.

use std::time::Duration;

use axum::body::Body as AnswerBody;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, IF_MATCH, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming as RequestBody;
use tokio::time::Instant;

use super::answer::{Answer, Refusal, describe, empty, insert};
use super::auth::Caller;
use super::{Proxy, quota, versions};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{CONTENT_MD5, Precondition};
use crate::store::{Body, Deleted, Expect, Got, Incoming, Put, Store};

const DEFAULT_TYPE: &str = "application/octet-stream";
/// Bytes a second that a body must keep up over its whole length.
const SLOWEST: u64 = 4096;

/// GET and HEAD; hyper leaves the body of the latter out. `?version=N` asks for a version of the path.
pub async fn get<S: Store>(proxy: &Proxy<S>, ns: &str, path: &RelPath, query: Option<&str>) -> Result<Answer, Refusal> {
    let got = match versions::asked(query)? {
        Some(version) => proxy.store.get_version(ns, path, version).await?,
        None => proxy.store.get(ns, path).await?,
    };
    let blob = match got {
        Got::Found(blob) => blob,
        Got::Tombstone(entry) => return Err(Refusal::Tombstone(entry.md5)),
        Got::Absent => return Err(Refusal::Absent),
    };
    let mut answer = Response::new(match blob.body {
        Body::Whole(content) => AnswerBody::from(content),
        Body::Pieces(pieces) => AnswerBody::from_stream(pieces),
    });
    let headers = answer.headers_mut();
    describe(headers, &blob.entry);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.entry.size));
    insert(headers, CONTENT_TYPE, blob.meta.content_type.as_deref().unwrap_or(DEFAULT_TYPE));
    versions::tell(headers, &blob.meta);
    // A browser must not take a stored note for a page of this origin.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(answer)
}

/// PUT with its precondition in `Content-MD5`.
pub async fn put<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    path: &RelPath,
    request: Request<RequestBody>,
) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    let precondition = head.headers.get(CONTENT_MD5).ok_or(Refusal::PreconditionRequired)?;
    let precondition: Precondition = text(precondition)
        .and_then(|text| text.parse().ok())
        .ok_or(Refusal::BadPrecondition("Content-MD5, where it is not `new`,"))?;
    refuse_encoded(&head.headers)?;
    let meta = caller.sign(versions::told(&head.headers)?);
    let expect = expect(precondition);
    // Refused before it is sent where its length tells, and in any case before it is stored.
    let told = hyper::body::Body::size_hint(&body).lower();
    drop(quota::admit(proxy, caller, ns, path, told).await?);
    let (body, size) = receive(proxy, body, proxy.options.max_body, proxy.store.incoming()).await?;
    let _room = quota::admit(proxy, caller, ns, path, size).await?;
    let outcome = proxy.store.put(ns, path, expect, meta, body).await?;
    let (status, entry) = match outcome {
        Put::Created(entry) => (StatusCode::CREATED, entry),
        Put::Updated(entry) => (StatusCode::OK, entry),
        Put::Mismatch(held) => return Err(Refusal::Precondition { provided: precondition.to_string(), held }),
    };
    let mut answer = empty(status);
    describe(answer.headers_mut(), &entry);
    Ok(answer)
}

/// Refuses a body that is not the content as it is.
pub fn refuse_encoded(headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(Refusal::Encoding),
        _ => Ok(()),
    }
}

/// A precondition in the words of the store.
pub fn expect(precondition: Precondition) -> Expect {
    match precondition {
        Precondition::New => Expect::Absent,
        Precondition::Holds(md5) => Expect::Md5(md5),
    }
}

/// Takes a body of at most `limit` bytes in, and counts them, within the limits of patience.
pub async fn receive<S: Store, I: Incoming>(
    proxy: &Proxy<S>,
    mut body: RequestBody,
    limit: u64,
    mut incoming: I,
) -> Result<(I, u64), Refusal> {
    // With `Content-Length` the lower bound is known before the first byte; hyper holds the sender to it.
    if hyper::body::Body::size_hint(&body).lower() > limit {
        return Err(Refusal::TooLarge(limit));
    }
    let mut size = 0;
    let began = Instant::now();
    loop {
        // A sender that drips a byte now and then is cut off as one that stalls.
        let patience = proxy.options.body_timeout;
        let due = began + patience + Duration::from_secs(size / SLOWEST);
        let frame = tokio::time::timeout_at(due.min(Instant::now() + patience), body.frame());
        let Some(frame) = frame.await.map_err(|_| Refusal::BodyTimeout)? else { return Ok((incoming, size)) };
        // Trailers carry nothing for us.
        let Ok(piece) = frame.map_err(|_| Refusal::BodyBroken)?.into_data() else { continue };
        size += piece.len() as u64;
        if size > limit {
            return Err(Refusal::TooLarge(limit));
        }
        incoming.push(piece).await?;
    }
}

/// DELETE, with the precondition in `If-Match` where there is one.
pub async fn delete<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    path: &RelPath,
    headers: &HeaderMap,
) -> Result<Answer, Refusal> {
    let expected = headers.get(IF_MATCH).map(|value| if_match(value).ok_or(Refusal::BadPrecondition("If-Match")));
    let expected = expected.transpose()?;
    let meta = caller.sign(versions::told(headers)?);
    match proxy.store.delete(ns, path, expected.map(Expect::Md5), meta).await? {
        Deleted::Done(_) => Ok(empty(StatusCode::NO_CONTENT)),
        Deleted::Tombstone(entry) => Err(Refusal::Tombstone(entry.md5)),
        Deleted::Absent => Err(Refusal::Absent),
        Deleted::Mismatch(held) => {
            let provided = expected.map(|md5| md5.to_string()).unwrap_or_default();
            Err(Refusal::Precondition { provided, held: Some(held) })
        }
    }
}

/// An MD5, bare or quoted. A weak tag says nothing about bytes, so `W/"…"` is none.
fn if_match(value: &HeaderValue) -> Option<Md5> {
    let text = text(value)?;
    text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text).parse().ok()
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim)
}
