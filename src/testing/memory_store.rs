//! [`MemoryStore`]: a store that keeps nothing across restarts, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::sync::broadcast;

use crate::path::RelPath;
use crate::store::body::{BodyContent, BodyDir};
use crate::store::{
    BACKLOG, BlobBody, BlobChange, BlobChanges, BlobMeta, BlobVersion, BodyWriter, DeleteOutcome, GetOutcome,
    ImportOutcome, IndexCursor, IndexEntry, IndexSnapshot, IndexState, PrivateRecord, PutOutcome, RecordStore,
    Retention, Store, StoreError, StoredBlob, SweepReport, WallClock, WriteCondition, lock, new_id, rules,
    strong_state, system_clock,
};

/// A path in a namespace.
type Name = (String, RelPath);

struct Row {
    version: BlobVersion,
    content: Bytes,
}

impl Row {
    fn version(&self) -> BlobVersion {
        BlobVersion { entry: IndexEntry { cursor: 0, ..self.version.entry }, meta: self.version.meta.clone() }
    }

    fn got(&self) -> GetOutcome {
        let BlobVersion { entry, meta } = self.version.clone();
        if entry.is_deleted {
            return GetOutcome::Tombstone(entry);
        }
        GetOutcome::Found(StoredBlob { entry, meta, body: BlobBody::Whole(self.content.clone()) })
    }
}

struct Rows {
    epoch: Arc<str>,
    created: u64,
    /// The last change of all namespaces.
    cursor: u64,
    /// The last change of each namespace, and its time.
    last: BTreeMap<String, (u64, u64)>,
    /// Tombstones up to this cursor may be gone.
    floor: u64,
    by_name: BTreeMap<Name, Row>,
    /// Earlier versions of the paths, oldest first, with the time of their end.
    earlier: BTreeMap<Name, Vec<(Row, u64)>>,
    records: BTreeMap<&'static str, PrivateRecord>,
}

impl Rows {
    fn state(&self, ns: &str) -> IndexState {
        let (cursor, modified) = self.last.get(ns).copied().unwrap_or((0, self.created));
        let cursor = cursor.max(self.floor);
        strong_state(IndexCursor { epoch: self.epoch.clone(), cursor, floor: self.floor }, modified, None)
    }

    fn held(&self, name: &Name) -> Option<IndexEntry> {
        self.by_name.get(name).map(|row| row.version.entry)
    }

    /// The versions of a path, the newest first.
    fn versions(&self, name: &Name) -> impl Iterator<Item = &Row> {
        let earlier = self.earlier.get(name).into_iter().flatten().rev().map(|(row, _)| row);
        self.by_name.get(name).into_iter().chain(earlier)
    }
}

/// A store in memory.
pub struct MemoryStore {
    rows: Mutex<Rows>,
    changes: broadcast::Sender<BlobChanges>,
    retention: Retention,
    clock: WallClock,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::with_clock(system_clock())
    }

    pub fn with_clock(clock: WallClock) -> Self {
        let rows = Rows {
            epoch: new_id(),
            created: clock(),
            cursor: 0,
            last: BTreeMap::new(),
            floor: 0,
            by_name: BTreeMap::new(),
            earlier: BTreeMap::new(),
            records: BTreeMap::new(),
        };
        Self { rows: Mutex::new(rows), changes: broadcast::channel(BACKLOG).0, retention: Retention::default(), clock }
    }

    /// Writes a version under the next cursor and notifies the subscribers. The lock on the rows keeps the order. With
    /// `keeps` the replaced content becomes a version.
    fn commit(
        &self,
        rows: &mut Rows,
        name: Name,
        mut version: BlobVersion,
        content: Bytes,
        keeps: impl Fn(&IndexEntry) -> bool,
    ) -> IndexEntry {
        rows.cursor += 1;
        version.entry.cursor = rows.cursor;
        let entry = version.entry;
        rows.last.insert(name.0.clone(), (entry.cursor, entry.version));
        let (ns, path) = name.clone();
        if let Some(old) = rows.by_name.insert(name.clone(), Row { version, content })
            && !old.version.entry.is_deleted
            && keeps(&old.version.entry)
        {
            let earlier = rows.earlier.entry(name).or_default();
            earlier.push((old, entry.version));
            let surplus = earlier.len().saturating_sub(self.retention.versions as usize);
            earlier.drain(..surplus);
        }
        // An error means that there are no subscribers.
        let _ = self.changes.send(Arc::new([BlobChange { cursor: entry.cursor, ns, path }]));
        entry
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

async fn bytes_of(content: BodyContent) -> Result<Bytes, StoreError> {
    match content {
        BodyContent::Inline(bytes) => Ok(bytes),
        BodyContent::File(file) => {
            let all = file.pieces().try_collect::<Vec<_>>().await.map_err(|e| StoreError::Database(e.to_string()))?;
            Ok(all.concat().into())
        }
    }
}

impl Store for MemoryStore {
    const STRONG: bool = true;

    fn new_body(&self) -> BodyWriter {
        BodyWriter::new(BodyDir::temporary("/tmp".into()))
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: WriteCondition,
        meta: BlobMeta,
        body: BodyWriter,
    ) -> Result<PutOutcome, StoreError> {
        let body = body.finish().await?;
        let content = bytes_of(body.content.clone()).await?;
        let name = (ns.to_owned(), path.clone());
        let mut rows = lock(&self.rows);
        let held = rows.held(&name);
        let past = rows.earlier.get(&name).and_then(|earlier| earlier.last()).map_or(0, |(_, until)| until + 1);
        let old = rows.by_name.get(&name).map(|row| (&row.version.entry, &row.version.meta));
        let Some(new) = rules::put(old, expect, &body, &meta, (self.clock)().max(past)) else {
            return Ok(PutOutcome::Mismatch(held));
        };
        // Writing the same content makes no new version.
        let entry = self.commit(&mut rows, name, new, content, |old| old.md5 != body.md5);
        Ok(rules::put_outcome(entry, held.as_ref()))
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        let name = (ns.to_owned(), path.clone());
        let mut rows = lock(&self.rows);
        Ok(match rules::delete(rows.held(&name), expect, &meta, (self.clock)()) {
            Ok(tombstone) => DeleteOutcome::Done(self.commit(&mut rows, name, tombstone, Bytes::new(), |_| true)),
            Err(refused) => refused,
        })
    }

    async fn read(&self, ns: &str, path: &RelPath, version: Option<u64>) -> Result<GetOutcome, StoreError> {
        let (rows, name) = (lock(&self.rows), (ns.to_owned(), path.clone()));
        let found = match version {
            Some(version) => rows.versions(&name).find(|row| row.version.entry.version == version),
            None => rows.by_name.get(&name),
        };
        Ok(found.map_or(GetOutcome::Absent, Row::got))
    }

    async fn index(&self, ns: &str, since: u64) -> Result<IndexSnapshot, StoreError> {
        let rows = lock(&self.rows);
        let entries = rows
            .by_name
            .iter()
            .filter(|((of, _), row)| of == ns && row.version.entry.cursor > since)
            .map(|((_, path), row)| (path.as_str().to_owned(), row.version.entry))
            .collect();
        Ok(IndexSnapshot { state: rows.state(ns), entries })
    }

    async fn state(&self, ns: &str) -> Result<IndexState, StoreError> {
        Ok(lock(&self.rows).state(ns))
    }

    fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.changes.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        Ok(lock(&self.rows).versions(&(ns.to_owned(), path.clone())).map(Row::version).collect())
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        Ok(lock(&self.rows).last.keys().cloned().collect())
    }

    async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<BodyWriter>,
    ) -> Result<ImportOutcome, StoreError> {
        let content = match body {
            Some(body) => bytes_of(body.finish().await?.content).await?,
            None => Bytes::new(),
        };
        let name = (ns.to_owned(), path.clone());
        let mut rows = lock(&self.rows);
        if !rules::imports(&version, rows.held(&name).as_ref()) {
            return Ok(ImportOutcome::Held);
        }
        self.commit(&mut rows, name, version, content, |_| true);
        Ok(ImportOutcome::Written)
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        let now = (self.clock)();
        let due: Vec<(String, RelPath, u64)> = {
            let rows = lock(&self.rows);
            let due = rows.by_name.iter().filter(|(_, row)| {
                !row.version.entry.is_deleted && row.version.meta.expires.is_some_and(|at| at <= now)
            });
            due.map(|((ns, path), row)| (ns.clone(), path.clone(), row.version.entry.version)).collect()
        };
        let mut expired = 0;
        for (ns, path, version) in due {
            let deleted = self.delete(&ns, &path, Some(WriteCondition::Version(version)), BlobMeta::default()).await?;
            expired += usize::from(matches!(deleted, DeleteOutcome::Done(_)));
        }
        Ok(expired)
    }

    async fn remove_old(&self) -> Result<SweepReport, StoreError> {
        let (mut swept, now) = (SweepReport::default(), (self.clock)());
        let mut rows = lock(&self.rows);
        let limit = rules::time_before(now, self.retention.age);
        for earlier in rows.earlier.values_mut() {
            let all = earlier.len();
            let ageless = earlier.split_off(all.saturating_sub(self.retention.ageless as usize));
            earlier.retain(|(_, until)| *until >= limit);
            earlier.extend(ageless);
            swept.versions += all - earlier.len();
        }
        rows.earlier.retain(|_, earlier| !earlier.is_empty());
        let limit = rules::time_before(now, self.retention.tombstones);
        let gone = |row: &Row| row.version.entry.is_deleted && row.version.entry.version < limit;
        let newest = rows.by_name.values().filter(|row| gone(row)).map(|row| row.version.entry.cursor).max();
        let all = rows.by_name.len();
        rows.by_name.retain(|_, row| !gone(row));
        swept.tombstones = all - rows.by_name.len();
        rows.floor = rows.floor.max(newest.unwrap_or(0));
        Ok(swept)
    }
}

impl RecordStore for MemoryStore {
    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        Ok(lock(&self.rows).records.get(name).cloned())
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let mut rows = lock(&self.rows);
        let held = rows.records.get(name).map(|record| record.tag.clone());
        if held.as_deref() != expected {
            return Ok(false);
        }
        let next = held.and_then(|tag| tag.parse::<u64>().ok()).unwrap_or(0) + 1;
        rows.records.insert(name, PrivateRecord { tag: next.to_string(), content });
        Ok(true)
    }
}
