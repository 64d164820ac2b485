//! Reads contents, entries and the positions of the indexes from the database.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::super::body::pieces;
use super::super::{
    BlobBody, BlobMeta, GetOutcome, IndexCursor, IndexEntry, IndexSnapshot, IndexState, StoreError, StoredBlob,
};
use super::core::{IndexPositions, SqliteCore, entry_of, read_meta, signed, unsigned};
use super::{history, versions};
use crate::path::RelPath;

/// A row with its content, or with the name of its body file.
struct StoredRow {
    entry: IndexEntry,
    meta: BlobMeta,
    file: Option<String>,
    content: Option<Vec<u8>>,
}

/// Reads a path: its current content, or the one of `version`.
pub(super) fn get(core: &SqliteCore, ns: &str, path: &str, version: Option<u64>) -> Result<GetOutcome, StoreError> {
    loop {
        let Some(row) = core.read(|db| find(db, ns, path, version))? else { return Ok(GetOutcome::Absent) };
        let StoredRow { entry, meta, file, content } = row;
        if entry.is_deleted {
            return Ok(GetOutcome::Tombstone(entry));
        }
        let body = match (content, file) {
            (Some(content), None) => BlobBody::Whole(Bytes::from(content)),
            (_, Some(file)) => match File::open(core.bodies.file(&file)) {
                Ok(open) => BlobBody::Pieces(pieces(Arc::new(open), entry.size)),
                // The row changed and its file was removed after it was read: read again.
                Err(e) if e.kind() == io::ErrorKind::NotFound && has_changed(core, ns, path, version, &file)? => {
                    continue;
                }
                Err(e) => return Err(StoreError::io(&core.bodies.file(&file), &e)),
            },
            (None, None) => return Err(StoreError::Database(format!("{path:?} has an entry but no content"))),
        };
        return Ok(GetOutcome::Found(StoredBlob { entry, meta, body }));
    }
}

/// True if the row no longer names `file`.
fn has_changed(core: &SqliteCore, ns: &str, path: &str, version: Option<u64>, file: &str) -> Result<bool, StoreError> {
    let now = core.read(|db| find(db, ns, path, version))?;
    Ok(now.is_none_or(|now| now.file.as_deref() != Some(file)))
}

const FIND: &str = "SELECT md5, size, is_deleted, version, cursor, meta, file, content \
                    FROM entry LEFT JOIN body ON body.id = entry.body WHERE ns = ? AND path = ?";
const FIND_EARLIER: &str = "SELECT md5, size, 0, version, 0, meta, file, content FROM earlier \
                            LEFT JOIN body ON body.id = earlier.body WHERE ns = ? AND path = ? AND version = ?";

fn find(db: &Connection, ns: &str, path: &str, version: Option<u64>) -> rusqlite::Result<Option<StoredRow>> {
    let stored = |row: &Row<'_>| {
        let meta = read_meta(&row.get::<_, String>(5)?);
        Ok(StoredRow { entry: entry_of(row)?, meta, file: row.get(6)?, content: row.get(7)? })
    };
    let now = db.prepare_cached(FIND)?.query_row([ns, path], stored).optional()?;
    let Some(version) = version else { return Ok(now) };
    if now.as_ref().is_some_and(|now| now.entry.version == version) {
        return Ok(now);
    }
    db.prepare_cached(FIND_EARLIER)?.query_row(params![ns, path, signed(version)], stored).optional()
}

/// Reads the positions of all indexes, at the start.
pub(super) fn read_positions(db: &Connection) -> rusqlite::Result<IndexPositions> {
    let meta = |key: &str| db.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get::<_, String>(0));
    let number = |key: &str| meta(key).map(|text| text.parse::<u64>().unwrap_or(0));
    let floor = versions::read_floor(db)?;
    // SQLite takes the bare column `version` from the row with the maximum.
    let mut rows = db.prepare("SELECT ns, MAX(cursor), version, SUM(size) FROM entry GROUP BY ns")?;
    let mut rows = rows.query([])?;
    let (mut last, mut bytes) = (HashMap::new(), HashMap::new());
    while let Some(row) = rows.next()? {
        let ns: String = row.get(0)?;
        last.insert(ns.clone(), (unsigned(row, 1)?, unsigned(row, 2)?));
        // A tombstone's size is 0.
        bytes.insert(ns, unsigned(row, 3)?);
    }
    let cursor = last.values().map(|(cursor, _): &(u64, u64)| *cursor).max().unwrap_or(0).max(floor);
    let (epoch, history) = (meta("epoch")?.into(), history::newest(db)?);
    Ok(IndexPositions { epoch, floor, history, created: number("created")?, cursor, last, bytes })
}

/// Reads the entries after the cursor `since`. `state` was read before.
pub(super) fn read_index(db: &Connection, ns: &str, since: u64, state: IndexState) -> rusqlite::Result<IndexSnapshot> {
    // One transaction, so that floor and entries match.
    let tx = db.unchecked_transaction()?;
    let floor = versions::read_floor(&tx)?;
    let mark =
        state.mark.map(|mark| IndexCursor { floor: mark.floor.max(floor), cursor: mark.cursor.max(floor), ..mark });
    let query = if since == 0 {
        "SELECT md5, size, is_deleted, version, cursor, path FROM entry WHERE ns = ? AND cursor > ?"
    } else {
        // The `+` makes SQLite use the index over cursors instead of names, since few entries are newer.
        "SELECT md5, size, is_deleted, version, cursor, path FROM entry WHERE +ns = ? AND cursor > ?"
    };
    let entries = tx
        .prepare_cached(query)?
        .query_map(params![ns, signed(since)], |row| Ok((row.get(5)?, entry_of(row)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(IndexSnapshot { state: IndexState { mark, ..state }, entries })
}

/// The size of each path in order; 0 if it is absent.
pub(super) fn sizes(db: &Connection, ns: &str, paths: &[RelPath]) -> rusqlite::Result<Vec<u64>> {
    let mut find = db.prepare_cached("SELECT size FROM entry WHERE ns = ? AND path = ?")?;
    let size = |path: &RelPath| find.query_row([ns, path.as_str()], |row| unsigned(row, 0)).optional();
    paths.iter().map(size).map(|size| size.map(Option::unwrap_or_default)).collect()
}

/// The body files that rows refer to.
pub(super) fn named_files(db: &Connection) -> rusqlite::Result<HashSet<String>> {
    db.prepare(
        "SELECT file FROM entry WHERE file IS NOT NULL UNION ALL SELECT file FROM earlier WHERE file IS NOT NULL",
    )?
    .query_map([], |r| r.get(0))?
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn statement_is_parsed_once_for_many_reads() {
        let dir = tempfile::tempdir().unwrap();
        schema::open_writer(dir.path(), None, 0).unwrap();
        let db = schema::open_reader(dir.path()).unwrap();
        for name in ["a", "b", "c"] {
            assert!(find(&db, "", name, Some(1)).unwrap().is_none());
        }
        for sql in [FIND, FIND_EARLIER] {
            let again = db.prepare_cached(sql).unwrap().get_status(rusqlite::StatementStatus::RePrepare);
            assert_eq!(again, 0, "{sql}");
        }
    }
}
