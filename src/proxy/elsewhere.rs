//! What other proxies write to the same store: looked for while somebody listens to events, and only where they
//! listen. A store that no other process writes to is left alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream;
use tokio::sync::Notify;

use super::Proxy;
use crate::store::Store;

/// Namespaces looked at side by side.
const AT_ONCE: usize = 8;

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
pub async fn look<S: Store>(proxy: Arc<Proxy<S>>) {
    let mut stopping = proxy.stopping.clone();
    let looking = async {
        let mut failed = false;
        loop {
            while proxy.listened.namespaces().is_empty() {
                proxy.listened.somebody.notified().await;
            }
            tokio::time::sleep(proxy.options.look_elsewhere).await;
            let looks = proxy.listened.namespaces().into_iter().map(|ns| {
                let store = &proxy.store;
                async move { store.state(&ns).await.err() }
            });
            let found: Vec<_> = stream::iter(looks.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await;
            let failure = found.into_iter().flatten().next();
            // Said when it begins and when it ends, not at every look.
            match (&failure, failed) {
                (Some(e), false) => tracing::warn!("what other proxies write is not noticed: {e}"),
                (None, true) => tracing::info!("what other proxies write is noticed again"),
                _ => {}
            }
            failed = failure.is_some();
        }
    };
    tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => {}
        () = looking, if !S::STRONG => {}
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
