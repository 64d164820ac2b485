//! Earlier versions: what a path held before it was written again or deleted, and what becomes of them with time.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::super::{BlobVersion, IndexEntry, Retention, SweepReport};
use super::writer::{Held, Job, Write, entry_of, read_meta, signed, unsigned};
use crate::digest::Md5;

/// Keeps what the path held until now as an earlier version of it, unless the same content was written again: what another
/// store had as two versions stays two. Gives the files of versions beyond the limit, which are to be removed after the
/// commit.
pub fn keep(
    tx: &Transaction<'_>,
    retention: &Retention,
    job: &Job,
    old: &Held,
    new: &IndexEntry,
) -> rusqlite::Result<Vec<String>> {
    let is_same = matches!(job.write, Write::Put { .. }) && old.entry.md5 == new.md5;
    if retention.versions == 0 || is_same {
        drop_body(tx, old.body)?;
        return Ok(old.file.iter().cloned().collect());
    }
    tx.prepare_cached(
        "INSERT INTO earlier (ns, path, version, md5, size, file, meta, body, until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        job.ns,
        job.path.as_str(),
        signed(old.entry.version),
        old.entry.md5.as_bytes(),
        signed(old.entry.size),
        old.file,
        old.meta,
        old.body,
        signed(new.version)
    ])?;
    let limit = i64::from(retention.versions);
    let surplus = tx
        .prepare_cached(
            "SELECT version, body, file FROM earlier WHERE ns = ? AND path = ? ORDER BY version DESC LIMIT -1 OFFSET ?",
        )?
        .query_map(params![job.ns, job.path.as_str(), limit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<(i64, Option<i64>, Option<String>)>>>()?;
    let mut files = Vec::new();
    for (version, body, file) in surplus {
        tx.prepare_cached("DELETE FROM earlier WHERE ns = ? AND path = ? AND version = ?")?.execute(params![
            job.ns,
            job.path.as_str(),
            version
        ])?;
        drop_body(tx, body)?;
        files.extend(file);
    }
    Ok(files)
}

/// The version that replaced the newest earlier version of a path; 0 where it has none.
pub fn last_version(tx: &Connection, ns: &str, path: &str) -> rusqlite::Result<u64> {
    tx.prepare_cached("SELECT COALESCE(MAX(until), 0) FROM earlier WHERE ns = ? AND path = ?")?
        .query_row([ns, path], |row| unsigned(row, 0))
}

fn drop_body(tx: &Connection, body: Option<i64>) -> rusqlite::Result<()> {
    if let Some(body) = body {
        tx.prepare_cached("DELETE FROM body WHERE id = ?")?.execute([body])?;
    }
    Ok(())
}

/// The versions of a path that can still be read, the newest first; the path's own entry is the first of them.
pub fn list(db: &Connection, ns: &str, path: &str) -> rusqlite::Result<Vec<BlobVersion>> {
    let tx = db.unchecked_transaction()?;
    let now = tx
        .prepare_cached("SELECT md5, size, is_deleted, version, cursor, meta FROM entry WHERE ns = ? AND path = ?")?
        .query_row([ns, path], |row| {
            let IndexEntry { md5, size, is_deleted, version, .. } = entry_of(row)?;
            Ok(BlobVersion { version, md5, size, is_deleted, meta: read_meta(&row.get::<_, String>(5)?) })
        })
        .optional()?;
    let mut versions: Vec<BlobVersion> = now.into_iter().collect();
    let mut earlier = tx.prepare_cached(
        "SELECT version, md5, size, meta FROM earlier WHERE ns = ? AND path = ? ORDER BY version DESC",
    )?;
    for version in earlier.query_map([ns, path], |row| {
        Ok(BlobVersion {
            version: unsigned(row, 0)?,
            md5: Md5::from_bytes(row.get(1)?),
            size: unsigned(row, 2)?,
            is_deleted: false,
            meta: read_meta(&row.get::<_, String>(3)?),
        })
    })? {
        versions.push(version?);
    }
    Ok(versions)
}

/// Paths whose time has come: namespace, path, version.
pub fn due(db: &Connection, now: u64) -> rusqlite::Result<Vec<(String, String, u64)>> {
    db.prepare_cached("SELECT ns, path, version FROM entry WHERE expires <= ? AND NOT is_deleted")?
        .query_map([signed(now)], |row| Ok((row.get(0)?, row.get(1)?, unsigned(row, 2)?)))?
        .collect()
}

/// Rows that one transaction of a sweep removes, at most: writers wait for it.
const SLICE: usize = 500;

/// What is older than it is kept.
pub struct Old {
    /// Earlier versions, by namespace, path, version and until when.
    versions: Vec<(String, String, i64, i64)>,
    /// Tombstones, by row and cursor; the oldest come first.
    tombstones: Vec<(i64, i64)>,
}

/// Finds versions and tombstones that are older than they are kept, but for the newest versions of each path. It reads all there are, so it is for a connection
/// that no writer waits for.
pub fn find_old(db: &Connection, retention: &Retention, now: u64) -> rusqlite::Result<Old> {
    let before = |age: Duration| signed(now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    let versions = db
        .prepare(
            "SELECT ns, path, version, until FROM earlier AS old WHERE until < ? AND ? <= (SELECT COUNT(*) \
             FROM earlier AS newer WHERE newer.ns = old.ns AND newer.path = old.path AND newer.version > old.version)",
        )?
        .query_map([before(retention.age), i64::from(retention.ageless)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let tombstones = db
        .prepare("SELECT id, cursor FROM entry WHERE is_deleted AND version < ? ORDER BY cursor")?
        .query_map([before(retention.tombstones)], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Old { versions, tombstones })
}

impl Old {
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.tombstones.is_empty()
    }
}

/// Removes some of what was found, as far as it is there still as it was found. Gives what went, the files to be removed,
/// and the floor that the tombstones leave.
pub fn remove_some(db: &mut Connection, old: &mut Old) -> rusqlite::Result<(SweepReport, Vec<String>, u64)> {
    let versions: Vec<_> = old.versions.drain(..old.versions.len().min(SLICE)).collect();
    let tombstones: Vec<_> = old.tombstones.drain(..old.tombstones.len().min(SLICE)).collect();
    let (mut swept, mut files) = (SweepReport::default(), Vec::new());
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (ns, path, version, until) in versions {
        let removed: Option<(Option<i64>, Option<String>)> = tx
            .prepare_cached(
                "DELETE FROM earlier WHERE ns = ? AND path = ? AND version = ? AND until = ? RETURNING body, file",
            )?
            .query_row(params![ns, path, version, until], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((body, file)) = removed {
            drop_body(&tx, body)?;
            files.extend(file);
            swept.versions += 1;
        }
    }
    let mut floor = read_floor(&tx)?;
    let before = floor;
    for (id, cursor) in tombstones {
        // A row that was written since has another cursor.
        let removed = tx.prepare_cached("DELETE FROM entry WHERE id = ? AND cursor = ?")?.execute([id, cursor])?;
        if removed > 0 {
            floor = floor.max(u64::try_from(cursor).unwrap_or(0));
            swept.tombstones += 1;
        }
    }
    if floor > before {
        tx.execute("UPDATE meta SET value = ? WHERE key = 'floor'", [floor.to_string()])?;
    }
    tx.commit()?;
    Ok((swept, files, floor))
}

/// Tombstones up to this cursor may be gone.
pub fn read_floor(db: &Connection) -> rusqlite::Result<u64> {
    let text: String =
        db.prepare_cached("SELECT value FROM meta WHERE key = 'floor'")?.query_row([], |row| row.get(0))?;
    Ok(text.parse().unwrap_or(0))
}
