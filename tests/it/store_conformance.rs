//! The conformance suite: guarantees of every store that the proxy and its clients rely on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use memsync::digest::Md5;
use memsync::path::RelPath;
use memsync::store::WriteCondition::{self, Absent as New, Md5 as Holds};
use memsync::store::sqlite::SqliteSettings;
use memsync::store::{
    BatchWrite, BlobBody, BlobMeta, DeleteOutcome, GetOutcome, IndexCursor, IndexEntry, PutOutcome, SqliteStore, Store,
    WallClock, WriteOutcome,
};
use memsync::testing::MemoryStore;
use memsync::testing::seed;

mod broken_stores;
mod earlier;
mod index_changes;
mod linearizability;
mod s3;
mod s3_foreign_objects;
mod s3_namespaces;
mod s3_reindex;
mod s3_two_proxies;
mod s3_versions;
mod sqlite_only;
mod strong_index;

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

async fn put(store: &impl Store, name: &str, expect: WriteCondition, content: &[u8]) -> PutOutcome {
    store.put_bytes("", &path(name), expect, Bytes::copy_from_slice(content)).await.unwrap()
}

async fn delete(store: &impl Store, name: &str, expected: Option<Md5>) -> DeleteOutcome {
    store.delete("", &path(name), expected.map(Holds), BlobMeta::default()).await.unwrap()
}

fn written(put: PutOutcome) -> IndexEntry {
    match put {
        PutOutcome::Created(entry) | PutOutcome::Updated(entry) => entry,
        PutOutcome::Mismatch(held) => panic!("lost to {held:?}"),
    }
}

async fn content(body: BlobBody) -> Vec<u8> {
    match body {
        BlobBody::Whole(bytes) => bytes.to_vec(),
        BlobBody::Pieces(pieces) => {
            pieces.fold(Vec::new(), |all, piece| async move { [all, piece.unwrap().to_vec()].concat() }).await
        }
    }
}

/// The content at `name`; `None` if there is no live blob.
async fn read(store: &impl Store, name: &str) -> Option<Vec<u8>> {
    match store.get("", &path(name)).await.unwrap() {
        GetOutcome::Found(blob) => {
            let entry = blob.entry;
            let bytes = content(blob.body).await;
            assert_eq!((entry.md5, entry.size), (Md5::of(&bytes), bytes.len() as u64));
            Some(bytes)
        }
        GetOutcome::Tombstone(_) | GetOutcome::Absent => None,
    }
}

fn is_strong<S: Store>(_: &S) -> bool {
    S::STRONG
}

async fn mark(store: &impl Store) -> IndexCursor {
    store.state("").await.unwrap().mark.unwrap()
}

async fn index(store: &impl Store, since: u64) -> BTreeMap<String, IndexEntry> {
    store.index("", since).await.unwrap().entries.into_iter().collect()
}

/// Content that is too large for a database row.
fn large(seed: u8) -> Vec<u8> {
    (0..3_000_000u32).map(|i| (i >> 8) as u8 ^ i as u8 ^ seed).collect()
}

async fn preconditions(store: impl Store, _: Arc<AtomicU64>) {
    let (a, b) = (Md5::of(b"a"), Md5::of(b"b"));
    assert_eq!(put(&store, "x", Holds(a), b"b").await, PutOutcome::Mismatch(None));
    assert_eq!(read(&store, "x").await, None);
    let first = match put(&store, "x", New, b"a").await {
        PutOutcome::Created(entry) => entry,
        other => panic!("{other:?}"),
    };
    assert_eq!((first.md5, first.size, first.is_deleted), (a, 1, false));
    assert_eq!(put(&store, "x", New, b"b").await, PutOutcome::Mismatch(Some(first)));
    assert_eq!(put(&store, "x", New, b"a").await, PutOutcome::Mismatch(Some(first)), "`new` must not overwrite");
    assert_eq!(put(&store, "x", Holds(b), b"b").await, PutOutcome::Mismatch(Some(first)));
    assert_eq!(read(&store, "x").await.as_deref(), Some(&b"a"[..]));
    assert!(matches!(put(&store, "x", Holds(a), b"b").await, PutOutcome::Updated(e) if e.md5 == b));
    assert!(
        matches!(put(&store, "x", Holds(b), b"b").await, PutOutcome::Updated(e) if e.md5 == b),
        "the same content again"
    );
    assert_eq!(read(&store, "x").await.as_deref(), Some(&b"b"[..]));
    assert!(matches!(put(&store, "empty", New, b"").await, PutOutcome::Created(e) if e.size == 0));
    assert_eq!(read(&store, "empty").await.as_deref(), Some(&b""[..]));
}

async fn tombstones(store: impl Store, _: Arc<AtomicU64>) {
    let (a, b) = (Md5::of(b"a"), Md5::of(b"b"));
    assert_eq!(delete(&store, "x", None).await, DeleteOutcome::Absent);
    assert_eq!(delete(&store, "x", Some(a)).await, DeleteOutcome::Absent);
    let live = written(put(&store, "x", New, b"a").await);
    assert_eq!(delete(&store, "x", Some(b)).await, DeleteOutcome::Mismatch(live));
    let tombstone = match delete(&store, "x", Some(a)).await {
        DeleteOutcome::Done(entry) => entry,
        other => panic!("{other:?}"),
    };
    assert_eq!((tombstone.md5, tombstone.size, tombstone.is_deleted), (a, 0, true));
    assert!(tombstone.version > live.version);
    assert!(!is_strong(&store) || tombstone.cursor > live.cursor);
    assert_eq!(delete(&store, "x", None).await, DeleteOutcome::Tombstone(tombstone));
    assert!(matches!(store.get("", &path("x")).await.unwrap(), GetOutcome::Tombstone(e) if e == tombstone));
    assert_eq!(index(&store, 0).await["x"], tombstone);

    assert_eq!(put(&store, "x", Holds(b), b"c").await, PutOutcome::Mismatch(Some(tombstone)));
    assert!(matches!(put(&store, "x", Holds(a), b"c").await, PutOutcome::Created(_)), "by the tombstone's md5");
    assert!(matches!(delete(&store, "x", None).await, DeleteOutcome::Done(_)), "without a precondition");
    assert!(matches!(put(&store, "x", New, b"d").await, PutOutcome::Created(_)), "as new");
    assert_eq!(read(&store, "x").await.as_deref(), Some(&b"d"[..]));
}

/// A batch gives the same results as single requests.
#[expect(clippy::too_many_lines, reason = "a story from top to bottom")]
async fn batches(store: impl Store, _: Arc<AtomicU64>) {
    let a = Md5::of(b"a");
    let big = large(3);
    written(put(&store, "held", New, b"a").await);
    written(put(&store, "dead", New, b"a").await);
    assert!(matches!(delete(&store, "dead", None).await, DeleteOutcome::Done(_)));
    let put_op = |expect, content: &[u8]| BatchWrite::Put { expect, content: Bytes::copy_from_slice(content) };
    let mut writes = vec![
        (path("new"), put_op(New, b"n")),
        (path("held"), put_op(New, b"x")),
        (path("dead"), put_op(Holds(a), b"again")),
        (path("big"), put_op(New, &big)),
        (path("absent"), BatchWrite::Delete { expect: None }),
        (path("empty"), put_op(New, b"")),
    ];
    writes.extend((0..300).map(|n| (path(&format!("many/{n}")), put_op(New, format!("{n}").as_bytes()))));
    let meta = BlobMeta { device: Some("laptop".into()), ..BlobMeta::default() };
    let exact = is_strong(&store);
    let before = if exact { mark(&store).await.cursor } else { 0 };
    let done = store.write_many("", writes, &meta).await;
    let done: Vec<WriteOutcome> = done.into_iter().map(Result::unwrap).collect();
    assert_eq!(done.len(), 306);
    assert!(matches!(done[0], WriteOutcome::Put(PutOutcome::Created(e)) if e.md5 == Md5::of(b"n")));
    assert!(matches!(done[1], WriteOutcome::Put(PutOutcome::Mismatch(Some(e))) if e.md5 == a));
    assert!(matches!(done[2], WriteOutcome::Put(PutOutcome::Created(_))));
    assert!(matches!(done[3], WriteOutcome::Put(PutOutcome::Created(e)) if e.md5 == Md5::of(&big)));
    assert_eq!(done[4], WriteOutcome::Deleted(DeleteOutcome::Absent));
    assert!(done[5..].iter().all(|w| matches!(w, WriteOutcome::Put(PutOutcome::Created(_)))));
    if exact {
        assert_eq!(mark(&store).await.cursor, before + 304);
        let mut cursors: Vec<u64> = index(&store, before).await.values().map(|e| e.cursor).collect();
        cursors.sort_unstable();
        assert_eq!(cursors, (before + 1..=before + 304).collect::<Vec<_>>(), "every write has its own cursor");
    }
    assert_eq!(read(&store, "big").await, Some(big.clone()));

    let paths = ["many/7", "absent", "big", "held", "empty", "many/299"];
    let mut got = store.get_many("", paths.map(path).to_vec()).await.into_iter().map(Result::unwrap);
    for want in [Some(&b"7"[..]), None, Some(&big), Some(b"a"), Some(b""), Some(b"299")] {
        match (got.next().unwrap(), want) {
            (GetOutcome::Found(blob), Some(want)) => assert!(content(blob.body).await == want),
            (GetOutcome::Absent, None) => {}
            _ => panic!("not {:?}", want.map(<[u8]>::len)),
        }
    }
    let GetOutcome::Found(blob) = store.get("", &path("many/7")).await.unwrap() else { panic!("it is there") };
    // S3 sets a default content type, so compare the rest.
    assert_eq!((&blob.meta.device, &blob.meta.free), (&meta.device, &meta.free));

    let gone = (0..300).map(|n| {
        let md5 = Md5::of(format!("{}", n / 2 * 2).as_bytes());
        (path(&format!("many/{n}")), BatchWrite::Delete { expect: Some(Holds(md5)) })
    });
    let done = store.write_many("", gone.collect(), &BlobMeta::default()).await;
    for (n, done) in done.into_iter().enumerate() {
        match done.unwrap() {
            WriteOutcome::Deleted(DeleteOutcome::Done(_)) if n % 2 == 0 => {}
            WriteOutcome::Deleted(DeleteOutcome::Mismatch(_)) if n % 2 == 1 => {}
            other => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(read(&store, "many/8").await, None);
    assert_eq!(read(&store, "many/9").await.as_deref(), Some(&b"9"[..]));
    assert_eq!(store.write_many("", Vec::new(), &meta).await.len(), 0);
    assert_eq!(store.get_many("", Vec::new()).await.len(), 0);
}

async fn large_contents(store: impl Store, _: Arc<AtomicU64>) {
    let (one, two) = (large(1), large(2));
    assert!(matches!(put(&store, "x", New, &one).await, PutOutcome::Created(_)));
    assert!(matches!(put(&store, "x", New, &two).await, PutOutcome::Mismatch(Some(_))));
    assert_eq!(read(&store, "x").await, Some(one.clone()));

    // A body that is being read stays complete while it is replaced.
    let GetOutcome::Found(old) = store.get("", &path("x")).await.unwrap() else { panic!("x is there") };
    assert!(matches!(put(&store, "x", Holds(Md5::of(&one)), &two).await, PutOutcome::Updated(_)));
    assert_eq!(content(old.body).await, one);
    assert_eq!(read(&store, "x").await, Some(two.clone()));

    assert!(matches!(put(&store, "x", Holds(Md5::of(&two)), b"small").await, PutOutcome::Updated(_)));
    assert_eq!(read(&store, "x").await.as_deref(), Some(&b"small"[..]));

    // In pieces of an odd size.
    let mut body = store.new_body();
    for piece in one.chunks(70_001) {
        body.push(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let stored = store.put("", &path("y"), New, BlobMeta::default(), body).await.unwrap();
    assert_eq!(written(stored).md5, Md5::of(&one));
    assert_eq!(read(&store, "y").await, Some(one));

    // A body that is dropped before its put.
    let mut body = store.new_body();
    body.push(Bytes::from(two)).await.unwrap();
    drop(body);
    assert_eq!(index(&store, 0).await.len(), 2);
}

async fn versions(store: impl Store, clock: Arc<AtomicU64>) {
    let mut last = 0;
    let mut held = New;
    for (now, content) in [(5_000, b"a"), (4_000, b"b"), (1, b"c"), (9_000, b"d"), (9_000, b"e")] {
        clock.store(now, Ordering::SeqCst);
        let entry = written(put(&store, "x", held, content).await);
        assert!(entry.version > last && entry.version >= now, "{now}: {} after {last}", entry.version);
        last = entry.version;
        held = Holds(entry.md5);
    }
    assert_eq!(last, 9_001);
    clock.store(2, Ordering::SeqCst);
    assert!(matches!(delete(&store, "x", None).await, DeleteOutcome::Done(e) if e.version == 9_002));
}

async fn records(store: impl Store, _: Arc<AtomicU64>) {
    let store = Arc::new(store);
    assert_eq!(store.record("keys").await.unwrap(), None);
    assert!(!store.put_record("keys", Some("1"), Bytes::from_static(b"x")).await.unwrap());
    assert!(store.put_record("keys", None, Bytes::from_static(b"a")).await.unwrap());
    assert!(!store.put_record("keys", None, Bytes::from_static(b"b")).await.unwrap());
    let held = store.record("keys").await.unwrap().unwrap();
    assert_eq!(held.content, "a");
    let races = (0..8).map(|n: u8| {
        let (store, tag) = (store.clone(), held.tag.clone());
        tokio::spawn(async move { store.put_record("keys", Some(&tag), vec![n].into()).await.unwrap() })
    });
    let won = join_all(races).await.into_iter().filter(|won| *won.as_ref().unwrap()).count();
    assert_eq!(won, 1);
    let now = store.record("keys").await.unwrap().unwrap();
    assert_ne!(now.tag, held.tag);
    assert_eq!(now.content.len(), 1);
    assert_eq!(store.record("others").await.unwrap(), None);
    assert_eq!(index(&*store, 0).await.len(), 0);
}

async fn races(store: impl Store, _: Arc<AtomicU64>) {
    let store = Arc::new(store);
    for round in 0..20 {
        let name = format!("r{round}");
        let race = |precondition, tag: &'static str| {
            let (store, name) = (store.clone(), name.clone());
            join_all((0..16).map(move |i| {
                let (store, name) = (store.clone(), name.clone());
                tokio::spawn(async move { put(&*store, &name, precondition, format!("{tag}{i}").as_bytes()).await })
            }))
        };
        let won = |puts: Vec<Result<PutOutcome, _>>| {
            let won: Vec<_> =
                puts.into_iter().map(Result::unwrap).filter(|p| !matches!(p, PutOutcome::Mismatch(_))).collect();
            assert_eq!(won.len(), 1, "exactly one writer wins");
            written(won[0])
        };
        let created = won(race(New, "create").await);
        let updated = won(race(Holds(created.md5), "update").await);
        assert_eq!(Md5::of(&read(&*store, &name).await.unwrap()), updated.md5);
        let deletes = join_all((0..16).map(|_| delete(&*store, &name, Some(updated.md5)))).await;
        assert_eq!(deletes.iter().filter(|d| matches!(d, DeleteOutcome::Done(_))).count(), 1);
        assert!(won(race(New, "again").await).version > updated.version);
    }
}

async fn is_healthy(store: impl Store, _: Arc<AtomicU64>) {
    store.health().await.unwrap();
}

/// The index matches the blobs, namespaces are separate, and every state has its own tag.
async fn listing(store: impl Store, _: Arc<AtomicU64>) {
    assert_eq!(index(&store, 0).await, BTreeMap::new());
    let mut changes = store.subscribe();
    let mut tags = vec![store.state("").await.unwrap().tag];
    let names = ["a", "b/c", "b/c d", "\u{fc}ber %41+&=?#\"<>|*.md", "b/c/d", "z"];
    for name in names {
        let entry = written(put(&store, name, New, name.as_bytes()).await);
        let sent = changes.recv().await.unwrap();
        assert_eq!((sent[0].ns.as_str(), sent[0].path.as_str()), ("", name));
        assert_eq!(index(&store, 0).await[name], entry);
        assert_eq!(read(&store, name).await.as_deref(), Some(name.as_bytes()));
        let tag = store.state("").await.unwrap().tag;
        assert!(!tags.contains(&tag), "a change has a new tag");
        assert!(tag.bytes().all(|b| b.is_ascii_graphic() && b != b'"'), "{tag}");
        tags.push(tag);
    }
    assert!(matches!(delete(&store, "z", None).await, DeleteOutcome::Done(_)));
    let before = store.state("").await.unwrap();
    put(&store, "a", New, b"refused").await;
    delete(&store, "nobody", None).await;
    assert_eq!(store.state("").await.unwrap(), before, "a refused write changes nothing");

    let other = store.put_bytes("team/x", &path("a"), New, Bytes::from_static(b"theirs")).await.unwrap();
    assert!(matches!(other, PutOutcome::Created(_)));
    assert_eq!(store.state("").await.unwrap(), before, "another namespace changes nothing here");
    let team: BTreeMap<_, _> = store.index("team/x", 0).await.unwrap().entries.into_iter().collect();
    assert_eq!(team.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(store.index("nobody", 0).await.unwrap().entries.len(), 0);
    let all = store.index("", 0).await.unwrap();
    assert_eq!(all.state, before);
    let all: BTreeMap<_, _> = all.entries.into_iter().collect();
    assert_eq!(all.len(), names.len());
    assert_eq!(all.values().filter(|e| e.is_deleted).count(), 1);
}

/// Sixteen writers with their own and with common paths. At the end the index matches the blobs.
async fn index_under_16_writers(store: impl Store, _: Arc<AtomicU64>) {
    let store = Arc::new(store);
    let seed = seed();
    let writers = (0..16u64).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed ^ writer);
            for n in 0..12 {
                put(&*store, &format!("own/{writer}-{n}"), New, &[n]).await;
                let common = format!("common/{}", random.u8(..4));
                let content = [random.u8(..), n];
                match store.get("", &path(&common)).await.unwrap() {
                    GetOutcome::Found(blob) if random.u8(..4) == 0 => {
                        let deleted = delete(&*store, &common, Some(blob.entry.md5)).await;
                        assert!(deleted != DeleteOutcome::Absent, "a deleted file leaves a tombstone");
                    }
                    GetOutcome::Found(blob) => {
                        let put = put(&*store, &common, Holds(blob.entry.md5), &content).await;
                        assert_ne!(put, PutOutcome::Mismatch(None), "a deleted file leaves a tombstone");
                    }
                    GetOutcome::Tombstone(_) | GetOutcome::Absent => {
                        let put = put(&*store, &common, New, &content).await;
                        assert!(!matches!(put, PutOutcome::Updated(_)), "`new` must not update");
                    }
                }
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    let all = index(&*store, 0).await;
    assert_eq!(all.keys().filter(|name| name.starts_with("own/")).count(), 16 * 12);
    for (name, entry) in all {
        match store.get("", &path(&name)).await.unwrap() {
            GetOutcome::Found(blob) => assert_eq!(blob.entry, entry, "{name}"),
            GetOutcome::Tombstone(tombstone) => assert_eq!(tombstone, entry, "{name}"),
            GetOutcome::Absent => panic!("{name} is only in the index"),
        }
    }
}

use earlier::{earlier_versions, imported_versions, retention};
use index_changes::changes_since_a_tag;
use linearizability::linearizable;
use strong_index::index_and_cursor;

/// Passes the tests of the suite to a macro.
macro_rules! the_suite {
    ($to:ident $($more:tt)*) => {
        $to! { $($more)*
            (current_thread) preconditions, tombstones, batches, large_contents, listing, versions, earlier_versions,
                imported_versions, retention, is_healthy, changes_since_a_tag;
            (multi_thread, worker_threads = 4) records, races, linearizable, index_under_16_writers;
        }
    };
}
use the_suite;

/// The suite for one store. `$open` takes a directory and a clock. It gives the store, and a value that must live as long;
/// or `None` if the store cannot be tested here.
macro_rules! conformance {
    ($name:ident, $open:expr $(, #$attribute:tt)*) => {
        mod $name {
            use super::*;

            the_suite!(suite [$(#$attribute)*] with,);

            async fn with<F: Future<Output = ()>>(test: impl FnOnce(super::opened::$name, Arc<AtomicU64>) -> F) {
                let dir = tempfile::tempdir().unwrap();
                let now = Arc::new(AtomicU64::new(1_700_000_000_000));
                if let Some((store, _keep)) = $open(dir.path().join("store"), clock(&now)).await {
                    test(store, now).await;
                }
            }
        }
    };
}

/// The tests of a strong index.
macro_rules! strong {
    ($name:ident, $open:expr) => {
        mod $name {
            use super::*;

            suite! { [] with, (current_thread) index_and_cursor; }

            async fn with<F: Future<Output = ()>>(test: impl FnOnce(super::opened::$name, Arc<AtomicU64>) -> F) {
                let dir = tempfile::tempdir().unwrap();
                let now = Arc::new(AtomicU64::new(1_700_000_000_000));
                if let Some((store, _keep)) = $open(dir.path().join("store"), clock(&now)).await {
                    test(store, now).await;
                }
            }
        }
    };
}

/// One test for each function, with its name and these attributes.
macro_rules! suite {
    ($attributes:tt $with:ident, $($runtime:tt $($name:ident),+;)+) => {
        $($(suite! { @one $attributes $with, $runtime $name })+)+
    };
    (@one [$($attribute:tt)*] $with:ident, (current_thread) $name:ident) => {
        #[tokio::test]
        $($attribute)*
        async fn $name() {
            $with(super::$name).await;
        }
    };
    (@one [$($attribute:tt)*] $with:ident, (multi_thread, worker_threads = 4) $name:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        $($attribute)*
        async fn $name() {
            $with(super::$name).await;
        }
    };
}

fn clock(now: &Arc<AtomicU64>) -> WallClock {
    let now = now.clone();
    Arc::new(move || now.load(Ordering::SeqCst))
}

mod opened {
    #![allow(non_camel_case_types)] // Each type has the name of its suite.
    pub(crate) type memory = memsync::testing::MemoryStore;
    pub(crate) type memory_strong = memsync::testing::MemoryStore;
    pub(crate) type sqlite = memsync::store::SqliteStore;
    pub(crate) type sqlite_strong = memsync::store::SqliteStore;
    pub(crate) type s3_here = memsync::store::S3Store;
    pub(crate) type s3_foreign = memsync::store::S3Store;
}

async fn open_memory(_: PathBuf, clock: WallClock) -> Option<(MemoryStore, ())> {
    Some((MemoryStore::with_clock(clock), ()))
}

async fn open_sqlite(dir: PathBuf, clock: WallClock) -> Option<(SqliteStore, ())> {
    Some((SqliteStore::open_with(&dir, SqliteSettings { clock, ..SqliteSettings::default() }).unwrap(), ()))
}

conformance!(memory, open_memory);
strong!(memory_strong, open_memory);
conformance!(sqlite, open_sqlite);
strong!(sqlite_strong, open_sqlite);
conformance!(s3_here, s3::open_here);
conformance!(s3_foreign, s3::open_foreign, #[ignore = "needs MEMSYNC_TEST_S3_ENDPOINT"]);
