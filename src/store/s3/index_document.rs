//! The content of an index object. Its JSON is that of the wire. Entries of other proxies that memsync cannot read stay as
//! they are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::index_history::IndexHistory;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::WireEntry;

/// The JSON field with the history.
const HISTORY: &str = "memsync_history";

/// The state of a path, as its blob or its index entry has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobRow {
    /// MD5 of the content. A tombstone has the MD5 of the deleted content.
    pub(super) md5: Md5,
    /// Bytes; 0 for a tombstone.
    pub(super) size: u64,
    pub(super) is_deleted: bool,
    /// Milliseconds since the epoch. Grows with every write of the path.
    pub(super) version: u64,
}

impl BlobRow {
    /// True if both have the same content. Versions may differ, since some proxies keep only seconds.
    pub(super) fn has_content_of(&self, other: &Self) -> bool {
        (self.md5, self.is_deleted) == (other.md5, other.is_deleted)
    }
}

/// A parsed index.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct IndexDocument {
    pub(super) rows: BTreeMap<RelPath, BlobRow>,
    /// Unreadable entries, whose names `rows` does not have.
    unreadable: Map<String, Value>,
    /// Milliseconds since the epoch. Every write of an index has another value.
    pub(super) modified: u64,
    pub(super) history: IndexHistory,
}

impl IndexDocument {
    /// Parses the JSON of an index. Fails if it has no `files`.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let Value::Object(mut top) = serde_json::from_slice(json).map_err(|e| e.to_string())? else {
            return Err("it is no JSON object".to_owned());
        };
        let files = match top.remove("files") {
            Some(Value::Object(files)) => files,
            Some(_) => return Err("its `files` is no object".to_owned()),
            None => return Err("it has no `files`".to_owned()),
        };
        let written = top.get("index_last_modified").and_then(Value::as_str).map_or(0, milliseconds);
        let version = top.get("index_version").and_then(Value::as_u64).unwrap_or(0);
        let history = top.remove(HISTORY).and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default();
        let mut document = Self { modified: written.max(version), history, ..Self::default() };
        for (name, value) in files {
            match (RelPath::parse(&name), WireEntry::deserialize(&value).ok()) {
                (Ok(path), Some(entry)) => {
                    let version = entry.version.unwrap_or_else(|| milliseconds(&entry.last_modified));
                    let size = if entry.is_deleted { 0 } else { entry.size };
                    let row = BlobRow { md5: entry.md5, size, is_deleted: entry.is_deleted, version };
                    document.rows.insert(path, row);
                }
                _ => {
                    document.unreadable.insert(name, value);
                }
            }
        }
        Ok(document)
    }

    /// Sets or removes the row at `path`. A row also replaces an unreadable entry, since two fields of one name would be
    /// ambiguous.
    pub(super) fn set(&mut self, path: RelPath, row: Option<BlobRow>) {
        match row {
            Some(row) => {
                self.unreadable.remove(path.as_str());
                self.rows.insert(path, row);
            }
            None => drop(self.rows.remove(&path)),
        }
    }

    /// The JSON of the index.
    pub(super) fn render(&self) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(Serialize)]
        struct StoredIndexJson<'a> {
            files: IndexFilesJson<'a>,
            index_last_modified: String,
            index_version: u64,
            #[serde(skip_serializing_if = "IndexHistory::is_empty")]
            memsync_history: &'a IndexHistory,
        }
        serde_json::to_vec(&StoredIndexJson {
            files: IndexFilesJson(self),
            index_last_modified: rfc3339(self.modified),
            index_version: self.modified,
            memsync_history: &self.history,
        })
    }
}

struct IndexFilesJson<'a>(&'a IndexDocument);

impl Serialize for IndexFilesJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let IndexDocument { rows, unreadable, .. } = self.0;
        let mut map = serializer.serialize_map(Some(rows.len() + unreadable.len()))?;
        for (path, row) in rows {
            map.serialize_entry(
                path.as_str(),
                &WireEntry {
                    md5: row.md5,
                    last_modified: rfc3339(row.version),
                    size: row.size,
                    is_deleted: row.is_deleted,
                    version: Some(row.version),
                },
            )?;
        }
        for (name, value) in unreadable {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// RFC 3339, UTC, milliseconds.
fn rfc3339(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX);
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Milliseconds since the epoch of an RFC 3339 time; 0 if it is invalid.
fn milliseconds(text: &str) -> u64 {
    let zoned = text.parse::<Timestamp>();
    // Some proxies leave out the zone and mean UTC.
    let time = zoned.or_else(|_| format!("{text}Z").parse::<Timestamp>());
    time.map_or(0, |time| u64::try_from(time.as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_entries_of_another_proxy_are_kept() {
        let theirs = br#"{"files": {
            "topics/ai.md": {"md5": "0cc175b9c0f1b6a831c399e269772661", "last_modified": "2024-01-15T10:30:00.123Z",
                             "size": 1, "is_deleted": false},
            "old.md": {"md5": "0cc175b9c0f1b6a831c399e269772661", "last_modified": "2024-01-15T10:30:00.500000",
                       "size": 7, "is_deleted": true, "version": 5},
            "../evil": {"md5": "0cc175b9c0f1b6a831c399e269772661", "size": 1},
            "odd.md": {"md5": "none", "note": [1]}},
          "index_last_modified": "2024-01-15T11:00:00.456Z"}"#;
        let read = IndexDocument::parse(theirs).unwrap();
        let md5 = Md5::of(b"a");
        let row = |name: &str| read.rows[&RelPath::parse(name).unwrap()];
        assert_eq!(row("topics/ai.md"), BlobRow { md5, size: 1, is_deleted: false, version: 1_705_314_600_123 });
        assert_eq!(row("old.md"), BlobRow { md5, size: 0, is_deleted: true, version: 5 });
        assert_eq!((read.rows.len(), read.unreadable.len()), (2, 2));
        assert_eq!(read.modified, 1_705_316_400_456);
        let again = read.render().unwrap();
        assert_eq!(IndexDocument::parse(&again).unwrap(), read);
        let json: Value = serde_json::from_slice(&again).unwrap();
        assert_eq!(json["files"]["odd.md"]["note"][0], 1);
        assert_eq!(json["files"]["topics/ai.md"]["last_modified"], "2024-01-15T10:30:00.123Z");
        assert_eq!(json["index_last_modified"], "2024-01-15T11:00:00.456Z");
    }

    #[test]
    fn row_replaces_an_unreadable_entry() {
        let mut read = IndexDocument::parse(br#"{"files": {"a": "theirs", "b": "theirs"}}"#).unwrap();
        let (a, row) =
            (RelPath::parse("a").unwrap(), BlobRow { md5: Md5::of(b"a"), size: 1, is_deleted: false, version: 1 });
        read.set(a.clone(), Some(row));
        let again = IndexDocument::parse(&read.render().unwrap()).unwrap();
        assert_eq!(
            (&again.rows[&a], again.unreadable.keys().map(String::as_str).collect::<Vec<_>>()),
            (&row, vec!["b"])
        );
        read.set(a, None);
        assert!(read.rows.is_empty() && read.unreadable.len() == 1, "the unreadable entry does not come back");
    }

    #[test]
    fn invalid_index_is_refused() {
        for bad in ["", "{", "[]", "{}", r#"{"files": []}"#, "null"] {
            assert!(IndexDocument::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(IndexDocument::parse(br#"{"files": {}}"#).unwrap(), IndexDocument::default());
    }
}
