//! The proxy's private records. Each write is a transaction on a connection of its own, so that a command can write one
//! while the proxy serves.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::super::{PrivateRecord, RecordStore, StoreError, run_blocking, system_clock};
use super::schema::{self, DATABASE};

/// The records of a store that another process may be serving.
#[derive(Debug, Clone)]
pub struct SqliteRecords(PathBuf);

impl SqliteRecords {
    /// Opens the records of the store in `dir`; `None` if there is no store. A store of an older format is migrated. Fails
    /// as [`SqliteStore::open`](super::SqliteStore::open) does. Blocks.
    pub fn open(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(DATABASE);
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io(&path, &e)),
            Ok(_) => {}
        }
        if !schema::is_current(&path)? {
            prepare(dir)?;
        }
        Ok(Some(Self(dir.to_owned())))
    }

    /// As [`SqliteRecords::open`], but creates a missing store.
    pub fn open_or_create(dir: &Path) -> Result<Self, StoreError> {
        if let Some(records) = Self::open(dir)? {
            return Ok(records);
        }
        prepare(dir)?;
        Ok(Self(dir.to_owned()))
    }
}

/// Creates a store, or migrates it to the current format, as its start does.
fn prepare(dir: &Path) -> Result<(), StoreError> {
    let _lock = schema::claim(dir)?;
    let db = schema::open_writer(dir, None, system_clock()())?;
    schema::empty_log_or_warn(&db, dir);
    Ok(())
}

impl RecordStore for SqliteRecords {
    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        let dir = self.0.clone();
        run_blocking(move || Ok(read(&open(&dir)?, name)?)).await?
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let (dir, expected) = (self.0.clone(), expected.map(str::to_owned));
        run_blocking(move || write(open(&dir)?, name, expected.as_deref(), &content)).await?
    }
}

pub(super) fn read(db: &Connection, name: &str) -> rusqlite::Result<Option<PrivateRecord>> {
    db.prepare_cached("SELECT tag, content FROM record WHERE name = ?")?
        .query_row([name], |row| {
            Ok(PrivateRecord {
                tag: row.get::<_, i64>(0)?.to_string(),
                content: Bytes::from(row.get::<_, Vec<u8>>(1)?),
            })
        })
        .optional()
}

/// Writes the record if its tag is `expected`.
pub(super) fn write(
    mut db: Connection,
    name: &str,
    expected: Option<&str>,
    content: &[u8],
) -> Result<bool, StoreError> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let held: Option<i64> =
        tx.query_row("SELECT tag FROM record WHERE name = ?", [name], |row| row.get(0)).optional()?;
    if held.map(|tag| tag.to_string()).as_deref() != expected {
        return Ok(false);
    }
    tx.execute(
        "INSERT OR REPLACE INTO record (name, tag, content) VALUES (?, ?, ?)",
        params![name, held.unwrap_or(0) + 1, content],
    )?;
    tx.commit()?;
    Ok(true)
}

/// Opens a write connection to a store that exists. Only for processes that do not serve it, see [`connect`].
pub(super) fn open(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join(DATABASE);
    if let Err(e) = std::fs::metadata(&path) {
        return Err(StoreError::io(&path, &e));
    }
    schema::refuse_unknown_format(&path)?;
    connect(dir)
}

/// Opens another write connection to a store that was checked. It opens the database file only through SQLite. Closing any
/// other handle of the file would release the locks of this process's connections (fcntl(2)), and another process could
/// then remove their log.
pub(super) fn connect(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join(DATABASE);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&path, flags)?;
    // Only the process that serves the store may move the log into the database and remove it.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    schema::set_durable(&db)?;
    Ok(db)
}
