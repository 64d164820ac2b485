//! Batches of writes: digested on a blocking thread, then queued in one message, so that the writer commits them together.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::super::{BatchWrite, BlobMeta, BodyWriter, StoreError, WriteOutcome};
use super::spool::{BodyFiles, FinishedBody, MAX_INLINE_BYTES, SpooledWriter, run_blocking};
use super::writer::{AppliedWrite, QueuedWrite, WriteRequest};
use crate::path::RelPath;

/// The outcome of one write of a batch, as it becomes known.
pub(super) struct PendingWrite {
    is_put: bool,
    reply: Result<oneshot::Receiver<Result<AppliedWrite, StoreError>>, StoreError>,
}

impl PendingWrite {
    pub(super) async fn outcome(self) -> Result<WriteOutcome, StoreError> {
        let applied = self.reply?.await.map_err(|_| StoreError::Closed)??;
        if self.is_put {
            applied.into_put().map(WriteOutcome::Put)
        } else {
            applied.into_deleted().map(WriteOutcome::Deleted)
        }
    }
}

/// Prepares a batch for the queue. The pending writes are in the order of `writes`; those whose body failed are not queued.
pub(super) async fn prepare(
    files: &Arc<BodyFiles>,
    ns: &str,
    writes: Vec<(RelPath, BatchWrite)>,
    meta: &BlobMeta,
) -> (Vec<QueuedWrite>, Vec<PendingWrite>) {
    let contents = writes.iter().filter_map(|(_, write)| match write {
        BatchWrite::Put { content, .. } => Some(content.clone()),
        BatchWrite::Delete { .. } => None,
    });
    let mut bodies = finish_bodies(files, contents.collect()).await.into_iter();
    let (mut queued, mut pending) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
    for (path, write) in writes {
        let (is_put, request) = match write {
            BatchWrite::Put { expect, .. } => {
                let body = bodies.next().unwrap_or(Err(StoreError::Closed));
                (true, body.map(|body| WriteRequest::Put { expect, meta: meta.clone(), body }))
            }
            BatchWrite::Delete { expect } => (false, Ok(WriteRequest::Delete { expect, meta: meta.clone() })),
        };
        let reply = request.map(|request| {
            let (reply, outcome) = oneshot::channel();
            queued.push(QueuedWrite { ns: ns.to_owned(), path, request, reply });
            outcome
        });
        pending.push(PendingWrite { is_put, reply });
    }
    (queued, pending)
}

/// The contents as the writer takes them, in order.
async fn finish_bodies(files: &Arc<BodyFiles>, contents: Vec<Bytes>) -> Vec<Result<FinishedBody, StoreError>> {
    if contents.is_empty() {
        return Vec::new();
    }
    let digested = run_blocking(move || {
        let digest = |content: Bytes| {
            if content.len() <= MAX_INLINE_BYTES { Ok(FinishedBody::inline(content)) } else { Err(content) }
        };
        contents.into_iter().map(digest).collect::<Vec<_>>()
    });
    let Ok(digested) = digested.await else { return Vec::new() };
    let mut bodies = Vec::with_capacity(digested.len());
    for content in digested {
        bodies.push(match content {
            Ok(inline) => Ok(inline),
            Err(large) => {
                let mut body = SpooledWriter::new(files.clone());
                match body.push(large).await {
                    Ok(()) => body.finish().await,
                    Err(e) => Err(e),
                }
            }
        });
    }
    bodies
}
