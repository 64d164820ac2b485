//! The flat dialect: one request and its answers each for index, get, put and delete.

use futures::StreamExt;
use futures::stream;
use http::header::{CONTENT_LENGTH, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderName, Method, StatusCode};
use reqwest::Body;

use super::body::{Upload, read_source};
use super::{Given, HttpRemote, MAX_SMALL, classify, index};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{CONTENT_MD5, Precondition, X_TOMBSTONE, capability, encode_path};
use crate::remote::{Blob, Deleted, Got, IndexAnswer, Mark, Outgoing, Put, RemoteError};

/// Largest index taken, bytes.
const MAX_INDEX: u64 = 64 * 1024 * 1024;
/// Sources up to this size are read before the request begins, so that a bad one never shows on the wire.
const READ_FIRST: u64 = 256 * 1024;
/// Blobs up to this size are fetched whole with their head, which frees the connection at once.
const FETCH_WHOLE: u64 = 64 * 1024;

impl HttpRemote {
    pub(super) async fn flat_index(&self, since: Option<&Mark>) -> Result<IndexAnswer, RemoteError> {
        let capabilities = self.capabilities().await?;
        let has = |name: &str| capabilities.iter().any(|c| c == name);
        // Without a mark in its answer, a part could not be built upon.
        let base = since.filter(|_| has(capability::DELTA) && has(capability::STRONG_INDEX));
        let url = match base {
            Some(mark) => self.inner.url(&format!("/sync?since={}&epoch={}", mark.cursor, encode_query(&mark.epoch))),
            None => self.inner.url("/sync"),
        };
        let mut request = self.inner.request(Method::GET, &url);
        // An ETag speaks for one address only: what changed since 5 is not what changed since 6. And "unchanged"
        // is an answer only to a caller who has taken in what it got last.
        let point = |mark: &Mark| (mark.epoch.clone(), mark.cursor);
        let holds =
            |given: &Given| given.url == url && (since.is_none() || since.map(point) == given.mark.as_ref().map(point));
        let last = self.inner.known().index.clone().filter(|given| has(capability::INDEX_ETAG) && holds(given));
        if let Some(given) = &last {
            request = request.header(IF_NONE_MATCH, given.etag.clone());
        }
        let answer = self.inner.send(&url, request, None, MAX_INDEX).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if last.is_some() => return Ok(IndexAnswer::Unchanged),
            _ => return Err(answer.refusal().await),
        }
        if answer.says_too_long() {
            return Err(answer.protocol(&format!("the index is larger than {MAX_INDEX} bytes")));
        }
        let etag = answer.headers().get(ETAG).cloned();
        let parsed = index::read(answer).await?;
        let mark = parsed.mark.filter(|_| has(capability::STRONG_INDEX));
        let result = crate::remote::Index { files: parsed.files, refused: parsed.refused, mark };
        let given = result.mark.clone();
        let result = match (base, parsed.delta) {
            (_, false) => IndexAnswer::Whole(result),
            (Some(base), true) => {
                let follows = |mark: &Mark| mark.epoch == base.epoch && mark.cursor >= base.cursor;
                if !result.mark.as_ref().is_some_and(follows) {
                    return Err(self
                        .inner
                        .protocol(&url, "a part of an index that does not follow what was asked for"));
                }
                IndexAnswer::Delta(result)
            }
            (None, true) => return Err(self.inner.protocol(&url, "a part of an index where the whole was asked for")),
        };
        // Nothing is awaited from here on, so what is remembered is what the caller gets.
        self.inner.known().index = etag.map(|etag| Given { url, etag, mark: given });
        Ok(result)
    }

    pub(super) async fn flat_get(&self, path: &RelPath) -> Result<Got, RemoteError> {
        let honest = self.supports(capability::HONEST_412).await?;
        let url = self.blob_url(path);
        let request = self.inner.request(Method::GET, &url);
        let answer = self.inner.send(&url, request, None, self.inner.max_file_size).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let name = HeaderName::from_static(X_TOMBSTONE);
                let tombstone = answer.header(&name).filter(|_| honest).map(str::parse::<Md5>).transpose();
                let tombstone = tombstone.map_err(|e| answer.protocol(&format!("{X_TOMBSTONE}: {e}")))?;
                answer.finish().await;
                return Ok(Got::Absent { tombstone });
            }
            _ => return Err(answer.refusal().await),
        }
        if answer.says_too_long() {
            let why = format!("the blob is larger than {} bytes", self.inner.max_file_size);
            return Err(RemoteError::TooLarge { url, why });
        }
        let Some(md5) = answer.etag_md5() else {
            return Err(answer.protocol("the blob has no ETag that is an MD5 in quotes"));
        };
        let size = answer.length();
        let mut body = answer.checked(md5);
        if size.is_some_and(|size| size <= FETCH_WHOLE) {
            let pieces: Vec<_> = body.collect().await;
            body = stream::iter(pieces).boxed();
        }
        Ok(Got::Found(Blob { md5, size, version: 0, body }))
    }

    pub(super) async fn flat_put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        body: Outgoing,
    ) -> Result<Put, RemoteError> {
        let url = self.blob_url(path);
        let upload = Upload::new();
        let content: Body = if body.size <= READ_FIRST {
            read_source(body.source, body.size).await?.into()
        } else {
            Body::wrap_stream(upload.stream(body.source, body.size))
        };
        let request = self
            .inner
            .request(Method::PUT, &url)
            .header(CONTENT_MD5, precondition.to_string())
            .header(CONTENT_LENGTH, body.size)
            .body(content);
        let sent = self.inner.send(&url, request, Some((&upload.progress, body.size)), MAX_SMALL).await;
        let answer = match (sent, upload.failure()) {
            (Ok(answer), _) => answer,
            (Err(_), Some(why)) => return Err(RemoteError::Source(why)),
            (Err(e), None) => return Err(e),
        };
        // Where the answer came before the end of the upload, the rest is not sent.
        let _rest = upload.stop_on_drop();
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => match answer.etag_md5() {
                Some(md5) if md5 == body.md5 => {
                    answer.finish().await;
                    Ok(Put::Stored { version: 0 })
                }
                Some(md5) => Err(answer.protocol(&format!("it stored {md5} where {} was sent", body.md5))),
                None => Err(answer.protocol("a write was answered without an ETag that is an MD5 in quotes")),
            },
            StatusCode::PRECONDITION_FAILED => {
                let told = answer.told().await;
                Ok(Put::Mismatch { current: current(&told), is_deleted: told.context.is_deleted })
            }
            // A server may answer a body that was given up; the reason is still on this side.
            _ => match upload.failure() {
                Some(why) => Err(RemoteError::Source(why)),
                None => Err(answer.refusal().await),
            },
        }
    }

    pub(super) async fn flat_delete(&self, path: &RelPath, md5: Md5) -> Result<Deleted, RemoteError> {
        let url = self.blob_url(path);
        let request = self.inner.request(Method::DELETE, &url).header(IF_MATCH, format!("\"{md5}\""));
        let answer = self.inner.send(&url, request, None, MAX_SMALL).await?;
        let deleted = match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::OK => Deleted::Done,
            StatusCode::NOT_FOUND => Deleted::Absent,
            StatusCode::PRECONDITION_FAILED => {
                return Ok(Deleted::Mismatch { current: current(&answer.told().await) });
            }
            _ => return Err(answer.refusal().await),
        };
        answer.finish().await;
        Ok(deleted)
    }

    fn blob_url(&self, path: &RelPath) -> String {
        self.inner.url(&format!("/blob/{}", encode_path(path.as_str())))
    }
}

fn current(told: &classify::Told) -> Option<Md5> {
    classify::held(told.context.current_md5.as_deref())
}

/// One value of a query.
fn encode_query(text: &str) -> String {
    encode_path(text).replace('/', "%2F")
}
