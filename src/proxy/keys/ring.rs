//! [`Ring`]: the keys as a running proxy knows them, at most a second old.
//!
//! The document is read when somebody shows a key and what is known is older than that, at once when the key is not
//! known, and every second as long as a stream is open that was opened with a key. So a key that was just made works,
//! and one that was revoked stops, without a restart; and a proxy that nobody calls reads nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Key, Keys, KeysError, RECORD, Taken, record_use};
use crate::store::Store;

/// How often the last use of a key is written down.
const NOTE_USE: Duration = Duration::from_secs(5 * 60);
/// Longest sleep until a key expires; then its clock is looked at again.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// The keys of one store.
pub struct Ring<S> {
    store: Arc<S>,
    /// How old what is known may be.
    fresh: Duration,
    published: watch::Sender<Arc<Keys>>,
    last: tokio::sync::Mutex<LastRead>,
    /// When the last use of each key was written down.
    noted: Arc<Mutex<HashMap<String, Instant>>>,
    /// Writes of that under way.
    notes: Mutex<JoinSet<()>>,
    watched: Notify,
}

#[derive(Default)]
struct LastRead {
    began: Option<Instant>,
    tag: Option<String>,
}

/// A key that was shown and is taken.
pub struct Found {
    pub key: Key,
    pub hash: blake3::Hash,
    /// What it was found in.
    pub keys: Arc<Keys>,
}

impl<S: Store> Ring<S> {
    /// `fresh`: how long a change may go unnoticed.
    pub fn new(store: Arc<S>, fresh: Duration) -> Self {
        Self {
            store,
            fresh,
            published: watch::Sender::default(),
            last: tokio::sync::Mutex::default(),
            noted: Arc::default(),
            notes: Mutex::default(),
            watched: Notify::new(),
        }
    }

    /// The key that this token is. `None`: it is unknown, revoked or expired.
    ///
    /// # Errors
    /// When the keys cannot be read.
    pub async fn find(&self, id: &str, hash: blake3::Hash) -> Result<Option<Found>, KeysError> {
        let asked = Instant::now();
        self.read_unless(|began| began.elapsed() < self.fresh).await?;
        let found = match self.look(id, hash) {
            Some(found) => found,
            None => {
                // It may have been made since. Of any number who ask at once one reads.
                self.read_unless(|began| began >= asked).await?;
                let Some(found) = self.look(id, hash) else { return Ok(None) };
                found
            }
        };
        self.note_use(&found);
        Ok(Some(found))
    }

    fn look(&self, id: &str, hash: blake3::Hash) -> Option<Found> {
        let keys = self.published.borrow().clone();
        let (key, _) = keys.find(id, hash, Timestamp::now())?;
        Some(Found { key: key.clone(), hash, keys })
    }

    /// Reads the document, unless the last read began at a time that is good enough.
    async fn read_unless(&self, good: impl Fn(Instant) -> bool) -> Result<(), KeysError> {
        let mut last = self.last.lock().await;
        if last.began.is_some_and(good) {
            return Ok(());
        }
        let began = Instant::now();
        let record = self.store.record(RECORD).await?;
        let tag = record.as_ref().map(|record| record.tag.clone());
        if tag != last.tag {
            let keys = Arc::new(Keys::of(record.as_ref())?);
            let before = self.published.send_replace(keys.clone());
            // What was there at the first look is no change.
            if last.began.is_some() {
                for change in keys.changes_since(&before) {
                    tracing::info!(target: "memsync::audit", "{}: {}", change.what, change.subject);
                }
            }
        }
        *last = LastRead { began: Some(began), tag };
        Ok(())
    }

    /// Writes down now and then that a key is used, without anybody waiting for it.
    fn note_use(&self, found: &Found) {
        let id = found.key.id.clone();
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.get(&id).is_some_and(|at| at.elapsed() < NOTE_USE) {
            return;
        }
        noted.retain(|id, _| found.keys.keys.contains_key(id));
        noted.insert(id.clone(), Instant::now());
        drop(noted);
        let (store, noted) = (self.store.clone(), self.noted.clone());
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        while notes.try_join_next().is_some() {}
        notes.spawn(async move {
            if let Err(e) = record_use(store.as_ref(), &id, Timestamp::now()).await {
                tracing::warn!("when key {id} was last used could not be written down: {e}");
                // The next use tries again.
                noted.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            }
        });
    }

    /// Returns when nothing is being written any more, so that the store can be let go.
    pub async fn finish(&self) {
        let mut notes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        while notes.join_next().await.is_some() {}
    }

    /// Follows a key for as long as a stream is open that it opened.
    pub fn follow(&self, found: &Found, ns: &str) -> Standing {
        let standing = Standing {
            keys: self.published.subscribe(),
            id: found.key.id.clone(),
            hash: found.hash,
            ns: ns.to_owned(),
        };
        self.watched.notify_one();
        standing
    }

    /// Keeps what is known fresh while anybody follows. Runs until it is dropped.
    pub async fn tend(&self) {
        loop {
            while self.published.receiver_count() == 0 {
                self.watched.notified().await;
            }
            tokio::time::sleep(self.fresh).await;
            if let Err(e) = self.read_unless(|began| began.elapsed() < self.fresh).await {
                tracing::error!("the keys could not be read, so a change to them goes unnoticed: {e}");
            }
        }
    }
}

/// The right of an open stream, which may end.
pub struct Standing {
    keys: watch::Receiver<Arc<Keys>>,
    id: String,
    hash: blake3::Hash,
    ns: String,
}

impl Standing {
    /// Returns when the key is revoked, replaced or expired. May be dropped and called again.
    pub async fn ended(&mut self) {
        loop {
            let now = Timestamp::now();
            let keys = self.keys.borrow_and_update().clone();
            let until = match keys.find(&self.id, self.hash, now) {
                Some((key, Taken { until })) if key.scope.covers(&self.ns) => until,
                _ => return,
            };
            let left = until.and_then(|until| Duration::try_from(until.duration_since(now)).ok());
            tokio::select! {
                changed = self.keys.changed() => {
                    if changed.is_err() {
                        // The proxy is gone, and its streams with it.
                        return;
                    }
                }
                () = tokio::time::sleep(left.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)) => {}
            }
        }
    }
}
