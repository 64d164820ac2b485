//! What a proxy does by itself: expiry, and the end of what is old.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::Proxy;
use crate::store::{Store, StoreError, Swept};

/// How late a path may expire.
const EXPIRY: Duration = Duration::from_secs(30);
/// How often what is old is looked for.
const SWEEP: Duration = Duration::from_secs(3600);

/// Goes on until the proxy stops, and then ends between two steps. A failure is logged, and tried again in its time. A
/// sweep may take long, and nothing waits for it.
pub async fn run<S: Store>(proxy: Arc<Proxy<S>>) {
    let expiry = every(EXPIRY, proxy.stopping.clone(), || {
        let store = proxy.store.clone();
        async move { store.expire().await.map(|expired| Swept { expired, ..Swept::default() }) }
    });
    let sweeps = every(SWEEP, proxy.stopping.clone(), || {
        let store = proxy.store.clone();
        async move { store.sweep().await }
    });
    tokio::join!(expiry, sweeps);
}

/// Does a step at once, and again and again, until the proxy stops.
async fn every<F: Future<Output = Result<Swept, StoreError>>>(
    time: Duration,
    mut stopping: watch::Receiver<bool>,
    step: impl Fn() -> F,
) {
    let mut clock = interval(time);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            _ = clock.tick() => {}
        }
        tell(step().await);
    }
}

fn tell(done: Result<Swept, StoreError>) {
    match done {
        Ok(swept) if swept == Swept::default() => {}
        Ok(Swept { expired, versions, tombstones }) => {
            tracing::info!(expired, versions, tombstones, "removed what had expired or was kept long enough");
        }
        Err(e) => tracing::error!("expiry and clean-up failed: {e}"),
    }
}
