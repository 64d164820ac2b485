//! Earlier versions, expiry, and removal of old versions and tombstones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use memsync::digest::Md5;
use memsync::store::{
    BlobMeta, BlobVersion, DeleteOutcome, GetOutcome, ImportOutcome, IndexEntry, PutOutcome, Store, SweepReport,
    WriteCondition,
};

use super::{Holds, New, content, delete, index, is_strong, large, path, put, read, written};

#[expect(clippy::too_many_lines, reason = "a story from top to bottom")]
pub(crate) async fn earlier_versions(store: impl Store, clock: Arc<AtomicU64>) {
    let meta = |text: &str| BlobMeta {
        content_type: Some(text.to_owned()),
        device: Some(text.to_owned()),
        free: BTreeMap::from([(text.to_owned(), "1".to_owned()), ("all".to_owned(), text.to_owned())]),
        ..BlobMeta::default()
    };
    let write = async |expect, meta, content: &[u8]| {
        let mut body = store.new_body();
        body.push(Bytes::copy_from_slice(content)).await.unwrap();
        written(store.put("", &path("x"), expect, meta, body).await.unwrap())
    };
    let read = async |version| match store.read("", &path("x"), Some(version)).await.unwrap() {
        GetOutcome::Found(blob) => Some((content(blob.body).await, blob.meta)),
        GetOutcome::Tombstone(_) | GetOutcome::Absent => None,
    };
    clock.store(1_000, Ordering::SeqCst);
    let big = large(7);
    let first = write(New, meta("a"), b"one").await;
    let second = write(WriteCondition::Version(first.version), meta("b"), &big).await;
    assert!(second.version > first.version);
    // The same content again makes no version, and missing metadata is inherited.
    let third = write(Holds(second.md5), BlobMeta::default(), &big).await;
    let DeleteOutcome::Done(gone) =
        store.delete("", &path("x"), Some(WriteCondition::Version(third.version)), meta("d")).await.unwrap()
    else {
        panic!("it holds this version");
    };
    let fourth = write(WriteCondition::Version(gone.version), meta("e"), b"four").await;

    let list = store.versions("", &path("x")).await.unwrap();
    let brief: Vec<_> = list.iter().map(|v| (v.entry.version, v.entry.md5, v.entry.size, v.entry.is_deleted)).collect();
    assert_eq!(
        brief,
        [
            (fourth.version, fourth.md5, 4, false),
            (third.version, third.md5, big.len() as u64, false),
            (first.version, first.md5, 3, false),
        ]
    );
    let kept = &list[1].meta;
    assert_eq!((kept.content_type.as_deref(), &kept.device), (Some("b"), &None));
    assert_eq!(kept.free.iter().map(|(k, v)| (&**k, &**v)).collect::<Vec<_>>(), [("a", "1"), ("all", "b"), ("b", "1")]);
    assert_eq!(list[0].meta, meta("e"), "metadata is not inherited after a deletion");

    assert_eq!(read(first.version).await, Some((b"one".to_vec(), meta("a"))));
    assert_eq!(read(third.version).await.unwrap().0, big);
    assert_eq!(read(fourth.version).await.unwrap().0, b"four");
    assert_eq!(read(second.version).await, None, "the third version replaced it");
    assert_eq!(read(7).await, None);
    assert_eq!(store.versions("", &path("nobody")).await.unwrap(), []);
    assert_eq!(store.versions("team", &path("x")).await.unwrap(), []);

    let expect = WriteCondition::Version(first.version);
    assert_eq!(
        store.put_bytes("", &path("x"), expect, Bytes::new()).await.unwrap(),
        PutOutcome::Mismatch(Some(fourth))
    );
    assert_eq!(
        store.delete("", &path("x"), Some(expect), BlobMeta::default()).await.unwrap(),
        DeleteOutcome::Mismatch(fourth)
    );
    let DeleteOutcome::Done(gone) = store.delete("", &path("x"), None, meta("f")).await.unwrap() else {
        panic!("it is there")
    };
    let list = store.versions("", &path("x")).await.unwrap();
    let deletion = &list[0];
    let entry = deletion.entry;
    assert!(entry.is_deleted && entry.version == gone.version && deletion.meta.free.is_empty());
    assert_eq!(deletion.meta.device.as_deref(), Some("f"));
    assert_eq!(read(fourth.version).await.unwrap().0, b"four");
}

/// Imported versions stay separate even with the same content: a deletion may have been between them.
pub(crate) async fn imported_versions(store: impl Store, _: Arc<AtomicU64>) {
    let import = async |version: u64, content: &[u8]| {
        let mut body = store.new_body();
        body.push(Bytes::copy_from_slice(content)).await.unwrap();
        let (md5, size) = (Md5::of(content), content.len() as u64);
        let entry = IndexEntry { version, md5, size, is_deleted: false, cursor: 0 };
        let version = BlobVersion { entry, meta: BlobMeta::default() };
        store.import_version("", &path("x"), version, Some(body)).await.unwrap()
    };
    let big = large(2);
    for (version, content) in [(7, &b"a"[..]), (9, b"a"), (11, &big), (13, &big), (15, b"a")] {
        assert_eq!(import(version, content).await, ImportOutcome::Written);
    }
    assert_eq!(import(13, b"b").await, ImportOutcome::Held);
    let versions = store.versions("", &path("x")).await.unwrap();
    assert_eq!(versions.iter().map(|version| version.entry.version).collect::<Vec<_>>(), [15, 13, 11, 9, 7]);
    for version in versions {
        let GetOutcome::Found(blob) = store.read("", &path("x"), Some(version.entry.version)).await.unwrap() else {
            panic!("it is kept")
        };
        assert_eq!(Md5::of(&content(blob.body).await), version.entry.md5);
    }
}

/// The default retention: 20 versions, 30 days for all but the newest five, 90 days for tombstones.
pub(crate) async fn retention(store: impl Store, clock: Arc<AtomicU64>) {
    const DAY: u64 = 24 * 3600 * 1000;
    clock.store(DAY, Ordering::SeqCst);
    let mut held = written(put(&store, "much", New, b"0").await);
    for n in 1..=25 {
        held = written(put(&store, "much", Holds(held.md5), n.to_string().as_bytes()).await);
    }
    assert_eq!(store.versions("", &path("much")).await.unwrap().len(), 21);
    let expires = BlobMeta { expires: Some(10 * DAY), ..BlobMeta::default() };
    for (name, meta) in
        [("due", expires.clone()), ("late", BlobMeta { expires: Some(500 * DAY), ..BlobMeta::default() })]
    {
        store.put("", &path(name), New, meta, store.new_body()).await.unwrap();
    }
    // A write without an expiry inherits it.
    put(&store, "due", Holds(Md5::of(b"")), b"content").await;
    put(&store, "old", New, b"old").await;
    delete(&store, "old", None).await;
    // Versions beyond the limit may stay until this sweep.
    let surplus = store.sweep().await.unwrap();
    assert!([0, if is_strong(&store) { 0 } else { 5 }].contains(&surplus.versions), "{surplus:?}");
    assert_eq!(SweepReport { versions: 0, ..surplus }, SweepReport::default());
    assert_eq!(store.versions("", &path("much")).await.unwrap().len(), 21);

    clock.store(10 * DAY, Ordering::SeqCst);
    assert_eq!(store.sweep().await.unwrap(), SweepReport { expired: 1, ..SweepReport::default() });
    let due = store.versions("", &path("due")).await.unwrap();
    assert_eq!((due[0].entry.is_deleted, due[1].entry.size), (true, 7));
    assert_eq!(read(&store, "due").await, None);

    clock.store(32 * DAY, Ordering::SeqCst);
    // All but the newest five earlier versions of `much`. The other paths have fewer.
    assert_eq!(store.sweep().await.unwrap(), SweepReport { versions: 15, ..SweepReport::default() });
    assert_eq!(store.versions("", &path("much")).await.unwrap().len(), 6);
    let old = store.versions("", &path("old")).await.unwrap()[1].entry.version;
    assert!(matches!(store.read("", &path("old"), Some(old)).await.unwrap(), GetOutcome::Found(_)));
    assert_eq!(read(&store, "much").await.as_deref(), Some(&b"25"[..]));

    let before = store.state("").await.unwrap();
    let tombstone = index(&store, 0).await["old"];
    clock.store(92 * DAY, Ordering::SeqCst);
    assert_eq!(store.sweep().await.unwrap(), SweepReport { tombstones: 1, ..SweepReport::default() });
    let after = store.state("").await.unwrap();
    assert_ne!(after.tag, before.tag, "a moved floor changes the tag");
    let left = index(&store, 0).await;
    assert_eq!(left.keys().collect::<Vec<_>>(), ["due", "late", "much"]);
    assert!(left["due"].is_deleted);
    let got = store.get("", &path("old")).await.unwrap();
    if let Some((before, after)) = before.mark.zip(after.mark) {
        assert_eq!((before.floor, after.floor), (0, tombstone.cursor));
        assert_eq!((after.cursor, after.epoch), (before.cursor, before.epoch));
        assert!(matches!(got, GetOutcome::Absent));
    } else {
        // Without a floor the object must stay a tombstone, and a read must not restore its entry.
        assert!(matches!(got, GetOutcome::Tombstone(found) if found == tombstone));
        assert_eq!(store.sweep().await.unwrap(), SweepReport::default());
        assert!(!index(&store, 0).await.contains_key("old"));
    }
    assert!(
        matches!(store.read("", &path("old"), Some(old)).await.unwrap(), GetOutcome::Found(_)),
        "the version outlives its tombstone"
    );
    // Versions grow even if the clock goes back.
    clock.store(DAY, Ordering::SeqCst);
    assert!(matches!(put(&store, "old", New, b"again").await, PutOutcome::Created(e) if e.version > tombstone.version));
}
