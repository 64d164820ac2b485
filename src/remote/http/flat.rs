//! The flat dialect: one request and its answers each for index, get, put and delete. The index and reading are the
//! same in the namespaced one, under other addresses.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderName, Method, StatusCode};
use reqwest::RequestBuilder;
use tokio::time::Instant;

use super::body::{HttpReply, Upload};
use super::resume::has_ranges;
use super::{Given, HttpRemote, MAX_SMALL, classify, index};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{
    CONTENT_MD5, HistoryPoint, IndexCursor, Precondition, X_MEMSYNC_SET_BACK, X_TOMBSTONE, capability, encode_path,
};
use crate::remote::{DeleteReply, GetReply, IndexUpdate, PutReply, RemoteBlob, RemoteError, UploadBody};

/// Largest index taken, bytes.
const MAX_INDEX: u64 = 64 * 1024 * 1024;
/// An index that is hints is asked for whole again when deltas were laid over it for so long: should one of them have been
/// wrong, nothing else would ever show it.
const WHOLE_AGAIN: Duration = Duration::from_secs(3600);
/// Blobs up to this size are fetched whole with their head, which frees the connection at once.
const FETCH_WHOLE: u64 = 64 * 1024;

pub(super) type Pieces = BoxStream<'static, Result<Bytes, RemoteError>>;

impl HttpRemote {
    pub(super) async fn read_index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<IndexUpdate, RemoteError> {
        if let Some(answer) = self.ask_index(since, known).await? {
            return Ok(answer);
        }
        // The whole index goes with whatever is held.
        self.inner.known().index = None;
        let url = self.inner.url(&self.inner.namespace.below("/sync"));
        let never = || self.inner.protocol(&url, "a part of an index that does not follow what was asked for");
        self.ask_index(since, known).await?.ok_or_else(never)
    }

    /// `None`: changes of another index than the one that was last given.
    async fn ask_index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<Option<IndexUpdate>, RemoteError> {
        let capabilities = self.capabilities().await?;
        let has = |name: &str| capabilities.iter().any(|c| c == name);
        // Without a mark in its answer, a part could not be built upon.
        let base = since.filter(|_| has(capability::DELTA) && has(capability::STRONG_INDEX));
        let root = self.inner.url(&self.inner.namespace.below("/sync"));
        let part = base.map(|base| format!("since={}&epoch={}", base.cursor, encode_query(&base.epoch)));
        let address = with_query(&root, part.iter());
        // An ETag speaks for one address only: what changed since 5 is not what changed since 6. And "unchanged"
        // is an answer only to a caller who has taken in what it got last.
        let point = |cursor: &IndexCursor| (cursor.epoch.clone(), cursor.cursor);
        let holds = |given: &Given| {
            given.url == address && (since.is_none() || since.map(point) == given.cursor.as_ref().map(point))
        };
        let last = self.inner.known().index.clone();
        let last =
            last.filter(|given| has(capability::INDEX_ETAG) && holds(given) && !given.is_due_whole(Instant::now()));
        let from = last.as_ref().filter(|_| has(capability::ETAG_DELTA) && since.is_none()).and_then(Given::tag);
        let from_tag = from.map(|tag| format!("from={}", encode_query(tag)));
        // What the caller knows does not change what the index is.
        let history = known.map(|point| format!("history={}", encode_query(&point.to_string())));
        let url = with_query(&root, part.iter().chain(&from_tag).chain(&history));
        let mut request = Self::ask_packed(self.inner.request(Method::GET, &url), self.wants_packed().await?);
        if let Some(given) = &last {
            request = request.header(IF_NONE_MATCH, given.etag.clone());
        }
        let answer = self.inner.send(&url, request, None, MAX_INDEX).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if last.is_some() => return Ok(Some(IndexUpdate::Unchanged)),
            _ => return Err(answer.refusal().await),
        }
        if answer.says_too_long() {
            return Err(answer.protocol(&format!("the index is larger than {MAX_INDEX} bytes")));
        }
        let etag = answer.headers().get(ETAG).cloned();
        let set_back = answer.headers().contains_key(X_MEMSYNC_SET_BACK);
        let parsed = index::read(answer).await?;
        let cursor = parsed.cursor.filter(|_| has(capability::STRONG_INDEX));
        let result = crate::remote::FetchedIndex {
            files: parsed.files,
            refused: parsed.refused,
            cursor,
            history: parsed.history,
            set_back,
        };
        let given = result.cursor.clone();
        let mut patched = None;
        let result = match (base, parsed.delta) {
            (_, false) => IndexUpdate::Whole(result),
            (Some(base), true) => {
                let follows = |cursor: &IndexCursor| cursor.epoch == base.epoch && cursor.cursor >= base.cursor;
                if !result.cursor.as_ref().is_some_and(follows) {
                    return Err(self
                        .inner
                        .protocol(&url, "a part of an index that does not follow what was asked for"));
                }
                IndexUpdate::Delta(result)
            }
            (None, true) if from.is_none() => {
                return Err(self.inner.protocol(&url, "a part of an index where the whole was asked for"));
            }
            (None, true) if parsed.base.as_deref() != from => return Ok(None),
            (None, true) => {
                patched = last.as_ref().and_then(|given| given.patched).or_else(|| Some(Instant::now()));
                IndexUpdate::Delta(result)
            }
        };
        // Nothing is awaited from here on, so what is remembered is what the caller gets.
        self.inner.known().index = etag.map(|etag| Given { url: address, etag, cursor: given, patched });
        Ok(Some(result))
    }

    pub(super) async fn read_blob(&self, path: &RelPath) -> Result<GetReply, RemoteError> {
        let honest = self.supports(capability::HONEST_412).await?;
        let url = self.blob_url(path).await?;
        let request = Self::ask_packed(self.inner.request(Method::GET, &url), self.wants_packed().await?);
        let answer = self.inner.send(&url, request, None, self.inner.max_file_size).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let tombstone = tombstone(&answer, honest)?;
                answer.finish().await;
                return Ok(GetReply::Absent { tombstone });
            }
            _ => return Err(answer.refusal().await),
        }
        if answer.says_too_long() {
            let why = format!("the blob is larger than {} bytes", self.inner.max_file_size);
            return Err(RemoteError::TooLarge { url, why });
        }
        let Some(md5) = answer.etag_md5() else {
            return Err(answer.protocol(&format!("the blob has {}", answer.odd_etag())));
        };
        let size = answer.length();
        let version = if self.inner.namespace.is_flat() { 0 } else { answer.version() };
        let device = answer.device();
        let small = answer.comes().is_some_and(|bytes| bytes <= FETCH_WHOLE);
        let has_ranges = has_ranges(&answer);
        let mut body = answer.pieces();
        if has_ranges {
            body = self.resuming(url, md5, body);
        }
        if small {
            body = begun(body).await;
        }
        Ok(GetReply::Found(RemoteBlob { md5, size, version, device, body }))
    }

    pub(super) async fn flat_put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        body: UploadBody,
    ) -> Result<PutReply, RemoteError> {
        let url = self.blob_url(path).await?;
        let request = self.inner.request(Method::PUT, &url).header(CONTENT_MD5, precondition.to_string());
        match self.send_blob(&url, request, body).await? {
            Sent::Stored { .. } => Ok(PutReply::Stored { version: 0 }),
            Sent::Refused(told) => {
                Ok(PutReply::Mismatch { current: current(&told), is_deleted: told.context.is_deleted, version: 0 })
            }
        }
    }

    /// Sends a write whose headers are all there.
    pub(super) async fn send_blob(
        &self,
        url: &str,
        request: RequestBuilder,
        body: UploadBody,
    ) -> Result<Sent, RemoteError> {
        let (upload, sent) = (Upload::new(), body.md5.clone());
        // Where the answer comes before the end of the upload, the rest is not sent.
        let _rest = upload.stop_on_drop();
        let answer = self.send_content(url, request, body, &upload).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => match answer.etag_md5() {
                Some(md5) if sent.get() == Some(md5) => {
                    let version = answer.version();
                    // An index may come with it: it names what others wrote, and is not what was asked for.
                    answer.finish().await;
                    Ok(Sent::Stored { version })
                }
                Some(md5) => Err(answer.protocol(&format!("it stored {md5}, which is not the content that was sent"))),
                None => Err(answer.protocol(&format!("a write was answered with {}", answer.odd_etag()))),
            },
            StatusCode::PRECONDITION_FAILED => Ok(Sent::Refused(answer.told().await)),
            // A server may answer a body that was given up; the reason is still on this side.
            _ => match upload.failure() {
                Some(why) => Err(RemoteError::Source(why)),
                None => Err(answer.refusal().await),
            },
        }
    }

    pub(super) async fn flat_delete(&self, path: &RelPath, md5: Md5) -> Result<DeleteReply, RemoteError> {
        let url = self.blob_url(path).await?;
        let request = self.inner.request(Method::DELETE, &url).header(IF_MATCH, format!("\"{md5}\""));
        let answer = self.inner.send(&url, request, None, MAX_SMALL).await?;
        let deleted = match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::OK => DeleteReply::Done,
            StatusCode::NOT_FOUND => DeleteReply::Absent,
            StatusCode::PRECONDITION_FAILED => {
                return Ok(DeleteReply::Mismatch { current: current(&answer.told().await) });
            }
            _ => return Err(answer.refusal().await),
        };
        answer.finish().await;
        Ok(deleted)
    }

    /// # Errors
    /// `Name` when this proxy would take the path for another one in another namespace.
    pub(super) async fn blob_url(&self, path: &RelPath) -> Result<String, RemoteError> {
        let ns = &self.inner.namespace;
        let url = self.inner.url(&ns.blob(path));
        if ns.hides_slash(path) && !self.supports(capability::ENCODED_SLASH).await? {
            return Err(RemoteError::Name {
                url,
                why: "this proxy cannot hold a folder called `blob` in a namespace; rename the folder".to_owned(),
            });
        }
        Ok(url)
    }
}

/// The body, its beginning fetched now, and all of it where it is small: that frees the connection at once. What it says
/// of its length may be a lie, and is of the packed content where it is packed.
async fn begun(mut body: Pieces) -> Pieces {
    let (mut pieces, mut fetched) = (Vec::new(), 0);
    while fetched <= FETCH_WHOLE {
        let Some(piece) = body.next().await else { return stream::iter(pieces).boxed() };
        fetched += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        pieces.push(piece);
    }
    stream::iter(pieces).chain(body).boxed()
}

/// What became of a write that was answered as one.
pub(super) enum Sent {
    Stored {
        version: u64,
    },
    /// A 412, with what it tells.
    Refused(classify::Told),
}

/// What a 404 proves to have been deleted.
pub(super) fn tombstone(answer: &HttpReply, honest: bool) -> Result<Option<Md5>, RemoteError> {
    let shown = answer.header(&HeaderName::from_static(X_TOMBSTONE)).filter(|_| honest);
    shown.map(str::parse).transpose().map_err(|e| answer.protocol(&format!("{X_TOMBSTONE}: {e}")))
}

pub(super) fn current(told: &classify::Told) -> Option<Md5> {
    classify::held(told.context.current_md5.as_deref())
}

impl Given {
    /// What its ETag names it by. That something on the way made it a weak one changes nothing.
    fn tag(&self) -> Option<&str> {
        let etag = self.etag.to_str().ok()?;
        etag.strip_prefix("W/").unwrap_or(etag).strip_prefix('"')?.strip_suffix('"')
    }

    fn is_due_whole(&self, now: Instant) -> bool {
        self.patched.is_some_and(|since| now >= since + WHOLE_AGAIN)
    }
}

/// An address with these parts of a query.
fn with_query<'a>(root: &str, parts: impl Iterator<Item = &'a String>) -> String {
    let query = parts.map(String::as_str).collect::<Vec<_>>().join("&");
    if query.is_empty() { root.to_owned() } else { format!("{root}?{query}") }
}

/// One value of a query.
fn encode_query(text: &str) -> String {
    encode_path(text).replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_patched_from_hints_is_not_trusted_for_ever() {
        let now = Instant::now();
        let mut given =
            Given { url: String::new(), etag: http::HeaderValue::from_static("x"), cursor: None, patched: None };
        assert!(!given.is_due_whole(now + 100 * WHOLE_AGAIN), "the proxy's own word is");
        given.patched = Some(now);
        assert!(!given.is_due_whole(now + WHOLE_AGAIN / 2) && given.is_due_whole(now + WHOLE_AGAIN));
    }

    #[test]
    fn an_etag_names_an_index_by_what_is_in_its_quotes() {
        let tag = |etag: &'static str| {
            let etag = http::HeaderValue::from_static(etag);
            Given { url: String::new(), etag, cursor: None, patched: None }.tag().map(str::to_owned)
        };
        assert_eq!((tag("\"a-1\"").as_deref(), tag("W/\"a\"").as_deref()), (Some("a-1"), Some("a")));
        assert_eq!((tag("a"), tag("\""), tag("W/a\"")), (None, None, None));
    }
}
