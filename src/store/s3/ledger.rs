//! The index of one namespace: read with a cache, written with compare-and-swap. While one write is under way
//! further changes gather and go with the next, so that many writes of files cost few of the index.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path as Key;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::super::{Clock, StoreError};
use super::blobs::Blobs;
use super::bucket::{Fetched, Landing, whole};
use super::index::{Document, Row};
use super::layout::Described;
use super::retention::forgotten_before;
use super::seen::{Kept, Seen, differing, rows_of};
use super::spool::Content;
use crate::failpoint;
use crate::path::RelPath;

/// Changes that may wait before callers are held back.
const QUEUE: usize = 4096;
/// Changes in one write of the index.
const GROUP: usize = 4096;
/// A group waits this long for company: who was just answered begins the next write in a moment.
const PAUSE: Duration = Duration::from_millis(3);
/// It waits on while blobs are being written, this long at most between two changes ...
const GAP: Duration = Duration::from_millis(100);
/// ... and this long in all.
const LINGER: Duration = Duration::from_millis(250);
/// How often a lost race for the index is run again.
const RACES: u32 = 200;
/// How often a write that failed is tried again before those who wait are told.
const FAILURES: u32 = 5;
/// Changes that could not be recorded are tried again after this time.
const LATER: Duration = Duration::from_secs(5);
/// Bytes; a longer index is refused.
const LARGEST: u64 = 1024 * 1024 * 1024;

/// Told of every commit: the paths that changed.
pub type Told = Arc<dyn Fn(&str, Vec<RelPath>) + Send + Sync>;

type Reply = oneshot::Sender<Result<(), StoreError>>;

/// What is asked of the index.
enum Wish {
    /// The blob has this now.
    Record(Row),
    /// The blob and the index differ: look at the blob again and record what it has.
    Look,
}

struct Job {
    path: RelPath,
    wish: Wish,
    reply: Option<Reply>,
}

struct Shared {
    ns: String,
    key: Key,
    blobs: Blobs,
    clock: Clock,
    told: Told,
    seen: Mutex<Seen>,
    /// Small blobs that are being written, and will be recorded soon.
    under_way: AtomicUsize,
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
    pub fn open(ns: &str, key: Key, blobs: Blobs, clock: Clock, told: Told) -> Self {
        let shared = Arc::new(Shared {
            ns: ns.to_owned(),
            key,
            blobs,
            clock,
            told,
            seen: Mutex::default(),
            under_way: AtomicUsize::new(0),
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

    /// Whether there was an index object when last seen.
    pub fn is_there(&self) -> bool {
        self.kept().is_some_and(|kept| kept.etag.is_some())
    }

    /// Whether there is an index object.
    pub async fn exists(&self) -> Result<bool, StoreError> {
        Ok(self.is_there() || self.fresh().await?.etag.is_some())
    }

    /// Sees to it that there is an index object: it tells which namespace a file belongs to. It is made if `allowed` does
    /// not fail; true: it was made now.
    pub async fn ensure(&self, allowed: impl Future<Output = Result<(), StoreError>>) -> Result<bool, StoreError> {
        if self.is_there() {
            return Ok(false);
        }
        let _one_at_a_time = self.ensuring.lock().await;
        if self.exists().await? {
            return Ok(false);
        }
        allowed.await?;
        self.shared.commit(&mut BTreeMap::new(), Vec::new(), true).await?;
        Ok(true)
    }

    /// Takes the entries of old tombstones out of the index; gives how many that were.
    pub async fn forget(&self) -> Result<usize, StoreError> {
        for race in 0..RACES {
            let seen = self.fresh().await?;
            let old = seen.document.rows.iter().filter(|(_, row)| self.shared.is_forgotten(row));
            let changes: BTreeMap<RelPath, Option<Row>> = old.map(|(path, _)| (path.clone(), None)).collect();
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
            match row {
                Some(row) => drop(next.rows.insert(path.clone(), *row)),
                None => drop(next.rows.remove(path)),
            }
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
            (Fetched::Absent, _) => Kept { etag: None, document: Arc::default() },
            (Fetched::Found(object, body), _) => {
                let json = whole(body, LARGEST).await?;
                let document = match parse(&self.key, json).await {
                    Err(StoreError::S3(why)) if damaged_is_empty => {
                        tracing::warn!("{why}");
                        Document::default()
                    }
                    parsed => parsed?,
                };
                Kept { etag: Some(object.etag), document: Arc::new(document) }
            }
        };
        self.keep(turn, kept.as_ref(), new.clone());
        Ok(new)
    }

    /// Writes `next` over `seen`, from which it differs in `changed`; finds out by looking where no answer comes.
    async fn write(&self, seen: &Kept, mut next: Document, changed: Vec<RelPath>) -> Result<Write, StoreError> {
        next.modified = (self.clock)().max(seen.document.modified + 1);
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
        lock(&self.seen).follow(seen, Kept { etag: Some(etag), document: Arc::new(next) }, &changed);
        if !changed.is_empty() {
            (self.told)(&self.ns, changed);
        }
        Ok(Write::Landed)
    }

    /// Records `owed` and looks at the blobs of `looks`. What is recorded leaves `owed`.
    async fn commit(
        &self,
        owed: &mut BTreeMap<RelPath, Row>,
        looks: Vec<RelPath>,
        create: bool,
    ) -> Result<(), StoreError> {
        let (mut races, mut failures) = (0, 0);
        let kept = lock(&self.seen).kept().cloned();
        let mut seen = match kept {
            // What is to be looked at differs from what is kept, which may only be old.
            Some(kept) if looks.is_empty() && kept.etag.is_some() => kept,
            _ => self.fresh().await?,
        };
        loop {
            if seen.etag.is_none() && !create && !self.ns.is_empty() {
                return self.decline(owed);
            }
            let changed = self.changed(&seen, owed, &looks).await?;
            if changed.is_empty() && !(create && seen.etag.is_none()) {
                owed.clear();
                return Ok(());
            }
            let mut next = (*seen.document).clone();
            next.rows.extend(changed.iter().map(|(path, row)| (path.clone(), *row)));
            match self.write(&seen, next, changed.into_keys().collect()).await? {
                Write::Landed => {
                    failpoint::pass("s3-index-written");
                    owed.clear();
                    return Ok(());
                }
                Write::Lost if races < RACES => {
                    // The more often it was lost the longer the pause, so that every proxy gets its turn.
                    let most = u64::from(races.min(20)) * 5;
                    races += 1;
                    sleep(Duration::from_millis(fastrand::u64(0..=most))).await;
                }
                Write::Lost => return Err(StoreError::S3("the index is being written by too many".to_owned())),
                Write::Unsure(_) if failures < FAILURES => {
                    failures += 1;
                    sleep(Duration::from_millis(20 << (2 * failures))).await;
                }
                Write::Unsure(e) => return Err(e),
            }
            seen = self.fresh().await?;
        }
    }

    /// Records nothing, as there is no index: only who has asked whether it may be begins a namespace. Until then its
    /// blobs are files of the one above, whose readers and whose start see them.
    fn decline(&self, owed: &mut BTreeMap<RelPath, Row>) -> Result<(), StoreError> {
        if owed.is_empty() {
            return Ok(());
        }
        owed.clear();
        Err(StoreError::S3(format!("the index of {:?} was removed during a write; write again", self.ns)))
    }

    /// What of `owed` and of the blobs at `looks` the index `seen` does not have. The later version of a path wins;
    /// where versions cannot tell, the blob itself does. Looking after the index was read makes that safe: a blob
    /// written still later is recorded after this.
    async fn changed(
        &self,
        seen: &Kept,
        owed: &BTreeMap<RelPath, Row>,
        looks: &[RelPath],
    ) -> Result<BTreeMap<RelPath, Row>, StoreError> {
        let mut changed = BTreeMap::new();
        let mut doubtful: Vec<&RelPath> = looks.iter().collect();
        for (path, row) in owed {
            match seen.document.rows.get(path) {
                Some(has) if has == row => {}
                Some(has) if has.version >= row.version => doubtful.push(path),
                Some(_) | None => {
                    changed.insert(path.clone(), *row);
                }
            }
        }
        for path in doubtful {
            let (found, has) = (self.blobs.look(&self.ns, path).await?, seen.document.rows.get(path));
            let is_owed = |row: &Row| has != Some(row) && (has.is_some() || !self.is_forgotten(row));
            if let Some(found) = found.filter(|found| is_owed(&found.row)) {
                changed.insert(path.clone(), found.row);
            }
        }
        Ok(changed)
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

/// Serves jobs until every sender is gone.
async fn serve(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>) {
    let mut owed = BTreeMap::new();
    let mut group = Vec::new();
    loop {
        if owed.is_empty() {
            if jobs.recv_many(&mut group, GROUP).await == 0 {
                return;
            }
        } else if let Ok(0) = timeout(LATER, jobs.recv_many(&mut group, GROUP)).await {
            tracing::error!(
                "{} changes of {:?} are not in the index; `memsync reindex` adds them",
                owed.len(),
                shared.ns
            );
            return;
        }
        linger(&shared, &mut jobs, &mut group).await;
        let (mut looks, mut replies) = (Vec::new(), Vec::new());
        for Job { path, wish, reply } in group.drain(..) {
            replies.extend(reply);
            match wish {
                Wish::Look => looks.push(path),
                Wish::Record(row) => {
                    let newest = owed.entry(path).or_insert(row);
                    if row.version > newest.version {
                        *newest = row;
                    }
                }
            }
        }
        let done = shared.commit(&mut owed, looks, false).await;
        if let Err(e) = &done {
            tracing::error!("the index of {:?} could not be written: {e}; {} changes wait", shared.ns, owed.len());
        }
        for reply in replies {
            // A caller that has gone does not hear of it.
            drop(reply.send(done.clone()));
        }
    }
}

/// Takes what comes while blobs are under way: their changes are due in a moment.
async fn linger(shared: &Shared, jobs: &mut mpsc::Receiver<Job>, group: &mut Vec<Job>) {
    let end = Instant::now() + LINGER;
    sleep(PAUSE).await;
    while group.len() < GROUP && shared.under_way.load(Ordering::Relaxed) > 0 && Instant::now() < end {
        let room = GROUP - group.len();
        match timeout(GAP, jobs.recv_many(group, room)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
