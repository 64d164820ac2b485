//! The store's directory and database: what is created, what is accepted, what is refused untouched.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::super::{StoreError, new_id};
use super::spool::sync_dir;
use super::writer::signed;
use super::{SqliteSettings, database_error, history, io_error};

pub const DATABASE: &str = "store.db";
pub const BODIES: &str = "bodies";
const LOCK: &str = "lock";

/// The format this code reads and writes, kept in the database's `user_version`.
const SCHEMA: u32 = 2;
/// `application_id` of the database: "msyn".
const APPLICATION: u32 = 0x6d73_796e;

// Bodies are apart from entries so that reading the index does not page through contents. A body belongs to one entry
// or to one earlier version, which takes it over when the entry is written again.
const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY,
        ns TEXT NOT NULL,
        path TEXT NOT NULL,
        md5 BLOB NOT NULL,
        size INTEGER NOT NULL,
        is_deleted INTEGER NOT NULL,
        version INTEGER NOT NULL,
        cursor INTEGER NOT NULL UNIQUE,
        file TEXT,
        meta TEXT NOT NULL DEFAULT '',
        expires INTEGER,
        body INTEGER,
        UNIQUE (ns, path)
    );
    CREATE TABLE body (id INTEGER PRIMARY KEY, content BLOB NOT NULL);
";

// What format 2 has besides.
const EARLIER: &str = "
    CREATE INDEX entry_due ON entry (expires) WHERE expires IS NOT NULL;
    CREATE TABLE earlier (
        ns TEXT NOT NULL,
        path TEXT NOT NULL,
        version INTEGER NOT NULL,
        md5 BLOB NOT NULL,
        size INTEGER NOT NULL,
        file TEXT,
        meta TEXT NOT NULL,
        body INTEGER,
        until INTEGER NOT NULL,
        PRIMARY KEY (ns, path, version)
    ) WITHOUT ROWID;
    CREATE TABLE record (name TEXT PRIMARY KEY, tag INTEGER NOT NULL, content BLOB NOT NULL) WITHOUT ROWID;
";

const FROM_1_TO_2: &str = "
    ALTER TABLE entry ADD COLUMN meta TEXT NOT NULL DEFAULT '';
    ALTER TABLE entry ADD COLUMN expires INTEGER;
    ALTER TABLE entry ADD COLUMN body INTEGER;
    UPDATE entry SET meta = json_object('content_type', content_type) WHERE content_type <> '';
    UPDATE entry SET body = id WHERE id IN (SELECT id FROM body);
    ALTER TABLE entry DROP COLUMN content_type;
";

/// Makes sure of the directory (0700) and holds it for this process alone.
pub fn claim(dir: &Path) -> Result<File, StoreError> {
    let fail = |e: std::io::Error| io_error(dir, &e);
    if dir.exists() {
        refuse_foreign(dir)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(fail)?;
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join(LOCK));
    let lock = lock.map_err(fail)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(e)) => return Err(fail(e)),
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir.join(BODIES)).map_err(fail)?;
    sync_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    Ok(lock)
}

/// A directory with other people's files in it is not taken over.
fn refuse_foreign(dir: &Path) -> Result<(), StoreError> {
    if dir.join(DATABASE).exists() {
        return Ok(());
    }
    for found in fs::read_dir(dir).map_err(|e| io_error(dir, &e))? {
        let name = found.map_err(|e| io_error(dir, &e))?.file_name();
        if name != LOCK && name != BODIES {
            let why = format!("the directory has {name:?} in it and no {DATABASE}");
            return Err(StoreError::NotAStore { path: dir.to_owned(), why });
        }
    }
    Ok(())
}

/// Opens the database for writing, creating it where it is missing.
pub fn open_writer(dir: &Path, settings: &SqliteSettings, now: u64) -> Result<Connection, StoreError> {
    let path = dir.join(DATABASE);
    refuse_header(&path)?;
    // SQLite gives its journal files the mode of the database, so the mode is set by creating it here.
    let made = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    made.map_err(|e| io_error(&path, &e))?;
    let mut db =
        Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(database_error)?;
    configure(&db, settings).map_err(database_error)?;
    let found: u32 = db.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(database_error)?;
    match found {
        SCHEMA => {}
        0 => create(&mut db, now).map_err(database_error)?,
        1 => migrate(&mut db).map_err(database_error)?,
        _ => return Err(StoreError::Newer { path, found, known: SCHEMA }),
    }
    history::create(&db).map_err(database_error)?;
    keep_epoch(&mut db, &identity(&path)?).map_err(database_error)?;
    sync_dir(dir)?;
    Ok(db)
}

/// What tells this file from a copy of it: its inode, whose number is given out again, and its birth. The number of the
/// device may be another after a restart of the machine, so it counts only where the filesystem tells no birth.
fn identity(path: &Path) -> Result<String, StoreError> {
    let file = fs::metadata(path).map_err(|e| io_error(path, &e))?;
    let born = file.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok(match born {
        Some(born) => format!("{}:{}", file.ino(), born.as_nanos()),
        None => format!("{}:{}:0", file.dev(), file.ino()),
    })
}

/// A store that was put back from a copy lacks changes that it has told of, and will count others with their
/// cursors: it gets a new epoch, which makes everybody read the whole index.
fn keep_epoch(db: &mut Connection, identity: &str) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    let known: Option<String> =
        tx.query_row("SELECT value FROM meta WHERE key = 'file'", [], |r| r.get(0)).optional()?;
    // Format 1 wrote the device before it in any case.
    let same = |known: &str| known == identity || known.split_once(':').is_some_and(|(_, rest)| rest == identity);
    if !known.as_deref().is_some_and(same) {
        for (key, value) in [("file", identity), ("epoch", new_id().as_ref())] {
            tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])?;
        }
    }
    tx.commit()
}

/// Opens one more connection, for reading.
pub fn open_reader(dir: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(dir.join(DATABASE), flags)?;
    db.busy_timeout(Duration::from_secs(10))?;
    db.pragma_update(None, "cache_size", -1024)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    plan_once(&db)?;
    Ok(db)
}

/// A cached statement keeps its plan, whatever is bound to it. Without this SQLite parses a join anew for every row that is
/// asked for, since it might plan otherwise for other values; there are no statistics by which it would.
fn plan_once(db: &Connection) -> rusqlite::Result<()> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Refuses what is no store of a format that is known, by the file's own header, because merely opening a database may
/// write beside it.
pub fn refuse_header(path: &Path) -> Result<(), StoreError> {
    format(path).map(drop)
}

/// Whether the database has this code's format.
pub fn is_current(path: &Path) -> Result<bool, StoreError> {
    format(path).map(|found| found == SCHEMA)
}

/// The format that the header tells; 0 for a database that is not there or not made to its end.
fn format(path: &Path) -> Result<u32, StoreError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(io_error(path, &e)),
    };
    let mut header = Vec::new();
    file.by_ref().take(100).read_to_end(&mut header).map_err(|e| io_error(path, &e))?;
    if header.is_empty() {
        // Created, and killed before the first commit.
        return Ok(0);
    }
    let foreign = |why: &str| StoreError::NotAStore { path: path.to_owned(), why: why.to_owned() };
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        return Err(foreign("no SQLite database"));
    }
    // Bytes 60 and 68 of https://sqlite.org/fileformat.html#the_database_header.
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    match (word(60), word(68)) {
        (0, 0) => Ok(0),
        (found @ 1..=SCHEMA, APPLICATION) => Ok(found),
        (found, APPLICATION) => Err(StoreError::Newer { path: path.to_owned(), found, known: SCHEMA }),
        _ => Err(foreign("a database of another program")),
    }
}

/// What any connection that writes needs, for a commit to be durable.
pub fn careful(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(Duration::from_secs(10))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    // On macOS a plain fsync does not reach the medium; elsewhere these change nothing.
    db.pragma_update(None, "fullfsync", true)?;
    db.pragma_update(None, "checkpoint_fullfsync", true)
}

fn configure(db: &Connection, settings: &SqliteSettings) -> rusqlite::Result<()> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    careful(db)?;
    db.pragma_update(None, "cache_size", -2048)?;
    db.pragma_update(None, "wal_autocheckpoint", 4000)?;
    db.pragma_update(None, "journal_size_limit", 32 * 1024 * 1024)?;
    if let Some(limit) = settings.max_database_bytes {
        let page: u32 = db.query_row("PRAGMA page_size", [], |r| r.get(0))?;
        db.pragma_update(None, "max_page_count", signed(limit / u64::from(page)))?;
    }
    db.set_prepared_statement_cache_capacity(32);
    plan_once(db)
}

fn create(db: &mut Connection, now: u64) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    tx.execute_batch(TABLES)?;
    tx.execute_batch(EARLIER)?;
    for (key, value) in [("floor", "0"), ("created", now.to_string().as_str())] {
        tx.execute("INSERT INTO meta VALUES (?, ?)", [key, value])?;
    }
    tx.pragma_update(None, "user_version", SCHEMA)?;
    tx.pragma_update(None, "application_id", APPLICATION)?;
    tx.commit()?;
    // The next start reads the header of the database itself, without the log.
    empty_log(db).map(drop)
}

/// Brings a store of format 1 to this one, or leaves it as it was.
fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    tx.execute_batch(FROM_1_TO_2)?;
    tx.execute_batch(EARLIER)?;
    tx.pragma_update(None, "user_version", SCHEMA)?;
    tx.commit()?;
    empty_log(db).map(drop)
}

/// Moves the write-ahead log into the database and empties it. Gives `false` if a reader held it up for longer than the
/// busy timeout.
pub fn empty_log(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).map(|busy| busy == 0)
}
