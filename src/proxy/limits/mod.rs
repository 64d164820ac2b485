//! All limits on peers and callers.
//!
//! | limit on | counted by | beyond it |
//! |---|---|---|
//! | open connections | proxy | further ones wait to be accepted |
//! | open connections without a valid token | network address, proxy | the oldest one is closed |
//! | open connections of a caller | caller | 429 |
//! | requests a second | caller | 429 |
//! | invalid tokens a minute | network address | 429, except for tokens that were valid from that address |
//! | memory for bodies in flight | caller, proxy | the request waits, then 503 |
//!
//! `options` has the numbers that an operator can change, and `memory` what each kind of request reserves. The bytes that a
//! user may store are in `quota`. The time that a peer may take is in `body` and `listen::peer`. The length of a name is
//! in `routes::names`, that of metadata in `routes::versions`.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::options::ProxyOptions;
use connections::{NameCounts, UnauthenticatedConnections};
use memory::BodyMemory;
use rates::RateLimits;

pub(super) mod connections;
pub(super) mod memory;
pub(super) mod rates;

/// Connections to the metrics port that are served at once. Monitoring works even if all others are taken.
const MAX_METRICS_CONNECTIONS: usize = 8;

/// The permits of one proxy.
pub(super) struct ProxyLimits {
    pub(super) connections: Arc<Semaphore>,
    pub(super) metrics_connections: Arc<Semaphore>,
    pub(super) unauthenticated: Arc<UnauthenticatedConnections>,
    pub(super) callers: Arc<NameCounts>,
    pub(super) rates: RateLimits,
    pub(super) memory: BodyMemory,
}

impl ProxyLimits {
    pub(super) fn new(options: &ProxyOptions) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(options.max_connections)),
            metrics_connections: Arc::new(Semaphore::new(MAX_METRICS_CONNECTIONS)),
            unauthenticated: UnauthenticatedConnections::new(
                options.max_unauthenticated,
                options.max_unauthenticated_per_address,
            ),
            callers: Arc::default(),
            rates: RateLimits::new(options.rate, options.failed_attempts),
            memory: BodyMemory::new(options.body_memory, options.body_timeout),
        }
    }
}
