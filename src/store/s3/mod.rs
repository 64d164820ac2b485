//! [`S3Store`]: a store in a bucket, in the layout that other Memory Proxies have. Several proxies may use one bucket.
//!
//! A blob is swapped by a conditional write on the ETag that was looked at, and then recorded in its namespace's
//! index, which is a compare-and-swap as well; only then is the write acknowledged. A crash between the two leaves an
//! entry out, which whoever reads the blob next sees and mends, as does every start, and `memsync reindex`.
//! The index is a hint, as the protocol has it: it is not written in one step with the blob.
//!
//! An ETag is the MD5 of the body in most buckets, and so it does not tell two versions with one content apart, nor a
//! tombstone from an empty file. Of two proxies that replace the same content at once both may win if one of them writes
//! just that content again: the other then replaces a version that it has not seen, though its content it has. No content
//! is lost by that which the later writer did not know; as an earlier version it may be missing. Within one proxy the
//! writers of a path take turns.
//!
//! Earlier versions and notes of what expires are beside the prefix, where other proxies do not list; where the bucket
//! does not allow that, there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast;

use super::{
    BlobChanges, BlobMeta, BlobVersion, DeleteOutcome, GetOutcome, ImportOutcome, IndexSnapshot, IndexState,
    IndexTraffic, Precondition, PrivateRecord, PutOutcome, Store, StoreError, SweepReport,
};
use crate::failpoint;
use crate::path::RelPath;
use crate::protocol::HistoryPoint;

mod blobs;
mod borders;
mod bucket;
mod changes;
mod earlier;
mod expiry;
mod history;
mod http;
mod index;
mod inner;
mod layout;
mod ledger;
mod listing;
mod options;
mod probe;
mod reindex;
mod retention;
mod seen;
mod spool;
mod usage;

pub use options::{EtagQuotes, S3Options};
pub use reindex::RepairReport;
pub use spool::Upload;

use blobs::Blobs;
use borders::Borders;
use bucket::{Bucket, Fetched, Landing, whole};
use inner::{Inner, entry, state};
use layout::{Described, Layout};
use ledger::write_id;
use spool::Content;

/// A bucket that has not answered a look at its health for so long is asked anew by the next.
const HEALTH: Duration = Duration::from_secs(5);
/// Longest record, in bytes.
const LARGEST_RECORD: u64 = 16 * 1024 * 1024;

/// A store in a bucket. Cloning is cheap; the clones are one store.
#[derive(Clone)]
pub struct S3Store(Arc<Inner>);

impl S3Store {
    /// Opens the store, after trying whether the bucket's conditional writes work.
    ///
    /// # Errors
    /// [`StoreError::S3Refused`] for options that cannot work and for a store that ignores conditions;
    /// [`StoreError::S3`] where it cannot be reached or refuses the keys.
    pub async fn open(options: &S3Options) -> Result<Self, StoreError> {
        let layout = Layout::new(&options.prefix);
        // A prefix that is no key is found out now.
        let place = layout.folder("")?.map_or_else(String::new, |folder| folder.to_string());
        let place = format!("s3://{}/{place}", options.bucket);
        let bucket = Bucket::new(options)?;
        let name = format!("probe-{}", write_id());
        let keeps = probe::probe(&bucket, &layout.private(&name)?, &layout.beside(&name)?).await?;
        if !keeps {
            tracing::warn!(
                "the bucket lets nothing be copied to {}/: no earlier versions are kept, and nothing expires; allow \
                 reading, writing, listing and deleting there, too",
                layout.beside("")?
            );
        }
        let blobs = Blobs { bucket: Arc::new(bucket), layout, keeps };
        Ok(Self(Arc::new(Inner {
            blobs,
            ledgers: Mutex::default(),
            turns: Mutex::default(),
            spool: options.spool.as_path().into(),
            changes: Arc::default(),
            clock: options.clock.clone(),
            counted: Mutex::default(),
            place,
            borders: Borders::default(),
        })))
    }

    /// Where the store is, as people write it: `s3://bucket/prefix`.
    pub fn url(&self) -> &str {
        &self.0.place
    }

    /// Makes the index of every namespace right again from the blobs, and says what was mended. Proxies may go on
    /// serving meanwhile.
    ///
    /// # Errors
    /// What the store says.
    pub async fn reindex(&self) -> Result<BTreeMap<String, RepairReport>, StoreError> {
        self.mend(false).await
    }

    /// [`S3Store::reindex`] that believes what the listing already shows, for the start of a proxy. From the call on, until it
    /// has come to its end without a failure that may pass, who asks in a namespace that has not begun waits: files whose entries were
    /// lost may be in its folder.
    ///
    /// # Errors
    /// What the store says.
    pub fn repair_after_crash(
        &self,
    ) -> impl Future<Output = Result<BTreeMap<String, RepairReport>, StoreError>> + Send + 'static {
        let store = self.clone();
        store.0.borders.mending(true);
        async move {
            let mended = store.mend(true).await;
            // What the bucket never lets be done nobody waits for.
            if matches!(mended, Ok(_) | Err(StoreError::S3Denied(_))) {
                store.0.borders.mending(false);
            }
            mended
        }
    }

    async fn mend(&self, trusting: bool) -> Result<BTreeMap<String, RepairReport>, StoreError> {
        let mut all = BTreeSet::new();
        for ns in reindex::namespaces(&self.0.blobs).await? {
            if self.0.stands(&ns).await? {
                all.insert(ns);
            }
        }
        // The flat namespace has whatever is in no other.
        all.insert(String::new());
        let (mut mended, mut failure) = (BTreeMap::new(), None);
        for ns in &all {
            let others: BTreeSet<String> = all.iter().filter(|other| *other != ns).cloned().collect();
            let one = match self.0.ledger(ns) {
                Ok(ledger) => reindex::mend(&self.0.blobs, &ledger, ns, &others, trusting).await,
                Err(e) => Err(e),
            };
            // A namespace that cannot be mended holds up no other.
            match one {
                Ok(one) => drop(mended.insert(ns.clone(), one)),
                Err(e) => drop(failure.get_or_insert(e)),
            }
        }
        failure.map_or(Ok(mended), Err)
    }
}

/// Runs `work` to its end even when the caller goes: between a blob and its entry it must not stop.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(work).await.map_err(|_| StoreError::Closed)?
}

impl Store for S3Store {
    const STRONG: bool = false;
    type BodyWriter = Upload;

    fn new_body(&self) -> Upload {
        Upload::new(self.0.spool.clone())
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Precondition,
        meta: BlobMeta,
        body: Upload,
    ) -> Result<PutOutcome, StoreError> {
        let (inner, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        to_its_end(async move { inner.put(&ns, &path, expect, meta, body).await }).await
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<Precondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        let (inner, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        to_its_end(async move { inner.delete(&ns, &path, expect, meta).await }).await
    }

    async fn get(&self, ns: &str, path: &RelPath) -> Result<GetOutcome, StoreError> {
        self.0.get(ns, path).await
    }

    async fn index(&self, ns: &str, _since: u64) -> Result<IndexSnapshot, StoreError> {
        let kept = self.0.ledger(ns)?.fresh().await?;
        let rows = kept.document.rows.iter();
        let entries = rows.map(|(path, row)| (path.as_str().to_owned(), entry(row))).collect();
        Ok(IndexSnapshot { state: state(&kept), entries })
    }

    async fn state(&self, ns: &str) -> Result<IndexState, StoreError> {
        Ok(state(&self.0.ledger(ns)?.fresh().await?))
    }

    fn history_point(&self, ns: &str) -> Option<HistoryPoint> {
        let kept = self.0.ledger(ns).ok()?.kept()?;
        kept.document.history.point(kept.document.modified)
    }

    async fn contains_point(&self, ns: &str, point: &HistoryPoint) -> Result<bool, StoreError> {
        let ledger = self.0.ledger(ns)?;
        let kept = match ledger.kept() {
            Some(kept) => kept,
            None => ledger.fresh().await?,
        };
        Ok(kept.document.history.contains_point(point, kept.document.modified))
    }

    fn index_since_tag(&self, ns: &str, tag: &str) -> Option<IndexSnapshot> {
        let (kept, rows) = self.0.ledger(ns).ok()?.since(tag)?;
        let entries = rows.iter().map(|(path, row)| (path.as_str().to_owned(), entry(row))).collect();
        Some(IndexSnapshot { state: state(&kept), entries })
    }

    fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.0.changes.subscribe()
    }

    async fn health(&self) -> Result<(), StoreError> {
        let key = self.0.blobs.layout.index("")?;
        let asked = tokio::time::timeout(HEALTH, self.0.blobs.bucket.answers(&key)).await;
        asked.unwrap_or_else(|_| Err(StoreError::S3("the bucket does not answer".to_owned())))
    }

    fn keeps_versions(&self) -> bool {
        self.0.blobs.keeps
    }

    async fn versions(&self, ns: &str, path: &RelPath) -> Result<Vec<BlobVersion>, StoreError> {
        self.0.versions(ns, path).await
    }

    async fn get_version(&self, ns: &str, path: &RelPath, version: u64) -> Result<GetOutcome, StoreError> {
        self.0.get_version(ns, path, version).await
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        Ok(reindex::namespaces(&self.0.blobs).await?.into_iter().collect())
    }

    async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<Upload>,
    ) -> Result<ImportOutcome, StoreError> {
        let (inner, ns, path) = (self.0.clone(), ns.to_owned(), path.clone());
        to_its_end(async move { inner.import_version(&ns, &path, version, body).await }).await
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        let inner = self.0.clone();
        to_its_end(async move { inner.expire().await }).await
    }

    async fn sweep(&self) -> Result<SweepReport, StoreError> {
        let inner = self.0.clone();
        to_its_end(async move { inner.sweep().await }).await
    }

    async fn usage(&self, ns: &str) -> Result<u64, StoreError> {
        self.0.usage(ns).await
    }

    async fn held_bytes(&self, ns: &str, paths: &[RelPath]) -> Result<Vec<u64>, StoreError> {
        self.0.held_bytes(ns, paths).await
    }

    fn index_traffic(&self) -> IndexTraffic {
        self.0.blobs.bucket.traffic.so_far()
    }

    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        match self.0.blobs.bucket.get(&self.0.blobs.layout.private(name)?, None).await? {
            Fetched::Found(object, body) => {
                Ok(Some(PrivateRecord { tag: object.etag, content: whole(body, LARGEST_RECORD).await? }))
            }
            Fetched::Absent | Fetched::Unchanged => Ok(None),
        }
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let (inner, expected) = (self.0.clone(), expected.map(str::to_owned));
        to_its_end(async move {
            let key = inner.blobs.layout.private(name)?;
            let described = Described { write: Some(write_id()), ..Described::default() };
            let bucket = &inner.blobs.bucket;
            let landing = bucket.put(&key, expected.as_deref(), &described, &Content::Inline(content)).await?;
            if matches!(landing, Landing::Landed(_)) {
                failpoint::pass("s3-record-written");
                return Ok(true);
            }
            // The reply may have been lost after it landed.
            let now = bucket.head(&key).await?;
            if now.as_ref().is_some_and(|now| now.described.write == described.write) {
                return Ok(true);
            }
            match landing {
                Landing::Unsure(e) if now.map(|now| now.etag) == expected => Err(e),
                // Something else is there. That may have replaced this write as well as what was expected; either way
                // the caller has to begin anew, from what is there.
                Landing::Unsure(_) | Landing::Landed(_) | Landing::Lost => Ok(false),
            }
        })
        .await
    }
}
