//! Conversion between table rows and the store's types.

use rusqlite::Row;

use super::super::{BlobMeta, IndexEntry};
use crate::digest::Md5;

/// The entry in the first five columns: md5, size, is_deleted, version, cursor.
pub(super) fn entry_of(row: &Row<'_>) -> rusqlite::Result<IndexEntry> {
    Ok(IndexEntry {
        md5: Md5::from_bytes(row.get(0)?),
        size: unsigned(row, 1)?,
        is_deleted: row.get(2)?,
        version: unsigned(row, 3)?,
        cursor: unsigned(row, 4)?,
    })
}

/// Metadata as JSON; empty for empty metadata.
pub(super) fn meta_text(meta: &BlobMeta) -> String {
    if *meta == BlobMeta::default() {
        return String::new();
    }
    // Strings and numbers always serialize.
    serde_json::to_string(meta).unwrap_or_default()
}

/// Reads [`meta_text`]. Unreadable metadata counts as empty, because no decision depends on it.
pub(super) fn read_meta(text: &str) -> BlobMeta {
    serde_json::from_str(text).unwrap_or_default()
}

/// Converts to SQLite's signed integers. Stored numbers are far below the limit; a client's cursor may be above it.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A column that is never negative.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let n: i64 = row.get(column)?;
    u64::try_from(n).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, n))
}
