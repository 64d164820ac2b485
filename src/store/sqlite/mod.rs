//! [`SqliteStore`]: a durable store in one directory. Entries and small bodies are in SQLite, large bodies in files.
//!
//! A write is acknowledged when it is on the medium (WAL, `synchronous=FULL`). One thread writes, in groups;
//! readers have connections of their own and never wait for it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    BACKLOG, BatchWrite, BlobChanges, BlobMeta, BlobVersion, DeleteOutcome, GetOutcome, ImportOutcome, IndexMark,
    IndexSnapshot, IndexState, Precondition, PrivateRecord, PutOutcome, Retention, Store, StoreError, SweepReport,
    WallClock, WriteOutcome, strong_state, system_clock,
};
use crate::path::RelPath;
use crate::protocol::HistoryPoint;

mod history;
mod many;
mod read;
mod records;
mod schema;
mod spool;
pub mod upkeep;
mod versions;
mod writer;

pub use records::SqliteRecords;
pub use spool::Upload;

use read::{get, named_files, read_index, read_marks};
use spool::{Spool, blocking};
use writer::{Job, Write, unsigned};

/// Writes that may wait for the writer before callers are held back.
const QUEUE: usize = 256;
/// A sweep leaves the database to others for so long after each part of it.
const BETWEEN_SLICES: Duration = Duration::from_millis(20);
/// Idle read connections kept open.
const READERS: usize = 4;

/// What can be chosen of an embedded store.
#[derive(Clone)]
pub struct SqliteSettings {
    /// The database refuses writes that would make it larger than this many bytes. `None`: only the disk bounds it.
    pub max_database_bytes: Option<u64>,
    pub retention: Retention,
    pub clock: WallClock,
}

impl Default for SqliteSettings {
    fn default() -> Self {
        Self { max_database_bytes: None, retention: Retention::default(), clock: system_clock() }
    }
}

/// What writer and readers share.
struct Shared {
    dir: PathBuf,
    spool: Arc<Spool>,
    marks: Mutex<Marks>,
    retention: Retention,
    changes: broadcast::Sender<BlobChanges>,
    readers: Mutex<Vec<Connection>>,
    clock: WallClock,
    /// Held as long as anything may touch the directory.
    _lock: File,
}

impl Shared {
    /// The number of the last change.
    fn cursor(&self) -> u64 {
        lock(&self.marks).cursor
    }

    fn state(&self, ns: &str) -> IndexState {
        let marks = lock(&self.marks);
        let (cursor, modified) = marks.last.get(ns).copied().unwrap_or((0, marks.created));
        // The last change may have been a tombstone that is gone, but never one above the floor.
        let cursor = cursor.max(marks.floor);
        let mark = IndexMark { epoch: marks.epoch.clone(), cursor, floor: marks.floor };
        strong_state(mark, modified, marks.history.as_deref())
    }

    /// Takes in committed changes: namespace, cursor, time, and the bytes by which the live entries grew. `begun`: the
    /// history id that began with them.
    fn advance<'a>(&self, begun: Option<Arc<str>>, changes: impl Iterator<Item = (&'a str, u64, u64, i64)>) {
        let mut marks = lock(&self.marks);
        marks.history = begun.or(marks.history.take());
        for (ns, cursor, modified, grown) in changes {
            marks.cursor = cursor;
            match marks.bytes.get_mut(ns) {
                Some(bytes) => *bytes = bytes.saturating_add_signed(grown),
                None => drop(marks.bytes.insert(ns.to_owned(), 0u64.saturating_add_signed(grown))),
            }
            match marks.last.get_mut(ns) {
                Some(last) => *last = (cursor, modified),
                None => drop(marks.last.insert(ns.to_owned(), (cursor, modified))),
            }
        }
    }

    /// Runs `work` on a read connection.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let idle = lock(&self.readers).pop();
        let db = match idle {
            Some(db) => db,
            None => schema::open_reader(&self.dir).map_err(database_error)?,
        };
        // A connection that failed is not used again.
        let value = work(&db).map_err(database_error)?;
        let mut readers = lock(&self.readers);
        if readers.len() < READERS {
            readers.push(db);
        }
        Ok(value)
    }
}

/// Where the store stands.
struct Marks {
    epoch: Arc<str>,
    floor: u64,
    /// The newest id of the history.
    history: Option<Arc<str>>,
    /// Milliseconds since the epoch.
    created: u64,
    cursor: u64,
    /// The last change of each namespace, and when it was.
    last: HashMap<String, (u64, u64)>,
    /// The bytes of each namespace's live entries.
    bytes: HashMap<String, u64>,
}

/// What these mutexes guard is replaced whole, so a panic elsewhere cannot have damaged it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sizes(db: &Connection, ns: &str, paths: &[RelPath]) -> rusqlite::Result<Vec<u64>> {
    let mut find = db.prepare_cached("SELECT size FROM entry WHERE ns = ? AND path = ?")?;
    let size = |path: &RelPath| find.query_row([ns, path.as_str()], |row| unsigned(row, 0)).optional();
    paths.iter().map(size).map(|size| size.map(Option::unwrap_or_default)).collect()
}

fn database_error(e: rusqlite::Error) -> StoreError {
    match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(e.to_string()),
        _ => StoreError::Database(e.to_string()),
    }
}

fn io_error(path: &Path, e: &io::Error) -> StoreError {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full(format!("{}: {e}", path.display()))
        }
        _ => StoreError::Io { path: path.to_owned(), why: e.to_string() },
    }
}

/// A store in a directory that it holds alone. Dropping it waits for the writes that were handed in.
pub struct SqliteStore {
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    jobs: Option<mpsc::Sender<Vec<Job>>>,
    writer: Option<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the store in `dir`, creating both where they are missing. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Newer`], [`StoreError::NotAStore`] without having changed anything;
    /// otherwise what the filesystem or the database says.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, SqliteSettings::default())
    }

    /// [`SqliteStore::open`] with settings.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_with(dir: &Path, settings: SqliteSettings) -> Result<Self, StoreError> {
        let held = schema::claim(dir)?;
        let db = schema::open_writer(dir, &settings, (settings.clock)())?;
        let marks = read_marks(&db).map_err(database_error)?;
        let spool = Spool::new(dir.join(schema::BODIES));
        let named = named_files(&db).map_err(database_error)?;
        spool.sweep(&named).map_err(|e| io_error(dir, &e))?;

        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            spool,
            marks: Mutex::new(marks),
            retention: settings.retention,
            changes: broadcast::channel(BACKLOG).0,
            readers: Mutex::new(Vec::new()),
            clock: settings.clock,
            _lock: held,
        });
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let theirs = shared.clone();
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer::run(db, &theirs, waiting))
            .map_err(|e| io_error(dir, &e))?;
        Ok(Self { shared, jobs: Some(jobs), writer: Some(writer) })
    }

    /// Hands a write to the writer and waits for its answer. Once handed over it happens, even when the caller goes.
    async fn submit<T>(
        &self,
        ns: &str,
        path: &RelPath,
        write: Write,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.hand_in(vec![Job { ns: ns.to_owned(), path: path.clone(), write }]).await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Hands writes to the writer, which commits them together.
    async fn hand_in(&self, jobs: Vec<Job>) -> Result<(), StoreError> {
        self.jobs.as_ref().ok_or(StoreError::Closed)?.send(jobs).await.map_err(|_| StoreError::Closed)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.jobs = None;
        lock(&self.shared.readers).clear();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

impl Store for SqliteStore {
    const STRONG: bool = true;
    type BodyWriter = Upload;

    fn new_body(&self) -> Upload {
        Upload::new(self.shared.spool.clone())
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Precondition,
        meta: BlobMeta,
        body: Upload,
    ) -> Result<PutOutcome, StoreError> {
        let body = body.finish().await?;
        let (reply, answer) = oneshot::channel();
        let write = Write::Put { expect, meta, body, reply };
        self.submit(ns, path, write, answer).await
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<Precondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.submit(ns, path, Write::Delete { expect, meta, reply }, answer).await
    }

    async fn get(&self, ns: &str, path: &RelPath) -> Result<GetOutcome, StoreError> {
        let (shared, ns, path) = (self.shared.clone(), ns.to_owned(), path.clone());
        blocking(move || get(&shared, &ns, path.as_str(), None)).await?
    }

    async fn write_many(
        &self,
        ns: &str,
        writes: Vec<(RelPath, BatchWrite)>,
        meta: &BlobMeta,
    ) -> Vec<Result<WriteOutcome, StoreError>> {
        many::write(self, ns, writes, meta).await
    }

    async fn get_many(&self, ns: &str, paths: Vec<RelPath>) -> Vec<Result<GetOutcome, StoreError>> {
        let (shared, ns, n) = (self.shared.clone(), ns.to_owned(), paths.len());
        let all = move || paths.iter().map(|path| get(&shared, &ns, path.as_str(), None)).collect();
        blocking(all).await.unwrap_or_else(|e| (0..n).map(|_| Err(e.clone())).collect())
    }

    async fn index(&self, ns: &str, since: u64) -> Result<IndexSnapshot, StoreError> {
        let (shared, ns) = (self.shared.clone(), ns.to_owned());
        blocking(move || {
            // Read before the entries, so that it is never newer than they are.
            let state = shared.state(&ns);
            shared.read(|db| read_index(db, &ns, since, state))
        })
        .await?
    }

    async fn state(&self, ns: &str) -> Result<IndexState, StoreError> {
        Ok(self.shared.state(ns))
    }

    fn history_point(&self, ns: &str) -> Option<HistoryPoint> {
        self.shared.state(ns).history
    }

    async fn contains_point(&self, _ns: &str, point: &HistoryPoint) -> Result<bool, StoreError> {
        let (shared, point) = (self.shared.clone(), point.clone());
        // Read after the cursor: a history id that begins meanwhile begins there, or later.
        blocking(move || {
            let now = shared.cursor();
            shared.read(|db| Ok(history::last_cursor(db, &point.id, now)?.is_some_and(|last| point.cursor <= last)))
        })
        .await?
    }

    fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.shared.changes.subscribe()
    }

    fn free_bytes(&self) -> Option<u64> {
        // Not known is no reason to warn.
        let fs = rustix::fs::statvfs(&self.shared.dir).ok()?;
        Some(fs.f_bavail.saturating_mul(fs.f_frsize))
    }

    async fn health(&self) -> Result<(), StoreError> {
        if self.jobs.as_ref().is_none_or(mpsc::Sender::is_closed) {
            return Err(StoreError::Closed);
        }
        let shared = self.shared.clone();
        blocking(move || {
            // An open connection goes on reading a database that was removed.
            let path = shared.dir.join(schema::DATABASE);
            std::fs::metadata(&path).map_err(|e| StoreError::Io { path, why: e.to_string() })?;
            shared.read(|db| versions::read_floor(db).map(drop))
        })
        .await?
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        let (shared, ns, path) = (self.shared.clone(), ns.to_owned(), path.clone());
        blocking(move || shared.read(|db| versions::list(db, &ns, path.as_str()))).await?
    }

    async fn get_version(&self, ns: &str, path: &RelPath, version: u64) -> Result<GetOutcome, StoreError> {
        let (shared, ns, path) = (self.shared.clone(), ns.to_owned(), path.clone());
        blocking(move || get(&shared, &ns, path.as_str(), Some(version))).await?
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        let mut all: Vec<String> = lock(&self.shared.marks).last.keys().cloned().collect();
        all.sort_unstable();
        Ok(all)
    }

    async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<Upload>,
    ) -> Result<ImportOutcome, StoreError> {
        let body = match body {
            Some(body) => Some(body.finish().await?),
            None => None,
        };
        let (reply, answer) = oneshot::channel();
        self.submit(ns, path, Write::Place { version, body, reply }, answer).await
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        let now = (self.shared.clock)();
        let shared = self.shared.clone();
        let due = blocking(move || shared.read(|db| versions::due(db, now))).await??;
        let (mut expired, mut failure) = (0, None);
        for (ns, path, version) in due {
            let deleted = match RelPath::parse(&path) {
                // One that was written meanwhile is not due any more.
                Ok(path) => self.delete(&ns, &path, Some(Precondition::Version(version)), BlobMeta::default()).await,
                Err(e) => Err(StoreError::Database(format!("{path:?}: {e}"))),
            };
            match deleted {
                Ok(deleted) => expired += usize::from(matches!(deleted, DeleteOutcome::Done(_))),
                // It holds up no other.
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        failure.map_or(Ok(expired), Err)
    }

    async fn sweep(&self) -> Result<SweepReport, StoreError> {
        // What cannot expire holds up nothing else.
        let (expired, failure) = self.expire().await.map_or_else(|e| (0, Some(e)), |expired| (expired, None));
        let now = (self.shared.clock)();
        let shared = self.shared.clone();
        let remove = move || {
            let mut all = SweepReport { expired, ..SweepReport::default() };
            let mut old = shared.read(|db| versions::find_old(db, &shared.retention, now))?;
            if old.is_empty() {
                return Ok(all);
            }
            let mut db = records::connect(&shared.dir)?;
            while !old.is_empty() {
                let (swept, files, floor) = versions::remove_some(&mut db, &mut old).map_err(database_error)?;
                for file in files {
                    shared.spool.remove(&file);
                }
                lock(&shared.marks).floor = floor;
                all.versions += swept.versions;
                all.tombstones += swept.tombstones;
                // Who waits for the database looks now and then, and would never find it free.
                std::thread::sleep(BETWEEN_SLICES);
            }
            Ok::<_, StoreError>(all)
        };
        let all = blocking(remove).await??;
        failure.map_or(Ok(all), Err)
    }

    async fn held_bytes(&self, ns: &str, paths: &[RelPath]) -> Result<Vec<u64>, StoreError> {
        let (shared, ns, paths) = (self.shared.clone(), ns.to_owned(), paths.to_vec());
        blocking(move || shared.read(|db| sizes(db, &ns, &paths))).await?
    }

    async fn usage(&self, ns: &str) -> Result<u64, StoreError> {
        Ok(lock(&self.shared.marks).bytes.get(ns).copied().unwrap_or(0))
    }

    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        let shared = self.shared.clone();
        blocking(move || shared.read(|db| records::read(db, name))).await?
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let (shared, expected) = (self.shared.clone(), expected.map(str::to_owned));
        blocking(move || {
            let db = records::connect(&shared.dir)?;
            records::write(db, name, expected.as_deref(), &content)
        })
        .await?
    }
}
