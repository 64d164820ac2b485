//! A memory store whose operations fail or hang on request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memsync::path::RelPath;
use memsync::store::{
    BlobChanges, BlobMeta, BlobVersion, BodyWriter, DeleteOutcome, GetOutcome, ImportOutcome, IndexSnapshot,
    IndexState, PrivateRecord, PutOutcome, RecordStore, Store, StoreError, SweepReport, WriteCondition,
};
use memsync::testing::MemoryStore;
use tokio::sync::broadcast;

/// The outcome of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    Failed,
    /// The operation never ends, as on a dead disk.
    Hangs,
    /// A sweep runs first.
    AfterSweep,
}

type Fates = Arc<dyn Fn(&str, &str) -> Fate + Send + Sync>;

pub(crate) struct Faulty<const STRONG: bool> {
    inner: MemoryStore,
    /// Decides the fate of an operation by its name and namespace.
    fates: Mutex<Option<Fates>>,
    /// Counts the operations that were begun, by name and namespace.
    begun: Mutex<BTreeMap<(String, String), usize>>,
}

impl<const STRONG: bool> Faulty<STRONG> {
    pub(crate) fn new(inner: MemoryStore) -> Arc<Self> {
        Arc::new(Self { inner, fates: Mutex::default(), begun: Mutex::default() })
    }

    pub(crate) fn decide(&self, fates: impl Fn(&str, &str) -> Fate + Send + Sync + 'static) {
        *self.fates.lock().unwrap() = Some(Arc::new(fates));
    }

    pub(crate) fn heal(&self) {
        *self.fates.lock().unwrap() = None;
    }

    pub(crate) fn begun(&self, name: &str, ns: &str) -> usize {
        self.begun.lock().unwrap().get(&(name.to_owned(), ns.to_owned())).copied().unwrap_or(0)
    }

    /// Waits until an operation was begun `times` times.
    pub(crate) async fn until(&self, name: &str, ns: &str, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.begun(name, ns) < times {
            assert!(Instant::now() < deadline, "{name} of {ns:?} was begun {} times", self.begun(name, ns));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn fate(&self, name: &str, ns: &str) -> Fate {
        *self.begun.lock().unwrap().entry((name.to_owned(), ns.to_owned())).or_default() += 1;
        let fates = self.fates.lock().unwrap().clone();
        fates.map_or(Fate::Done, |fates| fates(name, ns))
    }

    async fn meet(&self, name: &str, ns: &str) -> Result<(), StoreError> {
        match self.fate(name, ns) {
            Fate::Done => Ok(()),
            Fate::Failed => Err(StoreError::Database(format!("{name} fails"))),
            Fate::Hangs => std::future::pending().await,
            Fate::AfterSweep => self.inner.sweep().await.map(drop),
        }
    }
}

impl<const EXACT: bool> Store for Faulty<EXACT> {
    const STRONG: bool = EXACT;

    fn new_body(&self) -> BodyWriter {
        self.inner.new_body()
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: WriteCondition,
        meta: BlobMeta,
        body: BodyWriter,
    ) -> Result<PutOutcome, StoreError> {
        self.meet("put", ns).await?;
        self.inner.put(ns, path, expect, meta, body).await
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        self.meet("delete", ns).await?;
        self.inner.delete(ns, path, expect, meta).await
    }

    async fn read(&self, ns: &str, path: &RelPath, version: Option<u64>) -> Result<GetOutcome, StoreError> {
        self.meet("get", ns).await?;
        self.inner.read(ns, path, version).await
    }

    async fn index(&self, ns: &str, since: u64) -> Result<IndexSnapshot, StoreError> {
        self.meet("index", ns).await?;
        self.inner.index(ns, since).await
    }

    async fn state(&self, ns: &str) -> Result<IndexState, StoreError> {
        self.meet("state", ns).await?;
        self.inner.state(ns).await
    }

    fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.inner.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.meet("health", "").await
    }

    fn free_bytes(&self) -> Option<u64> {
        // A call to a dead disk blocks its thread. This one ends, because the test waits for the thread at its end.
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.fate("free_bytes", "") == Fate::Hangs && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        self.inner.versions(ns, path).await
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
        self.meet("expire", "").await?;
        self.inner.expire().await
    }

    async fn remove_old(&self) -> Result<SweepReport, StoreError> {
        self.meet("sweep", "").await?;
        self.inner.remove_old().await
    }
}

impl<const EXACT: bool> RecordStore for Faulty<EXACT> {
    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        self.inner.record(name).await
    }

    async fn put_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: bytes::Bytes,
    ) -> Result<bool, StoreError> {
        self.inner.put_record(name, expected, content).await
    }
}
