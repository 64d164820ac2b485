//! [`SqliteStore`].

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::super::body::{BodyWriter, FinishedBody, MAX_INLINE_BYTES};
use super::super::{
    BatchWrite, BlobChanges, BlobMeta, BlobVersion, DeleteOutcome, GetOutcome, ImportOutcome, IndexSnapshot,
    IndexState, PrivateRecord, PutOutcome, RecordStore, Store, StoreError, SweepReport, WriteCondition, WriteOutcome,
    run_blocking,
};
use super::core::{SqliteCore, SqliteSettings};
use super::writer::{self, AppliedWrite, QueuedWrite, WriteRequest};
use super::{history, read, records, schema, versions};
use crate::path::RelPath;
use crate::protocol::HistoryPoint;

/// Batches that may wait for the writer. Further callers wait for room in the queue.
const QUEUE_SIZE: usize = 256;
/// Pause between two slices of a sweep, so that writers get the database.
const SWEEP_PAUSE: Duration = Duration::from_millis(20);

/// A store in a directory that this process has locked. Drop waits for the queued writes.
pub struct SqliteStore {
    core: Arc<SqliteCore>,
    /// `None` only during drop.
    queue: Option<mpsc::Sender<Vec<QueuedWrite>>>,
    writer: Option<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the store in `dir`, and creates it if it is missing. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Newer`] and [`StoreError::NotAStore`] before anything was changed.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, SqliteSettings::default())
    }

    /// As [`SqliteStore::open`], with settings.
    pub fn open_with(dir: &Path, settings: SqliteSettings) -> Result<Self, StoreError> {
        let lock = schema::claim(dir)?;
        let db = schema::open_writer(dir, settings.max_database_bytes, (settings.clock)())?;
        let positions = read::read_positions(&db)?;
        let named = read::named_files(&db)?;
        let core = Arc::new(SqliteCore::new(dir.to_owned(), lock, settings, positions));
        core.bodies.remove_unused(&named).map_err(|e| StoreError::io(dir, &e))?;
        let (queue, waiting) = mpsc::channel(QUEUE_SIZE);
        let writer_core = core.clone();
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer::run(db, &writer_core, waiting))
            .map_err(|e| StoreError::io(dir, &e))?;
        Ok(Self { core, queue: Some(queue), writer: Some(writer) })
    }

    /// Queues a write and waits for its outcome. A queued write happens even if the caller is dropped.
    async fn submit(&self, ns: &str, path: &RelPath, request: WriteRequest) -> Result<AppliedWrite, StoreError> {
        let (reply, outcome) = oneshot::channel();
        self.enqueue(vec![QueuedWrite { ns: ns.to_owned(), path: path.clone(), request, reply }]).await?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    /// The requests of a batch. One blocking thread digests the contents, except large ones.
    async fn batch_requests(
        &self,
        writes: Vec<(RelPath, BatchWrite)>,
        meta: &BlobMeta,
    ) -> Vec<(RelPath, Result<WriteRequest, StoreError>)> {
        let small = writes.iter().map(|(_, write)| match write {
            BatchWrite::Put { content, .. } if content.len() <= MAX_INLINE_BYTES => Some(content.clone()),
            BatchWrite::Put { .. } | BatchWrite::Delete { .. } => None,
        });
        let small: Vec<Option<Bytes>> = small.collect();
        let digest = |contents: Vec<Option<Bytes>>| {
            move || contents.into_iter().map(|content| content.map(FinishedBody::inline)).collect::<Vec<_>>()
        };
        let digested =
            if small.iter().any(Option::is_some) { run_blocking(digest(small)).await } else { Ok(Vec::new()) };
        // Without the thread, each content is digested on its own below.
        let mut digested = digested.unwrap_or_default().into_iter();
        let mut requests = Vec::with_capacity(writes.len());
        for (path, write) in writes {
            let meta = meta.clone();
            let request = match (write, digested.next().flatten()) {
                (BatchWrite::Delete { expect }, _) => Ok(WriteRequest::Delete { expect, meta }),
                (BatchWrite::Put { expect, .. }, Some(body)) => Ok(WriteRequest::Put { expect, meta, body }),
                (BatchWrite::Put { expect, content }, None) => {
                    let mut body = self.new_body();
                    match body.push(content).await {
                        Ok(()) => body.finish().await.map(|body| WriteRequest::Put { expect, meta, body }),
                        Err(e) => Err(e),
                    }
                }
            };
            requests.push((path, request));
        }
        requests
    }

    /// Queues writes that the writer commits together.
    async fn enqueue(&self, writes: Vec<QueuedWrite>) -> Result<(), StoreError> {
        self.queue.as_ref().ok_or(StoreError::Closed)?.send(writes).await.map_err(|_| StoreError::Closed)
    }

    /// Runs `work` on a blocking thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SqliteCore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let core = self.core.clone();
        run_blocking(move || work(&core)).await?
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.queue = None;
        self.core.close_idle_readers();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

impl Store for SqliteStore {
    const STRONG: bool = true;

    fn new_body(&self) -> BodyWriter {
        BodyWriter::new(self.core.bodies.clone())
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
        match self.submit(ns, path, WriteRequest::Put { expect, meta, body }).await? {
            AppliedWrite::Written(WriteOutcome::Put(put)) => Ok(put),
            AppliedWrite::Written(WriteOutcome::Deleted(_)) | AppliedWrite::Imported(_) => Err(StoreError::Closed),
        }
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        match self.submit(ns, path, WriteRequest::Delete { expect, meta }).await? {
            AppliedWrite::Written(WriteOutcome::Deleted(deleted)) => Ok(deleted),
            AppliedWrite::Written(WriteOutcome::Put(_)) | AppliedWrite::Imported(_) => Err(StoreError::Closed),
        }
    }

    async fn read(&self, ns: &str, path: &RelPath, version: Option<u64>) -> Result<GetOutcome, StoreError> {
        let (ns, path) = (ns.to_owned(), path.clone());
        self.run(move |core| read::get(core, &ns, path.as_str(), version)).await
    }

    async fn write_many(
        &self,
        ns: &str,
        writes: Vec<(RelPath, BatchWrite)>,
        meta: &BlobMeta,
    ) -> Vec<Result<WriteOutcome, StoreError>> {
        let (mut queued, mut replies) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
        for (path, request) in self.batch_requests(writes, meta).await {
            replies.push(request.map(|request| {
                let (reply, outcome) = oneshot::channel();
                queued.push(QueuedWrite { ns: ns.to_owned(), path, request, reply });
                outcome
            }));
        }
        if !queued.is_empty()
            && let Err(e) = self.enqueue(queued).await
        {
            return replies.iter().map(|_| Err(e.clone())).collect();
        }
        let mut outcomes = Vec::with_capacity(replies.len());
        for reply in replies {
            outcomes.push(match reply {
                Ok(outcome) => match outcome.await {
                    Ok(Ok(AppliedWrite::Written(outcome))) => Ok(outcome),
                    Ok(Ok(AppliedWrite::Imported(_))) | Err(_) => Err(StoreError::Closed),
                    Ok(Err(e)) => Err(e),
                },
                Err(e) => Err(e),
            });
        }
        outcomes
    }

    async fn get_many(&self, ns: &str, paths: Vec<RelPath>) -> Vec<Result<GetOutcome, StoreError>> {
        let (ns, count) = (ns.to_owned(), paths.len());
        let all =
            self.run(move |core| Ok(paths.iter().map(|path| read::get(core, &ns, path.as_str(), None)).collect()));
        all.await.unwrap_or_else(|e| (0..count).map(|_| Err(e.clone())).collect())
    }

    async fn index(&self, ns: &str, since: u64) -> Result<IndexSnapshot, StoreError> {
        let ns = ns.to_owned();
        self.run(move |core| {
            // Read before the entries, so that the state is never newer than they are.
            let state = core.state(&ns);
            core.read(|db| read::read_index(db, &ns, since, state))
        })
        .await
    }

    async fn state(&self, ns: &str) -> Result<IndexState, StoreError> {
        Ok(self.core.state(ns))
    }

    fn history_point(&self, ns: &str) -> Option<HistoryPoint> {
        self.core.state(ns).history
    }

    async fn contains_point(&self, _ns: &str, point: &HistoryPoint) -> Result<bool, StoreError> {
        let point = point.clone();
        self.run(move |core| {
            // Read before the history: an id that begins meanwhile begins at this cursor or later.
            let now = core.positions().cursor;
            core.read(|db| Ok(history::last_cursor(db, &point.id, now)?.is_some_and(|last| point.cursor <= last)))
        })
        .await
    }

    fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.core.changes.subscribe()
    }

    fn free_bytes(&self) -> Option<u64> {
        let fs = rustix::fs::statvfs(&self.core.dir).ok()?;
        Some(fs.f_bavail.saturating_mul(fs.f_frsize))
    }

    async fn health(&self) -> Result<(), StoreError> {
        if self.queue.as_ref().is_none_or(mpsc::Sender::is_closed) {
            return Err(StoreError::Closed);
        }
        self.run(|core| {
            // An open connection still reads a database file that was removed.
            let path = core.dir.join(schema::DATABASE);
            std::fs::metadata(&path).map_err(|e| StoreError::Io { path, why: e.to_string() })?;
            core.read(|db| versions::read_floor(db).map(drop))
        })
        .await
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        let (ns, path) = (ns.to_owned(), path.clone());
        self.run(move |core| core.read(|db| versions::list(db, &ns, path.as_str()))).await
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        let mut all: Vec<String> = self.core.positions().last.keys().cloned().collect();
        all.sort_unstable();
        Ok(all)
    }

    async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<BodyWriter>,
    ) -> Result<ImportOutcome, StoreError> {
        let body = match body {
            Some(body) => Some(body.finish().await?),
            None => None,
        };
        match self.submit(ns, path, WriteRequest::Import { version, body }).await? {
            AppliedWrite::Imported(Some(_)) => Ok(ImportOutcome::Written),
            AppliedWrite::Imported(None) => Ok(ImportOutcome::Held),
            AppliedWrite::Written(_) => Err(StoreError::Closed),
        }
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        let now = (self.core.clock)();
        let due = self.run(move |core| core.read(|db| versions::expired(db, now))).await?;
        let (mut expired, mut failure) = (0, None);
        for (ns, path, version) in due {
            let deleted = match RelPath::parse(&path) {
                // A path that was written meanwhile is not expired any more.
                Ok(path) => self.delete(&ns, &path, Some(WriteCondition::Version(version)), BlobMeta::default()).await,
                Err(e) => Err(StoreError::Database(format!("{path:?}: {e}"))),
            };
            match deleted {
                Ok(deleted) => expired += usize::from(matches!(deleted, DeleteOutcome::Done(_))),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        failure.map_or(Ok(expired), Err)
    }

    async fn remove_old(&self) -> Result<SweepReport, StoreError> {
        let now = (self.core.clock)();
        self.run(move |core| remove_old(core, now)).await
    }

    async fn held_bytes(&self, ns: &str, paths: &[RelPath]) -> Result<Vec<u64>, StoreError> {
        let (ns, paths) = (ns.to_owned(), paths.to_vec());
        self.run(move |core| core.read(|db| read::sizes(db, &ns, &paths))).await
    }

    async fn usage(&self, ns: &str) -> Result<u64, StoreError> {
        Ok(self.core.positions().bytes.get(ns).copied().unwrap_or(0))
    }
}

impl RecordStore for SqliteStore {
    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        self.run(move |core| core.read(|db| records::read(db, name))).await
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let expected = expected.map(str::to_owned);
        self.run(move |core| records::write(records::connect(&core.dir)?, name, expected.as_deref(), &content)).await
    }
}

/// Removes versions and tombstones that are past their retention, slice by slice.
fn remove_old(core: &SqliteCore, now: u64) -> Result<SweepReport, StoreError> {
    let mut report = SweepReport::default();
    let mut old = core.read(|db| versions::find_old(db, &core.retention, now))?;
    if old.is_empty() {
        return Ok(report);
    }
    let mut db = records::connect(&core.dir)?;
    while !old.is_empty() {
        let removed = versions::remove_slice(&mut db, &mut old)?;
        for file in &removed.files {
            core.bodies.remove(file);
        }
        core.positions().floor = removed.floor;
        report.versions += removed.report.versions;
        report.tombstones += removed.report.tombstones;
        // SQLite's waiting writers poll. Without a pause they would never find the database free.
        std::thread::sleep(SWEEP_PAUSE);
    }
    Ok(report)
}
