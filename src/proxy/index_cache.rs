//! [`IndexCache`]: the last whole index of each of some namespaces, as JSON and packed, shared by all requests.
//!
//! Deltas are small and not cached. The cache is our own: the entry used last never counts towards its size, and an
//! entry grows when it is packed, which cache libraries do not allow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::encoding::pack;
use crate::protocol::encoding::Coding;
use crate::protocol::{HistoryPoint, WireEntry, WireIndex, rfc3339};
use crate::store::{IndexEntry, IndexSnapshot, IndexState, StoreError};

const MAX_NAMESPACES: usize = 64;
/// Bytes of all entries, besides the one used last.
const MAX_BYTES: usize = 64 << 20;

/// Most recently used first.
#[derive(Default)]
pub(crate) struct IndexCache(Mutex<VecDeque<Arc<CachedIndex>>>);

/// The cache entry of one namespace.
pub(crate) struct CachedIndex {
    ns: String,
    /// Locked while the index is rendered, so that concurrent requests share one rendering.
    pub rendered: tokio::sync::Mutex<Option<RenderedIndex>>,
    /// Bytes, packed forms included.
    pub size: AtomicUsize,
}

impl CachedIndex {
    /// The packed index, packed once for all requests. `None`: packing saves too little.
    pub(crate) async fn packed(&self, rendered: &RenderedIndex, coding: Coding) -> Option<Bytes> {
        let packed = rendered.packed[coding as usize].get_or_init(async || {
            let packed = pack(coding, rendered.json.clone()).await;
            self.size.fetch_add(packed.as_ref().map_or(0, Bytes::len), Ordering::Relaxed);
            packed
        });
        packed.await.clone()
    }
}

impl IndexCache {
    /// The entry of a namespace, which is now the one used last.
    pub(crate) fn entry(&self, ns: &str) -> Arc<CachedIndex> {
        let mut all = self.0.lock();
        let found = all.iter().position(|entry| entry.ns == ns).and_then(|at| all.remove(at));
        let entry = found.unwrap_or_else(|| {
            let (rendered, size) = (tokio::sync::Mutex::default(), AtomicUsize::new(0));
            Arc::new(CachedIndex { ns: ns.to_owned(), rendered, size })
        });
        all.push_front(entry.clone());
        entry
    }

    /// Removes the least recently used entries beyond the limits.
    pub(crate) fn trim(&self) {
        let mut all = self.0.lock();
        let size = |entry: &Arc<CachedIndex>| entry.size.load(Ordering::Relaxed);
        let mut bytes: usize = all.iter().skip(1).map(size).sum();
        while all.len() > MAX_NAMESPACES || (all.len() > 1 && bytes > MAX_BYTES) {
            bytes = bytes.saturating_sub(all.pop_back().as_ref().map_or(0, size));
        }
    }
}

/// An index as JSON.
#[derive(Clone)]
pub(crate) struct RenderedIndex {
    pub etag: String,
    pub json: Bytes,
    /// By coding, as far as requests asked for it. `None`: packing saves too little.
    packed: Arc<[OnceCell<Option<Bytes>>; Coding::ALL.len()]>,
}

/// The part of an index that a response contains.
pub(crate) enum IndexExtent {
    Whole,
    /// The changes after a cursor.
    AfterCursor,
    /// The changes since the index had this tag.
    SinceTag(String),
}

/// Renders an index. `has_versions`: in the namespaced dialect.
pub(crate) async fn render(
    index: IndexSnapshot,
    extent: IndexExtent,
    has_versions: bool,
) -> Result<RenderedIndex, StoreError> {
    let etag = index_etag(&index.state);
    let json = tokio::task::spawn_blocking(move || serde_json::to_vec(&wire_index(index, extent, has_versions)));
    let json = json.await.map_err(|_| StoreError::Closed)?;
    let json = Bytes::from(json.map_err(|e| StoreError::Database(e.to_string()))?);
    Ok(RenderedIndex { etag, json, packed: Arc::default() })
}

pub(crate) fn index_etag(state: &IndexState) -> String {
    format!("\"{}\"", state.tag)
}

fn wire_index(index: IndexSnapshot, extent: IndexExtent, has_versions: bool) -> WireIndex {
    let IndexSnapshot { state, entries } = index;
    let mark = state.mark.as_ref();
    // Versions only grow, whatever the clock does, and so does this.
    let newest = entries.iter().map(|(_, entry)| entry.version).max().unwrap_or(0).max(state.modified);
    let files = entries.into_iter().map(|(path, entry)| {
        let IndexEntry { md5, size, is_deleted, version, .. } = entry;
        let (last_modified, version) = (rfc3339(version), has_versions.then_some(version));
        (path, WireEntry { md5, last_modified, size, is_deleted, version })
    });
    WireIndex {
        files: files.collect(),
        index_last_modified: rfc3339(state.modified),
        index_version: has_versions.then_some(newest),
        index_epoch: mark.map(|m| m.epoch.to_string()),
        index_cursor: mark.map(|m| m.cursor),
        tombstone_floor: mark.map(|m| m.floor),
        index_history: state.history.as_ref().map(HistoryPoint::to_string),
        delta: !matches!(extent, IndexExtent::Whole),
        delta_base: match extent {
            IndexExtent::SinceTag(tag) => Some(tag),
            IndexExtent::Whole | IndexExtent::AfterCursor => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_indexes_are_removed() {
        let cache = IndexCache::default();
        for n in 0..2 * MAX_NAMESPACES {
            cache.entry(&n.to_string());
            cache.entry("often");
            cache.trim();
        }
        assert_eq!(cache.0.lock().len(), MAX_NAMESPACES);
        assert_eq!(cache.0.lock()[0].ns, "often");
        cache.0.lock()[0].size.store(MAX_BYTES, Ordering::Relaxed);
        cache.trim();
        assert_eq!(cache.0.lock().len(), MAX_NAMESPACES, "the entry used last does not count");
        for name in ["x", "y"] {
            cache.entry(name).size.store(MAX_BYTES, Ordering::Relaxed);
            cache.trim();
        }
        let names: Vec<_> = cache.0.lock().iter().map(|entry| entry.ns.clone()).collect();
        assert_eq!(names, ["y", "x"]);
    }
}
