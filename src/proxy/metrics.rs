//! `GET /metrics`: what the proxy has done so far, for Prometheus. Numbers only: no path, no name, no token.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::answer::{Answer, Refusal, with_body};
use crate::store::{IndexTraffic, StoreError};

/// Upper bounds of the latencies counted, seconds.
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

/// The numbers of one proxy.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<RouteLabel, Histogram, fn() -> Histogram>,
    /// Bytes of HTTP, heads and all, before encryption.
    pub received: Counter,
    pub sent: Counter,
    pub connections: Gauge,
    pub event_streams: Gauge,
    pub index_bytes: Gauge,
    pub index_files: Gauge,
    pub index_written: Counter,
    pub index_deltas: Counter,
    index_reads: Counter,
    index_writes: Counter,
    writes: Counter,
    /// 1 after a write that failed because the disk is full, until another succeeds.
    disk_full: Gauge,
    pub store_errors: Counter,
    pub failed_checkups: Counter,
    pub refused_tokens: Counter,
    pub throttled: Counter,
}

impl Metrics {
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("memsync");
        let latency =
            Family::<RouteLabel, Histogram, fn() -> Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register("requests", "Requests answered", requests.clone());
        registry.register("request_duration_seconds", "From a request's head to its answer's head", latency.clone());
        let mut counter = |name: &str, about: &str| {
            let counter = Counter::<u64, AtomicU64>::default();
            registry.register(name, about, counter.clone());
            counter
        };
        let received = counter("received_bytes", "Bytes read from clients, before encryption");
        let sent = counter("sent_bytes", "Bytes written to clients, before encryption");
        let index_written = counter("index_renderings", "Times that a whole index was read and written as JSON");
        let index_deltas = counter("index_deltas", "Answers with no more of an index than what had changed");
        let index_reads =
            counter("store_index_reads", "Times that the store was asked for an index object; 0 without S3");
        let index_writes = counter("store_index_writes", "Index objects sent to the store; 0 without S3");
        let store_errors = counter("store_errors", "Requests that failed because the storage did");
        let failed_checkups = counter("failed_checkups", "Times that /health found the storage to be of no use");
        let writes = counter("writes", "Blobs written or deleted");
        let refused_tokens = counter("auth_failures", "Requests whose token was not valid");
        let throttled = counter("throttled", "Requests answered with 429");
        let mut gauge = |name: &str, about: &str| {
            let gauge = Gauge::default();
            registry.register(name, about, gauge.clone());
            gauge
        };
        let connections = gauge("connections", "Connections open now");
        let event_streams = gauge("event_streams", "Event streams open now");
        let disk_full =
            gauge("disk_full", "1 after a write that failed because the disk is full, until another succeeds");
        let index_bytes = gauge("index_bytes", "Size of the last whole index as JSON");
        let index_files = gauge("index_files", "Entries of the last whole index, tombstones included");
        Arc::new(Self {
            registry,
            requests,
            latency,
            received,
            sent,
            connections,
            event_streams,
            index_bytes,
            index_files,
            index_written,
            index_deltas,
            index_reads,
            index_writes,
            writes,
            disk_full,
            store_errors,
            failed_checkups,
            refused_tokens,
            throttled,
        })
    }

    /// Counts one answer.
    pub fn answered(&self, route: &'static str, status: StatusCode, took: Duration) {
        self.requests.get_or_create(&RequestLabels { route, status: status.as_u16().into() }).inc();
        self.latency.get_or_create(&RouteLabel { route }).observe(took.as_secs_f64());
    }

    /// Counts what was refused and says why.
    pub fn refused(&self, refusal: &Refusal) {
        match refusal {
            Refusal::Store(e) => {
                self.store_errors.inc();
                if matches!(e, StoreError::Full(_)) {
                    self.disk_full.set(1);
                }
            }
            Refusal::Unauthorized { wrong: true } => drop(self.refused_tokens.inc()),
            Refusal::TooOften(_) | Refusal::TooManyConnections => drop(self.throttled.inc()),
            _ => {}
        }
    }

    /// So many writes changed something.
    pub fn wrote(&self, writes: u64) {
        self.writes.inc_by(writes);
        if writes > 0 {
            self.disk_full.set(0);
        }
    }

    /// True if the last write failed because the disk is full.
    pub fn is_disk_full(&self) -> bool {
        self.disk_full.get() == 1
    }

    /// All of it as text, with what the store counts itself.
    pub fn answer(&self, traffic: IndexTraffic) -> Answer {
        self.index_reads.inner().store(traffic.reads, Ordering::Relaxed);
        self.index_writes.inner().store(traffic.writes, Ordering::Relaxed);
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => with_body(StatusCode::OK, CONTENT_TYPE, text.into()),
            Err(fmt::Error) => super::answer::empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// A number for a gauge, which can also be negative.
pub fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// One more of something, as long as this lives.
pub struct Present(Gauge);

impl Present {
    pub fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.dec();
    }
}
