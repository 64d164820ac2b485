//! [`KeyCache`]: the keys as a running proxy knows them, at most `keys_max_age` old.
//!
//! The document is read again:
//! - when a key is shown and the cached document is older than that age,
//! - at once when the key is not in it,
//! - at that interval while a stream is open that a key opened.
//!
//! So a new key works and a revoked one stops without a restart, and an idle proxy reads nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::document::{Key, Keys, KeysError, TokenValidity};
use super::records::{keys_in, record_use};
use crate::store::{KEYS_RECORD, Store};

/// How often the last use of a key is recorded.
const USE_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Longest sleep until a key expires. The wall clock is read again after it.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// The keys of one store.
pub(crate) struct KeyCache<S> {
    store: Arc<S>,
    /// How old the cached document may be.
    max_age: Duration,
    published: watch::Sender<Arc<Keys>>,
    last: tokio::sync::Mutex<LastRead>,
    /// When the last use of each key was recorded.
    recorded: Arc<Mutex<HashMap<String, Instant>>>,
    /// Writes of last uses in flight.
    recordings: Mutex<JoinSet<()>>,
    has_lease: Notify,
}

#[derive(Default)]
struct LastRead {
    began: Option<Instant>,
    tag: Option<String>,
}

/// A key whose token was shown and is valid.
pub(crate) struct MatchedKey {
    pub key: Key,
    pub hash: blake3::Hash,
    /// The document that has the key.
    pub keys: Arc<Keys>,
}

impl<S: Store> KeyCache<S> {
    pub(crate) fn new(store: Arc<S>, max_age: Duration) -> Self {
        Self {
            store,
            max_age,
            published: watch::Sender::default(),
            last: tokio::sync::Mutex::default(),
            recorded: Arc::default(),
            recordings: Mutex::default(),
            has_lease: Notify::new(),
        }
    }

    /// The key of the token with this hash. `None`: it is unknown, revoked or expired.
    pub(crate) async fn find(&self, id: &str, hash: blake3::Hash) -> Result<Option<MatchedKey>, KeysError> {
        let asked = Instant::now();
        self.refresh_unless(|began| began.elapsed() < self.max_age).await?;
        let found = match self.find_cached(id, hash) {
            Some(found) => found,
            None => {
                // The key may be newer than the cache. Requests that wait here share one read.
                self.refresh_unless(|began| began >= asked).await?;
                let Some(found) = self.find_cached(id, hash) else { return Ok(None) };
                found
            }
        };
        self.record_use_soon(&found);
        Ok(Some(found))
    }

    fn find_cached(&self, id: &str, hash: blake3::Hash) -> Option<MatchedKey> {
        let keys = self.published.borrow().clone();
        let (key, _) = keys.find(id, hash, Timestamp::now())?;
        Some(MatchedKey { key: key.clone(), hash, keys })
    }

    /// Reads the document, unless `is_recent` accepts the time at which the last read began.
    async fn refresh_unless(&self, is_recent: impl Fn(Instant) -> bool) -> Result<(), KeysError> {
        let mut last = self.last.lock().await;
        if last.began.is_some_and(is_recent) {
            return Ok(());
        }
        let began = Instant::now();
        let record = self.store.record(KEYS_RECORD).await?;
        let tag = record.as_ref().map(|record| record.tag.clone());
        if tag != last.tag {
            let keys = Arc::new(keys_in(record.as_ref())?);
            let before = self.published.send_replace(keys.clone());
            // The first read shows no change.
            if last.began.is_some() {
                for (action, subject) in keys.changes_since(&before) {
                    tracing::info!(target: "memsync::audit", "{action}: {subject}");
                }
            }
        }
        *last = LastRead { began: Some(began), tag };
        Ok(())
    }

    /// Records the use of a key in the background, at most once in [`USE_INTERVAL`].
    fn record_use_soon(&self, found: &MatchedKey) {
        let id = found.key.id.clone();
        let mut recorded = self.recorded.lock();
        if recorded.get(&id).is_some_and(|at| at.elapsed() < USE_INTERVAL) {
            return;
        }
        recorded.retain(|id, _| found.keys.keys.contains_key(id));
        recorded.insert(id.clone(), Instant::now());
        drop(recorded);
        let (store, recorded) = (self.store.clone(), self.recorded.clone());
        let mut recordings = self.recordings.lock();
        while recordings.try_join_next().is_some() {}
        recordings.spawn(async move {
            if let Err(e) = record_use(store.as_ref(), &id, Timestamp::now()).await {
                tracing::warn!("the last use of key {id} could not be recorded: {e}; its next use tries again");
                recorded.lock().remove(&id);
            }
        });
    }

    /// Waits for the writes in flight, so that the store can be closed.
    pub(crate) async fn finish(&self) {
        let mut recordings = std::mem::take(&mut *self.recordings.lock());
        while recordings.join_next().await.is_some() {}
    }

    /// The right of a stream of `ns` to stay open, for as long as the key is valid.
    pub(crate) fn lease(&self, found: &MatchedKey, ns: &str) -> KeyLease {
        let keys = self.published.subscribe();
        let lease = KeyLease { keys, id: found.key.id.clone(), hash: found.hash, ns: ns.to_owned() };
        self.has_lease.notify_one();
        lease
    }

    /// Refreshes the document while any lease is open. Runs until it is dropped.
    pub(crate) async fn refresh_for_leases(&self) {
        loop {
            while self.published.receiver_count() == 0 {
                self.has_lease.notified().await;
            }
            tokio::time::sleep(self.max_age).await;
            if let Err(e) = self.refresh_unless(|began| began.elapsed() < self.max_age).await {
                tracing::error!("the keys could not be read, so changes to them have no effect yet: {e}");
            }
        }
    }
}

/// The right of an open stream, which may end.
pub(crate) struct KeyLease {
    keys: watch::Receiver<Arc<Keys>>,
    id: String,
    hash: blake3::Hash,
    ns: String,
}

impl KeyLease {
    /// Returns when the key is revoked, replaced or expired. Cancel safe.
    pub(crate) async fn ended(&mut self) {
        loop {
            let now = Timestamp::now();
            let keys = self.keys.borrow_and_update().clone();
            let until = match keys.find(&self.id, self.hash, now) {
                Some((key, TokenValidity { until })) if key.scope.covers(&self.ns) => until,
                _ => return,
            };
            let left = until.and_then(|until| Duration::try_from(until.duration_since(now)).ok());
            tokio::select! {
                changed = self.keys.changed() => {
                    // The sender is gone when the proxy has stopped.
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(left.unwrap_or(MAX_SLEEP).min(MAX_SLEEP)) => {}
            }
        }
    }
}
