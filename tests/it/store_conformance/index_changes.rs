//! The changes since a tag, applied to the index of that tag, give the current index.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use memsync::store::{BatchWrite, BlobMeta, IndexEntry, Store, WriteCondition, system_clock};

use super::s3::INDEX;
use super::{New, clock, delete, index, is_strong, path, put, read};
use crate::common::s3::{Server, Stored};

/// An index and its tag.
type Snapshot = (Arc<str>, BTreeMap<String, IndexEntry>);

async fn hold(store: &impl Store) -> Snapshot {
    let now = store.index("", 0).await.unwrap();
    (now.state.tag, now.entries.into_iter().collect())
}

/// True if the store knows the changes since `held`. Checks that they give the current index.
async fn can_update(store: &impl Store, held: &Snapshot) -> bool {
    let (state, now) = (store.state("").await.unwrap(), index(store, 0).await);
    let Some(part) = store.index_since_tag("", &held.0) else { return false };
    assert_eq!(part.state, state);
    assert!(part.entries.len() < now.len());
    let mut updated = held.1.clone();
    updated.extend(part.entries);
    assert_eq!(updated, now);
    true
}

pub(crate) async fn changes_since_a_tag(store: impl Store, now: Arc<AtomicU64>) {
    let mut rng = Rng::with_seed(1);
    let mut all = vec![hold(&store).await];
    for n in 0..40 {
        now.fetch_add(1, Ordering::SeqCst);
        for _ in 0..rng.usize(1..3) {
            let name = format!("{}.md", rng.u8(..40));
            match read(&store, &name).await {
                Some(_) if rng.u8(..3) == 0 => drop(delete(&store, &name, None).await),
                Some(old) => drop(put(&store, &name, WriteCondition::Md5(memsync::digest::Md5::of(&old)), &[n]).await),
                None => drop(put(&store, &name, New, &[n]).await),
            }
        }
        let mut known = 0;
        for held in &all {
            known += usize::from(can_update(&store, held).await);
        }
        if is_strong(&store) {
            assert_eq!(known, 0, "a strong index has cursors instead");
        } else if n > 20 {
            assert!(known > 10, "{known}");
        }
        all.push(hold(&store).await);
    }
    assert!(store.index_since_tag("", "").is_none() && store.index_since_tag("nobody", &all[5].0).is_none());
}

/// Two proxies on a bucket use the same tags, and each knows the other's changes after a read.
#[tokio::test]
async fn changes_include_writes_of_another_proxy() {
    let server = Server::start().await;
    let (one, two) = (server.store("memory", system_clock()).await, server.store("memory", system_clock()).await);
    for name in ["a", "b", "c", "d"] {
        put(&one, name, New, b"1").await;
    }
    let held = hold(&one).await;
    assert_eq!(held, hold(&two).await);
    put(&two, "e", New, b"2").await;
    delete(&one, "a", None).await;
    put(&two, "f", New, b"2").await;
    assert!(can_update(&one, &held).await && can_update(&two, &held).await);

    // A new proxy knows no changes from before its first read.
    let three = server.store("memory", system_clock()).await;
    assert!(!can_update(&three, &held).await);
    let held = hold(&one).await;
    assert!(can_update(&three, &held).await);
    put(&three, "g", New, b"3").await;
    assert!(can_update(&three, &held).await && can_update(&one, &held).await);
}

#[tokio::test]
async fn removed_entry_needs_the_whole_index() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    for name in ["a", "b", "c", "d"] {
        put(&store, name, New, b"1").await;
    }
    let (before, object) = (hold(&store).await, server.object(INDEX).unwrap());
    put(&store, "e", New, b"1").await;
    put(&store, "f", New, b"1").await;
    let after = hold(&store).await;
    // A proxy without compare-and-swap writes back an older index with its own change.
    let theirs = String::from_utf8(object.body.to_vec()).unwrap().replacen("\"size\":1", "\"size\":2", 1);
    server.plant(INDEX, Stored::new(theirs.as_bytes(), &[]));
    assert!(!can_update(&store, &after).await);
    assert!(!can_update(&store, &before).await, "entries left the index since");
    // Reads bring the entries back.
    assert!(read(&store, "e").await.is_some() && read(&store, "f").await.is_some());
    super::s3::until("both are in the index again", async || index(&store, 0).await.len() == 6).await;
    assert!(can_update(&store, &after).await && can_update(&store, &before).await);

    server.remove(INDEX);
    assert!(!can_update(&store, &after).await);
    server.plant(INDEX, object);
    assert!(!can_update(&store, &after).await && can_update(&store, &hold(&store).await).await);
}

#[tokio::test]
async fn removed_tombstone_needs_the_whole_index() {
    let server = Server::start().await;
    let now = Arc::new(AtomicU64::new(1_700_000_000_000));
    let store = server.store("memory", clock(&now)).await;
    for name in ["a", "b", "c"] {
        put(&store, name, New, b"1").await;
    }
    delete(&store, "a", None).await;
    let held = hold(&store).await;
    put(&store, "d", New, b"1").await;
    assert!(can_update(&store, &held).await);
    now.fetch_add(Duration::from_secs(91 * 24 * 3600).as_millis() as u64, Ordering::SeqCst);
    store.sweep().await.unwrap();
    assert_eq!(index(&store, 0).await.len(), 3);
    assert!(!can_update(&store, &held).await);
}

#[tokio::test]
async fn remembered_changes_are_limited() {
    let server = Server::start().await;
    let store = server.store("memory", system_clock()).await;
    let write = async |from: usize, to: usize| {
        let one =
            |n: usize| (path(&format!("{n}.md")), BatchWrite::Put { expect: New, content: Bytes::from_static(b"x") });
        let written = store.write_many("", (from..to).map(one).collect(), &BlobMeta::default()).await;
        assert!(written.iter().all(Result::is_ok));
    };
    write(0, 1500).await;
    let held = hold(&store).await;
    write(1500, 1600).await;
    assert!(can_update(&store, &held).await);
    write(1600, 2600).await;
    assert!(!can_update(&store, &held).await);
}
