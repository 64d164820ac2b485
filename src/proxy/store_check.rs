//! [`StoreCheck`]: checks for `GET /health` that the storage works.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::store::{Store, StoreError};

/// How long a finding is reused. Anyone may ask, and a check may cost money.
const MAX_AGE: Duration = Duration::from_secs(2);
/// A storage that takes longer does not work.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The free bytes if the storage works and knows them, or the reason why it does not work. The reason is public.
pub(crate) type StoreFinding = Result<Option<u64>, String>;

/// The last finding, shared by all requests.
pub(crate) struct StoreCheck<S> {
    store: Arc<S>,
    failures: Counter,
    last: Arc<Mutex<LastCheck>>,
}

#[derive(Default)]
struct LastCheck {
    finding: Option<(Instant, StoreFinding)>,
    /// A check that has not returned. No other begins meanwhile: on a dead disk each would keep a thread.
    running: Option<JoinHandle<Result<Option<u64>, StoreError>>>,
}

impl<S: Store> StoreCheck<S> {
    /// `failures` counts the checks that fail.
    pub(crate) fn new(store: Arc<S>, failures: Counter) -> Self {
        Self { store, failures, last: Arc::default() }
    }

    /// The finding, at most [`MAX_AGE`] old and after at most twice [`TIMEOUT`]. `request_id` is for the log.
    pub(crate) async fn finding(&self, request_id: &str) -> StoreFinding {
        let mut last = self.last.clone().lock_owned().await;
        if let Some((at, finding)) = &last.finding
            && at.elapsed() < MAX_AGE
        {
            return finding.clone();
        }
        let (store, failures, id) = (self.store.clone(), self.failures.clone(), request_id.to_owned());
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
