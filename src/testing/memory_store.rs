//! [`MemoryStore`]: a store that keeps nothing across restarts, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::broadcast;

use crate::digest::Md5;
use crate::path::RelPath;
use crate::store::{
    BACKLOG, BlobBody, BlobChange, BlobChanges, BlobMeta, BlobVersion, BodyWriter, DeleteOutcome, GetOutcome,
    ImportOutcome, IndexCursor, IndexEntry, IndexSnapshot, IndexState, PrivateRecord, PutOutcome, Retention, Store,
    StoreError, StoredBlob, SweepReport, WallClock, WriteCondition, new_id, next_version, strong_state, system_clock,
};

struct Row {
    entry: IndexEntry,
    meta: BlobMeta,
    content: Bytes,
}

impl Row {
    fn got(&self) -> GetOutcome {
        if self.entry.is_deleted {
            return GetOutcome::Tombstone(self.entry);
        }
        GetOutcome::Found(StoredBlob {
            entry: self.entry,
            meta: self.meta.clone(),
            body: BlobBody::Whole(self.content.clone()),
        })
    }

    fn version(&self) -> BlobVersion {
        let IndexEntry { md5, size, is_deleted, version, .. } = self.entry;
        BlobVersion { version, md5, size, is_deleted, meta: self.meta.clone() }
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
    by_name: BTreeMap<(String, RelPath), Row>,
    /// Earlier versions of the paths, oldest first, with the time of their end.
    earlier: BTreeMap<(String, RelPath), Vec<(Row, u64)>>,
    records: BTreeMap<&'static str, PrivateRecord>,
}

impl Rows {
    fn state(&self, ns: &str) -> IndexState {
        let (cursor, modified) = self.last.get(ns).copied().unwrap_or((0, self.created));
        let cursor = cursor.max(self.floor);
        strong_state(IndexCursor { epoch: self.epoch.clone(), cursor, floor: self.floor }, modified, None)
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

    fn lock(&self) -> MutexGuard<'_, Rows> {
        // No method leaves the rows half changed, so they are intact after a panic.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a row under the next cursor and notifies the subscribers. The lock on the rows keeps the order. With
    /// `keeps` the replaced content becomes a version.
    fn commit(
        &self,
        rows: &mut Rows,
        ns: &str,
        path: &RelPath,
        mut row: Row,
        keeps: impl Fn(&IndexEntry) -> bool,
    ) -> IndexEntry {
        rows.cursor += 1;
        row.entry.cursor = rows.cursor;
        let entry = row.entry;
        rows.last.insert(ns.to_owned(), (entry.cursor, entry.version));
        let name = (ns.to_owned(), path.clone());
        if let Some(old) = rows.by_name.insert(name.clone(), row)
            && !old.entry.is_deleted
            && keeps(&old.entry)
        {
            let earlier = rows.earlier.entry(name).or_default();
            earlier.push((old, entry.version));
            let surplus = earlier.len().saturating_sub(self.retention.versions as usize);
            earlier.drain(..surplus);
        }
        let change = BlobChange { cursor: entry.cursor, ns: ns.to_owned(), path: path.clone() };
        // An error means that there are no subscribers.
        let _ = self.changes.send(Arc::new([change]));
        entry
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

/// A body collected in memory.
#[derive(Default)]
pub struct MemoryBody(BytesMut);

impl BodyWriter for MemoryBody {
    async fn push(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.0.extend_from_slice(&piece);
        Ok(())
    }
}

impl Store for MemoryStore {
    const STRONG: bool = true;
    type BodyWriter = MemoryBody;

    fn new_body(&self) -> MemoryBody {
        MemoryBody::default()
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: WriteCondition,
        meta: BlobMeta,
        body: MemoryBody,
    ) -> Result<PutOutcome, StoreError> {
        let content = body.0.freeze();
        let md5 = Md5::of(&content);
        let mut rows = self.lock();
        let old = rows.by_name.get(&(ns.to_owned(), path.clone()));
        let held = old.map(|row| row.entry);
        if !expect.admits(held.as_ref()) {
            return Ok(PutOutcome::Mismatch(held));
        }
        let meta = match old {
            Some(old) if !old.entry.is_deleted => meta.inherit(&old.meta),
            _ => meta,
        };
        let past = rows.earlier.get(&(ns.to_owned(), path.clone())).and_then(|earlier| earlier.last());
        let past = past.map_or(0, |(_, until)| until + 1);
        let version = next_version((self.clock)(), held.as_ref()).max(past);
        let entry = IndexEntry { md5, size: content.len() as u64, is_deleted: false, version, cursor: 0 };
        let row = Row { entry, meta, content };
        // Writing the same content makes no new version.
        let entry = self.commit(&mut rows, ns, path, row, |old| old.md5 != md5);
        Ok(if held.is_some_and(|e| !e.is_deleted) { PutOutcome::Updated(entry) } else { PutOutcome::Created(entry) })
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        let mut rows = self.lock();
        let held = match rows.by_name.get(&(ns.to_owned(), path.clone())) {
            None => return Ok(DeleteOutcome::Absent),
            Some(row) if row.entry.is_deleted => return Ok(DeleteOutcome::Tombstone(row.entry)),
            Some(row) if expect.is_some_and(|e| !e.admits(Some(&row.entry))) => {
                return Ok(DeleteOutcome::Mismatch(row.entry));
            }
            Some(row) => row.entry,
        };
        let version = next_version((self.clock)(), Some(&held));
        let entry = IndexEntry { size: 0, is_deleted: true, version, ..held };
        let row = Row { entry, meta: meta.for_tombstone(), content: Bytes::new() };
        Ok(DeleteOutcome::Done(self.commit(&mut rows, ns, path, row, |_| true)))
    }

    async fn get(&self, ns: &str, path: &RelPath) -> Result<GetOutcome, StoreError> {
        Ok(self.lock().by_name.get(&(ns.to_owned(), path.clone())).map_or(GetOutcome::Absent, Row::got))
    }

    async fn index(&self, ns: &str, since: u64) -> Result<IndexSnapshot, StoreError> {
        let rows = self.lock();
        let entries = rows
            .by_name
            .iter()
            .filter(|((of, _), row)| of == ns && row.entry.cursor > since)
            .map(|((_, path), row)| (path.as_str().to_owned(), row.entry))
            .collect();
        Ok(IndexSnapshot { state: rows.state(ns), entries })
    }

    async fn state(&self, ns: &str) -> Result<IndexState, StoreError> {
        Ok(self.lock().state(ns))
    }

    fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.changes.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        Ok(self.lock().records.get(name).cloned())
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let mut rows = self.lock();
        let held = rows.records.get(name).map(|record| record.tag.clone());
        if held.as_deref() != expected {
            return Ok(false);
        }
        let next = held.and_then(|tag| tag.parse::<u64>().ok()).unwrap_or(0) + 1;
        rows.records.insert(name, PrivateRecord { tag: next.to_string(), content });
        Ok(true)
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        let rows = self.lock();
        let name = (ns.to_owned(), path.clone());
        let earlier = rows.earlier.get(&name).into_iter().flatten().map(|(row, _)| row);
        let mut all: Vec<BlobVersion> = earlier.chain(rows.by_name.get(&name)).map(Row::version).collect();
        all.reverse();
        Ok(all)
    }

    async fn get_version(&self, ns: &str, path: &RelPath, version: u64) -> Result<GetOutcome, StoreError> {
        let rows = self.lock();
        let name = (ns.to_owned(), path.clone());
        let earlier = rows.earlier.get(&name).into_iter().flatten().map(|(row, _)| row);
        let found = earlier.chain(rows.by_name.get(&name)).find(|row| row.entry.version == version);
        Ok(found.map_or(GetOutcome::Absent, Row::got))
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.lock().last.keys().cloned().collect())
    }

    async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<MemoryBody>,
    ) -> Result<ImportOutcome, StoreError> {
        let mut rows = self.lock();
        let held = rows.by_name.get(&(ns.to_owned(), path.clone())).map(|row| row.entry);
        if held.is_some_and(|held| held.version >= version.version) {
            return Ok(ImportOutcome::Held);
        }
        let BlobVersion { version, md5, size, is_deleted, meta } = version;
        let entry = IndexEntry { md5, size, is_deleted, version, cursor: 0 };
        let content = body.map(|body| body.0.freeze()).unwrap_or_default();
        self.commit(&mut rows, ns, path, Row { entry, meta, content }, |_| true);
        Ok(ImportOutcome::Written)
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        let now = (self.clock)();
        let due: Vec<(String, RelPath, u64)> = {
            let rows = self.lock();
            let due = rows
                .by_name
                .iter()
                .filter(|(_, row)| !row.entry.is_deleted && row.meta.expires.is_some_and(|at| at <= now));
            due.map(|((ns, path), row)| (ns.clone(), path.clone(), row.entry.version)).collect()
        };
        let mut expired = 0;
        for (ns, path, version) in due {
            let deleted = self.delete(&ns, &path, Some(WriteCondition::Version(version)), BlobMeta::default()).await?;
            expired += usize::from(matches!(deleted, DeleteOutcome::Done(_)));
        }
        Ok(expired)
    }

    async fn sweep(&self) -> Result<SweepReport, StoreError> {
        let mut swept = SweepReport { expired: self.expire().await?, ..SweepReport::default() };
        let now = (self.clock)();
        let before = |age: Duration| now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let mut rows = self.lock();
        let limit = before(self.retention.age);
        for earlier in rows.earlier.values_mut() {
            let all = earlier.len();
            let ageless = earlier.split_off(all.saturating_sub(self.retention.ageless as usize));
            earlier.retain(|(_, until)| *until >= limit);
            earlier.extend(ageless);
            swept.versions += all - earlier.len();
        }
        rows.earlier.retain(|_, earlier| !earlier.is_empty());
        let limit = before(self.retention.tombstones);
        let gone = |row: &Row| row.entry.is_deleted && row.entry.version < limit;
        let newest = rows.by_name.values().filter(|row| gone(row)).map(|row| row.entry.cursor).max();
        let all = rows.by_name.len();
        rows.by_name.retain(|_, row| !gone(row));
        swept.tombstones = all - rows.by_name.len();
        rows.floor = rows.floor.max(newest.unwrap_or(0));
        Ok(swept)
    }
}
