//! [`S3`]: a store in a bucket, in the layout that other Memory Proxies have. Several proxies may use one bucket.
//!
//! A blob is swapped by a conditional write on the ETag that was looked at, and then recorded in its namespace's
//! index, which is a compare-and-swap as well; only then is the write acknowledged. A crash between the two leaves an
//! entry out, which whoever reads the blob next sees and mends, as does every start, and `memsync reindex`.
//! The index is a hint, as the protocol has it: it is not written in one step with the blob.
//!
//! Earlier versions are not kept here, nothing expires, and tombstones stay.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use secrecy::SecretString;
use tokio::sync::broadcast;

use super::{
    BACKLOG, Blob, Body, Change, Changes, Clock, Deleted, Entry, Expect, Got, Incoming, Index, Meta, Placed, Put,
    Record, State, Store, StoreError, Swept, Version, next_version, system_clock,
};
use crate::path::RelPath;

mod blobs;
mod bucket;
mod http;
mod index;
mod layout;
mod ledger;
mod probe;
mod reindex;
mod spool;

pub use reindex::Mended;
pub use spool::Upload;

use blobs::{Blobs, Found, New, Swapped};
use bucket::{Bucket, Fetched, Landing, Object, whole};
use index::Row;
use layout::{Described, Layout};
use ledger::{Kept, Ledger, write_id};
use spool::Content;

/// Bodies up to this many bytes are read from the store before the answer begins.
const WHOLE: u64 = 256 * 1024;
/// Longest record, in bytes.
const LARGEST_RECORD: u64 = 16 * 1024 * 1024;

/// How an ETag stands in a condition: S3 wants the quotes, some stores do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EtagQuotes {
    #[default]
    Keep,
    Strip,
}

/// Where the bucket is, and how to get in.
#[derive(Clone)]
pub struct Options {
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends.
    pub prefix: String,
    /// `None`: Amazon's own, in `region`.
    pub endpoint: Option<String>,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    pub session_token: Option<SecretString>,
    pub etag_quotes: EtagQuotes,
    /// Lets plain http leave this machine.
    pub allow_http: bool,
    /// Where bodies that are too large for memory wait; made when it is needed.
    pub spool: PathBuf,
    pub clock: Clock,
}

impl Options {
    /// The options of `bucket` for these keys, all else as is usual.
    pub fn new(bucket: &str, access_key_id: &str, secret_access_key: SecretString, spool: PathBuf) -> Self {
        Self {
            bucket: bucket.to_owned(),
            prefix: "memory".to_owned(),
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: access_key_id.to_owned(),
            secret_access_key,
            session_token: None,
            etag_quotes: EtagQuotes::default(),
            allow_http: false,
            spool,
            clock: system_clock(),
        }
    }
}

/// A store in a bucket. Cloning is cheap; the clones are one store.
#[derive(Clone)]
pub struct S3(Arc<Inner>);

struct Inner {
    blobs: Blobs,
    ledgers: Mutex<HashMap<String, Arc<Ledger>>>,
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    spool: Arc<std::path::Path>,
    changes: broadcast::Sender<Changes>,
    /// The last number given to a change of this process.
    cursor: Arc<AtomicU64>,
    clock: Clock,
    place: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is changed in one step, so a panic elsewhere cannot have damaged it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl S3 {
    /// Opens the store, after trying whether the bucket's conditional writes work.
    ///
    /// # Errors
    /// [`StoreError::S3Refused`] for options that cannot work and for a store that ignores conditions;
    /// [`StoreError::S3`] where it cannot be reached or refuses the keys.
    pub async fn open(options: &Options) -> Result<Self, StoreError> {
        let store = Self::connect(options)?;
        let key = store.0.blobs.layout.private(&format!("probe-{}", write_id()))?;
        probe::probe(&store.0.blobs.bucket, &key).await?;
        Ok(store)
    }

    fn connect(options: &Options) -> Result<Self, StoreError> {
        let layout = Layout::new(&options.prefix);
        // A prefix that is no key is found out now.
        let place = layout.folder("")?.map_or_else(String::new, |folder| folder.to_string());
        let place = format!("s3://{}/{place}", options.bucket);
        let blobs = Blobs { bucket: Arc::new(Bucket::new(options)?), layout };
        Ok(Self(Arc::new(Inner {
            blobs,
            ledgers: Mutex::default(),
            turns: Mutex::default(),
            spool: options.spool.as_path().into(),
            changes: broadcast::channel(BACKLOG).0,
            cursor: Arc::default(),
            clock: options.clock.clone(),
            place,
        })))
    }

    /// Where the store is, as people write it: `s3://bucket/prefix`.
    pub fn place(&self) -> &str {
        &self.0.place
    }

    /// Makes the index of every namespace right again from the blobs, and says what was mended. Proxies may go on
    /// serving meanwhile.
    ///
    /// # Errors
    /// What the store says.
    pub async fn reindex(&self) -> Result<BTreeMap<String, Mended>, StoreError> {
        self.mend(false).await
    }

    /// [`S3::reindex`] that believes what the listing already shows, for the start of a proxy.
    ///
    /// # Errors
    /// What the store says.
    pub async fn mend_after_crash(&self) -> Result<BTreeMap<String, Mended>, StoreError> {
        self.mend(true).await
    }

    async fn mend(&self, trusting: bool) -> Result<BTreeMap<String, Mended>, StoreError> {
        let mut all = reindex::namespaces(&self.0.blobs).await?;
        // The flat namespace has whatever is in no other.
        all.insert(String::new());
        let mut mended = BTreeMap::new();
        for ns in &all {
            let others: BTreeSet<String> = all.iter().filter(|other| *other != ns).cloned().collect();
            let ledger = self.0.ledger(ns)?;
            mended.insert(ns.clone(), reindex::mend(&self.0.blobs, &ledger, ns, &others, trusting).await?);
        }
        Ok(mended)
    }
}

impl Inner {
    /// The index of a namespace.
    fn ledger(&self, ns: &str) -> Result<Arc<Ledger>, StoreError> {
        let mut ledgers = lock(&self.ledgers);
        if let Some(ledger) = ledgers.get(ns) {
            return Ok(ledger.clone());
        }
        let (changes, cursor) = (self.changes.clone(), self.cursor.clone());
        let told = Arc::new(move |ns: &str, paths: Vec<RelPath>| {
            let change = |path| Change { cursor: cursor.fetch_add(1, Ordering::SeqCst) + 1, ns: ns.to_owned(), path };
            // An error only says that nobody listens.
            drop(changes.send(paths.into_iter().map(change).collect()));
        });
        let key = self.blobs.layout.index(ns)?;
        let ledger = Arc::new(Ledger::open(ns, key, self.blobs.clone(), self.clock.clone(), told));
        ledgers.insert(ns.to_owned(), ledger.clone());
        Ok(ledger)
    }

    /// One writer of a path at a time in this process: the others would only lose the race at the store. It also
    /// keeps apart what an ETag cannot, as two tombstones of one path have the same.
    async fn turn(&self, ns: &str, path: &RelPath) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            if turns.len() > 1024 {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            let name = format!("{ns}\n{path}");
            let known = turns.get(&name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let new = Arc::new(tokio::sync::Mutex::new(()));
                turns.insert(name, Arc::downgrade(&new));
                new
            })
        };
        turn.lock_owned().await
    }

    async fn put(&self, ns: &str, path: &RelPath, expect: Expect, meta: Meta, body: Upload) -> Result<Put, StoreError> {
        let body = body.finish().await?;
        let ledger = self.ledger(ns)?;
        ledger.ensure().await?;
        let under_way = matches!(body.content, Content::Inline(_)).then(|| ledger.under_way());
        let _turn = self.turn(ns, path).await;
        // Most new files are new; a tombstone would only cost the blind write.
        let blind = expect.admits(None) && !ledger.knows(path);
        let swapped = self.blobs.swap(ns, path, blind, |found| {
            let held = found.map(|f| entry(&f.row));
            if !expect.admits(held.as_ref()) {
                return None;
            }
            let meta = match found {
                Some(old) if !old.row.is_deleted => meta.clone().over(&read_meta(&old.object.described)),
                _ => meta.clone(),
            };
            let version = next_version((self.clock)(), held.as_ref());
            let row = Row { md5: body.md5, size: body.size, is_deleted: false, version };
            Some(new(row, body.content.clone(), &meta))
        });
        match swapped.await? {
            Swapped::Done { before, row } => {
                ledger.record(path, row, under_way).await?;
                let live = before.is_some_and(|b| !b.is_deleted);
                Ok(if live { Put::Updated(entry(&row)) } else { Put::Created(entry(&row)) })
            }
            Swapped::Refused(found) => Ok(Put::Mismatch(found.map(|found| seen(&ledger, path, &found)))),
        }
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<Expect>,
        meta: Meta,
    ) -> Result<Deleted, StoreError> {
        let ledger = self.ledger(ns)?;
        let under_way = ledger.under_way();
        let _turn = self.turn(ns, path).await;
        let meta = meta.of_deletion();
        let swapped = self.blobs.swap(ns, path, false, |found| {
            let held = entry(&found.filter(|f| !f.row.is_deleted)?.row);
            if expect.is_some_and(|e| !e.admits(Some(&held))) {
                return None;
            }
            let version = next_version((self.clock)(), Some(&held));
            let row = Row { md5: held.md5, size: 0, is_deleted: true, version };
            Some(new(row, Content::Inline(Bytes::new()), &meta))
        });
        Ok(match swapped.await? {
            Swapped::Done { row, .. } => {
                ledger.record(path, row, Some(under_way)).await?;
                Deleted::Done(entry(&row))
            }
            Swapped::Refused(None) => Deleted::Absent,
            Swapped::Refused(Some(found)) => {
                let held = seen(&ledger, path, &found);
                if held.is_deleted { Deleted::Tombstone(held) } else { Deleted::Mismatch(held) }
            }
        })
    }

    async fn place(
        &self,
        ns: &str,
        path: &RelPath,
        version: Version,
        body: Option<Upload>,
    ) -> Result<Placed, StoreError> {
        let Version { version, md5, is_deleted, meta, .. } = version;
        let (size, content) = match body {
            Some(body) => {
                let body = body.finish().await?;
                (body.size, body.content)
            }
            None => (0, Content::Inline(Bytes::new())),
        };
        let row = Row { md5, size, is_deleted, version };
        let ledger = self.ledger(ns)?;
        ledger.ensure().await?;
        let under_way = ledger.under_way();
        let _turn = self.turn(ns, path).await;
        let swapped = self.blobs.swap(ns, path, !ledger.knows(path), |found| {
            let is_later = found.is_none_or(|f| f.row.version < version);
            is_later.then(|| new(row, content.clone(), &meta))
        });
        match swapped.await? {
            Swapped::Done { row, .. } => {
                ledger.record(path, row, Some(under_way)).await?;
                Ok(Placed::Written)
            }
            Swapped::Refused(found) => {
                if let Some(found) = found {
                    ledger.compare(path, &found.row);
                }
                Ok(Placed::Held)
            }
        }
    }

    async fn get(&self, ns: &str, path: &RelPath) -> Result<Got, StoreError> {
        let Some((row, object, body)) = self.blobs.fetch(ns, path).await? else { return Ok(Got::Absent) };
        let ledger = self.ledger(ns)?;
        let Some(row) = row else { return self.digested(&ledger, path, object, body).await };
        ledger.compare(path, &row);
        if row.is_deleted {
            return Ok(Got::Tombstone(entry(&row)));
        }
        let meta = read_meta(&object.described);
        let body = if row.size <= WHOLE {
            Body::Whole(whole(body, WHOLE).await?)
        } else {
            Body::Pieces(body.map_err(std::io::Error::other).boxed())
        };
        Ok(Got::Found(Blob { entry: entry(&row), meta, body }))
    }

    /// A blob whose metadata does not tell its MD5: another program put it there.
    async fn digested(
        &self,
        ledger: &Ledger,
        path: &RelPath,
        object: Object,
        mut pieces: BoxStream<'static, Result<Bytes, StoreError>>,
    ) -> Result<Got, StoreError> {
        let mut body = Upload::new(self.spool.clone());
        while let Some(piece) = pieces.next().await {
            body.push(piece?).await?;
        }
        let body = body.finish().await?;
        let version = object.described.version.unwrap_or(object.modified);
        let row = Row { md5: body.md5, size: body.size, is_deleted: false, version };
        ledger.compare(path, &row);
        let meta = read_meta(&object.described);
        let body = match body.content {
            Content::Inline(bytes) => Body::Whole(bytes),
            Content::File(file) => Body::Pieces(file.pieces()),
        };
        Ok(Got::Found(Blob { entry: entry(&row), meta, body }))
    }
}

/// What was found at `path`, compared with the index on the way.
fn seen(ledger: &Ledger, path: &RelPath, found: &Found) -> Entry {
    ledger.compare(path, &found.row);
    entry(&found.row)
}

/// A row as an entry; the cursor is of exact indexes only.
fn entry(row: &Row) -> Entry {
    let Row { md5, size, is_deleted, version } = *row;
    Entry { md5, size, is_deleted, version, cursor: 0 }
}

fn new(row: Row, content: Content, meta: &Meta) -> New {
    let named = [("device", meta.device.clone()), ("key", meta.key.clone())];
    let expires = meta.expires.map(|at| ("expires".to_owned(), at.to_string()));
    let mut ours: BTreeMap<String, String> =
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).chain(expires).collect();
    if !meta.free.is_empty()
        && let Ok(json) = serde_json::to_string(&meta.free)
    {
        // As one value: names of headers cannot carry every name.
        ours.insert("meta".to_owned(), json);
    }
    New { row, content, content_type: meta.content_type.clone(), ours }
}

fn read_meta(described: &Described) -> Meta {
    let ours = |name: &str| described.ours.get(name).cloned();
    Meta {
        content_type: described.content_type.clone(),
        device: ours("device"),
        key: ours("key"),
        expires: ours("expires").and_then(|at| at.parse().ok()),
        free: ours("meta").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
    }
}

fn state(kept: &Kept) -> State {
    let etag = kept.etag.as_deref().map_or("none", |etag| etag.trim_start_matches("W/").trim_matches('"'));
    State { tag: etag.into(), mark: None, modified: kept.document.modified }
}

/// Runs `work` to its end even when the caller goes: between a blob and its entry it must not stop.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(work).await.map_err(|_| StoreError::Closed)?
}

impl Store for S3 {
    const STRONG: bool = false;
    type Incoming = Upload;

    fn incoming(&self) -> Upload {
        Upload::new(self.0.spool.clone())
    }

    async fn put(&self, ns: &str, path: &RelPath, expect: Expect, meta: Meta, body: Upload) -> Result<Put, StoreError> {
        let (inner, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        to_its_end(async move { inner.put(&ns, &path, expect, meta, body).await }).await
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<Expect>,
        meta: Meta,
    ) -> Result<Deleted, StoreError> {
        let (inner, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        to_its_end(async move { inner.delete(&ns, &path, expect, meta).await }).await
    }

    async fn get(&self, ns: &str, path: &RelPath) -> Result<Got, StoreError> {
        self.0.get(ns, path).await
    }

    async fn index(&self, ns: &str, _since: u64) -> Result<Index, StoreError> {
        let kept = self.0.ledger(ns)?.fresh().await?;
        let rows = kept.document.rows.iter();
        let entries = rows.map(|(path, row)| (path.as_str().to_owned(), entry(row))).collect();
        Ok(Index { state: state(&kept), entries })
    }

    async fn state(&self, ns: &str) -> Result<State, StoreError> {
        Ok(state(&self.0.ledger(ns)?.fresh().await?))
    }

    fn subscribe(&self) -> broadcast::Receiver<Changes> {
        self.0.changes.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.0.blobs.bucket.head(&self.0.blobs.layout.index("")?).await.map(drop)
    }

    fn keeps_versions(&self) -> bool {
        false
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<Version>, StoreError> {
        let found = self.0.blobs.look(ns, path).await?;
        Ok(found.iter().map(|Found { row, object }| version(row, object)).collect())
    }

    async fn get_version(&self, ns: &str, path: &RelPath, version: u64) -> Result<Got, StoreError> {
        let got = self.0.get(ns, path).await?;
        let is = match &got {
            Got::Found(blob) => blob.entry.version == version,
            Got::Tombstone(entry) => entry.version == version,
            Got::Absent => false,
        };
        Ok(if is { got } else { Got::Absent })
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        Ok(reindex::namespaces(&self.0.blobs).await?.into_iter().collect())
    }

    async fn place(
        &self,
        ns: &str,
        path: &RelPath,
        version: Version,
        body: Option<Upload>,
    ) -> Result<Placed, StoreError> {
        let (inner, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        to_its_end(async move { inner.place(&ns, &path, version, body).await }).await
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        Ok(0)
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        Ok(Swept::default())
    }

    async fn record(&self, name: &'static str) -> Result<Option<Record>, StoreError> {
        match self.0.blobs.bucket.get(&self.0.blobs.layout.private(name)?, None).await? {
            Fetched::Found(object, body) => {
                Ok(Some(Record { tag: object.etag, content: whole(body, LARGEST_RECORD).await? }))
            }
            Fetched::Absent | Fetched::Unchanged => Ok(None),
        }
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let (inner, expected) = (self.0.clone(), expected.map(str::to_owned));
        to_its_end(async move {
            let key = inner.blobs.layout.private(name)?;
            let described = Described { write: Some(write_id()), ..Described::default() };
            let bucket = &inner.blobs.bucket;
            let landing = bucket.put(&key, expected.as_deref(), &described, &Content::Inline(content)).await?;
            if matches!(landing, Landing::Landed(_)) {
                return Ok(true);
            }
            // The reply may have been lost after it landed.
            let now = bucket.head(&key).await?;
            if now.as_ref().is_some_and(|now| now.described.write == described.write) {
                return Ok(true);
            }
            match landing {
                Landing::Unsure(e) => Err(e),
                Landing::Landed(_) | Landing::Lost => Ok(false),
            }
        })
        .await
    }
}

fn version(row: &Row, object: &Object) -> Version {
    let Row { md5, size, is_deleted, version } = *row;
    Version { version, md5, size, is_deleted, meta: read_meta(&object.described) }
}
