//! The proxy as the agent sees it: trait [`Remote`] and its HTTP implementation.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::digest::Md5;
use crate::path::{PathError, RelPath};
use crate::protocol::{HistoryPoint, IndexCursor, IndexEntry, Precondition};

pub mod events;
pub mod http;

/// The index, parsed whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchedIndex {
    pub files: BTreeMap<RelPath, IndexEntry>,
    /// Names that cannot be synced, with the reason. They take no part.
    pub refused: Vec<(String, PathError)>,
    /// Present where the proxy advertises `strong-index`: the entries are evidence, not hints.
    pub cursor: Option<IndexCursor>,
    /// The point of its store's history where it stands, if the proxy tells.
    pub history: Option<HistoryPoint>,
    /// The proxy says that its store has never stood at the [`HistoryPoint`] it was asked with.
    pub set_back: bool,
}

/// What became of asking for the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexUpdate {
    /// Nothing changed since the last answer that this `Remote` gave.
    Unchanged,
    Whole(FetchedIndex),
    /// Only what changed since the mark that was passed in (capability `delta`), or since the last answer that this
    /// `Remote` gave (capability `etag-delta`, where the index has no mark). No entry has left the index meanwhile.
    Delta(FetchedIndex),
}

/// A blob on its way down.
pub struct RemoteBlob {
    /// The `ETag`. The reader checks the body against it.
    pub md5: Md5,
    /// `Content-Length`, bytes, where the answer has one.
    pub size: Option<u64>,
    /// The version token of the namespaced dialect.
    pub version: u64,
    /// The machine that wrote it, where the proxy says so.
    pub device: Option<String>,
    pub body: BoxStream<'static, Result<Bytes, RemoteError>>,
}

/// What became of a GET.
pub enum GetReply {
    Found(RemoteBlob),
    /// 404. `tombstone`: the proxy proves that the path was deleted (`honest-412`).
    Absent {
        tombstone: Option<Md5>,
    },
}

/// What became of a PUT. A lost race is a value, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutReply {
    /// 200 or 201, with the ETag of what was sent.
    Stored { version: u64 },
    /// A 412. `current`: what the server holds (`None`: nothing, or not told). `is_deleted`: whether that is a
    /// tombstone, where the proxy says so. `version`: of what it holds (namespaced dialect), 0 where it does not say.
    Mismatch { current: Option<Md5>, is_deleted: Option<bool>, version: u64 },
}

/// What became of a DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteReply {
    /// 204 (flat), 200 (namespaced).
    Done,
    /// 404: nothing was there.
    Absent,
    /// 412.
    Mismatch { current: Option<Md5> },
}

/// A body on its way up, read piece by piece. The source checks itself: it gives an error instead of its last
/// piece when the content is not what was promised, so that a torn read never becomes a version (invariant 10).
pub trait BodySource: Send {
    /// The next piece, `None` after the last. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read on, or is not what it was.
    fn next(&mut self) -> io::Result<Option<Bytes>>;
}

/// The digest of a body on its way up.
#[derive(Clone)]
pub enum PromisedDigest {
    Known(Md5),
    /// The source knows it once it has given its last piece.
    AtTheEnd(Arc<dyn Fn() -> Option<Md5> + Send + Sync>),
}

impl PromisedDigest {
    /// `None`: not known yet.
    pub fn get(&self) -> Option<Md5> {
        match self {
            Self::Known(md5) => Some(*md5),
            Self::AtTheEnd(tell) => tell(),
        }
    }
}

/// What to upload.
pub struct UploadBody {
    pub md5: PromisedDigest,
    /// Bytes.
    pub size: u64,
    pub source: Box<dyn BodySource>,
}

/// What is asked of one path in a batch.
pub enum BatchRequest {
    Get,
    /// As [`Remote::put`].
    Put {
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    },
    /// As [`Remote::delete`].
    Delete {
        md5: Md5,
        version: u64,
    },
}

/// What became of an [`Ask`]; of its kind.
pub enum BatchReply {
    Got(GetReply),
    Put(PutReply),
    Deleted(DeleteReply),
}

/// Why a request gave no answer to act on. The URL is named, the token never.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// 401 or 403. The cycle ends, except after a 403 on a write, which concerns one path.
    #[error("{url}: {}", refused(*status))]
    Auth { url: String, status: u16 },
    /// No connection, a timeout, an answer cut off: the write may or may not have happened.
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    /// An answer that comes, but too slowly to wait for its end.
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
    /// 400, 409, 422, 428 and other 4xx: this request will not be taken as it is.
    #[error("{url}: the proxy refused the request ({status}): {detail}")]
    Refused { url: String, status: u16, detail: String },
    /// An answer that is not what the protocol says: a redirect, a body that does not match its ETag, no JSON.
    #[error("{url}: not an answer of a Memory Proxy: {why}")]
    Protocol { url: String, why: String },
    /// Another server than a Memory Proxy.
    #[error("{url}: this is no Memory Proxy but another server: {why}; check the address")]
    NotAProxy { url: String, why: String },
    /// A name that this proxy cannot be asked for; nothing was sent.
    #[error("{url}: {why}")]
    Name { url: String, why: String },
    /// The body could not be read on this side; nothing was written there.
    #[error("{0}")]
    Source(String),
}

/// What a refused token means, and what to do.
fn refused(status: u16) -> &'static str {
    if status == 403 {
        "the proxy knows the token, but it does not open this namespace or may not write to it (403); ask whoever runs \
         the proxy for another key"
    } else {
        "the proxy refused the token (401); check proxy.token_file"
    }
}

impl RemoteError {
    /// Whether the proxy knows the key and does not allow it this request (403).
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Auth { status: 403, .. })
    }

    /// Whether it concerns the proxy as a whole, so that the cycle ends, rather than one path.
    pub fn ends_cycle(&self) -> bool {
        matches!(self, Self::Auth { .. } | Self::Unreachable { .. } | Self::Throttled { .. })
    }
}

/// One namespace of a Memory Proxy.
pub trait Remote: Send + Sync + 'static {
    /// The index. `since`: the mark of the index the caller holds, which a delta may be based on. With `None` it may be based
    /// on what this `Remote` gave last; the first answer is `Whole`. `known`: the point of the store's history that the
    /// caller has agreed with, see [`Index::set_back`].
    fn index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> impl Future<Output = Result<IndexUpdate, RemoteError>> + Send;
    /// The point of its history where the proxy's store stood with the last write that was answered here, if the proxy
    /// tells.
    fn written_at(&self) -> Option<HistoryPoint> {
        None
    }
    /// The caller holds no index any more, whatever it was given: the next answer is `Whole`.
    fn forget_index(&self);
    fn get(&self, path: &RelPath) -> impl Future<Output = Result<GetReply, RemoteError>> + Send;
    /// Writes the path if it holds what is expected. `version` is for proxies that compare versions (namespaced
    /// dialect): with [`Precondition::Holds`] the version of just that content, 0 where it is not known; with
    /// [`Precondition::New`] 0, or the version of a tombstone that is known to be there.
    fn put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    ) -> impl Future<Output = Result<PutReply, RemoteError>> + Send;
    /// Deletes the path if it holds `md5`. `version`: of that content, 0 where it is not known.
    fn delete(
        &self,
        path: &RelPath,
        md5: Md5,
        version: u64,
    ) -> impl Future<Output = Result<DeleteReply, RemoteError>> + Send;

    /// Deletes what is deleted already, so that a weak index that still names it as live gets a new entry. `tombstone`: the
    /// content that was deleted. Where other content was written meanwhile, this is a mismatch. `Absent`: this proxy does
    /// not delete twice.
    fn delete_again(
        &self,
        path: &RelPath,
        tombstone: Md5,
    ) -> impl Future<Output = Result<DeleteReply, RemoteError>> + Send;

    /// Sends many small requests as one (capability `batch`); `None`: this proxy takes none. They are independent of
    /// each other, carried out in no particular order, and no path comes twice. One that was not answered as it would
    /// have been by itself (its source failed, the proxy did not take it, the answer is not to be believed) is `None`:
    /// ask by itself. A [`Blob`] in an answer is here whole.
    ///
    /// # Errors
    /// When the batch as a whole was not answered: any of its writes may or may not have happened.
    fn batch(
        &self,
        requests: Vec<(RelPath, BatchRequest)>,
    ) -> impl Future<Output = Result<Option<Vec<Option<BatchReply>>>, RemoteError>> + Send {
        drop(requests);
        std::future::ready(Ok(None))
    }
}
