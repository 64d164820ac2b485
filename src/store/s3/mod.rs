//! A store in a bucket, in the layout that other Memory Proxies use. Several proxies may use one bucket.
//!
//! A write replaces a blob by compare-and-swap on its ETag, then records it in its namespace's index, also by
//! compare-and-swap. Only then is it acknowledged. A crash between the two loses an entry. The next reader of the blob
//! corrects it, and so do every start and `memsync reindex`. The index is therefore weak: its entries are hints.
//!
//! In most buckets the ETag is the MD5 of the body. It does not distinguish two versions with the same content, nor a
//! tombstone from an empty file. If two proxies replace the same content at the same time, and one of them writes the same
//! content again, both may succeed. Then the other replaces a version that it has not seen, although it knows its content.
//! No unknown content is lost, but the earlier version may be missing. Within one proxy the writers of a path are
//! serialized.
//!
//! Earlier versions and expiry notes are beside the prefix, where other proxies do not list. If the bucket does not allow
//! that, there are none.

mod blobs;
mod bucket;
mod bucket_error;
mod change_feed;
mod core;
mod expiry;
mod http;
mod index_cache;
mod index_document;
mod index_object;
mod index_writer;
mod layout;
mod listing;
mod namespace_cache;
mod namespace_index;
mod namespaces;
mod object_metadata;
mod options;
mod probe;
mod reindex;
mod store;
mod versions;

pub use options::{EtagQuotes, S3Options};
pub use reindex::RepairReport;
pub use store::S3Store;
