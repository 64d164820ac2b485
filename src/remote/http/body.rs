//! What comes and goes: answers read with limits on length, silence and duration, and uploads from a
//! blocking [`Source`].

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderName, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{self, JoinHandle};
use tokio::time::{self, Instant};

use super::{Inner, MAX_SMALL, classify};
use crate::digest::Md5;
use crate::protocol::encoding::{Coding, Decoder, MAX_WINDOW};
use crate::protocol::{X_MEMSYNC_DEVICE, X_VERSION, decode_name};
use crate::remote::{BodySource, RemoteError};

/// When a transfer last showed a sign of life; `None` once none can be seen any more.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<Option<Instant>>>);

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    pub(super) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Everything is on its way: how much of it is still in buffers cannot be seen from here.
    fn out_of_sight(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns when there was no sign of life for `silence`, or at `deadline`.
    pub(super) async fn idle(&self, silence: Duration, deadline: Instant) {
        loop {
            let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let due = seen.map_or(deadline, |at| (at + silence).min(deadline));
            if Instant::now() >= due {
                return;
            }
            time::sleep_until(due).await;
        }
    }
}

/// What the body of an answer is.
enum Body {
    Plain,
    /// And what has come of it, but is not unpacked yet.
    Packed(Decoder, Bytes),
    /// It cannot be read; why.
    Strange(String),
}

impl Body {
    fn of(headers: &HeaderMap) -> Self {
        let mut names = headers.get_all(CONTENT_ENCODING).iter().map(|value| value.to_str().unwrap_or("?").trim());
        let name = match (names.next(), names.next()) {
            (None, _) => return Self::Plain,
            (Some(name), None) if name.eq_ignore_ascii_case("identity") => return Self::Plain,
            (Some(name), None) => name,
            (Some(_), Some(_)) => return Self::Strange("it is packed more than once".to_owned()),
        };
        match Coding::of(name).map(|coding| Decoder::new(coding, MAX_WINDOW)) {
            Some(Ok(decoder)) => Self::Packed(decoder, Bytes::new()),
            Some(Err(e)) => Self::Strange(e.to_string()),
            None => Self::Strange(format!("it is packed as {name:?}, which was not asked for")),
        }
    }
}

/// The head of an answer, and its body piece by piece.
pub(in crate::remote) struct HttpReply {
    inner: Arc<Inner>,
    url: String,
    response: Response,
    coding: Body,
    /// The most bytes that may come, unpacked.
    cap: u64,
    seen: u64,
    /// Bytes that came, packed or not.
    came: u64,
    began: Instant,
    permit: Option<OwnedSemaphorePermit>,
}

impl HttpReply {
    pub(super) fn new(
        inner: Arc<Inner>,
        url: &str,
        response: Response,
        cap: u64,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let coding = Body::of(response.headers());
        Self { inner, url: url.to_owned(), response, coding, cap, seen: 0, came: 0, began: Instant::now(), permit }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header's text; `None` where it is missing or not ASCII.
    pub(in crate::remote) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// `Content-Length`: what will come, packed or not.
    pub(super) fn comes(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// How long the content is, where the answer says that.
    pub(super) fn length(&self) -> Option<u64> {
        self.comes().filter(|_| matches!(self.coding, Body::Plain))
    }

    /// Whether the answer says that it is longer than the cap.
    pub(super) fn says_too_long(&self) -> bool {
        self.length().is_some_and(|n| n > self.cap)
    }

    /// The digest that a strong `ETag` names.
    pub(super) fn etag_md5(&self) -> Option<Md5> {
        self.header(&http::header::ETAG)?.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
    }

    /// Says what is wrong with an `ETag` that names no MD5, and who probably did it.
    pub(super) fn odd_etag(&self) -> String {
        match self.header(&http::header::ETAG) {
            None => "no ETag, which a Memory Proxy always sends".to_owned(),
            Some(etag) => format!(
                "the ETag {etag}, which is no MD5 in quotes; something in front of the proxy (a reverse proxy or a CDN that \
                 compresses answers) probably changes it: turn that off for this address"
            ),
        }
    }

    /// `X-Version`; 0 where there is none that is a number.
    pub(super) fn version(&self) -> u64 {
        let shown = self.header(&HeaderName::from_static(X_VERSION));
        shown.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// The machine that wrote the content, where the proxy says so.
    pub(super) fn device(&self) -> Option<String> {
        decode_name(self.header(&HeaderName::from_static(X_MEMSYNC_DEVICE))?)
    }

    pub(in crate::remote) fn protocol(&self, why: &str) -> RemoteError {
        self.inner.protocol(&self.url, why)
    }

    /// Makes the errors of [`Answer::protocol`] when the answer itself is used up.
    pub(super) fn protester(&self) -> impl Fn(&str) -> RemoteError + Send + use<> {
        let (inner, url) = (Arc::clone(&self.inner), self.url.clone());
        move |why| inner.protocol(&url, why)
    }

    /// The next piece, unpacked, `None` at the end.
    ///
    /// # Errors
    /// Cut off, silent or slow: `Unreachable`. Beyond the cap: `TooLarge`. What cannot be unpacked: `Protocol`.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        loop {
            if let Body::Strange(why) = &self.coding {
                return Err(self.protocol(why));
            }
            if let Body::Packed(decoder, packed) = &mut self.coding {
                match decoder.decode(packed) {
                    Ok(None) => {}
                    Ok(Some(piece)) => return self.within_cap(piece).map(Some),
                    Err(e) => return Err(self.protocol(&format!("the answer cannot be unpacked: {e}"))),
                }
            }
            let piece = self.come().await?;
            self.came += piece.as_ref().map_or(0, |piece| piece.len() as u64);
            match (&mut self.coding, piece) {
                (Body::Packed(decoder, _), None) => {
                    let whole = decoder.finish();
                    return match whole {
                        Ok(()) => Ok(None),
                        Err(e) => Err(self.protocol(&format!("the answer cannot be unpacked: {e}"))),
                    };
                }
                (Body::Packed(_, packed), Some(piece)) => *packed = piece,
                (_, None) => return Ok(None),
                (_, Some(piece)) => return self.within_cap(piece).map(Some),
            }
            // No coding makes much more of anything: such a one goes on for ever.
            if self.came > self.cap.saturating_add(self.cap / 8 + MAX_SMALL) {
                return Err(self.too_long());
            }
        }
    }

    fn within_cap(&mut self, piece: Bytes) -> Result<Bytes, RemoteError> {
        self.seen += piece.len() as u64;
        if self.seen > self.cap { Err(self.too_long()) } else { Ok(piece) }
    }

    fn too_long(&self) -> RemoteError {
        RemoteError::TooLarge { url: self.url.clone(), why: format!("the answer is longer than {} bytes", self.cap) }
    }

    /// What comes next, packed or not.
    async fn come(&mut self) -> Result<Option<Bytes>, RemoteError> {
        let silent = Instant::now() + self.inner.timeout;
        // What has come buys time for what follows, whatever length the answer claims.
        let slow = self.began + self.inner.total(self.came);
        match time::timeout_at(silent.min(slow), self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(e)) => Err(match classify::transport(&e) {
                classify::Transport::Unreachable(why) => {
                    self.inner.unreachable(&self.url, &format!("the answer broke off: {why}"))
                }
                classify::Transport::Protocol(why) => self.protocol(&why),
            }),
            Err(_) if slow < silent => Err(RemoteError::Slow {
                url: self.url.clone(),
                bytes: self.came,
                time: Duration::from_secs(self.began.elapsed().as_secs()),
            }),
            Err(_) => Err(self.inner.unreachable(&self.url, "the answer stopped half-way")),
        }
    }

    /// The next piece of an answer without end.
    ///
    /// # Errors
    /// `Unreachable` when it ends, breaks, or is silent for `silence`.
    pub(in crate::remote) async fn next_endless(&mut self, silence: Duration) -> Result<Bytes, RemoteError> {
        match time::timeout(silence, self.response.chunk()).await {
            Ok(Ok(Some(piece))) => Ok(piece),
            Ok(Ok(None)) => Err(self.inner.unreachable(&self.url, "the stream of events ended")),
            Ok(Err(e)) => Err(self.inner.transport(&self.url, &e)),
            Err(_) => Err(self.inner.unreachable(&self.url, &format!("no sign of life for {silence:?}"))),
        }
    }

    /// The whole body, up to `limit` bytes.
    ///
    /// # Errors
    /// As [`Answer::next`].
    pub(super) async fn read(mut self, limit: u64) -> Result<Bytes, RemoteError> {
        self.cap = self.cap.min(limit);
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// Reads on to the end where that is near, so that the connection can be used again. The head was the
    /// answer: how the rest fares does not change it.
    pub(super) async fn finish(mut self) {
        self.cap = self.cap.min(MAX_SMALL);
        while let Ok(Some(_)) = self.next().await {}
    }

    /// What the body of an error answer tells; nothing where it is too long or breaks off.
    pub(super) async fn told(mut self) -> classify::Told {
        self.cap = MAX_SMALL;
        match self.read(MAX_SMALL).await {
            Ok(body) => classify::Told::parse(&body),
            Err(_) => classify::Told::default(),
        }
    }

    /// The error that this answer is, where it is none of those the request allows for.
    pub(super) async fn refusal(self) -> RemoteError {
        self.refused().await.0
    }

    /// [`Answer::refusal`], and its `error_code` where it has one.
    pub(super) async fn refused(self) -> (RemoteError, Option<String>) {
        let (status, headers) = (self.status(), self.headers().clone());
        let (inner, url) = (Arc::clone(&self.inner), self.url.clone());
        let told = self.told().await;
        let error = classify::refusal(&url, status, &headers, &told, |text| inner.clean(text));
        (error, told.error_code)
    }

    /// The body as a stream. It no longer counts against the limit of requests, so that a caller may hold it while
    /// asking for something else.
    pub(super) fn pieces(mut self) -> BoxStream<'static, Result<Bytes, RemoteError>> {
        self.permit = None;
        stream::try_unfold(self, |mut answer| async move { Ok(answer.next().await?.map(|piece| (piece, answer))) })
            .boxed()
    }
}

/// A body on its way up, and why it was given up if it was.
#[derive(Clone)]
pub(super) struct Upload {
    pub(super) progress: Progress,
    failure: Arc<Mutex<Option<String>>>,
    stopped: Arc<AtomicBool>,
}

/// Stops the upload when it goes.
pub(super) struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Upload {
    pub(super) fn new() -> Self {
        Self { progress: Progress::new(), failure: Arc::default(), stopped: Arc::default() }
    }

    /// Nothing more is read or sent once the guard is gone.
    pub(super) fn stop_on_drop(&self) -> StopOnDrop {
        StopOnDrop(Arc::clone(&self.stopped))
    }

    /// Why the source failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, why: String) -> io::Error {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        io::Error::other("the source failed")
    }

    /// The pieces of `source`, which must be `size` bytes together. One piece is read ahead on a blocking
    /// thread while the last one is sent, and the very last is not let go before the source has said that it
    /// was the last. An error of the source aborts the request.
    pub(super) fn stream(
        &self,
        source: Box<dyn BodySource>,
        size: u64,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let upload = self.clone();
        stream::try_unfold((Some(read_ahead(source)), size), move |(reading, left)| {
            let upload = upload.clone();
            async move {
                let Some(reading) = reading else { return Ok(None) };
                let (source, piece) = upload.take(reading).await?;
                let piece = piece.ok_or_else(|| upload.fail(SHORTER.to_owned()))?;
                let left = left.checked_sub(piece.len() as u64).ok_or_else(|| upload.fail(LONGER.to_owned()))?;
                let next = read_ahead(source);
                if left > 0 {
                    return Ok(Some((piece, (Some(next), left))));
                }
                match upload.take(next).await? {
                    (_, None) => {
                        upload.progress.out_of_sight();
                        Ok(Some((piece, (None, 0))))
                    }
                    (_, Some(_)) => Err(upload.fail(LONGER.to_owned())),
                }
            }
        })
    }

    /// What was read ahead.
    async fn take(&self, reading: Ahead) -> io::Result<(Box<dyn BodySource>, Option<Bytes>)> {
        let (source, piece) = reading.await.map_err(|e| self.fail(format!("reading it failed: {e}")))?;
        self.progress.touch();
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other("the answer has come already"));
        }
        Ok((source, piece.map_err(|e| self.fail(e.to_string()))?))
    }
}

const SHORTER: &str = "the file became shorter while it was read";
const LONGER: &str = "the file became longer while it was read";

type Ahead = JoinHandle<(Box<dyn BodySource>, io::Result<Option<Bytes>>)>;

fn read_ahead(mut source: Box<dyn BodySource>) -> Ahead {
    task::spawn_blocking(move || {
        let piece = source.next();
        (source, piece)
    })
}

/// All of a small source.
///
/// # Errors
/// [`RemoteError::Source`] when it fails or is not `size` bytes.
pub(super) async fn read_source(source: Box<dyn BodySource>, size: u64) -> Result<Bytes, RemoteError> {
    let reading = task::spawn_blocking(move || whole(source, size));
    match reading.await {
        Ok(result) => result.map_err(RemoteError::Source),
        Err(e) => Err(RemoteError::Source(format!("reading it failed: {e}"))),
    }
}

/// [`read_source`] on this thread, which it blocks. The error is for people.
pub(super) fn whole(mut source: Box<dyn BodySource>, size: u64) -> Result<Bytes, String> {
    let Some(first) = source.next().map_err(|e| e.to_string())? else {
        return if size == 0 { Ok(Bytes::new()) } else { Err(SHORTER.to_owned()) };
    };
    // Most come in one piece, which need not be copied.
    let mut rest = BytesMut::new();
    let mut read = first.len() as u64;
    while read <= size {
        let Some(piece) = source.next().map_err(|e| e.to_string())? else { break };
        if rest.is_empty() {
            rest.extend_from_slice(&first);
        }
        rest.extend_from_slice(&piece);
        read += piece.len() as u64;
    }
    match read.cmp(&size) {
        std::cmp::Ordering::Less => Err(SHORTER.to_owned()),
        std::cmp::Ordering::Greater => Err(LONGER.to_owned()),
        std::cmp::Ordering::Equal if rest.is_empty() => Ok(first),
        std::cmp::Ordering::Equal => Ok(rest.freeze()),
    }
}
