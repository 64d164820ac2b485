//! The configuration of a fake proxy, and its records of requests.

use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::Precondition;

/// How a proxy treats a PUT over a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TombstoneKind {
    /// As this proxy: the path is free. `new` and the tombstone's MD5 both replace it, and an honest proxy reports the
    /// tombstone.
    Absent,
    /// As some deployed proxies: the object exists. Only the tombstone's MD5 replaces it, and only the index shows that
    /// it is a tombstone.
    Exists,
}

/// Probabilities, 0 to 1, drawn for each request from the server's generator.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FakeFaults {
    /// The request is executed and its answer lost: `Unreachable`. Some GETs lose only the end.
    pub lost_reply: f64,
    /// The request never arrives: `Unreachable`.
    pub lost_request: f64,
    /// 503, nothing is done: `Server`.
    pub unavailable: f64,
    /// An older index is served. This fault and those below concern a plain index only.
    pub index_stale: f64,
    /// After a write, some other recent changes disappear from the index until those blobs are written again.
    pub index_clobbered: f64,
    /// An index without entries is served.
    pub index_emptied: f64,
    /// A tombstoned path is served as live.
    pub index_resurrected: f64,
}

/// The kind of proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FakeConfig {
    /// True if the index is evidence: it has an [`IndexCursor`](crate::protocol::IndexCursor), and deltas are served.
    /// Else it is hints.
    pub strong: bool,
    /// True if a plain index may come as a delta. An index that lost an entry comes whole.
    pub etag_delta: bool,
    pub tombstones: TombstoneKind,
    /// True if a 412 reports the stored content, and a 404 (with [`TombstoneKind::Absent`]) the tombstone.
    pub honest: bool,
    /// True if preconditions are versions (namespaced dialect) and not content.
    pub versions: bool,
    pub faults: FakeFaults,
    /// True if it keeps every earlier content of a path (capability `versions`).
    pub keeps_versions: bool,
    /// True if it takes batches. A lost batch is executed in part.
    pub batch: bool,
    /// The probability of a pause before and after each request, and between the chunks of a body.
    pub yields: f64,
}

impl Default for FakeConfig {
    /// This proxy on a perfect network.
    fn default() -> Self {
        Self {
            strong: true,
            etag_delta: true,
            tombstones: TombstoneKind::Absent,
            honest: true,
            versions: false,
            faults: FakeFaults::default(),
            keeps_versions: true,
            batch: true,
            yields: 0.0,
        }
    }
}

/// A request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeCall {
    /// The number of the client, from 0 in the order of creation.
    pub client: usize,
    pub request: FakeRequest,
    /// True if it changed the content of the server.
    pub wrote: bool,
}

/// The kind of request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeRequest {
    Index,
    Get(RelPath),
    Put { path: RelPath, precondition: Precondition, version: u64, md5: Md5 },
    Delete { path: RelPath, md5: Md5 },
    Versions(RelPath),
    GetVersion { path: RelPath, number: u64 },
}

/// The lost part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostPart {
    /// It never arrives.
    Request,
    /// The request is executed, and its answer is lost.
    Reply,
}
