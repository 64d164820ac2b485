//! `POST /batch` and `POST /batch/{namespace}`: many small requests in one.
//!
//! Each request has its own precondition and its own status, the same as it would have alone. A batch is no transaction.
//! A malformed batch is refused before any of it is done.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use hyper::body::{Body as _, Incoming};

use crate::path::{MAX_PATH, RelPath};
use crate::protocol::batch::{self, ASK_ALONE, AnswerHead, BatchWriter, MAX_BLOB, MAX_BYTES, RequestHead};
use crate::protocol::decode_name;
use crate::proxy::auth::caller::access_of_op;
use crate::proxy::auth::keys::AccessKind;
use crate::proxy::body::{BodyReader, BodyTerms, content_coding};
use crate::proxy::context::RequestContext;
use crate::proxy::error::ApiError;
use crate::proxy::limits::memory::{MemoryPermit, UNKNOWN_BODY_MEMORY};
use crate::proxy::quota::QuotaPermit;
use crate::proxy::response::{HttpResponse, with_reserved_body};
use crate::proxy::routes::names::stored_path;
use crate::proxy::routes::versions::write_meta;
use crate::proxy::routes::write::{ParsedWrite, write_result};
use crate::store::{BlobBody, BlobMeta, GetOutcome, IndexEntry, Store, StoreError, WriteOutcome};

/// Blobs read from the store at once.
const READS_AT_ONCE: usize = 8;
/// Bytes of the response kept free for each head, besides its path.
const HEAD_BYTES: usize = 1024;
/// Bytes of a typical head in the response.
const TYPICAL_HEAD_BYTES: usize = 128;
/// Most folders that contain the paths of a batch, all their parents included: a store may have to look up each. A path
/// in further ones must be requested alone.
const MAX_FOLDERS: usize = 4096;
/// A packed body is expected to unpack to this many times its length. One that grows larger reserves more memory.
const TYPICAL_RATIO: u64 = 4;

/// One answer of a batch: its head, and the content that follows it.
type AnswerFrame = (AnswerHead, Bytes);
/// An answer and the place of its request in the batch.
type PlacedAnswer = (usize, AnswerFrame);

pub(super) async fn post<S: Store>(
    ctx: &RequestContext<'_, S>,
    request: &Parts,
    body: Incoming,
) -> Result<HttpResponse, ApiError> {
    let headers = &request.headers;
    if headers.get(CONTENT_TYPE).is_none_or(|value| value != batch::CONTENT_TYPE) {
        return Err(ApiError::NotABatch);
    }
    let (body, memory) = receive_body(ctx, headers, body).await?;
    let request_bytes = body.len() as u64;
    let frames = batch::read::<RequestHead>(body).map_err(|e| ApiError::InvalidBatch(e.to_string()))?;
    check_paths(&frames)?;
    if frames.iter().any(|(head, _)| access_of_op(&head.op) == AccessKind::Write) {
        ctx.caller.require(AccessKind::Write, ctx.ns())?;
    }
    // A content type of the request describes the batch and not its blobs.
    let meta = BlobMeta { content_type: None, ..write_meta(ctx, headers)? };

    let (count, room) = (frames.len(), content_room(&frames));
    let BatchPlan { mut answers, gets, writes, permits } = plan(ctx, frames).await?;
    let (written, memory) = write_all(ctx, writes, meta, (permits, memory)).await?;
    answers.extend(written);
    let mut budget = ReadBudget { room, request_bytes, response_bytes: 0, memory };
    answers.extend(read_all(ctx, gets, &mut budget).await);
    let response = render(count, answers)?;
    Ok(with_reserved_body(batch::CONTENT_TYPE, response, budget.memory))
}

async fn receive_body<S: Store>(
    ctx: &RequestContext<'_, S>,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<(Bytes, MemoryPermit), ApiError> {
    let coding = content_coding(headers)?;
    let limit = ctx.state.options.max_body.min(MAX_BYTES as u64);
    let expected = match body.size_hint().exact() {
        Some(length) if coding.is_some() => length.saturating_mul(TYPICAL_RATIO),
        Some(length) => length,
        None => UNKNOWN_BODY_MEMORY,
    };
    let terms = BodyTerms { coding, limit, memory: expected.min(limit) };
    let mut body = BodyReader::open(ctx.state, &ctx.caller, terms, body).await?;
    let mut content = BytesMut::new();
    while let Some(piece) = body.next().await? {
        if !body.memory.covers(body.size) {
            body.memory.grow_to(body.size.next_power_of_two())?;
        }
        content.extend_from_slice(&piece);
    }
    Ok((content.freeze(), body.memory))
}

/// Refuses a batch with two requests for one path, which would race, or with a path too long for the response.
fn check_paths(frames: &[(RequestHead, Bytes)]) -> Result<(), ApiError> {
    let mut seen = HashSet::with_capacity(frames.len());
    for (at, (head, _)) in frames.iter().enumerate() {
        if head.path.len() > MAX_PATH {
            return Err(ApiError::InvalidBatch(format!("frame {at}: the path is longer than {MAX_PATH} bytes")));
        }
        if !seen.insert(head.path.as_str()) {
            return Err(ApiError::InvalidBatch(format!("frame {at}: a path comes twice in one batch")));
        }
    }
    Ok(())
}

/// Bytes of the response that are left for contents.
fn content_room(frames: &[(RequestHead, Bytes)]) -> usize {
    // JSON may escape each byte of a path with six.
    MAX_BYTES.saturating_sub(frames.iter().map(|(head, _)| HEAD_BYTES + 6 * head.path.len()).sum())
}

/// The requests of a batch, checked and admitted.
#[derive(Default)]
struct BatchPlan {
    gets: Vec<(usize, RelPath)>,
    writes: Vec<(usize, ParsedWrite, Bytes)>,
    /// Quota for the writes.
    permits: Vec<QuotaPermit>,
    /// The answers to refused requests.
    answers: Vec<PlacedAnswer>,
}

async fn plan<S: Store>(ctx: &RequestContext<'_, S>, frames: Vec<(RequestHead, Bytes)>) -> Result<BatchPlan, ApiError> {
    let put_path = |head: &RequestHead| stored_path(&head.path).ok().filter(|_| head.op == "put");
    let puts = frames.iter().filter_map(|(head, content)| Some((put_path(head)?, content.len() as u64)));
    let puts: Vec<_> = puts.collect();
    let mut admitted = ctx.state.quotas.admit_many(&ctx.caller, ctx.ns(), &puts).await?.into_iter();
    let (mut plan, mut folders) = (BatchPlan::default(), FolderCount::default());
    for (at, (head, content)) in frames.into_iter().enumerate() {
        let permit = put_path(&head).and_then(|_| admitted.next());
        if !folders.add(&head.path) {
            plan.answers.push((at, ask_alone(&head.path)));
        } else if let Err(error) = plan.add(at, &head, content, ctx.namespace.is_flat(), permit) {
            plan.answers.push((at, error_answer(ctx, head.path, error)));
        }
    }
    Ok(plan)
}

impl BatchPlan {
    fn add(
        &mut self,
        at: usize,
        head: &RequestHead,
        content: Bytes,
        is_flat: bool,
        permit: Option<Result<Option<QuotaPermit>, ApiError>>,
    ) -> Result<(), ApiError> {
        if head.op == "get" && content.is_empty() {
            self.gets.push((at, stored_path(&head.path)?));
            return Ok(());
        }
        let write = ParsedWrite::from_frame(head, &content, is_flat)?;
        self.permits.extend(permit.transpose()?.flatten());
        self.writes.push((at, write, content));
        Ok(())
    }
}

/// The folders that contain the paths of a batch.
#[derive(Default)]
struct FolderCount(HashSet<String>);

impl FolderCount {
    /// Adds the folders of a path. False: there would be too many.
    fn add(&mut self, path: &str) -> bool {
        // If a folder is counted, so are its parents.
        let parents = path.match_indices('/').rev().map(|(at, _)| &path[..at]);
        let new: Vec<&str> = parents.take_while(|folder| !self.0.contains(*folder)).collect();
        let fits = self.0.len() + new.len() <= MAX_FOLDERS;
        if fits {
            self.0.extend(new.into_iter().map(str::to_owned));
        }
        fits
    }
}

/// Executes the writes. The memory is given back with the answers.
async fn write_all<S: Store>(
    ctx: &RequestContext<'_, S>,
    writes: Vec<(usize, ParsedWrite, Bytes)>,
    meta: BlobMeta,
    reserved: (Vec<QuotaPermit>, MemoryPermit),
) -> Result<(Vec<PlacedAnswer>, MemoryPermit), ApiError> {
    if writes.is_empty() {
        return Ok((Vec::new(), reserved.1));
    }
    let (mut sent, mut operations) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
    for (at, write, content) in writes {
        sent.push((at, write.path.as_str().to_owned(), write.sent_precondition(ctx.namespace.is_flat())));
        operations.push(write.into_operation(content));
    }
    let (store, ns) = (ctx.state.store.clone(), ctx.ns().to_owned());
    let write = async move { store.write_many(&ns, operations, &meta).await };
    let happened = |outcomes: &Vec<_>| outcomes.iter().flatten().any(WriteOutcome::happened);
    let (outcomes, (_, memory)) = ctx.state.quotas.run_write(ctx.ns(), write, reserved, happened).await?;
    let answers = sent.into_iter().zip(outcomes).map(|((at, path, sent), outcome)| {
        ctx.state.metrics.count_writes(u64::from(outcome.as_ref().is_ok_and(WriteOutcome::happened)));
        let result = outcome.map_err(ApiError::from).and_then(|outcome| write_result(outcome, sent));
        let answer = match result {
            Ok((status, entry)) => (answer_head(&path, status, &entry), Bytes::new()),
            Err(error) => error_answer(ctx, path, error),
        };
        (at, answer)
    });
    Ok((answers.collect(), memory))
}

/// The memory of a batch, and the room for contents in its response.
struct ReadBudget {
    room: usize,
    request_bytes: u64,
    response_bytes: u64,
    memory: MemoryPermit,
}

impl ReadBudget {
    /// Reserves memory for [`READS_AT_ONCE`] more blobs. Contents are copied into the response, so they count twice.
    fn reserve_reads(&mut self) -> bool {
        let needed = self.request_bytes + 2 * (self.response_bytes + READS_AT_ONCE as u64 * MAX_BLOB);
        if self.memory.grow_to(needed).is_err() {
            self.room = 0;
        }
        self.room > 0
    }
}

async fn read_all<S: Store>(
    ctx: &RequestContext<'_, S>,
    gets: Vec<(usize, RelPath)>,
    budget: &mut ReadBudget,
) -> Vec<PlacedAnswer> {
    let mut answers = Vec::with_capacity(gets.len());
    for some in gets.chunks(READS_AT_ONCE) {
        let paths: Vec<RelPath> = some.iter().map(|(_, path)| path.clone()).collect();
        let got = if budget.reserve_reads() { ctx.store().get_many(ctx.ns(), paths).await } else { Vec::new() };
        let mut got = got.into_iter();
        for (at, path) in some {
            let answer = match got.next() {
                Some(got) => blob_answer(path.as_str(), got, &mut budget.room).await,
                None => Ok(ask_alone(path.as_str())),
            };
            let answer = answer.unwrap_or_else(|error| error_answer(ctx, path.as_str().to_owned(), error));
            budget.response_bytes += answer.1.len() as u64;
            answers.push((*at, answer));
        }
    }
    answers
}

/// The answer to a get. A blob that does not fit into `room` must be requested alone.
async fn blob_answer(
    path: &str,
    got: Result<GetOutcome, StoreError>,
    room: &mut usize,
) -> Result<AnswerFrame, ApiError> {
    let blob = match got? {
        GetOutcome::Found(blob) => blob,
        GetOutcome::Tombstone(entry) => return Err(ApiError::Tombstone(entry)),
        GetOutcome::Absent => return Err(ApiError::NotFound),
    };
    let size = usize::try_from(blob.entry.size).unwrap_or(usize::MAX);
    if blob.entry.size > MAX_BLOB || size > *room {
        return Ok(ask_alone(path));
    }
    let content = match blob.body {
        BlobBody::Whole(content) => content,
        BlobBody::Pieces(pieces) => {
            let pieces: Vec<Bytes> = pieces.try_collect().await.map_err(|e| StoreError::Database(e.to_string()))?;
            pieces.concat().into()
        }
    };
    *room = room.saturating_sub(content.len());
    let size = content.len() as u64;
    let device = blob.meta.device.as_deref().and_then(decode_name);
    Ok((AnswerHead { size, device, ..answer_head(path, StatusCode::OK, &blob.entry) }, content))
}

fn answer_head(path: &str, status: StatusCode, entry: &IndexEntry) -> AnswerHead {
    AnswerHead {
        path: path.to_owned(),
        status: status.as_u16(),
        md5: Some(entry.md5),
        version: Some(entry.version),
        ..AnswerHead::default()
    }
}

fn ask_alone(path: &str) -> AnswerFrame {
    let head = AnswerHead {
        path: path.to_owned(),
        status: StatusCode::PAYLOAD_TOO_LARGE.as_u16(),
        error_code: Some(ASK_ALONE.to_owned()),
        ..AnswerHead::default()
    };
    (head, Bytes::new())
}

fn error_answer<S: Store>(ctx: &RequestContext<'_, S>, path: String, error: ApiError) -> AnswerFrame {
    ctx.state.metrics.count_error(&error);
    let (md5, version) = match &error {
        ApiError::Tombstone(entry) => (Some(entry.md5), Some(entry.version)),
        _ => (None, None),
    };
    let (status, body) = error.into_parts(ctx.id);
    let context = body.context.unwrap_or_default();
    let head = AnswerHead {
        path,
        status: status.as_u16(),
        md5,
        version,
        current_md5: context.current_md5,
        // In a batch 0 stands for `none`.
        current_version: context.current_version.map(|version| version.parse().unwrap_or(0)),
        is_deleted: context.is_deleted,
        error_code: body.error_code,
        detail: Some(body.detail),
        ..AnswerHead::default()
    };
    (head, Bytes::new())
}

/// The response to a batch of `count` requests, in their order.
fn render(count: usize, mut answers: Vec<PlacedAnswer>) -> Result<Bytes, StoreError> {
    let broken = |why: String| StoreError::Database(why);
    if answers.len() != count {
        return Err(broken("a request of the batch has no answer".to_owned()));
    }
    answers.sort_unstable_by_key(|(at, _)| *at);
    let contents: usize = answers.iter().map(|(_, (_, content))| content.len()).sum();
    let mut writer = BatchWriter::with_capacity(contents + TYPICAL_HEAD_BYTES * count);
    for (_, (head, content)) in answers {
        // Heads and contents fit: `content_room` counted them.
        writer.push(&head, &content).map_err(|e| broken(e.to_string()))?;
    }
    Ok(writer.finish())
}
