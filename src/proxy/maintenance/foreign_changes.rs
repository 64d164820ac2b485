//! Changes that other proxies make to the same store, noticed by polling.
//!
//! Only namespaces with open event streams are polled, and only on a store that other processes may write to.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::proxy::limits::connections::{NameCounts, NameSlot};
use crate::store::Store;

/// Namespaces polled at once.
const MAX_CONCURRENT_POLLS: usize = 8;
const POLL_TIMEOUT: Duration = Duration::from_secs(10);

/// The namespaces that have event streams.
#[derive(Default)]
pub(crate) struct StreamListeners {
    by_namespace: Arc<NameCounts>,
    added: Notify,
}

impl StreamListeners {
    /// Counts a stream of `ns` until the slot is dropped.
    pub(crate) fn add(&self, ns: &str) -> Option<NameSlot> {
        let slot = self.by_namespace.enter(ns, usize::MAX);
        self.added.notify_one();
        slot
    }
}

/// Polls the namespaces with listeners until the proxy stops. [`Store::state`] tells the store's subscribers of changes.
pub(crate) async fn run<S: Store>(
    store: Arc<S>,
    listeners: Arc<StreamListeners>,
    poll_interval: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => {}
        () = poll(store, listeners, poll_interval), if !S::STRONG => {}
    }
}

/// A slow namespace delays no other.
async fn poll<S: Store>(store: Arc<S>, listeners: Arc<StreamListeners>, poll_interval: Duration) {
    let mut ticks = interval(poll_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut queue, mut polls) = (PollQueue::default(), FuturesUnordered::new());
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let namespaces = listeners.by_namespace.names();
                if namespaces.is_empty() && polls.is_empty() {
                    listeners.added.notified().await;
                    ticks.reset();
                }
                queue.add(namespaces);
            }
            Some((ns, failure)) = polls.next() => queue.finish(ns, failure),
        }
        while polls.len() < MAX_CONCURRENT_POLLS
            && let Some(ns) = queue.next()
        {
            let store = &store;
            polls.push(async move {
                let failure = match timeout(POLL_TIMEOUT, store.state(&ns)).await {
                    Ok(state) => state.err().map(|e| e.to_string()),
                    Err(_) => Some("the store does not answer".to_owned()),
                };
                (ns, failure)
            });
        }
    }
}

/// The namespaces to poll, each at most once at a time.
#[derive(Default)]
struct PollQueue {
    due: VecDeque<String>,
    /// Due, or being polled.
    pending: HashSet<String>,
    failing: HashSet<String>,
}

impl PollQueue {
    fn add(&mut self, namespaces: Vec<String>) {
        self.failing.retain(|ns| namespaces.contains(ns));
        for ns in namespaces {
            if self.pending.insert(ns.clone()) {
                self.due.push_back(ns);
            }
        }
    }

    fn next(&mut self) -> Option<String> {
        self.due.pop_front()
    }

    /// Logs the first failure and the recovery, not every poll.
    fn finish(&mut self, ns: String, failure: Option<String>) {
        self.pending.remove(&ns);
        let was_failing = !self.failing.is_empty();
        if failure.is_some() {
            self.failing.insert(ns);
        } else {
            self.failing.remove(&ns);
        }
        match (failure, was_failing) {
            (Some(e), false) => {
                tracing::warn!("changes of other proxies to the store cannot be noticed: {e}; polling goes on");
            }
            (None, true) if self.failing.is_empty() => {
                tracing::info!("changes of other proxies to the store are noticed again");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_has_listeners_until_its_last_stream_ends() {
        let listeners = StreamListeners::default();
        let (one, two, other) = (listeners.add("a"), listeners.add("a"), listeners.add(""));
        drop(one);
        let mut names = listeners.by_namespace.names();
        names.sort();
        assert_eq!(names, ["", "a"]);
        drop((two, other));
        assert!(listeners.by_namespace.names().is_empty());
    }
}
