//! `POST /batch`: many small requests in one, and what may be believed of the answers.

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use tokio::task;

use super::body::{Answer as Reply, Progress, whole};
use super::{HttpRemote, classify};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::batch::{self, Answered, Asked, MAX_BYTES, Writer};
use crate::protocol::capability;
use crate::remote::{Answer, Ask, Blob, Deleted, Got, Put, RemoteError};

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
    /// For each request what was sent, `None` where it was left out: its source failed, or it is too large.
    sent: Vec<(RelPath, Option<Sent>)>,
}

impl HttpRemote {
    pub(super) async fn flat_batch(
        &self,
        requests: Vec<(RelPath, Ask)>,
    ) -> Result<Option<Vec<Option<Answer>>>, RemoteError> {
        if !self.supports(capability::BATCH).await? {
            return Ok(None);
        }
        let honest = self.supports(capability::HONEST_412).await?;
        let Batch { body, sent } = task::spawn_blocking(move || write(requests))
            .await
            .map_err(|e| RemoteError::Source(format!("reading a batch failed: {e}")))?;
        if body.is_empty() {
            return Ok(Some(sent.iter().map(|_| None).collect()));
        }
        let url = self.inner.url("/batch");
        let size = body.len() as u64;
        let request = self.inner.request(Method::POST, &url).header(CONTENT_TYPE, batch::CONTENT_TYPE).body(body);
        let reply = self.inner.send(&url, request, Some((&Progress::new(), size)), MAX_BYTES as u64).await?;
        match (reply.status(), reply.header(&CONTENT_TYPE)) {
            (StatusCode::OK, Some(batch::CONTENT_TYPE)) => read(reply, sent, honest).await.map(Some),
            (StatusCode::OK, _) => Err(reply.protocol("a batch was not answered with a batch")),
            _ => Err(reply.refusal().await),
        }
    }
}

/// Reads the sources and writes the frames. Blocks.
fn write(requests: Vec<(RelPath, Ask)>) -> Batch {
    let bytes = requests.iter().map(|(path, ask)| {
        let size = if let Ask::Put { body, .. } = ask { body.size } else { 0 };
        usize::try_from(size).unwrap_or(usize::MAX).saturating_add(HEAD_USUAL + path.as_str().len())
    });
    let mut writer = Writer::with_capacity(bytes.fold(0, usize::saturating_add));
    let mut sent = Vec::with_capacity(requests.len());
    for (path, ask) in requests {
        let head = |op: &str| Asked { op: op.to_owned(), path: path.as_str().to_owned(), ..Asked::default() };
        let asked = match ask {
            Ask::Get => writer.push(&head("get"), b"").ok().map(|()| Sent::Get),
            Ask::Delete { md5, .. } => {
                let head = Asked { md5: Some(md5.to_string()), ..head("delete") };
                writer.push(&head, b"").ok().map(|()| Sent::Delete)
            }
            Ask::Put { precondition, body, .. } => {
                let (md5, size) = (body.md5, body.size);
                let head = Asked { precondition: Some(precondition.to_string()), size, ..head("put") };
                // What fails is asked for by itself, and fails there with its reason.
                whole(body.source, size).ok().and_then(|c| writer.push(&head, &c).ok()).map(|()| Sent::Put(md5))
            }
        };
        sent.push((path, asked));
    }
    Batch { body: writer.finish(), sent }
}

/// Reads the answers.
///
/// # Errors
/// `Protocol` unless there is exactly one for each request, in their order: then none is believed.
async fn read(
    reply: Reply,
    sent: Vec<(RelPath, Option<Sent>)>,
    honest: bool,
) -> Result<Vec<Option<Answer>>, RemoteError> {
    let bad = reply.protester();
    let frames = batch::read::<Answered>(reply.read(MAX_BYTES as u64).await?).map_err(|e| bad(&e.to_string()))?;
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
        answers.push(answer(&sent, head, content, honest));
    }
    match frames.next() {
        None => Ok(answers),
        Some(_) => Err(bad("a batch with more answers than requests")),
    }
}

/// An answer as it would have come to a request of its own; `None` for any other.
fn answer(sent: &Sent, head: Answered, content: Bytes, honest: bool) -> Option<Answer> {
    let current = || classify::held(head.current_md5.as_deref());
    Some(match (sent, head.status) {
        (Sent::Get, 200) => {
            let size = Some(content.len() as u64);
            let body = stream::iter([Ok(content)]).boxed();
            Answer::Got(Got::Found(Blob { md5: head.md5?, size, version: 0, body }))
        }
        (Sent::Get, 404) => Answer::Got(Got::Absent { tombstone: head.md5.filter(|_| honest) }),
        (Sent::Put(md5), 200 | 201) if head.md5 == Some(*md5) => Answer::Put(Put::Stored { version: 0 }),
        (Sent::Put(_), 412) => Answer::Put(Put::Mismatch { current: current(), is_deleted: head.is_deleted }),
        (Sent::Delete, 200 | 204) => Answer::Deleted(Deleted::Done),
        (Sent::Delete, 404) => Answer::Deleted(Deleted::Absent),
        (Sent::Delete, 412) => Answer::Deleted(Deleted::Mismatch { current: current() }),
        _ => return None,
    })
}
