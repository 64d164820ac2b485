//! What stores are asked and what they answer.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::HistoryPoint;

/// What the index holds of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Of the content; of a tombstone, of what was deleted.
    pub md5: Md5,
    /// Bytes; 0 for a tombstone.
    pub size: u64,
    pub is_deleted: bool,
    /// Milliseconds since the epoch when written; grows with every write of the path, whatever the clock does.
    pub version: u64,
    /// The store-wide number of the change that wrote it.
    pub cursor: u64,
}

/// What a write or a deletion expects the path to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing, or a tombstone.
    Absent,
    /// This content, or the tombstone of it.
    Md5(Md5),
    /// The entry with this version, live or deleted (namespaced dialect).
    Version(u64),
}

impl Precondition {
    /// Whether it is met by what is held.
    pub fn admits(self, held: Option<&IndexEntry>) -> bool {
        match self {
            Self::Absent => held.is_none_or(|e| e.is_deleted),
            Self::Md5(md5) => held.is_some_and(|e| e.md5 == md5),
            Self::Version(version) => held.is_some_and(|e| e.version == version),
        }
    }
}

/// What is known of a version besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlobMeta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The device that wrote it, as it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The name of the key it was written with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When the path becomes a tombstone by itself: milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// What clients say of it, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub free: BTreeMap<String, String>,
}

impl BlobMeta {
    /// Most names in `free`. Each comes and goes as a header, of which many clients take a hundred at most.
    pub const MOST_NAMES: usize = 32;
    /// Most bytes that `free` takes where it is kept, by [`kept_size`]: with all else that a bucket keeps of a file it fits
    /// into the 2 KB that S3 takes.
    pub const MOST_FREE: usize = 1024;

    /// The metadata of a write over a live version that had `old`: what the write is silent about stays, but for who
    /// wrote it, and for names that there is no room for besides the new ones.
    #[must_use]
    pub fn over(mut self, old: &Self) -> Self {
        self.content_type = self.content_type.or_else(|| old.content_type.clone());
        self.expires = self.expires.or(old.expires);
        self.carry(&old.free);
        self
    }

    /// Whether `free` keeps to its limits.
    pub fn fits(&self) -> bool {
        self.free.len() <= Self::MOST_NAMES && self.free_size() <= Self::MOST_FREE
    }

    /// As much of it as fits, the first names first.
    #[must_use]
    pub fn cut_to_fit(mut self) -> Self {
        let all = std::mem::take(&mut self.free);
        self.carry(&all);
        self
    }

    /// Adds what is missing, as far as there is room.
    fn carry(&mut self, free: &BTreeMap<String, String>) {
        let mut size = self.free_size();
        for (name, value) in free {
            let more = pair_size(name, value);
            let has_room = self.free.len() < Self::MOST_NAMES && size + more <= Self::MOST_FREE;
            if has_room && !self.free.contains_key(name) {
                self.free.insert(name.clone(), value.clone());
                size += more;
            }
        }
    }

    fn free_size(&self) -> usize {
        self.free.iter().map(|(name, value)| pair_size(name, value)).sum()
    }

    /// What a tombstone keeps of the metadata its deletion came with: who did it.
    #[must_use]
    pub fn of_deletion(self) -> Self {
        Self { device: self.device, key: self.key, ..Self::default() }
    }
}

/// Bytes that `text` takes where metadata is kept in the headers of a bucket: what is not printable there is escaped.
pub fn kept_size(text: &str) -> usize {
    let size = |byte| match byte {
        b'"' | b'\\' => 2,
        b'%' | 0x7f.. => 3,
        b' '.. => 1,
        _ => 6,
    };
    text.bytes().map(size).sum()
}

/// A name with its value, quotes and separators included.
fn pair_size(name: &str, value: &str) -> usize {
    kept_size(name) + kept_size(value) + r#""":"","#.len()
}

/// Where the index of a namespace stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexState {
    /// Another one for every other content of the index; visible ASCII without quotes.
    pub tag: Arc<str>,
    /// `None`: the index is not written in one step with the blobs, so its entries are hints only.
    pub mark: Option<IndexMark>,
    /// When the last change was, or the store's creation: milliseconds since the epoch.
    pub modified: u64,
    /// Where in the store's history that is; `None` before the first write, and in a store that keeps no history.
    pub history: Option<HistoryPoint>,
}

/// A point in the history of a store whose index is exact (capability `strong-index`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexMark {
    /// Random, made when the store was created, and again when it was put back from a copy.
    pub epoch: Arc<str>,
    /// The number of the namespace's last change; 0 before the first.
    pub cursor: u64,
    /// Tombstones older than this cursor may be gone.
    pub floor: u64,
}

/// Entries and the state they are true at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSnapshot {
    pub state: IndexState,
    /// Tombstones included, in no order.
    pub entries: Vec<(String, IndexEntry)>,
}

/// A blob's content on its way out.
pub enum BlobBody {
    Whole(Bytes),
    /// Exactly `IndexEntry::size` bytes, or an error.
    Pieces(BoxStream<'static, io::Result<Bytes>>),
}

/// A live blob.
pub struct StoredBlob {
    pub entry: IndexEntry,
    pub meta: BlobMeta,
    pub body: BlobBody,
}

/// What became of a get.
pub enum GetOutcome {
    Found(StoredBlob),
    Tombstone(IndexEntry),
    Absent,
}

/// What became of a put. A lost race is a value, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// Nothing, or a tombstone, was there.
    Created(IndexEntry),
    Updated(IndexEntry),
    /// Nothing was written; what is held instead.
    Mismatch(Option<IndexEntry>),
}

/// What became of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// The tombstone.
    Done(IndexEntry),
    /// It was deleted before.
    Tombstone(IndexEntry),
    Absent,
    /// Nothing was deleted; what is held instead.
    Mismatch(IndexEntry),
}

/// One of many writes that are handed in together.
pub enum BatchWrite {
    /// As [`Store::put`](super::Store::put).
    Put { expect: Precondition, content: Bytes },
    /// As [`Store::delete`](super::Store::delete).
    Delete { expect: Option<Precondition> },
}

/// What became of an [`BatchWrite`]; of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    Put(PutOutcome),
    Deleted(DeleteOutcome),
}

impl WriteOutcome {
    /// Whether it changed the path.
    pub fn happened(&self) -> bool {
        matches!(
            self,
            Self::Put(PutOutcome::Created(_) | PutOutcome::Updated(_)) | Self::Deleted(DeleteOutcome::Done(_))
        )
    }
}

/// A committed change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobChange {
    pub cursor: u64,
    pub ns: String,
    pub path: RelPath,
}

/// Committed changes in the order of their cursors.
pub type BlobChanges = Arc<[BlobChange]>;

/// Milliseconds since the epoch. A parameter, so that tests can turn it back.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> WallClock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A version of a path that can still be read, or the tombstone that it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobVersion {
    /// As in [`IndexEntry::version`].
    pub version: u64,
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
    pub is_deleted: bool,
    pub meta: BlobMeta,
}

/// What became of a version that was to be put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportOutcome {
    Written,
    /// The path has this version, or a later one, already.
    Held,
}

/// The records that a copy of a store has, too: see [`Store::record`](super::Store::record).
pub const RECORDS: &[&str] = &["keys", "keys-used"];
/// The record in which a proxy notes its wall clock. It is about the machine, so a copy does not have it.
pub const CLOCK_RECORD: &str = "clock";

/// How long a store keeps what is no longer current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Earlier versions of a path, at most.
    pub versions: u32,
    /// The newest earlier versions of a path, which stay whatever their age.
    pub ageless: u32,
    /// Since an earlier version was replaced or deleted.
    pub age: Duration,
    /// Since the deletion.
    pub tombstones: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self { versions: 20, ageless: 5, age: 30 * DAY, tombstones: 90 * DAY }
    }
}

/// What a sweep came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Paths whose expiry had come, and that are tombstones now.
    pub expired: usize,
    /// Earlier versions removed.
    pub versions: usize,
    /// Tombstones removed.
    pub tombstones: usize,
}

/// Requests for the objects that hold indexes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexTraffic {
    /// Asked for, be it to hear that it is unchanged.
    pub reads: u64,
    /// Sent to be written, whether the condition was met or not.
    pub writes: u64,
}

/// A small private thing that the proxy keeps beside the blobs, such as its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateRecord {
    /// Another one after every write.
    pub tag: String,
    pub content: Bytes,
}

/// A namespace as people are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceName(pub String);

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("the flat namespace") } else { write!(f, "the namespace {:?}", self.0) }
    }
}

/// Why a store could not do what it was asked. Nothing was acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("{}: another memsync proxy uses this store; stop it or give --store another directory", .0.display())]
    Locked(PathBuf),
    #[error(
        "{}: written by a newer memsync (format {found}, this one knows {known}); upgrade memsync", .path.display()
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{}: not a memsync store ({why}); give --store another directory", .path.display())]
    NotAStore { path: PathBuf, why: String },
    #[error("{}: {why}", .path.display())]
    Io { path: PathBuf, why: String },
    #[error("the store's database failed: {0}")]
    Database(String),
    /// With the error's own words.
    #[error("the disk of the store is full ({0}); make room, and writes work again")]
    Full(String),
    /// What S3 answered, or that it did not.
    #[error("the S3 store failed: {0}")]
    S3(String),
    /// The same, where S3 says that it does not let us do it, or cannot.
    #[error("the S3 store failed: {0}")]
    S3Denied(String),
    /// Options that cannot work, or a store that does not do what is needed.
    #[error("{0}")]
    S3Refused(String),
    /// The path leads to another namespace's files.
    #[error("{path:?} belongs to {namespace}; ask for it there")]
    OtherNamespace { path: String, namespace: NamespaceName },
    /// A namespace that would take over the files of another, `above`.
    #[error(
        "the namespace {namespace:?} cannot begin: {above} has files in a folder of that name; choose another name"
    )]
    NamespaceOccupied { namespace: String, above: NamespaceName },
    /// A name that the store has no room for, with what stands before it there.
    #[error("{name:?} is too long: this store takes names of {room} bytes, namespace included")]
    TooLong { name: String, room: usize },
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// What is wrong, fit for whoever can reach the proxy: no path and no address.
    pub fn public_message(&self) -> String {
        match self {
            Self::Io { why, .. } => format!("the disk of the store failed: {why}"),
            Self::Closed => "the store is closed".to_owned(),
            Self::Full(_) => "the disk of the store is full".to_owned(),
            Self::S3(why) | Self::S3Denied(why) => super::s3::failure::public_message(why).to_owned(),
            // Their words may quote a place.
            _ => "the storage failed; the proxy's log says why".to_owned(),
        }
    }
}
