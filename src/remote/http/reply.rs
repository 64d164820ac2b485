//! [`HttpReply`]: an answer, read with limits on its length, idle time and duration.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderName, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{self, Instant};

use super::classify::{self, ErrorBody};
use super::link::{MAX_SMALL, ProxyLink};
use crate::digest::Md5;
use crate::protocol::encoding::{Coding, Decoder, MAX_WINDOW};
use crate::protocol::{X_MEMSYNC_DEVICE, X_VERSION, decode_name};
use crate::remote::RemoteError;

/// The content coding of an answer.
enum ReplyCoding {
    Plain,
    /// Compressed, with the bytes that are not decoded yet.
    Encoded(Decoder, Bytes),
    /// The coding is unknown. The text is the reason.
    Unreadable(String),
}

impl ReplyCoding {
    fn of(headers: &HeaderMap) -> Self {
        let mut names = headers.get_all(CONTENT_ENCODING).iter().map(|value| value.to_str().unwrap_or("?").trim());
        let name = match (names.next(), names.next()) {
            (None, _) => return Self::Plain,
            (Some(name), None) if name.eq_ignore_ascii_case("identity") => return Self::Plain,
            (Some(name), None) => name,
            (Some(_), Some(_)) => return Self::Unreadable("it has more than one Content-Encoding".to_owned()),
        };
        match Coding::of(name).map(|coding| Decoder::new(coding, MAX_WINDOW)) {
            Some(Ok(decoder)) => Self::Encoded(decoder, Bytes::new()),
            Some(Err(e)) => Self::Unreadable(e.to_string()),
            None => Self::Unreadable(format!("it has the Content-Encoding {name:?}, which was not asked for")),
        }
    }
}

/// The head of an answer, and its body piece by piece.
pub(super) struct HttpReply {
    link: Arc<ProxyLink>,
    url: String,
    response: Response,
    coding: ReplyCoding,
    /// Most bytes of the plain body.
    cap: u64,
    /// Plain bytes so far.
    plain_bytes: u64,
    /// Bytes received so far.
    received_bytes: u64,
    began: Instant,
    permit: Option<OwnedSemaphorePermit>,
}

impl HttpReply {
    pub(super) fn new(
        link: Arc<ProxyLink>,
        url: &str,
        response: Response,
        cap: u64,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let coding = ReplyCoding::of(response.headers());
        Self {
            link,
            url: url.to_owned(),
            response,
            coding,
            cap,
            plain_bytes: 0,
            received_bytes: 0,
            began: Instant::now(),
            permit,
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header's text. `None`: missing or not ASCII.
    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// `Content-Length`: the bytes to receive, compressed or not.
    pub(super) fn received_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The length of the plain content, where the answer gives it.
    pub(super) fn length(&self) -> Option<u64> {
        self.received_length().filter(|_| matches!(self.coding, ReplyCoding::Plain))
    }

    /// True if the announced length exceeds the cap.
    pub(super) fn says_too_long(&self) -> bool {
        self.length().is_some_and(|n| n > self.cap)
    }

    /// The MD5 in a strong `ETag`.
    pub(super) fn etag_md5(&self) -> Option<Md5> {
        self.header(&http::header::ETAG)?.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
    }

    /// Describes an `ETag` without an MD5, and the likely cause.
    pub(super) fn describe_bad_etag(&self) -> String {
        match self.header(&http::header::ETAG) {
            None => "no ETag, which a Memory Proxy always sends".to_owned(),
            Some(etag) => format!(
                "the ETag {etag}, which is no MD5 in quotes; something in front of the proxy (a reverse proxy or a CDN that \
                 compresses answers) probably changes it: turn that off for this address"
            ),
        }
    }

    /// `X-Version`, or 0.
    pub(super) fn version(&self) -> u64 {
        let shown = self.header(&HeaderName::from_static(X_VERSION));
        shown.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// The device that wrote the content, where the proxy gives it.
    pub(super) fn device(&self) -> Option<String> {
        decode_name(self.header(&HeaderName::from_static(X_MEMSYNC_DEVICE))?)
    }

    pub(super) fn protocol(&self, why: &str) -> RemoteError {
        self.link.protocol(&self.url, why)
    }

    /// Makes protocol errors after the answer itself is consumed.
    pub(super) fn protocol_errors(&self) -> impl Fn(&str) -> RemoteError + Send + use<> {
        let (link, url) = (Arc::clone(&self.link), self.url.clone());
        move |why| link.protocol(&url, why)
    }

    /// The next piece of the plain body, `None` at the end.
    ///
    /// # Errors
    /// Cut off, idle or slow: `Unreachable` or `Slow`. Beyond the cap: `TooLarge`. A bad content coding: `Protocol`.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        loop {
            if let ReplyCoding::Unreadable(why) = &self.coding {
                return Err(self.protocol(why));
            }
            if let ReplyCoding::Encoded(decoder, pending) = &mut self.coding {
                match decoder.decode(pending) {
                    Ok(None) => {}
                    Ok(Some(piece)) => return self.within_cap(piece).map(Some),
                    Err(e) => return Err(self.protocol(&format!("the answer cannot be decoded: {e}"))),
                }
            }
            let piece = self.receive().await?;
            self.received_bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
            match (&mut self.coding, piece) {
                (ReplyCoding::Encoded(decoder, _), None) => {
                    let whole = decoder.finish();
                    return match whole {
                        Ok(()) => Ok(None),
                        Err(e) => Err(self.protocol(&format!("the answer cannot be decoded: {e}"))),
                    };
                }
                (ReplyCoding::Encoded(_, pending), Some(piece)) => *pending = piece,
                (_, None) => return Ok(None),
                (_, Some(piece)) => return self.within_cap(piece).map(Some),
            }
            // A coding adds few bytes, so this body is longer than the cap.
            if self.received_bytes > self.cap.saturating_add(self.cap / 8 + MAX_SMALL) {
                return Err(self.too_long());
            }
        }
    }

    fn within_cap(&mut self, piece: Bytes) -> Result<Bytes, RemoteError> {
        self.plain_bytes += piece.len() as u64;
        if self.plain_bytes > self.cap { Err(self.too_long()) } else { Ok(piece) }
    }

    fn too_long(&self) -> RemoteError {
        RemoteError::TooLarge { url: self.url.clone(), why: format!("the answer is longer than {} bytes", self.cap) }
    }

    /// The next piece as it was sent.
    async fn receive(&mut self) -> Result<Option<Bytes>, RemoteError> {
        let silent = Instant::now() + self.link.timeout;
        // The received bytes extend the time limit. The announced length does not.
        let slow = self.began + self.link.total_timeout(self.received_bytes);
        match time::timeout_at(silent.min(slow), self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(e)) => Err(self.link.transport_error(&self.url, "the answer broke off: ", &e)),
            Err(_) if slow < silent => Err(RemoteError::Slow {
                url: self.url.clone(),
                bytes: self.received_bytes,
                time: Duration::from_secs(self.began.elapsed().as_secs()),
            }),
            Err(_) => Err(self.link.unreachable(&self.url, "the answer stopped half-way")),
        }
    }

    /// The next piece of an endless answer. `Unreachable`: it ended, broke, or was idle for `idle_timeout`.
    pub(super) async fn next_endless(&mut self, idle_timeout: Duration) -> Result<Bytes, RemoteError> {
        match time::timeout(idle_timeout, self.response.chunk()).await {
            Ok(Ok(Some(piece))) => Ok(piece),
            Ok(Ok(None)) => Err(self.link.unreachable(&self.url, "the stream of events ended")),
            Ok(Err(e)) => Err(self.link.transport_error(&self.url, "", &e)),
            Err(_) => Err(self.link.unreachable(&self.url, &format!("no sign of life for {idle_timeout:?}"))),
        }
    }

    /// The whole body, up to `limit` bytes. Errors as for [`HttpReply::next`].
    pub(super) async fn read(mut self, limit: u64) -> Result<Bytes, RemoteError> {
        self.cap = self.cap.min(limit);
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// Reads a short rest of the body, so that the connection can be reused. Failures do not matter.
    pub(super) async fn finish(mut self) {
        self.cap = self.cap.min(MAX_SMALL);
        while let Ok(Some(_)) = self.next().await {}
    }

    /// The body of an error answer. Empty if it is too long or breaks off.
    pub(super) async fn error_body(mut self) -> ErrorBody {
        self.cap = MAX_SMALL;
        match self.read(MAX_SMALL).await {
            Ok(body) => ErrorBody::parse(&body),
            Err(_) => ErrorBody::default(),
        }
    }

    /// The error for this answer, which has an unexpected status.
    pub(super) async fn refusal(self) -> RemoteError {
        self.refusal_and_code().await.0
    }

    /// [`HttpReply::refusal`], with the `error_code` of its body.
    pub(super) async fn refusal_and_code(self) -> (RemoteError, Option<String>) {
        let (status, headers) = (self.status(), self.headers().clone());
        let (link, url) = (Arc::clone(&self.link), self.url.clone());
        let body = self.error_body().await;
        let error = classify::refusal(&url, status, &headers, &body, |text| link.clean(text));
        (error, body.error_code)
    }

    /// The body as a stream. It releases its permit, so that a caller may hold it during other requests.
    pub(super) fn pieces(mut self) -> BoxStream<'static, Result<Bytes, RemoteError>> {
        self.permit = None;
        stream::try_unfold(self, |mut answer| async move { Ok(answer.next().await?.map(|piece| (piece, answer))) })
            .boxed()
    }
}
