//! The store's history: a random id for each process that wrote, with the cursor after which it began. A copy that is
//! put back in place lacks the ids that came after it, and begins another with its next write.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::super::new_id;
use super::writer::{signed, unsigned};

/// Ids kept. A client that was away for more has its folder compared anew.
const KEPT: i64 = 4096;

/// Makes the table. An older memsync that opens the store leaves it alone, so the format stays what it is.
pub fn create(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS history (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, since INTEGER NOT NULL)",
    )
}

/// Begins an id in the transaction of the first write after `cursor`, so that it is durable when that write is
/// acknowledged.
pub fn begin(db: &Connection, cursor: u64) -> rusqlite::Result<Arc<str>> {
    let id = new_id();
    db.execute("INSERT INTO history (id, since) VALUES (?, ?)", rusqlite::params![&*id, signed(cursor)])?;
    db.execute("DELETE FROM history WHERE n <= ?", [db.last_insert_rowid() - KEPT])?;
    Ok(id)
}

/// The id that began last.
pub fn newest(db: &Connection) -> rusqlite::Result<Option<Arc<str>>> {
    let newest = db.query_row("SELECT id FROM history ORDER BY n DESC LIMIT 1", [], |row| row.get::<_, String>(0));
    Ok(newest.optional()?.map(Into::into))
}

/// The last cursor under an id; `now`, where it is the newest. `None`: the store has no such id.
pub fn last_cursor(db: &Connection, id: &str, now: u64) -> rusqlite::Result<Option<u64>> {
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
        create(&db).unwrap();
        let first = begin(&db, 0).unwrap();
        let second = begin(&db, 7).unwrap();
        assert_eq!((last_cursor(&db, &first, 9).unwrap(), last_cursor(&db, &second, 9).unwrap()), (Some(7), Some(9)));
        for cursor in 9..8 + u64::try_from(KEPT).unwrap() {
            begin(&db, cursor).unwrap();
        }
        assert_eq!(last_cursor(&db, &first, 9999).unwrap(), None);
        assert_eq!(last_cursor(&db, &second, 9999).unwrap(), Some(9));
        assert_eq!(db.query_row("SELECT COUNT(*) FROM history", [], |row| row.get::<_, i64>(0)).unwrap(), KEPT);
    }
}
