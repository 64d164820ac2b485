//! Repair of an index on S3: at the start after a crash, and by `memsync reindex`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use memsync::digest::Md5;
use memsync::store::{GetOutcome, Store, system_clock};

use super::s3::{INDEX, here, stored_index, until};
use super::{Holds, New, delete, path, put};
use crate::common::s3::{Fault, Server, Stored, difference};

/// A crash between a blob and its entry loses the entry. The next start adds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_after_a_crash_repairs_the_index() {
    let server = Arc::new(Server::start().await);
    server.fail(
        |method, key| {
            if method == "PUT" && key == INDEX { Fault::Slow(Duration::from_secs(600)) } else { Fault::None }
        },
    );
    let theirs = server.clone();
    let dying = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = theirs.store("memory", system_clock()).await;
            theirs.plant(INDEX, Stored::new(br#"{"files": {}}"#, &[]));
            let name = path("a");
            let write = store.put_bytes("", &name, New, Bytes::from_static(b"a"));
            tokio::select! {
                _ = write => panic!("it cannot have been recorded"),
                () = until("the blob is there", async || theirs.object("memory/a").is_some()) => {}
            }
        });
        runtime.shutdown_background();
    });
    tokio::task::spawn_blocking(move || dying.join().unwrap()).await.unwrap();
    server.heal();
    assert_eq!(difference(&server, "memory").len(), 1);
    let store = server.store("memory", system_clock()).await;
    assert_eq!(store.repair_after_crash().await.unwrap()[""].added, [path("a")]);
    assert_eq!(difference(&server, "memory"), [""; 0]);
    assert!(store.repair_after_crash().await.unwrap()[""].is_nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reindex_repairs_and_reports_every_fault() {
    let (server, store) = here().await;
    for n in 0..120 {
        put(&store, &format!("n/{n}"), New, &[n]).await;
    }
    delete(&store, "n/7", None).await;
    store.put_bytes("team", &path("a"), New, Bytes::from_static(b"a")).await.unwrap();
    let flat = store.reindex().await.unwrap().remove("").unwrap();
    assert!(flat.is_nothing() && flat.blobs == 120, "{flat:?}");

    // Lost entries, wrong ones, an undeleted one, one without a blob, and a key that is not a path.
    let mut broken = stored_index(&server, INDEX);
    let files = broken["files"].as_object_mut().unwrap();
    files.remove("n/1");
    files.remove("n/2");
    files["n/3"]["md5"] = Md5::of(b"other").to_string().into();
    files["n/4"]["version"] = 9_999_999_999_999_u64.into();
    files["n/7"]["is_deleted"] = false.into();
    let ghost = files["n/5"].clone();
    files.insert("ghost".to_owned(), ghost);
    server.plant(INDEX, Stored::new(&serde_json::to_vec(&broken).unwrap(), &[]));
    server.plant("memory/back\\slash", Stored::new(b"", &[]));
    let mended = store.reindex().await.unwrap();
    let flat = &mended[""];
    assert_eq!(flat.added, [path("n/1"), path("n/2")]);
    assert_eq!(flat.corrected, [path("n/3"), path("n/4"), path("n/7")]);
    assert_eq!((&flat.dropped[..], &flat.left_out[..]), (&[path("ghost")][..], &["back\\slash".to_owned()][..]));
    assert!(mended["team"].is_nothing() && mended["team"].blobs == 1);
    server.remove("memory/back\\slash");
    server.remove("memory/team/a");
    assert_eq!(store.reindex().await.unwrap()["team"].dropped, [path("a")]);
    server.remove("memory/team/.sync-index.json");
    assert!(store.reindex().await.unwrap()[""].is_nothing(), "the second run repairs nothing");
    assert_eq!(difference(&server, "memory"), [""; 0]);

    // A damaged index does not count as empty, and reindex replaces it.
    server.plant(INDEX, Stored::new(b"{\"files\": {\"n/1", &[]));
    let refused = store.index("", 0).await.unwrap_err().to_string();
    assert!(refused.contains("memsync reindex"), "{refused}");
    assert_eq!(store.reindex().await.unwrap()[""].added.len(), 120);
    assert_eq!(difference(&server, "memory"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reindex_loses_nothing_while_a_proxy_serves() {
    let (server, store) = here().await;
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 0..150u32 {
                let name = format!("w/{}", n % 10);
                match store.get("", &path(&name)).await.unwrap() {
                    GetOutcome::Found(blob) if n % 3 == 0 => drop(delete(&store, &name, Some(blob.entry.md5)).await),
                    GetOutcome::Found(blob) => drop(put(&store, &name, Holds(blob.entry.md5), &n.to_be_bytes()).await),
                    GetOutcome::Tombstone(_) | GetOutcome::Absent => {
                        put(&store, &name, New, &n.to_be_bytes()).await;
                    }
                }
            }
        }
    });
    let other = server.store("memory", system_clock()).await;
    while !writer.is_finished() {
        other.reindex().await.unwrap();
    }
    writer.await.unwrap();
    assert_eq!(difference(&server, "memory"), [""; 0]);
}
