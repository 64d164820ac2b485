//! [`Patient`]: a connection that ends when its peer stalls in the middle of something.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{future::Future, sync::Arc};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::connection::Peer;
use super::metrics::Metrics;

/// Nothing is expected of the peer; the first byte begins a head.
const IDLE: u8 = 0;
/// A head is under way (a new connection starts so: it has a reason to exist).
const HEAD: u8 = 1;
/// A request is being answered; its body has limits of its own.
const BUSY: u8 = 2;

/// What a connection waits for, as the service sees it.
pub struct Patience {
    phase: AtomicU8,
    known: AtomicBool,
    head: Duration,
}

impl Patience {
    pub fn new(head: Duration) -> Self {
        Self { phase: AtomicU8::new(HEAD), known: AtomicBool::new(false), head }
    }

    pub fn head_has_come(&self) {
        self.phase.store(BUSY, Ordering::Relaxed);
    }

    /// Who has shown no valid token must come to the point: its next head is due from now on.
    pub fn head_may_come(&self) {
        let next = if self.known.load(Ordering::Relaxed) { IDLE } else { HEAD };
        self.phase.store(next, Ordering::Relaxed);
    }

    /// The peer has shown a valid token, and may idle between requests. Whether that is news.
    pub fn is_known(&self) -> bool {
        !self.known.swap(true, Ordering::Relaxed)
    }
}

/// A stream with a limit on how long a head may take, and a write may stall.
pub struct Patient<T> {
    stream: T,
    peer: Arc<Peer>,
    metrics: Arc<Metrics>,
    write: Duration,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<T> Patient<T> {
    /// `write`: how long the peer may refuse to take a byte.
    pub fn new(stream: T, peer: Arc<Peer>, metrics: Arc<Metrics>, write: Duration) -> Self {
        Self { stream, peer, metrics, write, reading: None, writing: None }
    }

    pub fn into_inner(self) -> T {
        self.stream
    }

    /// Gives the result of a write on, or a timeout when it has been pending for too long.
    fn timed(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = &poll {
            self.writing = None;
            self.metrics.sent.inc_by(written.as_ref().map_or(0, |n| *n as u64));
            return poll;
        }
        expired(&mut self.writing, self.write, cx).map(Err)
    }
}

/// Starts the timer where none runs, and is ready with an error once it has run out.
fn expired(timer: &mut Option<Pin<Box<Sleep>>>, limit: Duration, cx: &mut Context<'_>) -> Poll<io::Error> {
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
    timer.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into())
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.metrics.received.inc_by((buf.filled().len() - before) as u64);
        let phase = &this.peer.patience.phase;
        // Does not hold while a request is being answered: what comes then is its body.
        if buf.filled().len() > before
            && phase.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            this.reading = None;
        }
        if phase.load(Ordering::Relaxed) != HEAD {
            this.reading = None;
            return poll;
        }
        match poll {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            ready_or_not => match expired(&mut this.reading, this.peer.patience.head, cx) {
                // A byte now and then must not hold the connection either.
                Poll::Ready(e) => Poll::Ready(Err(e)),
                Poll::Pending => ready_or_not,
            },
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.timed(cx, poll)
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
