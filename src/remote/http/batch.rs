//! `POST /batch`, `POST /batch/{namespace}`: many small requests in one. Each answer is checked before it is used.

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use tokio::task;

use super::classify;
use super::client::HttpRemote;
use super::encoding::{BUSY, CODING, EncodedOutcome};
use super::reply::HttpReply;
use super::upload::read_blocking;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::batch::{self, AnswerHead, BatchWriter, MAX_BYTES, RequestHead};
use crate::protocol::{Precondition, capability};
use crate::remote::{
    BatchReply, BatchRequest, DeleteReply, GetReply, PromisedDigest, PutReply, RemoteBlob, RemoteError, UploadBody,
};

/// Usual bytes of a head besides its path.
const HEAD_BYTES: usize = 96;

/// The parts of a request that its answer is checked against.
enum SentRequest {
    Get,
    Put(Md5),
    Delete,
}

/// A batch, ready to send.
struct BatchBody {
    body: Bytes,
    /// The compressed body, if it is smaller.
    packed: Option<Bytes>,
    /// The request of each path. `None`: left out, because its source failed, it is too large, or it needs the version of
    /// the path first.
    sent: Vec<(RelPath, Option<SentRequest>)>,
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
            BatchTrust { flat: self.link.namespace.is_flat(), honest: self.supports(capability::HONEST_412).await? };
        let pack = self.sends_encoded().await?;
        let BatchBody { body, packed, sent } = task::spawn_blocking(move || write_batch(requests, trust.flat, pack))
            .await
            .map_err(|e| RemoteError::Source(format!("reading a batch failed: {e}")))?;
        if body.is_empty() {
            return Ok(Some(sent.iter().map(|_| None).collect()));
        }
        let url = self.link.url(&self.namespace_path("/batch"));
        let request =
            self.request_accepting_encoding(Method::POST, &url).await?.header(CONTENT_TYPE, batch::CONTENT_TYPE);
        let cap = MAX_BYTES as u64;
        let reply = match self.try_encoded(&url, &request, packed, cap).await? {
            EncodedOutcome::Answered(reply) => *reply,
            // A plain batch would wait as long.
            EncodedOutcome::Busy(_) => return Ok(None),
            EncodedOutcome::Refused => self.send_plain(&url, request, body, cap).await?,
        };
        match (reply.status(), reply.header(&CONTENT_TYPE)) {
            (StatusCode::OK, Some(batch::CONTENT_TYPE)) => read_replies(reply, sent, trust).await.map(Some),
            (StatusCode::OK, _) => Err(reply.protocol("a batch was not answered with a batch")),
            // Too many batches are in flight. Single requests are not limited.
            (status, _) => match reply.refusal_and_code().await {
                (_, Some(code)) if status == StatusCode::SERVICE_UNAVAILABLE && code == BUSY => Ok(None),
                (error, _) => Err(error),
            },
        }
    }
}

/// The rules that answers are checked against.
#[derive(Clone, Copy)]
struct BatchTrust {
    /// The flat dialect: preconditions are contents, not versions.
    flat: bool,
    /// Capability `honest-412`.
    honest: bool,
}

/// Reads the sources and writes the frames. Blocks.
fn write_batch(requests: Vec<(RelPath, BatchRequest)>, flat: bool, pack: bool) -> BatchBody {
    let bytes = requests.iter().map(|(path, ask)| {
        let size = if let BatchRequest::Put { body, .. } = ask { body.size } else { 0 };
        usize::try_from(size).unwrap_or(usize::MAX).saturating_add(HEAD_BYTES + path.as_str().len())
    });
    let mut writer = BatchWriter::with_capacity(bytes.fold(0, usize::saturating_add));
    let mut sent = Vec::with_capacity(requests.len());
    for (path, request) in requests {
        let pushed = frame(&path, request, flat).and_then(|(head, content, sent)| {
            writer.push(&head, &content).ok()?;
            Some(sent)
        });
        sent.push((path, pushed));
    }
    let body = writer.finish();
    // A batch that cannot be compressed goes plain.
    let packed = if pack { CODING.pack(&body).unwrap_or(None) } else { None };
    BatchBody { body, packed, sent }
}

/// The frame of a request. `None`: it must go alone, as its source fails or its version is unknown. A write in a namespace
/// needs a version, and alone it reads that first.
fn frame(path: &RelPath, request: BatchRequest, flat: bool) -> Option<(RequestHead, Bytes, SentRequest)> {
    let head = |op: &str| RequestHead { op: op.to_owned(), path: path.as_str().to_owned(), ..RequestHead::default() };
    let in_namespace = |version| Some(version).filter(|_| !flat);
    match request {
        BatchRequest::Get => Some((head("get"), Bytes::new(), SentRequest::Get)),
        BatchRequest::Delete { version: 0, .. }
        | BatchRequest::Put { precondition: Precondition::Holds(_), version: 0, .. }
            if !flat =>
        {
            None
        }
        BatchRequest::Delete { md5, version } => {
            let (md5, version) = (flat.then(|| md5.to_string()), in_namespace(version));
            Some((RequestHead { md5, version, ..head("delete") }, Bytes::new(), SentRequest::Delete))
        }
        BatchRequest::Put { precondition, version, body: UploadBody { md5, size, source } } => {
            let PromisedDigest::Known(md5) = md5 else { return None };
            let content = read_blocking(source, size).ok()?;
            let (precondition, version) = (flat.then(|| precondition.to_string()), in_namespace(version));
            Some((RequestHead { precondition, version, size, ..head("put") }, content, SentRequest::Put(md5)))
        }
    }
}

/// Reads the answers. There must be exactly one for each request, in order. Else all are discarded with the error
/// `Protocol`.
async fn read_replies(
    reply: HttpReply,
    sent: Vec<(RelPath, Option<SentRequest>)>,
    trust: BatchTrust,
) -> Result<Vec<Option<BatchReply>>, RemoteError> {
    let bad = reply.protocol_errors();
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
        answers.push(parse_reply(&sent, head, content, trust));
    }
    match frames.next() {
        None => Ok(answers),
        Some(_) => Err(bad("a batch with more answers than requests")),
    }
}

/// The reply to one request. `None`: the answer is not as for a single request.
fn parse_reply(sent: &SentRequest, head: AnswerHead, content: Bytes, trust: BatchTrust) -> Option<BatchReply> {
    let current = || classify::parse_held(head.current_md5.as_deref());
    let known = |version: Option<u64>| version.filter(|_| !trust.flat).unwrap_or(0);
    let version = known(head.version);
    Some(match (sent, head.status) {
        (SentRequest::Get, 200) => {
            let size = Some(content.len() as u64);
            let body = stream::iter([Ok(content)]).boxed();
            BatchReply::Got(GetReply::Found(RemoteBlob { md5: head.md5?, size, version, device: head.device, body }))
        }
        (SentRequest::Get, 404) => BatchReply::Got(GetReply::Absent { tombstone: head.md5.filter(|_| trust.honest) }),
        (SentRequest::Put(md5), 200 | 201) if head.md5 == Some(*md5) => BatchReply::Put(PutReply::Stored { version }),
        (SentRequest::Put(_), 412) => {
            let version = known(head.current_version);
            BatchReply::Put(PutReply::Mismatch { current: current(), is_deleted: head.is_deleted, version })
        }
        (SentRequest::Delete, 200 | 204) => BatchReply::Deleted(DeleteReply::Done),
        (SentRequest::Delete, 404) => BatchReply::Deleted(DeleteReply::Absent),
        // The same content may have a new version. A request of its own finds out.
        (SentRequest::Delete, 412) if !trust.flat => return None,
        (SentRequest::Delete, 412) => BatchReply::Deleted(DeleteReply::Mismatch { current: current() }),
        _ => return None,
    })
}
