//! The proxy's store on S3: its settings from the environment, and opening it.

use std::time::Duration;

use anyhow::Context;

use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::store::s3::{EtagQuotes, RepairReport, S3Options};
use crate::store::{S3Store, StoreError};

/// Wait before the index is compared with the files again after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(15);

/// The settings, under the names that Memory Proxies share. `None` if `S3_BUCKET` is not set. An error never shows a
/// secret.
pub(crate) fn options(app: &App) -> Result<Option<S3Options>, CommandFailure> {
    let set = |name: &str| app.machine.env.get(name).map(|v| v.trim()).filter(|v| !v.is_empty());
    let Some(bucket) = set("S3_BUCKET") else { return Ok(None) };
    let wrong = |why: String| CommandFailure::new(Exit::Usage, why);
    let needed = |name: &str| {
        set(name).ok_or_else(|| wrong(format!("S3_BUCKET is set, but {name} is not; a proxy on S3 needs both keys")))
    };
    let access_key_id = needed("AWS_ACCESS_KEY_ID")?;
    let secret = needed("AWS_SECRET_ACCESS_KEY")?.to_owned();
    let mut options = S3Options::new(bucket, access_key_id, secret.into(), app.dirs.proxy.join("spool"));
    if let Some(prefix) = set("S3_PREFIX") {
        prefix.clone_into(&mut options.prefix);
    }
    if let Some(region) = set("AWS_REGION") {
        region.clone_into(&mut options.region);
    }
    options.endpoint = set("S3_ENDPOINT_URL").map(str::to_owned);
    options.session_token = set("AWS_SESSION_TOKEN").map(|token| token.to_owned().into());
    options.etag_quotes = match set("S3_ETAG_QUOTES") {
        None | Some("keep") => EtagQuotes::Keep,
        Some("strip") => EtagQuotes::Strip,
        Some(other) => return Err(wrong(format!("S3_ETAG_QUOTES is {other:?}; it is `keep` or `strip`"))),
    };
    options.allow_http = match set("S3_ALLOW_HTTP") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(wrong(format!("S3_ALLOW_HTTP is {other:?}; it is `true` or `false`"))),
    };
    Ok(Some(options))
}

/// Opens the store and leaves its index as it is.
pub(crate) async fn connect(options: &S3Options) -> anyhow::Result<S3Store> {
    let place = || {
        let endpoint = options.endpoint.as_deref().unwrap_or("Amazon S3");
        format!("bucket {} at {endpoint} (S3_BUCKET, S3_ENDPOINT_URL)", options.bucket)
    };
    S3Store::open(options).await.with_context(place)
}

/// Opens the store for serving. A background task repairs the index, because the last process may have crashed.
pub(crate) async fn open(options: &S3Options) -> anyhow::Result<S3Store> {
    let store = connect(options).await?;
    let (repaired, first) = (store.clone(), store.repair_after_crash());
    tokio::spawn(async move {
        let mut outcome = first.await;
        // New namespaces cannot begin until this has succeeded.
        while let Err(e) = &outcome {
            tracing::error!("the index could not be compared with the files: {e}");
            if matches!(e, StoreError::S3Denied(_)) {
                return;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
            outcome = repaired.repair_after_crash().await;
        }
        for (namespace, report) in outcome.iter().flatten().filter(|(_, report)| !report.is_nothing()) {
            let RepairReport { added, corrected, dropped, .. } = report;
            tracing::warn!(
                "the index of {} was repaired: {} added, {} corrected, {} dropped",
                namespace_text(namespace),
                added.len(),
                corrected.len(),
                dropped.len()
            );
        }
    });
    Ok(store)
}

/// A namespace in a sentence.
pub(crate) fn namespace_text(namespace: &str) -> String {
    if namespace.is_empty() { "flat".to_owned() } else { format!("namespace {namespace}") }
}
