//! [`FakeServer`]: a proxy in memory, and the handles by which a test changes it.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use fastrand::Rng;

use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::IndexEntry;
use crate::remote::DeleteReply;

use super::store::{FakeBackup, FakeStore, restore};
use super::types::{FakeCall, FakeConfig, FakeFaults, LostPart};

/// The server. Clones are the same server.
#[derive(Clone)]
pub struct FakeServer(Arc<Mutex<FakeStore>>);

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Another test's panic must show its own message.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeServer {
    /// An empty server; `seed` decides the faults and the pauses.
    pub fn new(config: FakeConfig, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(FakeStore {
            config,
            trusted_tombstone: false,
            rng: Rng::with_seed(seed),
            blobs: BTreeMap::new(),
            index: BTreeMap::new(),
            recent: VecDeque::new(),
            epoch: 1,
            cursor: 0,
            floor: 0,
            history: Vec::new(),
            is_started: true,
            ids: 0,
            version: 0,
            stored: BTreeMap::new(),
            calls: Vec::new(),
            clients: 0,
            losing: None,
            largest: u64::MAX,
            is_read_only: false,
            silent: |_| false,
        })))
    }

    pub(super) fn store(&self) -> MutexGuard<'_, FakeStore> {
        lock(&self.0)
    }

    /// Forgets the tombstones up to `cursor`. A strong index shows it by [`IndexCursor::floor`](crate::protocol::IndexCursor::floor).
    pub fn forget_tombstones(&self, cursor: u64) {
        let mut store = self.store();
        let gone: Vec<_> = store.blobs.iter().filter(|(_, h)| h.content.is_none() && h.changed <= cursor).collect();
        let Some(floor) = gone.iter().map(|(_, held)| held.changed).max() else { return };
        let gone: Vec<_> = gone.into_iter().map(|(path, _)| path.clone()).collect();
        for path in gone {
            store.blobs.remove(&path);
        }
        store.floor = store.floor.max(floor);
    }

    /// The number of the last change.
    pub fn cursor(&self) -> u64 {
        self.store().cursor
    }

    /// Changes the faults from now on.
    pub fn set_faults(&self, faults: FakeFaults) {
        self.store().config.faults = faults;
    }

    /// Ends all faults, so that the index stays right. Pauses remain, because they are not faults.
    pub fn calm(&self) {
        let mut store = self.store();
        store.config.faults = FakeFaults::default();
        store.index = store.exact_index();
        store.recent.clear();
    }

    /// The live blobs.
    pub fn contents(&self) -> BTreeMap<RelPath, Bytes> {
        let store = self.store();
        store.blobs.iter().filter_map(|(path, held)| Some((path.clone(), held.content.clone()?))).collect()
    }

    /// The tombstones with the digests of the deleted content.
    pub fn tombstones(&self) -> BTreeMap<RelPath, Md5> {
        let store = self.store();
        let dead = store.blobs.iter().filter(|(_, held)| held.content.is_none());
        dead.map(|(path, held)| (path.clone(), held.md5)).collect()
    }

    /// Every content that was ever stored, by its digest. A reset keeps this record.
    pub fn all_ever_stored(&self) -> BTreeMap<Md5, Bytes> {
        self.store().stored.clone()
    }

    /// True if this content was ever stored.
    pub fn ever_stored(&self, md5: Md5) -> bool {
        self.store().stored.contains_key(&md5)
    }

    /// Another client deletes a path without a precondition. True if the path was live.
    pub fn server_delete(&self, path: &RelPath) -> bool {
        let mut store = self.store();
        let held = store.blobs.get(path).filter(|held| held.content.is_some()).map(|held| held.md5);
        held.is_some_and(|md5| store.delete(path, md5, 0) == DeleteReply::Done)
    }

    /// Another client writes a path without a precondition.
    pub fn foreign_put(&self, path: &RelPath, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.store().commit(path, Md5::of(&bytes), Some(bytes));
    }

    /// Forgets all tombstones, as a proxy does after a time, and raises the floor to say so.
    pub fn drop_tombstones(&self) {
        let mut store = self.store();
        store.floor = store.cursor;
        store.blobs.retain(|_, held| held.content.is_some());
        store.index.retain(|_, entry| !entry.is_deleted);
        store.recent.clear();
    }

    /// A copy of the server's content.
    pub fn backup(&self) -> FakeBackup {
        let FakeStore { blobs, index, cursor, floor, history, .. } = &*self.store();
        let (blobs, index, history) = (blobs.clone(), index.clone(), history.clone());
        FakeBackup { blobs, index, cursor: *cursor, floor: *floor, history }
    }

    /// The server is replaced by an empty one, or by one restored from a backup: a new epoch.
    pub fn reset(&self, restored: Option<FakeBackup>) {
        let empty =
            FakeBackup { blobs: BTreeMap::new(), index: BTreeMap::new(), cursor: 0, floor: 0, history: Vec::new() };
        self.set_back(restored.unwrap_or(empty));
        self.store().epoch += 1;
    }

    /// The server's disk is set back to an earlier day in place, and the server starts again: the epoch stays.
    pub fn set_back(&self, to: FakeBackup) {
        let mut store = self.store();
        let FakeBackup { blobs, index, cursor, floor, history } = to;
        (store.blobs, store.index, store.cursor, store.floor) = (blobs, index, cursor, floor);
        (store.history, store.is_started) = (history, true);
        store.recent.clear();
    }

    /// The requests that arrived so far, oldest first.
    pub fn calls(&self) -> Vec<FakeCall> {
        self.store().calls.clone()
    }

    /// As [`FakeServer::calls`], and forgets them.
    pub fn take_calls(&self) -> Vec<FakeCall> {
        std::mem::take(&mut self.store().calls)
    }

    /// The number of requests that changed the server's content.
    pub fn writes(&self) -> usize {
        self.store().calls.iter().filter(|call| call.wrote).count()
    }

    /// Loses one request, after `skip` others.
    pub fn lose(&self, skip: usize, what: LostPart) {
        self.store().losing = Some((skip, what));
    }

    /// True if the request of [`FakeServer::lose`] has not come yet.
    pub fn is_losing(&self) -> bool {
        self.store().losing.is_some()
    }

    /// From now on it refuses content of more bytes than this.
    pub fn set_largest(&self, largest: u64) {
        self.store().largest = largest;
    }

    /// Refuses writes with 403 from now on, as a proxy does with a read-only key.
    pub fn set_read_only(&self, is_read_only: bool) {
        self.store().is_read_only = is_read_only;
    }

    /// From now on requests for these paths never arrive.
    pub fn set_silent(&self, silent: fn(&RelPath) -> bool) {
        self.store().silent = silent;
    }

    /// Sets the plain index's entry of a path until the path is written. `None` removes the entry.
    pub fn set_index_entry(&self, path: &RelPath, entry: Option<IndexEntry>) {
        restore(&mut self.store().index, path, entry);
    }

    /// The plain index's entry of a path.
    pub fn index_entry(&self, path: &RelPath) -> Option<IndexEntry> {
        self.store().index.get(path).copied()
    }

    /// Repairs the entries of the plain index, without those that a client must heal. `heals` decides by the path, the
    /// truth and the entry.
    pub fn mend_index(&self, heals: impl Fn(&RelPath, &IndexEntry, Option<&IndexEntry>) -> bool) {
        let mut store = self.store();
        let exact = store.exact_index();
        let mut index = exact.clone();
        for (path, truth) in &exact {
            let wrong = store.index.get(path).copied();
            if heals(path, truth, wrong.as_ref()) {
                restore(&mut index, path, wrong);
            }
        }
        store.index = index;
        store.recent.clear();
    }

    /// Planted bug: a plain index claims to be strong.
    pub fn plant_trusted_tombstone(&self, on: bool) {
        self.store().trusted_tombstone = on;
    }

    /// Lets the other clients go first, with the probability that the configuration gives.
    pub(super) async fn pause(&self) {
        let mut pending = {
            let mut store = self.store();
            let yields = store.config.yields;
            store.chance(yields)
        };
        poll_fn(|context| {
            if std::mem::take(&mut pending) {
                context.waker().wake_by_ref();
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
}
