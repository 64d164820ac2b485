//! The content of an index object. Its JSON is that of the wire. Entries of other proxies that memsync cannot read stay as
//! they are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::{IndexEntry, new_id};
use crate::path::RelPath;
use crate::protocol::{HistoryPoint, WireEntry, rfc3339};

/// The JSON field with the history.
const HISTORY: &str = "memsync_history";
/// Limit on the ids of a history.
const MAX_IDS: usize = 256;

/// A parsed index.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct IndexDocument {
    pub(super) entries: BTreeMap<RelPath, IndexEntry>,
    /// Unreadable entries, whose names `entries` does not have.
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
                    let WireEntry { md5, is_deleted, .. } = entry;
                    document.entries.insert(path, IndexEntry { md5, size, is_deleted, version, cursor: 0 });
                }
                _ => {
                    document.unreadable.insert(name, value);
                }
            }
        }
        Ok(document)
    }

    /// Sets or removes the entry at `path`. An entry also replaces an unreadable one, since two fields of one name would be
    /// ambiguous.
    pub(super) fn set(&mut self, path: RelPath, entry: Option<IndexEntry>) {
        match entry {
            Some(entry) => {
                self.unreadable.remove(path.as_str());
                self.entries.insert(path, entry);
            }
            None => drop(self.entries.remove(&path)),
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
        let IndexDocument { entries, unreadable, .. } = self.0;
        let mut map = serializer.serialize_map(Some(entries.len() + unreadable.len()))?;
        for (path, entry) in entries {
            let IndexEntry { md5, size, is_deleted, version, .. } = *entry;
            let last_modified = rfc3339(version);
            let entry = WireEntry { md5, last_modified, size, is_deleted, version: Some(version) };
            map.serialize_entry(path.as_str(), &entry)?;
        }
        for (name, value) in unreadable {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The history of an index: a random id for each proxy that wrote it, with the time of the index before its first write. An
/// object that is restored from an earlier version lacks the ids that began later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexHistory {
    /// Names the whole history. A proxy without histories drops it, and the next history gets another name.
    name: String,
    /// Each id with the time of the index that it began after, as
    /// [`IndexDocument::modified`].
    ids: Vec<(String, u64)>,
}

impl IndexHistory {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Begins an id after the index of the time `since`.
    pub(super) fn begin(&mut self, since: u64) {
        if self.ids.is_empty() {
            self.name = new_id().to_string();
        }
        self.ids.push((new_id().to_string(), since));
        let surplus = self.ids.len().saturating_sub(MAX_IDS);
        self.ids.drain(..surplus);
    }

    /// The history point of an index of the time `modified`.
    pub(super) fn point(&self, modified: u64) -> Option<HistoryPoint> {
        let (id, _) = self.ids.last()?;
        Some(HistoryPoint { id: format!("{}.{id}", self.name), cursor: modified })
    }

    /// True if the history up to the time `modified` contains `point`, or belongs to another history.
    pub(super) fn contains_point(&self, point: &HistoryPoint, modified: u64) -> bool {
        let Some((name, id)) = point.id.split_once('.') else { return true };
        if name != self.name {
            return true;
        }
        let Some(at) = self.ids.iter().position(|(known, _)| known == id) else { return false };
        point.cursor <= self.ids.get(at + 1).map_or(modified, |(_, since)| *since)
    }
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
    use crate::digest::Md5;

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
        let entry = |name: &str| read.entries[&RelPath::parse(name).unwrap()];
        let (live, at) = (IndexEntry { md5, size: 1, is_deleted: false, version: 0, cursor: 0 }, 1_705_314_600_123);
        assert_eq!(entry("topics/ai.md"), IndexEntry { version: at, ..live });
        assert_eq!(entry("old.md"), IndexEntry { size: 0, is_deleted: true, version: 5, ..live });
        assert_eq!((read.entries.len(), read.unreadable.len()), (2, 2));
        assert_eq!(read.modified, 1_705_316_400_456);
        let again = read.render().unwrap();
        assert_eq!(IndexDocument::parse(&again).unwrap(), read);
        let json: Value = serde_json::from_slice(&again).unwrap();
        assert_eq!(json["files"]["odd.md"]["note"][0], 1);
        assert_eq!(json["files"]["topics/ai.md"]["last_modified"], "2024-01-15T10:30:00.123Z");
        assert_eq!(json["index_last_modified"], "2024-01-15T11:00:00.456Z");
    }

    #[test]
    fn entry_replaces_an_unreadable_one() {
        let mut read = IndexDocument::parse(br#"{"files": {"a": "theirs", "b": "theirs"}}"#).unwrap();
        let a = RelPath::parse("a").unwrap();
        let entry = IndexEntry { md5: Md5::of(b"a"), size: 1, is_deleted: false, version: 1, cursor: 0 };
        read.set(a.clone(), Some(entry));
        let again = IndexDocument::parse(&read.render().unwrap()).unwrap();
        assert_eq!(
            (&again.entries[&a], again.unreadable.keys().map(String::as_str).collect::<Vec<_>>()),
            (&entry, vec!["b"])
        );
        read.set(a, None);
        assert!(read.entries.is_empty() && read.unreadable.len() == 1, "the unreadable entry does not come back");
    }

    #[test]
    fn invalid_index_is_refused() {
        for bad in ["", "{", "[]", "{}", r#"{"files": []}"#, "null"] {
            assert!(IndexDocument::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(IndexDocument::parse(br#"{"files": {}}"#).unwrap(), IndexDocument::default());
    }

    #[test]
    fn history_contains_only_its_own_points() {
        let mut history = IndexHistory::default();
        history.begin(0);
        let first = history.point(5).unwrap();
        let copy = history.clone();
        history.begin(7);
        let second = history.point(9).unwrap();
        assert!(history.contains_point(&first, 9) && history.contains_point(&second, 9));
        assert!(
            !history.contains_point(&HistoryPoint { cursor: 8, ..first.clone() }, 9),
            "the next id began before that point"
        );
        assert!(!history.contains_point(&second, 8));
        assert!(!copy.contains_point(&second, 9), "the copy ends before that point");
        let mut anew = IndexHistory::default();
        assert!(anew.contains_point(&second, 1) && anew.point(1).is_none(), "an empty history contains every point");
        anew.begin(0);
        assert!(anew.contains_point(&second, 1), "another history says nothing about the point");
    }
}
