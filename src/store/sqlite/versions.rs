//! Earlier versions: the contents of a path before it was written again or deleted, and their removal.

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::super::{BlobVersion, IndexEntry, Retention, SweepReport, rules};
use super::core::{entry_of, read_meta, signed, unsigned};

/// Rows that one transaction of a sweep removes. Writers wait for it.
const SWEEP_SLICE: usize = 500;

/// The row of a path before a write.
pub(super) struct CurrentRow {
    pub(super) entry: IndexEntry,
    pub(super) file: Option<String>,
    pub(super) meta: String,
    pub(super) body: Option<i64>,
}

/// Keeps the replaced row as an earlier version that lasted until the version `until`, and at most `most` earlier versions.
/// Gives the body files that are no longer used; remove them after the commit.
pub(super) fn keep(
    tx: &Transaction<'_>,
    (ns, path): (&str, &str),
    old: &CurrentRow,
    until: u64,
    most: u32,
) -> rusqlite::Result<Vec<String>> {
    if most == 0 {
        drop_body(tx, old.body)?;
        return Ok(old.file.iter().cloned().collect());
    }
    tx.prepare_cached(
        "INSERT INTO earlier (ns, path, version, md5, size, file, meta, body, until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        ns,
        path,
        signed(old.entry.version),
        old.entry.md5.as_bytes(),
        signed(old.entry.size),
        old.file,
        old.meta,
        old.body,
        signed(until)
    ])?;
    let surplus = tx
        .prepare_cached(
            "SELECT version, body, file FROM earlier WHERE ns = ? AND path = ? ORDER BY version DESC LIMIT -1 OFFSET ?",
        )?
        .query_map(params![ns, path, most], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<(i64, Option<i64>, Option<String>)>>>()?;
    let mut files = Vec::new();
    for (version, body, file) in surplus {
        tx.prepare_cached("DELETE FROM earlier WHERE ns = ? AND path = ? AND version = ?")?
            .execute(params![ns, path, version])?;
        drop_body(tx, body)?;
        files.extend(file);
    }
    Ok(files)
}

/// The version that replaced the newest earlier version of a path; 0 if there is none.
pub(super) fn last_replacement(tx: &Connection, ns: &str, path: &str) -> rusqlite::Result<u64> {
    tx.prepare_cached("SELECT COALESCE(MAX(until), 0) FROM earlier WHERE ns = ? AND path = ?")?
        .query_row([ns, path], |row| unsigned(row, 0))
}

fn drop_body(tx: &Connection, body: Option<i64>) -> rusqlite::Result<()> {
    if let Some(body) = body {
        tx.prepare_cached("DELETE FROM body WHERE id = ?")?.execute([body])?;
    }
    Ok(())
}

/// The versions of a path that can still be read, the newest first. The first is the path's entry.
pub(super) fn list(db: &Connection, ns: &str, path: &str) -> rusqlite::Result<Vec<BlobVersion>> {
    db.prepare_cached(
        "SELECT md5, size, is_deleted, version, 0, meta FROM entry WHERE ns = ?1 AND path = ?2 UNION ALL \
         SELECT md5, size, 0, version, 0, meta FROM earlier WHERE ns = ?1 AND path = ?2 ORDER BY version DESC",
    )?
    .query_map([ns, path], |row| Ok(BlobVersion { entry: entry_of(row)?, meta: read_meta(&row.get::<_, String>(5)?) }))?
    .collect()
}

/// The expired paths: namespace, path, version.
pub(super) fn expired(db: &Connection, now: u64) -> rusqlite::Result<Vec<(String, String, u64)>> {
    db.prepare_cached("SELECT ns, path, version FROM entry WHERE expires <= ? AND NOT is_deleted")?
        .query_map([signed(now)], |row| Ok((row.get(0)?, row.get(1)?, unsigned(row, 2)?)))?
        .collect()
}

/// Versions and tombstones that are past their retention.
pub(super) struct OldRows {
    /// Namespace, path, version, and the version that replaced it.
    versions: Vec<(String, String, i64, i64)>,
    /// Row id and cursor, the oldest first.
    tombstones: Vec<(i64, i64)>,
}

impl OldRows {
    pub(super) fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.tombstones.is_empty()
    }
}

/// Finds versions and tombstones that are past their retention, except the newest versions of each path. It reads the
/// whole tables, so use a connection that no writer waits for.
pub(super) fn find_old(db: &Connection, retention: &Retention, now: u64) -> rusqlite::Result<OldRows> {
    let before = |age| signed(rules::time_before(now, age));
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
    Ok(OldRows { versions, tombstones })
}

/// Rows that one slice of a sweep removed.
pub(super) struct RemovedRows {
    pub(super) report: SweepReport,
    /// Body files that are no longer used.
    pub(super) files: Vec<String>,
    /// The new floor of the index.
    pub(super) floor: u64,
}

/// Removes the next slice of `old`. Rows that changed since they were found stay.
pub(super) fn remove_slice(db: &mut Connection, old: &mut OldRows) -> rusqlite::Result<RemovedRows> {
    let versions: Vec<_> = old.versions.drain(..old.versions.len().min(SWEEP_SLICE)).collect();
    let tombstones: Vec<_> = old.tombstones.drain(..old.tombstones.len().min(SWEEP_SLICE)).collect();
    let (mut report, mut files) = (SweepReport::default(), Vec::new());
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
            report.versions += 1;
        }
    }
    let mut floor = read_floor(&tx)?;
    let before = floor;
    for (id, cursor) in tombstones {
        // A row that was written since has another cursor.
        let removed = tx.prepare_cached("DELETE FROM entry WHERE id = ? AND cursor = ?")?.execute([id, cursor])?;
        if removed > 0 {
            floor = floor.max(u64::try_from(cursor).unwrap_or(0));
            report.tombstones += 1;
        }
    }
    if floor > before {
        tx.execute("UPDATE meta SET value = ? WHERE key = 'floor'", [floor.to_string()])?;
    }
    tx.commit()?;
    Ok(RemovedRows { report, files, floor })
}

/// Tombstones with a cursor up to this one may have been removed.
pub(super) fn read_floor(db: &Connection) -> rusqlite::Result<u64> {
    let text: String =
        db.prepare_cached("SELECT value FROM meta WHERE key = 'floor'")?.query_row([], |row| row.get(0))?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}
