//! `GET /events` and `GET /events/{namespace}`: one server-sent event for each committed change.
//!
//! An event is `id: <cursor>` and `data: {"cursor": N, "path": "…"}`. An event without a path means many changes: read
//! the index. An idle stream costs a timer and a place in a queue.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::proxy::auth::StreamLease;
use crate::proxy::context::RequestContext;
use crate::proxy::error::ApiError;
use crate::proxy::limits::connections::NameSlot;
use crate::proxy::metrics::GaugeGuard;
use crate::proxy::response::{EndlessResponse, HttpResponse, stream_body};
use crate::store::{BlobChanges, Store};

/// More changes, missed or committed at once, become one event without a path. So a stream that is not read holds
/// little memory.
const MAX_REPLAY: u64 = 32;

#[derive(Serialize)]
struct EventData<'a> {
    cursor: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

/// A stream of events, from `Last-Event-ID` on or from now.
pub(super) async fn get<S: Store>(ctx: &RequestContext<'_, S>, request: &Parts) -> Result<HttpResponse, ApiError> {
    // Subscribed before the past is read, so that no change falls between the two.
    let changes = ctx.store().subscribe();
    let mut first = vec![Bytes::from_static(b": connected\n\n")];
    let mark = ctx.store().state(ctx.ns()).await?.mark;
    let mut cursor = mark.as_ref().map_or(0, |mark| mark.cursor);
    if let Some(id) = request.headers.get("last-event-id") {
        // Without a mark the missed changes are unknown.
        let is_known = |id: &u64| mark.is_some_and(|mark| (mark.floor..=mark.cursor).contains(id));
        let is_recent = |id: &u64| cursor.saturating_sub(*id) <= MAX_REPLAY;
        match id.to_str().ok().and_then(|id| id.trim().parse().ok()).filter(is_known).filter(is_recent) {
            Some(id) => cursor = replay(ctx, id, &mut first).await?,
            None => first.push(event(cursor, None)),
        }
    }
    let stream = EventStream {
        ns: ctx.ns().to_owned(),
        changes,
        ready: first.into(),
        cursor,
        heartbeat: ctx.state.options.heartbeat,
        stopping: ctx.state.stopping.clone(),
        lease: ctx.state.auth.lease(&ctx.caller, ctx.ns()),
        _gauge: GaugeGuard::new(&ctx.state.metrics.event_streams),
        _listener: ctx.state.listeners.add(ctx.ns()),
    };
    // For HEAD hyper drops the body.
    let mut response = Response::new(stream_body(stream.into_stream()));
    response.extensions_mut().insert(EndlessResponse);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Without this header nginx buffers the stream.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

/// Adds the changes after `cursor` to `events`. Gives the cursor of the last one.
async fn replay<S: Store>(ctx: &RequestContext<'_, S>, cursor: u64, events: &mut Vec<Bytes>) -> Result<u64, ApiError> {
    let index = ctx.store().index(ctx.ns(), cursor).await?;
    let last = index.state.mark.map_or(cursor, |mark| mark.cursor);
    let mut entries = index.entries;
    entries.sort_by_key(|(_, entry)| entry.cursor);
    events.extend(entries.iter().map(|(path, entry)| event(entry.cursor, Some(path))));
    Ok(last)
}

fn event(cursor: u64, path: Option<&str>) -> Bytes {
    // JSON has no line break, as an event's data must not. A number and a string always serialize.
    let data = serde_json::to_string(&EventData { cursor, path }).unwrap_or_default();
    Bytes::from(format!("id: {cursor}\ndata: {data}\n\n"))
}

struct EventStream {
    ns: String,
    changes: broadcast::Receiver<BlobChanges>,
    /// Events to send.
    ready: VecDeque<Bytes>,
    /// The cursor of the last event that was sent or is ready.
    cursor: u64,
    heartbeat: Duration,
    stopping: watch::Receiver<bool>,
    lease: StreamLease,
    _gauge: GaugeGuard,
    _listener: Option<NameSlot>,
}

impl EventStream {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        stream::unfold(self, |mut events| async move { events.next().await.map(|piece| (Ok(piece), events)) })
    }

    /// The next event or heartbeat. `None` when the proxy stops or the lease ends.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            let received = tokio::select! {
                biased;
                _ = self.stopping.wait_for(|stop| *stop) => return None,
                () = self.lease.ended() => return None,
                received = tokio::time::timeout(self.heartbeat, self.changes.recv()) => received,
            };
            match received {
                Err(_) => return Some(Bytes::from_static(b": \n\n")),
                Ok(Ok(changes)) => self.add(&changes),
                Ok(Err(RecvError::Lagged(_))) => self.skip_queued(),
                Ok(Err(RecvError::Closed)) => return None,
            }
        }
    }

    fn add(&mut self, changes: &BlobChanges) {
        let last = changes.last().map_or(self.cursor, |change| change.cursor.max(self.cursor));
        let new = || changes.iter().filter(|change| change.cursor > self.cursor && change.ns == self.ns);
        if new().count() as u64 > MAX_REPLAY {
            self.ready.push_back(event(last, None));
        } else {
            let events: Vec<_> = new().map(|change| event(change.cursor, Some(change.path.as_str()))).collect();
            self.ready.extend(events);
        }
        self.cursor = last;
    }

    /// Some changes were lost before they were read. One event without a path stands for them and all that are queued.
    fn skip_queued(&mut self) {
        while let Ok(changes) = self.changes.try_recv() {
            self.cursor = changes.last().map_or(self.cursor, |change| change.cursor.max(self.cursor));
        }
        self.ready.push_back(event(self.cursor, None));
    }
}
