//! `GET /health`: whether the proxy can do its work and, in words without secrets, what is wrong. No token is needed,
//! so it tells nothing of what is stored or where.

use http::StatusCode;

use super::Proxy;
use super::answer::{Answer, json};
use crate::protocol::{Health, capability};
use crate::store::Store;

/// `id`: the request's, for the log.
pub async fn get<S: Store>(proxy: &Proxy<S>, id: &str) -> Answer {
    // A delta is built on a mark, which only an exact index has.
    let strong: &[&str] = if S::STRONG { &[capability::STRONG_INDEX, capability::DELTA] } else { &[] };
    let capabilities = [
        capability::HONEST_412,
        capability::INDEX_ETAG,
        capability::EVENTS,
        capability::HTTP_PRECONDITIONS,
        capability::ENCODED_SLASH,
        capability::BATCH,
    ];
    let versions = proxy.store.keeps_versions().then_some(capability::VERSIONS);
    let (code, status, storage, detail) = match proxy.store.health().await {
        Ok(()) => (StatusCode::OK, "ok", "connected", None),
        Err(e) => {
            tracing::error!(id, "{e}");
            proxy.metrics.store_errors.inc();
            (StatusCode::SERVICE_UNAVAILABLE, "error", "disconnected", Some(e.without_places()))
        }
    };
    let free = proxy.store.free_bytes().filter(|free| *free < proxy.options.low_space);
    let warnings = free.map(|free| format!("the disk is nearly full: {} MiB are free", free >> 20));
    let health = Health {
        status: status.to_owned(),
        storage: storage.to_owned(),
        capabilities: capabilities.iter().chain(strong).chain(versions.as_ref()).map(|c| (*c).to_owned()).collect(),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        detail,
        warnings: warnings.into_iter().collect(),
    };
    json(code, &health)
}
