//! [`pack_stream`]: compresses a content that comes in pieces.

use std::io;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::task::spawn_blocking;

use super::encoding::{Coding, CodingError, Encoder, is_worth_it};

/// Longer pieces, in bytes, are compressed on a thread of their own.
pub const MAX_INLINE_BYTES: usize = 64 * 1024;

/// `pieces`, compressed if the first one shrinks enough. The flag says if they are. `size`: the length of the content.
///
/// After an error the compressed content lacks the end mark of its coding.
pub async fn pack_stream<E: From<io::Error> + Send + 'static>(
    coding: Coding,
    size: u64,
    mut pieces: BoxStream<'static, Result<Bytes, E>>,
) -> (BoxStream<'static, Result<Bytes, E>>, bool) {
    let first = match pieces.next().await {
        Some(Ok(first)) => first,
        other => return (stream::iter(other).chain(pieces).boxed(), false),
    };
    let trial = match Encoder::new(coding, Some(size)) {
        Ok(encoder) => pack_piece(encoder, first.clone(), Encoder::flush).await,
        Err(e) => Err(io::Error::other(e)),
    };
    match trial {
        Ok((encoder, packed)) if is_worth_it(first.len(), packed.len()) => {
            let rest = stream::try_unfold((Some(encoder), pieces), |(encoder, mut pieces)| async move {
                let Some(mut encoder) = encoder else { return Ok(None) };
                Ok(Some(match pieces.next().await {
                    Some(piece) => {
                        let (encoder, packed) = pack_piece(encoder, piece?, Encoder::encode).await?;
                        (packed, (Some(encoder), pieces))
                    }
                    None => (encoder.finish(&[]).map_err(io::Error::other)?, (None, pieces)),
                }))
            });
            (stream::iter([Ok(packed)]).chain(rest).boxed(), true)
        }
        not_packed => {
            if let Err(e) = not_packed {
                tracing::warn!("a content goes out uncompressed: {e}");
            }
            (stream::iter([Ok(first)]).chain(pieces).boxed(), false)
        }
    }
}

/// Compresses one piece. A long one does not block this thread.
async fn pack_piece(
    mut encoder: Encoder,
    piece: Bytes,
    pack: fn(&mut Encoder, &[u8]) -> Result<Bytes, CodingError>,
) -> io::Result<(Encoder, Bytes)> {
    let is_long = piece.len() > MAX_INLINE_BYTES;
    let work = move || pack(&mut encoder, &piece).map(|packed| (encoder, packed)).map_err(io::Error::other);
    if is_long { spawn_blocking(work).await? } else { work() }
}
