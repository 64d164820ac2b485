//! [`HttpRemote`]: a Memory Proxy over HTTP.
//!
//! Each request is sent once. Retries, decisions and logging are the caller's, and no file is read here.

mod batch;
mod classify;
mod client;
mod download;
mod encoding;
mod events;
mod index;
mod index_json;
mod link;
mod options;
mod pinned;
mod reply;
mod upload;
mod writes;

pub use client::HttpRemote;
pub use options::{HttpOptions, OptionsError};

use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{HistoryPoint, IndexCursor, Precondition};
use crate::remote::{
    BatchReply, BatchRequest, DeleteReply, GetReply, IndexUpdate, PutReply, Remote, RemoteError, UploadBody,
};

impl Remote for HttpRemote {
    fn forget_index(&self) {
        self.link.facts.lock().index = None;
    }

    fn written_at(&self) -> Option<HistoryPoint> {
        self.link.written.lock().clone()
    }

    async fn index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<IndexUpdate, RemoteError> {
        self.fetch_index(since, known).await
    }

    async fn get(&self, path: &RelPath) -> Result<GetReply, RemoteError> {
        self.read_blob(path).await
    }

    async fn put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    ) -> Result<PutReply, RemoteError> {
        self.write_blob(path, precondition, version, body).await
    }

    async fn delete(&self, path: &RelPath, md5: Md5, version: u64) -> Result<DeleteReply, RemoteError> {
        self.delete_blob(path, md5, version).await
    }

    async fn delete_again(&self, path: &RelPath, tombstone: Md5) -> Result<DeleteReply, RemoteError> {
        self.delete_tombstone(path, tombstone).await
    }

    async fn batch(
        &self,
        requests: Vec<(RelPath, BatchRequest)>,
    ) -> Result<Option<Vec<Option<BatchReply>>>, RemoteError> {
        self.send_batch(requests).await
    }
}
