//! [`Embedded`]: a durable store in one directory. Entries and small bodies are in SQLite, large bodies in files.
//!
//! A write is acknowledged when it is on the medium (WAL, `synchronous=FULL`). One thread writes, in groups;
//! readers have connections of their own and never wait for it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    BACKLOG, Blob, Body, Changes, Clock, Deleted, Entry, Got, Index, Mark, Put, Store, StoreError, system_clock,
};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::Precondition;

mod schema;
mod spool;
mod writer;

pub use spool::Upload;

use spool::{Spool, blocking};
use writer::{Job, Write, entry_of, signed, unsigned};

/// Writes that may wait for the writer before callers are held back.
const QUEUE: usize = 256;
/// Idle read connections kept open.
const READERS: usize = 4;

/// What can be chosen of an embedded store.
#[derive(Clone)]
pub struct Settings {
    /// The database refuses writes that would make it larger than this many bytes. `None`: only the disk bounds it.
    pub max_database_bytes: Option<u64>,
    pub clock: Clock,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_database_bytes: None, clock: system_clock() }
    }
}

/// What writer and readers share.
struct Shared {
    dir: PathBuf,
    spool: Arc<Spool>,
    mark: Mutex<Mark>,
    changes: broadcast::Sender<Changes>,
    readers: Mutex<Vec<Connection>>,
    clock: Clock,
    /// Held as long as anything may touch the directory.
    _lock: File,
}

impl Shared {
    fn mark(&self) -> Mark {
        lock(&self.mark).clone()
    }

    fn advance(&self, cursor: u64, modified: u64) {
        let mut mark = lock(&self.mark);
        mark.cursor = cursor;
        mark.modified = modified;
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

/// What these mutexes guard is replaced whole, so a panic elsewhere cannot have damaged it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn database_error(e: rusqlite::Error) -> StoreError {
    StoreError::Database(e.to_string())
}

fn io_error(path: &Path, e: &io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), why: e.to_string() }
}

/// A store in a directory that it holds alone. Dropping it waits for the writes that were handed in.
pub struct Embedded {
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store in `dir`, creating both where they are missing. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Newer`], [`StoreError::NotAStore`] without having changed anything;
    /// otherwise what the filesystem or the database says.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, Settings::default())
    }

    /// [`Embedded::open`] with settings.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_with(dir: &Path, settings: Settings) -> Result<Self, StoreError> {
        let held = schema::claim(dir)?;
        let db = schema::open_writer(dir, &settings, (settings.clock)())?;
        let mark = read_mark(&db).map_err(database_error)?;
        let spool = Spool::new(dir.join(schema::BODIES));
        let named = named_files(&db).map_err(database_error)?;
        spool.sweep(&named).map_err(|e| io_error(dir, &e))?;

        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            spool,
            mark: Mutex::new(mark),
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
        let job = Job { ns: ns.to_owned(), path: path.clone(), write };
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

impl Store for Embedded {
    type Incoming = Upload;

    fn incoming(&self) -> Upload {
        Upload::new(self.shared.spool.clone())
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        precondition: Precondition,
        content_type: &str,
        body: Upload,
    ) -> Result<Put, StoreError> {
        let body = body.finish().await?;
        let (reply, answer) = oneshot::channel();
        let write = Write::Put { precondition, content_type: content_type.to_owned(), body, reply };
        self.submit(ns, path, write, answer).await
    }

    async fn delete(&self, ns: &str, path: &RelPath, expected: Option<Md5>) -> Result<Deleted, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.submit(ns, path, Write::Delete { expected, reply }, answer).await
    }

    async fn get(&self, ns: &str, path: &RelPath) -> Result<Got, StoreError> {
        let (shared, ns, path) = (self.shared.clone(), ns.to_owned(), path.clone());
        blocking(move || get(&shared, &ns, path.as_str())).await?
    }

    async fn index(&self, ns: &str, since: u64) -> Result<Index, StoreError> {
        let (shared, ns) = (self.shared.clone(), ns.to_owned());
        blocking(move || shared.read(|db| read_index(db, &ns, since))).await?
    }

    fn mark(&self) -> Mark {
        self.shared.mark()
    }

    fn subscribe(&self) -> broadcast::Receiver<Changes> {
        self.shared.changes.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        if self.jobs.as_ref().is_none_or(mpsc::Sender::is_closed) {
            return Err(StoreError::Closed);
        }
        let shared = self.shared.clone();
        blocking(move || shared.read(|db| read_mark(db).map(drop))).await?
    }
}

/// A live row with its content, or the name of the file that has it.
struct Stored {
    entry: Entry,
    content_type: String,
    file: Option<String>,
    content: Option<Vec<u8>>,
}

fn get(shared: &Shared, ns: &str, path: &str) -> Result<Got, StoreError> {
    loop {
        let Some(stored) = shared.read(|db| find(db, ns, path))? else { return Ok(Got::Absent) };
        let Stored { entry, content_type, file, content } = stored;
        if entry.is_deleted {
            return Ok(Got::Tombstone(entry));
        }
        let body = match (content, file) {
            (Some(content), None) => Body::Whole(Bytes::from(content)),
            (_, Some(file)) => match File::open(shared.spool.path(&file)) {
                Ok(open) => Body::Pieces(spool::pieces(open, entry.size)),
                // Replaced, and its file removed, since the row was read: look again.
                Err(e) if e.kind() == io::ErrorKind::NotFound && moved_on(shared, ns, path, &entry)? => continue,
                Err(e) => return Err(io_error(&shared.spool.path(&file), &e)),
            },
            (None, None) => return Err(StoreError::Database(format!("{path:?} has an entry but no content"))),
        };
        return Ok(Got::Found(Blob { entry, content_type, body }));
    }
}

/// Whether the path has been written since `seen` was read.
fn moved_on(shared: &Shared, ns: &str, path: &str, seen: &Entry) -> Result<bool, StoreError> {
    Ok(shared.read(|db| find(db, ns, path))?.is_none_or(|now| now.entry.cursor != seen.cursor))
}

fn find(db: &Connection, ns: &str, path: &str) -> rusqlite::Result<Option<Stored>> {
    db.prepare_cached(
        "SELECT md5, size, is_deleted, version, cursor, content_type, file, content \
         FROM entry LEFT JOIN body USING (id) WHERE ns = ? AND path = ?",
    )?
    .query_row([ns, path], |row| {
        Ok(Stored { entry: entry_of(row)?, content_type: row.get(5)?, file: row.get(6)?, content: row.get(7)? })
    })
    .optional()
}

fn read_mark(db: &Connection) -> rusqlite::Result<Mark> {
    let meta = |key: &str| {
        db.prepare_cached("SELECT value FROM meta WHERE key = ?")?.query_row([key], |r| r.get::<_, String>(0))
    };
    let number = |key: &str| meta(key).map(|text| text.parse::<u64>().unwrap_or(0));
    let floor = number("floor")?;
    let last = db
        .prepare_cached("SELECT cursor, version FROM entry ORDER BY cursor DESC LIMIT 1")?
        .query_row([], |r| Ok((unsigned(r, 0)?, unsigned(r, 1)?)))
        .optional()?;
    let (cursor, modified) = match last {
        Some(last) => last,
        None => (0, number("created")?),
    };
    // The last change may have been a tombstone that is gone, but never one at or above the floor.
    Ok(Mark { epoch: meta("epoch")?.into(), cursor: cursor.max(floor), floor, modified })
}

fn read_index(db: &Connection, ns: &str, since: u64) -> rusqlite::Result<Index> {
    // One transaction, so that the mark and the entries are of one moment.
    let tx = db.unchecked_transaction()?;
    let mark = read_mark(&tx)?;
    let query = if since == 0 {
        "SELECT md5, size, is_deleted, version, cursor, path FROM entry WHERE ns = ? AND cursor > ?"
    } else {
        // The `+` keeps SQLite off the index over names: few entries are newer than `since`.
        "SELECT md5, size, is_deleted, version, cursor, path FROM entry WHERE +ns = ? AND cursor > ?"
    };
    let entries = tx
        .prepare_cached(query)?
        .query_map(rusqlite::params![ns, signed(since)], |row| Ok((row.get(5)?, entry_of(row)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Index { mark, entries })
}

fn named_files(db: &Connection) -> rusqlite::Result<HashSet<String>> {
    db.prepare("SELECT file FROM entry WHERE file IS NOT NULL")?.query_map([], |r| r.get(0))?.collect()
}
