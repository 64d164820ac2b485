//! What others put into a bucket, or ask of it, holds up nobody and opens nothing: odd keys, names that are too long,
//! and the past of a folder that becomes a namespace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use memsync::digest::Md5;
use memsync::store::{BlobMeta, GetOutcome, Store, StoreError, system_clock};

use super::s3::until;
use super::server::{Fault, Server, Stored, difference};
use super::{Holds, New, delete, index, path, put, read, written};

/// What a path held without a namespace is none of the namespace's that begins where it was, nor the other way round.
#[tokio::test]
async fn a_namespace_does_not_inherit_what_a_folder_held_before() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let first = written(put(&store, "team/x", New, b"secret").await);
    let second = written(put(&store, "team/x", Holds(first.md5), b"secret, too").await);
    delete(&store, "team/x", None).await;
    written(store.put_bytes("team", &path("y"), New, Bytes::from_static(b"y")).await.unwrap());
    let (team, x) = ("team", path("x"));
    assert!(store.versions(team, &x).await.unwrap().iter().all(|version| version.is_deleted));
    for version in [first.version, second.version] {
        assert!(matches!(store.get_version(team, &x, version).await.unwrap(), GetOutcome::Absent));
    }

    // It has a past of its own.
    let mine = written(store.put_bytes(team, &x, New, Bytes::from_static(b"mine")).await.unwrap());
    written(store.put_bytes(team, &x, Holds(mine.md5), Bytes::from_static(b"again")).await.unwrap());
    assert!(matches!(store.get_version(team, &x, mine.version).await.unwrap(), GetOutcome::Found(_)));
    assert_eq!(store.versions(team, &x).await.unwrap().len(), 2);
    assert!(matches!(store.get_version(team, &x, first.version).await.unwrap(), GetOutcome::Absent));
}

/// The start has not found out yet whose files are in the folder.
#[tokio::test]
async fn a_namespace_waits_for_the_mending_of_a_start() {
    let server = Server::start().await;
    let md5 = Md5::of(b"x").to_string();
    server.plant("memory/team/x", Stored::new(b"x", &[("content-md5", &md5), ("version", "7")]));
    let (team, x, y) = ("team", path("x"), path("y"));
    let of_flat =
        |e: &StoreError| matches!(e, StoreError::OtherNamespace { .. } | StoreError::NamespaceOccupied { .. });
    for n in 0..3 {
        let store = server.store("memory", system_clock()).await;
        let mending = store.repair_after_crash();
        let asked = async {
            match n {
                0 => store.get(team, &x).await.map(drop),
                1 => store.put_bytes(team, &y, New, Bytes::from_static(b"y")).await.map(drop),
                _ => store.delete(team, &x, None, BlobMeta::default()).await.map(drop),
            }
        };
        let (asked, mended) = tokio::join!(asked, mending);
        assert!(asked.as_ref().is_err_and(of_flat), "{n}: {asked:?}");
        assert_eq!(mended.unwrap()[""].blobs, 1);
        server.remove("memory/.sync-index.json");
    }
    // One that has begun waits for nothing, nor does who asks without one.
    let store = server.store("memory", system_clock()).await;
    written(store.put_bytes("other", &y, New, Bytes::from_static(b"y")).await.unwrap());
    let store = server.store("memory", system_clock()).await;
    let mending = store.repair_after_crash();
    assert!(matches!(store.get("other", &y).await.unwrap(), GetOutcome::Found(_)));
    assert_eq!(read(&store, "team/x").await.as_deref(), Some(&b"x"[..]));
    drop(mending);
}

/// Other programs may give objects names that no client of S3 in this program can write down.
#[tokio::test]
async fn keys_that_are_no_names_spoil_no_listing() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    for n in 0..60 {
        put(&store, &format!("n/{n}"), New, &[n]).await;
    }
    let odd = ["../up", "a&<b>\"'\t", "a//b", "d/./x", "n/\u{1}", "n/30//"];
    for name in odd {
        server.plant(&format!("memory/{name}"), Stored::new(b"odd", &[]));
    }
    server.plant("memory//.sync-index.json", Stored::new(b"odd", &[]));
    server.plant("memory.memsync/versions//x", Stored::new(b"odd", &[]));
    server.plant("memory.memsync/expires//x", Stored::new(b"odd", &[]));
    let store = server.store("memory", system_clock()).await;
    let mended = store.repair_after_crash().await.unwrap();
    assert_eq!((mended.len(), mended[""].blobs, mended[""].is_nothing()), (1, 60, true), "{mended:?}");
    let mut left_out = mended[""].left_out.clone();
    left_out.sort();
    assert_eq!(left_out, odd);
    assert_eq!(store.namespaces().await.unwrap(), [""]);
    store.sweep().await.unwrap();
    assert_eq!(index(&store, 0).await.len(), 60);
}

/// What a sweep failed at first is what it tells, even where the bucket cannot be listed either.
#[tokio::test]
async fn a_sweep_tells_of_its_first_failure() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let meta = BlobMeta { expires: Some(1), ..BlobMeta::default() };
    written(store.put("team", &path("due"), New, meta, store.new_body()).await.unwrap());
    server.plant("memory/team/.sync-index.json", Stored::new(b"{", &[]));
    let (store, listings) = (server.store("memory", system_clock()).await, AtomicUsize::new(0));
    server.fail(move |method, key| {
        // What is due and the copies can be listed, the namespaces cannot.
        let is_late = method == "GET" && key.is_empty() && listings.fetch_add(1, Ordering::SeqCst) >= 2;
        if is_late { Fault::Refused } else { Fault::None }
    });
    let told = store.sweep().await.unwrap_err().to_string();
    assert!(told.contains("is damaged"), "{told}");
}

/// A key has at most 1,024 bytes, prefix and namespace included.
#[tokio::test]
async fn a_name_that_is_too_long_for_a_key_is_refused_as_such() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let name = |len: usize| {
        let mut name = "x".repeat(len);
        (100..len).step_by(101).for_each(|at| name.replace_range(at..=at, "/"));
        name
    };
    let longest = 1024 - "memory/".len();
    written(put(&store, &name(longest), New, b"x").await);
    assert_eq!(read(&store, &name(longest)).await.as_deref(), Some(&b"x"[..]));
    let ns = 1024 - "memory/".len() - "/.sync-index.json".len();
    written(store.put_bytes(&name(ns), &path("x"), New, Bytes::from_static(b"x")).await.unwrap());
    let is_told = |refused: StoreError| refused.to_string().contains("too long");
    for (ns, path) in [(String::new(), path(&name(longest + 1))), (name(ns + 1), path("x"))] {
        assert!(is_told(store.put_bytes(&ns, &path, New, Bytes::new()).await.unwrap_err()));
        assert!(is_told(store.get(&ns, &path).await.map(drop).unwrap_err()));
        assert!(is_told(store.delete(&ns, &path, None, BlobMeta::default()).await.unwrap_err()));
        assert!(is_told(store.versions(&ns, &path).await.unwrap_err()));
    }
    assert!(is_told(store.index(&name(ns + 1), 0).await.unwrap_err()));
}

/// Readers who find that many entries are missing hold up no write.
#[tokio::test]
async fn a_write_waits_for_few_looks() {
    let server = Server::start().await;
    for n in 0..400u32 {
        let (content, md5) = (n.to_be_bytes(), Md5::of(&n.to_be_bytes()).to_string());
        let described = [("content-md5", &*md5), ("is-deleted", "false"), ("version", "7")];
        server.plant(&format!("memory/{n}"), Stored::new(&content, &described));
    }
    let store = server.store("memory", system_clock()).await;
    let looks = Arc::new(AtomicUsize::new(0));
    let count = looks.clone();
    server.fail(move |method, key| {
        if method != "HEAD" || key.ends_with(".json") {
            return Fault::None;
        }
        count.fetch_add(1, Ordering::SeqCst);
        Fault::Slow(Duration::from_millis(10))
    });
    let names: Vec<_> = (0..400).map(|n| path(&n.to_string())).collect();
    assert!(store.get_many("", names).await.iter().all(|got| matches!(got, Ok(GetOutcome::Found(_)))));
    let before = looks.load(Ordering::SeqCst);
    written(put(&store, "new", New, b"new").await);
    let meanwhile = looks.load(Ordering::SeqCst) - before;
    // The group that was under way, and the write's own.
    assert!(meanwhile < 200, "{meanwhile} looks before a write was recorded");
    until("all are there", async || index(&store, 0).await.len() == 401).await;
    assert_eq!(difference(&server, "memory"), [""; 0]);
}
