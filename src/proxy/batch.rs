//! `POST /batch`, `POST /batch/{namespace}`: many small requests in one. Each has its own precondition and its own status, the very ones that it
//! would have as a request by itself; the batch is no transaction.
//!
//! Names, preconditions and sizes are checked as in [`super::blobs`] and [`super::namespaced`]. What is not a batch as a whole is refused before
//! anything of it is done.

use std::collections::{HashMap, HashSet};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use hyper::body::Incoming as RequestBody;

use super::answer::{Answer, Provided, Refusal, with_held_body};
use super::auth::Caller;
use super::blobs::{Taker, expect, receive};
use super::encoding::{BodyTerms, Taken};
use super::keys::Access;
use super::memory::Allotment;
use super::metrics::Metrics;
use super::quota::Reserved;
use super::route::stored_path;
use super::{Proxy, encoding, namespaced, quota, versions};
use crate::digest::Md5;
use crate::path::{MAX_PATH, RelPath};
use crate::protocol::batch::{self, ASK_ALONE, AnswerHead, BatchWriter, MAX_BLOB, MAX_BYTES, RequestHead};
use crate::protocol::{self, decode_name};
use crate::store::{
    BatchWrite, BlobBody, BlobMeta, DeleteOutcome, GetOutcome, IndexEntry, Precondition, PutOutcome, Store, StoreError,
    WriteOutcome,
};

/// Blobs read from the store at once.
const READ: usize = 8;
/// Room kept in an answer for each head, besides its path, bytes.
const HEAD_ROOM: usize = 1024;

/// Folders that the paths of a batch are in, at most, all that are above them included: a store may have to find out of
/// each what it is. A path in further ones is to be asked for by itself.
const FOLDERS: usize = 4096;

/// What a head of an answer takes as a rule, bytes.
const HEAD_USUAL: usize = 128;
/// Memory set aside at first for a body that does not say how long it is, bytes.
const FIRST_MEMORY: u64 = 1024 * 1024;
/// A packed body is expected to unpack to so many times its length. One that comes to more asks for more memory.
const USUAL_RATIO: u64 = 4;

/// A request of a batch, checked.
enum Checked {
    Get(RelPath),
    Put { path: RelPath, expect: Precondition, provided: Provided, content: Bytes },
    Delete { path: RelPath, expect: Option<Precondition>, provided: Provided },
}

/// A head with the content that follows it.
type Frame = (AnswerHead, Bytes);

/// `id`: the request's, for the log.
pub async fn post<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    request: Request<RequestBody>,
    id: &str,
) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    let metrics = &proxy.metrics;
    if head.headers.get(CONTENT_TYPE).is_none_or(|value| value != batch::CONTENT_TYPE) {
        return Err(Refusal::NoBatch);
    }
    let coding = encoding::of_body(&head.headers)?;
    let limit = proxy.options.max_body.min(MAX_BYTES as u64);
    let terms = BodyTerms { coding, limit, memory: expected(coding.is_some(), &body).min(limit) };
    let collected = Collected(BytesMut::new());
    let Taken { taker, size: asked_bytes, mut memory } = receive(proxy, caller, terms, body, collected).await?;
    let body = taker.0.freeze();
    let frames = batch::read::<RequestHead>(body).map_err(|e| Refusal::Batch(e.to_string()))?;
    refuse_twins(&frames)?;

    if frames.iter().any(|(head, _)| head.op != "get") {
        caller.may(Access::Write, ns)?;
    }
    let told = versions::told(&head.headers, proxy.store.keeps_versions())?;
    let meta = caller.sign(BlobMeta { content_type: None, ..told });
    let mut room = MAX_BYTES.saturating_sub(frames.iter().map(|(head, _)| HEAD_ROOM + 6 * head.path.len()).sum());
    let mut answers: Vec<Option<Frame>> = frames.iter().map(|_| None).collect();
    let (mut gets, mut writes, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    // Room within the quota, held until all is written.
    let sizes = frames.iter().filter(|(head, _)| head.op == "put");
    let sizes = sizes.filter_map(|(head, content)| Some((stored_path(&head.path).ok()?, content.len() as u64)));
    let sizes: Vec<_> = sizes.collect();
    let admitted = quota::admit_many(proxy, caller, ns, &sizes).await?;
    let mut rooms: HashMap<RelPath, _> = sizes.into_iter().map(|(path, _)| path).zip(admitted).collect();
    let (mut held, mut folders) = (Vec::new(), Folders::default());
    for (at, (head, content)) in frames.into_iter().enumerate() {
        if !folders.has_room_for(&head.path) {
            answers[at] = Some(ask_alone(&head.path));
            continue;
        }
        match check(&head, content, ns.is_empty()) {
            Ok(Checked::Get(path)) => gets.push((at, path)),
            Ok(Checked::Put { path, expect, provided, content }) => {
                if let Some(Err(refusal)) = rooms.remove(&path).map(|room| room.map(|room| held.extend(room))) {
                    answers[at] = Some(refused(head.path, refusal, id, metrics));
                    continue;
                }
                asked.push((at, path.clone(), provided));
                writes.push((path, BatchWrite::Put { expect, content }));
            }
            Ok(Checked::Delete { path, expect, provided }) => {
                asked.push((at, path.clone(), provided));
                writes.push((path, BatchWrite::Delete { expect }));
            }
            Err(refusal) => answers[at] = Some(refused(head.path, refusal, id, metrics)),
        }
    }
    drop(rooms);
    if !writes.is_empty() {
        let (written, returned) = write(proxy, ns, writes, meta, (held, memory)).await?;
        memory = returned;
        for ((at, path, provided), written) in asked.into_iter().zip(written) {
            let path = path.as_str().to_owned();
            metrics.wrote(u64::from(written.as_ref().is_ok_and(WriteOutcome::happened)));
            let answer = written.map_err(Refusal::from).and_then(|written| outcome(&path, written, provided));
            answers[at] = Some(answer.unwrap_or_else(|refusal| refused(path, refusal, id, metrics)));
        }
    }
    let mut answered_bytes = 0;
    for some in gets.chunks(READ) {
        let paths: Vec<RelPath> = some.iter().map(|(_, path)| path.clone()).collect();
        // What is read is copied into the answer.
        let needed = asked_bytes + 2 * (answered_bytes + READ as u64 * MAX_BLOB);
        room = if memory.grow_to(needed).is_ok() { room } else { 0 };
        let got = if room > 0 { proxy.store.get_many(ns, paths).await } else { Vec::new() };
        let mut got = got.into_iter();
        for (at, path) in some {
            let path = path.as_str().to_owned();
            let answer = match got.next() {
                Some(got) => blob(&path, got, &mut room).await,
                None => Ok(ask_alone(&path)),
            };
            let answer = answer.unwrap_or_else(|refusal| refused(path, refusal, id, metrics));
            answered_bytes += answer.1.len() as u64;
            answers[*at] = Some(answer);
        }
    }

    let contents: usize = answers.iter().flatten().map(|(_, content)| content.len()).sum();
    let mut writer = BatchWriter::with_capacity(contents + HEAD_USUAL * answers.len());
    for answer in answers {
        let written = match answer {
            Some((head, content)) => writer.push(&head, &content).map_err(|e| e.to_string()),
            None => Err("a request was not answered".to_owned()),
        };
        // The sizes were counted before anything was done.
        written.map_err(|why| Refusal::Store(StoreError::Database(why)))?;
    }
    Ok(with_held_body(batch::CONTENT_TYPE, writer.finish(), memory))
}

/// The bytes that a body probably comes to, unpacked.
fn expected(is_packed: bool, body: &RequestBody) -> u64 {
    match hyper::body::Body::size_hint(body).exact() {
        Some(length) if is_packed => length.saturating_mul(USUAL_RATIO),
        Some(length) => length,
        None => FIRST_MEMORY,
    }
}

/// Carries the writes of a batch out, to their end even when the client goes: until then they need their room and their
/// memory, which is given back with the answers.
async fn write<S: Store>(
    proxy: &Proxy<S>,
    ns: &str,
    writes: Vec<(RelPath, BatchWrite)>,
    meta: BlobMeta,
    (rooms, memory): (Vec<Reserved>, Allotment),
) -> Result<(Vec<Result<WriteOutcome, StoreError>>, Allotment), Refusal> {
    let (store, quotas, ns) = (proxy.store.clone(), proxy.quotas.clone(), ns.to_owned());
    let writing = tokio::spawn(async move {
        let written = store.write_many(&ns, writes, &meta).await;
        if written.iter().flatten().any(WriteOutcome::happened) {
            quotas.wrote(&ns);
        }
        drop(rooms);
        (written, memory)
    });
    Ok(writing.await.map_err(|_| StoreError::Closed)?)
}

/// Two requests for one path would race; and a name that is too long could not be repeated in the answer.
fn refuse_twins(frames: &[(RequestHead, Bytes)]) -> Result<(), Refusal> {
    let mut seen = HashSet::with_capacity(frames.len());
    for (at, (head, _)) in frames.iter().enumerate() {
        if head.path.len() > MAX_PATH {
            return Err(Refusal::Batch(format!("frame {at}: the path is longer than {MAX_PATH} bytes")));
        }
        if !seen.insert(head.path.as_str()) {
            return Err(Refusal::Batch(format!("frame {at}: a path comes twice in one batch")));
        }
    }
    Ok(())
}

/// `flat`: preconditions are contents; else they are versions.
fn check(head: &RequestHead, content: Bytes, flat: bool) -> Result<Checked, Refusal> {
    let path = stored_path(&head.path)?;
    match head.op.as_str() {
        "put" if !flat => {
            let version = head.version.ok_or(Refusal::VersionRequired)?;
            let (expect, provided) = (namespaced::expect(version), Provided::Version(version));
            Ok(Checked::Put { path, expect, provided, content })
        }
        "put" => {
            let precondition = head.precondition.as_deref().ok_or(Refusal::PreconditionRequired)?;
            let precondition: protocol::Precondition =
                precondition.parse().map_err(|_| Refusal::BadPrecondition("precondition, where it is not `new`,"))?;
            let provided = Provided::Md5(precondition.to_string());
            Ok(Checked::Put { path, expect: expect(precondition), provided, content })
        }
        _ if !content.is_empty() => Err(Refusal::Batch("only a put has content".to_owned())),
        "get" => Ok(Checked::Get(path)),
        "delete" if !flat => {
            let provided = Provided::Version(head.version.unwrap_or(0));
            Ok(Checked::Delete { path, expect: head.version.map(Precondition::Version), provided })
        }
        "delete" => {
            let md5: Option<Md5> =
                head.md5.as_deref().map(str::parse).transpose().map_err(|_| Refusal::BadPrecondition("md5"))?;
            let provided = Provided::Md5(md5.map(|md5| md5.to_string()).unwrap_or_default());
            Ok(Checked::Delete { path, expect: md5.map(Precondition::Md5), provided })
        }
        _ => Err(Refusal::Batch("op is none of get, put, delete".to_owned())),
    }
}

fn outcome(path: &str, written: WriteOutcome, provided: Provided) -> Result<Frame, Refusal> {
    let done = |status, entry: &IndexEntry| Ok((described(path, status, entry), Bytes::new()));
    match written {
        WriteOutcome::Put(PutOutcome::Created(entry)) => done(StatusCode::CREATED, &entry),
        WriteOutcome::Put(PutOutcome::Updated(entry)) => done(StatusCode::OK, &entry),
        WriteOutcome::Put(PutOutcome::Mismatch(held)) => Err(Refusal::Precondition { provided, held }),
        WriteOutcome::Deleted(DeleteOutcome::Done(entry)) => done(StatusCode::NO_CONTENT, &entry),
        WriteOutcome::Deleted(DeleteOutcome::Tombstone(entry)) => Err(Refusal::Tombstone(entry)),
        WriteOutcome::Deleted(DeleteOutcome::Absent) => Err(Refusal::Absent),
        WriteOutcome::Deleted(DeleteOutcome::Mismatch(held)) => {
            Err(Refusal::Precondition { provided, held: Some(held) })
        }
    }
}

/// The answer to a get; what does not fit is to be asked for by itself.
async fn blob(path: &str, got: Result<GetOutcome, StoreError>, room: &mut usize) -> Result<Frame, Refusal> {
    let blob = match got? {
        GetOutcome::Found(blob) => blob,
        GetOutcome::Tombstone(entry) => return Err(Refusal::Tombstone(entry)),
        GetOutcome::Absent => return Err(Refusal::Absent),
    };
    let size = usize::try_from(blob.entry.size).unwrap_or(usize::MAX);
    if blob.entry.size > MAX_BLOB || size > *room {
        return Ok(ask_alone(path));
    }
    let content = match blob.body {
        BlobBody::Whole(content) => content,
        BlobBody::Pieces(pieces) => {
            let all: Result<BytesMut, std::io::Error> = pieces
                .try_fold(BytesMut::new(), |mut all, piece| async move {
                    all.extend_from_slice(&piece);
                    Ok(all)
                })
                .await;
            all.map_err(|e| StoreError::Database(e.to_string()))?.freeze()
        }
    };
    *room = room.saturating_sub(content.len());
    let size = content.len() as u64;
    let device = blob.meta.device.as_deref().and_then(decode_name);
    Ok((AnswerHead { size, device, ..described(path, StatusCode::OK, &blob.entry) }, content))
}

fn described(path: &str, status: StatusCode, entry: &IndexEntry) -> AnswerHead {
    AnswerHead {
        path: path.to_owned(),
        status: status.as_u16(),
        md5: Some(entry.md5),
        version: Some(entry.version),
        ..AnswerHead::default()
    }
}

/// The folders that the paths of a batch are in.
#[derive(Default)]
struct Folders(HashSet<String>);

impl Folders {
    /// Counts the folders of a path, if there is room for them.
    fn has_room_for(&mut self, path: &str) -> bool {
        // Where one is counted already, so are those above it.
        let above = path.match_indices('/').rev().map(|(at, _)| &path[..at]);
        let new: Vec<&str> = above.take_while(|folder| !self.0.contains(*folder)).collect();
        let has_room = self.0.len() + new.len() <= FOLDERS;
        if has_room {
            self.0.extend(new.into_iter().map(str::to_owned));
        }
        has_room
    }
}

fn ask_alone(path: &str) -> Frame {
    let head = AnswerHead {
        path: path.to_owned(),
        status: StatusCode::PAYLOAD_TOO_LARGE.as_u16(),
        error_code: Some(ASK_ALONE.to_owned()),
        ..AnswerHead::default()
    };
    (head, Bytes::new())
}

fn refused(path: String, refusal: Refusal, id: &str, metrics: &Metrics) -> Frame {
    metrics.refused(&refusal);
    let (md5, version) = match &refusal {
        Refusal::Tombstone(entry) => (Some(entry.md5), Some(entry.version)),
        _ => (None, None),
    };
    let (status, told) = refusal.into_told(id);
    let context = told.context.unwrap_or_default();
    let head = AnswerHead {
        path,
        status: status.as_u16(),
        md5,
        version,
        current_md5: context.current_md5,
        // Here 0 says that nothing is there.
        current_version: context.current_version.map(|version| version.parse().unwrap_or(0)),
        is_deleted: context.is_deleted,
        error_code: told.error_code,
        detail: Some(told.detail),
        ..AnswerHead::default()
    };
    (head, Bytes::new())
}

/// A body in memory.
struct Collected(BytesMut);

impl Taker for Collected {
    async fn take(&mut self, piece: Bytes, memory: &mut Allotment) -> Result<(), Refusal> {
        let size = (self.0.len() + piece.len()) as u64;
        if !memory.covers(size) {
            memory.grow_to(size.next_power_of_two())?;
        }
        self.0.extend_from_slice(&piece);
        Ok(())
    }
}
