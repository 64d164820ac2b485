//! Opens and creates the store's directory and database. A foreign directory or database is refused and not changed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::super::{StoreError, new_id};

pub(super) const DATABASE: &str = "store.db";
pub(super) const BODIES: &str = "bodies";
const LOCK: &str = "lock";

/// The format that this code reads and writes: the database's `user_version`.
const SCHEMA: u32 = 2;
/// `application_id` of the database: "msyn".
const APPLICATION: u32 = 0x6d73_796e;

// Bodies have their own table, so that reading the index does not read contents. A body belongs to one entry. When the
// entry is replaced, its earlier version takes the body over.
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

// Added by format 2.
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

// Older versions of memsync ignore this table, so the format number stays the same.
pub(super) const HISTORY: &str =
    "CREATE TABLE IF NOT EXISTS history (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, since INTEGER NOT NULL)";

const FROM_1_TO_2: &str = "
    ALTER TABLE entry ADD COLUMN meta TEXT NOT NULL DEFAULT '';
    ALTER TABLE entry ADD COLUMN expires INTEGER;
    ALTER TABLE entry ADD COLUMN body INTEGER;
    UPDATE entry SET meta = json_object('content_type', content_type) WHERE content_type <> '';
    UPDATE entry SET body = id WHERE id IN (SELECT id FROM body);
    ALTER TABLE entry DROP COLUMN content_type;
";

/// Creates the directory (mode 0700) if it is missing, and locks it for this process.
pub(super) fn claim(dir: &Path) -> Result<File, StoreError> {
    let fail = |e: std::io::Error| StoreError::io(dir, &e);
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

/// Makes new names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::io(dir, &e))
}

/// Refuses a directory with other files in it.
fn refuse_foreign(dir: &Path) -> Result<(), StoreError> {
    if dir.join(DATABASE).exists() {
        return Ok(());
    }
    for found in fs::read_dir(dir).map_err(|e| StoreError::io(dir, &e))? {
        let name = found.map_err(|e| StoreError::io(dir, &e))?.file_name();
        if name != LOCK && name != BODIES {
            let why = format!("the directory contains {name:?} and no {DATABASE}");
            return Err(StoreError::NotAStore { path: dir.to_owned(), why });
        }
    }
    Ok(())
}

/// Opens the database for writing, and creates it if it is missing. `max_bytes` limits its size.
pub(super) fn open_writer(dir: &Path, max_bytes: Option<u64>, now: u64) -> Result<Connection, StoreError> {
    let path = dir.join(DATABASE);
    refuse_unknown_format(&path)?;
    // SQLite gives its journal files the mode of the database, so create the database with the right mode.
    let made = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    made.map_err(|e| StoreError::io(&path, &e))?;
    let mut db =
        Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    configure(&db, max_bytes)?;
    let found: u32 = db.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    match found {
        SCHEMA => {}
        0 | 1 => create_or_migrate(&mut db, found, now)?,
        _ => return Err(StoreError::Newer { path, found, known: SCHEMA }),
    }
    db.execute_batch(HISTORY)?;
    keep_epoch(&mut db, &identity(&path)?)?;
    sync_dir(dir)?;
    Ok(db)
}

/// Identifies the file, and tells it from a copy: its inode number, which may be reused, and its creation time. The device
/// number may change with a restart, so it counts only on filesystems without creation times.
fn identity(path: &Path) -> Result<String, StoreError> {
    let file = fs::metadata(path).map_err(|e| StoreError::io(path, &e))?;
    let born = file.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok(match born {
        Some(born) => format!("{}:{}", file.ino(), born.as_nanos()),
        None => format!("{}:{}:0", file.dev(), file.ino()),
    })
}

/// Gives a restored database a new epoch, which makes clients read the whole index. It lacks changes that clients have
/// seen, and will give their cursors to other changes.
fn keep_epoch(db: &mut Connection, identity: &str) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    let known: Option<String> =
        tx.query_row("SELECT value FROM meta WHERE key = 'file'", [], |r| r.get(0)).optional()?;
    // Format 1 always put the device number first.
    let same = |known: &str| known == identity || known.split_once(':').is_some_and(|(_, rest)| rest == identity);
    if !known.as_deref().is_some_and(same) {
        for (key, value) in [("file", identity), ("epoch", new_id().as_ref())] {
            tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])?;
        }
    }
    tx.commit()
}

/// Opens a read connection.
pub(super) fn open_reader(dir: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(dir.join(DATABASE), flags)?;
    db.busy_timeout(Duration::from_secs(10))?;
    db.pragma_update(None, "cache_size", -1024)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    plan_once(&db)?;
    Ok(db)
}

/// Makes cached statements keep their plan. Otherwise SQLite parses a join again for every lookup, because other values
/// might deserve another plan; without statistics they never do.
fn plan_once(db: &Connection) -> rusqlite::Result<()> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Refuses a file that is not a store of a known format. Reads the file's header directly, because SQLite may create files
/// when it opens a database.
pub(super) fn refuse_unknown_format(path: &Path) -> Result<(), StoreError> {
    format(path).map(drop)
}

/// True if the database has the current format.
pub(super) fn is_current(path: &Path) -> Result<bool, StoreError> {
    format(path).map(|found| found == SCHEMA)
}

/// The format in the header; 0 if the database is missing or incomplete.
fn format(path: &Path) -> Result<u32, StoreError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(StoreError::io(path, &e)),
    };
    let mut header = Vec::new();
    file.by_ref().take(100).read_to_end(&mut header).map_err(|e| StoreError::io(path, &e))?;
    if header.is_empty() {
        // The process was killed before the first commit.
        return Ok(0);
    }
    let foreign = |why: &str| StoreError::NotAStore { path: path.to_owned(), why: why.to_owned() };
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        return Err(foreign("not a SQLite database"));
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

/// Makes the commits of a connection durable.
pub(super) fn set_durable(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(Duration::from_secs(10))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    // On macOS a plain fsync does not reach the medium; elsewhere these change nothing.
    db.pragma_update(None, "fullfsync", true)?;
    db.pragma_update(None, "checkpoint_fullfsync", true)
}

fn configure(db: &Connection, max_bytes: Option<u64>) -> rusqlite::Result<()> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    set_durable(db)?;
    db.pragma_update(None, "cache_size", -2048)?;
    db.pragma_update(None, "wal_autocheckpoint", 4000)?;
    db.pragma_update(None, "journal_size_limit", 32 * 1024 * 1024)?;
    if let Some(limit) = max_bytes {
        let page: u32 = db.query_row("PRAGMA page_size", [], |r| r.get(0))?;
        db.pragma_update(None, "max_page_count", i64::try_from(limit / u64::from(page)).unwrap_or(i64::MAX))?;
    }
    db.set_prepared_statement_cache_capacity(32);
    plan_once(db)
}

/// Creates the tables, or migrates them from format 1, in one transaction.
fn create_or_migrate(db: &mut Connection, found: u32, now: u64) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    tx.execute_batch(if found == 0 { TABLES } else { FROM_1_TO_2 })?;
    tx.execute_batch(EARLIER)?;
    if found == 0 {
        for (key, value) in [("floor", "0"), ("created", now.to_string().as_str())] {
            tx.execute("INSERT INTO meta VALUES (?, ?)", [key, value])?;
        }
        tx.pragma_update(None, "application_id", APPLICATION)?;
    }
    tx.pragma_update(None, "user_version", SCHEMA)?;
    tx.commit()?;
    // The next start reads the header from the database file, not from the log.
    empty_log(db).map(drop)
}

/// As [`empty_log`], but only warns. The store is complete with its log too.
pub(super) fn empty_log_or_warn(db: &Connection, dir: &Path) {
    let dir = dir.display();
    match empty_log(db) {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!("{dir}: another process reads the store, so its log stays; copy no older database over it");
        }
        Err(e) => tracing::warn!("{dir}: the log of the store could not be emptied: {e}"),
    }
}

/// Moves the write-ahead log into the database and empties it. False: a reader kept it busy for longer than the timeout.
pub(super) fn empty_log(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).map(|busy| busy == 0)
}
