//! Earlier versions and expiry in a bucket, also with several proxies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use memsync::digest::Md5;
use memsync::store::{
    BlobMeta, BlobVersion, DeleteOutcome, GetOutcome, IndexEntry, PutOutcome, S3Store, Store, StoreError, SweepReport,
    WriteCondition, system_clock,
};

use super::s3::until;
use super::{Holds, New, clock, content, delete, index, large, path, put, read, written};
use crate::common::s3::{Fault, Quirks, Server, Stored, difference};

const DAY: u64 = 24 * 3600 * 1000;

async fn at(server: &Server, now: &Arc<AtomicU64>) -> S3Store {
    server.store("memory", clock(now)).await
}

/// The keys beside the prefix.
fn beside(server: &Server) -> Vec<String> {
    server.keys().into_iter().filter(|key| key.starts_with("memory.memsync/")).collect()
}

async fn version(store: &S3Store, name: &str, version: u64) -> Option<Vec<u8>> {
    match store.read("", &path(name), Some(version)).await.unwrap() {
        GetOutcome::Found(blob) => Some(content(blob.body).await),
        GetOutcome::Tombstone(_) | GetOutcome::Absent => None,
    }
}

async fn versions(store: &S3Store, name: &str) -> Vec<u64> {
    store.versions("", &path(name)).await.unwrap().iter().map(|v| v.entry.version).collect()
}

#[tokio::test]
async fn versions_are_where_no_other_proxy_lists() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let big = large(1);
    let first = written(put(&store, "a/b.md", New, &big).await);
    assert_eq!(beside(&server), [""; 0], "a new file makes no copy");
    let second = written(put(&store, "a/b.md", Holds(first.md5), b"two").await);
    written(put(&store, "a/b.md", Holds(second.md5), b"two").await);
    assert_eq!(beside(&server).len(), 1, "the same content again makes no copy");
    delete(&store, "a/b.md", None).await;
    assert_eq!(beside(&server).len(), 2);
    assert!(version(&store, "a/b.md", first.version).await.is_some_and(|content| content == big));

    // A listing of the prefix has only the files and their index.
    let listed: Vec<_> = server.keys().into_iter().filter(|key| key.starts_with("memory/")).collect();
    assert_eq!(listed, ["memory/.sync-index.json", "memory/a/b.md"]);
    assert!(store.reindex().await.unwrap()[""].is_nothing());
    assert_eq!(store.namespaces().await.unwrap(), [""]);

    // Another proxy on the same bucket reads the versions.
    let other = server.store("memory", system_clock()).await;
    assert_eq!(versions(&other, "a/b.md").await, versions(&store, "a/b.md").await);
}

/// Blobs of another proxy lack memsync's metadata, and their versions are kept, too.
#[tokio::test]
async fn replaced_files_of_another_proxy_have_versions() {
    let server = Server::start().await;
    let a = Md5::of(b"a");
    let described = [("content-md5", &*a.to_string()), ("is-deleted", "false"), ("version", "7")];
    server.plant("memory/full.md", Stored::new(b"a", &described));
    server.plant("memory/bare.md", Stored::new(b"bare", &[]));
    let store = server.store("memory", system_clock()).await;
    let GetOutcome::Found(bare) = store.get("", &path("bare.md")).await.unwrap() else { panic!("it is there") };
    written(put(&store, "full.md", Holds(a), b"b").await);
    written(put(&store, "bare.md", Holds(Md5::of(b"bare")), b"b").await);
    assert_eq!(version(&store, "full.md", 7).await.as_deref(), Some(&b"a"[..]));
    assert_eq!(version(&store, "bare.md", bare.entry.version).await.as_deref(), Some(&b"bare"[..]));
}

/// A copy whose content does not match its name, because of a concurrent write, is ignored.
#[tokio::test]
async fn copy_counts_only_if_it_matches_its_name() {
    let server = Server::start().await;
    let now = Arc::new(AtomicU64::new(DAY));
    let store = at(&server, &now).await;
    let first = written(put(&store, "x", New, b"one").await);
    let second = written(put(&store, "x", Holds(first.md5), b"two").await);
    let right = beside(&server).remove(0);
    // A second writer read the first version, and copied after it was replaced.
    let wrong = format!("{}-00000000", right.rsplit_once('-').unwrap().0);
    server.plant(&wrong, server.object("memory/x").unwrap());
    // A third writer copied the current version and crashed.
    let copied_early = right.replace(&format!("{:020}", first.version), &format!("{:020}", second.version));
    server.plant(&copied_early, server.object("memory/x").unwrap());
    assert_eq!(versions(&store, "x").await, [second.version, first.version]);
    assert_eq!(version(&store, "x", first.version).await.as_deref(), Some(&b"one"[..]));

    // Both copies stay while their writes may be in flight. Later only the right one does.
    assert_eq!(store.sweep().await.unwrap(), SweepReport::default());
    now.fetch_add(2 * 3600 * 1000, Ordering::SeqCst);
    assert_eq!(store.sweep().await.unwrap(), SweepReport { versions: 1, ..SweepReport::default() });
    assert!(server.object(&wrong).is_none());
    assert_eq!(version(&store, "x", first.version).await.as_deref(), Some(&b"one"[..]));
    assert_eq!(store.sweep().await.unwrap(), SweepReport::default());
}

/// Several proxies expire paths at once. Each path expires once, and later writes stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_proxies_expire_each_path_once() {
    let server = Server::start().await;
    let now = Arc::new(AtomicU64::new(DAY));
    let (one, two) = (at(&server, &now).await, at(&server, &now).await);
    let due = |at| BlobMeta { expires: Some(at), ..BlobMeta::default() };
    for n in 0..20 {
        let mut body = one.new_body();
        body.push(Bytes::from(format!("content {n}"))).await.unwrap();
        let put = one.put("", &path(&format!("d/{n}")), New, due(2 * DAY), body).await.unwrap();
        assert!(matches!(put, PutOutcome::Created(_)));
    }
    // A write without an expiry inherits it. Another time or none replaces it.
    let md5 = |n: u32| Holds(Md5::of(format!("content {n}").as_bytes()));
    written(put(&two, "d/1", md5(1), b"again").await);
    for (n, at) in [(2, 3 * DAY), (3, u64::MAX)] {
        two.put("", &path(&format!("d/{n}")), md5(n), due(at), two.new_body()).await.unwrap();
    }
    assert_eq!((one.expire().await.unwrap(), two.expire().await.unwrap()), (0, 0));

    now.store(2 * DAY, Ordering::SeqCst);
    let (by_one, by_two) = tokio::join!(one.expire(), two.expire());
    assert_eq!(by_one.unwrap() + by_two.unwrap(), 18);
    let all = index(&one, 0).await;
    let live: Vec<_> = all.iter().filter(|(_, entry)| !entry.is_deleted).map(|(name, _)| name.as_str()).collect();
    assert_eq!(live, ["d/2", "d/3"]);
    let again = one.versions("", &path("d/1")).await.unwrap();
    assert_eq!((again[0].entry.is_deleted, again[1].entry.md5), (true, Md5::of(b"again")));
    assert_eq!(version(&two, "d/1", again[1].entry.version).await.as_deref(), Some(&b"again"[..]));
    assert_eq!(difference(&server, "memory"), [""; 0]);

    // A new file after the expiry has none.
    written(put(&one, "d/1", New, b"back").await);
    assert_eq!(two.expire().await.unwrap(), 0);
    now.store(3 * DAY, Ordering::SeqCst);
    assert_eq!(two.expire().await.unwrap(), 1);
    assert_eq!(read(&one, "d/1").await.as_deref(), Some(&b"back"[..]));
    assert!(matches!(delete(&one, "d/2", None).await, DeleteOutcome::Tombstone(_)));
}

/// A failed expiry does not stop the others, nor the removal of old copies and tombstones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_goes_on_after_a_failed_expiry() {
    let server = Server::start().await;
    let now = Arc::new(AtomicU64::new(DAY));
    let store = at(&server, &now).await;
    put(&store, "old", New, b"old").await;
    delete(&store, "old", None).await;
    let expiring = async |ns: &str, name: &str, at: u64| {
        let mut body = store.new_body();
        body.push(Bytes::copy_from_slice(name.as_bytes())).await.unwrap();
        let meta = BlobMeta { expires: Some(at), ..BlobMeta::default() };
        written(store.put(ns, &path(name), New, meta, body).await.unwrap())
    };
    expiring("team", "first", 2 * DAY).await;
    for n in 0..40 {
        expiring("", &format!("d/{n}"), 3 * DAY).await;
    }
    let team = "memory/team/.sync-index.json";
    let whole = server.object(team).unwrap();
    server.plant(team, Stored::new(b"{\"files\": {", &[]));
    now.store(100 * DAY, Ordering::SeqCst);
    let other = at(&server, &now).await;
    let refused = other.sweep().await.unwrap_err().to_string();
    assert!(refused.contains("is damaged"), "{refused}");
    let all = index(&other, 0).await;
    assert_eq!(all.values().filter(|entry| entry.is_deleted).count(), 40, "the old tombstone left the index");
    assert_eq!(all.len(), 40);
    assert_eq!(beside(&server).iter().filter(|key| key.contains("/versions/")).count(), 41, "one version of each");
    let is_deleted = |key: &str| server.object(key).unwrap().metadata["is-deleted"] == "true";
    assert!(all.keys().all(|name| is_deleted(&format!("memory/{name}"))) && !is_deleted("memory/team/first"));

    // A note leads to a tombstone whose entry was lost.
    server.plant(team, whole);
    let mut bare: serde_json::Value =
        serde_json::from_slice(&server.object("memory/.sync-index.json").unwrap().body).unwrap();
    bare["files"].as_object_mut().unwrap().remove("d/7");
    server.plant("memory/.sync-index.json", Stored::new(&serde_json::to_vec(&bare).unwrap(), &[]));
    let note = format!("memory.memsync/expires/{:020}-again", 3 * DAY);
    server.plant(&note, Stored::new(br#"{"namespace": "", "path": "d/7"}"#, &[]));
    let third = at(&server, &now).await;
    assert_eq!(third.expire().await.unwrap(), 1, "the file in the namespace");
    until("the entry is there", async || index(&third, 0).await.len() == 40).await;
    assert_eq!(difference(&server, "memory/team"), [""; 0]);
}

/// Old tombstones leave the index and stay as objects. Reads, starts and `reindex` do not restore their entries.
#[tokio::test]
async fn old_tombstone_leaves_only_the_index() {
    let server = Server::start().await;
    let now = Arc::new(AtomicU64::new(DAY));
    let store = at(&server, &now).await;
    for ns in ["", "team"] {
        store.put_bytes(ns, &path("gone"), New, Bytes::from_static(b"g")).await.unwrap();
        store.delete(ns, &path("gone"), None, BlobMeta::default()).await.unwrap();
    }
    put(&store, "kept", New, b"k").await;
    now.store(100 * DAY, Ordering::SeqCst);
    assert_eq!(store.sweep().await.unwrap(), SweepReport { tombstones: 2, ..SweepReport::default() });
    let later = at(&server, &now).await;
    assert!(matches!(later.get("", &path("gone")).await.unwrap(), GetOutcome::Tombstone(_)));
    for mended in [later.repair_after_crash().await.unwrap(), later.reindex().await.unwrap()] {
        assert!(mended.values().all(|mended| mended.is_nothing()), "{mended:?}");
    }
    assert_eq!(index(&later, 0).await.keys().collect::<Vec<_>>(), ["kept"]);
    let GetOutcome::Tombstone(gone) = later.get("", &path("gone")).await.unwrap() else { panic!("it was deleted") };
    assert!(matches!(put(&later, "gone", WriteCondition::Version(gone.version), b"new").await, PutOutcome::Created(_)));
    assert_eq!(index(&later, 0).await.len(), 2);
}

/// Files are served even if the bucket allows no objects beside the prefix.
#[tokio::test]
async fn bucket_without_room_beside_the_prefix_has_no_versions() {
    let server = Server::start_with(Quirks { only_below: Some("memory/"), ..Quirks::default() }).await;
    let store = server.store("memory", system_clock()).await;
    assert!(!store.keeps_versions());
    written(put(&store, "a", New, b"a").await);
    let second = written(put(&store, "a", Holds(Md5::of(b"a")), b"b").await);
    assert_eq!(versions(&store, "a").await, [second.version]);
    assert_eq!(store.sweep().await.unwrap(), SweepReport::default());
    assert_eq!((beside(&server).len(), read(&store, "a").await.as_deref()), (0, Some(&b"b"[..])));
    assert!(server.store("memory/deeper", system_clock()).await.keeps_versions());
}

#[tokio::test]
async fn copy_of_a_store_includes_versions() {
    let server = Server::start().await;
    let (from, to) = (server.store("from", system_clock()).await, server.store("to", system_clock()).await);
    let mut all = BTreeMap::new();
    let mut held = New;
    for n in 0..5u8 {
        let entry = written(put(&from, "x", held, &[n]).await);
        held = Holds(entry.md5);
        all.insert(entry.version, vec![n]);
    }
    delete(&from, "x", None).await;
    let again = written(put(&from, "x", New, &[4]).await);
    all.insert(again.version, vec![4]);
    memsync::store::copy::copy(&from, &to, || ()).await.unwrap();
    assert_eq!(versions(&to, "x").await, versions(&from, "x").await);
    for (number, wanted) in all {
        assert_eq!(version(&to, "x", number).await, Some(wanted));
    }
}

/// S3 takes 2 KB of metadata, and the largest allowed metadata fits.
#[tokio::test]
async fn largest_metadata_fits_into_a_bucket() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let mut held = New;
    for n in 0..4u8 {
        let free = (0..32).map(|i| (format!("{n}{i:02}"), "%%%%%%é".to_owned())).collect();
        let device = "%".repeat(128) + &"x".repeat(127);
        let meta = BlobMeta {
            content_type: Some("t".repeat(255)),
            device: Some(device),
            key: Some("k".repeat(64)),
            expires: Some(u64::MAX),
            free,
        };
        let mut body = store.new_body();
        body.push(Bytes::copy_from_slice(&[n])).await.unwrap();
        let entry = written(store.put("", &path("x"), held, meta.clone(), body).await.unwrap());
        held = Holds(entry.md5);
        let GetOutcome::Found(blob) = store.get("", &path("x")).await.unwrap() else { panic!("it is there") };
        assert_eq!(blob.meta, meta, "the last write counts");
    }
    // Metadata of another store may be larger, and is cut.
    let free = (0..40).map(|i| (format!("{i:02}"), "v".repeat(30))).collect();
    let entry = IndexEntry { version: u64::MAX / 2, md5: Md5::of(b"y"), size: 1, is_deleted: false, cursor: 0 };
    let version = BlobVersion { entry, meta: BlobMeta { free, ..BlobMeta::default() } };
    let mut body = store.new_body();
    body.push(Bytes::from_static(b"y")).await.unwrap();
    Store::import_version(&store, "", &path("y"), version, Some(body)).await.unwrap();
    let GetOutcome::Found(blob) = store.get("", &path("y")).await.unwrap() else { panic!("it is there") };
    assert_eq!(blob.meta.free.keys().next_back().map(String::as_str), Some("25"), "{:?}", blob.meta);
}

/// A request that S3 refuses for good is not retried.
#[tokio::test]
async fn bad_request_is_not_retried() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let attempts = Arc::new(AtomicU64::new(0));
    let counted = attempts.clone();
    server.fail(move |method, key| {
        counted.fetch_add(u64::from(method == "PUT" && key == "memory/x"), Ordering::SeqCst);
        Fault::None
    });
    let meta = BlobMeta { device: Some("x".repeat(3000)), ..BlobMeta::default() };
    let refused = store.put("", &path("x"), New, meta, store.new_body()).await.unwrap_err().to_string();
    assert!(refused.contains("MetadataTooLarge"), "{refused}");
    assert_eq!(attempts.load(Ordering::SeqCst), 1);
}

/// A temporary failure of the probe must not disable versions until the next start.
#[tokio::test]
async fn failed_version_probe_fails_the_start() {
    let is_copy = |key: &str| key.starts_with("memory.memsync/") && key.ends_with("/copy");
    for method in ["HEAD", "DELETE", "POST", "GET"] {
        let server = Server::start().await;
        server.fail(move |of, key| {
            // A listing, and a deletion of many, have no key.
            let fails = of == method && (is_copy(key) || matches!(of, "GET" | "POST") && key.is_empty());
            if fails { Fault::Refused } else { Fault::None }
        });
        match S3Store::open(&server.options("memory", system_clock())).await {
            Ok(store) => assert!(store.keeps_versions(), "{method}"),
            Err(e) => {
                // The answer to a HEAD has no error code.
                let text = e.to_string();
                let is_momentary =
                    matches!(e, StoreError::S3(_)) && (text.contains("SlowDown") || text.contains("503"));
                assert!(is_momentary, "{method}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn sweep_goes_on_after_a_failed_removal() {
    let server = Server::start().await;
    let now = Arc::new(AtomicU64::new(DAY));
    let store = at(&server, &now).await;
    for ns in ["", "team"] {
        // Two versions more than the retention keeps at any age.
        for n in 0..7 {
            store.put_bytes(ns, &path("gone"), New, Bytes::from(vec![n])).await.unwrap();
            store.delete(ns, &path("gone"), None, BlobMeta::default()).await.unwrap();
        }
    }
    now.store(100 * DAY, Ordering::SeqCst);
    let copies = |key: &str| key.starts_with("memory.memsync/versions/");
    server.fail(move |method, key| {
        // Single or bulk removals.
        let is = method == "POST" || method == "DELETE" && copies(key);
        if is { Fault::Refused } else { Fault::None }
    });
    let refused = store.sweep().await.unwrap_err().to_string();
    assert!(refused.contains("SlowDown"), "{refused}");
    server.heal();
    assert_eq!(index(&store, 0).await.len(), 0, "the tombstones are gone");
    assert_eq!(store.sweep().await.unwrap(), SweepReport { versions: 4, ..SweepReport::default() });
}

#[tokio::test]
async fn sweep_goes_on_after_an_unreadable_copy() {
    let server = Server::start().await;
    let now = Arc::new(AtomicU64::new(DAY));
    let store = at(&server, &now).await;
    for name in ["a", "b"] {
        for n in 0..7 {
            put(&store, name, New, &[n]).await;
            delete(&store, name, None).await;
        }
    }
    let copies = || beside(&server).into_iter().filter(|key| key.contains("/versions/")).collect::<Vec<_>>();
    // A second copy of the first path's newest version.
    let folder = |key: &str| key.rsplit_once('/').unwrap().0.to_owned();
    let all = copies();
    let newest = all.iter().filter(|key| folder(key) == folder(&all[0])).max().unwrap().clone();
    let twin = format!("{}-00000000", newest.rsplit_once('-').unwrap().0);
    server.plant(&twin, server.object(&newest).unwrap());
    now.store(100 * DAY, Ordering::SeqCst);
    server.fail(move |method, key| {
        let is_twin = method == "HEAD" && (key == newest || key == twin);
        if is_twin { Fault::Refused } else { Fault::None }
    });
    assert!(store.sweep().await.is_err());
    assert_eq!(copies().len(), 2 * 5 + 1, "all but the newest five of each, and the twin");
}
