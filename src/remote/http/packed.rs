//! Contents on their way up, packed (capability `encoding`) where that pays: the proxy takes it, the way there is longer
//! than this machine, and the content gets smaller by it.

use std::io;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::StatusCode;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use reqwest::{Body, RequestBuilder};

use super::body::{HttpReply, Progress, Upload, read_source};
use super::{HttpRemote, MAX_SMALL};
use crate::digest::Md5;
use crate::protocol::encoding::{Coding, CodingError, Encoder, is_worth_it};
use crate::protocol::{X_MEMSYNC_MD5, capability};
use crate::remote::{RemoteError, UploadBody};

/// What we pack with, and ask for: gzip is what others know who do not know this, and then they need nothing at all.
pub(super) const CODING: Coding = Coding::Zstd;
/// Sources up to this size, bytes, are read before the request begins, so that a bad one never shows on the wire.
const READ_FIRST: u64 = 256 * 1024;

/// What a proxy answers to a content that something on the way unpacked, or robbed of the header that says it is packed.
const ABOUT_PACKING: [&str; 4] = ["UNSUPPORTED_ENCODING", "INVALID_ENCODING", "DIGEST_MISMATCH", "INVALID_BATCH"];

/// What a proxy answers that has no room for unpacking for now: it may take the content as it is.
pub(super) const BUSY: &str = "BUSY";

type Pieces = BoxStream<'static, io::Result<Bytes>>;

impl HttpRemote {
    /// Whether answers are asked for packed. What stays on this machine is not: there, bytes cost less than packing.
    ///
    /// # Errors
    /// As [`HttpRemote::capabilities`].
    pub(super) async fn wants_packed(&self) -> Result<bool, RemoteError> {
        Ok(!self.inner.loopback && self.supports(capability::ENCODING).await?)
    }

    /// Whether contents are sent packed.
    ///
    /// # Errors
    /// As [`HttpRemote::capabilities`].
    pub(super) async fn sends_packed(&self) -> Result<bool, RemoteError> {
        Ok(self.wants_packed().await? && !self.inner.known().refuses_packed)
    }

    /// The request, asking for a packed answer where `wanted`.
    pub(super) fn ask_packed(request: RequestBuilder, wanted: bool) -> RequestBuilder {
        if wanted { request.header(ACCEPT_ENCODING, CODING.name()) } else { request }
    }

    /// Sends `plain`, or in its place `packed`. Where the proxy does not take that (something on the way may have
    /// unpacked it, or changed its headers) it has done nothing, gets the plain content, and from then on only that. Where
    /// it only has no room for unpacking, it gets this one plain.
    async fn send_either(
        &self,
        url: &str,
        request: RequestBuilder,
        plain: Bytes,
        packed: Option<Bytes>,
        cap: u64,
    ) -> Result<HttpReply, RemoteError> {
        match self.try_packed(url, &request, packed, cap).await? {
            Tried::Answered(answer) => Ok(*answer),
            Tried::Busy | Tried::Refused => self.send_plain(url, request, plain, cap).await,
        }
    }

    /// Sends `packed`, where there is such a thing. Who refuses it for being packed gets from then on all plain.
    pub(super) async fn try_packed(
        &self,
        url: &str,
        request: &RequestBuilder,
        packed: Option<Bytes>,
        cap: u64,
    ) -> Result<Tried, RemoteError> {
        let (Some(packed), Some(request)) = (packed, request.try_clone()) else { return Ok(Tried::Refused) };
        let size = packed.len() as u64;
        let request = request.header(CONTENT_ENCODING, CODING.name()).body(packed);
        let answer = self.inner.send(url, request, Some((&Progress::new(), size)), cap).await?;
        match self.about_packing(answer).await {
            Ok(answer) => Ok(Tried::Answered(Box::new(answer))),
            Err(Against::Packing) => {
                self.inner.known().refuses_packed = true;
                Ok(Tried::Refused)
            }
            Err(Against::Unpacking(_)) => Ok(Tried::Busy),
            Err(Against::Else(error)) => Err(error),
        }
    }

    /// Sends a content as it is.
    pub(super) async fn send_plain(
        &self,
        url: &str,
        request: RequestBuilder,
        plain: Bytes,
        cap: u64,
    ) -> Result<HttpReply, RemoteError> {
        let size = plain.len() as u64;
        let request = request.header(CONTENT_LENGTH, size).body(plain);
        self.inner.send(url, request, Some((&Progress::new(), size)), cap).await
    }

    /// The answer to a packed content, where it says nothing against the packing.
    ///
    /// # Errors
    /// What it refuses.
    async fn about_packing(&self, answer: HttpReply) -> Result<HttpReply, Against> {
        let busy = answer.status() == StatusCode::SERVICE_UNAVAILABLE;
        if !busy && !matches!(answer.status(), StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE) {
            return Ok(answer);
        }
        let (error, code) = answer.refused().await;
        Err(match code.as_deref() {
            Some(BUSY) if busy => Against::Unpacking(error),
            _ if busy => Against::Else(error),
            Some(code) if !ABOUT_PACKING.contains(&code) => Against::Else(error),
            // Who gives no code is not the proxy.
            _ => Against::Packing,
        })
    }

    /// Sends a content with a request whose other headers are all there.
    ///
    /// # Errors
    /// `Source` when it could not be read to its end; else as any request.
    pub(super) async fn send_content(
        &self,
        url: &str,
        request: RequestBuilder,
        body: UploadBody,
        upload: &Upload,
    ) -> Result<HttpReply, RemoteError> {
        let UploadBody { md5, size, source } = body;
        let pack = self.sends_packed().await?;
        if size <= READ_FIRST {
            let plain = read_source(source, size).await?;
            // What cannot be packed goes as it is.
            let packed = if pack { CODING.pack(&plain).unwrap_or(None) } else { None };
            // It is read now, so that its digest is known.
            let (request, packed) = match (packed, md5.get()) {
                (Some(packed), Some(md5)) => (promise(request, md5), Some(packed)),
                _ => (request, None),
            };
            return self.send_either(url, request, plain, packed, MAX_SMALL).await;
        }
        let pieces = upload.stream(source, size).boxed();
        // What nobody has digested yet goes as it is: nothing could be promised of it.
        let promised = md5.get().filter(|_| pack);
        let (pieces, packed) = if promised.is_some() { try_packing(pieces, size).await } else { (pieces, false) };
        let request = match promised.filter(|_| packed) {
            Some(md5) => promise(request, md5).header(CONTENT_ENCODING, CODING.name()),
            None => request.header(CONTENT_LENGTH, size),
        };
        let request = request.body(Body::wrap_stream(pieces));
        let answer =
            match (self.inner.send(url, request, Some((&upload.progress, size)), MAX_SMALL).await, upload.failure()) {
                (Ok(answer), _) => answer,
                (Err(_), Some(why)) => return Err(RemoteError::Source(why)),
                (Err(e), None) => return Err(e),
            };
        // What is said of a body that was given up is not about the packing.
        if !packed || upload.failure().is_some() {
            return Ok(answer);
        }
        match self.about_packing(answer).await {
            Ok(answer) => Ok(answer),
            // It cannot be read again: the next tries send all plain, until the proxy could not be reached for once.
            Err(Against::Unpacking(error)) => {
                self.inner.known().refuses_packed = true;
                Err(error)
            }
            Err(Against::Packing) => {
                // It cannot be read again: the next try sends it plain.
                self.inner.known().refuses_packed = true;
                Err(self
                    .inner
                    .protocol(url, "it offers to unpack what it gets, and refused this; it gets no more packed"))
            }
            Err(Against::Else(error)) => Err(error),
        }
    }
}

/// What became of a request with a packed content. Unless it was answered, nothing was done.
pub(super) enum Tried {
    Answered(Box<HttpReply>),
    /// There is no room for it now.
    Busy,
    /// It is to go plain.
    Refused,
}

/// What the answer to a packed content is against; nothing was done.
enum Against {
    /// Any packing.
    Packing,
    /// Unpacking it now: there is no room for it.
    Unpacking(RemoteError),
    /// Something else about the request.
    Else(RemoteError),
}

/// A packed body whose `Content-Encoding` got lost on the way must not be taken for a content.
fn promise(request: RequestBuilder, md5: Md5) -> RequestBuilder {
    request.header(X_MEMSYNC_MD5, md5.to_string())
}

/// The pieces packed, where the first one gets smaller by it, and else as they are; and whether they are packed.
async fn try_packing(mut pieces: Pieces, size: u64) -> (Pieces, bool) {
    let first = match pieces.next().await {
        Some(Ok(first)) => first,
        other => return (stream::iter(other).chain(pieces).boxed(), false),
    };
    let trial = Encoder::new(CODING, Some(size)).and_then(|mut encoder| Ok((encoder.flush(&first)?, encoder)));
    match trial {
        Ok((packed, encoder)) if is_worth_it(first.len(), packed.len()) => {
            let rest = stream::try_unfold((Some(encoder), pieces), |(encoder, mut pieces)| async move {
                let Some(mut encoder) = encoder else { return Ok(None) };
                let failed = |e: CodingError| io::Error::other(e);
                Ok(Some(match pieces.next().await {
                    Some(piece) => (encoder.encode(&piece?).map_err(failed)?, (Some(encoder), pieces)),
                    None => (encoder.finish(&[]).map_err(failed)?, (None, pieces)),
                }))
            });
            (stream::iter([Ok(packed)]).chain(rest).boxed(), true)
        }
        _ => (stream::iter([Ok(first)]).chain(pieces).boxed(), false),
    }
}
