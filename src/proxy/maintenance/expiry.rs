//! Removes content that has expired, and versions and tombstones beyond their retention. [`StoreClock`] tells if the wall
//! clock is reliable enough to do so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::clock::{ClockNote, ClockReading, SteadyClock};
use crate::store::{CLOCK_RECORD, Store, StoreError, SweepReport, WallClock, system_clock};

/// How late a path may expire while the clock is steady.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(30);
/// How often old versions and tombstones are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// How soon the clock is checked again after it was not steady.
const CLOCK_RETRY: Duration = Duration::from_secs(30);
/// How long a start waits for the store's record of the clock.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the wall clock is recorded in the store.
const RECORD_INTERVAL: Duration = Duration::from_secs(600);

/// The clock of a proxy that starts now, checked for the first time.
pub(crate) async fn start_clock<S: Store>(store: &Arc<S>) -> StoreClock<S> {
    let clock = StoreClock::new(store.clone(), system_clock());
    // If the store fails or is slow now, the first step checks the clock again.
    let _ = tokio::time::timeout(FIRST_CHECK_TIMEOUT, clock.is_steady()).await;
    clock
}

/// Runs until the proxy stops, and ends between two steps. Failures are logged, and the next step tries again.
pub(crate) async fn run<S: Store>(store: Arc<S>, clock: StoreClock<S>, stopping: watch::Receiver<bool>) {
    let expire = || async { store.expire().await.map(|expired| SweepReport { expired, ..SweepReport::default() }) };
    // A sweep may take long, and expiry goes on beside it.
    tokio::join!(
        repeat(EXPIRY_INTERVAL, &clock, stopping.clone(), expire),
        repeat(SWEEP_INTERVAL, &clock, stopping.clone(), || store.sweep()),
    );
}

/// Runs `step` at each interval while the clock is steady, until the proxy stops.
async fn repeat<S: Store, F: Future<Output = Result<SweepReport, StoreError>>>(
    interval: Duration,
    clock: &StoreClock<S>,
    mut stopping: watch::Receiver<bool>,
    step: impl Fn() -> F,
) {
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = match clock.is_steady().await {
            Ok(true) => {
                log_result(step().await);
                interval
            }
            Ok(false) => CLOCK_RETRY,
            Err(e) => {
                log_result(Err(e));
                interval
            }
        };
    }
}

fn log_result(result: Result<SweepReport, StoreError>) {
    match result {
        Ok(swept) if swept == SweepReport::default() => {}
        Ok(SweepReport { expired, versions, tombstones }) => {
            tracing::info!(expired, versions, tombstones, "removed expired files, old versions and old tombstones");
        }
        Err(e) => tracing::error!("expiry and clean-up failed: {e}; they are tried again later"),
    }
}

/// The wall clock of one proxy, with a record of it in the store.
pub(crate) struct StoreClock<S> {
    store: Arc<S>,
    wall: WallClock,
    began: Instant,
    watch: Mutex<Option<StoreClockWatch>>,
}

/// The clock since its record was read.
struct StoreClockWatch {
    clock: SteadyClock,
    /// The tag of the record in the store.
    tag: Option<String>,
    /// The running time and the state of the clock when it was last recorded.
    recorded: Option<(Duration, bool)>,
}

impl<S: Store> StoreClock<S> {
    pub(crate) fn new(store: Arc<S>, wall: WallClock) -> Self {
        Self { store, wall, began: Instant::now(), watch: Mutex::default() }
    }

    /// Reads the clocks. True when the wall clock has been steady for an hour of running.
    ///
    /// # Errors
    /// The record cannot be read or written. Nothing may be removed then.
    pub(crate) async fn is_steady(&self) -> Result<bool, StoreError> {
        self.is_steady_at(ClockReading { wall_ms: (self.wall)(), running: self.began.elapsed() }).await
    }

    async fn is_steady_at(&self, now: ClockReading) -> Result<bool, StoreError> {
        let mut watch = self.watch.lock().await;
        let watch = match &mut *watch {
            Some(watch) => {
                if watch.clock.observe(now) {
                    log_that_removal_waits();
                }
                watch
            }
            none => {
                let begun = self.begin(now).await?;
                if !begun.clock.is_steady() {
                    log_that_removal_waits();
                }
                none.insert(begun)
            }
        };
        let is_steady = watch.clock.is_steady();
        let is_due = |(at, was_steady)| now.running >= at + RECORD_INTERVAL || was_steady != is_steady;
        if watch.recorded.is_none_or(is_due) {
            self.write_record(watch, now.running).await?;
        }
        Ok(is_steady)
    }

    async fn begin(&self, now: ClockReading) -> Result<StoreClockWatch, StoreError> {
        let record = self.store.record(CLOCK_RECORD).await?;
        let clock = match &record {
            // A damaged record counts as missing.
            Some(record) => SteadyClock::resume(serde_json::from_slice::<ClockNote>(&record.content).ok(), now),
            None if self.store.namespaces().await?.is_empty() => SteadyClock::trusted(now),
            None => SteadyClock::resume(None, now),
        };
        Ok(StoreClockWatch { clock, tag: record.map(|record| record.tag), recorded: None })
    }

    async fn write_record(&self, watch: &mut StoreClockWatch, running: Duration) -> Result<(), StoreError> {
        // Two numbers always serialize.
        let content = Bytes::from(serde_json::to_vec(&watch.clock.note()).unwrap_or_default());
        // Another proxy on the same bucket may win this write. Its record serves as well.
        self.store.put_record(CLOCK_RECORD, watch.tag.as_deref(), content).await?;
        watch.tag = self.store.record(CLOCK_RECORD).await?.map(|record| record.tag);
        watch.recorded = Some((running, watch.clock.is_steady()));
        Ok(())
    }
}

fn log_that_removal_waits() {
    tracing::info!(
        "the wall clock was set, or this proxy was stopped for long; nothing expires and nothing old is removed until \
         the clock has been steady for an hour"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::path::RelPath;
    use crate::store::{BlobMeta, RecordStore, WriteCondition};
    use crate::testing::MemoryStore;

    const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;

    /// An empty store, and its wall clock.
    fn store() -> (Arc<MemoryStore>, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(1_800_000_000_000));
        let wall = now.clone();
        let store = Arc::new(MemoryStore::with_clock(Arc::new(move || wall.load(Ordering::SeqCst))));
        (store, now)
    }

    async fn write(store: &MemoryStore) {
        let path = RelPath::parse("a.md").unwrap();
        store.put("", &path, WriteCondition::Absent, BlobMeta::default(), store.new_body()).await.unwrap();
    }

    /// The clock of a proxy that starts now.
    fn start(store: &Arc<MemoryStore>, now: &Arc<AtomicU64>) -> StoreClock<MemoryStore> {
        let wall = now.clone();
        StoreClock::new(store.clone(), Arc::new(move || wall.load(Ordering::SeqCst)))
    }

    fn at(now: &AtomicU64, running_s: u64) -> ClockReading {
        ClockReading { wall_ms: now.load(Ordering::SeqCst), running: Duration::from_secs(running_s) }
    }

    #[tokio::test]
    async fn new_store_is_steady_at_once() {
        let (store, now) = store();
        assert!(start(&store, &now).is_steady().await.unwrap());
        write(&store).await;
        assert!(start(&store, &now).is_steady().await.unwrap(), "the record is recent");
    }

    #[tokio::test]
    async fn store_without_a_clock_record_waits_for_an_hour() {
        let (store, now) = store();
        write(&store).await;
        let clock = start(&store, &now);
        assert!(!clock.is_steady_at(at(&now, 0)).await.unwrap());
        now.fetch_add(3600 * 1000, Ordering::SeqCst);
        assert!(clock.is_steady_at(at(&now, 3600)).await.unwrap());
    }

    #[tokio::test]
    async fn start_a_year_ahead_is_not_steady_nor_the_next() {
        let (store, now) = store();
        assert!(start(&store, &now).is_steady().await.unwrap());
        write(&store).await;
        now.fetch_add(YEAR_MS, Ordering::SeqCst);
        for _ in 0..3 {
            assert!(!start(&store, &now).is_steady().await.unwrap());
        }
        now.fetch_sub(YEAR_MS, Ordering::SeqCst);
        let clock = start(&store, &now);
        assert!(!clock.is_steady_at(at(&now, 0)).await.unwrap());
        now.fetch_add(3600 * 1000, Ordering::SeqCst);
        assert!(clock.is_steady_at(at(&now, 3600)).await.unwrap());
        assert!(start(&store, &now).is_steady().await.unwrap(), "the steady clock was recorded");
    }

    #[tokio::test]
    async fn record_follows_the_running_clock() {
        let (store, now) = store();
        let clock = start(&store, &now);
        for step in 0..3 {
            assert!(clock.is_steady_at(at(&now, step * 1200)).await.unwrap());
            now.fetch_add(1200 * 1000, Ordering::SeqCst);
        }
        let record = store.record(CLOCK_RECORD).await.unwrap().unwrap();
        let note: ClockNote = serde_json::from_slice(&record.content).unwrap();
        assert_eq!(note.wall_ms, 1_800_000_000_000 + 2400 * 1000);
    }
}
