//! [`Memory`]: a store that keeps nothing across restarts, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::broadcast;

use super::{
    BACKLOG, Blob, Body, Change, Changes, Clock, Deleted, Entry, Got, Incoming, Index, Mark, Put, Store, StoreError,
    admits, new_epoch, next_version, system_clock,
};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::Precondition;

struct Row {
    entry: Entry,
    content_type: String,
    content: Bytes,
}

struct Rows {
    mark: Mark,
    by_name: BTreeMap<(String, RelPath), Row>,
}

/// A store in memory.
pub struct Memory {
    rows: Mutex<Rows>,
    changes: broadcast::Sender<Changes>,
    clock: Clock,
}

impl Memory {
    pub fn new() -> Self {
        Self::with_clock(system_clock())
    }

    pub fn with_clock(clock: Clock) -> Self {
        let mark = Mark { epoch: new_epoch(), cursor: 0, floor: 0, modified: clock() };
        Self {
            rows: Mutex::new(Rows { mark, by_name: BTreeMap::new() }),
            changes: broadcast::channel(BACKLOG).0,
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        // No method leaves the rows half changed, so a panic elsewhere cannot have damaged them.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a row under the next cursor and tells the subscribers, in order because the rows are locked.
    fn commit(&self, rows: &mut Rows, ns: &str, path: &RelPath, mut row: Row) -> Entry {
        rows.mark.cursor += 1;
        rows.mark.modified = row.entry.version;
        row.entry.cursor = rows.mark.cursor;
        let entry = row.entry;
        rows.by_name.insert((ns.to_owned(), path.clone()), row);
        let change = Change { cursor: entry.cursor, ns: ns.to_owned(), path: path.clone() };
        // An error only says that nobody listens.
        let _ = self.changes.send(Arc::new([change]));
        entry
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// A body collected in memory.
#[derive(Default)]
pub struct Collected(BytesMut);

impl Incoming for Collected {
    async fn push(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.0.extend_from_slice(&piece);
        Ok(())
    }
}

impl Store for Memory {
    type Incoming = Collected;

    fn incoming(&self) -> Collected {
        Collected::default()
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        precondition: Precondition,
        content_type: &str,
        body: Collected,
    ) -> Result<Put, StoreError> {
        let content = body.0.freeze();
        let md5 = Md5::of(&content);
        let mut rows = self.lock();
        let held = rows.by_name.get(&(ns.to_owned(), path.clone())).map(|row| row.entry);
        if !admits(precondition, held.as_ref()) {
            return Ok(Put::Mismatch(held));
        }
        let version = next_version((self.clock)(), held.as_ref());
        let entry = Entry { md5, size: content.len() as u64, is_deleted: false, version, cursor: 0 };
        let row = Row { entry, content_type: content_type.to_owned(), content };
        let entry = self.commit(&mut rows, ns, path, row);
        Ok(if held.is_some_and(|e| !e.is_deleted) { Put::Updated(entry) } else { Put::Created(entry) })
    }

    async fn delete(&self, ns: &str, path: &RelPath, expected: Option<Md5>) -> Result<Deleted, StoreError> {
        let mut rows = self.lock();
        let held = match rows.by_name.get(&(ns.to_owned(), path.clone())) {
            None => return Ok(Deleted::Absent),
            Some(row) if row.entry.is_deleted => return Ok(Deleted::Tombstone(row.entry)),
            Some(row) if expected.is_some_and(|md5| md5 != row.entry.md5) => return Ok(Deleted::Mismatch(row.entry)),
            Some(row) => row.entry,
        };
        let version = next_version((self.clock)(), Some(&held));
        let entry = Entry { size: 0, is_deleted: true, version, ..held };
        let row = Row { entry, content_type: String::new(), content: Bytes::new() };
        Ok(Deleted::Done(self.commit(&mut rows, ns, path, row)))
    }

    async fn get(&self, ns: &str, path: &RelPath) -> Result<Got, StoreError> {
        Ok(match self.lock().by_name.get(&(ns.to_owned(), path.clone())) {
            None => Got::Absent,
            Some(row) if row.entry.is_deleted => Got::Tombstone(row.entry),
            Some(row) => Got::Found(Blob {
                entry: row.entry,
                content_type: row.content_type.clone(),
                body: Body::Whole(row.content.clone()),
            }),
        })
    }

    async fn index(&self, ns: &str, since: u64) -> Result<Index, StoreError> {
        let rows = self.lock();
        let entries = rows
            .by_name
            .iter()
            .filter(|((of, _), row)| of == ns && row.entry.cursor > since)
            .map(|((_, path), row)| (path.as_str().to_owned(), row.entry))
            .collect();
        Ok(Index { mark: rows.mark.clone(), entries })
    }

    fn mark(&self) -> Mark {
        self.lock().mark.clone()
    }

    fn subscribe(&self) -> broadcast::Receiver<Changes> {
        self.changes.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
