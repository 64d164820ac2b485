//! A download that breaks off goes on where it stopped, as long as the proxy has the same content and answers ranges.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use http::header::{ACCEPT_RANGES, CONTENT_RANGE, IF_MATCH, RANGE};
use http::{Method, StatusCode};

use super::HttpRemote;
use super::body::HttpReply;
use super::flat::Pieces;
use crate::digest::Md5;
use crate::remote::RemoteError;

/// How often one download is taken up again.
const RESUMES: u32 = 8;
/// Before the first of them; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A download under way.
struct Download {
    remote: HttpRemote,
    url: String,
    md5: Md5,
    body: Pieces,
    /// Bytes of the content that came.
    came: u64,
    resumes: u32,
}

/// True if the proxy says that it answers ranges of this content.
pub(super) fn has_ranges(answer: &HttpReply) -> bool {
    answer.header(&ACCEPT_RANGES).is_some_and(|units| units.split(',').any(|unit| unit.trim() == "bytes"))
}

impl HttpRemote {
    /// `body`, the content `md5` at `url`, whose rest is asked for where it breaks off.
    pub(super) fn resuming(&self, url: String, md5: Md5, body: Pieces) -> Pieces {
        let download = Download { remote: self.clone(), url, md5, body, came: 0, resumes: 0 };
        stream::unfold(Some(download), |download| async move {
            let mut download = download?;
            loop {
                match download.body.next().await? {
                    Ok(piece) => {
                        download.came += piece.len() as u64;
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
    /// Asks for what has not come. False: it cannot go on.
    async fn resume(&mut self, why: &RemoteError) -> bool {
        let broke_off = matches!(why, RemoteError::Unreachable { .. });
        if !broke_off || self.came == 0 || self.resumes >= RESUMES {
            return false;
        }
        // The old connection is given up before a new one is asked for.
        self.body = stream::empty().boxed();
        tokio::time::sleep(FIRST_PAUSE * (1 << self.resumes)).await;
        self.resumes += 1;
        match self.rest().await {
            Some(rest) => {
                tracing::debug!(url = self.url, came = self.came, "a download goes on");
                self.body = rest;
                true
            }
            None => false,
        }
    }

    async fn rest(&mut self) -> Option<Pieces> {
        let inner = &self.remote.inner;
        let request = inner.request(Method::GET, &self.url).header(RANGE, format!("bytes={}-", self.came));
        let request = request.header(IF_MATCH, format!("\"{}\"", self.md5));
        let answer = inner.send(&self.url, request, None, inner.max_file_size).await.ok()?;
        let begin = format!("bytes {}-", self.came);
        let is_rest = answer.status() == StatusCode::PARTIAL_CONTENT
            && answer.etag_md5() == Some(self.md5)
            && answer.header(&CONTENT_RANGE).is_some_and(|range| range.starts_with(&begin));
        is_rest.then(|| answer.pieces())
    }
}
