//! Fetches the index: whole, as a delta, or unchanged.

use http::Method;
use http::StatusCode;
use http::header::{ETAG, IF_NONE_MATCH};
use tokio::time::Instant;

use super::client::HttpRemote;
use super::index_json::{self, ParsedIndex};
use super::link::ServedIndex;
use crate::protocol::{HistoryPoint, IndexCursor, X_MEMSYNC_SET_BACK, capability, encode_path};
use crate::remote::{FetchedIndex, IndexUpdate, RemoteError};

/// Largest index taken, bytes.
const MAX_INDEX: u64 = 64 * 1024 * 1024;

const NOT_A_CONTINUATION: &str = "a part of an index that does not follow what was asked for";

/// One request for the index.
struct IndexQuery<'a> {
    url: String,
    /// The URL without the parts that do not change the result.
    address: String,
    /// The cursor that a delta may start from.
    base: Option<&'a IndexCursor>,
    /// The index that the caller holds, if the proxy can compare with it.
    last: Option<ServedIndex>,
    /// The ETag that a delta may start from.
    from: Option<String>,
    is_strong: bool,
}

impl HttpRemote {
    pub(super) async fn fetch_index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<IndexUpdate, RemoteError> {
        if let Some(update) = self.try_fetch_index(since, known).await? {
            return Ok(update);
        }
        // A request that names no held index gets the whole one.
        self.link.facts.lock().index = None;
        let url = self.link.url(&self.link.namespace.below("/sync"));
        let update = self.try_fetch_index(since, known).await?;
        update.ok_or_else(|| self.link.protocol(&url, NOT_A_CONTINUATION))
    }

    /// `None`: the answer is a delta of another index than the last one.
    async fn try_fetch_index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<Option<IndexUpdate>, RemoteError> {
        let query = self.index_query(since, known).await?;
        let mut request = self.request_accepting_encoding(Method::GET, &query.url).await?;
        if let Some(last) = &query.last {
            request = request.header(IF_NONE_MATCH, last.etag.clone());
        }
        let reply = self.send(&query.url, request, None, MAX_INDEX).await?;
        match reply.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if query.last.is_some() => return Ok(Some(IndexUpdate::Unchanged)),
            _ => return Err(reply.refusal().await),
        }
        if reply.says_too_long() {
            return Err(reply.protocol(&format!("the index is larger than {MAX_INDEX} bytes")));
        }
        let etag = reply.headers().get(ETAG).cloned();
        let set_back = reply.headers().contains_key(X_MEMSYNC_SET_BACK);
        let ParsedIndex { mut index, is_delta, delta_base } = index_json::read(reply).await?;
        index.set_back = set_back;
        index.cursor = index.cursor.filter(|_| query.is_strong);
        let cursor = index.cursor.clone();
        let (update, patched) = if is_delta {
            match query.delta(index, delta_base.as_deref()) {
                Ok(Some(delta)) => delta,
                Ok(None) => return Ok(None),
                Err(why) => return Err(self.link.protocol(&query.url, why)),
            }
        } else {
            (IndexUpdate::Whole(index), None)
        };
        // No await from here on, so the recorded index is the one that the caller gets.
        self.link.facts.lock().index = etag.map(|etag| ServedIndex { url: query.address, etag, cursor, patched });
        Ok(Some(update))
    }

    async fn index_query<'a>(
        &self,
        since: Option<&'a IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<IndexQuery<'a>, RemoteError> {
        let capabilities = self.capabilities().await?;
        let has = |name: &str| capabilities.iter().any(|c| c == name);
        let is_strong = has(capability::STRONG_INDEX);
        // A later delta needs the cursor of this answer.
        let base = since.filter(|_| has(capability::DELTA) && is_strong);
        let root = self.link.url(&self.link.namespace.below("/sync"));
        let part = base.map(|base| format!("since={}&epoch={}", base.cursor, encode_query(&base.epoch)));
        let address = with_query(&root, part.iter());
        // An ETag belongs to one address: the changes since 5 are not the changes since 6. And "unchanged" is only right
        // for a caller that has taken in the last answer.
        let point = |cursor: &IndexCursor| (cursor.epoch.clone(), cursor.cursor);
        let is_held = |served: &ServedIndex| {
            served.url == address && (since.is_none() || since.map(point) == served.cursor.as_ref().map(point))
        };
        let last = self.link.facts.lock().index.clone();
        let last = last
            .filter(|served| has(capability::INDEX_ETAG) && is_held(served) && !served.is_due_whole(Instant::now()));
        let from = last.as_ref().filter(|_| has(capability::ETAG_DELTA) && since.is_none());
        let from = from.and_then(ServedIndex::tag).map(str::to_owned);
        let from_part = from.as_deref().map(|tag| format!("from={}", encode_query(tag)));
        let history = known.map(|point| format!("history={}", encode_query(&point.to_string())));
        let url = with_query(&root, part.iter().chain(&from_part).chain(&history));
        Ok(IndexQuery { url, address, base, last, from, is_strong })
    }
}

impl IndexQuery<'_> {
    /// The delta, and the time since which a whole index has been patched with deltas from its ETag. `None`: a delta of
    /// another index.
    fn delta(
        &self,
        index: FetchedIndex,
        delta_base: Option<&str>,
    ) -> Result<Option<(IndexUpdate, Option<Instant>)>, &'static str> {
        if let Some(base) = self.base {
            let follows = |cursor: &IndexCursor| cursor.epoch == base.epoch && cursor.cursor >= base.cursor;
            return match index.cursor.as_ref().is_some_and(follows) {
                true => Ok(Some((IndexUpdate::Delta(index), None))),
                false => Err(NOT_A_CONTINUATION),
            };
        }
        match self.from.as_deref() {
            None => Err("a part of an index where the whole was asked for"),
            from if delta_base != from => Ok(None),
            _ => {
                let patched = self.last.as_ref().and_then(|last| last.patched).or_else(|| Some(Instant::now()));
                Ok(Some((IndexUpdate::Delta(index), patched)))
            }
        }
    }
}

/// An address with these parts of a query.
fn with_query<'a>(root: &str, parts: impl Iterator<Item = &'a String>) -> String {
    let query = parts.map(String::as_str).collect::<Vec<_>>().join("&");
    if query.is_empty() { root.to_owned() } else { format!("{root}?{query}") }
}

/// One value of a query.
fn encode_query(text: &str) -> String {
    encode_path(text).replace('/', "%2F")
}
