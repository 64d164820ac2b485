//! `GET /events`: one server-sent event per committed change.
//!
//! An event is `id: <cursor>` and `data: {"cursor": N, "path": "…"}`. One without a path says that more
//! changed than is worth listing: read the index. An idle stream costs a timer and a queue slot.

use std::collections::VecDeque;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream::{self, Stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::Proxy;
use super::answer::{Answer, Refusal};
use super::auth::{Caller, Lease};
use super::elsewhere::Listening;
use super::metrics::Present;
use super::patience::Endless;
use crate::store::{BlobChanges, Store};

/// Changes beyond this many, missed or made at once, become one event without a path: a stream that is not read holds
/// little memory.
const REPLAY: u64 = 32;

#[derive(Serialize)]
struct Event<'a> {
    cursor: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

/// A stream of events, from where `Last-Event-ID` says or from now.
pub async fn get<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    headers: &HeaderMap,
) -> Result<Answer, Refusal> {
    // Subscribed before the past is read, so that nothing falls between the two.
    let changes = proxy.store.subscribe();
    let resume = headers.get("last-event-id");
    let mut first = vec![Bytes::from_static(b": connected\n\n")];
    let mark = proxy.store.state(ns).await?.mark;
    let mut sent = mark.as_ref().map_or(0, |mark| mark.cursor);
    if let Some(id) = resume {
        // Without a mark nobody knows what was missed.
        let known = |cursor: &u64| mark.is_some_and(|mark| (mark.floor..=mark.cursor).contains(cursor));
        let near = |cursor: &u64| sent.saturating_sub(*cursor) <= REPLAY;
        match id.to_str().ok().and_then(|id| id.trim().parse().ok()).filter(known).filter(near) {
            Some(cursor) => sent = missed(proxy, ns, cursor, &mut first).await?,
            None => first.push(event(sent, None)),
        }
    }
    let feed = Feed {
        ns: ns.to_owned(),
        changes,
        ready: first.into(),
        sent,
        heartbeat: proxy.options.heartbeat,
        stopping: proxy.stopping.clone(),
        lease: proxy.auth.lease(caller, ns),
        _live: Present::of(&proxy.metrics.event_streams),
        _listening: proxy.listened.listen(ns),
    };
    let mut answer = Response::new(Body::from_stream(feed.stream()));
    answer.extensions_mut().insert(Endless);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx keeps an answer back otherwise until there is enough of it.
    answer.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(answer)
}

/// Adds what changed after `cursor`, and gives the cursor it reaches to.
async fn missed<S: Store>(proxy: &Proxy<S>, ns: &str, cursor: u64, events: &mut Vec<Bytes>) -> Result<u64, Refusal> {
    let index = proxy.store.index(ns, cursor).await?;
    let reached = index.state.mark.map_or(cursor, |mark| mark.cursor);
    let mut entries = index.entries;
    entries.sort_by_key(|(_, entry)| entry.cursor);
    events.extend(entries.iter().map(|(path, entry)| event(entry.cursor, Some(path))));
    Ok(reached)
}

fn event(cursor: u64, path: Option<&str>) -> Bytes {
    // JSON keeps to one line, as an event's data must; a number and a string always serialise.
    let data = serde_json::to_string(&Event { cursor, path }).unwrap_or_default();
    Bytes::from(format!("id: {cursor}\ndata: {data}\n\n"))
}

struct Feed {
    ns: String,
    changes: broadcast::Receiver<BlobChanges>,
    /// Written, not sent yet.
    ready: VecDeque<Bytes>,
    /// The last cursor that was sent or is ready.
    sent: u64,
    heartbeat: Duration,
    stopping: watch::Receiver<bool>,
    lease: Lease,
    _live: Present,
    _listening: Listening,
}

impl Feed {
    fn stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
        stream::unfold(self, |mut feed| async move { feed.next().await.map(|piece| (Ok(piece), feed)) })
    }

    /// The next piece; `None` when the proxy stops, or the caller may listen no longer.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            let got = tokio::select! {
                biased;
                _ = self.stopping.wait_for(|stop| *stop) => return None,
                () = self.lease.ended() => return None,
                got = tokio::time::timeout(self.heartbeat, self.changes.recv()) => got,
            };
            match got {
                Err(_) => return Some(Bytes::from_static(b": \n\n")),
                Ok(Ok(changes)) => self.take(&changes),
                Ok(Err(RecvError::Lagged(_))) => self.catch_up(),
                Ok(Err(RecvError::Closed)) => return None,
            }
        }
    }

    fn take(&mut self, changes: &BlobChanges) {
        let reached = changes.last().map_or(self.sent, |c| c.cursor.max(self.sent));
        let news = || changes.iter().filter(|c| c.cursor > self.sent && c.ns == self.ns);
        if news().count() as u64 > REPLAY {
            self.ready.push_back(event(reached, None));
        } else {
            let events: Vec<_> = news().map(|change| event(change.cursor, Some(change.path.as_str()))).collect();
            self.ready.extend(events);
        }
        self.sent = reached;
    }

    /// Changes were dropped before they were read: say so with the newest cursor still queued.
    fn catch_up(&mut self) {
        while let Ok(changes) = self.changes.try_recv() {
            self.sent = changes.last().map_or(self.sent, |c| c.cursor.max(self.sent));
        }
        self.ready.push_back(event(self.sent, None));
    }
}
