//! Quotas on a bucket, where the usage comes from the index.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memsync::proxy::keys::{self, KeyScope, KeySpec};
use memsync::store::{Store, system_clock};

use super::{BATCH, client, proxy, puts, s3, statuses};
use crate::common::s3::Server;

/// A key for all namespaces, of a user with this quota.
async fn with_quota(store: &impl Store, quota: u64) -> String {
    let now = jiff::Timestamp::now();
    keys::edit(store, |keys| keys.create_user("ana", Some(quota), now)).await.unwrap();
    let scope = KeyScope { namespaces: vec!["*".parse().unwrap()], ..KeyScope::default() };
    let new = KeySpec { user: Some("ana".to_owned()), scope, ..KeySpec::default() };
    let made = keys::edit(store, |keys| keys.create_key(&new, now)).await.unwrap();
    secrecy::ExposeSecret::expose_secret(&made.token).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quota_reads_the_index_once_for_a_batch() {
    let server = Server::start().await;
    let store = Arc::new(server.store("memory", system_clock()).await);
    let running = proxy::Running::start(store.clone()).await;
    let token = with_quota(store.as_ref(), 1000).await;
    let lists = Arc::new(AtomicUsize::new(0));
    let count = lists.clone();
    server.fail(move |method, key| {
        count.fetch_add(usize::from(method == "GET" && key.is_empty()), Ordering::SeqCst);
        s3::Fault::None
    });
    let mut c = client(&running, &token).await;
    let version = [("If-Match-Version", "0")];
    assert_eq!(c.send("PUT", "/team/blob/x", &version, &[b'x'; 100]).await.status, 201);
    let listed = lists.load(Ordering::SeqCst);
    let files = |from: usize| (from..from + 20).map(|n| (format!("{n}.md"), vec![b'x'; 90]));

    let before = store.index_traffic().reads;
    let r = c.send("POST", "/batch", &BATCH, &puts(files(0))).await;
    let statuses_of = statuses(&r.body);
    assert_eq!(statuses_of, [vec![201; 10], vec![507; 10]].concat(), "900 bytes are left of 1000");
    let reads = store.index_traffic().reads - before;
    assert!(reads <= 6, "{reads} reads of indexes for 20 files");
    assert_eq!(store.usage("").await.unwrap() + store.usage("team").await.unwrap(), 1000);
    let before = store.index_traffic().reads;
    for name in ["a", "b", "c"] {
        assert_eq!(client(&running, &c.token).await.put(&format!("/blob/{name}"), "new", b"x").await.status, 507);
    }
    assert!(store.index_traffic().reads - before <= 4, "the next request uses the cached index");

    let r = c.send("POST", "/batch/team/new", &BATCH, &puts(files(0))).await;
    assert_eq!(statuses(&r.body), [507; 20], "another namespace has no room of its own");
    let mut c = client(&running, &c.token).await;
    assert_eq!(c.delete("/blob/0.md").await.status, 204);
    assert_eq!(statuses(&c.send("POST", "/batch", &BATCH, &puts(files(20))).await.body)[..2], [201, 507]);
    assert_eq!(lists.load(Ordering::SeqCst), listed, "the bucket is not listed again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_writes_cost_a_quota_no_requests() {
    let server = Server::start().await;
    let store = Arc::new(server.store("memory", system_clock()).await);
    let running = proxy::Running::start(store.clone()).await;
    let token = with_quota(store.as_ref(), 1000).await;
    let mut c = client(&running, &token).await;
    let version = |version: &'static str| [("If-Match-Version", version)];
    for n in 0..300 {
        let refused = c.send("PUT", &format!("/none{n}/blob/x"), &version("7"), b"x").await;
        assert_eq!(refused.status, 412, "{refused:?}");
    }
    let before = store.index_traffic().reads;
    assert_eq!(c.send("PUT", "/team/blob/x", &version("0"), &[b'x'; 600]).await.status, 201);
    let reads = store.index_traffic().reads - before;
    assert!(reads <= 16, "{reads} reads of indexes");
    // A new namespace counts at once. The proxy closes the connection after an early refusal.
    let put = async |content: &[u8]| client(&running, &token).await.put("/blob/x", "new", content).await.status;
    assert_eq!(put(&[b'x'; 500]).await, 507);
    assert_eq!(c.send("PUT", "/other/blob/x", &version("0"), &[b'x'; 400]).await.status, 201);
    assert_eq!(put(b"x").await, 507);
}

/// A client that disconnects keeps its room reserved until its write ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_in_flight_counts_towards_the_quota() {
    let server = Server::start().await;
    let store = Arc::new(server.store("memory", system_clock()).await);
    let running = proxy::Running::start(store.clone()).await;
    let token = with_quota(store.as_ref(), 100).await;
    let batch = puts(std::iter::once(("slow.md".to_owned(), vec![b'x'; 60])));
    for (n, (method, target, header, body)) in
        [("PUT", "/blob/slow.md", ("Content-MD5", "new"), vec![b'x'; 60]), ("POST", "/batch", BATCH[0], batch)]
            .into_iter()
            .enumerate()
    {
        let began = Arc::new(AtomicUsize::new(0));
        let count = began.clone();
        server.fail(move |method, key| {
            if (method, key) != ("PUT", "memory/slow.md") {
                return s3::Fault::None;
            }
            count.fetch_add(1, Ordering::SeqCst);
            s3::Fault::Slow(Duration::from_secs(2))
        });
        let mut gone = client(&running, &token).await;
        let length = ("Content-Length", body.len().to_string());
        let headers = [("Authorization", format!("Bearer {token}")), length, (header.0, header.1.to_owned())];
        gone.write(&[proxy::head(method, target, &headers), body].concat()).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while began.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "the write began");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(gone);
        // The proxy closes the connection after an early refusal.
        let refused = async || {
            let status = client(&running, &token).await.put("/blob/other.md", "new", &[b'x'; 60]).await.status;
            assert_eq!(status, 507, "{n}");
        };
        while server.object("memory/slow.md").is_none() {
            assert!(Instant::now() < deadline, "the blob is written");
            refused().await;
        }
        while store.index("", 0).await.unwrap().entries.is_empty() {
            assert!(Instant::now() < deadline, "the entry is recorded");
        }
        refused().await;
        server.heal();
        assert_eq!(client(&running, &token).await.delete("/blob/slow.md").await.status, 204);
        server.remove("memory/slow.md");
        server.remove("memory/.sync-index.json");
    }
}
