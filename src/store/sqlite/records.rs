//! The proxy's private records in the database. Each write is a transaction of its own on a connection of its own, so
//! that a command can write one while the proxy serves.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::super::{PrivateRecord, RecordStore, StoreError};
use super::schema::{self, DATABASE};
use super::spool::blocking;
use super::{SqliteStore, database_error, io_error};

/// The records of a store that another process may be serving.
#[derive(Debug, Clone)]
pub struct SqliteRecords(PathBuf);

impl SqliteRecords {
    /// Of the store in `dir`, `None` where there is none. One that an older memsync left is brought forward first.
    /// Blocks.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(DATABASE);
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error(&path, &e)),
            Ok(_) => {}
        }
        if !schema::is_current(&path)? {
            drop(SqliteStore::open(dir)?);
        }
        Ok(Some(Self(dir.to_owned())))
    }

    /// [`SqliteRecords::open`], which creates the store where there is none.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_or_create(dir: &Path) -> Result<Self, StoreError> {
        if let Some(beside) = Self::open(dir)? {
            return Ok(beside);
        }
        drop(SqliteStore::open(dir)?);
        Ok(Self(dir.to_owned()))
    }
}

impl RecordStore for SqliteRecords {
    async fn read_record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        let dir = self.0.clone();
        blocking(move || read(&open(&dir)?, name).map_err(database_error)).await?
    }

    async fn write_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> Result<bool, StoreError> {
        let (dir, expected) = (self.0.clone(), expected.map(str::to_owned));
        blocking(move || write(open(&dir)?, name, expected.as_deref(), &content)).await?
    }
}

/// # Errors
/// What the database says.
pub fn read(db: &Connection, name: &str) -> rusqlite::Result<Option<PrivateRecord>> {
    db.prepare_cached("SELECT tag, content FROM record WHERE name = ?")?
        .query_row([name], |row| {
            Ok(PrivateRecord {
                tag: row.get::<_, i64>(0)?.to_string(),
                content: Bytes::from(row.get::<_, Vec<u8>>(1)?),
            })
        })
        .optional()
}

/// Writes the record if it has the tag `expected`.
///
/// # Errors
/// What the database says.
pub fn write(mut db: Connection, name: &str, expected: Option<&str>, content: &[u8]) -> Result<bool, StoreError> {
    replace(&mut db, name, expected, content).map_err(database_error)
}

fn replace(db: &mut Connection, name: &str, expected: Option<&str>, content: &[u8]) -> rusqlite::Result<bool> {
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

/// A connection that may write, to a store that exists. Not for the process that serves it: see [`connect`].
pub fn open(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join(DATABASE);
    if let Err(e) = std::fs::metadata(&path) {
        return Err(io_error(&path, &e));
    }
    schema::refuse_header(&path)?;
    connect(dir)
}

/// One more connection that may write, to a store that was checked. It touches the database by SQLite alone: closing
/// any other handle of the file would drop the locks that this process's connections have on it (fcntl(2)), and then
/// another process takes the log away from under them.
pub fn connect(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join(DATABASE);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&path, flags).map_err(database_error)?;
    // Only the store's owner moves the log into the database and removes it.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(database_error)?;
    schema::careful(&db).map_err(database_error)?;
    Ok(db)
}
