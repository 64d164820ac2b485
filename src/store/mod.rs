//! Where the proxy keeps blobs: trait [`Store`], with an implementation in memory and one on disk.
//!
//! A store decides every conditional write in one step, so that of any number of racing writers exactly one
//! wins, and it records each write in its index in the same step. Names arrive validated; the wire format,
//! authentication and limits are the proxy's.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::broadcast;

use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::Precondition;

pub mod embedded;
pub mod memory;

pub use embedded::Embedded;
pub use memory::Memory;

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

/// Where a store stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Random, made when the store was created.
    pub epoch: Arc<str>,
    /// The number of the last change; 0 before the first.
    pub cursor: u64,
    /// Tombstones older than this cursor may be gone.
    pub floor: u64,
    /// When the last change was, or the store's creation: milliseconds since the epoch.
    pub modified: u64,
}

/// Entries and the mark they are true at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub mark: Mark,
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
    pub content_type: String,
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
    #[error("the store is closed")]
    Closed,
}

/// A body on its way in. Dropped before the put, it leaves nothing behind.
pub trait Incoming: Send + 'static {
    /// Takes the next piece.
    ///
    /// # Errors
    /// When it cannot be kept, as on a full disk.
    fn push(&mut self, piece: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Blobs with compare-and-swap, and an index that is exact. Every method takes a namespace; the flat dialect's
/// is `""`.
pub trait Store: Send + Sync + 'static {
    type Incoming: Incoming;

    /// Begins a body. The store digests it as it comes.
    fn incoming(&self) -> Self::Incoming;

    /// Writes `body` to `path` if it holds what `precondition` says. A tombstone satisfies both
    /// [`Precondition::New`] and its own md5. When this gives `Created` or `Updated` the write is durable.
    fn put(
        &self,
        ns: &str,
        path: &RelPath,
        precondition: Precondition,
        content_type: &str,
        body: Self::Incoming,
    ) -> impl Future<Output = Result<Put, StoreError>> + Send;

    /// Turns `path` into a tombstone if it holds `expected`, or whatever it holds where that is `None`.
    fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expected: Option<Md5>,
    ) -> impl Future<Output = Result<Deleted, StoreError>> + Send;

    fn get(&self, ns: &str, path: &RelPath) -> impl Future<Output = Result<Got, StoreError>> + Send;

    /// The entries of one namespace that changed after the cursor `since`; 0 gives all.
    fn index(&self, ns: &str, since: u64) -> impl Future<Output = Result<Index, StoreError>> + Send;

    /// Where the store stands, without looking into it: at least as new as every acknowledged write.
    fn mark(&self) -> Mark;

    /// Every change committed from now on, of all namespaces. A receiver that lags loses the oldest and is told.
    fn subscribe(&self) -> broadcast::Receiver<Changes>;

    /// Whether reads work and writes would be taken.
    fn health(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// [`Store::put`] of content that is in memory.
    fn put_bytes(
        &self,
        ns: &str,
        path: &RelPath,
        precondition: Precondition,
        content: Bytes,
    ) -> impl Future<Output = Result<Put, StoreError>> + Send {
        async move {
            let mut body = self.incoming();
            body.push(content).await?;
            self.put(ns, path, precondition, "application/octet-stream", body).await
        }
    }
}

/// Whether `precondition` lets a write happen over what is held.
fn admits(precondition: Precondition, held: Option<&Entry>) -> bool {
    match (precondition, held) {
        (Precondition::New, held) => held.is_none_or(|e| e.is_deleted),
        (Precondition::Holds(md5), held) => held.is_some_and(|e| e.md5 == md5),
    }
}

/// The version of a write at `now` over what is held.
fn next_version(now: u64, held: Option<&Entry>) -> u64 {
    held.map_or(now, |e| now.max(e.version + 1))
}

/// A fresh epoch: 128 random bits in hex.
fn new_epoch() -> Arc<str> {
    format!("{:032x}", fastrand::u128(..)).into()
}

/// How many groups of changes a subscriber may lag behind before it must read the index instead.
const BACKLOG: usize = 1024;
