//! `GET /health`: whether the proxy can do its work and, in words without secrets, what is wrong. No token is needed,
//! so it tells nothing of what is stored or where.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::Proxy;
use super::answer::{Answer, json};
use crate::protocol::{Health, capability};
use crate::store::{Store, StoreError};

/// How long a finding is good for: whoever asks may be anybody, and asking the storage may cost.
const GOOD_FOR: Duration = Duration::from_secs(2);
/// A storage that says nothing for so long is no use.
const PATIENCE: Duration = Duration::from_secs(3);

/// With less free than this, bytes, the disk counts as full.
const FULL: u64 = 1024 * 1024;

/// What the storage was last found to be: of use, with the bytes that are free where it knows, or why not, fit for
/// anybody to read.
type Finding = Result<Option<u64>, String>;

/// What is known of the storage.
#[derive(Default)]
struct Known {
    last: Option<(Instant, Finding)>,
    /// A look that has not come back. While it is away none other begins: on a dead disk each would keep a thread.
    look: Option<JoinHandle<Result<Option<u64>, StoreError>>>,
}

/// The last finding, shared by all who ask.
#[derive(Default)]
pub struct Checkup(Arc<Mutex<Known>>);

impl Checkup {
    /// The finding, at most [`GOOD_FOR`] old and after at most twice [`PATIENCE`].
    async fn found<S: Store>(&self, proxy: &Proxy<S>, id: &str) -> Finding {
        let mut known = self.0.clone().lock_owned().await;
        if let Some((at, finding)) = &known.last
            && at.elapsed() < GOOD_FOR
        {
            return finding.clone();
        }
        let (store, failed, id) = (proxy.store.clone(), proxy.metrics.failed_checkups.clone(), id.to_owned());
        // It goes on when who asked has hung up: else many who do would all ask the storage.
        let asking = tokio::spawn(async move {
            let look = known.look.get_or_insert_with(|| tokio::spawn(look(store)));
            let looked = timeout(PATIENCE, look).await;
            if looked.is_ok() {
                known.look = None;
            }
            let finding = match looked.map(|looked| looked.unwrap_or(Err(StoreError::Closed))) {
                Ok(Ok(free)) => Ok(free),
                Ok(Err(e)) => {
                    tracing::error!(id, "{e}");
                    Err(e.public_message())
                }
                Err(_) => {
                    let why = format!("the storage has not answered for {} s", PATIENCE.as_secs());
                    tracing::error!(id, "{why}");
                    Err(why)
                }
            };
            if finding.is_err() {
                failed.inc();
            }
            known.last = Some((Instant::now(), finding.clone()));
            finding
        });
        asking.await.unwrap_or_else(|_| Err("the proxy could not look at its storage".to_owned()))
    }
}

async fn look<S: Store>(store: Arc<S>) -> Result<Option<u64>, StoreError> {
    store.health().await?;
    // A disk that is gone may never answer, and the call would hold up all that its thread does.
    tokio::task::spawn_blocking(move || store.free_bytes()).await.map_err(|_| StoreError::Closed)
}

/// `id`: the request's, for the log.
pub async fn get<S: Store>(proxy: &Proxy<S>, id: &str) -> Answer {
    // Only an exact index has the mark that a delta can be built on; others have their ETag.
    let index: &[&str] =
        if S::STRONG { &[capability::STRONG_INDEX, capability::DELTA] } else { &[capability::ETAG_DELTA] };
    let capabilities = [
        capability::HONEST_412,
        capability::INDEX_ETAG,
        capability::EVENTS,
        capability::HTTP_PRECONDITIONS,
        capability::ENCODED_SLASH,
        capability::BATCH,
        capability::ENCODING,
    ];
    let versions = proxy.store.keeps_versions().then_some(capability::VERSIONS);
    let (code, status, storage, free, detail) = match proxy.checkup.found(proxy, id).await {
        Ok(free) => (StatusCode::OK, "ok", "connected", free, None),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "error", "disconnected", None, Some(why)),
    };
    let is_full = status == "ok" && (proxy.metrics.is_disk_full() || free.is_some_and(|free| free < FULL));
    let (status, detail) = if is_full {
        ("degraded", Some("the disk is full: files can be read and not written".to_owned()))
    } else {
        (status, detail)
    };
    let warnings = free
        .filter(|free| *free < proxy.options.low_space)
        .map(|free| format!("the disk is nearly full: {} MiB are free", free >> 20));
    let health = Health {
        status: status.to_owned(),
        storage: storage.to_owned(),
        capabilities: capabilities.iter().chain(index).chain(versions.as_ref()).map(|c| (*c).to_owned()).collect(),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        detail,
        warnings: warnings.into_iter().collect(),
    };
    json(code, &health)
}
