//! [`Patient`]: a connection that ends when its peer stalls in the middle of something.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
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

/// Bytes a second that a body must keep up over its whole length, in either direction. Several may share a slow link.
const SLOWEST: u64 = 1024;

/// What a connection waits for, as the service sees it.
pub struct Patience {
    phase: AtomicU8,
    known: AtomicBool,
    /// The answer has no end, and so no pace.
    is_endless: AtomicBool,
    head: Duration,
    /// Requests so far.
    requests: AtomicU32,
}

impl Patience {
    pub fn new(head: Duration) -> Self {
        let (phase, requests) = (AtomicU8::new(HEAD), AtomicU32::new(0));
        Self { phase, known: AtomicBool::new(false), is_endless: AtomicBool::new(false), head, requests }
    }

    pub fn head_has_come(&self) {
        self.phase.store(BUSY, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer begins.
    pub fn is_answered(&self, is_endless: bool) {
        self.is_endless.store(is_endless, Ordering::Relaxed);
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

/// Marks an answer that goes on until either side ends it. All others hold memory until they are read, and so must be
/// read at a pace.
#[derive(Debug, Clone, Copy)]
pub struct Endless;

/// How fast a body has to come, or to be taken.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// When the peer began, moved on by what it had to wait for us.
    began: Instant,
    patience: Duration,
}

impl Pace {
    /// From now on. `patience`: how long the next piece may keep us waiting.
    pub fn new(patience: Duration) -> Self {
        Self { began: Instant::now(), patience }
    }

    /// When the next piece is due, after `came` bytes: a peer that drips a byte now and then is cut off as one that
    /// stalls.
    pub fn due(&self, came: u64, now: Instant) -> Instant {
        let over_all = self.began + self.patience + Duration::from_secs(came / SLOWEST);
        over_all.min(now + self.patience)
    }

    /// The time in which a piece waited for memory or for the store is not the peer's.
    pub fn was_held_up(&mut self, time: Duration) {
        self.began += time;
    }
}

/// A stream with a limit on how long a head may take, and on how slowly an answer may be taken.
pub struct Patient<T> {
    stream: T,
    peer: Arc<Peer>,
    metrics: Arc<Metrics>,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
    answer: Answer,
}

/// An answer on its way to a peer.
struct Answer {
    /// The request's number.
    number: u32,
    pace: Pace,
    /// Bytes written.
    written: u64,
    /// Since when the peer is not waited for; `None` while it is.
    free_since: Option<Instant>,
    /// How long the peer may refuse to take a byte.
    patience: Duration,
}

impl Answer {
    fn new(number: u32, patience: Duration) -> Self {
        let pace = Pace::new(patience);
        Self { number, pace, written: 0, free_since: Some(Instant::now()), patience }
    }

    /// From now on the peer is waited for. Until when.
    fn waits(&mut self, is_endless: bool) -> Instant {
        let now = Instant::now();
        if let Some(since) = self.free_since.take() {
            self.pace.was_held_up(now - since);
        }
        if is_endless { now + self.patience } else { self.pace.due(self.written, now) }
    }

    fn took(&mut self, bytes: u64) {
        self.written += bytes;
        self.free_since.get_or_insert_with(Instant::now);
    }
}

impl<T> Patient<T> {
    /// `write`: how long the peer may refuse to take a byte.
    pub fn new(stream: T, peer: Arc<Peer>, metrics: Arc<Metrics>, write: Duration) -> Self {
        Self { stream, peer, metrics, reading: None, writing: None, answer: Answer::new(0, write) }
    }

    pub fn into_inner(self) -> T {
        self.stream
    }

    /// Gives the result of a write on, or a timeout when it has been pending for too long.
    fn timed(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let number = self.peer.patience.requests.load(Ordering::Relaxed);
        if number != self.answer.number {
            self.answer = Answer::new(number, self.answer.patience);
        }
        if let Poll::Ready(written) = &poll {
            self.writing = None;
            let bytes = written.as_ref().map_or(0, |n| *n as u64);
            self.answer.took(bytes);
            self.metrics.sent.inc_by(bytes);
            return poll;
        }
        let (answer, is_endless) = (&mut self.answer, self.peer.patience.is_endless.load(Ordering::Relaxed));
        expired(&mut self.writing, || answer.waits(is_endless), cx).map(Err)
    }
}

/// Starts the timer where none runs, and is ready with an error once it has run out.
fn expired(
    timer: &mut Option<Pin<Box<Sleep>>>,
    until: impl FnOnce() -> Instant,
    cx: &mut Context<'_>,
) -> Poll<io::Error> {
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until())));
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
            ready_or_not => match expired(&mut this.reading, || Instant::now() + this.peer.patience.head, cx) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_answers_for_its_own_delays_alone() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let mut pace = Pace { began, patience: 30 * second };
        assert_eq!(pace.due(0, began), began + 30 * second);
        // A byte now and then gains no time, and what comes as it should does.
        assert_eq!(pace.due(29, began + 29 * second), began + 30 * second);
        assert_eq!(pace.due(10 * SLOWEST, began + 29 * second), began + 40 * second);
        assert_eq!(pace.due(1000 * SLOWEST, began + 29 * second), began + 59 * second, "a stall is one all the same");
        // Held up by us for longer than its own time is.
        pace.was_held_up(29 * second);
        pace.was_held_up(25 * second);
        assert_eq!(pace.due(0, began + 60 * second), began + 84 * second);
    }
}
