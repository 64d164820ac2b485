//! What a proxy does by itself: expiry, and the end of what is old.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Proxy;
use crate::store::{Store, StoreError, Swept};

/// How late a path may expire.
const EXPIRY: Duration = Duration::from_secs(30);
/// How often what is old is looked for.
const SWEEP: Duration = Duration::from_secs(3600);

/// Goes on until the proxy stops, and then ends between two steps. A failure is logged, and tried again in its time.
pub async fn run<S: Store>(proxy: Arc<Proxy<S>>) {
    let mut stopping = proxy.stopping.clone();
    let mut clock = interval(EXPIRY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            _ = clock.tick() => {}
        }
        let done = if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            swept = Some(Instant::now());
            proxy.store.sweep().await
        } else {
            proxy.store.expire().await.map(|expired| Swept { expired, ..Swept::default() })
        };
        tell(done);
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
