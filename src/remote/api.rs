//! Trait [`Remote`]: one namespace of a Memory Proxy.

use std::future::Future;

use super::error::RemoteError;
use super::types::{BatchReply, BatchRequest, DeleteReply, GetReply, IndexUpdate, PutReply, UploadBody};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{HistoryPoint, IndexCursor, Precondition};

/// One namespace of a Memory Proxy.
pub trait Remote: Send + Sync + 'static {
    /// The index. `since`: the cursor of the caller's index, from which a delta may start. With `None` a delta may start from
    /// the last reply of this `Remote`; the first reply is `Whole`. `known`: the history point that the caller has agreed
    /// with, see [`FetchedIndex::set_back`](super::FetchedIndex::set_back).
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
