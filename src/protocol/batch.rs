//! The frames of a batch (capability `batch`): many small requests, or their answers, in one body.
//!
//! A body is a row of frames, each `length of the head (u32, big-endian) · head (JSON) · content`. The head says how
//! long the content is. This knows nothing of what the requests mean; `docs/protocol.md` tells that.

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Md5;

/// `Content-Type` of a batch, both ways.
pub const CONTENT_TYPE: &str = "application/vnd.memsync.batch";
/// Frames in one batch, at most.
pub const MAX_FRAMES: usize = 1024;
/// Bytes of one batch, at most, unpacked, heads and all, in each direction.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of one head in JSON, at most: room for the longest path with every character escaped.
pub const MAX_HEAD: usize = 8 * 1024;
/// Larger blobs, bytes, come down by a request of their own.
pub const MAX_BLOB: u64 = 256 * 1024;
/// `error_code` of a get whose blob does not fit into the answer: it is to be asked for by itself.
pub const ASK_ALONE: &str = "ASK_ALONE";

const LENGTH: usize = 4;

/// The head of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// `get`, `put` or `delete`.
    pub op: String,
    /// As it is, not percent-encoded.
    pub path: String,
    /// Of a put: `new`, or the md5 that must be held now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precondition: Option<String>,
    /// Of a delete: the md5 that must be held now; any where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// In a namespace, where it stands for both of the above: the version that must be held now; of a put 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Of the content that follows, bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
}

/// The head of one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// As it was asked for: so that no answer is taken for another's.
    pub path: String,
    /// As a request of its own would have got.
    pub status: u16,
    /// Of the blob that was read or written; with 404: of the tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<Md5>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Of the content that follows, bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Of a blob: the machine that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// With 412: the md5 held, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_md5: Option<String>,
    /// With 412 in a namespace: the version held, 0 for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<u64>,
    /// With 412.
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

/// A head that knows the length of its content.
pub trait Head: Serialize + DeserializeOwned {
    /// Bytes.
    fn size(&self) -> u64;
}

impl Head for Asked {
    fn size(&self) -> u64 {
        self.size
    }
}

impl Head for Answered {
    fn size(&self) -> u64 {
        self.size
    }
}

/// Why bytes are no batch, or frames make none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBatch {
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

/// Frames on their way out.
#[derive(Default)]
pub struct Writer {
    bytes: BytesMut,
    frames: usize,
}

impl Writer {
    /// With room for `bytes`, as far as a batch may be that long.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: BytesMut::with_capacity(bytes.min(MAX_BYTES)), frames: 0 }
    }

    /// Adds a frame. After an error nothing was added.
    ///
    /// # Errors
    /// [`BadBatch`] where the reader of the batch would refuse it.
    pub fn push<H: Head>(&mut self, head: &H, content: &[u8]) -> Result<(), BadBatch> {
        let at = self.frames;
        if content.len() as u64 != head.size() {
            return Err(BadBatch::Size(at));
        }
        let json = serde_json::to_vec(head).map_err(|e| BadBatch::Head { at, why: e.to_string() })?;
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
        if json.len() > MAX_HEAD {
            return Err(BadBatch::LongHead { at, length: length.into() });
        }
        if at >= MAX_FRAMES {
            return Err(BadBatch::TooMany);
        }
        if self.bytes.len() + LENGTH + json.len() + content.len() > MAX_BYTES {
            return Err(BadBatch::TooLarge);
        }
        self.bytes.put_u32(length);
        self.bytes.put_slice(&json);
        self.bytes.put_slice(content);
        self.frames += 1;
        Ok(())
    }

    /// The body.
    pub fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// The frames of a whole body, in order. Contents are parts of `body`, not copies.
///
/// # Errors
/// [`BadBatch`] unless all of it is frames within the limits: nothing of half a batch is given.
pub fn read<H: Head>(mut body: Bytes) -> Result<Vec<(H, Bytes)>, BadBatch> {
    if body.len() > MAX_BYTES {
        return Err(BadBatch::TooLarge);
    }
    let mut frames = Vec::new();
    while !body.is_empty() {
        let at = frames.len();
        if at >= MAX_FRAMES {
            return Err(BadBatch::TooMany);
        }
        let length = body.first_chunk::<LENGTH>().ok_or(BadBatch::CutOff(at))?;
        let length = u32::from_be_bytes(*length);
        let head_len = usize::try_from(length).unwrap_or(usize::MAX);
        if head_len > MAX_HEAD {
            return Err(BadBatch::LongHead { at, length: length.into() });
        }
        let head = body.get(LENGTH..LENGTH + head_len).ok_or(BadBatch::CutOff(at))?;
        let head: H = serde_json::from_slice(head).map_err(|e| BadBatch::Head { at, why: e.to_string() })?;
        let _ = body.split_to(LENGTH + head_len);
        let size = usize::try_from(head.size()).ok().filter(|n| *n <= body.len()).ok_or(BadBatch::CutOff(at))?;
        frames.push((head, body.split_to(size)));
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &str, content: &[u8]) -> Asked {
        Asked {
            op: "put".into(),
            path: path.into(),
            precondition: Some("new".into()),
            size: content.len() as u64,
            ..Asked::default()
        }
    }

    fn three() -> (Vec<(Asked, Bytes)>, Bytes) {
        let get = Asked { op: "get".into(), path: "ü/日本 \"x\".md".into(), ..Asked::default() };
        let frames = vec![
            (put("a", b"hello"), Bytes::from_static(b"hello")),
            (get, Bytes::new()),
            (put("b", b""), Bytes::new()),
        ];
        let mut writer = Writer::default();
        for (head, content) in &frames {
            writer.push(head, content).unwrap();
        }
        (frames, writer.finish())
    }

    #[test]
    fn what_is_written_is_read() {
        let (frames, body) = three();
        assert_eq!(read::<Asked>(body.clone()).unwrap(), frames);
        assert_eq!(read::<Asked>(Bytes::new()).unwrap(), []);
        let first = r#"{"op":"put","path":"a","precondition":"new","size":5}"#;
        let length = u8::try_from(first.len()).unwrap();
        assert_eq!(body[..4], [0, 0, 0, length], "the length is big-endian");
        assert_eq!(&body[4..4 + first.len()], first.as_bytes());
        assert_eq!(&body[4 + first.len()..][..5], b"hello");
    }

    #[test]
    fn a_batch_that_is_cut_anywhere_is_none() {
        let (frames, body) = three();
        let mut writer = Writer::default();
        let whole: Vec<usize> = frames
            .iter()
            .map(|(head, content)| {
                writer.push(head, content).unwrap();
                writer.bytes.len()
            })
            .collect();
        for cut in 1..body.len() {
            let result = read::<Asked>(body.slice(..cut));
            match whole.iter().position(|end| *end == cut) {
                // A cut between two frames cannot be seen: whoever asked counts the answers.
                Some(n) => assert_eq!(result.unwrap(), frames[..=n]),
                None => assert!(matches!(result, Err(BadBatch::CutOff(_))), "{cut}: {result:?}"),
            }
        }
    }

    #[test]
    fn hostile_lengths_are_refused() {
        let frame = |length: u32, rest: &[u8]| Bytes::from([&length.to_be_bytes()[..], rest].concat());
        let refusal = |body| read::<Asked>(body).unwrap_err();
        assert_eq!(refusal(frame(u32::MAX, b"")), BadBatch::LongHead { at: 0, length: u32::MAX.into() });
        assert_eq!(refusal(frame(8193, &[b' '; 8193])), BadBatch::LongHead { at: 0, length: 8193 });
        assert_eq!(refusal(frame(8192, b"{}")), BadBatch::CutOff(0));
        assert!(matches!(refusal(frame(0, b"")), BadBatch::Head { at: 0, .. }));
        assert!(matches!(refusal(frame(4, b"[1]x")), BadBatch::Head { at: 0, .. }));
        let deep = "[".repeat(8000);
        assert!(matches!(refusal(frame(8000, deep.as_bytes())), BadBatch::Head { at: 0, .. }));
        for size in ["18446744073709551615", "6", "-1", "1e3", "18446744073709551616"] {
            let head = format!(r#"{{"op":"put","path":"a","size":{size}}}"#);
            let length = u32::try_from(head.len()).unwrap();
            let body = frame(length, &[head.as_bytes(), b"12345"].concat());
            assert!(matches!(refusal(body), BadBatch::CutOff(0) | BadBatch::Head { .. }), "{size}");
        }
    }

    #[test]
    fn too_much_is_refused_on_both_sides() {
        let get = Asked { op: "get".into(), path: "a".into(), ..Asked::default() };
        let mut writer = Writer::default();
        for _ in 0..MAX_FRAMES {
            writer.push(&get, b"").unwrap();
        }
        assert_eq!(writer.push(&get, b""), Err(BadBatch::TooMany));
        let full = writer.finish();
        assert_eq!(read::<Asked>(full.clone()).unwrap().len(), MAX_FRAMES);
        let one = full.slice(..full.len() / MAX_FRAMES);
        assert_eq!(read::<Asked>([full, one].concat().into()), Err(BadBatch::TooMany));

        let half = vec![0; MAX_BYTES / 2];
        let mut writer = Writer::default();
        writer.push(&put("a", &half), &half).unwrap();
        assert_eq!(writer.push(&put("b", &half), &half), Err(BadBatch::TooLarge));
        assert_eq!(writer.push(&put("b", b"12"), b"1"), Err(BadBatch::Size(1)));
        let long = Asked { path: "x".repeat(MAX_HEAD), ..Asked::default() };
        assert!(matches!(writer.push(&long, b""), Err(BadBatch::LongHead { at: 1, .. })));
        assert!(writer.bytes.len() < MAX_BYTES, "nothing of what was refused is in it");
        assert_eq!(read::<Asked>(vec![0; MAX_BYTES + 1].into()), Err(BadBatch::TooLarge));
        let worst = Asked { path: "\u{7f}\"".repeat(512), ..put("", b"") };
        assert!(serde_json::to_vec(&worst).unwrap().len() < MAX_HEAD, "the longest path fits");
    }
}
