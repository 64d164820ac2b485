//! Tests of the SQLite store only: reopening, files, ownership, a full disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::join_all;
use memsync::digest::Md5;
use memsync::protocol::HistoryPoint;
use memsync::store::sqlite::SqliteSettings;
use memsync::store::{
    BlobMeta, DeleteOutcome, GetOutcome, PutOutcome, RecordStore, Retention, SqliteStore, Store, StoreError,
    SweepReport,
};

use super::s3::until;
use super::{Holds, New, clock, delete, index, large, mark, path, put, read, written};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn reopened_store_has_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    put(&store, "a", New, b"a").await;
    put(&store, "gone", New, b"g").await;
    delete(&store, "gone", None).await;
    put(&store, "big", New, &large(3)).await;
    let (at, before) = (mark(&store).await, index(&store, 0).await);
    drop(store);

    let store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(mark(&store).await, at);
    assert_eq!(index(&store, 0).await, before);
    assert_eq!(read(&store, "a").await.as_deref(), Some(&b"a"[..]));
    assert_eq!(read(&store, "big").await, Some(large(3)));
    assert!(written(put(&store, "b", New, b"b").await).cursor > at.cursor);
}

#[tokio::test]
async fn restored_store_has_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (home, copy) = (dir.path().join("store"), dir.path().join("copy"));
    let epoch = async |at: &Path| mark(&SqliteStore::open(at).unwrap()).await.epoch;
    let move_copy = |from: &Path, to: &Path| {
        std::fs::create_dir(to).unwrap();
        std::fs::copy(from.join("store.db"), to.join("store.db")).unwrap();
    };
    let first = epoch(&home).await;
    assert_eq!(epoch(&home).await, first);
    move_copy(&home, &copy);
    std::fs::remove_dir_all(&home).unwrap();
    move_copy(&copy, &home);
    let restored = epoch(&home).await;
    assert_ne!(restored, first);
    assert_eq!(epoch(&home).await, restored);
}

#[tokio::test]
async fn store_reset_in_place_knows_only_its_own_history() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.db");
    let point = async |store: &SqliteStore| store.state("").await.unwrap().history.unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(store.state("").await.unwrap().history, None, "nothing was written yet");
    put(&store, "a", New, b"1").await;
    let first = point(&store).await;
    put(&store, "b", New, b"2").await;
    let second = point(&store).await;
    drop(store);
    assert_eq!(names(dir.path()), ["bodies", "lock", "store.db"], "a closed store has no log");
    let copy = std::fs::read(&file).unwrap();

    let store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(point(&store).await, second, "a start without a write begins no history id");
    put(&store, "c", New, b"3").await;
    let third = point(&store).await;
    assert_ne!(third.id, second.id);
    let ahead = HistoryPoint { cursor: third.cursor, ..second.clone() };
    for (known, at) in [(true, &first), (true, &second), (true, &third), (false, &ahead)] {
        assert_eq!(store.contains_point("", at).await.unwrap(), known, "{at}");
    }
    let (epoch, tag) = (mark(&store).await.epoch, store.state("").await.unwrap().tag);
    drop(store);

    // Overwritten in place, the file keeps its inode and creation time.
    std::fs::write(&file, copy).unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    assert!(!store.contains_point("", &third).await.unwrap(), "no write yet");
    put(&store, "other", New, b"3").await;
    let other = point(&store).await;
    assert_eq!((&mark(&store).await.epoch, other.cursor), (&epoch, third.cursor));
    for (known, at) in [(true, &first), (true, &second), (true, &other), (false, &third)] {
        assert_eq!(store.contains_point("", at).await.unwrap(), known, "{at}");
    }
    assert_ne!(store.state("").await.unwrap().tag, tag, "the same cursor, but another index");
}

/// A sweep that removes nothing takes no write lock.
#[tokio::test]
async fn sweep_without_work_waits_for_no_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    put(&store, "x", New, b"a").await;
    put(&store, "x", Holds(Md5::of(b"a")), b"b").await;
    delete(&store, "x", None).await;
    let db = rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store.sweep().await.unwrap(), SweepReport::default());
}

#[tokio::test]
async fn unused_body_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = dir.path().join("bodies");
    let retention = Retention { versions: 0, ..Retention::default() };
    let settings = || SqliteSettings { retention, ..SqliteSettings::default() };
    let store = SqliteStore::open_with(dir.path(), settings()).unwrap();
    put(&store, "x", New, &large(1)).await;
    put(&store, "x", New, &large(2)).await;
    assert_eq!(names(&bodies).len(), 1, "a refused body leaves nothing");
    put(&store, "x", Holds(Md5::of(&large(1))), &large(2)).await;
    assert_eq!(names(&bodies).len(), 1, "the replaced body is removed");
    let kept = names(&bodies);
    put(&store, "y", New, &large(4)).await;
    delete(&store, "y", None).await;
    assert_eq!(names(&bodies), kept);
    let mut unfinished = store.new_body();
    unfinished.push(large(5).into()).await.unwrap();
    drop(unfinished);
    // A blocking thread may still write the piece.
    until("the unfinished body is removed", async || names(&bodies) == kept).await;
    drop(store);

    std::fs::write(bodies.join("0123"), b"left by a crash").unwrap();
    // A directory cannot be removed as a file.
    std::fs::create_dir(bodies.join("0000")).unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    std::fs::remove_dir(bodies.join("0000")).unwrap();
    assert_eq!(names(&bodies), kept);
    assert_eq!(read(&store, "x").await, Some(large(2)));
}

#[tokio::test]
async fn store_has_one_owner_and_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("deep/store");
    let store = SqliteStore::open(&home).unwrap();
    let Err(refused) = SqliteStore::open(&home) else { panic!("two owners") };
    assert!(matches!(refused, StoreError::Locked(_)), "{refused}");
    assert!(refused.to_string().contains("another memsync proxy"), "{refused}");
    put(&store, "a", New, b"a").await;
    put(&store, "big", New, &large(1)).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&home), mode(&home.join("bodies"))), (0o700, 0o700));
    for dir in [home.clone(), home.join("bodies")] {
        for name in names(&dir).iter().filter(|n| *n != "bodies") {
            assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
        }
    }
    drop(store);
    SqliteStore::open(&home).unwrap();
}

#[test]
fn foreign_directory_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("newer");
    drop(SqliteStore::open(&home).unwrap());
    let file = home.join("store.db");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[60..64].copy_from_slice(&7u32.to_be_bytes());
    std::fs::write(&file, &bytes).unwrap();
    let before = names(&home);
    let refused = SqliteStore::open(&home).err().unwrap();
    assert!(matches!(refused, StoreError::Newer { found: 7, known: 2, .. }), "{refused}");
    assert_eq!((names(&home), std::fs::read(&file).unwrap()), (before, bytes));

    let photos = dir.path().join("photos");
    std::fs::create_dir(&photos).unwrap();
    std::fs::write(photos.join("cat.jpg"), b"meow").unwrap();
    let refused = SqliteStore::open(&photos).err().unwrap();
    assert!(matches!(refused, StoreError::NotAStore { .. }), "{refused}");
    assert_eq!(names(&photos), ["cat.jpg"]);

    let text = dir.path().join("text");
    std::fs::create_dir(&text).unwrap();
    std::fs::write(text.join("store.db"), b"dear diary").unwrap();
    let refused = SqliteStore::open(&text).err().unwrap();
    assert!(matches!(refused, StoreError::NotAStore { .. }), "{refused}");
    assert_eq!(std::fs::read(text.join("store.db")).unwrap(), b"dear diary");
}

#[tokio::test]
async fn full_disk_refuses_writes_and_keeps_acknowledged_ones() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { versions: 0, ..Retention::default() };
    let settings = SqliteSettings { max_database_bytes: Some(1024 * 1024), retention, ..SqliteSettings::default() };
    let store = SqliteStore::open_with(dir.path(), settings).unwrap();
    let mut kept = Vec::new();
    let full = loop {
        let name = format!("n{}", kept.len());
        let content = Bytes::from(vec![kept.len() as u8; 50_000]);
        match store.put_bytes("", &path(&name), New, content).await {
            Ok(put) => kept.push((name, written(put))),
            Err(e) => break e,
        }
        assert!(kept.len() < 100, "the limit holds");
    };
    assert!(matches!(full, StoreError::Full(_)), "{full}");
    assert!(kept.len() > 10);
    assert_eq!(mark(&store).await.cursor, kept.last().unwrap().1.cursor);
    assert_eq!(index(&store, 0).await, kept.iter().cloned().collect());
    // Without earlier versions a deletion frees space, and writes work again.
    for (name, _) in &kept[..3] {
        assert!(matches!(delete(&store, name, None).await, DeleteOutcome::Done(_)));
    }
    put(&store, "after", New, &[1; 50_000]).await;
    drop(store);
    let store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(read(&store, "after").await, Some(vec![1; 50_000]));
    assert_eq!(read(&store, &kept[5].0).await, Some(vec![5; 50_000]));
}

/// Records and sweeps use other connections than the writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_wait_for_records_and_sweeps() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
    let recording = {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..200 {
                store.sweep().await.unwrap();
                let held = store.record("keys").await.unwrap().map(|record| record.tag);
                assert!(store.put_record("keys", held.as_deref(), Bytes::from_static(b"k")).await.unwrap());
            }
        })
    };
    let mut written_so_far = 0;
    while !recording.is_finished() {
        let names: Vec<_> = (0..16).map(|n| format!("{written_so_far}/{n}")).collect();
        let group = join_all(names.iter().map(|name| put(&*store, name, New, b"x"))).await;
        written_so_far += group.into_iter().map(written).count();
    }
    recording.await.unwrap();
    assert_eq!(index(&*store, 0).await.len(), written_so_far);
}

/// `testdata/store/v1` was written by the first released format.
#[tokio::test]
async fn store_of_format_1_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/store/v1/store.db");
    std::fs::copy(frozen, dir.path().join("store.db")).unwrap();
    for _ in 0..2 {
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(read(&store, "a.md").await.as_deref(), Some(&b"content of a.md"[..]));
        let GetOutcome::Found(blob) = store.get("", &path("topics/b.md")).await.unwrap() else { panic!("it is there") };
        assert_eq!(blob.meta.content_type.as_deref(), Some("text/markdown"));
        let all = index(&store, 0).await;
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a.md", "gone.md", "topics/b.md"]);
        assert!(all["gone.md"].is_deleted && all["gone.md"].cursor == 4);
        assert_eq!(store.record("keys").await.unwrap(), None);
    }
    let store = SqliteStore::open(dir.path()).unwrap();
    let a = Md5::of(b"content of a.md");
    assert!(matches!(put(&store, "a.md", Holds(a), b"new").await, PutOutcome::Updated(e) if e.cursor == 5));
    assert_eq!(store.versions("", &path("a.md")).await.unwrap()[1].entry.md5, a);
}

/// A row with an invalid path, as damage or another program could leave it.
#[tokio::test]
async fn sweep_goes_on_after_a_failed_expiry() {
    const DAY: u64 = 24 * 3600 * 1000;
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(DAY));
    let settings = SqliteSettings { clock: clock(&now), ..SqliteSettings::default() };
    let store = SqliteStore::open_with(dir.path(), settings).unwrap();
    put(&store, "gone", New, b"g").await;
    delete(&store, "gone", None).await;
    for name in ["a", "b", "c"] {
        let meta = BlobMeta { expires: Some(2 * DAY), ..BlobMeta::default() };
        store.put("", &path(name), New, meta, store.new_body()).await.unwrap();
    }
    let db = rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
    assert_eq!(db.execute("UPDATE entry SET path = '../a' WHERE path = 'a'", []).unwrap(), 1);
    now.store(100 * DAY, Ordering::SeqCst);
    for _ in 0..2 {
        let refused = store.sweep().await.unwrap_err().to_string();
        assert!(refused.contains("../a"), "{refused}");
    }
    let all = index(&store, 0).await;
    let brief: Vec<_> = all.iter().map(|(name, entry)| (name.as_str(), entry.is_deleted)).collect();
    assert_eq!(brief, [("../a", false), ("b", true), ("c", true)]);
    let left = store.versions("", &path("gone")).await.unwrap();
    assert!(left.iter().all(|version| !version.entry.is_deleted), "the tombstone is gone: {left:?}");
}
