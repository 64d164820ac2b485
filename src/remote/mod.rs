//! The proxy as the agent sees it: trait [`Remote`] and its HTTP implementation.

mod api;
mod error;
pub mod http;
mod types;

pub use api::Remote;
pub use error::RemoteError;
pub use types::{
    BatchReply, BatchRequest, BodySource, DeleteReply, FetchedIndex, GetReply, IndexUpdate, PromisedDigest, PutReply,
    RemoteBlob, UploadBody,
};
