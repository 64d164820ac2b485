//! Trait [`Remote`]: one namespace of a Memory Proxy, with its requests, replies and errors.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;

use crate::digest::Md5;
use crate::path::{PathError, RelPath};
use crate::protocol::{HistoryPoint, IndexCursor, IndexEntry, Precondition};

/// One namespace of a Memory Proxy.
pub trait Remote: Send + Sync + 'static {
    /// The index. `since`: the cursor of the caller's index, from which a delta may start. With `None` a delta may start from
    /// the last reply of this `Remote`; the first reply is `Whole`. `known`: the history point that the caller has agreed
    /// with, see [`FetchedIndex::set_back`].
    fn index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> impl Future<Output = Result<IndexUpdate, RemoteError>> + Send;
    /// The history point of the store after the last acknowledged write of this `Remote`, if the proxy gives it.
    fn written_at(&self) -> Option<HistoryPoint> {
        None
    }
    /// The caller has dropped its index. The next reply is `Whole`.
    fn forget_index(&self);
    fn get(&self, path: &RelPath) -> impl Future<Output = Result<GetReply, RemoteError>> + Send;
    /// Writes the path if it meets the precondition. `version` is for the namespaced dialect, which compares versions. With
    /// [`Precondition::Holds`]: the version of that content, or 0. With [`Precondition::New`]: 0, or the version of a known
    /// tombstone.
    fn put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    ) -> impl Future<Output = Result<PutReply, RemoteError>> + Send;
    /// Deletes the path if it holds `md5`. `version`: the version of that content, or 0.
    fn delete(
        &self,
        path: &RelPath,
        md5: Md5,
        version: u64,
    ) -> impl Future<Output = Result<DeleteReply, RemoteError>> + Send;

    /// Deletes a deleted path again, so that a weak index that still lists it as live gets a new entry. `tombstone`: the
    /// content that was deleted. `Mismatch`: the path has other content now. `Absent`: this proxy does not delete twice.
    fn delete_again(
        &self,
        path: &RelPath,
        tombstone: Md5,
    ) -> impl Future<Output = Result<DeleteReply, RemoteError>> + Send;

    /// The versions of a path, the newest first, beginning with the current one (capability `versions`). Empty if the proxy
    /// does not know the path. `None`: it keeps no versions.
    fn versions(&self, path: &RelPath) -> impl Future<Output = Result<Option<Vec<RemoteVersion>>, RemoteError>> + Send;
    /// True if the proxy keeps earlier versions. `None`: not known now.
    fn keeps_versions(&self) -> Option<bool>;
    /// The content of a version. `Absent`: it is gone.
    fn get_version(&self, path: &RelPath, version: u64) -> impl Future<Output = Result<GetReply, RemoteError>> + Send;

    /// Sends many small requests as one (capability `batch`). `None`: this proxy takes no batches. The requests are
    /// independent, their order does not matter, and no path occurs twice. A reply is `None` if its source failed, the proxy
    /// refused it, or the answer is not plausible. The caller then sends a single request. A blob in a reply is complete.
    ///
    /// An error means that the whole batch has no answer. Any of its writes may or may not have happened.
    fn batch(
        &self,
        requests: Vec<(RelPath, BatchRequest)>,
    ) -> impl Future<Output = Result<Option<Vec<Option<BatchReply>>>, RemoteError>> + Send {
        drop(requests);
        std::future::ready(Ok(None))
    }
}

/// The index, or the changed part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchedIndex {
    pub files: BTreeMap<RelPath, IndexEntry>,
    /// Names that cannot be synced, with the reason.
    pub refused: Vec<(String, PathError)>,
    /// Present if the proxy advertises `strong-index`: the entries are evidence, not hints.
    pub cursor: Option<IndexCursor>,
    /// The history point of the store, if the proxy gives it.
    pub history: Option<HistoryPoint>,
    /// The proxy's store has never stood at the [`HistoryPoint`] of the request.
    pub set_back: bool,
}

/// The reply to a request for the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexUpdate {
    /// Nothing changed since the last reply of this `Remote`.
    Unchanged,
    Whole(FetchedIndex),
    /// The changes since the given cursor (capability `delta`), or since the last reply of this `Remote` (capability
    /// `etag-delta`, where the index has no cursor). No entry has left the index meanwhile.
    Delta(FetchedIndex),
}

/// A blob that is being downloaded.
pub struct RemoteBlob {
    /// The `ETag`. The caller checks the body against it.
    pub md5: Md5,
    /// `Content-Length` in bytes, if the answer has one.
    pub size: Option<u64>,
    /// The version token of the namespaced dialect.
    pub version: u64,
    /// The device that wrote it, if the proxy gives it.
    pub device: Option<String>,
    pub body: BoxStream<'static, Result<Bytes, RemoteError>>,
}

/// A version of a path that the proxy keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteVersion {
    /// Its number, which grows with every write of the path. [`Remote::get_version`] finds it by this number.
    pub version: u64,
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
    /// A tombstone, without content.
    pub is_deleted: bool,
    /// When it was written or deleted, by the proxy's clock. For people to read.
    pub at: Timestamp,
    /// The device that wrote it, if known.
    pub device: Option<String>,
}

/// The reply to a GET.
pub enum GetReply {
    Found(RemoteBlob),
    /// Not found (404). `tombstone`: the deleted content, which proves a deletion (`honest-412`).
    Absent {
        tombstone: Option<Md5>,
    },
}

/// The reply to a PUT. A lost race is an outcome, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutReply {
    /// 200 or 201, with the ETag of the content that was sent.
    Stored { version: u64 },
    /// A mismatch (412). `current`: the content that the path holds (`None`: nothing, or not given). `is_deleted`: true for a
    /// tombstone, if given. `version`: the version of the path in the namespaced dialect, 0 if not given.
    Mismatch { current: Option<Md5>, is_deleted: Option<bool>, version: u64 },
}

/// The reply to a DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteReply {
    /// 204 (flat), 200 (namespaced).
    Done,
    /// 404: nothing to delete.
    Absent,
    /// 412.
    Mismatch { current: Option<Md5> },
}

/// The content of an upload, read piece by piece. The source checks itself: if the content is not the promised one, it
/// fails instead of returning the last piece. So a torn read never becomes a version (invariant 10).
pub trait BodySource: Send {
    /// The next piece, `None` after the last. Blocks. Fails if the file cannot be read or has changed.
    fn next(&mut self) -> io::Result<Option<Bytes>>;
}

/// The digest of an upload.
#[derive(Clone)]
pub enum PromisedDigest {
    Known(Md5),
    /// The source knows the digest after its last piece.
    AtTheEnd(Arc<dyn Fn() -> Option<Md5> + Send + Sync>),
}

impl PromisedDigest {
    /// The digest, `None` before it is known.
    pub fn get(&self) -> Option<Md5> {
        match self {
            Self::Known(md5) => Some(*md5),
            Self::AtTheEnd(digest) => digest(),
        }
    }
}

/// The content of an upload.
pub struct UploadBody {
    pub md5: PromisedDigest,
    /// Bytes.
    pub size: u64,
    pub source: Box<dyn BodySource>,
}

/// One request of a batch.
pub enum BatchRequest {
    Get,
    /// As `Remote::put`.
    Put {
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    },
    /// As `Remote::delete`.
    Delete {
        md5: Md5,
        version: u64,
    },
}

/// The reply to a [`BatchRequest`], of the same kind.
pub enum BatchReply {
    Got(GetReply),
    Put(PutReply),
    Deleted(DeleteReply),
}

/// A request without a usable answer. The texts name the URL, never the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// 401 or 403. The cycle ends, except after a 403 on a write, which concerns one path.
    #[error("{url}: {}", refused(*status))]
    Auth { url: String, status: u16 },
    /// No connection, a timeout, or an answer that broke off. A write may or may not have happened.
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    /// The answer is too slow.
    #[error("{url}: only {bytes} bytes came in {time:?}; it is asked for again later")]
    Slow { url: String, bytes: u64, time: Duration },
    /// 429, or 503 with Retry-After (capped at 15 minutes).
    #[error("{url}: the proxy asks to wait ({status})")]
    Throttled { url: String, status: u16, after: Option<Duration> },
    /// Other 5xx.
    #[error("{url}: the proxy failed ({status}): {detail}")]
    Server { url: String, status: u16, detail: String },
    /// 413, or a blob beyond the size limit.
    #[error("{url}: too large: {why}")]
    TooLarge { url: String, why: String },
    /// 400, 409, 422, 428 and other 4xx: a retry of the same request would fail again.
    #[error("{url}: the proxy refused the request ({status}): {detail}")]
    Refused { url: String, status: u16, detail: String },
    /// An answer that violates the protocol: a redirect, a body that does not match its ETag, no JSON.
    #[error("{url}: not an answer of a Memory Proxy: {why}")]
    Protocol { url: String, why: String },
    /// Another server than a Memory Proxy.
    #[error("{url}: this is no Memory Proxy but another server: {why}; check the address")]
    NotAProxy { url: String, why: String },
    /// This proxy cannot address the path. Nothing was sent.
    #[error("{url}: {why}")]
    Name { url: String, why: String },
    /// The content could not be read here. The proxy has written nothing.
    #[error("{0}")]
    Source(String),
}

/// The meaning of a refused token, with advice.
fn refused(status: u16) -> &'static str {
    if status == 403 {
        "the proxy knows the token, but it does not open this namespace or may not write to it (403); ask the operator \
         of the proxy for another key"
    } else {
        "the proxy refused the token (401); check proxy.token_file"
    }
}

impl RemoteError {
    /// True if the proxy knows the key but does not allow it this request (403).
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Auth { status: 403, .. })
    }

    /// True if the error concerns the whole proxy, so that the cycle ends, and not only one path.
    pub fn ends_cycle(&self) -> bool {
        matches!(self, Self::Auth { .. } | Self::Unreachable { .. } | Self::Throttled { .. })
    }
}
