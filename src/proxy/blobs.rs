//! `/blob/{path}`: reading, conditional writing, conditional deleting. What the dialects share is here, and what the
//! namespaced one has of its own in `namespaced`.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body as AnswerBody;
use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, IF_MATCH, IF_NONE_MATCH,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming as RequestBody;
use tokio::time::Instant;

use super::answer::{Answer, Provided, Refusal, describe, empty, etag, insert};
use super::auth::Caller;
use super::conditions::{self, Reading};
use super::encoding::{BodyTerms, Intake, Taken};
use super::memory::{Allotment, hold};
use super::patience::Pace;
use super::quota::{self, Reserved};
use super::{Proxy, encoding, versions};
use crate::digest::{Md5, Md5Hasher};
use crate::path::RelPath;
use crate::protocol::{self, CONTENT_MD5, X_MEMSYNC_MD5};
use crate::store::{
    BlobBody, BlobMeta, BodyWriter, DeleteOutcome, GetOutcome, IndexEntry, Precondition, PutOutcome, Store, StoreError,
};

const DEFAULT_TYPE: &str = "application/octet-stream";
/// Most memory that a blob on its way out takes, bytes: a piece that is read, and one that is written.
const OUTGOING: u64 = 512 * 1024;
/// Most memory that a content on its way into the store takes, bytes: a piece that comes, and one that is written.
const INCOMING: u64 = 576 * 1024;

/// The parts of a read besides the path.
#[derive(Clone, Copy)]
pub struct ReadRequest<'a> {
    /// `version=N` asks for a version of the path.
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// HEAD; hyper leaves the body out, and ranges do not count.
    pub is_head: bool,
}

/// GET and HEAD, with the conditions and the one range that HTTP has.
pub async fn get<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    path: &RelPath,
    request: ReadRequest<'_>,
) -> Result<Answer, Refusal> {
    let mut memory = proxy.memory.reserve(caller, OUTGOING, proxy.options.body_timeout).await?;
    let got = match versions::asked(request.query)? {
        Some(version) => proxy.store.get_version(ns, path, version).await?,
        None => proxy.store.get(ns, path).await?,
    };
    let blob = match got {
        GetOutcome::Found(blob) => blob,
        GetOutcome::Tombstone(entry) => return Err(Refusal::Tombstone(entry)),
        GetOutcome::Absent => return Err(Refusal::Absent),
    };
    let size = blob.entry.size;
    let part = match conditions::read(request.headers, &etag(&blob.entry), size) {
        Reading::Part(range) if !request.is_head => Some(range),
        Reading::OutOfRange if !request.is_head => return Err(Refusal::OutOfRange(size)),
        Reading::Whole | Reading::Part(_) | Reading::OutOfRange => None,
        Reading::NotModified => {
            let mut answer = empty(StatusCode::NOT_MODIFIED);
            describe(answer.headers_mut(), &blob.entry);
            return Ok(answer);
        }
        Reading::Mismatch(expected) => {
            return Err(Refusal::Precondition { provided: Provided::Md5(expected), held: Some(blob.entry) });
        }
    };
    let range = part.clone().unwrap_or(0..size);
    let length = range.end - range.start;
    memory.shrink_to(length);
    let memory = Arc::new(memory);
    let held = memory.clone();
    let mut answer = Response::new(match blob.body {
        BlobBody::Whole(content) => AnswerBody::from(hold(content.slice(within(&range)), held)),
        BlobBody::Pieces(pieces) => AnswerBody::from_stream(
            cut(pieces, range.clone()).map(move |piece| piece.map(|piece| hold(piece, held.clone()))),
        ),
    });
    answer.extensions_mut().insert(memory);
    let headers = answer.headers_mut();
    describe(headers, &blob.entry);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if part.is_some() {
        insert(headers, CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    insert(headers, CONTENT_TYPE, blob.meta.content_type.as_deref().unwrap_or(DEFAULT_TYPE));
    versions::tell(headers, &blob.meta);
    // A browser must not take a stored note for a page of this origin.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if part.is_some() {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(answer)
}

/// A range of a content that is in memory.
fn within(range: &Range<u64>) -> Range<usize> {
    let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
    index(range.start)..index(range.end)
}

type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// The bytes of `range` of a content that comes in pieces.
fn cut(pieces: Pieces, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((pieces, 0), move |(mut pieces, mut at)| {
        let range = range.clone();
        async move {
            while at < range.end {
                let Some(piece) = pieces.try_next().await? else { return Ok(None) };
                let (begin, end) = (at, at + piece.len() as u64);
                at = end;
                let wanted = range.start.clamp(begin, end) - begin..range.end.clamp(begin, end) - begin;
                if !wanted.is_empty() {
                    return Ok(Some((piece.slice(within(&wanted)), (pieces, at))));
                }
            }
            Ok(None)
        }
    })
}

/// PUT with its precondition in `Content-MD5`, or in the headers of HTTP where that is absent.
pub async fn put<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    path: &RelPath,
    request: Request<RequestBody>,
) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    let precondition = precondition(&head.headers)?;
    let promised = head.headers.get(X_MEMSYNC_MD5).map(|value| text(value).and_then(|text| text.parse().ok()));
    let promised = promised.map(|md5| md5.ok_or(Refusal::BadHeader("X-Memsync-Md5 is not an MD5"))).transpose()?;
    let meta = caller.sign(versions::told(&head.headers, proxy.store.keeps_versions())?);
    let body = content(proxy, caller, ns, path, &head.headers, body, promised).await?;
    let provided = || Provided::Md5(precondition.to_string());
    let (status, entry) = write(proxy, ns, path, expect(precondition), meta, body, provided).await?;
    let mut answer = empty(status);
    describe(answer.headers_mut(), &entry);
    Ok(answer)
}

fn precondition(headers: &HeaderMap) -> Result<protocol::Precondition, Refusal> {
    if let Some(value) = headers.get(CONTENT_MD5) {
        let named = text(value).and_then(|text| text.parse().ok());
        return named.ok_or(Refusal::BadPrecondition("Content-MD5, where it is not `new`,"));
    }
    match (headers.get(IF_MATCH), headers.get(IF_NONE_MATCH)) {
        (None, None) => Err(Refusal::PreconditionRequired),
        (Some(value), None) => {
            if_match(value).map(protocol::Precondition::Holds).ok_or(Refusal::BadPrecondition("If-Match"))
        }
        (None, Some(value)) if value.as_bytes().trim_ascii() == b"*" => Ok(protocol::Precondition::New),
        _ => Err(Refusal::Condition),
    }
}

/// A precondition in the words of the store.
pub fn expect(precondition: protocol::Precondition) -> Precondition {
    match precondition {
        protocol::Precondition::New => Precondition::Absent,
        protocol::Precondition::Holds(md5) => Precondition::Md5(md5),
    }
}

/// What takes a body in, piece by piece, as it comes or as it is unpacked.
pub(super) trait Taker: Send {
    /// `memory`: what is set aside for the taker.
    ///
    /// # Errors
    /// When the piece cannot be kept, or may not.
    fn take(&mut self, piece: Bytes, memory: &mut Allotment) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// Room is asked for in steps of so many bytes where a body does not tell its length.
const STEP: u64 = 4 * 1024 * 1024;

/// A write's body on its way into the store, with the room that it holds.
struct Arriving<'a, S: Store> {
    proxy: &'a Proxy<S>,
    caller: &'a Caller,
    ns: &'a str,
    path: &'a RelPath,
    incoming: S::BodyWriter,
    /// Where a digest is promised.
    hasher: Option<Md5Hasher>,
    /// Bytes that came.
    size: u64,
    /// Bytes that there is room for.
    admitted: u64,
    room: Option<Reserved>,
}

impl<S: Store> Arriving<'_, S> {
    /// Holds room for `size` bytes in the place of what it holds.
    async fn reserve(&mut self, size: u64) -> Result<(), Refusal> {
        self.room = None;
        self.room = quota::admit(self.proxy, self.caller, self.ns, self.path, size).await?;
        self.admitted = size;
        Ok(())
    }
}

impl<S: Store> Taker for Arriving<'_, S> {
    async fn take(&mut self, piece: Bytes, _memory: &mut Allotment) -> Result<(), Refusal> {
        self.size += piece.len() as u64;
        if self.size > self.admitted {
            match self.reserve(self.size.next_multiple_of(STEP)).await {
                // There may still be room for what came.
                Err(Refusal::Quota { .. }) => self.reserve(self.size).await?,
                reserved => reserved?,
            }
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        Ok(self.incoming.push(piece).await?)
    }
}

/// The content of a write, which has come whole, with the room in the store and the memory that it holds.
pub(super) type Content<I> = (I, Option<Reserved>, Allotment);

/// Takes the content of a write in, where the caller has room for it. `promised`: the MD5 that it must have, unpacked.
pub(super) async fn content<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    path: &RelPath,
    headers: &HeaderMap,
    body: RequestBody,
    promised: Option<Md5>,
) -> Result<Content<S::BodyWriter>, Refusal> {
    let coding = encoding::of_body(headers)?;
    let (incoming, hasher) = (proxy.store.new_body(), promised.map(|_| Md5Hasher::new()));
    let mut arriving = Arriving { proxy, caller, ns, path, incoming, hasher, size: 0, admitted: 0, room: None };
    // Refused before it is sent where its length tells.
    let told = if coding.is_none() { hyper::body::Body::size_hint(&body).lower() } else { 0 };
    if told > 0 {
        arriving.reserve(told).await?;
    }
    // The length of a packed body says little of what it unpacks to.
    let exact = hyper::body::Body::size_hint(&body).exact().filter(|_| coding.is_none());
    let memory = exact.map_or(INCOMING, |length| length.min(INCOMING));
    let terms = BodyTerms { coding, limit: proxy.options.max_body, memory };
    let Taken { taker: mut came, size, memory } = receive(proxy, caller, terms, body, arriving).await?;
    let md5 = came.hasher.take().map(Md5Hasher::finish);
    if let Some(md5) = md5.filter(|md5| Some(*md5) != promised) {
        // The body goes with this: nothing is written.
        return Err(Refusal::DigestMismatch(md5));
    }
    if size != came.admitted {
        came.reserve(size).await?;
    }
    Ok((came.incoming, came.room, memory))
}

/// Stores a content, to its end even when the client goes: until then it needs its room.
pub(super) async fn write<S: Store>(
    proxy: &Proxy<S>,
    ns: &str,
    path: &RelPath,
    expect: Precondition,
    meta: BlobMeta,
    (body, room, memory): Content<S::BodyWriter>,
    provided: impl FnOnce() -> Provided,
) -> Result<(StatusCode, IndexEntry), Refusal> {
    let (store, quotas) = (proxy.store.clone(), proxy.quotas.clone());
    let (ns, path) = (ns.to_owned(), path.clone());
    let writing = tokio::spawn(async move {
        let put = store.put(&ns, &path, expect, meta, body).await;
        if matches!(put, Ok(PutOutcome::Created(_) | PutOutcome::Updated(_))) {
            quotas.wrote(&ns);
        }
        drop((room, memory));
        put
    });
    match writing.await.map_err(|_| StoreError::Closed)?? {
        PutOutcome::Created(entry) => Ok((StatusCode::CREATED, entry)),
        PutOutcome::Updated(entry) => Ok((StatusCode::OK, entry)),
        PutOutcome::Mismatch(held) => Err(Refusal::Precondition { provided: provided(), held }),
    }
}

/// Takes a body in and counts its bytes, as they come and unpacked. It must keep up a pace once there is memory for it.
pub(super) async fn receive<S: Store, T: Taker>(
    proxy: &Proxy<S>,
    caller: &Caller,
    terms: BodyTerms,
    mut body: RequestBody,
    taker: T,
) -> Result<Taken<T>, Refusal> {
    let limit = terms.limit;
    // With `Content-Length` the lower bound is known before the first byte; hyper holds the sender to it.
    if hyper::body::Body::size_hint(&body).lower() > limit {
        return Err(Refusal::TooLarge(limit));
    }
    let mut came = 0;
    let mut intake = Intake::begin(proxy, caller, terms, taker).await?;
    let mut pace = Pace::new(proxy.options.body_timeout);
    loop {
        let frame = tokio::time::timeout_at(pace.due(came, Instant::now()), body.frame());
        let Some(frame) = frame.await.map_err(|_| Refusal::BodyTimeout)? else { return intake.finish().await };
        // Trailers carry nothing for us.
        let Ok(piece) = frame.map_err(|_| Refusal::BodyBroken)?.into_data() else { continue };
        came += piece.len() as u64;
        if came > limit {
            return Err(Refusal::TooLarge(limit));
        }
        let asked = Instant::now();
        intake.push(piece).await?;
        pace.was_held_up(asked.elapsed());
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
    let meta = caller.sign(versions::told(headers, proxy.store.keeps_versions())?);
    match proxy.store.delete(ns, path, expected.map(Precondition::Md5), meta).await? {
        DeleteOutcome::Done(_) => Ok(empty(StatusCode::NO_CONTENT)),
        DeleteOutcome::Tombstone(entry) => Err(Refusal::Tombstone(entry)),
        DeleteOutcome::Absent => Err(Refusal::Absent),
        DeleteOutcome::Mismatch(held) => {
            let provided = Provided::Md5(expected.map(|md5| md5.to_string()).unwrap_or_default());
            Err(Refusal::Precondition { provided, held: Some(held) })
        }
    }
}

/// An MD5, bare or quoted. A weak tag says nothing about bytes, so `W/"…"` is none.
fn if_match(value: &HeaderValue) -> Option<Md5> {
    let text = text(value)?;
    text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text).parse().ok()
}

pub(super) fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim)
}
