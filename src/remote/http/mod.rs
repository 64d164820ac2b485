//! [`HttpRemote`]: a Memory Proxy over HTTP.
//!
//! Each request is sent once. Retries, decisions and logging are the caller's, and no file is read here. The dialect is
//! `flat`, or `namespaced` for a folder with a namespace.

mod batch;
mod classify;
mod client;
mod download;
mod encoding;
mod events;
mod flat;
mod index;
mod index_json;
mod link;
mod namespaced;
mod options;
mod pinned;
mod progress;
mod reply;
mod tls;
mod upload;

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
        self.link.facts().index = None;
    }

    fn written_at(&self) -> Option<HistoryPoint> {
        self.link.written().clone()
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
        if self.link.namespace.is_flat() {
            return self.flat_put(path, precondition, body).await;
        }
        self.namespaced_put(path, precondition, version, body).await
    }

    async fn delete(&self, path: &RelPath, md5: Md5, version: u64) -> Result<DeleteReply, RemoteError> {
        if self.link.namespace.is_flat() {
            return self.flat_delete(path, md5).await;
        }
        self.namespaced_delete(path, md5, version).await
    }

    async fn delete_again(&self, path: &RelPath, tombstone: Md5) -> Result<DeleteReply, RemoteError> {
        if self.link.namespace.is_flat() {
            return self.flat_delete(path, tombstone).await;
        }
        self.namespaced_delete_again(path).await
    }

    async fn batch(
        &self,
        requests: Vec<(RelPath, BatchRequest)>,
    ) -> Result<Option<Vec<Option<BatchReply>>>, RemoteError> {
        self.send_batch(requests).await
    }
}
