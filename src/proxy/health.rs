//! [`StoreCheck`]: answers `GET /health`. It checks that the storage works, and gives the reason in words without secrets
//! if it does not. It needs no token, so it tells nothing about the files.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::metrics::Metrics;
use super::response::{HttpResponse, json};
use crate::protocol::{Health, capability};
use crate::store::{Store, StoreError};

/// How long a finding is reused. Anyone may ask, and a check may cost money.
const MAX_AGE: Duration = Duration::from_secs(2);
/// A storage that takes longer does not work.
const TIMEOUT: Duration = Duration::from_secs(3);
/// With less free space, in bytes, the disk counts as full.
const DISK_FULL_BELOW: u64 = 1024 * 1024;

/// The free bytes if the storage works and knows them, or the reason why it does not work. The reason is public.
type StoreFinding = Result<Option<u64>, String>;

/// The last finding, shared by all requests.
pub(crate) struct StoreCheck<S> {
    store: Arc<S>,
    metrics: Arc<Metrics>,
    /// Less free space than this many bytes is a warning.
    low_space: u64,
    last: Arc<Mutex<LastCheck>>,
}

#[derive(Default)]
struct LastCheck {
    finding: Option<(Instant, StoreFinding)>,
    /// A check that has not returned. No other begins meanwhile: on a dead disk each would keep a thread.
    running: Option<JoinHandle<Result<Option<u64>, StoreError>>>,
}

impl<S: Store> StoreCheck<S> {
    pub(crate) fn new(store: Arc<S>, metrics: Arc<Metrics>, low_space: u64) -> Self {
        Self { store, metrics, low_space, last: Arc::default() }
    }

    /// The response to `GET /health`. `request_id` is for the log.
    pub(crate) async fn respond(&self, request_id: &str) -> HttpResponse {
        let (code, status, storage, free, detail) = match self.finding(request_id).await {
            Ok(free) => (StatusCode::OK, "ok", "connected", free, None),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "error", "disconnected", None, Some(why)),
        };
        let is_full =
            status == "ok" && (self.metrics.is_disk_full() || free.is_some_and(|free| free < DISK_FULL_BELOW));
        let (status, detail) = if is_full {
            ("degraded", Some("the disk is full: files can be read and not written".to_owned()))
        } else {
            (status, detail)
        };
        let warning = free
            .filter(|free| *free < self.low_space)
            .map(|free| format!("the disk is nearly full: {} MiB are free", free >> 20));
        let health = Health {
            status: status.to_owned(),
            storage: storage.to_owned(),
            capabilities: capabilities(&*self.store),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            detail,
            warnings: warning.into_iter().collect(),
        };
        json(code, &health)
    }

    /// The finding, at most [`MAX_AGE`] old and after at most twice [`TIMEOUT`].
    async fn finding(&self, request_id: &str) -> StoreFinding {
        let mut last = self.last.clone().lock_owned().await;
        if let Some((at, finding)) = &last.finding
            && at.elapsed() < MAX_AGE
        {
            return finding.clone();
        }
        let (store, failures, id) = (self.store.clone(), self.metrics.failed_checks.clone(), request_id.to_owned());
        // The check goes on if the request is cancelled. Otherwise many such requests would each start one.
        let check = tokio::spawn(async move {
            let running = last.running.get_or_insert_with(|| tokio::spawn(check(store)));
            let checked = timeout(TIMEOUT, running).await;
            if checked.is_ok() {
                last.running = None;
            }
            let finding = match checked.map(|checked| checked.unwrap_or(Err(StoreError::Closed))) {
                Ok(Ok(free)) => Ok(free),
                Ok(Err(e)) => {
                    tracing::error!(id, "{e}");
                    Err(e.public_message())
                }
                Err(_) => {
                    let why = format!("the storage has not answered for {} s", TIMEOUT.as_secs());
                    tracing::error!(id, "{why}");
                    Err(why)
                }
            };
            if finding.is_err() {
                failures.inc();
            }
            last.finding = Some((Instant::now(), finding.clone()));
            finding
        });
        check.await.unwrap_or_else(|_| Err("the proxy could not check its storage".to_owned()))
    }
}

async fn check<S: Store>(store: Arc<S>) -> Result<Option<u64>, StoreError> {
    store.health().await?;
    // On a dead disk the call may never return, so it gets a thread of its own.
    tokio::task::spawn_blocking(move || store.free_bytes()).await.map_err(|_| StoreError::Closed)
}

fn capabilities<S: Store>(store: &S) -> Vec<String> {
    let common = [
        capability::HONEST_412,
        capability::INDEX_ETAG,
        capability::EVENTS,
        capability::HTTP_PRECONDITIONS,
        capability::ENCODED_SLASH,
        capability::BATCH,
        capability::ENCODING,
    ];
    // A delta starts from the mark of an exact index, or from the ETag of another.
    let index: &[&str] =
        if S::STRONG { &[capability::STRONG_INDEX, capability::DELTA] } else { &[capability::ETAG_DELTA] };
    let versions = store.keeps_versions().then_some(capability::VERSIONS);
    common.iter().chain(index).chain(versions.as_ref()).map(|name| (*name).to_owned()).collect()
}
