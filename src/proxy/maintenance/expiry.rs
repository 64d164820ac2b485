//! Removes content that has expired, and versions and tombstones beyond their retention.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::store_clock::StoreClock;
use crate::store::{Store, StoreError, SweepReport, system_clock};

/// How late a path may expire while the clock is steady.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(30);
/// How often old versions and tombstones are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// How soon the clock is checked again after it was not steady.
const CLOCK_RETRY: Duration = Duration::from_secs(30);
/// How long a start waits for the store's record of the clock.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

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
