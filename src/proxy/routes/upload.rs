//! The content of a PUT on its way into the store, within the quota of its user.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use hyper::body::{Body as _, Incoming};

use crate::digest::{Md5, Md5Hasher};
use crate::path::RelPath;
use crate::proxy::body::{BodySink, BodyTerms, ReceivedBody, content_coding, receive};
use crate::proxy::context::RequestContext;
use crate::proxy::error::ApiError;
use crate::proxy::limits::memory::MemoryPermit;
use crate::proxy::quota::QuotaPermit;
use crate::proxy::routes::write::{put_result, sent_precondition};
use crate::store::{BlobMeta, BodyWriter as _, IndexEntry, Store, StoreError, WriteCondition, WriteOutcome};

/// Most memory that a content takes, bytes: a piece that comes, and one that is written.
const UPLOAD_MEMORY: u64 = 576 * 1024;
/// Quota is reserved in steps of so many bytes for a body of unknown length.
const QUOTA_STEP: u64 = 4 * 1024 * 1024;

/// A content that was received to its end, with its reservations.
pub(crate) struct ReceivedContent<I> {
    content: I,
    quota: Option<QuotaPermit>,
    memory: MemoryPermit,
}

/// Receives the content of a PUT. `promised`: the MD5 that it must have, unpacked.
pub(crate) async fn receive_content<S: Store>(
    ctx: &RequestContext<'_, S>,
    path: &RelPath,
    headers: &HeaderMap,
    body: Incoming,
    promised: Option<Md5>,
) -> Result<ReceivedContent<S::BodyWriter>, ApiError> {
    let coding = content_coding(headers)?;
    let hasher = promised.map(|_| Md5Hasher::new());
    let mut sink = UploadSink { ctx, path, content: ctx.store().new_body(), hasher, size: 0, admitted: 0, quota: None };
    // The length of a packed body says little about its unpacked size.
    let announced = if coding.is_none() { body.size_hint().lower() } else { 0 };
    if announced > 0 {
        // The client can be refused before it sends the body.
        sink.admit(announced).await?;
    }
    let exact = body.size_hint().exact().filter(|_| coding.is_none());
    let memory = exact.map_or(UPLOAD_MEMORY, |length| length.min(UPLOAD_MEMORY));
    let terms = BodyTerms { coding, limit: ctx.state.options.max_body, memory };
    let ReceivedBody { mut sink, size, memory } = receive(ctx.state, &ctx.caller, terms, body, sink).await?;
    let md5 = sink.hasher.take().map(Md5Hasher::finish);
    if let Some(md5) = md5.filter(|md5| Some(*md5) != promised) {
        return Err(ApiError::DigestMismatch(md5));
    }
    if size != sink.admitted {
        sink.admit(size).await?;
    }
    Ok(ReceivedContent { content: sink.content, quota: sink.quota, memory })
}

/// Stores a content. Gives its status and its new entry.
pub(crate) async fn store_content<S: Store>(
    ctx: &RequestContext<'_, S>,
    path: &RelPath,
    precondition: WriteCondition,
    meta: BlobMeta,
    received: ReceivedContent<S::BodyWriter>,
) -> Result<(StatusCode, IndexEntry), ApiError> {
    let (store, namespaces) = (ctx.state.store.clone(), ctx.state.quotas.namespaces());
    let (ns, path) = (ctx.ns().to_owned(), path.clone());
    let ReceivedContent { content, quota, memory } = received;
    // The write goes on if the client hangs up, and holds its reservations until it is done.
    let write = tokio::spawn(async move {
        let outcome = store.put(&ns, &path, precondition, meta, content).await;
        if outcome.as_ref().is_ok_and(|outcome| WriteOutcome::Put(*outcome).happened()) {
            namespaces.add_written(&ns);
        }
        drop((quota, memory));
        outcome
    });
    let outcome = write.await.map_err(|_| StoreError::Closed)??;
    put_result(outcome, sent_precondition(Some(precondition), ctx.namespace.is_flat()))
}

/// Passes a content on to the store, and reserves quota for it.
struct UploadSink<'a, S: Store> {
    ctx: &'a RequestContext<'a, S>,
    path: &'a RelPath,
    content: S::BodyWriter,
    /// If an MD5 is promised.
    hasher: Option<Md5Hasher>,
    /// Bytes received.
    size: u64,
    /// Bytes admitted by the quota.
    admitted: u64,
    quota: Option<QuotaPermit>,
}

impl<S: Store> UploadSink<'_, S> {
    /// Replaces the quota reservation by one of `size` bytes.
    async fn admit(&mut self, size: u64) -> Result<(), ApiError> {
        self.quota = None;
        self.quota = self.ctx.state.quotas.admit(&self.ctx.caller, self.ctx.ns(), self.path, size).await?;
        self.admitted = size;
        Ok(())
    }
}

impl<S: Store> BodySink for UploadSink<'_, S> {
    async fn take(&mut self, piece: Bytes, _memory: &mut MemoryPermit) -> Result<(), ApiError> {
        self.size += piece.len() as u64;
        if self.size > self.admitted {
            match self.admit(self.size.next_multiple_of(QUOTA_STEP)).await {
                // The bytes received so far may still fit.
                Err(ApiError::QuotaExceeded { .. }) => self.admit(self.size).await?,
                admitted => admitted?,
            }
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        Ok(self.content.push(piece).await?)
    }
}
