//! The index object: its JSON is that of the wire. What another proxy wrote into it and we do not understand is
//! kept as it is.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value};

use super::history::History;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::WireEntry;

/// Where the history stands in the JSON.
const HISTORY: &str = "memsync_history";

/// What is known of one path: by the blob, or by the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Of the content; of a tombstone, of what was deleted.
    pub md5: Md5,
    /// Bytes; 0 for a tombstone.
    pub size: u64,
    pub is_deleted: bool,
    /// Milliseconds since the epoch; grows with every write of a path.
    pub version: u64,
}

impl Row {
    /// Whether both say the same of the content. Times differ in proxies that keep them by the second.
    pub fn agrees(&self, other: &Self) -> bool {
        (self.md5, self.is_deleted) == (other.md5, other.is_deleted)
    }
}

/// An index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Document {
    pub rows: BTreeMap<RelPath, Row>,
    /// Entries that are none of ours, of names that `rows` does not have.
    strange: Map<String, Value>,
    /// Milliseconds since the epoch; no two writes of one index have the same.
    pub modified: u64,
    pub history: History,
}

impl Document {
    /// # Errors
    /// When it is no index at all.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
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
            match (RelPath::parse(&name), WireEntry::deserialize_from(&value)) {
                (Ok(path), Some(entry)) => {
                    let version = entry.version.unwrap_or_else(|| milliseconds(&entry.last_modified));
                    let size = if entry.is_deleted { 0 } else { entry.size };
                    let row = Row { md5: entry.md5, size, is_deleted: entry.is_deleted, version };
                    document.rows.insert(path, row);
                }
                _ => {
                    document.strange.insert(name, value);
                }
            }
        }
        Ok(document)
    }

    /// Puts `row` at `path`, or takes out what is there. A row takes the place of an entry that is none of ours: of two
    /// with one name a reader takes the last, whichever that is.
    pub fn set(&mut self, path: RelPath, row: Option<Row>) {
        match row {
            Some(row) => {
                self.strange.remove(path.as_str());
                self.rows.insert(path, row);
            }
            None => drop(self.rows.remove(&path)),
        }
    }

    /// The index as it is kept.
    ///
    /// # Errors
    /// As `serde_json` has it; nothing in it can be refused.
    pub fn render(&self) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(Serialize)]
        struct Out<'a> {
            files: Files<'a>,
            index_last_modified: String,
            index_version: u64,
            #[serde(skip_serializing_if = "History::is_empty")]
            memsync_history: &'a History,
        }
        serde_json::to_vec(&Out {
            files: Files(self),
            index_last_modified: rfc3339(self.modified),
            index_version: self.modified,
            memsync_history: &self.history,
        })
    }
}

struct Files<'a>(&'a Document);

impl Serialize for Files<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Document { rows, strange, .. } = self.0;
        let mut map = serializer.serialize_map(Some(rows.len() + strange.len()))?;
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
        for (name, value) in strange {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

trait FromValue: Sized {
    fn deserialize_from(value: &Value) -> Option<Self>;
}

impl FromValue for WireEntry {
    fn deserialize_from(value: &Value) -> Option<Self> {
        serde::Deserialize::deserialize(value).ok()
    }
}

/// RFC 3339, UTC, milliseconds.
fn rfc3339(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX);
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Milliseconds since the epoch of an RFC 3339 time; 0 for what is none.
fn milliseconds(text: &str) -> u64 {
    let zoned = text.parse::<Timestamp>();
    // Some proxies leave out the zone; they all mean UTC.
    let time = zoned.or_else(|_| format!("{text}Z").parse::<Timestamp>());
    time.map_or(0, |time| u64::try_from(time.as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_proxys_index_is_read_and_kept() {
        let theirs = br#"{"files": {
            "topics/ai.md": {"md5": "0cc175b9c0f1b6a831c399e269772661", "last_modified": "2024-01-15T10:30:00.123Z",
                             "size": 1, "is_deleted": false},
            "old.md": {"md5": "0cc175b9c0f1b6a831c399e269772661", "last_modified": "2024-01-15T10:30:00.500000",
                       "size": 7, "is_deleted": true, "version": 5},
            "../evil": {"md5": "0cc175b9c0f1b6a831c399e269772661", "size": 1},
            "odd.md": {"md5": "none", "note": [1]}},
          "index_last_modified": "2024-01-15T11:00:00.456Z"}"#;
        let read = Document::parse(theirs).unwrap();
        let md5 = Md5::of(b"a");
        let row = |name: &str| read.rows[&RelPath::parse(name).unwrap()];
        assert_eq!(row("topics/ai.md"), Row { md5, size: 1, is_deleted: false, version: 1_705_314_600_123 });
        assert_eq!(row("old.md"), Row { md5, size: 0, is_deleted: true, version: 5 });
        assert_eq!((read.rows.len(), read.strange.len()), (2, 2));
        assert_eq!(read.modified, 1_705_316_400_456);
        let again = read.render().unwrap();
        assert_eq!(Document::parse(&again).unwrap(), read);
        let json: Value = serde_json::from_slice(&again).unwrap();
        assert_eq!(json["files"]["odd.md"]["note"][0], 1);
        assert_eq!(json["files"]["topics/ai.md"]["last_modified"], "2024-01-15T10:30:00.123Z");
        assert_eq!(json["index_last_modified"], "2024-01-15T11:00:00.456Z");
    }

    #[test]
    fn a_row_takes_the_place_of_an_entry_that_is_none_of_ours() {
        let mut read = Document::parse(br#"{"files": {"a": "theirs", "b": "theirs"}}"#).unwrap();
        let (a, row) =
            (RelPath::parse("a").unwrap(), Row { md5: Md5::of(b"a"), size: 1, is_deleted: false, version: 1 });
        read.set(a.clone(), Some(row));
        let again = Document::parse(&read.render().unwrap()).unwrap();
        assert_eq!((&again.rows[&a], again.strange.keys().map(String::as_str).collect::<Vec<_>>()), (&row, vec!["b"]));
        read.set(a, None);
        assert!(read.rows.is_empty() && read.strange.len() == 1, "it does not come back");
    }

    #[test]
    fn what_is_no_index_is_not_taken_for_an_empty_one() {
        for bad in ["", "{", "[]", "{}", r#"{"files": []}"#, "null"] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(Document::parse(br#"{"files": {}}"#).unwrap(), Document::default());
    }
}
