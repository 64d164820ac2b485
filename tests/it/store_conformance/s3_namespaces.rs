//! Namespaces in a bucket: a namespace's file is the same object as a flat file with a longer name, and has one owner.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use memsync::digest::Md5;
use memsync::path::RelPath;
use memsync::store::{
    BlobMeta, DeleteOutcome, GetOutcome, NamespaceName, PutOutcome, S3Store, Store, StoreError, WriteCondition,
    system_clock,
};
use serde_json::json;

use super::s3::until;
use super::{New, index, path, put, written};
use crate::common::s3::{Fault, Server, Stored, difference};

/// Checks that every operation refuses a path that belongs to `namespace`.
async fn is_refused(store: &S3Store, ns: &str, name: &str, namespace: &str) {
    let name: RelPath = path(name);
    let is = |refused: &StoreError| match refused {
        StoreError::OtherNamespace { namespace: owner, .. } => owner == &NamespaceName(namespace.to_owned()),
        _ => false,
    };
    let refusals = [
        store.get(ns, &name).await.map(drop),
        store.put_bytes(ns, &name, New, Bytes::from_static(b"mine")).await.map(drop),
        store.put_bytes(ns, &name, WriteCondition::Version(1), Bytes::from_static(b"mine")).await.map(drop),
        store.delete(ns, &name, None, BlobMeta::default()).await.map(drop),
        store.versions(ns, &name).await.map(drop),
        store.read(ns, &name, Some(1)).await.map(drop),
    ];
    for (n, refused) in refusals.iter().enumerate() {
        assert!(refused.as_ref().is_err_and(is), "{ns:?} {name} ({n}): {refused:?}");
    }
}

#[tokio::test]
async fn file_is_reached_only_through_its_namespace() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let put_in = async |ns: &str, name: &str| {
        written(store.put_bytes(ns, &path(name), New, Bytes::from(format!("{ns} {name}"))).await.unwrap())
    };
    put_in("team", "x").await;
    put_in("team/deep", "y").await;
    put_in("", "notes/z").await;
    let other = server.store("memory", system_clock()).await;
    for store in [&store, &other] {
        is_refused(store, "", "team/x", "team").await;
        is_refused(store, "", "team/new", "team").await;
        is_refused(store, "", "team/deep/y", "team/deep").await;
        is_refused(store, "team", "deep/y", "team/deep").await;
        // `notes` is not a namespace, so its files are flat.
        is_refused(store, "notes", "z", "").await;
        assert!(matches!(store.get("", &path("team.md")).await.unwrap(), GetOutcome::Absent));
        assert!(matches!(store.get("team", &path("x")).await.unwrap(), GetOutcome::Found(_)));
        assert!(matches!(store.get("notes", &path("other")).await.unwrap(), GetOutcome::Absent));
        assert!(matches!(
            store.delete("notes", &path("other"), None, BlobMeta::default()).await.unwrap(),
            DeleteOutcome::Absent
        ));
    }
    assert_eq!(index(&store, 0).await.keys().collect::<Vec<_>>(), ["notes/z"]);
    assert_eq!(difference(&server, "memory/team/deep"), [""; 0]);
}

#[tokio::test]
async fn namespace_does_not_begin_over_files_of_another() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let a = written(put(&store, "team/notes/a", New, b"a").await);
    let begin = async |ns: &str| store.put_bytes(ns, &path("b"), New, Bytes::from_static(b"b")).await;
    for ns in ["team", "team/notes"] {
        let refused = begin(ns).await.unwrap_err();
        assert!(matches!(&refused, StoreError::NamespaceOccupied { namespace, .. } if namespace == ns), "{refused:?}");
        assert!(refused.to_string().contains("choose another name"), "{refused}");
        assert!(server.object(&format!("memory/{ns}/.sync-index.json")).is_none(), "no namespace has begun");
    }
    assert!(matches!(begin("team/other").await.unwrap(), PutOutcome::Created(_)), "another folder is free");
    assert!(matches!(store.get("", &path("team/notes/a")).await.unwrap(), GetOutcome::Found(blob) if blob.entry == a));
    // After their deletion it can begin.
    store.delete("", &path("team/notes/a"), None, BlobMeta::default()).await.unwrap();
    assert!(matches!(begin("team/notes").await.unwrap(), PutOutcome::Created(_)));
}

/// A read or a refused write does not create a namespace: the folder's files stay flat.
#[tokio::test]
async fn only_an_allowed_write_begins_a_namespace() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    // A crash left this blob without an entry.
    let md5 = Md5::of(b"x").to_string();
    server.plant("memory/team/x", Stored::new(b"x", &[("content-md5", &md5), ("version", "7")]));
    put(&store, "team/y", New, b"y").await;

    let version = WriteCondition::Version(7);
    for _ in 0..3 {
        drop(store.get("team", &path("x")).await.unwrap());
        let refused = store.delete("team", &path("x"), Some(version), BlobMeta::default()).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::NamespaceOccupied { namespace, .. } if namespace == "team"),
            "{refused:?}"
        );
        let refused =
            store.delete("team", &path("x"), Some(WriteCondition::Version(8)), BlobMeta::default()).await.unwrap();
        assert!(matches!(refused, DeleteOutcome::Mismatch(entry) if entry.version == 7), "{refused:?}");
    }
    // The outer index handles this request after those of the reads.
    assert!(matches!(store.get("", &path("team/x")).await.unwrap(), GetOutcome::Found(_)));
    until("the entry is there", async || index(&store, 0).await.contains_key("team/x")).await;
    assert!(server.object("memory/team/.sync-index.json").is_none(), "no namespace has begun");
    assert!(matches!(store.get("", &path("team/y")).await.unwrap(), GetOutcome::Found(_)));
    is_refused(&store, "team", "x", "").await;

    // A refused write does not, either.
    for expect in [WriteCondition::Version(7), WriteCondition::Md5(Md5::of(b"x"))] {
        let refused = store.put_bytes("none", &path("x"), expect, Bytes::from_static(b"new")).await.unwrap();
        assert_eq!(refused, PutOutcome::Mismatch(None));
        assert_eq!(
            store.delete("none", &path("x"), Some(expect), BlobMeta::default()).await.unwrap(),
            DeleteOutcome::Absent
        );
    }
    assert!(server.keys().iter().all(|key| !key.starts_with("memory/none")), "no namespace has begun");

    // Without files of others, a deletion creates the namespace for its tombstone.
    server.plant("memory/alone/x", Stored::new(b"x", &[("content-md5", &md5), ("version", "7")]));
    let done = store.delete("alone", &path("x"), Some(version), BlobMeta::default()).await.unwrap();
    assert!(matches!(done, DeleteOutcome::Done(_)), "{done:?}");
    assert_eq!(difference(&server, "memory/alone"), [""; 0]);
    assert!(server.object("memory/alone/.sync-index.json").is_some());
}

/// A deep name costs one request for each folder, and none the next time.
#[tokio::test]
async fn deep_name_costs_few_requests() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    put(&store, "n/n/x", New, b"x").await;
    let deep = vec!["n"; 300].join("/");
    let requests = || server.requests().values().sum::<usize>();
    let ask = async || {
        let before = requests();
        assert!(matches!(store.get(&deep, &path("x")).await.unwrap(), GetOutcome::Absent));
        requests() - before
    };
    let first = ask().await;
    assert!(first < 320, "{first} requests: one for each folder");
    let again = ask().await;
    assert!(again < 10, "{again} requests: the folders are cached");
    is_refused(&store, "n/n", "x", "").await;
    assert_eq!(index(&store, 0).await.len(), 1);
}

/// Files of a namespace that begins during a repair stay out of the outer index.
#[tokio::test]
async fn reindex_sees_a_namespace_that_begins_meanwhile() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    put(&store, "a", New, b"a").await;
    let (inside, listings) = (server.inside.clone(), AtomicUsize::new(0));
    server.fail(move |method, key| {
        // The first listing is for the namespaces, the second for the files of the flat one.
        if method == "GET" && key.is_empty() && listings.fetch_add(1, Ordering::SeqCst) == 1 {
            let mut objects = inside.objects.lock().unwrap();
            objects.insert("memory/team/.sync-index.json".to_owned(), Stored::new(br#"{"files": {}}"#, &[]));
            objects.insert("memory/team/x".to_owned(), Stored::new(b"x", &[]));
        }
        Fault::None
    });
    let mended = store.reindex().await.unwrap();
    assert!(server.object("memory/team/x").is_some(), "it began meanwhile");
    assert!(mended[""].is_nothing() && mended[""].blobs == 1, "{mended:?}");
    assert_eq!(index(&store, 0).await.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(store.reindex().await.unwrap()["team"].added, [path("x")]);
}

const FLAT: &str = "memory/.sync-index.json";
const TEAM: &str = "memory/team/.sync-index.json";

/// Runs `there` on the server's objects just before the `nth` write of `key`, as another proxy would at that moment.
fn meanwhile(
    server: &Server,
    key: &'static str,
    nth: usize,
    there: impl Fn(&mut BTreeMap<String, Stored>) + Send + Sync + 'static,
) {
    let (inside, writes) = (server.inside.clone(), AtomicUsize::new(0));
    server.fail(move |method, asked| {
        if method == "PUT" && asked == key && writes.fetch_add(1, Ordering::SeqCst) + 1 == nth {
            there(&mut inside.objects.lock().unwrap());
        }
        Fault::None
    });
}

/// Adds a flat file in the folder that is about to become a namespace.
fn record_a_flat_file(objects: &mut BTreeMap<String, Stored>) {
    let md5 = Md5::of(b"x").to_string();
    objects.insert("memory/team/x".to_owned(), Stored::new(b"x", &[("content-md5", &md5), ("version", "7")]));
    objects
        .insert(FLAT.to_owned(), Stored::new(json!({"files": {"team/x": row_of(b"x")}}).to_string().as_bytes(), &[]));
}

#[tokio::test]
async fn new_namespace_sees_a_concurrent_flat_file() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    meanwhile(&server, TEAM, 1, record_a_flat_file);
    let begin = async || store.put_bytes("team", &path("y"), New, Bytes::from_static(b"y")).await;
    let refused = begin().await.unwrap_err();
    assert!(matches!(&refused, StoreError::NamespaceOccupied { namespace, .. } if namespace == "team"), "{refused:?}");
    assert!(server.object(TEAM).is_none() && server.object("memory/team/y").is_none(), "no namespace has begun");
    assert!(matches!(store.get("", &path("team/x")).await.unwrap(), GetOutcome::Found(_)));
    assert!(matches!(begin().await.unwrap_err(), StoreError::NamespaceOccupied { .. }));
}

/// The proxy that created the index crashed before its second check.
#[tokio::test]
async fn stale_empty_index_is_removed_by_the_next_writer() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let index = Stored::new(br#"{"files": {}}"#, &[("memsync-write", "1")]);
    server.plant(TEAM, index.clone());
    record_a_flat_file(&mut server.inside.objects.lock().unwrap());
    is_refused(&store, "", "team/x", "team").await;
    let begin = async |name| store.put_bytes("team", &path(name), New, Bytes::from_static(b"y")).await;
    assert!(matches!(begin("y").await.unwrap_err(), StoreError::NamespaceOccupied { .. }));
    assert!(server.object(TEAM).is_none(), "the index is gone");
    assert!(matches!(store.get("", &path("team/x")).await.unwrap(), GetOutcome::Found(_)));

    // An index of another kind of proxy stays, and so does one with files.
    server.plant(TEAM, Stored::new(br#"{"files": {}}"#, &[]));
    assert!(matches!(begin("y").await.unwrap(), PutOutcome::Created(_)));
    assert!(matches!(begin("z").await.unwrap(), PutOutcome::Created(_)));
}

#[tokio::test]
async fn stale_empty_index_is_removed_by_the_next_start() {
    let server = Server::start().await;
    server.plant(TEAM, Stored::new(br#"{"files": {}}"#, &[("memsync-write", "1")]));
    record_a_flat_file(&mut server.inside.objects.lock().unwrap());
    server.plant("memory/none/.sync-index.json", Stored::new(br#"{"files": {}}"#, &[("memsync-write", "1")]));
    let store = server.store("memory", system_clock()).await;
    is_refused(&store, "", "team/x", "team").await;
    let mended = store.repair_after_crash().await.unwrap();
    assert!(mended.values().all(|mended| mended.is_nothing()), "{mended:?}");
    assert!(server.object(TEAM).is_none(), "the index is gone");
    assert!(matches!(store.get("", &path("team/x")).await.unwrap(), GetOutcome::Found(_)));
    assert_eq!(index(&store, 0).await.keys().collect::<Vec<_>>(), ["team/x"]);
    assert!(server.object("memory/none/.sync-index.json").is_some(), "no outer namespace has files there");
}

#[tokio::test]
async fn write_is_undone_if_its_folder_becomes_a_namespace() {
    for before in [None, Some(Md5::of(b"before"))] {
        let server = Server::start().await;
        let store = server.store("memory", system_clock()).await;
        put(&store, "a", New, b"a").await;
        if before.is_some() {
            put(&store, "team/x", New, b"before").await;
            store.delete("", &path("team/x"), None, BlobMeta::default()).await.unwrap();
        }
        meanwhile(&server, FLAT, 1, |objects| {
            drop(objects.insert(TEAM.to_owned(), Stored::new(br#"{"files": {}}"#, &[])))
        });
        let late = store.put_bytes("", &path("team/x"), New, Bytes::from_static(b"x")).await.unwrap_err();
        assert!(
            matches!(&late, StoreError::OtherNamespace { namespace, .. } if namespace == &NamespaceName("team".into())),
            "{late:?}"
        );
        let listed = index(&store, 0).await;
        assert!(listed.get("team/x").is_none_or(|entry| entry.is_deleted && Some(entry.md5) == before), "{listed:?}");
        // The namespace does not get the content.
        assert!(
            matches!(store.get("team", &path("x")).await.unwrap(), GetOutcome::Tombstone(entry) if entry.md5 != Md5::of(b"x"))
        );
        assert_eq!(
            store.versions("team", &path("x")).await.unwrap().iter().filter(|v| v.entry.md5 == Md5::of(b"x")).count(),
            0
        );
    }
}

/// An index entry, as another proxy writes it.
fn row_of(content: &[u8]) -> serde_json::Value {
    json!({"md5": Md5::of(content).to_string(), "last_modified": "1970-01-01T00:00:00.007Z", "size": content.len(),
        "is_deleted": false, "version": 7})
}

/// The check after the write failed, so the entry stayed. The next request is refused and removes it.
#[tokio::test]
async fn entry_of_a_half_refused_write_is_removed() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    put(&store, "a", New, b"a").await;
    let (inside, is_late) = (server.inside.clone(), AtomicUsize::new(0));
    server.fail(move |method, asked| {
        if method == "PUT" && asked == FLAT {
            is_late.store(1, Ordering::SeqCst);
            let begun = json!({"files": {"y": row_of(b"y")}}).to_string();
            inside.objects.lock().unwrap().insert(TEAM.to_owned(), Stored::new(begun.as_bytes(), &[]));
        }
        let is_look = method == "HEAD" && asked == TEAM && is_late.load(Ordering::SeqCst) == 1;
        if is_look { Fault::Refused } else { Fault::None }
    });
    let late = store.put_bytes("", &path("team/x"), New, Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(late, StoreError::S3(_)), "{late:?}");
    server.heal();
    // A new store has no cached folders, like a proxy some seconds later.
    let store = server.store("memory", system_clock()).await;
    assert!(index(&store, 0).await.contains_key("team/x"));
    is_refused(&store, "", "team/x", "team").await;
    assert_eq!(index(&store, 0).await.keys().collect::<Vec<_>>(), ["a"]);
}

/// A new index is checked even if an earlier one was allowed.
#[tokio::test]
async fn namespace_without_its_index_is_checked_again() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let begin = async |name| store.put_bytes("team", &path(name), New, Bytes::from_static(b"y")).await;
    written(begin("y").await.unwrap());
    for key in [TEAM, "memory/team/y"] {
        server.remove(key);
    }
    assert!(store.index("team", 0).await.unwrap().entries.is_empty());
    record_a_flat_file(&mut server.inside.objects.lock().unwrap());
    server.plant(TEAM, Stored::new(br#"{"files": {}}"#, &[("memsync-write", "1")]));
    assert!(store.index("team", 0).await.unwrap().entries.is_empty());
    let refused = begin("z").await;
    assert!(matches!(refused, Err(StoreError::NamespaceOccupied { .. })), "{refused:?}");
    assert!(server.object(TEAM).is_none(), "no namespace has begun");
}

/// A late flat write over known content stays, as the namespace's file.
#[tokio::test]
async fn late_flat_write_is_in_the_namespaces_index() {
    let server = Server::start().await;
    let (late, store) = (server.store("memory", system_clock()).await, server.store("memory", system_clock()).await);
    assert!(matches!(late.get("", &path("team/x")).await.unwrap(), GetOutcome::Absent));
    written(store.put_bytes("team", &path("x"), New, Bytes::from_static(b"x")).await.unwrap());
    let expect = WriteCondition::Md5(Md5::of(b"x"));
    let refused = late.put_bytes("", &path("team/x"), expect, Bytes::from_static(b"late")).await.unwrap_err();
    assert!(matches!(refused, StoreError::OtherNamespace { .. }), "{refused:?}");
    assert!(index(&store, 0).await.is_empty());
    until("the entry is corrected", async || {
        let listed = store.index("team", 0).await.unwrap().entries;
        listed.len() == 1 && listed[0].1.md5 == Md5::of(b"late")
    })
    .await;
    assert_eq!(difference(&server, "memory/team"), [""; 0]);
}

/// A write over an object that is deleted meanwhile is a lost race.
#[tokio::test]
async fn write_over_a_deleted_object_is_a_lost_race() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let gone = |key: &'static str| meanwhile(&server, key, 1, move |objects| drop(objects.remove(key)));
    put(&store, "a", New, b"a").await;
    put(&store, "b", New, b"b").await;
    gone("memory/a");
    let lost = put(&store, "a", WriteCondition::Md5(Md5::of(b"a")), b"new").await;
    assert_eq!(lost, PutOutcome::Mismatch(None));
    gone(FLAT);
    put(&store, "b", WriteCondition::Md5(Md5::of(b"b")), b"new").await;
    assert_eq!(index(&store, 0).await["b"].md5, Md5::of(b"new"));

    let put_in = async |name| store.put_bytes("team", &path(name), New, Bytes::from_static(b"y")).await;
    written(put_in("y").await.unwrap());
    gone(TEAM);
    put_in("z").await.unwrap_err();
    assert!(server.object(TEAM).is_none(), "an unchecked write begins no namespace");
    written(put_in("q").await.unwrap());
    assert_eq!(store.index("team", 0).await.unwrap().entries.len(), 1);
}

/// One proxy writes a file into a folder while another begins a namespace there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folder_has_one_owner_after_a_race() {
    let server = Server::start().await;
    let stores = [server.store("memory", system_clock()).await, server.store("memory", system_clock()).await];
    // Random delays give every order of the requests.
    server.fail(|_, _| Fault::Slow(Duration::from_micros(fastrand::u64(0..5000))));
    let (mut flat, mut namespaces) = (0, 0);
    for round in 0..40 {
        let (ns, x, y) = (format!("team{round}"), path(&format!("team{round}/x")), path("y"));
        // Every second time the namespace has a head start.
        let start = Duration::from_millis(if round % 2 == 0 { 0 } else { fastrand::u64(0..40) });
        let above = async {
            tokio::time::sleep(start).await;
            stores[0].put_bytes("", &x, New, Bytes::from_static(b"x")).await
        };
        let begun = stores[1].put_bytes(&ns, &y, New, Bytes::from_static(b"y"));
        let (above, begun) = tokio::join!(above, begun);
        assert!(above.is_err() || begun.is_err(), "{ns}: both");
        flat += usize::from(above.is_ok());
        namespaces += usize::from(begun.is_ok());
        let third = server.store("memory", system_clock()).await;
        let listed = index(&third, 0).await.contains_key(x.as_str());
        assert_eq!(listed, above.is_ok(), "{ns}: {above:?}");
        if above.is_ok() {
            assert!(matches!(third.get("", &x).await.unwrap(), GetOutcome::Found(_)), "{ns}");
        }
        if begun.is_ok() {
            assert!(matches!(third.get(&ns, &path("y")).await.unwrap(), GetOutcome::Found(_)), "{ns}");
        }
    }
    // The number of wins depends on the machine.
    assert!(flat + namespaces > 0, "{flat} {namespaces}: they met");
}

/// A flat index must not list files of a namespace.
#[tokio::test]
async fn reindex_leaves_a_file_in_one_index() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    put(&store, "team/x", New, b"x").await;
    server.plant("memory/team/.sync-index.json", Stored::new(br#"{"files": {}}"#, &[]));
    let other = server.store("memory", system_clock()).await;
    let mended = other.reindex().await.unwrap();
    assert_eq!((&mended[""].dropped[..], &mended["team"].added[..]), (&[path("team/x")][..], &[path("x")][..]));
    assert!(matches!(other.get("team", &path("x")).await.unwrap(), GetOutcome::Found(_)));
    assert!(other.reindex().await.unwrap().values().all(|mended| mended.is_nothing()));
}
