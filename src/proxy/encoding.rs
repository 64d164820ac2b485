//! Content codings of requests and answers (capability `encoding`): what a client asks for, and how much of it is done
//! at once. Who asks for nothing gets contents as they are.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, to_bytes};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, VARY};
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use super::Proxy;
use super::answer::{Answer, Refusal};
use super::auth::Caller;
use super::blobs::Taker;
use super::memory::{Allotment, Memory, SharedAllotment, hold};
use crate::protocol::encoding::{Coding, CodingError, Decoder, Encoder, MAX_HEAD, MIN_SIZE, is_worth_it, window};
use crate::store::Store;

/// Answers packed at once; further ones go out as they are.
const ENCODERS: usize = 16;
/// Memory that unpacking a body takes besides its window, bytes.
const DECODER: u64 = 512 * 1024;
/// As much, bytes, is packed in between; more of it on a thread of its own.
const IN_BETWEEN: usize = 64 * 1024;

/// Limits the answers that are packed piece by piece at once.
pub struct Encoders(Arc<Semaphore>);

impl Default for Encoders {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ENCODERS)))
    }
}

/// The terms on which a body is taken in.
#[derive(Debug, Clone, Copy)]
pub struct BodyTerms {
    pub coding: Option<Coding>,
    /// Bytes there may be, packed and unpacked.
    pub limit: u64,
    /// Bytes of memory that are set aside for the taker.
    pub memory: u64,
}

/// A body that came whole.
pub struct Taken<T> {
    pub taker: T,
    /// Bytes, unpacked.
    pub size: u64,
    /// For the taker.
    pub memory: Allotment,
}

/// Takes a body in, unpacked where it is packed.
pub struct Intake<'a, T> {
    budget: &'a Memory,
    caller: &'a Caller,
    patience: Duration,
    terms: BodyTerms,
    /// The beginning of a packed body, until it tells what it asks for.
    head: BytesMut,
    decoder: Option<Decoder>,
    /// For the decoder.
    decoding: Option<Allotment>,
    /// For the taker, once the body may come.
    memory: Option<Allotment>,
    taker: T,
    size: u64,
}

impl<'a, T: Taker> Intake<'a, T> {
    /// Waits for the memory that the body needs. One that is packed tells only with its head how much that is.
    ///
    /// # Errors
    /// [`Refusal::Busy`], when it is not there in time.
    pub async fn begin<S: Store>(
        proxy: &'a Proxy<S>,
        caller: &'a Caller,
        terms: BodyTerms,
        taker: T,
    ) -> Result<Self, Refusal> {
        let (budget, patience) = (&proxy.memory, proxy.options.body_timeout);
        let memory = match terms.coding {
            None => Some(budget.reserve(caller, terms.memory, patience).await?),
            Some(_) => None,
        };
        let (head, decoder, decoding) = (BytesMut::new(), None, None);
        Ok(Self { budget, caller, patience, terms, head, decoder, decoding, memory, taker, size: 0 })
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// When there is too much, it cannot be unpacked or kept, or there is no memory for unpacking it in time.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), Refusal> {
        let Some(coding) = self.terms.coding else { return self.keep(piece).await };
        if self.decoder.is_some() {
            return self.unpack(piece).await;
        }
        self.head.extend_from_slice(&piece);
        if self.head.len() < MAX_HEAD { Ok(()) } else { self.begin_unpacking(coding).await }
    }

    /// The body, once all of it came.
    ///
    /// # Errors
    /// As for [`Intake::push`], and when the end is missing.
    pub async fn finish(mut self) -> Result<Taken<T>, Refusal> {
        if let Some(coding) = self.terms.coding {
            if self.decoder.is_none() {
                self.begin_unpacking(coding).await?;
            }
            self.decoder.ok_or(CodingError::CutOff(coding))?.finish()?;
        }
        let memory = self.memory.ok_or(Refusal::Busy)?;
        Ok(Taken { taker: self.taker, size: self.size, memory })
    }

    /// Waits for the memory of decoder and taker together: none of it is held while the rest is waited for.
    async fn begin_unpacking(&mut self, coding: Coding) -> Result<(), Refusal> {
        let window = window(coding, &self.head)?;
        let decoding = DECODER + window;
        let mut memory = self.budget.reserve(self.caller, self.terms.memory + decoding, self.patience).await?;
        self.decoding = memory.split(decoding);
        self.memory = Some(memory);
        self.decoder = Some(Decoder::new(coding, window)?);
        let head = std::mem::take(&mut self.head).freeze();
        self.unpack(head).await
    }

    async fn unpack(&mut self, mut piece: Bytes) -> Result<(), Refusal> {
        while let Some(decoder) = &mut self.decoder
            && let Some(plain) = decoder.decode(&mut piece)?
        {
            self.keep(plain).await?;
        }
        Ok(())
    }

    async fn keep(&mut self, plain: Bytes) -> Result<(), Refusal> {
        self.size += plain.len() as u64;
        if self.size > self.terms.limit {
            return Err(Refusal::TooLarge(self.terms.limit));
        }
        let memory = self.memory.as_mut().ok_or(Refusal::Busy)?;
        self.taker.take(plain, memory).await
    }
}

/// The coding of a request's body.
///
/// # Errors
/// For any but the two, and for more than one: nobody packs twice to any good.
pub fn of_body(headers: &HeaderMap) -> Result<Option<Coding>, Refusal> {
    let mut coding = None;
    for value in headers.get_all(CONTENT_ENCODING) {
        for name in value.to_str().map_err(|_| Refusal::Encoding)?.split(',').map(str::trim) {
            if name.is_empty() || name.eq_ignore_ascii_case("identity") {
                continue;
            }
            if coding.is_some() {
                return Err(Refusal::Encoding);
            }
            coding = Some(Coding::of(name).ok_or(Refusal::Encoding)?);
        }
    }
    Ok(coding)
}

/// The coding that an answer is to have: of those that the client names the one it likes most, and of several the best.
/// None is also right, whatever the client says (RFC 9110, section 12.5.3); `*` names none.
pub fn wanted(headers: &HeaderMap) -> Option<Coding> {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut likes = [0; Coding::ALL.len()];
    let mut plain = 0;
    for element in lines.flat_map(|line| line.split(',')) {
        let mut parts = element.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        // In thousandths; a weight that is none is no wish.
        let weight = weight.map_or(Some(1000), thousandths).unwrap_or(0);
        if name.eq_ignore_ascii_case("identity") {
            plain = weight;
        } else if let Some(coding) = Coding::of(name) {
            likes[coding as usize] = weight;
        }
    }
    // The first of the best.
    let best = Coding::ALL.into_iter().rev().max_by_key(|coding| likes[*coding as usize])?;
    let like = likes[best as usize];
    (like > 0 && like >= plain).then_some(best)
}

/// A weight (RFC 9110, section 12.4.2): 0 to 1, with at most three decimals.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || rest.len() > 3 || !rest.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let weight = format!("{whole}{rest:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}

/// The answer with its content as `wanted`, where it has one that gets smaller. Its tag stays that of the plain content.
pub async fn encode<S: Store>(proxy: &Proxy<S>, wanted: Option<Coding>, method: &Method, mut answer: Answer) -> Answer {
    if method.is_safe() && matches!(answer.status(), StatusCode::OK | StatusCode::NOT_MODIFIED) {
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    let length = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    // What has no length is a stream of events; and the answer to HEAD has no content.
    let (Some(coding), Some(length)) = (wanted.filter(|_| *method != Method::HEAD), length) else { return answer };
    let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
    if length < MIN_SIZE || is_part || !answer.status().is_success() || answer.headers().contains_key(CONTENT_ENCODING)
    {
        return answer;
    }
    let Ok(turn) = proxy.encoders.0.clone().try_acquire_owned() else { return answer };
    let (mut head, body) = answer.into_parts();
    let exact = body.size_hint().exact().is_some();
    let packed = if exact { whole(coding, body).await } else { pieces(coding, length, body, turn).await };
    match packed {
        Packed::Whole(content) => {
            tell(&mut head.headers, coding);
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
            // The memory that the plain content held is now for this one.
            let content = match head.extensions.get::<SharedAllotment>() {
                Some(memory) => hold(content, memory.clone()),
                None => content,
            };
            Response::from_parts(head, content.into())
        }
        Packed::Pieces(body) => {
            tell(&mut head.headers, coding);
            head.headers.remove(CONTENT_LENGTH);
            Response::from_parts(head, body)
        }
        Packed::Not(body) => Response::from_parts(head, body),
    }
}

/// Says what the content of an answer is packed with.
pub fn tell(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
}

enum Packed {
    Whole(Bytes),
    Pieces(Body),
    /// As it was.
    Not(Body),
}

/// `content` packed, where that is worth it.
pub async fn pack(coding: Coding, content: Bytes) -> Option<Bytes> {
    let packed = if content.len() <= IN_BETWEEN {
        coding.pack(&content)
    } else {
        spawn_blocking(move || coding.pack(&content)).await.unwrap_or(Ok(None))
    };
    packed.unwrap_or_else(|e| {
        tracing::warn!("an answer goes out as it is: {e}");
        None
    })
}

/// A content that is here already.
async fn whole(coding: Coding, body: Body) -> Packed {
    match to_bytes(body, usize::MAX).await {
        Ok(content) => match pack(coding, content.clone()).await {
            Some(packed) => Packed::Whole(packed),
            None => Packed::Not(content.into()),
        },
        Err(e) => Packed::Not(Body::from_stream(stream::iter([Err::<Bytes, _>(e)]))),
    }
}

/// A content on its way, piece by piece. The first one tells whether it is worth it.
async fn pieces(coding: Coding, length: u64, body: Body, turn: OwnedSemaphorePermit) -> Packed {
    let mut pieces = body.into_data_stream();
    let first = match pieces.next().await {
        Some(Ok(first)) => first,
        other => return Packed::Not(Body::from_stream(stream::iter(other).chain(pieces))),
    };
    let trial = match Encoder::new(coding, Some(length)) {
        Ok(encoder) => run(encoder, first.clone(), Encoder::flush).await,
        Err(e) => Err(io::Error::other(e)),
    };
    match trial {
        Ok((encoder, packed)) if is_worth_it(first.len(), packed.len()) => {
            let rest = stream::try_unfold((Some(encoder), pieces, turn), |(encoder, mut pieces, turn)| async move {
                let Some(encoder) = encoder else { return Ok::<_, axum::BoxError>(None) };
                let (packed, encoder) = next(encoder, &mut pieces).await?;
                Ok(Some((packed, (encoder, pieces, turn))))
            });
            Packed::Pieces(Body::from_stream(stream::iter([Ok(packed)]).chain(rest)))
        }
        failed_or_not => {
            if let Err(e) = failed_or_not {
                tracing::warn!("an answer goes out as it is: {e}");
            }
            Packed::Not(Body::from_stream(stream::iter([Ok(first)]).chain(pieces)))
        }
    }
}

/// The next packed piece, which may be empty. What fails ends the content without the end that its coding has.
async fn next(mut encoder: Encoder, pieces: &mut BodyDataStream) -> Result<(Bytes, Option<Encoder>), axum::BoxError> {
    match pieces.next().await {
        Some(piece) => {
            let (encoder, packed) = run(encoder, piece?, Encoder::encode).await?;
            Ok((packed, Some(encoder)))
        }
        None => Ok((encoder.finish(&[])?, None)),
    }
}

/// Packs one piece without holding up others.
async fn run(
    mut encoder: Encoder,
    piece: Bytes,
    how: fn(&mut Encoder, &[u8]) -> Result<Bytes, CodingError>,
) -> io::Result<(Encoder, Bytes)> {
    let long = piece.len() > IN_BETWEEN;
    let work = move || how(&mut encoder, &piece).map(|packed| (encoder, packed)).map_err(io::Error::other);
    if long { spawn_blocking(work).await? } else { work() }
}
