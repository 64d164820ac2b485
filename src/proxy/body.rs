//! [`BodyReader`]: the body of a request, received within its time, size and memory, and unpacked.
//! [`TransferDeadline`]: the minimum speed of a body, in either direction.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout_at};

use super::auth::caller::Caller;
use super::context::ServerState;
use super::error::ApiError;
use super::limits::memory::{BodyMemory, DECODER_MEMORY, MemoryPermit};
use crate::protocol::encoding::{Coding, Decoder, MAX_HEAD, window};

/// Bytes a second that a body must keep up over its whole length. It is low, because several may share a slow link.
const MIN_BYTES_PER_SECOND: u64 = 1024;

/// The limits of one body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyTerms {
    pub coding: Option<Coding>,
    /// Bytes allowed, both as they come and unpacked.
    pub limit: u64,
    /// Bytes of memory to reserve for the content.
    pub memory: u64,
}

/// The body of a request, read piece by piece. The peer must keep to a minimum speed.
pub(crate) struct BodyReader<'a> {
    budget: &'a BodyMemory,
    caller: &'a Caller,
    terms: BodyTerms,
    body: Incoming,
    deadline: TransferDeadline,
    /// When the last piece came.
    received_at: Instant,
    /// Bytes as they came.
    received: u64,
    /// Bytes, unpacked.
    pub size: u64,
    /// The start of a packed body, until its window is known.
    head: BytesMut,
    decoder: Option<BodyDecoder>,
    /// Reserved for the content. That of a packed body is reserved before its first piece.
    pub memory: MemoryPermit,
}

struct BodyDecoder {
    decoder: Decoder,
    /// Bytes to unpack next.
    packed: Bytes,
    _memory: Option<MemoryPermit>,
}

impl<'a> BodyReader<'a> {
    /// Waits for the memory that the body needs. The head of a packed body has to come first: it tells the window.
    pub(crate) async fn open<S>(
        state: &'a ServerState<S>,
        caller: &'a Caller,
        terms: BodyTerms,
        body: Incoming,
    ) -> Result<Self, ApiError> {
        // `Content-Length` gives the lower bound before the first byte, and hyper holds the sender to it.
        if body.size_hint().lower() > terms.limit {
            return Err(ApiError::TooLarge(terms.limit));
        }
        let budget = &state.limits.memory;
        let memory = budget.reserve(caller, if terms.coding.is_some() { 0 } else { terms.memory }).await?;
        Ok(Self {
            budget,
            caller,
            terms,
            body,
            deadline: TransferDeadline::start(state.options.body_timeout),
            received_at: Instant::now(),
            received: 0,
            size: 0,
            head: BytesMut::new(),
            decoder: None,
            memory,
        })
    }

    /// The next piece, unpacked. `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            if let Some(BodyDecoder { decoder, packed, .. }) = &mut self.decoder
                && let Some(piece) = decoder.decode(packed)?
            {
                return self.count(piece).map(Some);
            }
            let piece = self.receive().await?;
            match (self.terms.coding, &mut self.decoder, piece) {
                (None, _, None) => return Ok(None),
                (None, _, Some(piece)) => return self.count(piece).map(Some),
                (Some(_), Some(decoder), Some(piece)) => decoder.packed = piece,
                (Some(_), Some(decoder), None) => {
                    decoder.decoder.finish()?;
                    return Ok(None);
                }
                (Some(coding), None, Some(piece)) => {
                    self.head.extend_from_slice(&piece);
                    if self.head.len() >= MAX_HEAD {
                        self.start_unpacking(coding).await?;
                    }
                }
                (Some(coding), None, None) => self.start_unpacking(coding).await?,
            }
        }
    }

    /// The next piece as it comes.
    async fn receive(&mut self) -> Result<Option<Bytes>, ApiError> {
        // Since the last piece the peer had to wait for the proxy.
        self.deadline.exclude(self.received_at.elapsed());
        let piece = loop {
            let frame = timeout_at(self.deadline.next_due(self.received, Instant::now()), self.body.frame());
            let Some(frame) = frame.await.map_err(|_| ApiError::BodyTimeout)? else { break None };
            // Trailers are ignored.
            if let Ok(piece) = frame.map_err(|_| ApiError::BodyBroken)?.into_data() {
                break Some(piece);
            }
        };
        self.received_at = Instant::now();
        self.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        if self.received > self.terms.limit { Err(ApiError::TooLarge(self.terms.limit)) } else { Ok(piece) }
    }

    /// Reserves the memory of decoder and content in one step, so that the request holds none while it waits.
    async fn start_unpacking(&mut self, coding: Coding) -> Result<(), ApiError> {
        let window = window(coding, &self.head)?;
        let for_decoder = DECODER_MEMORY + window;
        self.memory = self.budget.reserve(self.caller, self.terms.memory + for_decoder).await?;
        let memory = self.memory.split(for_decoder);
        let packed = std::mem::take(&mut self.head).freeze();
        self.decoder = Some(BodyDecoder { decoder: Decoder::new(coding, window)?, packed, _memory: memory });
        Ok(())
    }

    fn count(&mut self, piece: Bytes) -> Result<Bytes, ApiError> {
        self.size += piece.len() as u64;
        if self.size > self.terms.limit { Err(ApiError::TooLarge(self.terms.limit)) } else { Ok(piece) }
    }
}

/// The coding in `Content-Encoding`.
///
/// # Errors
/// [`ApiError::UnsupportedEncoding`] for an unknown coding, and for more than one.
pub(crate) fn content_coding(headers: &HeaderMap) -> Result<Option<Coding>, ApiError> {
    let mut coding = None;
    for value in headers.get_all(CONTENT_ENCODING) {
        for name in value.to_str().map_err(|_| ApiError::UnsupportedEncoding)?.split(',').map(str::trim) {
            if name.is_empty() || name.eq_ignore_ascii_case("identity") {
                continue;
            }
            if coding.is_some() {
                return Err(ApiError::UnsupportedEncoding);
            }
            coding = Some(Coding::of(name).ok_or(ApiError::UnsupportedEncoding)?);
        }
    }
    Ok(coding)
}

/// When the next piece of a body is due. A peer that moves a byte now and then misses it, and so does a peer that stalls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransferDeadline {
    /// The peer's start, moved on by the time that it had to wait for the proxy.
    began: Instant,
    stall_timeout: Duration,
}

impl TransferDeadline {
    /// `stall_timeout`: how long the peer may take for the next piece.
    pub(crate) fn start(stall_timeout: Duration) -> Self {
        Self { began: Instant::now(), stall_timeout }
    }

    /// When the next piece is due, after `bytes` came.
    pub(crate) fn next_due(&self, bytes: u64, now: Instant) -> Instant {
        let whole = self.began + self.stall_timeout + Duration::from_secs(bytes / MIN_BYTES_PER_SECOND);
        whole.min(now + self.stall_timeout)
    }

    /// Excludes a time in which the peer had to wait, such as for memory or the store.
    pub(crate) fn exclude(&mut self, time: Duration) {
        self.began += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_excludes_delays_of_the_proxy() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let mut deadline = TransferDeadline { began, stall_timeout: 30 * second };
        assert_eq!(deadline.next_due(0, began), began + 30 * second);
        assert_eq!(deadline.next_due(29, began + 29 * second), began + 30 * second, "a byte a second is too slow");
        assert_eq!(deadline.next_due(10 * MIN_BYTES_PER_SECOND, began + 29 * second), began + 40 * second);
        let fast = deadline.next_due(1000 * MIN_BYTES_PER_SECOND, began + 29 * second);
        assert_eq!(fast, began + 59 * second, "a fast peer may not stall either");
        deadline.exclude(29 * second);
        deadline.exclude(25 * second);
        assert_eq!(deadline.next_due(0, began + 60 * second), began + 84 * second, "the delay exceeds the own time");
    }
}
