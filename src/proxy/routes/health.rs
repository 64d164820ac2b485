//! `GET /health`: reports if the proxy works, and the reason in words without secrets if it does not. It needs no token,
//! so it tells nothing about the files.

use http::StatusCode;

use crate::protocol::{Health, capability};
use crate::proxy::context::ServerState;
use crate::proxy::response::{HttpResponse, json};
use crate::store::Store;

/// With less free space, in bytes, the disk counts as full.
const DISK_FULL_BELOW: u64 = 1024 * 1024;

/// `id`: the request's, for the log.
pub(super) async fn get<S: Store>(state: &ServerState<S>, id: &str) -> HttpResponse {
    let (code, status, storage, free, detail) = match state.store_check.finding(id).await {
        Ok(free) => (StatusCode::OK, "ok", "connected", free, None),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "error", "disconnected", None, Some(why)),
    };
    let is_full = status == "ok" && (state.metrics.is_disk_full() || free.is_some_and(|free| free < DISK_FULL_BELOW));
    let (status, detail) = if is_full {
        ("degraded", Some("the disk is full: files can be read and not written".to_owned()))
    } else {
        (status, detail)
    };
    let warning = free
        .filter(|free| *free < state.options.low_space)
        .map(|free| format!("the disk is nearly full: {} MiB are free", free >> 20));
    let health = Health {
        status: status.to_owned(),
        storage: storage.to_owned(),
        capabilities: capabilities(&*state.store),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        detail,
        warnings: warning.into_iter().collect(),
    };
    json(code, &health)
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
