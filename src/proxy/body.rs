//! Request bodies: receiving, unpacking, and the memory that this takes.

use std::future::Future;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout_at};

use super::auth::caller::Caller;
use super::context::ServerState;
use super::deadline::TransferDeadline;
use super::error::ApiError;
use super::limits::memory::{BodyMemory, MemoryPermit};
use crate::protocol::encoding::{Coding, CodingError, Decoder, MAX_HEAD, window};

/// Memory that unpacking takes besides its window, bytes.
const DECODER_MEMORY: u64 = 512 * 1024;

/// The limits of one body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyTerms {
    pub coding: Option<Coding>,
    /// Bytes allowed, both as they come and unpacked.
    pub limit: u64,
    /// Bytes of memory to reserve for the sink.
    pub memory: u64,
}

/// Takes the pieces of a body, unpacked.
pub(crate) trait BodySink: Send {
    /// `memory`: reserved for this sink.
    fn take(&mut self, piece: Bytes, memory: &mut MemoryPermit) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// A body that was received to its end.
pub(crate) struct ReceivedBody<T> {
    pub sink: T,
    /// Bytes, unpacked.
    pub size: u64,
    /// Reserved for the sink.
    pub memory: MemoryPermit,
}

/// Receives a body into `sink`. The peer must keep to a minimum speed once memory is reserved.
pub(crate) async fn receive<S, T: BodySink>(
    state: &ServerState<S>,
    caller: &Caller,
    terms: BodyTerms,
    mut body: Incoming,
    sink: T,
) -> Result<ReceivedBody<T>, ApiError> {
    let limit = terms.limit;
    // `Content-Length` gives the lower bound before the first byte, and hyper holds the sender to it.
    if body.size_hint().lower() > limit {
        return Err(ApiError::TooLarge(limit));
    }
    let mut received = 0;
    let mut reader = BodyReader::start(&state.limits.memory, caller, terms, sink).await?;
    let mut deadline = TransferDeadline::start(state.options.body_timeout);
    loop {
        let frame = timeout_at(deadline.next_due(received, Instant::now()), body.frame());
        let Some(frame) = frame.await.map_err(|_| ApiError::BodyTimeout)? else { return reader.finish().await };
        // Trailers are ignored.
        let Ok(piece) = frame.map_err(|_| ApiError::BodyBroken)?.into_data() else { continue };
        received += piece.len() as u64;
        if received > limit {
            return Err(ApiError::TooLarge(limit));
        }
        let pushed = Instant::now();
        reader.push(piece).await?;
        deadline.exclude(pushed.elapsed());
    }
}

/// Unpacks the pieces of a body on their way to a sink.
struct BodyReader<'a, T> {
    budget: &'a BodyMemory,
    caller: &'a Caller,
    terms: BodyTerms,
    /// The start of a packed body, until its window is known.
    head: BytesMut,
    decoder: Option<Decoder>,
    decoder_memory: Option<MemoryPermit>,
    /// For the sink, once the body may come.
    sink_memory: Option<MemoryPermit>,
    sink: T,
    size: u64,
}

impl<'a, T: BodySink> BodyReader<'a, T> {
    /// Waits for the memory that the body needs. The head of a packed body has to come first: it tells the window.
    async fn start(budget: &'a BodyMemory, caller: &'a Caller, terms: BodyTerms, sink: T) -> Result<Self, ApiError> {
        let sink_memory = match terms.coding {
            None => Some(budget.reserve(caller, terms.memory).await?),
            Some(_) => None,
        };
        let head = BytesMut::new();
        Ok(Self { budget, caller, terms, head, decoder: None, decoder_memory: None, sink_memory, sink, size: 0 })
    }

    async fn push(&mut self, piece: Bytes) -> Result<(), ApiError> {
        let Some(coding) = self.terms.coding else { return self.pass_on(piece).await };
        if self.decoder.is_some() {
            return self.unpack(piece).await;
        }
        self.head.extend_from_slice(&piece);
        if self.head.len() < MAX_HEAD { Ok(()) } else { self.start_unpacking(coding).await }
    }

    async fn finish(mut self) -> Result<ReceivedBody<T>, ApiError> {
        if let Some(coding) = self.terms.coding {
            if self.decoder.is_none() {
                self.start_unpacking(coding).await?;
            }
            self.decoder.ok_or(CodingError::CutOff(coding))?.finish()?;
        }
        let memory = self.sink_memory.ok_or(ApiError::Busy)?;
        Ok(ReceivedBody { sink: self.sink, size: self.size, memory })
    }

    /// Reserves the memory of decoder and sink in one step, so that the request holds none while it waits.
    async fn start_unpacking(&mut self, coding: Coding) -> Result<(), ApiError> {
        let window = window(coding, &self.head)?;
        let for_decoder = DECODER_MEMORY + window;
        let mut memory = self.budget.reserve(self.caller, self.terms.memory + for_decoder).await?;
        self.decoder_memory = memory.split(for_decoder);
        self.sink_memory = Some(memory);
        self.decoder = Some(Decoder::new(coding, window)?);
        let head = std::mem::take(&mut self.head).freeze();
        self.unpack(head).await
    }

    async fn unpack(&mut self, mut piece: Bytes) -> Result<(), ApiError> {
        while let Some(decoder) = &mut self.decoder
            && let Some(plain) = decoder.decode(&mut piece)?
        {
            self.pass_on(plain).await?;
        }
        Ok(())
    }

    async fn pass_on(&mut self, plain: Bytes) -> Result<(), ApiError> {
        self.size += plain.len() as u64;
        if self.size > self.terms.limit {
            return Err(ApiError::TooLarge(self.terms.limit));
        }
        let memory = self.sink_memory.as_mut().ok_or(ApiError::Busy)?;
        self.sink.take(plain, memory).await
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
