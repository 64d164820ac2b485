//! The store's history: a random id for each process that wrote, with the cursor before its first change.
//!
//! A database that is restored from a copy lacks the ids that began after the copy. It begins a new one with its next
//! write.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::super::new_id;
use super::core::{signed, unsigned};

/// A client that was away for more ids than this compares its whole folder.
const MAX_IDS: i64 = 4096;

/// Begins an id after `cursor`. Call it in the transaction of the first write, so that both are durable together.
pub(super) fn begin(db: &Connection, cursor: u64) -> rusqlite::Result<Arc<str>> {
    let id = new_id();
    db.execute("INSERT INTO history (id, since) VALUES (?, ?)", params![&*id, signed(cursor)])?;
    db.execute("DELETE FROM history WHERE n <= ?", [db.last_insert_rowid() - MAX_IDS])?;
    Ok(id)
}

/// The id that began last.
pub(super) fn newest(db: &Connection) -> rusqlite::Result<Option<Arc<str>>> {
    let newest = db.query_row("SELECT id FROM history ORDER BY n DESC LIMIT 1", [], |row| row.get::<_, String>(0));
    Ok(newest.optional()?.map(Into::into))
}

/// The last cursor under an id, which for the newest id is `now`. `None` if the id is unknown.
pub(super) fn last_cursor(db: &Connection, id: &str, now: u64) -> rusqlite::Result<Option<u64>> {
    let n: Option<i64> = db.query_row("SELECT n FROM history WHERE id = ?", [id], |row| row.get(0)).optional()?;
    let Some(n) = n else { return Ok(None) };
    let next = db.query_row("SELECT since FROM history WHERE n > ? ORDER BY n LIMIT 1", [n], |row| unsigned(row, 0));
    Ok(Some(next.optional()?.unwrap_or(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_ids_are_dropped() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(super::super::schema::HISTORY).unwrap();
        let first = begin(&db, 0).unwrap();
        let second = begin(&db, 7).unwrap();
        assert_eq!((last_cursor(&db, &first, 9).unwrap(), last_cursor(&db, &second, 9).unwrap()), (Some(7), Some(9)));
        for cursor in 9..8 + u64::try_from(MAX_IDS).unwrap() {
            begin(&db, cursor).unwrap();
        }
        assert_eq!(last_cursor(&db, &first, 9999).unwrap(), None);
        assert_eq!(last_cursor(&db, &second, 9999).unwrap(), Some(9));
        assert_eq!(db.query_row("SELECT COUNT(*) FROM history", [], |row| row.get::<_, i64>(0)).unwrap(), MAX_IDS);
    }
}
