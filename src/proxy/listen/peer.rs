//! [`Peer`]: the other end of a connection, and the phase that the connection is in. [`TimedStream`] fails when its peer is
//! too slow in sending a head or in taking a response.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::proxy::auth::caller::Caller;
use crate::proxy::body::TransferDeadline;
use crate::proxy::limits::connections::{NameCounts, NameSlot, NetworkAddress, UnauthenticatedSlot};
use crate::proxy::metrics::Metrics;
use crate::proxy::options::ProxyOptions;

/// The port that a connection came in at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Main,
    /// Plain HTTP without a token, for `/metrics` alone.
    Metrics,
}

/// Idle: waiting for the next request.
const IDLE: u8 = 0;
/// Receiving a request's head. A new connection starts here, as it must send one soon.
const HEAD: u8 = 1;
/// Answering a request. Its body has limits of its own.
const BUSY: u8 = 2;

/// The other end of a connection. The HTTP service sets the phase, and the stream below it reads the phase.
pub(crate) struct Peer {
    /// For the log.
    pub ip: IpAddr,
    pub address: NetworkAddress,
    pub port: Port,
    pub unauthenticated: UnauthenticatedSlot,
    is_authenticated: AtomicBool,
    /// The slot of the last caller. Behind a reverse proxy each request may have another one.
    caller: Mutex<Option<NameSlot>>,
    phase: AtomicU8,
    /// Requests so far.
    requests: AtomicU32,
    /// The current response has no end and no minimum speed.
    is_endless: AtomicBool,
}

impl Peer {
    pub(crate) fn new(ip: IpAddr, port: Port, unauthenticated: UnauthenticatedSlot) -> Self {
        Self {
            ip: ip.to_canonical(),
            address: NetworkAddress::of(ip),
            port,
            unauthenticated,
            is_authenticated: AtomicBool::new(false),
            caller: Mutex::default(),
            phase: AtomicU8::new(HEAD),
            requests: AtomicU32::new(0),
            is_endless: AtomicBool::new(false),
        }
    }

    /// Counts the connection as one of `caller`, who may have `max`. False: there are too many.
    pub(crate) fn enter_as(&self, caller: &Caller, callers: &Arc<NameCounts>, max: usize) -> bool {
        let mut slot = self.caller.lock();
        if !caller.is_limited() || slot.as_ref().is_some_and(|slot| slot.name == caller.id) {
            return true;
        }
        *slot = callers.enter(&caller.id, max);
        slot.is_some()
    }

    /// The peer has shown a valid token: it may idle from now on, and its connection is not closed for others.
    pub(crate) fn set_authenticated(&self) {
        if !self.is_authenticated.swap(true, Ordering::Relaxed) {
            self.unauthenticated.release();
        }
    }

    /// The head of a request is complete.
    pub(crate) fn begin_request(&self) {
        self.phase.store(BUSY, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// The response begins. A peer without a valid token may not idle after it: its next head is due at once.
    pub(crate) fn begin_response(&self, is_endless: bool) {
        self.is_endless.store(is_endless, Ordering::Relaxed);
        let next = if self.is_authenticated.load(Ordering::Relaxed) { IDLE } else { HEAD };
        self.phase.store(next, Ordering::Relaxed);
    }

    /// Bytes came. While a request is answered they are its body, otherwise they begin a head. True for the latter.
    pub(crate) fn begin_head(&self) -> bool {
        self.phase.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn is_in_head(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == HEAD
    }

    pub(crate) fn is_endless(&self) -> bool {
        self.is_endless.load(Ordering::Relaxed)
    }

    pub(crate) fn request_number(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A connection with time limits.
///
/// It is not tokio-io-timeout's, whose limits are per read and write: a peer that drips a byte now and then meets those
/// for hours, and holds memory as long.
pub(crate) struct TimedStream<T> {
    stream: T,
    peer: Arc<Peer>,
    metrics: Arc<Metrics>,
    head_timeout: Duration,
    /// Runs while a head is received.
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the peer takes nothing.
    write_timer: Option<Pin<Box<Sleep>>>,
    response: ResponseProgress,
}

/// A response on its way to the peer.
struct ResponseProgress {
    request_number: u32,
    deadline: TransferDeadline,
    /// Bytes written.
    written: u64,
    /// Since when the peer has taken all that was written. `None`: it has not.
    idle_since: Option<Instant>,
    /// How long the peer may take nothing.
    stall_timeout: Duration,
}

impl ResponseProgress {
    fn new(request_number: u32, stall_timeout: Duration) -> Self {
        let deadline = TransferDeadline::start(stall_timeout);
        Self { request_number, deadline, written: 0, idle_since: Some(Instant::now()), stall_timeout }
    }

    /// The peer must take bytes from now on. Gives the time until which it may wait.
    fn wait_for_peer(&mut self, is_endless: bool) -> Instant {
        let now = Instant::now();
        if let Some(since) = self.idle_since.take() {
            self.deadline.exclude(now - since);
        }
        if is_endless { now + self.stall_timeout } else { self.deadline.next_due(self.written, now) }
    }

    fn add_written(&mut self, bytes: u64) {
        self.written += bytes;
        self.idle_since.get_or_insert_with(Instant::now);
    }
}

impl<T> TimedStream<T> {
    /// The peer may take nothing of a response for `body_timeout`.
    pub(crate) fn new(stream: T, peer: Arc<Peer>, metrics: Arc<Metrics>, options: &ProxyOptions) -> Self {
        let (head_timeout, response) = (options.head_timeout, ResponseProgress::new(0, options.body_timeout));
        Self { stream, peer, metrics, head_timeout, head_timer: None, write_timer: None, response }
    }

    pub(crate) fn into_inner(self) -> T {
        self.stream
    }

    /// Passes on the result of a write. A write that is pending for too long fails.
    fn limit_write(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.peer.request_number() != self.response.request_number {
            self.response = ResponseProgress::new(self.peer.request_number(), self.response.stall_timeout);
        }
        if let Poll::Ready(written) = &poll {
            self.write_timer = None;
            let bytes = written.as_ref().map_or(0, |n| *n as u64);
            self.response.add_written(bytes);
            self.metrics.sent.inc_by(bytes);
            return poll;
        }
        let (response, is_endless) = (&mut self.response, self.peer.is_endless());
        poll_timer(&mut self.write_timer, || response.wait_for_peer(is_endless), cx).map(Err)
    }
}

/// Starts the timer if none runs. Ready with an error once it has run out.
fn poll_timer(
    timer: &mut Option<Pin<Box<Sleep>>>,
    until: impl FnOnce() -> Instant,
    cx: &mut Context<'_>,
) -> Poll<io::Error> {
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until())));
    timer.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into())
}

impl<T: AsyncRead + Unpin> AsyncRead for TimedStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.stream).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        this.metrics.received.inc_by(bytes as u64);
        if bytes > 0 && this.peer.begin_head() {
            this.head_timer = None;
        }
        if !this.peer.is_in_head() {
            this.head_timer = None;
            return poll;
        }
        match poll {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            // The timer also limits a head that comes byte by byte.
            poll => match poll_timer(&mut this.head_timer, || Instant::now() + this.head_timeout, cx) {
                Poll::Ready(e) => Poll::Ready(Err(e)),
                Poll::Pending => poll,
            },
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TimedStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.limit_write(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.limit_write(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::proxy::limits::connections::UnauthenticatedConnections;

    /// Writes a response of `bytes` to a peer that reads it slowly and never stalls. Gives the result and the bytes read.
    async fn write_to_slow_reader(is_endless: bool, bytes: usize) -> (io::Result<()>, usize) {
        let ip = [127, 0, 0, 1].into();
        let slot = UnauthenticatedConnections::new(1, 1).enter(NetworkAddress::of(ip));
        let peer = Arc::new(Peer::new(ip, Port::Main, slot));
        let options = ProxyOptions { body_timeout: Duration::from_secs(2), ..ProxyOptions::default() };
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut stream = TimedStream::new(ours, peer.clone(), Metrics::new(), &options);
        let reader = tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_millis(20));
            let mut read = 0;
            // Ends when the other side is dropped.
            while theirs.read_u8().await.is_ok() {
                read += 1;
                every.tick().await;
            }
            read
        });
        peer.begin_request();
        peer.begin_response(is_endless);
        let written = stream.write_all(&vec![7; bytes]).await;
        drop(stream);
        (written, reader.await.unwrap())
    }

    #[tokio::test]
    async fn slow_reader_is_cut_off_though_it_never_stalls() {
        let (written, read) = write_to_slow_reader(false, 2000).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(read > 2, "the reader never stalled");
    }

    #[tokio::test]
    async fn endless_response_may_be_read_slowly() {
        let (written, read) = write_to_slow_reader(true, 150).await;
        assert!(written.is_ok() && read >= 149, "{written:?} {read}");
    }
}
