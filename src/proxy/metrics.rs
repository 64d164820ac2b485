//! `GET /metrics`: counts for Prometheus. They contain no path, no name and no token.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::error::ApiError;
use super::response::{HttpResponse, empty, with_body};
use crate::store::{IndexTraffic, StoreError};

/// Upper bounds of the latency buckets, seconds.
const BUCKETS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
/// OpenMetrics 1.0, which Prometheus has read since 2.5.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u64,
}

type LatencyFamily = Family<RouteLabel, Histogram, fn() -> Histogram>;

/// The counts of one proxy.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: LatencyFamily,
    pub received: Counter,
    pub sent: Counter,
    index_renderings: Counter,
    pub index_deltas: Counter,
    index_reads: Counter,
    index_writes: Counter,
    pub store_errors: Counter,
    pub failed_checks: Counter,
    writes: Counter,
    auth_failures: Counter,
    throttled: Counter,
    pub connections: Gauge,
    pub event_streams: Gauge,
    /// 1 after a write that failed because the disk is full, until another succeeds.
    disk_full: Gauge,
    index_bytes: Gauge,
    index_files: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("memsync");
        let requests = register(&mut registry, "requests", "Requests answered");
        let latency = LatencyFamily::new_with_constructor(|| Histogram::new(BUCKETS));
        registry.register("request_duration_seconds", "From a request's head to its response's head", latency.clone());
        let reg = &mut registry;
        Arc::new(Self {
            requests,
            latency,
            received: register(reg, "received_bytes", "Bytes read from clients, before encryption"),
            sent: register(reg, "sent_bytes", "Bytes written to clients, before encryption"),
            index_renderings: register(reg, "index_renderings", "Whole indexes read and written as JSON"),
            index_deltas: register(reg, "index_deltas", "Responses with only the changes of an index"),
            index_reads: register(reg, "store_index_reads", "Requests to S3 for an index object; 0 on other stores"),
            index_writes: register(reg, "store_index_writes", "Index objects sent to S3; 0 on other stores"),
            store_errors: register(reg, "store_errors", "Requests that failed because the storage did"),
            failed_checks: register(reg, "failed_checkups", "Checks of /health that the storage failed"),
            writes: register(reg, "writes", "Blobs written or deleted"),
            auth_failures: register(reg, "auth_failures", "Requests with an invalid token"),
            throttled: register(reg, "throttled", "Requests answered with 429"),
            connections: register(reg, "connections", "Connections open now"),
            event_streams: register(reg, "event_streams", "Event streams open now"),
            disk_full: register(reg, "disk_full", "1 if the last write failed because the disk is full"),
            index_bytes: register(reg, "index_bytes", "Size of the last whole index as JSON"),
            index_files: register(reg, "index_files", "Entries of the last whole index, tombstones included"),
            registry,
        })
    }

    pub(crate) fn count_response(&self, route: &'static str, status: StatusCode, duration: Duration) {
        self.requests.get_or_create(&RequestLabels { route, status: status.as_u16().into() }).inc();
        self.latency.get_or_create(&RouteLabel { route }).observe(duration.as_secs_f64());
    }

    pub(crate) fn count_error(&self, error: &ApiError) {
        match error {
            ApiError::Store(e) => {
                self.store_errors.inc();
                if matches!(e, StoreError::Full(_)) {
                    self.disk_full.set(1);
                }
            }
            ApiError::Unauthorized { token_shown: true } => drop(self.auth_failures.inc()),
            ApiError::RateLimited(_) | ApiError::TooManyConnections => drop(self.throttled.inc()),
            _ => {}
        }
    }

    /// Counts writes that changed something.
    pub(crate) fn count_writes(&self, writes: u64) {
        self.writes.inc_by(writes);
        if writes > 0 {
            self.disk_full.set(0);
        }
    }

    pub(crate) fn count_whole_index(&self, files: usize, bytes: usize) {
        self.index_renderings.inc();
        self.index_files.set(gauge_value(files));
        self.index_bytes.set(gauge_value(bytes));
    }

    /// True if the last write failed because the disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full.get() == 1
    }

    /// All counts as text. `traffic` is counted by the store.
    pub(crate) fn to_response(&self, traffic: IndexTraffic) -> HttpResponse {
        self.index_reads.inner().store(traffic.reads, Ordering::Relaxed);
        self.index_writes.inner().store(traffic.writes, Ordering::Relaxed);
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => with_body(StatusCode::OK, CONTENT_TYPE, text.into()),
            Err(fmt::Error) => empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn gauge_value(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Raises a gauge by one until it is dropped.
pub(crate) struct GaugeGuard(Gauge);

impl GaugeGuard {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
