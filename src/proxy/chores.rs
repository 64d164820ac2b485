//! What a proxy removes by itself: what has expired, and what is older than it is kept.

use std::sync::Arc;
use std::time::Duration;

use super::Proxy;
use super::clock::StoreClock;
use crate::store::{Store, StoreError, SweepReport, system_clock};

/// How late a path may expire while the clock is steady.
const EXPIRY: Duration = Duration::from_secs(30);
/// How often old versions and tombstones are looked for.
const SWEEP: Duration = Duration::from_secs(3600);
/// How soon the clock is asked again after it was not steady.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// How long a start waits for the store's note of the clock.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// The clock of a proxy that starts now, looked at for the first time.
pub async fn look_at_clock<S: Store>(store: &Arc<S>) -> StoreClock<S> {
    let clock = StoreClock::new(store.clone(), system_clock());
    // A store that fails or is slow now is asked again by the first step.
    let _ = tokio::time::timeout(FIRST_LOOK, clock.is_steady()).await;
    clock
}

/// Goes on until the proxy stops, and then ends between two steps. A failure is logged, and tried again in its time. A
/// sweep may take long, and nothing waits for it.
pub async fn run<S: Store>(proxy: Arc<Proxy<S>>, clock: StoreClock<S>) {
    let expiry = every(EXPIRY, &proxy, &clock, || async {
        proxy.store.expire().await.map(|expired| SweepReport { expired, ..SweepReport::default() })
    });
    let sweeps = every(SWEEP, &proxy, &clock, || proxy.store.sweep());
    tokio::join!(expiry, sweeps);
}

/// Does a step as soon as the clock is steady, and again and again, until the proxy stops.
async fn every<S: Store, F: Future<Output = Result<SweepReport, StoreError>>>(
    time: Duration,
    proxy: &Proxy<S>,
    clock: &StoreClock<S>,
    step: impl Fn() -> F,
) {
    let mut stopping = proxy.stopping.clone();
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
                time
            }
            Ok(false) => ASK_AGAIN,
            Err(e) => {
                log_result(Err(e));
                time
            }
        };
    }
}

fn log_result(done: Result<SweepReport, StoreError>) {
    match done {
        Ok(swept) if swept == SweepReport::default() => {}
        Ok(SweepReport { expired, versions, tombstones }) => {
            tracing::info!(expired, versions, tombstones, "removed what had expired or was kept long enough");
        }
        Err(e) => tracing::error!("expiry and clean-up failed: {e}"),
    }
}
