//! The index of one namespace: read with a cache, written with compare-and-swap. While one write is under way
//! further changes gather and go with the next, so that many writes of files cost few of the index.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path as Key;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::super::{StoreError, WallClock};
use super::blobs::Blobs;
use super::bucket::{Fetched, Landing, whole};
use super::history::{Begun, History};
use super::index::{Document, Row};
use super::layout::Described;
use super::retention::forgotten_before;
use super::seen::{Kept, Seen, differing, rows_of};
use super::spool::Content;
use crate::path::RelPath;

mod writer;

use writer::{Job, Wish, serve};

/// Changes that may wait before callers are held back.
const QUEUE: usize = 4096;
/// How often a lost race for the index is run again.
const RACES: u32 = 200;
/// Bytes; a longer index is refused.
const LARGEST: u64 = 1024 * 1024 * 1024;

/// Told of every commit: the paths that changed.
pub type Told = Arc<dyn Fn(&str, Vec<RelPath>) + Send + Sync>;

struct Shared {
    ns: String,
    key: Key,
    blobs: Blobs,
    clock: WallClock,
    told: Told,
    seen: Mutex<Seen>,
    /// Small blobs that are being written, and will be recorded soon.
    under_way: AtomicUsize,
    begun: Begun,
    /// Whether somebody here looked, after there was an index without entries, and found that there may be one.
    is_settled: AtomicBool,
}

/// One namespace's index.
pub struct Ledger {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    ensuring: tokio::sync::Mutex<()>,
}

/// A blob on its way to the bucket. While one is, the index waits a moment for it.
pub struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ledger {
    /// Begins to serve the index; must be called inside a runtime. It ends when the ledger is dropped.
    pub fn open(ns: &str, key: Key, blobs: Blobs, clock: WallClock, told: Told) -> Self {
        let shared = Arc::new(Shared {
            ns: ns.to_owned(),
            key,
            blobs,
            clock,
            told,
            seen: Mutex::default(),
            under_way: AtomicUsize::new(0),
            begun: Begun::default(),
            is_settled: AtomicBool::new(false),
        });
        let (jobs, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(serve(shared.clone(), waiting));
        Self { shared, jobs, ensuring: tokio::sync::Mutex::default() }
    }

    pub fn under_way(&self) -> UnderWay {
        self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.shared.clone())
    }

    /// Returns when the index has `row`, or something newer, durably.
    pub async fn record(&self, path: &RelPath, row: Row, under_way: Option<UnderWay>) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        let job = Job { path: path.clone(), wish: Wish::Record(row), reply: Some(reply) };
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        drop(under_way);
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Compares what a blob was found to hold with the index as last seen; where they differ, has it mended.
    /// A write was lost to a crash between blob and index, or another proxy wrote over the entry.
    pub fn compare(&self, path: &RelPath, found: &Row) {
        let agrees = self.kept().is_some_and(|kept| kept.document.rows.get(path).is_some_and(|row| row.agrees(found)));
        let is_owed = || !self.is_forgotten(found) || self.knows(path);
        if !agrees && is_owed() {
            // With a full queue somebody else's change is more urgent, and the next reader sees the difference again.
            drop(self.jobs.try_send(Job { path: path.clone(), wish: Wish::Look, reply: None }));
        }
    }

    /// The index as last seen.
    pub fn kept(&self) -> Option<Kept> {
        lock(&self.shared.seen).kept().cloned()
    }

    /// The index as last seen, and its rows that changed since it had this tag ([`Kept::tag`]). `None`: that is not known,
    /// or cannot be told by less than the whole index.
    pub fn since(&self, tag: &str) -> Option<(Kept, Vec<(RelPath, Row)>)> {
        let seen = lock(&self.shared.seen);
        let (kept, changed) = seen.since(tag)?;
        Some((kept.clone(), rows_of(&kept.document, &changed)?))
    }

    /// The index as it is now.
    pub fn fresh(&self) -> impl Future<Output = Result<Kept, StoreError>> + Send + '_ {
        self.shared.fresh()
    }

    /// The index as it is now; one that is damaged counts as empty, and is replaced by the next write.
    pub async fn fresh_or_empty(&self) -> Result<Kept, StoreError> {
        self.shared.read(true).await
    }

    /// Whether the index as last seen has an entry for `path`, be it a tombstone.
    pub fn knows(&self, path: &RelPath) -> bool {
        self.kept().is_some_and(|kept| kept.document.rows.contains_key(path))
    }

    /// Whether the index as last seen has `path` as a file.
    pub fn lists(&self, path: &RelPath) -> bool {
        self.kept().is_some_and(|kept| kept.document.rows.get(path).is_some_and(|row| !row.is_deleted))
    }

    /// Whether there was an index object when last seen, and one that stays: an index without entries may have been made
    /// for a namespace that cannot begin.
    pub fn is_there(&self) -> bool {
        let stays = |kept: &Kept| !kept.document.rows.is_empty() || self.shared.is_settled.load(Ordering::Relaxed);
        self.kept().is_some_and(|kept| kept.etag.is_some() && stays(&kept))
    }

    /// Whether there is an index object.
    pub async fn exists(&self) -> Result<bool, StoreError> {
        Ok(self.is_there() || self.fresh().await?.etag.is_some())
    }

    /// Sees to it that there is an index object: it tells which namespace a file belongs to. It is made, and stays, if
    /// `allow` does not fail, neither before nor after it is there; true: it was made now.
    ///
    /// # Errors
    /// Those of `allow`; what the store says.
    pub async fn ensure<F>(&self, allow: impl Fn() -> F) -> Result<bool, StoreError>
    where
        F: Future<Output = Result<(), StoreError>>,
    {
        if self.is_there() {
            return Ok(false);
        }
        let _one_at_a_time = self.ensuring.lock().await;
        let existed = self.exists().await?;
        if self.is_there() {
            return Ok(false);
        }
        if !existed {
            allow().await?;
            self.shared.commit(&mut BTreeMap::new(), BTreeSet::new(), true).await?;
        }
        // Who wrote before this index was there is seen now; who writes later sees the index.
        match allow().await {
            Err(refused @ StoreError::NamespaceOccupied { .. }) if self.shared.withdraw().await? => {
                return Err(refused);
            }
            // It has begun all the same: another proxy has files in it, or made it and knows no borders.
            Err(StoreError::NamespaceOccupied { .. }) => {}
            allowed => allowed?,
        }
        self.shared.is_settled.store(true, Ordering::Relaxed);
        Ok(!existed)
    }

    /// Removes the index object, if a proxy that keeps to borders made it and there is nothing in it; gives whether it is
    /// gone.
    pub async fn withdraw(&self) -> Result<bool, StoreError> {
        let _one_at_a_time = self.ensuring.lock().await;
        self.shared.withdraw().await
    }

    /// Takes the entries of old tombstones out of the index; gives how many that were.
    pub async fn forget(&self) -> Result<usize, StoreError> {
        let old = |seen: &Document| {
            let old = seen.rows.iter().filter(|(_, row)| self.shared.is_forgotten(row));
            old.map(|(path, _)| (path.clone(), None)).collect()
        };
        self.change(old).await
    }

    /// Puts `now` in the place of the entry `row`, or takes that out; another entry stays.
    pub async fn amend(&self, path: &RelPath, row: &Row, now: Option<Row>) -> Result<(), StoreError> {
        let change = |seen: &Document| {
            let is_it = seen.rows.get(path) == Some(row);
            is_it.then(|| (path.clone(), now)).into_iter().collect()
        };
        self.change(change).await.map(drop)
    }

    /// Writes what `changes` makes of the index, and gives how many changes that were.
    async fn change(&self, changes: impl Fn(&Document) -> BTreeMap<RelPath, Option<Row>>) -> Result<usize, StoreError> {
        for race in 0..RACES {
            let seen = self.fresh().await?;
            let changes = changes(&seen.document);
            if changes.is_empty() || self.replace(&seen, &changes).await? {
                return Ok(changes.len());
            }
            sleep(Duration::from_millis(fastrand::u64(0..=u64::from(race.min(20)) * 5))).await;
        }
        Err(StoreError::S3("the index is being written by too many".to_owned()))
    }

    /// Whether an index that has no entry of this needs none.
    pub fn is_forgotten(&self, row: &Row) -> bool {
        self.shared.is_forgotten(row)
    }

    /// Writes `changes` over the index `seen`, `None` taking an entry out; false where it is no longer that.
    pub async fn replace(&self, seen: &Kept, changes: &BTreeMap<RelPath, Option<Row>>) -> Result<bool, StoreError> {
        let mut next = (*seen.document).clone();
        for (path, row) in changes {
            next.set(path.clone(), *row);
        }
        match self.shared.write(seen, next, changes.keys().cloned().collect()).await? {
            Write::Landed => Ok(true),
            Write::Lost => Ok(false),
            Write::Unsure(e) => Err(e),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that changes it can panic half way, so a panic elsewhere cannot have damaged it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Write {
    Landed,
    Lost,
    Unsure(StoreError),
}

impl Shared {
    /// Whether it is a tombstone so old that it is no longer owed an entry.
    fn is_forgotten(&self, row: &Row) -> bool {
        row.is_deleted && row.version < forgotten_before((self.clock)())
    }

    /// Keeps what was read when `old` was kept, unless something newer was kept meanwhile, and tells of what they differ in:
    /// another proxy wrote it.
    fn keep(&self, turn: u64, old: Option<&Kept>, new: Kept) {
        let is_there = new.etag.is_some();
        if is_there {
            self.begun.saw(new.document.modified);
        }
        let changed = old.map(|old| (old, differing(&old.document, &new.document)));
        {
            let mut seen = lock(&self.seen);
            match &changed {
                _ if seen.turn() != turn => {}
                Some((old, changed)) => seen.follow(old, new, changed),
                None => seen.begin(new),
            }
        }
        if let Some((_, changed)) = changed.filter(|(_, changed)| is_there && !changed.is_empty()) {
            (self.told)(&self.ns, changed);
        }
    }

    async fn fresh(&self) -> Result<Kept, StoreError> {
        self.read(false).await
    }

    async fn read(&self, damaged_is_empty: bool) -> Result<Kept, StoreError> {
        let (turn, kept) = {
            let seen = lock(&self.seen);
            (seen.turn(), seen.kept().cloned())
        };
        let known = kept.as_ref().and_then(|kept| kept.etag.as_deref());
        self.blobs.bucket.traffic.read();
        let new = match (self.blobs.bucket.get(&self.key, known).await?, &kept) {
            (Fetched::Unchanged, Some(kept)) => return Ok(kept.clone()),
            (Fetched::Unchanged, None) => {
                return Err(StoreError::S3("the store answered 304 to a request without a condition".to_owned()));
            }
            (Fetched::Absent, _) => {
                self.is_settled.store(false, Ordering::Relaxed);
                Kept { etag: None, document: Arc::default() }
            }
            (Fetched::Found(object, body), _) => {
                let json = whole(body, LARGEST).await?;
                let mut document = match parse(&self.key, json).await {
                    Err(StoreError::S3(why)) if damaged_is_empty => {
                        tracing::warn!("{why}");
                        Document::default()
                    }
                    parsed => parsed?,
                };
                if object.described.write.is_none() {
                    // A proxy of another kind, which keeps what it does not understand, may have written an older state.
                    document.history = History::default();
                }
                Kept { etag: Some(object.etag), document: Arc::new(document) }
            }
        };
        self.keep(turn, kept.as_ref(), new.clone());
        Ok(new)
    }

    /// Writes `next` over `seen`, from which it differs in `changed`; finds out by looking where no answer comes.
    async fn write(&self, seen: &Kept, mut next: Document, changed: Vec<RelPath>) -> Result<Write, StoreError> {
        next.modified = (self.clock)().max(seen.document.modified + 1);
        if !self.begun.has_begun() || next.history.is_empty() {
            next.history.begin(seen.document.modified);
        }
        let (next, json) = tokio::task::spawn_blocking(move || next.render().map(|json| (next, json)))
            .await
            .map_err(|_| StoreError::Closed)?
            .map_err(|e| StoreError::S3(e.to_string()))?;
        let write = write_id();
        let described = Described {
            write: Some(write.clone()),
            content_type: Some("application/json".to_owned()),
            ..Described::default()
        };
        let content = Content::Inline(Bytes::from(json));
        self.blobs.bucket.traffic.write();
        let etag = match self.blobs.bucket.put(&self.key, seen.etag.as_deref(), &described, &content).await? {
            Landing::Landed(etag) => etag,
            Landing::Lost => match self.blobs.bucket.head(&self.key).await? {
                Some(now) if now.described.write.as_deref() == Some(&write) => now.etag,
                _ => return Ok(Write::Lost),
            },
            Landing::Unsure(e) => match self.blobs.bucket.head(&self.key).await {
                Ok(Some(now)) if now.described.write.as_deref() == Some(&write) => now.etag,
                Ok(now) if now.as_ref().map(|now| &now.etag) != seen.etag.as_ref() => return Ok(Write::Lost),
                Ok(_) | Err(_) => return Ok(Write::Unsure(e)),
            },
        };
        self.begun.wrote(next.modified);
        lock(&self.seen).follow(seen, Kept { etag: Some(etag), document: Arc::new(next) }, &changed);
        if !changed.is_empty() {
            (self.told)(&self.ns, changed);
        }
        Ok(Write::Landed)
    }

    /// Removes the index object, if a proxy that keeps to borders made it and there is nothing in it; gives whether it is
    /// gone. Who just writes the first entry finds out that it is.
    async fn withdraw(&self) -> Result<bool, StoreError> {
        let seen = self.fresh().await?;
        let Some(now) = self.blobs.bucket.head(&self.key).await? else { return Ok(true) };
        let is_ours = seen.etag.as_ref() == Some(&now.etag) && now.described.write.is_some();
        if !is_ours || !seen.document.rows.is_empty() {
            return Ok(false);
        }
        self.is_settled.store(false, Ordering::Relaxed);
        self.blobs.bucket.remove_once(&self.key).await?;
        lock(&self.seen).forget();
        Ok(true)
    }
}

/// Names one write, so that its author knows it again.
pub fn write_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

async fn parse(key: &Key, json: Bytes) -> Result<Document, StoreError> {
    let parsed = tokio::task::spawn_blocking(move || Document::parse(&json)).await.map_err(|_| StoreError::Closed)?;
    parsed.map_err(|why| {
        StoreError::S3(format!("the index {key} is damaged ({why}); `memsync reindex` makes it anew from the files"))
    })
}
