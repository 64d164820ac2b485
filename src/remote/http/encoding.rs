//! Compressed uploads (capability `encoding`), where they pay: the proxy accepts them, it is on another machine, and the
//! content shrinks.

use bytes::Bytes;
use futures::StreamExt;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{Method, StatusCode};
use reqwest::{Body, RequestBuilder};
use tokio::task;

use super::client::HttpRemote;
use super::link::MAX_SMALL;
use super::reply::HttpReply;
use super::upload::{Progress, Upload, read_blocking};
use crate::digest::Md5;
use crate::protocol::encoding::Coding;
use crate::protocol::packing::pack_stream;
use crate::protocol::{X_MEMSYNC_MD5, capability};
use crate::remote::{RemoteError, UploadBody};

/// The coding for uploads and answers. A proxy with the capability knows zstd.
pub(super) const CODING: Coding = Coding::Zstd;
/// Sources up to this size, in bytes, are read before the request begins, so that a failing one sends nothing.
const READ_FIRST: u64 = 256 * 1024;

/// Error codes for a content that a server on the way has decoded, or whose `Content-Encoding` it has removed.
const ENCODING_ERRORS: [&str; 4] = ["UNSUPPORTED_ENCODING", "INVALID_ENCODING", "DIGEST_MISMATCH", "INVALID_BATCH"];

/// `error_code` of a proxy without memory for decoding. It may accept the plain content.
pub(super) const BUSY: &str = "BUSY";

impl HttpRemote {
    /// True if requests ask for compressed answers. On this machine compression costs more than it saves.
    async fn accepts_encoding(&self) -> Result<bool, RemoteError> {
        Ok(!self.link.loopback && self.supports(capability::ENCODING).await?)
    }

    /// True if contents are sent compressed.
    pub(super) async fn sends_encoded(&self) -> Result<bool, RemoteError> {
        Ok(self.accepts_encoding().await? && !self.link.facts.lock().refuses_encoding)
    }

    /// A request whose answer may come compressed.
    pub(super) async fn request_accepting_encoding(
        &self,
        method: Method,
        url: &str,
    ) -> Result<RequestBuilder, RemoteError> {
        let request = self.link.request(method, url);
        Ok(if self.accepts_encoding().await? { request.header(ACCEPT_ENCODING, CODING.name()) } else { request })
    }

    /// Sends `packed`, if there is one.
    pub(super) async fn try_encoded(
        &self,
        url: &str,
        request: &RequestBuilder,
        packed: Option<Bytes>,
        cap: u64,
    ) -> Result<EncodedOutcome, RemoteError> {
        let (Some(packed), Some(request)) = (packed, request.try_clone()) else { return Ok(EncodedOutcome::Refused) };
        let size = packed.len() as u64;
        let request = request.header(CONTENT_ENCODING, CODING.name()).body(packed);
        let answer = self.send(url, request, Some((&Progress::new(), size)), cap).await?;
        self.check_encoding(answer).await
    }

    /// Sends a plain content.
    pub(super) async fn send_plain(
        &self,
        url: &str,
        request: RequestBuilder,
        plain: Bytes,
        cap: u64,
    ) -> Result<HttpReply, RemoteError> {
        let size = plain.len() as u64;
        let request = request.header(CONTENT_LENGTH, size).body(plain);
        self.send(url, request, Some((&Progress::new(), size)), cap).await
    }

    /// The outcome of a compressed content. A proxy that refuses the coding gets only plain contents from then on.
    async fn check_encoding(&self, answer: HttpReply) -> Result<EncodedOutcome, RemoteError> {
        let busy = answer.status() == StatusCode::SERVICE_UNAVAILABLE;
        if !busy && !matches!(answer.status(), StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE) {
            return Ok(EncodedOutcome::Answered(Box::new(answer)));
        }
        let (error, code) = answer.refusal_and_code().await;
        match code.as_deref() {
            Some(BUSY) if busy => Ok(EncodedOutcome::Busy(error)),
            _ if busy => Err(error),
            Some(code) if !ENCODING_ERRORS.contains(&code) => Err(error),
            // An answer without a code comes from a server on the way.
            _ => {
                self.link.facts.lock().refuses_encoding = true;
                Ok(EncodedOutcome::Refused)
            }
        }
    }

    /// Sends a content. `request` has all other headers. The error `Source` means that the content could not be read.
    pub(super) async fn send_content(
        &self,
        url: &str,
        request: RequestBuilder,
        body: UploadBody,
        upload: &Upload,
    ) -> Result<HttpReply, RemoteError> {
        if body.size <= READ_FIRST {
            self.send_whole(url, request, body).await
        } else {
            self.send_stream(url, request, body, upload).await
        }
    }

    async fn send_whole(&self, url: &str, request: RequestBuilder, body: UploadBody) -> Result<HttpReply, RemoteError> {
        let UploadBody { md5, size, source } = body;
        let compress = self.sends_encoded().await?;
        let reading = task::spawn_blocking(move || read_blocking(source, size)).await;
        let plain = reading.unwrap_or_else(|e| Err(format!("reading it failed: {e}"))).map_err(RemoteError::Source)?;
        // A content that cannot be compressed goes plain.
        let packed = if compress { CODING.pack(&plain).unwrap_or(None) } else { None };
        // The source is read, so its digest is known.
        let (request, packed) = match (packed, md5.get()) {
            (Some(packed), Some(md5)) => (with_digest(request, md5), Some(packed)),
            _ => (request, None),
        };
        match self.try_encoded(url, &request, packed, MAX_SMALL).await? {
            EncodedOutcome::Answered(answer) => Ok(*answer),
            // Nothing was done. The proxy may have memory for the plain content.
            EncodedOutcome::Busy(_) | EncodedOutcome::Refused => self.send_plain(url, request, plain, MAX_SMALL).await,
        }
    }

    async fn send_stream(
        &self,
        url: &str,
        request: RequestBuilder,
        body: UploadBody,
        upload: &Upload,
    ) -> Result<HttpReply, RemoteError> {
        let UploadBody { md5, size, source } = body;
        let compress = self.sends_encoded().await?;
        let pieces = upload.stream(source, size).boxed();
        // A compressed content needs its digest in a header. Without a known digest it goes plain.
        let promised = md5.get().filter(|_| compress);
        let (pieces, packed) =
            if promised.is_some() { pack_stream(CODING, size, pieces).await } else { (pieces, false) };
        let request = match promised.filter(|_| packed) {
            Some(md5) => with_digest(request, md5).header(CONTENT_ENCODING, CODING.name()),
            None => request.header(CONTENT_LENGTH, size),
        };
        let request = request.body(Body::wrap_stream(pieces));
        let answer = match (self.send(url, request, Some((&upload.progress, size)), MAX_SMALL).await, upload.failure())
        {
            (Ok(answer), _) => answer,
            (Err(_), Some(why)) => return Err(RemoteError::Source(why)),
            (Err(e), None) => return Err(e),
        };
        // The answer to an aborted body says nothing about the coding.
        if !packed || upload.failure().is_some() {
            return Ok(answer);
        }
        // If the content must go plain, the retry sends it so: the source cannot be read again.
        match self.check_encoding(answer).await? {
            EncodedOutcome::Answered(answer) => Ok(*answer),
            EncodedOutcome::Busy(error) => {
                // Until the proxy is unreachable once.
                self.link.facts.lock().refuses_encoding = true;
                Err(error)
            }
            EncodedOutcome::Refused => Err(self
                .link
                .protocol(url, "it offers to decode compressed uploads but refused one; uploads go plain from now on")),
        }
    }
}

/// The outcome of a request with a compressed content. Without an answer, the proxy has done nothing.
pub(super) enum EncodedOutcome {
    Answered(Box<HttpReply>),
    /// The proxy has no memory for decoding now. It may accept the plain content.
    Busy(RemoteError),
    /// The content must go plain.
    Refused,
}

/// Adds the digest of the plain content, so that a body without its `Content-Encoding` is not stored.
fn with_digest(request: RequestBuilder, md5: Md5) -> RequestBuilder {
    request.header(X_MEMSYNC_MD5, md5.to_string())
}
