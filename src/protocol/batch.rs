//! The frames of a batch (capability `batch`): many small requests, or their answers, in one body.
//!
//! A body is a sequence of frames: `length of the head (u32, big-endian) · head (JSON) · content`. The head gives the
//! length of the content. `docs/protocol.md` describes the requests.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Md5;

/// `Content-Type` of a batch, both ways.
pub const CONTENT_TYPE: &str = "application/vnd.memsync.batch";
/// Most frames in one batch.
pub const MAX_FRAMES: usize = 1024;
/// Most bytes of one batch in each direction, uncompressed, with its heads.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Most bytes of one head in JSON: enough for the longest path with every character escaped.
pub const MAX_HEAD: usize = 8 * 1024;
/// Larger blobs, in bytes, need a GET of their own.
pub const MAX_BLOB: u64 = 256 * 1024;
/// `error_code` of a get whose blob does not fit into the answer. The client sends a GET of its own.
pub const ASK_ALONE: &str = "ASK_ALONE";

const LENGTH: usize = 4;

/// The head of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHead {
    /// `get`, `put` or `delete`.
    pub op: String,
    /// Plain, not percent-encoded.
    pub path: String,
    /// For a put: `new`, or the MD5 that the path must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precondition: Option<String>,
    /// For a delete: the MD5 that the path must hold. Missing: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// In a namespace, instead of both fields above: the version that the path must have. For a put 0 means no version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Length of the content that follows, in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
}

/// The head of one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerHead {
    /// The path of the request, so that the client can match the answer.
    pub path: String,
    /// The status that a single request would get.
    pub status: u16,
    /// The content that was read or written. With 404: the content that the tombstone deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<Md5>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Length of the content that follows, in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// The device that wrote the blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// With 412: the MD5 that the path holds, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_md5: Option<String>,
    /// With 412 in a namespace: the version that the path has, or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<u64>,
    /// With 412: true for a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_deleted: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The head of a frame. It knows the length of its content.
pub trait FrameHead: Serialize + DeserializeOwned {
    /// Bytes.
    fn size(&self) -> u64;
}

impl FrameHead for RequestHead {
    fn size(&self) -> u64 {
        self.size
    }
}

impl FrameHead for AnswerHead {
    fn size(&self) -> u64 {
        self.size
    }
}

/// Bytes that are no batch, or frames that do not fit into one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("the batch is cut off within frame {0}")]
    CutOff(usize),
    #[error("frame {at}: its head of {length} bytes is longer than {MAX_HEAD}")]
    LongHead { at: usize, length: u64 },
    #[error("frame {at}: {why}")]
    Head { at: usize, why: String },
    #[error("more than {MAX_FRAMES} frames in one batch")]
    TooMany,
    #[error("more than {MAX_BYTES} bytes in one batch")]
    TooLarge,
    #[error("frame {0}: its content is not as long as its head says")]
    Size(usize),
}

/// Writes frames into a body.
#[derive(Default)]
pub struct BatchWriter {
    bytes: BytesMut,
    frames: usize,
}

impl BatchWriter {
    /// Reserves `bytes`, at most [`MAX_BYTES`].
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: BytesMut::with_capacity(bytes.min(MAX_BYTES)), frames: 0 }
    }

    /// Adds a frame, or nothing where [`read`] would refuse it.
    pub fn push<H: FrameHead>(&mut self, head: &H, content: &[u8]) -> Result<(), BatchError> {
        let at = self.frames;
        if content.len() as u64 != head.size() {
            return Err(BatchError::Size(at));
        }
        let json = serde_json::to_vec(head).map_err(|e| BatchError::Head { at, why: e.to_string() })?;
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
        if json.len() > MAX_HEAD {
            return Err(BatchError::LongHead { at, length: length.into() });
        }
        if at >= MAX_FRAMES {
            return Err(BatchError::TooMany);
        }
        if self.bytes.len() + LENGTH + json.len() + content.len() > MAX_BYTES {
            return Err(BatchError::TooLarge);
        }
        self.bytes.put_u32(length);
        self.bytes.put_slice(&json);
        self.bytes.put_slice(content);
        self.frames += 1;
        Ok(())
    }

    /// The finished body.
    pub fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// The frames of a whole body, in order. Contents are slices of `body`, not copies. A single bad frame spoils the batch.
pub fn read<H: FrameHead>(mut body: Bytes) -> Result<Vec<(H, Bytes)>, BatchError> {
    if body.len() > MAX_BYTES {
        return Err(BatchError::TooLarge);
    }
    let mut frames = Vec::new();
    while !body.is_empty() {
        let at = frames.len();
        if at >= MAX_FRAMES {
            return Err(BatchError::TooMany);
        }
        let length = body.first_chunk::<LENGTH>().ok_or(BatchError::CutOff(at))?;
        let length = u32::from_be_bytes(*length);
        let head_len = usize::try_from(length).unwrap_or(usize::MAX);
        if head_len > MAX_HEAD {
            return Err(BatchError::LongHead { at, length: length.into() });
        }
        let head = body.get(LENGTH..LENGTH + head_len).ok_or(BatchError::CutOff(at))?;
        let head: H = serde_json::from_slice(head).map_err(|e| BatchError::Head { at, why: e.to_string() })?;
        body.advance(LENGTH + head_len);
        let size = usize::try_from(head.size()).ok().filter(|n| *n <= body.len()).ok_or(BatchError::CutOff(at))?;
        frames.push((head, body.split_to(size)));
    }
    Ok(frames)
}

#[cfg(test)]
mod tests;
