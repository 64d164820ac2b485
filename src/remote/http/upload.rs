//! [`Upload`]: a body read from a blocking [`BodySource`]. [`Progress`]: the idle timeout of a transfer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream};
use parking_lot::Mutex;
use tokio::task::{self, JoinHandle};
use tokio::time::{self, Instant};

use crate::remote::BodySource;

/// A body that is being sent, with its progress and the reason if it was aborted.
#[derive(Clone)]
pub(super) struct Upload {
    pub(super) progress: Progress,
    failure: Arc<Mutex<Option<String>>>,
    stopped: Arc<AtomicBool>,
}

/// Stops the upload when it is dropped.
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

    /// The upload ends when the guard is dropped.
    pub(super) fn stop_on_drop(&self) -> StopOnDrop {
        StopOnDrop(Arc::clone(&self.stopped))
    }

    /// The failure of the source.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    fn fail(&self, why: String) -> io::Error {
        *self.failure.lock() = Some(why);
        io::Error::other("the source failed")
    }

    /// The pieces of `source`, which must have `size` bytes. A blocking thread reads one piece ahead. The last piece is sent
    /// only after the source has confirmed its end (invariant 10). An error of the source aborts the request.
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
                let (source, piece) = upload.next_piece(reading).await?;
                let piece = piece.ok_or_else(|| upload.fail(SHORTER.to_owned()))?;
                let left = left.checked_sub(piece.len() as u64).ok_or_else(|| upload.fail(LONGER.to_owned()))?;
                let next = read_ahead(source);
                if left > 0 {
                    return Ok(Some((piece, (Some(next), left))));
                }
                match upload.next_piece(next).await? {
                    (_, None) => {
                        upload.progress.all_sent();
                        Ok(Some((piece, (None, 0))))
                    }
                    (_, Some(_)) => Err(upload.fail(LONGER.to_owned())),
                }
            }
        })
    }

    /// Waits for the piece that is read ahead.
    async fn next_piece(&self, reading: ReadAhead) -> io::Result<(Box<dyn BodySource>, Option<Bytes>)> {
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

type ReadAhead = JoinHandle<(Box<dyn BodySource>, io::Result<Option<Bytes>>)>;

fn read_ahead(mut source: Box<dyn BodySource>) -> ReadAhead {
    task::spawn_blocking(move || {
        let piece = source.next();
        (source, piece)
    })
}

/// Reads all of a small source, which must have `size` bytes. Blocks. The error is the reason in words.
pub(super) fn read_blocking(mut source: Box<dyn BodySource>, size: u64) -> Result<Bytes, String> {
    let Some(first) = source.next().map_err(|e| e.to_string())? else {
        return if size == 0 { Ok(Bytes::new()) } else { Err(SHORTER.to_owned()) };
    };
    // A single piece is not copied.
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

/// The time of the last progress of a transfer. `None`: all bytes are sent, so no more progress can be seen.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<Option<Instant>>>);

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    pub(super) fn touch(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// All bytes are sent. Bytes in buffers on the way cannot be observed.
    pub(super) fn all_sent(&self) {
        *self.0.lock() = None;
    }

    /// Returns after `idle_timeout` without progress, or at `deadline`.
    pub(super) async fn idle(&self, idle_timeout: Duration, deadline: Instant) {
        loop {
            let seen = *self.0.lock();
            let due = seen.map_or(deadline, |at| (at + idle_timeout).min(deadline));
            if Instant::now() >= due {
                return;
            }
            time::sleep_until(due).await;
        }
    }
}
