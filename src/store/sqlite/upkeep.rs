//! Maintenance from outside: statistics, backup, restore and verification. All but restore work while a proxy serves the
//! store.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;

use super::super::StoreError;
use super::core::unsigned;
use super::read::named_files;
use super::records::{self, SqliteRecords};
use super::schema::{self, BODIES, DATABASE, sync_dir};
use crate::digest::{Md5, Md5Hasher};
use crate::failpoint;

/// Attempts at a backup while a running proxy removes files.
const ATTEMPTS: usize = 5;
/// Bytes of one read.
const CHUNK_BYTES: usize = 256 * 1024;

/// Statistics of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamespaceStats {
    /// Empty for the flat dialect.
    pub name: String,
    pub files: u64,
    /// Bytes of the files.
    pub bytes: u64,
    pub tombstones: u64,
    pub earlier_versions: u64,
    /// Bytes of the earlier versions.
    pub earlier_bytes: u64,
}

/// Statistics of a store, and its size on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// Sorted by name.
    pub namespaces: Vec<NamespaceStats>,
    /// Bytes of the database and its log.
    pub database: u64,
    /// Bytes of the body files.
    pub bodies: u64,
}

/// Result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Current and earlier contents that were read.
    pub contents: u64,
    pub bytes: u64,
    /// One line for each fault, with its path.
    pub damage: Vec<String>,
}

/// Counts the entries and bytes of the store in `dir`.
pub fn stats(dir: &Path) -> Result<StoreStats, StoreError> {
    let db = reader(dir)?;
    let namespaces = namespaces(&db)?;
    let size_of = |path: &Path| match fs::metadata(path) {
        Ok(meta) => Ok(meta.len()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(StoreError::io(path, &e)),
    };
    let database = size_of(&dir.join(DATABASE))? + size_of(&dir.join(format!("{DATABASE}-wal")))?;
    let folder = dir.join(BODIES);
    let mut bodies = 0;
    for found in fs::read_dir(&folder).map_err(|e| StoreError::io(&folder, &e))? {
        bodies += size_of(&found.map_err(|e| StoreError::io(&folder, &e))?.path())?;
    }
    Ok(StoreStats { namespaces, database, bodies })
}

fn namespaces(db: &Connection) -> rusqlite::Result<Vec<NamespaceStats>> {
    db.prepare(
        "SELECT ns, SUM(NOT is_deleted), SUM(size), SUM(is_deleted), \
         (SELECT COUNT(*) FROM earlier WHERE earlier.ns = entry.ns), \
         (SELECT COALESCE(SUM(size), 0) FROM earlier WHERE earlier.ns = entry.ns) FROM entry GROUP BY ns ORDER BY ns",
    )?
    .query_map([], |row| {
        Ok(NamespaceStats {
            name: row.get(0)?,
            files: unsigned(row, 1)?,
            bytes: unsigned(row, 2)?,
            tombstones: unsigned(row, 3)?,
            earlier_versions: unsigned(row, 4)?,
            earlier_bytes: unsigned(row, 5)?,
        })
    })?
    .collect()
}

/// Opens a read connection to an existing store. A store of an older format is migrated, as at the start of a proxy.
fn reader(dir: &Path) -> Result<Connection, StoreError> {
    if SqliteRecords::open(dir)?.is_none() {
        return Err(StoreError::Io {
            path: dir.to_owned(),
            why: format!("there is no store here: {DATABASE} is missing"),
        });
    }
    // A write connection recovers the log of a proxy that was killed.
    drop(records::open(dir)?);
    Ok(schema::open_reader(dir)?)
}

/// Copies the store, as it is at one moment, to the new directory `to`. The copy is durable when this returns. A failed copy
/// is removed.
pub fn backup(dir: &Path, to: &Path) -> Result<(), StoreError> {
    let db = reader(dir)?;
    if to.symlink_metadata().is_ok() {
        return Err(StoreError::io(to, &io::ErrorKind::AlreadyExists.into()));
    }
    // An incomplete copy must not look like a store.
    let name = to.file_name().ok_or_else(|| StoreError::io(to, &io::ErrorKind::InvalidInput.into()))?;
    let fresh = to.with_file_name(format!("{}.tmp.{}", name.to_string_lossy(), std::process::id()));
    DirBuilder::new().mode(0o700).create(&fresh).map_err(|e| StoreError::io(&fresh, &e))?;
    let copied = copy_unchanged(&db, dir, &fresh).and_then(|()| publish(&fresh, to));
    if copied.is_err() {
        // The caller gets the reason why the copy failed.
        drop(fs::remove_dir_all(&fresh));
    }
    copied
}

/// Copies again until no file was removed during the copy.
fn copy_unchanged(db: &Connection, dir: &Path, to: &Path) -> Result<(), StoreError> {
    for _ in 0..ATTEMPTS {
        if copy(db, dir, to)? {
            return Ok(());
        }
    }
    let why = "its files are replaced faster than they can be copied; try again when fewer clients write".to_owned();
    Err(StoreError::Io { path: dir.to_owned(), why })
}

/// Gives a complete copy its final name.
fn publish(fresh: &Path, to: &Path) -> Result<(), StoreError> {
    sync_dir(&fresh.join(BODIES))?;
    sync_dir(fresh)?;
    failpoint::pass("store-copied");
    fs::rename(fresh, to).map_err(|e| StoreError::io(to, &e))?;
    sync_dir(to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// One attempt. False: a file that the copied database names was removed before it could be copied.
fn copy(db: &Connection, dir: &Path, to: &Path) -> Result<bool, StoreError> {
    let (from, bodies) = (dir.join(BODIES), to.join(BODIES));
    if let Err(e) = DirBuilder::new().mode(0o700).create(&bodies)
        && e.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(StoreError::io(&bodies, &e));
    }
    // Copy most files before the database, so that few are removed between the two. Only files that a row names are
    // complete.
    copy_files(named_files(db)?.iter(), &from, &bodies)?;
    let named = copy_database(db, &to.join(DATABASE))?;
    if !copy_files(named.iter(), &from, &bodies)? {
        return Ok(false);
    }
    for found in fs::read_dir(&bodies).map_err(|e| StoreError::io(&bodies, &e))? {
        let found = found.map_err(|e| StoreError::io(&bodies, &e))?;
        if found.file_name().to_str().is_none_or(|name| !named.contains(name)) {
            fs::remove_file(found.path()).map_err(|e| StoreError::io(&found.path(), &e))?;
        }
    }
    Ok(true)
}

/// Copies the database durably. Gives the body files that the copy names.
fn copy_database(db: &Connection, path: &Path) -> Result<HashSet<String>, StoreError> {
    if let Err(e) = fs::remove_file(path)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(StoreError::io(path, &e));
    }
    // SQLite accepts an empty file, so create it with the right mode.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|e| StoreError::io(path, &e))?;
    let target = path.to_str().ok_or_else(|| StoreError::Io { path: path.to_owned(), why: "not UTF-8".to_owned() })?;
    db.execute("VACUUM INTO ?", [target])?;
    let copied = Connection::open(path)?;
    let named = named_files(&copied)?;
    copied.close().map_err(|(_, e)| e)?;
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| StoreError::io(path, &e))?;
    Ok(named)
}

/// False: some files no longer exist.
fn copy_files<'a>(names: impl Iterator<Item = &'a String>, from: &Path, to: &Path) -> Result<bool, StoreError> {
    let mut all = true;
    for name in names {
        let (from, to) = (from.join(name), to.join(name));
        match copy_file(&from, &to) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && !from.exists() => all = false,
            Err(e) => return Err(StoreError::io(&to, &e)),
        }
    }
    Ok(all)
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        // Body files never change.
        return Ok(());
    }
    fs::copy(from, to)?;
    fs::set_permissions(to, Permissions::from_mode(0o600))?;
    File::open(to)?.sync_all()
}

/// Copies the backup `from` to `dir`, which must be missing or empty. A damaged backup is refused. The proxy gives the store
/// a new epoch when it opens it.
pub fn restore(from: &Path, dir: &Path) -> Result<(), StoreError> {
    let verified = verify(from, |_| ())?;
    if let Some(damage) = verified.damage.first() {
        return Err(StoreError::Io { path: from.to_owned(), why: format!("the copy is damaged: {damage}") });
    }
    match fs::remove_dir(dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(StoreError::io(dir, &e)),
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|e| StoreError::io(parent, &e))?;
    }
    backup(from, dir)
}

/// Reads every content and compares it with its row. `progress` gets the number of contents that were read. Damage is not an
/// error, but an unreadable database is.
pub fn verify(dir: &Path, mut progress: impl FnMut(u64)) -> Result<VerifyReport, StoreError> {
    let db = reader(dir)?;
    let mut verified = VerifyReport::default();
    let integrity: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if integrity != "ok" {
        verified.damage.push(format!("{DATABASE}: {integrity}"));
    }
    // Select the keys only: a long read of the contents would make the log of a running proxy grow.
    let ids: Vec<i64> = db
        .prepare("SELECT id FROM entry WHERE NOT is_deleted")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for id in ids {
        let sql = "SELECT ns, path, md5, size, file, content FROM entry LEFT JOIN body ON body.id = entry.body \
                   WHERE entry.id = ? AND NOT is_deleted";
        check(&db, dir, sql, [id], &mut verified)?;
        progress(verified.contents);
    }
    let keys: Vec<(String, String, i64)> = db
        .prepare("SELECT ns, path, version FROM earlier")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for key in keys {
        let sql = "SELECT ns, path, md5, size, file, content FROM earlier LEFT JOIN body ON body.id = earlier.body \
                   WHERE ns = ? AND path = ? AND version = ?";
        check(&db, dir, sql, key, &mut verified)?;
        progress(verified.contents);
    }
    Ok(verified)
}

/// The digest and size that a row promises, and its content.
struct ContentClaim {
    name: String,
    md5: Md5,
    size: u64,
    file: Option<String>,
    content: Option<Vec<u8>>,
}

fn check<P: rusqlite::Params + Clone>(
    db: &Connection,
    dir: &Path,
    sql: &str,
    key: P,
    verified: &mut VerifyReport,
) -> Result<(), StoreError> {
    let read = || {
        let claim = |row: &Row<'_>| {
            let (ns, path): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(ContentClaim {
                name: if ns.is_empty() { path } else { format!("{ns}: {path}") },
                md5: Md5::from_bytes(row.get(2)?),
                size: unsigned(row, 3)?,
                file: row.get(4)?,
                content: row.get(5)?,
            })
        };
        db.prepare_cached(sql)?.query_row(key.clone(), claim).optional()
    };
    let Some(claim) = read()? else { return Ok(()) };
    let found = match (&claim.content, &claim.file) {
        (Some(content), None) => Ok((Md5::of(content), content.len() as u64)),
        (_, Some(file)) => digest(&dir.join(BODIES).join(file)),
        (None, None) => Err(io::Error::new(io::ErrorKind::NotFound, "it has no content")),
    };
    let wrong = match found {
        Ok(found) if found == (claim.md5, claim.size) => None,
        Ok((md5, size)) => {
            Some(format!("its content is {size} bytes with MD5 {md5}, not {} with {}", claim.size, claim.md5))
        }
        // A running proxy may have replaced the content meanwhile.
        Err(_) if read()?.is_none_or(|now| now.file != claim.file) => return Ok(()),
        Err(e) => Some(e.to_string()),
    };
    verified.contents += 1;
    verified.bytes += claim.size;
    verified.damage.extend(wrong.map(|why| format!("{}: {why}", claim.name)));
    Ok(())
}

fn digest(path: &Path) -> io::Result<(Md5, u64)> {
    let (mut file, mut hasher, mut size) = (File::open(path)?, Md5Hasher::new(), 0);
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&piece[..n]);
        size += n as u64;
    }
}
