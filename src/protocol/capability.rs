//! Capabilities, as `GET /health` names them.

/// A 412 shows the state of the path, and a 404 shows a tombstone.
pub const HONEST_412: &str = "honest-412";
/// The index is evidence: it is written in one step with the blobs.
pub const STRONG_INDEX: &str = "strong-index";
/// The index has an ETag, so that an unchanged one is not sent again.
pub const INDEX_ETAG: &str = "index-etag";
/// The index can be read from a cursor on.
pub const DELTA: &str = "delta";
/// The index can be read from a known ETag on, where it has no cursor.
pub const ETAG_DELTA: &str = "etag-delta";
/// `GET /events` pushes changes.
pub const EVENTS: &str = "events";
/// `If-Match` and `If-None-Match` work on blobs.
pub const HTTP_PRECONDITIONS: &str = "http-preconditions";
/// `%2F` in a namespaced path is part of the path and never ends the namespace.
pub const ENCODED_SLASH: &str = "encoded-slash";
/// `POST /batch` takes many requests at once.
pub const BATCH: &str = "batch";
/// Earlier versions can be listed and read.
pub const VERSIONS: &str = "versions";
/// Bodies may be compressed in both directions.
pub const ENCODING: &str = "encoding";
