//! Reading a blob. A download that breaks off is resumed, if the proxy still has the content and serves ranges.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::header::{ACCEPT_RANGES, CONTENT_RANGE, IF_MATCH, RANGE};
use http::{HeaderName, Method, StatusCode};

use super::client::HttpRemote;
use super::reply::HttpReply;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{X_TOMBSTONE, capability};
use crate::remote::{GetReply, RemoteBlob, RemoteError};

/// Blobs up to this size are fetched whole with their head, which frees the connection at once.
const FETCH_WHOLE: u64 = 64 * 1024;
/// Most resumptions of one download.
const MAX_RESUMES: u32 = 8;
/// The wait before the first resumption. Each further one waits twice as long.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);

/// A download under way.
struct Download {
    remote: HttpRemote,
    url: String,
    md5: Md5,
    body: DownloadStream,
    /// Bytes of the content received so far.
    received: u64,
    resumes: u32,
}

type DownloadStream = BoxStream<'static, Result<Bytes, RemoteError>>;

impl HttpRemote {
    pub(super) async fn read_blob(&self, path: &RelPath) -> Result<GetReply, RemoteError> {
        self.read_content(self.blob_url(path).await?).await
    }

    /// Reads the content at `url`: a blob, or a version of one.
    pub(super) async fn read_content(&self, url: String) -> Result<GetReply, RemoteError> {
        let honest = self.supports(capability::HONEST_412).await?;
        let request = self.request_accepting_encoding(Method::GET, &url).await?;
        let answer = self.send(&url, request, None, self.link.max_file_size).await?;
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
            let why = format!("the blob is larger than {} bytes", self.link.max_file_size);
            return Err(RemoteError::TooLarge { url, why });
        }
        let Some(md5) = answer.etag_md5() else {
            return Err(answer.protocol(&format!("the blob has {}", answer.describe_bad_etag())));
        };
        let size = answer.length();
        let version = if self.link.namespace.is_flat() { 0 } else { answer.version() };
        let device = answer.device();
        let small = answer.received_length().is_some_and(|bytes| bytes <= FETCH_WHOLE);
        let units = answer.header(&ACCEPT_RANGES).unwrap_or_default();
        let has_ranges = units.split(',').any(|unit| unit.trim() == "bytes");
        let mut body = answer.pieces();
        if has_ranges {
            body = self.resuming(url, md5, body);
        }
        if small {
            body = fetch_small(body).await;
        }
        Ok(GetReply::Found(RemoteBlob { md5, size, version, device, body }))
    }

    /// `body`, with the content `md5` at `url`, as a stream that resumes when it breaks off.
    fn resuming(&self, url: String, md5: Md5, body: DownloadStream) -> DownloadStream {
        let download = Download { remote: self.clone(), url, md5, body, received: 0, resumes: 0 };
        stream::unfold(Some(download), |download| async move {
            let mut download = download?;
            loop {
                match download.body.next().await? {
                    Ok(piece) => {
                        download.received += piece.len() as u64;
                        return Some((Ok(piece), Some(download)));
                    }
                    Err(e) => {
                        if !download.resume(&e).await {
                            return Some((Err(e), None));
                        }
                    }
                }
            }
        })
        .boxed()
    }
}

impl Download {
    /// Requests the rest of the content. False: the download cannot be resumed.
    async fn resume(&mut self, why: &RemoteError) -> bool {
        let broke_off = matches!(why, RemoteError::Unreachable { .. });
        if !broke_off || self.received == 0 || self.resumes >= MAX_RESUMES {
            return false;
        }
        // Closes the old connection before a new one is requested.
        self.body = stream::empty().boxed();
        tokio::time::sleep(FIRST_BACKOFF * (1 << self.resumes)).await;
        self.resumes += 1;
        match self.fetch_rest().await {
            Some(rest) => {
                tracing::debug!(url = self.url, received = self.received, "a download is resumed");
                self.body = rest;
                true
            }
            None => false,
        }
    }

    async fn fetch_rest(&mut self) -> Option<DownloadStream> {
        let link = &self.remote.link;
        let request = link.request(Method::GET, &self.url).header(RANGE, format!("bytes={}-", self.received));
        let request = request.header(IF_MATCH, format!("\"{}\"", self.md5));
        let answer = self.remote.send(&self.url, request, None, link.max_file_size).await.ok()?;
        let begin = format!("bytes {}-", self.received);
        let is_rest = answer.status() == StatusCode::PARTIAL_CONTENT
            && answer.etag_md5() == Some(self.md5)
            && answer.header(&CONTENT_RANGE).is_some_and(|range| range.starts_with(&begin));
        is_rest.then(|| answer.pieces())
    }
}

/// Fetches the first [`FETCH_WHOLE`] bytes now, which frees the connection of a small blob at once. The announced length
/// may be wrong, and it is the compressed length of a compressed answer.
async fn fetch_small(mut body: DownloadStream) -> DownloadStream {
    let (mut pieces, mut fetched) = (Vec::new(), 0);
    while fetched <= FETCH_WHOLE {
        let Some(piece) = body.next().await else { return stream::iter(pieces).boxed() };
        fetched += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        pieces.push(piece);
    }
    stream::iter(pieces).chain(body).boxed()
}

/// The deleted content that a 404 proves.
pub(super) fn tombstone(answer: &HttpReply, honest: bool) -> Result<Option<Md5>, RemoteError> {
    let shown = answer.header(&HeaderName::from_static(X_TOMBSTONE)).filter(|_| honest);
    shown.map(str::parse).transpose().map_err(|e| answer.protocol(&format!("{X_TOMBSTONE}: {e}")))
}
