//! The proxy as the agent sees it: trait [`Remote`] and its HTTP implementation.

mod api;
pub mod http;

pub use api::{
    BatchReply, BatchRequest, BodySource, DeleteReply, FetchedIndex, GetReply, IndexUpdate, PromisedDigest, PutReply,
    Remote, RemoteBlob, RemoteError, RemoteVersion, UploadBody,
};
