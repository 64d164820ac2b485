//! Where the proxy keeps blobs: trait [`Store`], with an implementation in memory, one on disk and one on S3.
//!
//! A store decides every conditional write in one step, so that of any number of racing writers exactly one
//! wins, and a write is acknowledged when it is in the index too. Names arrive validated; the wire format,
//! authentication and limits are the proxy's.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::digest::Md5;
use crate::path::RelPath;

pub mod copy;
pub mod embedded;
pub mod memory;
pub mod s3;

pub use embedded::Embedded;
pub use memory::Memory;
pub use s3::S3;

/// What the index holds of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
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
pub enum Expect {
    /// Nothing, or a tombstone.
    Absent,
    /// This content, or the tombstone of it.
    Md5(Md5),
    /// The entry with this version, live or deleted (namespaced dialect).
    Version(u64),
}

impl Expect {
    /// Whether it is met by what is held.
    pub fn admits(self, held: Option<&Entry>) -> bool {
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
pub struct Meta {
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

impl Meta {
    /// The metadata of a write over a live version that had `old`: what the write is silent about stays, but for who
    /// wrote it.
    #[must_use]
    pub fn over(mut self, old: &Self) -> Self {
        self.content_type = self.content_type.or_else(|| old.content_type.clone());
        self.expires = self.expires.or(old.expires);
        for (name, value) in &old.free {
            self.free.entry(name.clone()).or_insert_with(|| value.clone());
        }
        self
    }

    /// What a tombstone keeps of the metadata its deletion came with: who did it.
    #[must_use]
    pub fn of_deletion(self) -> Self {
        Self { device: self.device, key: self.key, ..Self::default() }
    }
}

/// Where the index of a namespace stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Another one for every other content of the index; visible ASCII without quotes.
    pub tag: Arc<str>,
    /// `None`: the index is not written in one step with the blobs, so its entries are hints only.
    pub mark: Option<Mark>,
    /// When the last change was, or the store's creation: milliseconds since the epoch.
    pub modified: u64,
}

/// A point in the history of a store whose index is exact (capability `strong-index`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Random, made when the store was created, and again when it was put back from a copy.
    pub epoch: Arc<str>,
    /// The number of the namespace's last change; 0 before the first.
    pub cursor: u64,
    /// Tombstones older than this cursor may be gone.
    pub floor: u64,
}

/// Entries and the state they are true at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub state: State,
    /// Tombstones included, in no order.
    pub entries: Vec<(String, Entry)>,
}

/// A blob's content on its way out.
pub enum Body {
    Whole(Bytes),
    /// Exactly `Entry::size` bytes, or an error.
    Pieces(BoxStream<'static, io::Result<Bytes>>),
}

/// A live blob.
pub struct Blob {
    pub entry: Entry,
    pub meta: Meta,
    pub body: Body,
}

/// What became of a get.
pub enum Got {
    Found(Blob),
    Tombstone(Entry),
    Absent,
}

/// What became of a put. A lost race is a value, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Nothing, or a tombstone, was there.
    Created(Entry),
    Updated(Entry),
    /// Nothing was written; what is held instead.
    Mismatch(Option<Entry>),
}

/// What became of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// The tombstone.
    Done(Entry),
    /// It was deleted before.
    Tombstone(Entry),
    Absent,
    /// Nothing was deleted; what is held instead.
    Mismatch(Entry),
}

/// One of many writes that are handed in together.
pub enum Operation {
    /// As [`Store::put`].
    Put { expect: Expect, content: Bytes },
    /// As [`Store::delete`].
    Delete { expect: Option<Expect> },
}

/// What became of an [`Operation`]; of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Put(Put),
    Deleted(Deleted),
}

impl Written {
    /// Whether it changed the path.
    pub fn happened(&self) -> bool {
        matches!(self, Self::Put(Put::Created(_) | Put::Updated(_)) | Self::Deleted(Deleted::Done(_)))
    }
}

/// A committed change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub cursor: u64,
    pub ns: String,
    pub path: RelPath,
}

/// Committed changes in the order of their cursors.
pub type Changes = Arc<[Change]>;

/// Milliseconds since the epoch. A parameter, so that tests can turn it back.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
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
    /// What S3 answered, or that it did not.
    #[error("the S3 store failed: {0}")]
    S3(String),
    /// Options that cannot work, or a store that does not do what is needed.
    #[error("{0}")]
    S3Refused(String),
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// What is wrong, fit for whoever can reach the proxy: no path and no address.
    pub fn without_places(&self) -> String {
        match self {
            Self::Io { why, .. } => format!("the disk of the store failed: {why}"),
            Self::Closed => "the store is closed".to_owned(),
            // Their words may quote a place.
            _ => "the storage failed; the proxy's log says why".to_owned(),
        }
    }
}

/// A body on its way in. Dropped before the put, it leaves nothing behind.
pub trait Incoming: Send + 'static {
    /// Takes the next piece.
    ///
    /// # Errors
    /// When it cannot be kept, as on a full disk.
    fn push(&mut self, piece: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// A version of a path that can still be read, or the tombstone that it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// As in [`Entry::version`].
    pub version: u64,
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
    pub is_deleted: bool,
    pub meta: Meta,
}

/// What became of a version that was to be put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    Written,
    /// The path has this version, or a later one, already.
    Held,
}

/// The records there can be: see [`Store::record`].
pub const RECORDS: &[&str] = &["keys", "keys-used"];

/// How long a store keeps what is no longer current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Earlier versions of a path, at most.
    pub versions: u32,
    /// Since an earlier version was replaced or deleted.
    pub age: Duration,
    /// Since the deletion.
    pub tombstones: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self { versions: 20, age: 30 * DAY, tombstones: 90 * DAY }
    }
}

/// What a sweep came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Paths whose expiry had come, and that are tombstones now.
    pub expired: usize,
    /// Earlier versions removed.
    pub versions: usize,
    /// Tombstones removed.
    pub tombstones: usize,
}

/// A small private thing that the proxy keeps beside the blobs, such as its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Another one after every write.
    pub tag: String,
    pub content: Bytes,
}

/// The private records of a store: one that is open, or one that another process serves ([`embedded::Beside`]).
pub trait Records: Send + Sync {
    /// As [`Store::record`].
    fn read_record(&self, name: &'static str) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// As [`Store::put_record`].
    fn write_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

impl<S: Store> Records for S {
    fn read_record(&self, name: &'static str) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send {
        self.record(name)
    }

    fn write_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        self.put_record(name, expected, content)
    }
}

/// Blobs with compare-and-swap, and an index of them. Every method takes a namespace; the flat dialect's is `""`.
pub trait Store: Send + Sync + 'static {
    /// Whether the index is written with the blob in one step, so that [`State::mark`] is there and entries are
    /// evidence (capability `strong-index`).
    const STRONG: bool;

    type Incoming: Incoming;

    /// Begins a body. The store digests it as it comes.
    fn incoming(&self) -> Self::Incoming;

    /// Writes `body` to `path` if it holds what is expected. When this gives `Created` or `Updated` the write is
    /// durable, and so is its entry in the index. `meta` is laid over that of a live version ([`Meta::over`]).
    fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Expect,
        meta: Meta,
        body: Self::Incoming,
    ) -> impl Future<Output = Result<Put, StoreError>> + Send;

    /// Turns `path` into a tombstone if it holds what is expected, or whatever it holds where that is `None`. Of
    /// `meta` only who did it counts.
    fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<Expect>,
        meta: Meta,
    ) -> impl Future<Output = Result<Deleted, StoreError>> + Send;

    fn get(&self, ns: &str, path: &RelPath) -> impl Future<Output = Result<Got, StoreError>> + Send;

    /// Many writes of different paths, each with what became of it, in their order. They are independent: some may
    /// happen and others not. `meta` is that of each. A store that commits in groups overrides this.
    fn write_many(
        &self,
        ns: &str,
        writes: Vec<(RelPath, Operation)>,
        meta: &Meta,
    ) -> impl Future<Output = Vec<Result<Written, StoreError>>> + Send {
        let writes = writes.into_iter().map(move |(path, operation)| async move {
            match operation {
                Operation::Put { expect, content } => {
                    let mut body = self.incoming();
                    body.push(content).await?;
                    self.put(ns, &path, expect, meta.clone(), body).await.map(Written::Put)
                }
                Operation::Delete { expect } => {
                    self.delete(ns, &path, expect, meta.clone()).await.map(Written::Deleted)
                }
            }
        });
        stream::iter(writes.collect::<Vec<_>>()).buffered(SIDE_BY_SIDE).collect()
    }

    /// [`Store::get`] of many paths, in their order.
    fn get_many(&self, ns: &str, paths: Vec<RelPath>) -> impl Future<Output = Vec<Result<Got, StoreError>>> + Send {
        let gets = paths.into_iter().map(move |path| async move { self.get(ns, &path).await });
        stream::iter(gets.collect::<Vec<_>>()).buffered(SIDE_BY_SIDE).collect()
    }

    /// The entries of one namespace that changed after the cursor `since`; 0 gives all, and so does a store whose
    /// index is not exact.
    fn index(&self, ns: &str, since: u64) -> impl Future<Output = Result<Index, StoreError>> + Send;

    /// Where the index of a namespace stands, without reading it: at least as new as every acknowledged write.
    fn state(&self, ns: &str) -> impl Future<Output = Result<State, StoreError>> + Send;

    /// Every change committed from now on, of all namespaces. A receiver that lags loses the oldest and is told.
    fn subscribe(&self) -> broadcast::Receiver<Changes>;

    /// Whether reads work and writes would be taken.
    fn health(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Bytes that can still be written, where the store knows.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// Whether earlier versions and expiry are kept (capability `versions`). Without, a path has its current version alone.
    fn keeps_versions(&self) -> bool {
        true
    }

    /// The versions of a path that can still be read, the newest first. The first is the path's own entry, which may
    /// be a tombstone.
    fn versions(&self, ns: &str, path: &RelPath) -> impl Future<Output = Result<Vec<Version>, StoreError>> + Send;

    /// An earlier version, or the current one by its number.
    fn get_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: u64,
    ) -> impl Future<Output = Result<Got, StoreError>> + Send;

    /// The namespaces that have anything, tombstones included.
    fn namespaces(&self) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send;

    /// Writes a version as it was in another store, with its number and metadata: over what the path holds where that is
    /// an earlier version, otherwise not at all. `body`: `None` for a tombstone.
    fn place(
        &self,
        ns: &str,
        path: &RelPath,
        version: Version,
        body: Option<Self::Incoming>,
    ) -> impl Future<Output = Result<Placed, StoreError>> + Send;

    /// Turns what has expired into tombstones, and gives how many paths that was. Cheap when there are none.
    fn expire(&self) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// [`Store::expire`], and removes versions and tombstones that are older than they are kept.
    fn sweep(&self) -> impl Future<Output = Result<Swept, StoreError>> + Send;

    /// The record called `name`, one of [`RECORDS`]. No client's path reaches it.
    fn record(&self, name: &'static str) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Writes a record if it still has the tag `expected`, or if there is none where that is `None`. False: another
    /// write came first, and nothing was written.
    fn put_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The bytes of a namespace's live entries. A store that does not keep count reads its index for it.
    fn usage(&self, ns: &str) -> impl Future<Output = Result<u64, StoreError>> + Send {
        async move { Ok(self.index(ns, 0).await?.entries.iter().map(|(_, entry)| entry.size).sum()) }
    }

    /// [`Store::put`] of content that is in memory, with nothing said of it.
    fn put_bytes(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Expect,
        content: Bytes,
    ) -> impl Future<Output = Result<Put, StoreError>> + Send {
        async move {
            let mut body = self.incoming();
            body.push(content).await?;
            self.put(ns, path, expect, Meta::default(), body).await
        }
    }
}

/// The version of a write at `now` over what is held.
fn next_version(now: u64, held: Option<&Entry>) -> u64 {
    held.map_or(now, |e| now.max(e.version + 1))
}

/// The state of an exact index.
fn strong_state(mark: Mark, modified: u64) -> State {
    // A moved floor tells clients something too.
    let tag = format!("{}-{}-{}", mark.epoch, mark.cursor, mark.floor).into();
    State { tag, mark: Some(mark), modified }
}

/// A fresh epoch: 128 random bits in hex.
fn new_epoch() -> Arc<str> {
    format!("{:032x}", fastrand::u128(..)).into()
}

/// Operations of one batch under way at once, where a store takes them one by one.
const SIDE_BY_SIDE: usize = 32;

/// How many groups of changes a subscriber may lag behind before it must read the index instead.
const BACKLOG: usize = 1024;
