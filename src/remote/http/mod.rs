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
mod reply;
mod upload;
mod versions;
mod writes;

pub use client::HttpRemote;
pub use options::{HttpOptions, OptionsError};
pub use versions::DatedEntry;
