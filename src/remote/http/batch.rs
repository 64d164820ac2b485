//! `POST /batch`, `POST /batch/{namespace}`: many small requests in one, and what may be believed of the answers.

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use tokio::task;

use super::body::{HttpReply, whole};
use super::packed::{BUSY, CODING, Tried};
use super::{HttpRemote, classify};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::batch::{self, AnswerHead, BatchWriter, MAX_BYTES, RequestHead};
use crate::protocol::{Precondition, capability};
use crate::remote::{
    BatchReply, BatchRequest, DeleteReply, GetReply, PromisedDigest, PutReply, RemoteBlob, RemoteError,
};

/// What a head takes as a rule besides its path, bytes.
const HEAD_USUAL: usize = 96;

/// What was asked, as far as the answer is measured by it.
enum Sent {
    Get,
    Put(Md5),
    Delete,
}

/// A batch on its way out.
struct Batch {
    body: Bytes,
    /// The same, where it is to be packed and gets smaller.
    packed: Option<Bytes>,
    /// For each request what was sent, `None` where it was left out: its source failed, it is too large, or it has to
    /// look first.
    sent: Vec<(RelPath, Option<Sent>)>,
}

impl HttpRemote {
    pub(super) async fn send_batch(
        &self,
        requests: Vec<(RelPath, BatchRequest)>,
    ) -> Result<Option<Vec<Option<BatchReply>>>, RemoteError> {
        if !self.supports(capability::BATCH).await? {
            return Ok(None);
        }
        let trust =
            Trust { flat: self.inner.namespace.is_flat(), honest: self.supports(capability::HONEST_412).await? };
        let pack = self.sends_packed().await?;
        let Batch { body, packed, sent } = task::spawn_blocking(move || write(requests, trust.flat, pack))
            .await
            .map_err(|e| RemoteError::Source(format!("reading a batch failed: {e}")))?;
        if body.is_empty() {
            return Ok(Some(sent.iter().map(|_| None).collect()));
        }
        let url = self.inner.url(&self.part("/batch"));
        let request = self.inner.request(Method::POST, &url).header(CONTENT_TYPE, batch::CONTENT_TYPE);
        let request = Self::ask_packed(request, self.wants_packed().await?);
        let cap = MAX_BYTES as u64;
        let reply = match self.try_packed(&url, &request, packed, cap).await? {
            Tried::Answered(reply) => *reply,
            // For a turn, plain as packed would wait as long again.
            Tried::Busy => return Ok(None),
            Tried::Refused => self.send_plain(&url, request, body, cap).await?,
        };
        match (reply.status(), reply.header(&CONTENT_TYPE)) {
            (StatusCode::OK, Some(batch::CONTENT_TYPE)) => read(reply, sent, trust).await.map(Some),
            (StatusCode::OK, _) => Err(reply.protocol("a batch was not answered with a batch")),
            // Too many batches are under way: single requests need no turn.
            (status, _) => match reply.refused().await {
                (_, Some(code)) if status == StatusCode::SERVICE_UNAVAILABLE && code == BUSY => Ok(None),
                (error, _) => Err(error),
            },
        }
    }
}

/// What the proxy's answers are measured by.
#[derive(Clone, Copy)]
struct Trust {
    /// The dialect: preconditions are contents, and else versions.
    flat: bool,
    /// Capability `honest-412`.
    honest: bool,
}

/// Reads the sources and writes the frames. Blocks. In a namespace what is expected is a version: who knows none has to
/// look first, by a request of its own.
fn write(requests: Vec<(RelPath, BatchRequest)>, flat: bool, pack: bool) -> Batch {
    let bytes = requests.iter().map(|(path, ask)| {
        let size = if let BatchRequest::Put { body, .. } = ask { body.size } else { 0 };
        usize::try_from(size).unwrap_or(usize::MAX).saturating_add(HEAD_USUAL + path.as_str().len())
    });
    let mut writer = BatchWriter::with_capacity(bytes.fold(0, usize::saturating_add));
    let mut sent = Vec::with_capacity(requests.len());
    for (path, ask) in requests {
        let head =
            |op: &str| RequestHead { op: op.to_owned(), path: path.as_str().to_owned(), ..RequestHead::default() };
        let asked = match ask {
            BatchRequest::Get => writer.push(&head("get"), b"").ok().map(|()| Sent::Get),
            BatchRequest::Delete { version: 0, .. } if !flat => None,
            BatchRequest::Delete { md5, version } => {
                let head = if flat {
                    RequestHead { md5: Some(md5.to_string()), ..head("delete") }
                } else {
                    RequestHead { version: Some(version), ..head("delete") }
                };
                writer.push(&head, b"").ok().map(|()| Sent::Delete)
            }
            BatchRequest::Put { precondition: Precondition::Holds(_), version: 0, .. } if !flat => None,
            BatchRequest::Put { precondition, version, body } => {
                let size = body.size;
                let head = if flat {
                    RequestHead { precondition: Some(precondition.to_string()), size, ..head("put") }
                } else {
                    RequestHead { version: Some(version), size, ..head("put") }
                };
                // What fails is asked for by itself, and fails there with its reason.
                match body.md5 {
                    PromisedDigest::Known(md5) => {
                        let content = whole(body.source, size).ok();
                        content.and_then(|c| writer.push(&head, &c).ok()).map(|()| Sent::Put(md5))
                    }
                    PromisedDigest::AtTheEnd(_) => None,
                }
            }
        };
        sent.push((path, asked));
    }
    let body = writer.finish();
    // What cannot be packed goes as it is.
    let packed = if pack { CODING.pack(&body).unwrap_or(None) } else { None };
    Batch { body, packed, sent }
}

/// Reads the answers.
///
/// # Errors
/// `Protocol` unless there is exactly one for each request, in their order: then none is believed.
async fn read(
    reply: HttpReply,
    sent: Vec<(RelPath, Option<Sent>)>,
    trust: Trust,
) -> Result<Vec<Option<BatchReply>>, RemoteError> {
    let bad = reply.protester();
    let frames = batch::read::<AnswerHead>(reply.read(MAX_BYTES as u64).await?).map_err(|e| bad(&e.to_string()))?;
    let mut frames = frames.into_iter();
    let mut answers = Vec::with_capacity(sent.len());
    for (path, sent) in sent {
        let Some(sent) = sent else {
            answers.push(None);
            continue;
        };
        let (head, content) = frames.next().ok_or_else(|| bad("a batch with fewer answers than requests"))?;
        if head.path != path.as_str() {
            return Err(bad("a batch with an answer to another request than was sent"));
        }
        answers.push(answer(&sent, head, content, trust));
    }
    match frames.next() {
        None => Ok(answers),
        Some(_) => Err(bad("a batch with more answers than requests")),
    }
}

/// An answer as it would have come to a request of its own; `None` for any other.
fn answer(sent: &Sent, head: AnswerHead, content: Bytes, trust: Trust) -> Option<BatchReply> {
    let current = || classify::held(head.current_md5.as_deref());
    let known = |version: Option<u64>| version.filter(|_| !trust.flat).unwrap_or(0);
    let version = known(head.version);
    Some(match (sent, head.status) {
        (Sent::Get, 200) => {
            let size = Some(content.len() as u64);
            let body = stream::iter([Ok(content)]).boxed();
            BatchReply::Got(GetReply::Found(RemoteBlob { md5: head.md5?, size, version, device: head.device, body }))
        }
        (Sent::Get, 404) => BatchReply::Got(GetReply::Absent { tombstone: head.md5.filter(|_| trust.honest) }),
        (Sent::Put(md5), 200 | 201) if head.md5 == Some(*md5) => BatchReply::Put(PutReply::Stored { version }),
        (Sent::Put(_), 412) => {
            let version = known(head.current_version);
            BatchReply::Put(PutReply::Mismatch { current: current(), is_deleted: head.is_deleted, version })
        }
        (Sent::Delete, 200 | 204) => BatchReply::Deleted(DeleteReply::Done),
        (Sent::Delete, 404) => BatchReply::Deleted(DeleteReply::Absent),
        // The same content may have been written again, under another version: a request of its own finds out.
        (Sent::Delete, 412) if !trust.flat => return None,
        (Sent::Delete, 412) => BatchReply::Deleted(DeleteReply::Mismatch { current: current() }),
        _ => return None,
    })
}
