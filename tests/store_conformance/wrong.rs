//! Stores that are wrong on purpose: the suite must notice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use memsync::path::RelPath;
use memsync::store::{
    BlobBody, BlobChanges, BlobMeta, BlobVersion, BodyWriter, DeleteOutcome, GetOutcome, ImportOutcome, IndexSnapshot,
    IndexState, Precondition, PrivateRecord, PutOutcome, Store, StoreError, SweepReport,
};
use memsync::testing::MemoryStore;
use tokio::sync::broadcast;

use super::clock;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// Now and then the precondition is not looked at.
    Upsert,
    /// Of many entries one is missing in the index.
    LosesEntries,
    /// A deleted file is gone, instead of a tombstone.
    ForgetsTombstones,
    /// Reads are what was there a moment ago.
    StaleReads,
    /// Versions are those of the clock.
    VersionsOfTheClock,
    /// What was refused is news all the same.
    TagsChange,
    /// Of what a path held before, nothing is known.
    ForgetsVersions,
    /// A record is written whatever its tag.
    RecordsUpsert,
}

/// A store in memory with something wrong.
struct Broken {
    inner: MemoryStore,
    wrong: Wrong,
    count: AtomicU64,
    now: Arc<AtomicU64>,
    before: std::sync::Mutex<Option<(RelPath, BlobMeta, Bytes)>>,
    /// The cursor of each namespace's states, by their tags.
    cursors: std::sync::Mutex<BTreeMap<(String, Arc<str>), u64>>,
}

#[derive(Default)]
struct Pieces(BytesMut);

impl BodyWriter for Pieces {
    async fn push(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.0.extend_from_slice(&piece);
        Ok(())
    }
}

impl Broken {
    /// True every so often, where this is what is wrong.
    fn is(&self, wrong: Wrong, every: u64) -> bool {
        self.wrong == wrong && self.count.fetch_add(1, Ordering::SeqCst) % every == every - 1
    }

    async fn put_inner(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Precondition,
        meta: &BlobMeta,
        content: &Bytes,
    ) -> Result<PutOutcome, StoreError> {
        let mut body = self.inner.new_body();
        body.push(content.clone()).await?;
        self.inner.put(ns, path, expect, meta.clone(), body).await
    }
}

impl Store for Broken {
    const STRONG: bool = false;
    type BodyWriter = Pieces;

    fn new_body(&self) -> Pieces {
        Pieces::default()
    }

    async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Precondition,
        meta: BlobMeta,
        body: Pieces,
    ) -> Result<PutOutcome, StoreError> {
        let content = body.0.freeze();
        let mut put = self.put_inner(ns, path, expect, &meta, &content).await?;
        if let PutOutcome::Mismatch(Some(held)) = put
            && self.is(Wrong::Upsert, 3)
        {
            put = self.put_inner(ns, path, Precondition::Version(held.version), &meta, &content).await?;
        }
        if let PutOutcome::Created(entry) | PutOutcome::Updated(entry) = &mut put {
            *self.before.lock().unwrap() = Some((path.clone(), meta, content));
            if self.wrong == Wrong::VersionsOfTheClock {
                entry.version = self.now.load(Ordering::SeqCst);
            }
        }
        Ok(put)
    }

    async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<Precondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        self.inner.delete(ns, path, expect, meta).await
    }

    async fn get(&self, ns: &str, path: &RelPath) -> Result<GetOutcome, StoreError> {
        let mut got = self.inner.get(ns, path).await?;
        match &mut got {
            GetOutcome::Tombstone(_) if self.wrong == Wrong::ForgetsTombstones => return Ok(GetOutcome::Absent),
            GetOutcome::Found(blob) if self.is(Wrong::StaleReads, 2) => {
                if let Some((_, _, content)) = self.before.lock().unwrap().clone() {
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
        if self.wrong == Wrong::LosesEntries && index.entries.len() > 5 {
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
        if self.wrong == Wrong::TagsChange {
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
        if self.wrong == Wrong::ForgetsVersions {
            versions.truncate(1);
        }
        Ok(versions)
    }

    async fn get_version(&self, ns: &str, path: &RelPath, version: u64) -> Result<GetOutcome, StoreError> {
        self.inner.get_version(ns, path, version).await
    }

    async fn namespaces(&self) -> Result<Vec<String>, StoreError> {
        self.inner.namespaces().await
    }

    async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<Pieces>,
    ) -> Result<ImportOutcome, StoreError> {
        let mut placed = self.inner.new_body();
        let has_body = body.is_some();
        placed.push(body.map(|body| body.0.freeze()).unwrap_or_default()).await?;
        self.inner.import_version(ns, path, version, has_body.then_some(placed)).await
    }

    async fn expire(&self) -> Result<usize, StoreError> {
        self.inner.expire().await
    }

    async fn sweep(&self) -> Result<SweepReport, StoreError> {
        self.inner.sweep().await
    }

    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        self.inner.record(name).await
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        let held = self.inner.record(name).await?.map(|record| record.tag);
        let expected = if self.wrong == Wrong::RecordsUpsert { held.as_deref() } else { expected };
        self.inner.put_record(name, expected, content).await
    }
}

/// The tests of the suite that a store with this fault does not pass.
async fn failures(wrong: Wrong) -> Vec<&'static str> {
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
async fn a_wrong_store_does_not_pass() {
    assert_eq!(failures(Wrong::Nothing).await, [""; 0]);
    for (wrong, by) in [
        (Wrong::Upsert, "races"),
        (Wrong::LosesEntries, "index_under_16_writers"),
        (Wrong::ForgetsTombstones, "tombstones"),
        (Wrong::StaleReads, "linearizable"),
        (Wrong::VersionsOfTheClock, "versions"),
        (Wrong::TagsChange, "listing"),
        (Wrong::ForgetsVersions, "earlier_versions"),
        (Wrong::RecordsUpsert, "records"),
    ] {
        let failed = failures(wrong).await;
        println!("{wrong:?}: {failed:?}");
        assert!(failed.contains(&by), "{wrong:?} got past `{by}`: {failed:?}");
    }
}
