//! The tests for stores with a strong index.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use memsync::digest::Md5;
use memsync::store::Store;

use super::{Holds, New, index, mark, path, put, read, written};

pub(crate) async fn index_and_cursor(store: impl Store, _: Arc<AtomicU64>) {
    let start = mark(&store).await;
    assert_eq!((start.cursor, start.floor), (0, 0));
    let mut changes = store.subscribe();
    let mut last = 0;
    for round in 0..3 {
        for name in ["a", "b/c", "d"] {
            let precondition = match read(&store, name).await {
                None => New,
                Some(content) => Holds(Md5::of(&content)),
            };
            let entry = written(put(&store, name, precondition, format!("{name}{round}").as_bytes()).await);
            assert!(entry.cursor > last, "cursors grow");
            last = entry.cursor;
            let now = mark(&store).await;
            assert_eq!((now.cursor, &now.epoch), (last, &start.epoch));
            let sent = changes.recv().await.unwrap();
            assert_eq!((sent[0].cursor, sent[0].path.as_str()), (last, name));
        }
    }
    // A refused write changes nothing.
    put(&store, "a", New, b"z").await;
    assert_eq!(mark(&store).await.cursor, last);

    let whole = store.index("", 0).await.unwrap();
    assert_eq!((whole.state.mark.unwrap().cursor, whole.entries.len()), (last, 3));
    assert_eq!(index(&store, last).await.len(), 0);
    let since = index(&store, last - 1).await;
    assert_eq!(since.keys().collect::<Vec<_>>(), ["d"]);
    assert_eq!(index(&store, u64::MAX).await.len(), 0);

    // A change in one namespace does not change another.
    let before = store.state("").await.unwrap();
    let other = store.put_bytes("team", &path("a"), New, Bytes::from_static(b"theirs")).await.unwrap();
    assert!(written(other).cursor > last);
    assert_eq!(store.state("").await.unwrap(), before);
    assert_ne!(store.state("team").await.unwrap().tag, before.tag);
    assert_eq!(read(&store, "a").await.as_deref(), Some(&b"a2"[..]));
    assert_eq!(index(&store, 0).await.len(), 3);
    assert_eq!(store.index("team", 0).await.unwrap().entries.len(), 1);
    assert_eq!(store.index("nobody", 0).await.unwrap().entries.len(), 0);
}
