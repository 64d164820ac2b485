//! Two proxies on one bucket, one of which is killed again and again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use memsync::digest::Md5;
use memsync::store::{BlobMeta, GetOutcome, Retention, S3Store, Store, StoreError, WriteCondition, system_clock};
use tokio::runtime::Runtime;

use super::linearizability::{Answer, Asked, Operation, Versions, is_linearizable};
use super::s3::until;
use super::{path, seed};
use crate::common::s3::{Server, difference};

/// A store with its own runtime, so that it can be killed with all its tasks.
struct KillableStore {
    store: S3Store,
    /// `None` after it was killed.
    runtime: Mutex<Option<Runtime>>,
}

impl KillableStore {
    fn start(server: &Arc<Server>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let server = server.clone();
        let store = runtime.block_on(async move {
            let store = server.store("memory", system_clock()).await;
            store.repair_after_crash().await.unwrap();
            store
        });
        Self { store, runtime: Mutex::new(Some(runtime)) }
    }

    /// Runs `work` in this store's runtime; `Closed` if it was killed.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let handle = self.runtime.lock().unwrap().as_ref().map(|runtime| runtime.handle().clone());
        handle.ok_or(StoreError::Closed)?.spawn(work).await.map_err(|_| StoreError::Closed)?
    }

    /// Kills all tasks. Users keep their reference.
    fn kill(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for KillableStore {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "a story from top to bottom")]
async fn killed_proxy_beside_another_loses_nothing() {
    const WRITERS: u64 = 32;
    const KEYS: u64 = 50;
    let seed = seed();
    let server = Arc::new(Server::start().await);
    let start = |server: Arc<Server>| async move {
        tokio::task::spawn_blocking(move || Arc::new(KillableStore::start(&server))).await.unwrap()
    };
    let steady = start(server.clone()).await;
    let mortal = Arc::new(Mutex::new(start(server.clone()).await));
    let over = Arc::new(AtomicBool::new(false));
    let killer = tokio::spawn({
        let (server, mortal, over) = (server.clone(), mortal.clone(), over.clone());
        async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut deaths = 0;
            while !over.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(random.u64(20..150))).await;
                let next = start(server.clone()).await;
                std::mem::replace(&mut *mortal.lock().unwrap(), next).kill();
                deaths += 1;
            }
            deaths
        }
    });

    let tick = Arc::new(AtomicU64::new(0));
    let writers = (0..WRITERS).map(|writer| {
        let (steady, mortal, tick) = (steady.clone(), mortal.clone(), tick.clone());
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed ^ (writer + 1));
            let mut history: Vec<(u64, Operation)> = Vec::new();
            let now = || tick.fetch_add(1, Ordering::SeqCst);
            for n in 0..30u32 {
                let key = random.u64(..KEYS);
                let name = path(&format!("k/{key}"));
                let proxy = if random.bool() { steady.clone() } else { mortal.lock().unwrap().clone() };
                let store = proxy.store.clone();
                let began = now();
                let (of, at) = (store.clone(), name.clone());
                let got = proxy.run(async move { of.get("", &at).await }).await;
                let answer = Answer::from_get(&got);
                history.push((key, Operation { asked: Asked::Get, answer, began, ended: now() }));
                let expect = match &got {
                    Ok(GetOutcome::Found(blob)) => WriteCondition::Md5(blob.entry.md5),
                    Ok(GetOutcome::Tombstone(_) | GetOutcome::Absent) => WriteCondition::Absent,
                    Err(_) => continue,
                };
                let began = now();
                let (asked, answer) = if random.u8(..6) == 0 {
                    let deleted = proxy
                        .run(async move { store.delete("", &name, Some(expect), BlobMeta::default()).await })
                        .await;
                    (Asked::Delete(Some(expect)), Answer::from_delete(&deleted))
                } else {
                    // Every content is unique: a repeated ETag would hide the writes in between.
                    let content = format!("{writer}.{n}");
                    let md5 = Md5::of(content.as_bytes());
                    let put = proxy.run(async move { store.put_bytes("", &name, expect, content.into()).await }).await;
                    (Asked::Put(expect, md5), Answer::from_put(&put))
                };
                history.push((key, Operation { asked, answer, began, ended: now() }));
            }
            history
        })
    });
    let all: Vec<_> = join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
    over.store(true, Ordering::SeqCst);
    let deaths = killer.await.unwrap();
    let mut by_key: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for (key, operation) in all {
        by_key.entry(key).or_default().push(operation);
    }

    // Read everything once more, after the start of another proxy repaired the index.
    let last = start(server.clone()).await;
    let (mut writes, mut unknown, mut versions) = (0, 0, 0);
    for (key, mut history) in by_key {
        let began = tick.fetch_add(1, Ordering::SeqCst);
        let (store, name) = (last.store.clone(), path(&format!("k/{key}")));
        let got = last.run(async move { store.get("", &name).await }).await;
        let answer = Answer::from_get(&got);
        assert!(got.is_ok());
        history.push(Operation { asked: Asked::Get, answer, began, ended: tick.fetch_add(1, Ordering::SeqCst) });
        writes += history.iter().filter(|o| matches!(o.answer, Answer::Written(_))).count();
        unknown += history.iter().filter(|o| o.answer == Answer::Unknown).count();
        // Every acknowledged content is current or an earlier version.
        let (store, name) = (last.store.clone(), path(&format!("k/{key}")));
        let kept = last.run(async move { store.versions("", &name).await }).await.unwrap();
        let put = |o: &Operation| match (o.asked, &o.answer) {
            (Asked::Put(_, md5), Answer::Written(_)) => Some(md5),
            _ => None,
        };
        let full = kept.len() > usize::try_from(Retention::default().versions).unwrap();
        let lost: Vec<_> =
            history.iter().filter_map(put).filter(|md5| kept.iter().all(|v| v.entry.md5 != *md5)).collect();
        assert!(full || lost.is_empty(), "k/{key} has lost {lost:?}: {kept:#?}");
        versions += kept.len();
        assert!(is_linearizable(&history, Versions::Differ), "no order explains the answers of k/{key}:\n{history:#?}");
    }
    println!("{deaths} deaths, {writes} writes acknowledged, {unknown} without an answer, {versions} versions");
    assert!(deaths >= 3 && writes > 200, "{deaths} deaths, {writes} writes");
    // A read of a blob that differs from its entry corrects the entry.
    until("the index matches the blobs", async || {
        for key in 0..KEYS {
            let (store, name) = (last.store.clone(), path(&format!("k/{key}")));
            last.run(async move { store.get("", &name).await }).await.unwrap();
        }
        difference(&server, "memory").is_empty()
    })
    .await;
    drop((steady, last));
    drop(mortal);
}
