//! Statistics, backups, verification and copies of stores: in the library, and by commands while a proxy serves.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use memsync::digest::Md5;
use memsync::path::RelPath;
use memsync::store::copy::{CopyError, copy};
use memsync::store::sqlite::upkeep::{backup, restore, stats, verify};
use memsync::store::{
    BlobBody, BlobMeta, BlobVersion, GetOutcome, IndexEntry, PutOutcome, RecordStore, SqliteStore, Store,
    WriteCondition,
};
use memsync::testing::MemoryStore;

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn large(seed: u8) -> Bytes {
    (0..400_000u32).map(|i| (i >> 8) as u8 ^ i as u8 ^ seed).collect::<Vec<_>>().into()
}

async fn put(
    store: &impl Store,
    ns: &str,
    name: &str,
    expect: WriteCondition,
    content: impl Into<Bytes>,
) -> IndexEntry {
    match store.put_bytes(ns, &path(name), expect, content.into()).await.unwrap() {
        PutOutcome::Created(entry) | PutOutcome::Updated(entry) => entry,
        PutOutcome::Mismatch(held) => panic!("lost to {held:?}"),
    }
}

/// Fills a store with files, versions, a tombstone, metadata and a record.
async fn fill(store: &impl Store) {
    let one = put(store, "", "a.md", WriteCondition::Absent, "one").await;
    put(store, "", "a.md", WriteCondition::Version(one.version), "two").await;
    let big = put(store, "", "big/1.bin", WriteCondition::Absent, large(1)).await;
    put(store, "", "big/1.bin", WriteCondition::Md5(big.md5), large(2)).await;
    put(store, "", "gone.md", WriteCondition::Absent, "gone").await;
    let who = BlobMeta { device: Some("laptop".to_owned()), ..BlobMeta::default() };
    store.delete("", &path("gone.md"), None, who).await.unwrap();
    let free = BTreeMap::from([("topic".to_owned(), "ai".to_owned())]);
    let meta = BlobMeta { content_type: Some("text/x".to_owned()), free, ..BlobMeta::default() };
    let mut body = store.new_body();
    body.push(Bytes::from_static(b"theirs")).await.unwrap();
    store.put("team/a", &path("notes/x"), WriteCondition::Absent, meta, body).await.unwrap();
    assert!(store.put_record("keys", None, Bytes::from_static(b"{}")).await.unwrap());
}

type StoreContents = BTreeMap<(String, String), Vec<(BlobVersion, Option<Vec<u8>>)>>;

/// Everything that a store returns, without cursors.
async fn contents(store: &impl Store) -> StoreContents {
    let mut all = StoreContents::new();
    for ns in store.namespaces().await.unwrap() {
        for (name, _) in store.index(&ns, 0).await.unwrap().entries {
            let mut versions = Vec::new();
            for version in store.versions(&ns, &path(&name)).await.unwrap() {
                let content = match store.read(&ns, &path(&name), Some(version.entry.version)).await.unwrap() {
                    GetOutcome::Found(blob) => Some(match blob.body {
                        BlobBody::Whole(content) => content.to_vec(),
                        BlobBody::Pieces(pieces) => {
                            pieces.map(|piece| piece.unwrap().to_vec()).collect::<Vec<_>>().await.concat()
                        }
                    }),
                    GetOutcome::Tombstone(_) | GetOutcome::Absent => None,
                };
                versions.push((version, content));
            }
            all.insert((ns.clone(), name), versions);
        }
    }
    all
}

#[tokio::test]
async fn copy_has_every_version_tombstone_and_record() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = SqliteStore::open(&dir.path().join("a")).unwrap();
    fill(&embedded).await;
    let before = contents(&embedded).await;
    assert_eq!((before.len(), before[&(String::new(), "big/1.bin".to_owned())].len()), (4, 2));

    let memory = MemoryStore::new();
    let copied = copy(&embedded, &memory, || ()).await.unwrap();
    assert_eq!((copied.paths, copied.written, copied.kept, copied.records), (4, 7, 0, 1));
    assert_eq!(contents(&memory).await, before);
    assert_eq!(memory.record("keys").await.unwrap().unwrap().content, "{}");

    // Copy back into a store that already has one version.
    let back = SqliteStore::open(&dir.path().join("b")).unwrap();
    let first = memory.versions("", &path("a.md")).await.unwrap().pop().unwrap();
    let mut body = back.new_body();
    body.push(Bytes::from_static(b"one")).await.unwrap();
    back.import_version("", &path("a.md"), first, Some(body)).await.unwrap();
    let copied = copy(&memory, &back, || ()).await.unwrap();
    assert_eq!((copied.written, copied.kept), (6, 1));
    assert_eq!(contents(&back).await, before);
    let again = copy(&memory, &back, || ()).await.unwrap();
    assert_eq!((again.written, again.kept, again.bytes, again.records), (0, 7, 0, 0));
}

#[tokio::test]
async fn copy_does_not_overwrite_newer_versions() {
    let (from, to) = (MemoryStore::new(), MemoryStore::new());
    put(&from, "", "x", WriteCondition::Absent, "old").await;
    put(&from, "", "y", WriteCondition::Absent, "y").await;
    let md5 = Md5::of(b"mine");
    let entry = IndexEntry { version: u64::MAX / 4, md5, size: 4, is_deleted: false, cursor: 0 };
    let mine = BlobVersion { entry, meta: BlobMeta::default() };
    let mut body = to.new_body();
    body.push(Bytes::from_static(b"mine")).await.unwrap();
    to.import_version("", &path("x"), mine, Some(body)).await.unwrap();
    let failures = copy(&from, &to, || ()).await.unwrap().failures;
    assert!(matches!(&failures[..], [CopyError::Conflict(path)] if path == "x"), "{failures:?}");
    assert!(
        matches!(to.get("", &path("x")).await.unwrap(), GetOutcome::Found(blob) if blob.entry.md5 == Md5::of(b"mine"))
    );
    assert!(matches!(to.get("", &path("y")).await.unwrap(), GetOutcome::Found(_)));
}

/// One damaged file must not keep the others out of the copy.
#[tokio::test]
async fn copy_goes_on_after_a_path_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (home, moved) = (dir.path().join("home"), dir.path().join("moved"));
    let store = SqliteStore::open(&home).unwrap();
    put(&store, "", "first.md", WriteCondition::Absent, "first").await;
    put(&store, "", "middle.bin", WriteCondition::Absent, large(1)).await;
    put(&store, "team", "last.md", WriteCondition::Absent, "last").await;
    assert!(store.put_record("keys", None, Bytes::from_static(b"{}")).await.unwrap());
    drop(store);
    let body = std::fs::read_dir(home.join("bodies")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&body).unwrap();
    bytes[77] ^= 1;
    std::fs::write(&body, bytes).unwrap();

    let out = memsync(dir.path(), &["store", "copy", home.to_str().unwrap(), moved.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains("middle.bin: the source's content does not match its MD5"), "{}", text(&out));
    let copied = SqliteStore::open(&moved).unwrap();
    assert!(matches!(copied.get("", &path("first.md")).await.unwrap(), GetOutcome::Found(_)));
    assert!(matches!(copied.get("", &path("middle.bin")).await.unwrap(), GetOutcome::Absent));
    assert!(matches!(copied.get("team", &path("last.md")).await.unwrap(), GetOutcome::Found(_)));
    assert_eq!(copied.record("keys").await.unwrap().unwrap().content, "{}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn backup_during_writes_is_consistent() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("store");
    let store = Arc::new(SqliteStore::open(&home).unwrap());
    fill(&*store).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let mut held = None;
            // Each round writes `p`, then `q`, so `q` is never ahead of `p`.
            for n in 0u32.. {
                let expect =
                    |e: Option<IndexEntry>| e.map_or(WriteCondition::Absent, |e| WriteCondition::Version(e.version));
                let content = [n.to_le_bytes().as_slice(), &large(n as u8)].concat();
                let (p, q) = held.map_or((None, None), |(p, q)| (Some(p), Some(q)));
                let p = put(&*store, "", "p", expect(p), content.clone()).await;
                let q = put(&*store, "", "q", expect(q), content).await;
                held = Some((p, q));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        })
    };
    for n in 0..5 {
        let (home, to) = (home.clone(), dir.path().join(format!("backup{n}")));
        let checked = tokio::task::spawn_blocking(move || {
            backup(&home, &to).unwrap();
            let refused = backup(&home, &to).unwrap_err().to_string();
            assert!(refused.contains("backup"), "the target exists: {refused}");
            (verify(&to, |_| ()).unwrap(), verify(&home, |_| ()).unwrap(), to)
        });
        let (copied, live, to) = checked.await.unwrap();
        assert_eq!((copied.damage, live.damage), (vec![], vec![]));
        let copied = SqliteStore::open(&to).unwrap();
        let number = async |name: &str| match copied.get("", &path(name)).await.unwrap() {
            GetOutcome::Found(blob) => match blob.body {
                BlobBody::Pieces(mut pieces) => {
                    u32::from_le_bytes(pieces.next().await.unwrap().unwrap()[..4].try_into().unwrap())
                }
                BlobBody::Whole(_) => panic!("it is large"),
            },
            GetOutcome::Tombstone(_) | GetOutcome::Absent => 0,
        };
        let (p, q) = (number("p").await, number("q").await);
        assert!(p == q || p == q + 1, "{p} {q}");
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
}

#[tokio::test]
async fn restore_needs_a_free_target_and_a_whole_backup() {
    let dir = tempfile::tempdir().unwrap();
    let (home, saved, back) = (dir.path().join("store"), dir.path().join("saved"), dir.path().join("deep/back"));
    let store = SqliteStore::open(&home).unwrap();
    fill(&store).await;
    let (before, mark) = (contents(&store).await, store.state("").await.unwrap().mark.unwrap());
    backup(&home, &saved).unwrap();
    assert!(restore(&saved, &home).is_err(), "there is a store");
    restore(&saved, &back).unwrap();
    let restored = SqliteStore::open(&back).unwrap();
    assert_eq!(contents(&restored).await, before);
    let now = restored.state("").await.unwrap().mark.unwrap();
    assert_ne!(now.epoch, mark.epoch);
    assert_eq!(restored.record("keys").await.unwrap().unwrap().content, "{}");

    // Damage one byte of one body.
    let body = std::fs::read_dir(saved.join("bodies")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&body).unwrap();
    bytes[77] ^= 1;
    std::fs::write(&body, bytes).unwrap();
    let damage = verify(&saved, |_| ()).unwrap().damage;
    assert!(damage.len() == 1 && damage[0].starts_with("big/1.bin: "), "{damage:?}");
    let refused = restore(&saved, &dir.path().join("other")).unwrap_err().to_string();
    assert!(refused.contains("damaged") && !dir.path().join("other").exists(), "{refused}");
    assert!(backup(&dir.path().join("nothing"), &dir.path().join("x")).is_err());
    assert!(!dir.path().join("x").exists());
}

#[tokio::test]
async fn statistics_are_per_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    fill(&store).await;
    let stats = stats(dir.path()).unwrap();
    let brief: Vec<_> = stats
        .namespaces
        .iter()
        .map(|n| (n.name.as_str(), n.files, n.bytes, n.tombstones, n.earlier_versions, n.earlier_bytes))
        .collect();
    assert_eq!(brief, [("", 2, 400_003, 1, 3, 400_007), ("team/a", 1, 6, 0, 0, 0)]);
    assert_eq!(stats.bodies, 800_000);
    assert!(stats.database > 4096);
}

fn memsync(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_memsync")).args(args).env_clear().env("MEMSYNC_HOME", home).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// An older database is put over this one by copying. A log that stayed would bring newer pages back into it.
#[tokio::test]
async fn closed_store_has_no_log_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    fill(&store).await;
    let log = || std::fs::metadata(dir.path().join("store.db-wal")).map_or(0, |log| log.len());
    assert!(log() > 0, "the writes are in the log");
    let reader = rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
    let entries: i64 = reader.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).unwrap();
    assert!(entries > 0);
    drop(store);
    assert_eq!(log(), 0);
    drop(reader);
}

/// This process holds the store as a proxy does.
#[tokio::test]
async fn commands_work_beside_a_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let (home, saved, moved) = (dir.path().join("home"), dir.path().join("saved"), dir.path().join("moved"));
    let store = SqliteStore::open(&home.join("proxy")).unwrap();
    fill(&store).await;
    let run = |args: &[&str]| memsync(&home, args);
    // The proxy's own maintenance must keep its file locks. Without them a command would remove the log at its end, and
    // with it all later writes.
    store.sweep().await.unwrap();
    let held = store.record("keys").await.unwrap().unwrap();
    assert!(store.put_record("keys", Some(&held.tag), held.content).await.unwrap());
    let log = || std::fs::metadata(home.join("proxy/store.db-wal")).unwrap().ino();
    let before = log();
    for args in [&["store", "stats"][..], &["store", "verify"], &["key", "list"]] {
        memsync(&home, args);
        assert_eq!(log(), before, "{args:?} removed the log");
    }

    let out = run(&["store", "stats"]);
    assert!(out.status.success() && text(&out).contains("2 files, 400 kB; 3 earlier versions"), "{}", text(&out));
    let json: serde_json::Value = serde_json::from_slice(&run(&["store", "stats", "--json"]).stdout).unwrap();
    assert_eq!(json["namespaces"][1]["name"], "team/a");
    let out = run(&["store", "verify"]);
    assert!(
        out.status.success() && text(&out).contains("6 contents read") && text(&out).contains("0 damaged"),
        "{}",
        text(&out)
    );
    let out = run(&["store", "backup", saved.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out));
    let out = run(&["store", "backup", saved.to_str().unwrap()]);
    assert!(out.status.code() == Some(1) && text(&out).contains("saved"), "{}", text(&out));
    let out = run(&["store", "restore", saved.to_str().unwrap()]);
    assert!(!out.status.success(), "there is a store: {}", text(&out));

    let out = run(&["store", "copy", home.join("proxy").to_str().unwrap(), moved.to_str().unwrap()]);
    assert!(
        out.status.code() == Some(1) && text(&out).contains("another memsync proxy uses this store"),
        "{}",
        text(&out)
    );
    drop(store);
    let out = run(&["store", "copy", home.join("proxy").to_str().unwrap(), moved.to_str().unwrap()]);
    assert!(out.status.success() && text(&out).contains("4 paths"), "{}", text(&out));
    assert_eq!(contents(&SqliteStore::open(&moved).unwrap()).await.len(), 4);
    let out = run(&["store", "copy", dir.path().join("none").to_str().unwrap(), moved.to_str().unwrap()]);
    assert!(out.status.code() == Some(2) && text(&out).contains("none: there is no store"), "{}", text(&out));
    let (empty, new) = (dir.path().join("empty"), dir.path().join("new"));
    std::fs::create_dir(&empty).unwrap();
    let out = run(&["store", "copy", empty.to_str().unwrap(), new.to_str().unwrap()]);
    assert!(out.status.code() == Some(2) && text(&out).contains("empty: there is no store"), "{}", text(&out));
    assert!(
        std::fs::read_dir(&empty).unwrap().next().is_none() && !new.exists(),
        "no store is created for a missing source"
    );
    let out = run(&["store", "stats", "--store", dir.path().join("none").to_str().unwrap()]);
    assert!(out.status.code() == Some(1) && text(&out).contains("none"), "{}", text(&out));
}

/// `testdata/store/v1` was written by the first released format; a proxy need not have been started on it since.
#[test]
fn maintenance_works_on_format_1() {
    let dir = tempfile::tempdir().unwrap();
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/store/v1/store.db");
    let old = |name: &str| {
        let at = dir.path().join(name);
        std::fs::create_dir(&at).unwrap();
        std::fs::copy(&frozen, at.join("store.db")).unwrap();
        at
    };
    assert_eq!(stats(&old("stats")).unwrap().namespaces[0].files, 2);
    let verified = verify(&old("verify"), |_| ()).unwrap();
    assert!(verified.contents == 2 && verified.damage.is_empty(), "{verified:?}");
    for (from, to) in [("backup", "saved"), ("copy", "restored")] {
        let (from, to) = (old(from), dir.path().join(to));
        let done = if to.ends_with("saved") { backup(&from, &to) } else { restore(&from, &to) };
        done.unwrap();
        assert_eq!(stats(&to).unwrap().namespaces[0].files, 2);
    }
    // While a proxy serves it, it cannot be migrated.
    let served = old("served");
    let lock = std::fs::File::create(served.join("lock")).unwrap();
    lock.try_lock().unwrap();
    let why = stats(&served).unwrap_err().to_string();
    assert!(why.contains("another memsync proxy uses this store"), "{why}");
}
