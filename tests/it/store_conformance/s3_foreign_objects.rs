//! Odd keys and names in a bucket, and versions from before a folder became a namespace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use memsync::digest::Md5;
use memsync::store::{BlobMeta, GetOutcome, Store, StoreError, system_clock};

use super::s3::until;
use super::{Holds, New, delete, index, path, put, read, written};
use crate::common::s3::{Fault, Server, Stored, difference};

/// Versions of a flat file are not versions in a namespace that begins there later.
#[tokio::test]
async fn namespace_does_not_inherit_versions_of_a_folder() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let first = written(put(&store, "team/x", New, b"secret").await);
    let second = written(put(&store, "team/x", Holds(first.md5), b"secret, too").await);
    delete(&store, "team/x", None).await;
    written(store.put_bytes("team", &path("y"), New, Bytes::from_static(b"y")).await.unwrap());
    let (team, x) = ("team", path("x"));
    assert!(store.versions(team, &x).await.unwrap().iter().all(|version| version.entry.is_deleted));
    for version in [first.version, second.version] {
        assert!(matches!(store.read(team, &x, Some(version)).await.unwrap(), GetOutcome::Absent));
    }

    // The namespace has its own versions.
    let mine = written(store.put_bytes(team, &x, New, Bytes::from_static(b"mine")).await.unwrap());
    written(store.put_bytes(team, &x, Holds(mine.md5), Bytes::from_static(b"again")).await.unwrap());
    assert!(matches!(store.read(team, &x, Some(mine.version)).await.unwrap(), GetOutcome::Found(_)));
    assert_eq!(store.versions(team, &x).await.unwrap().len(), 2);
    assert!(matches!(store.read(team, &x, Some(first.version)).await.unwrap(), GetOutcome::Absent));
}

/// During the repair at the start it is unknown whether the flat namespace has files in the folder.
#[tokio::test]
async fn new_namespace_waits_for_the_repair() {
    let server = Server::start().await;
    let md5 = Md5::of(b"x").to_string();
    server.plant("memory/team/x", Stored::new(b"x", &[("content-md5", &md5), ("version", "7")]));
    let (team, x, y) = ("team", path("x"), path("y"));
    let of_flat =
        |e: &StoreError| matches!(e, StoreError::OtherNamespace { .. } | StoreError::NamespaceOccupied { .. });
    for n in 0..3 {
        let store = server.store("memory", system_clock()).await;
        let repair = store.repair_after_crash();
        let asked = async {
            match n {
                0 => store.get(team, &x).await.map(drop),
                1 => store.put_bytes(team, &y, New, Bytes::from_static(b"y")).await.map(drop),
                _ => store.delete(team, &x, None, BlobMeta::default()).await.map(drop),
            }
        };
        let (asked, mended) = tokio::join!(asked, repair);
        assert!(asked.as_ref().is_err_and(of_flat), "{n}: {asked:?}");
        assert_eq!(mended.unwrap()[""].blobs, 1);
        server.remove("memory/.sync-index.json");
    }
    // Existing namespaces and the flat one do not wait.
    let store = server.store("memory", system_clock()).await;
    written(store.put_bytes("other", &y, New, Bytes::from_static(b"y")).await.unwrap());
    let store = server.store("memory", system_clock()).await;
    let repair = store.repair_after_crash();
    assert!(matches!(store.get("other", &y).await.unwrap(), GetOutcome::Found(_)));
    assert_eq!(read(&store, "team/x").await.as_deref(), Some(&b"x"[..]));
    drop(repair);
}

/// Other programs may create keys that our S3 client cannot name.
#[tokio::test]
async fn unnamable_keys_do_not_break_a_listing() {
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

/// A sweep reports its first failure even if a later listing fails, too.
#[tokio::test]
async fn sweep_reports_its_first_failure() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let meta = BlobMeta { expires: Some(1), ..BlobMeta::default() };
    written(store.put("team", &path("due"), New, meta, store.new_body()).await.unwrap());
    server.plant("memory/team/.sync-index.json", Stored::new(b"{", &[]));
    let (store, listings) = (server.store("memory", system_clock()).await, AtomicUsize::new(0));
    server.fail(move |method, key| {
        // The notes and copies can be listed, the namespaces cannot.
        let is_late = method == "GET" && key.is_empty() && listings.fetch_add(1, Ordering::SeqCst) >= 2;
        if is_late { Fault::Refused } else { Fault::None }
    });
    let error = store.sweep().await.unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
}

/// A key has at most 1,024 bytes, prefix and namespace included.
#[tokio::test]
async fn name_too_long_for_a_key_is_refused() {
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
    let is_too_long = |refused: StoreError| refused.to_string().contains("too long");
    for (ns, path) in [(String::new(), path(&name(longest + 1))), (name(ns + 1), path("x"))] {
        assert!(is_too_long(store.put_bytes(&ns, &path, New, Bytes::new()).await.unwrap_err()));
        assert!(is_too_long(store.get(&ns, &path).await.map(drop).unwrap_err()));
        assert!(is_too_long(store.delete(&ns, &path, None, BlobMeta::default()).await.unwrap_err()));
        assert!(is_too_long(store.versions(&ns, &path).await.unwrap_err()));
    }
    assert!(is_too_long(store.index(&name(ns + 1), 0).await.unwrap_err()));
}

/// Many lookups of missing entries do not delay a write.
#[tokio::test]
async fn write_waits_for_few_lookups() {
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
    // The lookups of the current group, and of the write's group.
    assert!(meanwhile < 200, "{meanwhile} lookups before a write was recorded");
    until("the index has all files", async || index(&store, 0).await.len() == 401).await;
    assert_eq!(difference(&server, "memory"), [""; 0]);
}
