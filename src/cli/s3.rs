//! The proxy's store on S3: its settings from the environment, and `memsync reindex`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::app::App;
use super::exit::{Exit, Failure};
use super::serve::runtime;
use crate::path::RelPath;
use crate::store::s3::{EtagQuotes, RepairReport, S3Options};
use crate::store::{S3Store, StoreError};

/// When the index could not be compared with the files it is tried again after this time.
const AGAIN: Duration = Duration::from_secs(15);

/// The settings, by the names that Memory Proxies have in common; `None` where `S3_BUCKET` is not set.
///
/// # Errors
/// What is missing or makes no sense. Never a value of a secret.
pub fn options(app: &App) -> Result<Option<S3Options>, Failure> {
    let set = |name: &str| app.around.env.get(name).map(|v| v.trim()).filter(|v| !v.is_empty());
    let Some(bucket) = set("S3_BUCKET") else { return Ok(None) };
    let wrong = |why: String| Failure::new(Exit::Usage, why);
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

/// Opens the store, and has its index mended beside the serving: the last start may have ended in a crash.
///
/// # Errors
/// What the store says, with the place.
pub async fn open(options: &S3Options) -> anyhow::Result<S3Store> {
    let store = connect(options).await?;
    let (mending, first) = (store.clone(), store.repair_after_crash());
    tokio::spawn(async move {
        let mut mended = first.await;
        // No namespace can begin before it has come to an end.
        while let Err(e) = &mended {
            tracing::error!("the index could not be compared with the files: {e}");
            if matches!(e, StoreError::S3Denied(_)) {
                return;
            }
            tokio::time::sleep(AGAIN).await;
            mended = mending.repair_after_crash().await;
        }
        for (ns, mended) in mended.iter().flatten().filter(|(_, mended)| !mended.is_nothing()) {
            let RepairReport { added, corrected, dropped, .. } = mended;
            tracing::warn!(
                "the index of {} was mended: {} added, {} corrected, {} dropped",
                shown(ns),
                added.len(),
                corrected.len(),
                dropped.len()
            );
        }
    });
    Ok(store)
}

/// Opens the store and leaves its index as it is.
///
/// # Errors
/// What the store says, with the place.
pub async fn connect(options: &S3Options) -> anyhow::Result<S3Store> {
    let place = || {
        let endpoint = options.endpoint.as_deref().unwrap_or("Amazon S3");
        format!("bucket {} at {endpoint} (S3_BUCKET, S3_ENDPOINT_URL)", options.bucket)
    };
    S3Store::open(options).await.with_context(place)
}

/// What `memsync reindex` mended in one namespace.
#[derive(Serialize)]
struct Namespace<'a> {
    namespace: &'a str,
    files: usize,
    added: &'a [RelPath],
    corrected: &'a [RelPath],
    dropped: &'a [RelPath],
    left_out: &'a [String],
}

/// `memsync reindex`.
///
/// # Errors
/// Where no bucket is named, and what the store says.
pub fn reindex(app: &App) -> anyhow::Result<Exit> {
    let Some(options) = options(app)? else {
        let why = "reindex is for a proxy on S3: set S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY as for \
                   `memsync serve`; the index of a store in a directory needs no mending";
        return Err(Failure::new(Exit::Usage, why).into());
    };
    let (store, mended) = runtime()?.block_on(async {
        let store = connect(&options).await?;
        let mended = store.reindex().await?;
        Ok::<_, anyhow::Error>((store, mended))
    })?;
    app.answer(&report(&mended), |out, namespaces| people(out, store.url(), namespaces))?;
    Ok(Exit::Done)
}

fn report(mended: &BTreeMap<String, RepairReport>) -> Vec<Namespace<'_>> {
    mended
        .iter()
        .map(|(namespace, m)| Namespace {
            namespace,
            files: m.blobs,
            added: &m.added,
            corrected: &m.corrected,
            dropped: &m.dropped,
            left_out: &m.left_out,
        })
        .collect()
}

fn people(out: &mut dyn Write, place: &str, namespaces: &[Namespace<'_>]) -> io::Result<()> {
    for Namespace { namespace, files, added, corrected, dropped, left_out } in namespaces {
        for (what, paths) in [("added", added), ("corrected", corrected), ("dropped", dropped)] {
            for path in *paths {
                writeln!(out, "{what:<10} {path}")?;
            }
        }
        for name in *left_out {
            writeln!(out, "left out   {name:?} (no name that a client could use)")?;
        }
        let [added, corrected, dropped] = [added, corrected, dropped].map(|paths| paths.len());
        let ns = shown(namespace);
        if added + corrected + dropped == 0 {
            writeln!(out, "{place}, {ns}: the index is right ({files} files).")?;
        } else {
            writeln!(out, "{place}, {ns}: {added} added, {corrected} corrected, {dropped} dropped ({files} files).")?;
        }
    }
    Ok(())
}

/// A namespace in a sentence.
fn shown(namespace: &str) -> String {
    if namespace.is_empty() { "flat".to_owned() } else { format!("namespace {namespace}") }
}
