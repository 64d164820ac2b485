//! Stores with a deliberate fault. The suite must find each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use memsync::path::RelPath;
use memsync::store::{
    BlobBody, BlobChanges, BlobMeta, BlobVersion, BodyWriter, DeleteOutcome, GetOutcome, ImportOutcome, IndexSnapshot,
    IndexState, PrivateRecord, PutOutcome, RecordStore, Store, StoreError, StoredBlob, SweepReport, WriteCondition,
};
use memsync::testing::MemoryStore;
use tokio::sync::broadcast;

use super::clock;

/// The fault of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreFault {
    Nothing,
    /// Some writes ignore the precondition.
    Upsert,
    /// The index lacks one entry.
    LosesEntries,
    /// A deleted file leaves no tombstone.
    ForgetsTombstones,
    /// Some reads give the previous content.
    StaleReads,
    /// Versions are only the time.
    VersionsOfTheClock,
    /// A refused write changes the tag.
    TagsChange,
    /// Earlier versions are lost.
    ForgetsVersions,
    /// A record write ignores the tag.
    RecordsUpsert,
}

/// A store in memory with a fault.
struct Broken {
    inner: MemoryStore,
    wrong: StoreFault,
    count: AtomicU64,
    now: Arc<AtomicU64>,
    /// The content of the last write.
    before: std::sync::Mutex<Option<Bytes>>,
    /// The cursor of each tag and namespace.
    cursors: std::sync::Mutex<BTreeMap<(String, Arc<str>), u64>>,
}

impl Broken {
    /// True for every n-th call if this is the fault.
    fn is(&self, wrong: StoreFault, every: u64) -> bool {
        self.wrong == wrong && self.count.fetch_add(1, Ordering::SeqCst) % every == every - 1
    }
}

impl Store for Broken {
    const STRONG: bool = false;

    fn new_body(&self) -> BodyWriter {
        self.inner.new_body()
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        mut expect: WriteCondition,
        meta: BlobMeta,
        body: BodyWriter,
    ) -> Result<PutOutcome, StoreError> {
        if let GetOutcome::Found(StoredBlob { entry, .. }) | GetOutcome::Tombstone(entry) =
            self.inner.get(ns, path).await?
            && !expect.admits(Some(&entry))
            && self.is(StoreFault::Upsert, 3)
        {
            expect = WriteCondition::Version(entry.version);
        }
        let mut put = self.inner.put(ns, path, expect, meta, body).await?;
        if let PutOutcome::Created(entry) | PutOutcome::Updated(entry) = &mut put {
            if let GetOutcome::Found(StoredBlob { body: BlobBody::Whole(content), .. }) =
                self.inner.get(ns, path).await?
            {
                *self.before.lock().unwrap() = Some(content);
            }
            if self.wrong == StoreFault::VersionsOfTheClock {
                entry.version = self.now.load(Ordering::SeqCst);
            }
        }
        Ok(put)
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        self.inner.delete(ns, path, expect, meta).await
    }

    async fn read(&self, ns: &str, path: &RelPath, version: Option<u64>) -> Result<GetOutcome, StoreError> {
        let mut got = self.inner.read(ns, path, version).await?;
        match &mut got {
            GetOutcome::Tombstone(_) if self.wrong == StoreFault::ForgetsTombstones => return Ok(GetOutcome::Absent),
            GetOutcome::Found(blob) if version.is_none() && self.is(StoreFault::StaleReads, 2) => {
                if let Some(content) = self.before.lock().unwrap().clone() {
                    blob.entry.md5 = memsync::digest::Md5::of(&content);
                    blob.entry.version -= 1;
                    blob.body = BlobBody::Whole(content);
                }
            }
            GetOutcome::Found(_) | GetOutcome::Tombstone(_) | GetOutcome::Absent => {}
        }
        Ok(got)
    }

    async fn index(&self, ns: &str, since: u64) -> Result<IndexSnapshot, StoreError> {
        let mut index = self.inner.index(ns, since).await?;
        if self.wrong == StoreFault::LosesEntries && index.entries.len() > 5 {
            index.entries.pop();
        }
        index.state = self.state(ns).await?;
        Ok(index)
    }

    fn index_since_tag(&self, ns: &str, tag: &str) -> Option<IndexSnapshot> {
        let cursor = *self.cursors.lock().unwrap().get(&(ns.to_owned(), tag.into()))?;
        let index = |since| self.inner.index(ns, since).now_or_never()?.ok();
        index(cursor).filter(|part| index(0).is_some_and(|all| part.entries.len() < all.entries.len()))
    }

    async fn state(&self, ns: &str) -> Result<IndexState, StoreError> {
        let mut state = self.inner.state(ns).await?;
        if self.wrong == StoreFault::TagsChange {
            state.tag = self.count.fetch_add(1, Ordering::SeqCst).to_string().into();
        }
        let cursor = state.mark.as_ref().map_or(0, |mark| mark.cursor);
        self.cursors.lock().unwrap().insert((ns.to_owned(), state.tag.clone()), cursor);
        Ok(state)
    }

    fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.inner.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.inner.health().await
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        let mut versions = self.inner.versions(ns, path).await?;
        if self.wrong == StoreFault::ForgetsVersions {
            versions.truncate(1);
        }
        Ok(versions)
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        self.inner.namespaces().await
    }

    async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<BodyWriter>,
    ) -> Result<ImportOutcome, StoreError> {
        self.inner.import_version(ns, path, version, body).await
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        self.inner.expire().await
    }

    async fn remove_old(&self) -> Result<SweepReport, StoreError> {
        self.inner.remove_old().await
    }
}

impl RecordStore for Broken {
    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        self.inner.record(name).await
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let held = self.inner.record(name).await?.map(|record| record.tag);
        let expected = if self.wrong == StoreFault::RecordsUpsert { held.as_deref() } else { expected };
        self.inner.put_record(name, expected, content).await
    }
}

/// The tests of the suite that fail with this fault.
async fn failures(wrong: StoreFault) -> Vec<&'static str> {
    let mut failed = Vec::new();
    macro_rules! run {
        (($($runtime:tt)*) $($name:ident),+; $($more:tt)*) => {
            $(
                let now = Arc::new(AtomicU64::new(1_700_000_000_000));
                let inner = MemoryStore::with_clock(clock(&now));
                let store = Broken {
                    inner, wrong, count: AtomicU64::new(0), now: now.clone(), before: std::sync::Mutex::default(), cursors: std::sync::Mutex::default(),
                };
                if tokio::spawn(super::$name(store, now)).await.is_err() {
                    failed.push(stringify!($name));
                }
            )+
            run!($($more)*);
        };
        () => {};
    }
    super::the_suite!(run);
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn suite_finds_every_broken_store() {
    assert_eq!(failures(StoreFault::Nothing).await, [""; 0]);
    for (wrong, by) in [
        (StoreFault::Upsert, "races"),
        (StoreFault::LosesEntries, "index_under_16_writers"),
        (StoreFault::ForgetsTombstones, "tombstones"),
        (StoreFault::StaleReads, "linearizable"),
        (StoreFault::VersionsOfTheClock, "versions"),
        (StoreFault::TagsChange, "listing"),
        (StoreFault::ForgetsVersions, "earlier_versions"),
        (StoreFault::RecordsUpsert, "records"),
    ] {
        let failed = failures(wrong).await;
        println!("{wrong:?}: {failed:?}");
        assert!(failed.contains(&by), "`{by}` did not find {wrong:?}: {failed:?}");
    }
}
