//! The proxy's private records. Each write is a transaction on a connection of its own, so that a command can write one
//! while the proxy serves.

use std::path::Path;

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::super::{PrivateRecord, StoreError};
use super::schema::{self, DATABASE};

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
    replace(&mut db, name, expected, content).map_err(StoreError::database)
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
    let db = Connection::open_with_flags(&path, flags).map_err(StoreError::database)?;
    // Only the process that serves the store may move the log into the database and remove it.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(StoreError::database)?;
    schema::set_durable(&db).map_err(StoreError::database)?;
    Ok(db)
}
