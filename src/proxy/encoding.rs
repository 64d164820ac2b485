//! Content codings of responses (capability `encoding`): choosing one, and packing with bounded effort.
//!
//! The codings themselves are in `protocol::encoding`. They are not async-compression's, which cannot bound the window
//! of a frame before its memory is reserved.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, VARY};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::limits::memory::{MemoryPermit, attach};
use super::response::{HttpResponse, content_length, full_body, stream_body};
use crate::protocol::encoding::{Coding, MIN_SIZE};
use crate::protocol::packing::{MAX_INLINE_BYTES, pack_stream};

/// Responses packed at once. Further ones go out as they are.
const MAX_ENCODERS: usize = 16;

/// Packs responses, a limited number at once.
pub(crate) struct ResponseEncoder(Arc<Semaphore>);

impl Default for ResponseEncoder {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_ENCODERS)))
    }
}

impl ResponseEncoder {
    /// The response in the coding `accepted`, if that makes its content smaller. Its `ETag` stays that of the plain
    /// content.
    pub(crate) async fn encode(
        &self,
        accepted: Option<Coding>,
        method: &Method,
        mut response: HttpResponse,
    ) -> HttpResponse {
        if method.is_safe() && matches!(response.status(), StatusCode::OK | StatusCode::NOT_MODIFIED) {
            response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        // A response to HEAD has no content, and a response without a length is an event stream.
        let coding = accepted.filter(|_| *method != Method::HEAD);
        let (Some(coding), Some(length)) = (coding, content_length(response.headers())) else { return response };
        if !is_packable(&response, length) {
            return response;
        }
        let Ok(permit) = self.0.clone().try_acquire_owned() else { return response };
        let (mut head, body) = response.into_parts();
        if body.size_hint().exact().is_none() {
            let (pieces, is_packed) = pack_stream(coding, length, body.into_data_stream().boxed()).await;
            if !is_packed {
                return Response::from_parts(head, stream_body(pieces));
            }
            set_content_encoding(&mut head.headers, coding);
            head.headers.remove(CONTENT_LENGTH);
            let pieces = pieces.map(move |piece| {
                let _until_the_end = &permit;
                piece
            });
            return Response::from_parts(head, stream_body(pieces));
        }
        let mut content = match body.collect().await {
            Ok(content) => content.to_bytes(),
            Err(e) => return Response::from_parts(head, stream_body(stream::iter([Err::<Bytes, _>(e)]))),
        };
        if let Some(packed) = pack(coding, content.clone()).await {
            set_content_encoding(&mut head.headers, coding);
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(packed.len()));
            // The memory of the plain content is reserved for this one now.
            content = match head.extensions.get::<Arc<MemoryPermit>>() {
                Some(memory) => attach(packed, memory.clone()),
                None => packed,
            };
        }
        Response::from_parts(head, full_body(content))
    }
}

fn is_packable(response: &HttpResponse, length: u64) -> bool {
    let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
    let is_packed = response.headers().contains_key(CONTENT_ENCODING);
    length >= MIN_SIZE && !is_part && response.status().is_success() && !is_packed
}

/// The best coding that the client accepts. `None`: the content as it is, which is allowed whatever the client sends
/// (RFC 9110, section 12.5.3). `*` is ignored.
pub(crate) fn accepted_coding(headers: &HeaderMap) -> Option<Coding> {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut weights = [0; Coding::ALL.len()];
    let mut identity_weight = 0;
    for element in lines.flat_map(|line| line.split(',')) {
        let mut parts = element.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        // A malformed weight counts as 0.
        let weight = weight.map_or(Some(1000), thousandths).unwrap_or(0);
        if name.eq_ignore_ascii_case("identity") {
            identity_weight = weight;
        } else if let Some(coding) = Coding::of(name) {
            weights[coding as usize] = weight;
        }
    }
    // `max_by_key` takes the last of equal weights, so the better coding comes last.
    let best = Coding::ALL.into_iter().rev().max_by_key(|coding| weights[*coding as usize])?;
    let weight = weights[best as usize];
    (weight > 0 && weight >= identity_weight).then_some(best)
}

/// A weight in thousandths (RFC 9110, section 12.4.2): 0 to 1, with at most three decimals.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || rest.len() > 3 || !rest.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let weight = format!("{whole}{rest:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}

pub(crate) fn set_content_encoding(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
}

/// `content` packed, or `None` if that saves too little.
pub(crate) async fn pack(coding: Coding, content: Bytes) -> Option<Bytes> {
    let packed = if content.len() <= MAX_INLINE_BYTES {
        coding.pack(&content)
    } else {
        spawn_blocking(move || coding.pack(&content)).await.unwrap_or(Ok(None))
    };
    packed.unwrap_or_else(|e| {
        tracing::warn!("a response goes out unpacked: {e}");
        None
    })
}
