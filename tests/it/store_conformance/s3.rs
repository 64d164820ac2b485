//! Tests of the S3 store only: layout, buckets of other proxies, failing networks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use memsync::digest::Md5;
use memsync::store::s3::{EtagQuotes, S3Options};
use memsync::store::{
    BlobMeta, DeleteOutcome, GetOutcome, PutOutcome, RecordStore, S3Store, Store, StoreError, WallClock,
    WriteCondition, system_clock,
};
use serde_json::Value;

use super::linearizability::{Versions, linearizable_together};
use super::{Holds, New, delete, index, large, path, put, read, written};
use crate::common::s3::{self, Fault, Quirks, Server, Stored, difference};

pub(crate) const INDEX: &str = "memory/.sync-index.json";

pub(crate) async fn open_here(_: PathBuf, clock: WallClock) -> Option<(S3Store, Server)> {
    let server = Server::start().await;
    Some((server.store("memory", clock).await, server))
}

/// A store at `MEMSYNC_TEST_S3_ENDPOINT`, in an existing bucket, below its own prefix.
/// `MEMSYNC_TEST_S3_ETAG_QUOTES=strip` is for a store that wants ETags without quotes, as Ceph does.
pub(crate) async fn open_foreign(_: PathBuf, clock: WallClock) -> Option<(S3Store, ())> {
    Some((S3Store::open(&foreign_options(clock)).await.unwrap(), ()))
}

fn foreign_options(clock: WallClock) -> S3Options {
    #[expect(clippy::disallowed_methods, reason = "`.ci/run` passes it")]
    let set = |name| std::env::var(name).ok();
    let endpoint = set("MEMSYNC_TEST_S3_ENDPOINT").expect("MEMSYNC_TEST_S3_ENDPOINT names an S3");
    let prefix = format!("test/{:032x}", fastrand::u128(..));
    let mut options = s3::options(&endpoint, s3::ACCESS_KEY, s3::SECRET_KEY, s3::BUCKET, &prefix, clock);
    if set("MEMSYNC_TEST_S3_ETAG_QUOTES").as_deref() == Some("strip") {
        options.etag_quotes = EtagQuotes::Strip;
    }
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_proxies_on_one_bucket() {
    let server = Server::start().await;
    two_proxies(&server.options("memory", system_clock())).await;
    assert_eq!(difference(&server, "memory"), [""; 0]);
}

/// It has the prefix of the suite, so that `.ci/run` runs both.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs MEMSYNC_TEST_S3_ENDPOINT"]
async fn s3_foreign_two_proxies() {
    two_proxies(&foreign_options(system_clock())).await;
}

/// Only the bucket's conditional writes order these proxies.
async fn two_proxies(options: &S3Options) {
    let [one, other] = [S3Store::open(options).await.unwrap(), S3Store::open(options).await.unwrap()];
    linearizable_together(&[Arc::new(one.clone()), Arc::new(other.clone())], Versions::Differ).await;
    // A read of a blob that differs from its entry corrects the entry.
    until("both see the same, and so does the index", async || {
        let mut same = true;
        for name in ["x", "y"] {
            let [a, b] = [one.get("", &path(name)).await.unwrap(), other.get("", &path(name)).await.unwrap()];
            let listed = index(&one, 0).await.get(name).copied();
            let of = |got: &GetOutcome| match got {
                GetOutcome::Found(blob) => Some(blob.entry),
                GetOutcome::Tombstone(entry) => Some(*entry),
                GetOutcome::Absent => None,
            };
            assert_eq!(of(&a), of(&b));
            same &= of(&a) == listed;
        }
        same
    })
    .await;
}

pub(crate) async fn here() -> (Server, S3Store) {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    (server, store)
}

/// The index object in the bucket.
pub(crate) fn stored_index(server: &Server, key: &str) -> Value {
    serde_json::from_slice(&server.object(key).expect("an index").body).unwrap()
}

pub(crate) async fn until(condition: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(Instant::now() < deadline, "timeout: {condition}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn bucket_has_the_layout_of_other_proxies() {
    let (server, store) = here().await;
    let meta = BlobMeta {
        content_type: Some("text/markdown".to_owned()),
        device: Some("b\u{fc}ro".to_owned()),
        free: BTreeMap::from([("Topic".to_owned(), "\u{fc}ber \"alles\"".to_owned())]),
        ..BlobMeta::default()
    };
    let mut body = store.new_body();
    body.push(Bytes::from_static(b"hello")).await.unwrap();
    let entry = written(store.put("", &path("topics/ai.md"), New, meta.clone(), body).await.unwrap());
    let md5 = Md5::of(b"hello").to_string();
    let blob = server.object("memory/topics/ai.md").unwrap();
    assert_eq!((&blob.body[..], blob.content_type.as_deref()), (&b"hello"[..], Some("text/markdown")));
    let is = |stored: &Stored, name: &str| stored.metadata.get(name).cloned().unwrap_or_default();
    assert_eq!((is(&blob, "content-md5"), is(&blob, "is-deleted")), (md5.clone(), "false".to_owned()));
    assert_eq!(is(&blob, "version"), entry.version.to_string());
    let file = stored_index(&server, INDEX)["files"]["topics/ai.md"].take();
    assert_eq!((file["md5"].as_str(), file["size"].as_u64()), (Some(md5.as_str()), Some(5)));
    assert_eq!((file["is_deleted"].as_bool(), file["version"].as_u64()), (Some(false), Some(entry.version)));
    assert!(file["last_modified"].as_str().unwrap().ends_with('Z'));
    let GetOutcome::Found(found) = store.get("", &path("topics/ai.md")).await.unwrap() else { panic!("it is there") };
    assert_eq!(found.meta, meta);

    delete(&store, "topics/ai.md", None).await;
    let tombstone = server.object("memory/topics/ai.md").unwrap();
    assert_eq!((tombstone.body.len(), is(&tombstone, "is-deleted")), (0, "true".to_owned()));
    assert_eq!(is(&tombstone, "content-md5"), md5, "the MD5 of the deleted content");
    assert_eq!(stored_index(&server, INDEX)["files"]["topics/ai.md"]["is_deleted"], true);

    store.put_bytes("team", &path("a.md"), New, Bytes::from_static(b"a")).await.unwrap();
    assert!(server.object("memory/team/a.md").is_some());
    assert!(stored_index(&server, "memory/team/.sync-index.json")["index_version"].is_u64());
    store.put_record("keys", None, Bytes::from_static(b"k")).await.unwrap();
    assert!(server.object("memory/.memsync/keys").is_some());
    assert_eq!(server.keys().iter().filter(|key| key.contains("probe")).count(), 0, "the probe leaves nothing");
    assert_eq!(difference(&server, "memory/team"), [""; 0]);
}

#[tokio::test]
async fn bucket_of_another_proxy_is_served() {
    let server = Server::start().await;
    let (a, gone) = (Md5::of(b"a").to_string(), Md5::of(b"gone").to_string());
    server
        .plant("memory/full.md", Stored::new(b"a", &[("content-md5", &a), ("is-deleted", "false"), ("version", "7")]));
    server.plant("memory/bare.md", Stored::new(b"bare", &[]));
    server.plant("memory/odd.md", Stored::new(b"odd", &[("content-md5", "x"), ("version", "-1"), ("is-deleted", "")]));
    let long = large(9);
    server.plant("memory/long.md", Stored::new(&long, &[]));
    server.plant("memory/gone.md", Stored::new(b"", &[("content-md5", &gone), ("is-deleted", "true")]));
    let theirs = format!(
        r#"{{"files": {{"full.md": {{"md5": "{a}", "last_modified": "2024-01-15T10:30:00.123Z", "size": 1,
        "is_deleted": false}}, "strange": "entry"}}, "index_last_modified": "2024-01-15T11:00:00.456Z"}}"#
    );
    server.plant(INDEX, Stored::new(theirs.as_bytes(), &[]));

    let store = server.store("memory", system_clock()).await;
    assert_eq!(index(&store, 0).await.keys().collect::<Vec<_>>(), ["full.md"]);
    for (name, content) in [("full.md", &b"a"[..]), ("bare.md", b"bare"), ("odd.md", b"odd"), ("long.md", &long)] {
        assert_eq!(read(&store, name).await.as_deref(), Some(content), "{name}");
    }
    let GetOutcome::Tombstone(tombstone) = store.get("", &path("gone.md")).await.unwrap() else {
        panic!("it was deleted")
    };
    assert_eq!(tombstone.md5.to_string(), gone);
    // Reads add the missing entries.
    until("the index has what was read", async || index(&store, 0).await.len() == 5).await;
    assert_eq!(stored_index(&server, INDEX)["files"]["strange"], "entry");

    assert!(matches!(put(&store, "bare.md", New, b"b").await, PutOutcome::Mismatch(Some(_))));
    assert!(matches!(put(&store, "bare.md", Holds(Md5::of(b"bare")), b"b").await, PutOutcome::Updated(_)));
    assert!(
        matches!(put(&store, "full.md", WriteCondition::Version(7), b"b").await, PutOutcome::Updated(e) if e.version > 7)
    );
    assert!(matches!(put(&store, "gone.md", Holds(tombstone.md5), b"b").await, PutOutcome::Created(_)));
    assert!(matches!(delete(&store, "odd.md", Some(Md5::of(b"odd"))).await, DeleteOutcome::Done(_)));
    // A write replaces an unreadable entry.
    let ours = written(put(&store, "strange", New, b"s").await);
    let later = server.store("memory", system_clock()).await;
    assert_eq!(index(&later, 0).await.get("strange"), Some(&ours));
    let mended = store.reindex().await.unwrap();
    assert!(mended[""].is_nothing() || mended[""].corrected == [path("long.md")], "{mended:?}");
}

/// Each request of a write fails once in every way, and the write still succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_survives_any_failed_request() {
    let (server, store) = here().await;
    for fault in [Fault::Refused, Fault::DoneBut500, Fault::ReplyLost, Fault::RequestLost] {
        for at in 0..10 {
            let name = format!("{fault:?}/{at}");
            for step in ["create", "update", "delete", "create again"] {
                println!("{name}: {step}");
                let count = Arc::new(AtomicUsize::new(0));
                let counted = count.clone();
                server.fail(move |_, _| if counted.fetch_add(1, Ordering::SeqCst) == at { fault } else { Fault::None });
                let done = match step {
                    "update" => {
                        matches!(put(&store, &name, Holds(Md5::of(b"one")), b"two").await, PutOutcome::Updated(_))
                    }
                    "delete" => matches!(delete(&store, &name, Some(Md5::of(b"two"))).await, DeleteOutcome::Done(_)),
                    _ => matches!(put(&store, &name, New, b"one").await, PutOutcome::Created(_)),
                };
                assert!(done, "{name}: {step}");
                server.heal();
                assert_eq!(difference(&server, "memory"), [""; 0], "{name}: {step}");
            }
        }
    }
}

/// Ceph answers with an error to all but one of several concurrent writers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn error_for_a_lost_race_is_a_lost_race() {
    let server = Server::start_with(Quirks { losers_fail: true, ..Quirks::default() }).await;
    super::records(server.store("memory", system_clock()).await, Arc::default()).await;
    two_proxies(&server.options("memory", system_clock())).await;
    assert_eq!(difference(&server, "memory"), [""; 0]);
}

/// A write is refused if no retry helps. Unacknowledged content may stay, and the index is correct after the outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn index_is_correct_after_an_outage() {
    let (server, store) = here().await;
    put(&store, "a", New, b"a").await;
    server.fail(|method, key| if method == "PUT" && key == INDEX { Fault::Refused } else { Fault::None });
    let refused = store.put_bytes("", &path("b"), New, Bytes::from_static(b"b")).await;
    assert!(matches!(refused, Err(StoreError::S3(_))), "{refused:?}");
    assert!(!index(&store, 0).await.contains_key("b"));
    server.heal();
    // The client's next attempt finds its own content, which corrects the entry.
    assert!(matches!(put(&store, "b", New, b"b").await, PutOutcome::Mismatch(Some(e)) if e.md5 == Md5::of(b"b")));
    until("the entry is there", async || index(&store, 0).await.contains_key("b")).await;

    server.fail(|_, _| Fault::Refused);
    assert!(store.health().await.is_err());
    server.heal();
    store.health().await.unwrap();
    assert_eq!(difference(&server, "memory"), [""; 0]);
}

#[tokio::test]
async fn store_that_ignores_conditions_is_refused() {
    for (quirks, reason) in [
        (Quirks { ignores_if_none_match: true, ..Quirks::default() }, "ignores `If-None-Match: *`"),
        (Quirks { ignores_if_match: true, ..Quirks::default() }, "ignores `If-Match`"),
        (Quirks { races: true, ..Quirks::default() }, "writers that raced"),
        (Quirks { drops_metadata: true, ..Quirks::default() }, "does not keep user metadata"),
        (Quirks { wants_bare_etags: true, ..Quirks::default() }, "S3_ETAG_QUOTES=strip"),
    ] {
        let server = Server::start_with(quirks).await;
        let refused = S3Store::open(&server.options("memory", system_clock())).await.err().expect("a refusal");
        assert!(matches!(refused, StoreError::S3Refused(_)), "{refused:?}");
        assert!(refused.to_string().contains(reason), "{quirks:?}: {refused}");
        assert_eq!(server.keys(), [""; 0], "the probe leaves nothing");
    }
    let server = Server::start_with(Quirks { wants_bare_etags: true, ..Quirks::default() }).await;
    let mut options = server.options("memory", system_clock());
    options.etag_quotes = EtagQuotes::Strip;
    let store = S3Store::open(&options).await.unwrap();
    put(&store, "a", New, b"a").await;
    assert!(matches!(put(&store, "a", Holds(Md5::of(b"a")), b"b").await, PutOutcome::Updated(_)));
    assert_eq!(read(&store, "a").await.as_deref(), Some(&b"b"[..]));
}

#[tokio::test]
async fn option_errors_do_not_show_the_secret() {
    let server = Server::start().await;
    let refusal = async |change: &dyn Fn(&mut memsync::store::s3::S3Options)| {
        let mut options = server.options("memory", system_clock());
        change(&mut options);
        let text = S3Store::open(&options).await.err().expect("a refusal").to_string();
        assert!(!text.contains(s3::SECRET_KEY) && !text.contains("wrong secret"), "{text}");
        text
    };
    let wrong_secret = refusal(&|o| o.secret_access_key = "wrong secret".to_owned().into()).await;
    assert!(wrong_secret.contains("SignatureDoesNotMatch"), "{wrong_secret}");
    let no_bucket = refusal(&|o| o.bucket = "nowhere".to_owned()).await;
    assert!(no_bucket.contains("The specified bucket does not exist"), "{no_bucket}");
    let plain = refusal(&|o| o.endpoint = Some("http://s3.example.org".to_owned())).await;
    assert!(plain.contains("plain http"), "{plain}");
    let gone = refusal(&|o| o.endpoint = Some("http://127.0.0.1:1".to_owned())).await;
    assert!(gone.to_lowercase().contains("connection refused"), "{gone}");
}

/// 10,000 uploads from 128 clients cost at most 200 writes of the index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_files_cost_few_index_writes() {
    let (server, store) = here().await;
    let before = server.puts(INDEX);
    let all = futures::stream::iter(0..10_000u32).for_each_concurrent(128, |n| {
        let store = store.clone();
        async move {
            let put = put(&store, &format!("d{}/n{n}.md", n % 100), New, &n.to_be_bytes()).await;
            assert!(matches!(put, PutOutcome::Created(_)));
        }
    });
    all.await;
    let writes = server.puts(INDEX) - before;
    println!("{writes} index writes, requests {:?}", server.requests());
    assert!(writes <= 200, "{writes} writes of the index");
    assert_eq!(index(&store, 0).await.len(), 10_000);
    assert_eq!(difference(&server, "memory"), [""; 0]);
}
