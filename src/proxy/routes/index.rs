//! `GET /sync` and `GET /sync/{namespace}`: the index of a namespace, whole or only its changes.

use std::sync::atomic::Ordering;

use http::header::{ETAG, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderName, StatusCode};

use crate::protocol::encoding::Coding;
use crate::protocol::{HistoryPoint, X_MEMSYNC_SET_BACK};
use crate::proxy::context::RequestContext;
use crate::proxy::encoding::{accepted_coding, set_content_encoding};
use crate::proxy::error::ApiError;
use crate::proxy::index_cache::{CachedIndex, IndexExtent, RenderedIndex, index_etag, render};
use crate::proxy::limits::memory::{CHANGE_MEMORY, MIN_INDEX_MEMORY};
use crate::proxy::response::{HttpResponse, empty, set_header, with_reserved_body};
use crate::proxy::routes::conditions::lists_tag;
use crate::proxy::routes::names::{percent_decode, query_value};
use crate::store::{IndexCursor, IndexState, Store, StoreError};

/// Most changes in a delta. A client that lacks more gets the whole index, which all requests share.
const MAX_DELTA_CHANGES: u64 = 4096;

/// `since` and `epoch`, or `from`, in the query ask for a delta.
pub(super) async fn get<S: Store>(ctx: &RequestContext<'_, S>, request: &Parts) -> Result<HttpResponse, ApiError> {
    let query = request.uri.query().unwrap_or_default();
    let state = ctx.store().state(ctx.ns()).await?;
    let etag = index_etag(&state);
    if request.headers.get_all(IF_NONE_MATCH).iter().any(|value| lists_tag(value.as_bytes(), &etag, true)) {
        let mut response = empty(StatusCode::NOT_MODIFIED);
        set_header(response.headers_mut(), ETAG, &etag);
        return Ok(response);
    }
    let is_set_back = is_set_back(ctx, query).await?;
    let delta = if is_set_back { None } else { delta(ctx, query, &state).await? };
    let mut response = match delta {
        Some(delta) => delta,
        None => whole(ctx, &etag, accepted_coding(&request.headers)).await?,
    };
    if is_set_back {
        set_header(response.headers_mut(), HeaderName::from_static(X_MEMSYNC_SET_BACK), "true");
    }
    Ok(response)
}

/// The whole index as of now, for the response to a write in a namespace.
pub(super) async fn whole_index<S: Store>(ctx: &RequestContext<'_, S>) -> Result<HttpResponse, ApiError> {
    let etag = index_etag(&ctx.store().state(ctx.ns()).await?);
    whole(ctx, &etag, None).await
}

/// The changes that the query asks for. `None`: only the whole index is correct.
async fn delta<S: Store>(
    ctx: &RequestContext<'_, S>,
    query: &str,
    state: &IndexState,
) -> Result<Option<HttpResponse>, ApiError> {
    let (index, extent, memory) = match &state.mark {
        Some(mark) => {
            let Some(cursor) = delta_cursor(query, mark) else { return Ok(None) };
            let memory = ctx.reserve((mark.cursor - cursor) * CHANGE_MEMORY).await?;
            let index = ctx.store().index(ctx.ns(), cursor).await?;
            if index.state.mark.as_ref().is_some_and(|mark| mark.floor > cursor) {
                // Tombstones after the cursor were removed meanwhile.
                return Ok(None);
            }
            (index, IndexExtent::AfterCursor, memory)
        }
        None => {
            let Some(tag) = delta_base(query) else { return Ok(None) };
            let memory = ctx.reserve(MAX_DELTA_CHANGES * CHANGE_MEMORY).await?;
            // The store may have a newer state by now than the one that was read.
            let index = ctx.store().index_since_tag(ctx.ns(), &tag).filter(|index| index.state.tag == state.tag);
            let Some(index) = index else { return Ok(None) };
            (index, IndexExtent::SinceTag(tag), memory)
        }
    };
    let rendered = render(index, extent, !ctx.namespace.is_flat()).await?;
    ctx.state.metrics.index_deltas.inc();
    let mut response = with_reserved_body("application/json", rendered.json, memory);
    set_header(response.headers_mut(), ETAG, &rendered.etag);
    Ok(Some(response))
}

/// The whole index, packed if the client accepts that and it saves enough.
async fn whole<S: Store>(
    ctx: &RequestContext<'_, S>,
    etag: &str,
    accepted: Option<Coding>,
) -> Result<HttpResponse, ApiError> {
    let cached = ctx.state.indexes.entry(ctx.ns());
    let (rendered, memory) = loop {
        // By the size of the last rendering. The request holds nothing of an index while it waits for memory.
        let expected = (cached.size.load(Ordering::Relaxed) as u64).max(MIN_INDEX_MEMORY);
        let memory = ctx.reserve(expected).await?;
        let rendered = rendered_whole(ctx, etag, &cached).await?;
        if memory.covers(rendered.json.len() as u64) {
            break (rendered, memory);
        }
    };
    let packed = match accepted {
        Some(coding) => cached.packed(&rendered, coding).await.map(|packed| (packed, coding)),
        None => None,
    };
    ctx.state.indexes.trim();
    let mut response = match packed {
        Some((packed, coding)) => {
            let mut response = with_reserved_body("application/json", packed, memory);
            set_content_encoding(response.headers_mut(), coding);
            response
        }
        None => with_reserved_body("application/json", rendered.json, memory),
    };
    set_header(response.headers_mut(), ETAG, &rendered.etag);
    Ok(response)
}

/// The whole index as of `etag` or later, from the cache if it is there.
async fn rendered_whole<S: Store>(
    ctx: &RequestContext<'_, S>,
    etag: &str,
    cached: &CachedIndex,
) -> Result<RenderedIndex, StoreError> {
    let mut last = cached.rendered.lock().await;
    if let Some(rendered) = last.as_ref().filter(|rendered| rendered.etag == etag) {
        return Ok(rendered.clone());
    }
    let index = ctx.store().index(ctx.ns(), 0).await?;
    let files = index.entries.len();
    let rendered = render(index, IndexExtent::Whole, !ctx.namespace.is_flat()).await?;
    ctx.state.metrics.count_whole_index(files, rendered.json.len());
    cached.size.store(rendered.json.len(), Ordering::Relaxed);
    *last = Some(rendered.clone());
    drop(last);
    ctx.state.indexes.trim();
    Ok(rendered)
}

/// True if the query names a point of a history at which this store has never stood.
async fn is_set_back<S: Store>(ctx: &RequestContext<'_, S>, query: &str) -> Result<bool, StoreError> {
    let point = query_value(query, "history").and_then(|point| percent_decode(point).ok());
    match point.and_then(|point| point.parse::<HistoryPoint>().ok()) {
        Some(point) => Ok(!ctx.store().contains_point(ctx.ns(), &point).await?),
        None => Ok(false),
    }
}

/// The cursor from which a delta can start. It belongs to this store, is not in its future and not too far behind, and no
/// later tombstone was removed.
fn delta_cursor(query: &str, mark: &IndexCursor) -> Option<u64> {
    let cursor = query_value(query, "since")?.parse().ok()?;
    let oldest = mark.floor.max(mark.cursor.saturating_sub(MAX_DELTA_CHANGES));
    let is_this_store = query_value(query, "epoch") == Some(&*mark.epoch);
    (is_this_store && (oldest..=mark.cursor).contains(&cursor)).then_some(cursor)
}

/// The tag of the index that the client has.
fn delta_base(query: &str) -> Option<String> {
    percent_decode(query_value(query, "from")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delta_needs_a_recent_cursor_of_this_store() {
        let mark = IndexCursor { epoch: "e1".into(), cursor: 9, floor: 3 };
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
            assert_eq!(delta_cursor(query, &mark), from, "{query}");
        }
        let far = IndexCursor { cursor: MAX_DELTA_CHANGES + 5, ..mark };
        assert_eq!((delta_cursor("since=4&epoch=e1", &far), delta_cursor("since=5&epoch=e1", &far)), (None, Some(5)));
    }

    #[test]
    fn delta_base_may_contain_any_character() {
        for (query, tag) in [
            ("from=abc-1", Some("abc-1")),
            ("x=1&from=a%26b%25%3D", Some("a&b%=")),
            ("from=", Some("")),
            ("from=%2", None),
            ("fromage=x", None),
            ("", None),
        ] {
            assert_eq!(delta_base(query).as_deref(), tag, "{query}");
        }
    }
}
