//! What other proxies write to the same store: looked for while somebody listens to events, and only where they
//! listen. A store that no other process writes to is left alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Proxy;
use crate::store::Store;

/// Namespaces looked at side by side.
const AT_ONCE: usize = 8;
/// A look that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many listen to each namespace.
#[derive(Default)]
pub struct Listened {
    by_namespace: Mutex<HashMap<String, usize>>,
    somebody: Notify,
}

impl Listened {
    /// One more listens to `ns`, until what is given is dropped.
    pub fn listen(self: &Arc<Self>, ns: &str) -> Listening {
        *self.lock().entry(ns.to_owned()).or_default() += 1;
        self.somebody.notify_one();
        Listening { to: self.clone(), ns: ns.to_owned() }
    }

    fn namespaces(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Each change leaves it whole.
        self.by_namespace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody listens, as long as this lives.
pub struct Listening {
    to: Arc<Listened>,
    ns: String,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut all = self.to.lock();
        if let Some(listeners) = all.get_mut(&self.ns) {
            *listeners -= 1;
            if *listeners == 0 {
                all.remove(&self.ns);
            }
        }
    }
}

/// Looks again and again at what is listened to, until the proxy stops. The store tells its subscribers of what is new.
/// A namespace that is slow to look at keeps no other waiting.
pub async fn look<S: Store>(proxy: Arc<Proxy<S>>) {
    let mut stopping = proxy.stopping.clone();
    let looking = async {
        let mut clock = interval(proxy.options.look_elsewhere);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut rounds, mut looks) = (Rounds::default(), FuturesUnordered::new());
        loop {
            tokio::select! {
                _ = clock.tick() => {
                    let listened = proxy.listened.namespaces();
                    if listened.is_empty() && looks.is_empty() {
                        proxy.listened.somebody.notified().await;
                        clock.reset();
                    }
                    rounds.begin(listened);
                }
                Some((ns, failure)) = looks.next() => rounds.ended(ns, failure),
            }
            while looks.len() < AT_ONCE
                && let Some(ns) = rounds.next()
            {
                let store = &proxy.store;
                looks.push(async move {
                    let failure = match timeout(PATIENCE, store.state(&ns)).await {
                        Ok(state) => state.err().map(|e| e.to_string()),
                        Err(_) => Some("the store does not answer".to_owned()),
                    };
                    (ns, failure)
                });
            }
        }
    };
    tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => {}
        () = looking, if !S::STRONG => {}
    }
}

/// Which namespaces are to be looked at, each once at a time.
#[derive(Default)]
struct Rounds {
    due: VecDeque<String>,
    /// Due, or being looked at.
    waiting: HashSet<String>,
    failing: HashSet<String>,
}

impl Rounds {
    fn begin(&mut self, listened: Vec<String>) {
        self.failing.retain(|ns| listened.contains(ns));
        for ns in listened {
            if self.waiting.insert(ns.clone()) {
                self.due.push_back(ns);
            }
        }
    }

    fn next(&mut self) -> Option<String> {
        self.due.pop_front()
    }

    fn ended(&mut self, ns: String, failure: Option<String>) {
        self.waiting.remove(&ns);
        let failed = !self.failing.is_empty();
        if failure.is_some() {
            self.failing.insert(ns);
        } else {
            self.failing.remove(&ns);
        }
        // Said when it begins and when it ends, not at every look.
        match (failure, failed) {
            (Some(e), false) => tracing::warn!("what other proxies write is not noticed: {e}"),
            (None, true) if self.failing.is_empty() => tracing::info!("what other proxies write is noticed again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_listened_to_until_the_last_has_gone() {
        let listened = Arc::new(Listened::default());
        let (one, two, other) = (listened.listen("a"), listened.listen("a"), listened.listen(""));
        drop(one);
        let mut names = listened.namespaces();
        names.sort();
        assert_eq!(names, ["", "a"]);
        drop((two, other));
        assert!(listened.namespaces().is_empty());
    }
}
