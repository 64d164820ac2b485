//! `GET /sync`: the index of a namespace, whole or as a delta, written as JSON once for each state of it. The flat
//! dialect's namespace is `""`; all others have versions in their index.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, StatusCode};
use tokio::sync::OnceCell;

use super::Proxy;
use super::answer::{Answer, Refusal, empty, insert, rfc3339, with_held_body};
use super::auth::Caller;
use super::conditions::lists;
use super::encoding::{pack, tell, wanted};
use super::memory::Allotment;
use super::metrics::whole as whole_number;
use super::route::percent_decode;
use crate::protocol::encoding::Coding;
use crate::protocol::{HistoryPoint, WireEntry, WireIndex, X_MEMSYNC_SET_BACK};
use crate::store::{IndexEntry, IndexMark, IndexSnapshot, IndexState, Store, StoreError};

/// Namespaces whose index is kept.
const NAMESPACES: usize = 64;
/// Changes that a delta is written for. Who is further behind gets the whole index, which all share.
const LONGEST_DELTA: u64 = 4096;
/// Bytes kept together, besides the one asked for last.
const KEPT: usize = 64 << 20;
/// Memory set aside for each change of a delta before it is read, bytes.
const CHANGE_MEMORY: u64 = 1024;
/// Memory set aside for an index that was never written, bytes.
const FIRST_MEMORY: u64 = 1024 * 1024;

/// The last whole index that was written of each of some namespaces, shared by all who ask. Deltas are small and not
/// kept.
#[derive(Default)]
pub struct Cache(Mutex<VecDeque<Arc<Kept>>>);

struct Kept {
    ns: String,
    /// Held while it is being written, so that who asks meanwhile waits for it rather than write another.
    written: tokio::sync::Mutex<Option<Written>>,
    /// Bytes of it.
    size: AtomicUsize,
}

impl Kept {
    /// An index that is kept here, packed: once for all who ask.
    async fn pack(&self, written: &Written, coding: Coding) -> Option<Bytes> {
        let packed = written.packed[coding as usize].get_or_init(async || {
            let packed = pack(coding, written.json.clone()).await;
            self.size.fetch_add(packed.as_ref().map_or(0, Bytes::len), Ordering::Relaxed);
            packed
        });
        packed.await.clone()
    }
}

impl Cache {
    /// The place of a namespace, which is now the one asked for last.
    fn place(&self, ns: &str) -> Arc<Kept> {
        let mut all = self.lock();
        let found = all.iter().position(|kept| kept.ns == ns).and_then(|at| all.remove(at));
        let kept = found.unwrap_or_else(|| {
            Arc::new(Kept { ns: ns.to_owned(), written: tokio::sync::Mutex::default(), size: AtomicUsize::new(0) })
        });
        all.push_front(kept.clone());
        kept
    }

    /// Forgets what was asked for longest ago until the rest is no more than is kept.
    fn trim(&self) {
        let mut all = self.lock();
        let size = |kept: &Arc<Kept>| kept.size.load(Ordering::Relaxed);
        let mut bytes: usize = all.iter().skip(1).map(size).sum();
        while all.len() > NAMESPACES || (all.len() > 1 && bytes > KEPT) {
            bytes = bytes.saturating_sub(all.pop_back().as_ref().map_or(0, size));
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Kept>>> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An index as it goes out.
#[derive(Clone)]
struct Written {
    etag: String,
    json: Bytes,
    /// The same in each coding that somebody asked for; `None` where that is not worth it.
    packed: Arc<[OnceCell<Option<Bytes>>; Coding::ALL.len()]>,
}

/// How much of an index is written.
enum Extent {
    Whole,
    /// What changed after a cursor.
    After,
    /// What changed since the index had this tag.
    From(String),
}

/// Answers `GET /sync`, with `since` and `epoch`, or `from`, in the query for a delta.
pub async fn get<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Answer, Refusal> {
    let query = query.unwrap_or_default();
    let state = proxy.store.state(ns).await?;
    let etag = etag(&state);
    if headers.get_all(IF_NONE_MATCH).iter().any(|value| lists(value.as_bytes(), &etag, true)) {
        let mut answer = empty(StatusCode::NOT_MODIFIED);
        insert(answer.headers_mut(), ETAG, &etag);
        return Ok(answer);
    }
    let is_set_back = is_set_back(proxy, ns, query).await?;
    let delta = if is_set_back { None } else { delta(proxy, caller, ns, query, &state).await? };
    let outgoing = match delta {
        Some(delta) => delta,
        None => whole_as(proxy, caller, ns, &etag, wanted(headers)).await?,
    };
    let etag = outgoing.etag.clone();
    let mut answer = outgoing.into_answer();
    insert(answer.headers_mut(), ETAG, &etag);
    if is_set_back {
        insert(answer.headers_mut(), HeaderName::from_static(X_MEMSYNC_SET_BACK), "true");
    }
    Ok(answer)
}

/// An index on its way out, with the memory that it holds.
struct Outgoing {
    etag: String,
    content: Bytes,
    coding: Option<Coding>,
    memory: Allotment,
}

impl Outgoing {
    fn into_answer(self) -> Answer {
        let mut answer = with_held_body("application/json", self.content, self.memory);
        if let Some(coding) = self.coding {
            tell(answer.headers_mut(), coding);
        }
        answer
    }
}

/// The changes that the query asks for, where they can be given.
async fn delta<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    query: &str,
    state: &IndexState,
) -> Result<Option<Outgoing>, Refusal> {
    let reserve = |changes: u64| proxy.memory.reserve(caller, changes * CHANGE_MEMORY, proxy.options.body_timeout);
    let (index, extent, memory) = match &state.mark {
        Some(mark) => {
            let Some(cursor) = since(query, mark) else { return Ok(None) };
            let memory = reserve(mark.cursor - cursor).await?;
            let Some(index) = after(proxy, ns, cursor).await? else { return Ok(None) };
            (index, Extent::After, memory)
        }
        None => {
            let Some(tag) = from(query) else { return Ok(None) };
            let memory = reserve(LONGEST_DELTA).await?;
            // Another request may have had the store keep something else than the `state` that was read.
            let index = proxy.store.index_since_tag(ns, &tag).filter(|index| index.state.tag == state.tag);
            let Some(index) = index else { return Ok(None) };
            (index, Extent::From(tag), memory)
        }
    };
    let Written { etag, json, .. } = write(proxy, ns, index, extent).await?;
    Ok(Some(Outgoing { etag, content: json, coding: None, memory }))
}

/// The whole index, packed where that is wanted and worth it.
async fn whole_as<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    etag: &str,
    wanted: Option<Coding>,
) -> Result<Outgoing, Refusal> {
    let (written, kept, memory) = whole_within(proxy, caller, ns, etag).await?;
    let packed = match wanted {
        Some(coding) => kept.pack(&written, coding).await.map(|packed| (packed, Some(coding))),
        None => None,
    };
    proxy.index.trim();
    let Written { etag, json, .. } = written;
    let (content, coding) = packed.unwrap_or((json, None));
    Ok(Outgoing { etag, content, coding, memory })
}

/// True if the query names a point of a history that this store has never stood at.
async fn is_set_back<S: Store>(proxy: &Proxy<S>, ns: &str, query: &str) -> Result<bool, StoreError> {
    let point = value(query, "history").and_then(|point| percent_decode(point).ok());
    match point.and_then(|point| point.parse::<HistoryPoint>().ok()) {
        Some(point) => Ok(!proxy.store.contains_point(ns, &point).await?),
        None => Ok(false),
    }
}

fn etag(state: &IndexState) -> String {
    format!("\"{}\"", state.tag)
}

fn value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// The cursor a delta can start from: one of this store, not in its future or far behind, and with no tombstone after it
/// gone.
fn since(query: &str, mark: &IndexMark) -> Option<u64> {
    let cursor = value(query, "since")?.parse().ok()?;
    let nearest = mark.cursor.saturating_sub(LONGEST_DELTA);
    (value(query, "epoch") == Some(&*mark.epoch) && (mark.floor.max(nearest)..=mark.cursor).contains(&cursor))
        .then_some(cursor)
}

/// What changed after `cursor`. `None`: tombstones after it went while it was read.
async fn after<S: Store>(proxy: &Proxy<S>, ns: &str, cursor: u64) -> Result<Option<IndexSnapshot>, StoreError> {
    let index = proxy.store.index(ns, cursor).await?;
    let floor = index.state.mark.as_ref().map_or(0, |mark| mark.floor);
    Ok((floor <= cursor).then_some(index))
}

/// The tag that the client's index has, of which it would take a delta.
fn from(query: &str) -> Option<String> {
    percent_decode(value(query, "from")?).ok()
}

/// The whole index as of now, as the namespaced dialect gives it with each write.
pub async fn manifest<S: Store>(proxy: &Proxy<S>, caller: &Caller, ns: &str) -> Result<Answer, Refusal> {
    let etag = etag(&proxy.store.state(ns).await?);
    Ok(whole_as(proxy, caller, ns, &etag, None).await?.into_answer())
}

/// [`whole`], with memory for it.
async fn whole_within<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    etag: &str,
) -> Result<(Written, Arc<Kept>, Allotment), Refusal> {
    let kept = proxy.index.place(ns);
    loop {
        let expected = (kept.size.load(Ordering::Relaxed) as u64).max(FIRST_MEMORY);
        // Nothing of an index is held while its memory is waited for.
        let memory = proxy.memory.reserve(caller, expected, proxy.options.body_timeout).await?;
        let written = whole(proxy, ns, etag, &kept).await?;
        if memory.covers(written.json.len() as u64) {
            return Ok((written, kept, memory));
        }
    }
}

/// The whole index as of `etag` or later.
async fn whole<S: Store>(proxy: &Proxy<S>, ns: &str, etag: &str, kept: &Kept) -> Result<Written, StoreError> {
    let mut last = kept.written.lock().await;
    if let Some(written) = last.as_ref().filter(|written| written.etag == etag) {
        return Ok(written.clone());
    }
    let index = proxy.store.index(ns, 0).await?;
    let written = write(proxy, ns, index, Extent::Whole).await?;
    kept.size.store(written.json.len(), Ordering::Relaxed);
    *last = Some(written.clone());
    drop(last);
    proxy.index.trim();
    Ok(written)
}

async fn write<S: Store>(
    proxy: &Proxy<S>,
    ns: &str,
    index: IndexSnapshot,
    extent: Extent,
) -> Result<Written, StoreError> {
    let etag = etag(&index.state);
    let (files, versions, is_whole) = (index.entries.len(), !ns.is_empty(), matches!(extent, Extent::Whole));
    let json = tokio::task::spawn_blocking(move || serde_json::to_vec(&wire(index, extent, versions)));
    let json = json.await.map_err(|_| StoreError::Closed)?;
    let json = Bytes::from(json.map_err(|e| StoreError::Database(e.to_string()))?);
    if is_whole {
        proxy.metrics.index_written.inc();
        proxy.metrics.index_files.set(whole_number(files as u64));
        proxy.metrics.index_bytes.set(whole_number(json.len() as u64));
    } else {
        proxy.metrics.index_deltas.inc();
    }
    Ok(Written { etag, json, packed: Arc::default() })
}

fn wire(index: IndexSnapshot, extent: Extent, versions: bool) -> WireIndex {
    let IndexSnapshot { state, entries } = index;
    let mark = state.mark.as_ref();
    // A clock that was set back moves no version, and so not this one either.
    let newest = entries.iter().map(|(_, entry)| entry.version).max().unwrap_or(0).max(state.modified);
    WireIndex {
        files: entries.into_iter().map(|(path, entry)| (path, wire_entry(&entry, versions))).collect(),
        index_last_modified: rfc3339(state.modified),
        index_version: versions.then_some(newest),
        index_epoch: mark.map(|m| m.epoch.to_string()),
        index_cursor: mark.map(|m| m.cursor),
        tombstone_floor: mark.map(|m| m.floor),
        index_history: state.history.as_ref().map(HistoryPoint::to_string),
        delta: !matches!(extent, Extent::Whole),
        delta_base: match extent {
            Extent::From(tag) => Some(tag),
            Extent::Whole | Extent::After => None,
        },
    }
}

fn wire_entry(entry: &IndexEntry, versions: bool) -> WireEntry {
    WireEntry {
        md5: entry.md5,
        last_modified: rfc3339(entry.version),
        size: entry.size,
        is_deleted: entry.is_deleted,
        version: versions.then_some(entry.version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_needs_this_store_and_a_cursor_it_knows() {
        let mark = IndexMark { epoch: "e1".into(), cursor: 9, floor: 3 };
        for (query, from) in [
            ("since=3&epoch=e1", Some(3)),
            ("epoch=e1&since=9", Some(9)),
            ("since=2&epoch=e1", None),
            ("since=10&epoch=e1", None),
            ("since=5&epoch=e2", None),
            ("since=5", None),
            ("epoch=e1", None),
            ("since=-1&epoch=e1", None),
            ("since=99999999999999999999&epoch=e1", None),
            ("sinceX=5&epoch=e1", None),
            ("", None),
        ] {
            assert_eq!(since(query, &mark), from, "{query}");
        }
        let far = IndexMark { cursor: LONGEST_DELTA + 5, ..mark };
        assert_eq!((since("since=4&epoch=e1", &far), since("since=5&epoch=e1", &far)), (None, Some(5)));
    }

    #[test]
    fn the_tag_of_an_index_is_named_whatever_is_in_it() {
        for (query, tag) in [
            ("from=abc-1", Some("abc-1")),
            ("x=1&from=a%26b%25%3D", Some("a&b%=")),
            ("from=", Some("")),
            ("from=%2", None),
            ("fromage=x", None),
            ("", None),
        ] {
            assert_eq!(from(query).as_deref(), tag, "{query}");
        }
    }

    #[test]
    fn the_cache_holds_some_namespaces_and_not_all() {
        let cache = Cache::default();
        for n in 0..2 * NAMESPACES {
            cache.place(&n.to_string());
            cache.place("often");
            cache.trim();
        }
        assert_eq!(cache.lock().len(), NAMESPACES);
        assert_eq!(cache.lock()[0].ns, "often");
        cache.lock()[0].size.store(KEPT, Ordering::Relaxed);
        cache.trim();
        assert_eq!(cache.lock().len(), NAMESPACES, "the one asked for last does not count");
        for name in ["x", "y"] {
            cache.place(name).size.store(KEPT, Ordering::Relaxed);
            cache.trim();
        }
        let names: Vec<_> = cache.lock().iter().map(|kept| kept.ns.clone()).collect();
        assert_eq!(names, ["y", "x"]);
    }
}
