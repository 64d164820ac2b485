//! [`S3Store`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast;

use super::super::body::{BodyContent, BodyDir, BodyWriter};
use super::super::{
    BlobChanges, BlobMeta, BlobVersion, DeleteOutcome, GetOutcome, ImportOutcome, IndexSnapshot, IndexState,
    IndexTraffic, PrivateRecord, PutOutcome, RecordStore, Store, StoreError, SweepReport, WriteCondition, new_id,
};
use super::blobs::BucketBlobs;
use super::bucket::{Bucket, ConditionalPut, FetchOutcome, read_whole};
use super::core::{S3Core, run_to_end};
use super::layout::Layout;
use super::object_metadata::ObjectMetadata;
use super::options::S3Options;
use super::probe;
use super::reindex::{self, RepairReport};
use crate::failpoint;
use crate::path::RelPath;
use crate::protocol::HistoryPoint;

/// Timeout of a health check.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit on a private record.
const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;

/// A store in a bucket. Clones are cheap and share one store.
#[derive(Clone)]
pub struct S3Store(Arc<S3Core>);

impl S3Store {
    /// Opens the store and tests the bucket's conditional writes.
    ///
    /// # Errors
    /// [`StoreError::S3Refused`] for wrong options, and for a bucket that ignores conditions; [`StoreError::S3`] if the
    /// bucket cannot be reached or refuses the keys.
    pub async fn open(options: &S3Options) -> Result<Self, StoreError> {
        let layout = Layout::new(&options.prefix);
        // This also finds an invalid prefix.
        let folder = layout.folder("")?.map_or_else(String::new, |folder| folder.to_string());
        let url = format!("s3://{}/{folder}", options.bucket);
        let bucket = Bucket::new(options)?;
        let name = format!("probe-{}", new_id());
        let keeps_versions = probe::probe(&bucket, &layout.private(&name)?, &layout.beside(&name)?).await?;
        if !keeps_versions {
            tracing::warn!(
                "the bucket allows no objects below {}/, so no earlier versions are kept and nothing expires; allow reading, \
                 writing, listing and deleting there",
                layout.beside("")?
            );
        }
        let S3Options { retention, ref clock, ref spool, .. } = *options;
        let blobs = BucketBlobs { bucket: Arc::new(bucket), layout, clock: clock.clone(), retention, keeps_versions };
        Ok(Self(Arc::new(S3Core::new(blobs, BodyDir::temporary(spool.clone()), url))))
    }

    /// The store as `s3://bucket/prefix`.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Repairs the index of every namespace from the blobs. Proxies may serve meanwhile.
    pub async fn reindex(&self) -> Result<BTreeMap<String, RepairReport>, StoreError> {
        self.repair(false).await
    }

    /// As [`S3Store::reindex`], but believes entries that the listing confirms: for the start of a proxy. From this call until
    /// the repair succeeds or fails for good, requests in a namespace that does not exist wait, because the flat namespace may
    /// have unlisted files there.
    pub fn repair_after_crash(
        &self,
    ) -> impl Future<Output = Result<BTreeMap<String, RepairReport>, StoreError>> + Send + 'static {
        let store = self.clone();
        store.0.namespaces.set_repairing(true);
        async move {
            let repaired = store.repair(true).await;
            // A denied repair never succeeds, so requests do not wait for it.
            if matches!(repaired, Ok(_) | Err(StoreError::S3Denied(_))) {
                store.0.namespaces.set_repairing(false);
            }
            repaired
        }
    }

    /// Repairs all namespaces. The first failure is reported after all were tried.
    async fn repair(&self, trusting: bool) -> Result<BTreeMap<String, RepairReport>, StoreError> {
        let mut all = BTreeSet::new();
        for ns in reindex::namespaces(&self.0.blobs).await? {
            if self.0.confirm_namespace(&ns).await? {
                all.insert(ns);
            }
        }
        // The flat namespace has all files that are in no other.
        all.insert(String::new());
        let (mut reports, mut failure) = (BTreeMap::new(), None);
        for ns in &all {
            let others: BTreeSet<String> = all.iter().filter(|other| *other != ns).cloned().collect();
            let repaired = match self.0.index(ns) {
                Ok(index) => reindex::repair(&self.0.blobs, &index, ns, &others, trusting).await,
                Err(e) => Err(e),
            };
            match repaired {
                Ok(report) => drop(reports.insert(ns.clone(), report)),
                Err(e) => drop(failure.get_or_insert(e)),
            }
        }
        failure.map_or(Ok(reports), Err)
    }
}

impl Store for S3Store {
    const STRONG: bool = false;

    fn new_body(&self) -> BodyWriter {
        BodyWriter::new(self.0.spool.clone())
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: WriteCondition,
        meta: BlobMeta,
        body: BodyWriter,
    ) -> Result<PutOutcome, StoreError> {
        let (core, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        run_to_end(async move { core.put(&ns, &path, expect, meta, body).await }).await
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        let (core, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        run_to_end(async move { core.delete(&ns, &path, expect, meta).await }).await
    }

    async fn read(&self, ns: &str, path: &RelPath, version: Option<u64>) -> Result<GetOutcome, StoreError> {
        match version {
            Some(version) => self.0.get_version(ns, path, version).await,
            None => self.0.get(ns, path).await,
        }
    }

    async fn index(&self, ns: &str, _since: u64) -> Result<IndexSnapshot, StoreError> {
        let index = self.0.index(ns)?.fresh().await?;
        let entries = index.document.entries.iter().map(|(path, entry)| (path.as_str().to_owned(), *entry));
        Ok(IndexSnapshot { state: index.state(), entries: entries.collect() })
    }

    async fn state(&self, ns: &str) -> Result<IndexState, StoreError> {
        Ok(self.0.index(ns)?.fresh().await?.state())
    }

    fn history_point(&self, ns: &str) -> Option<HistoryPoint> {
        self.0.index(ns).ok()?.cached()?.state().history
    }

    async fn contains_point(&self, ns: &str, point: &HistoryPoint) -> Result<bool, StoreError> {
        let index = self.0.index(ns)?.cached_or_fresh().await?;
        Ok(index.document.history.contains_point(point, index.document.modified))
    }

    fn index_since_tag(&self, ns: &str, tag: &str) -> Option<IndexSnapshot> {
        self.0.index(ns).ok()?.changes_since(tag)
    }

    fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.0.feed.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        let key = self.0.blobs.layout.index("")?;
        let checked = tokio::time::timeout(HEALTH_TIMEOUT, self.0.blobs.bucket.check_access(&key)).await;
        checked.unwrap_or_else(|_| Err(StoreError::S3("the bucket does not answer".to_owned())))
    }

    fn keeps_versions(&self) -> bool {
        self.0.blobs.keeps_versions
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        self.0.versions(ns, path).await
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        Ok(reindex::namespaces(&self.0.blobs).await?.into_iter().collect())
    }

    async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<BodyWriter>,
    ) -> Result<ImportOutcome, StoreError> {
        let (core, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        run_to_end(async move { core.import_version(&ns, &path, version, body).await }).await
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        let core = self.0.clone();
        run_to_end(async move { core.expire().await }).await
    }

    async fn remove_old(&self) -> Result<SweepReport, StoreError> {
        let core = self.0.clone();
        run_to_end(async move { core.remove_old().await }).await
    }

    async fn usage(&self, ns: &str) -> Result<u64, StoreError> {
        self.0.usage(ns).await
    }

    async fn held_bytes(&self, ns: &str, paths: &[RelPath]) -> Result<Vec<u64>, StoreError> {
        // A caller has usually just read the index for the usage.
        let index = self.0.index(ns)?.cached_or_fresh().await?;
        Ok(paths.iter().map(|path| index.document.entries.get(path).map_or(0, |entry| entry.size)).collect())
    }

    fn index_traffic(&self) -> IndexTraffic {
        let Bucket { index_reads, index_writes, .. } = &*self.0.blobs.bucket;
        IndexTraffic { reads: index_reads.load(Ordering::Relaxed), writes: index_writes.load(Ordering::Relaxed) }
    }
}

impl RecordStore for S3Store {
    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        match self.0.blobs.bucket.get(&self.0.blobs.layout.private(name)?, None).await? {
            FetchOutcome::Found(object, body) => {
                Ok(Some(PrivateRecord { tag: object.etag, content: read_whole(body, MAX_RECORD_BYTES).await? }))
            }
            FetchOutcome::Absent | FetchOutcome::Unchanged => Ok(None),
        }
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let (core, expected) = (self.0.clone(), expected.map(str::to_owned));
        run_to_end(async move {
            let key = core.blobs.layout.private(name)?;
            let metadata = ObjectMetadata::default().with_write(&new_id());
            let content = BodyContent::Inline(content);
            match core.blobs.bucket.put_once(&key, expected.as_deref(), &metadata, &content).await? {
                ConditionalPut::Written(_) => {
                    failpoint::pass("s3-record-written");
                    Ok(true)
                }
                // Another record is there. It may have replaced the expected one or this write. The caller must read it and
                // start again.
                ConditionalPut::Lost => Ok(false),
                ConditionalPut::Unknown(e) => Err(e),
            }
        })
        .await
    }
}
