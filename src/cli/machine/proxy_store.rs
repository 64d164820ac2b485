//! The store of this machine's proxy: a directory, or the S3 bucket that the environment names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;

use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::store::s3::{EtagQuotes, RepairReport, S3Options};
use crate::store::sqlite::SqliteRecords;
use crate::store::{PrivateRecord, RecordStore, S3Store, StoreError};

/// Wait before the index is compared with the files again after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(15);

pub(crate) enum StoreLocation {
    Dir(PathBuf),
    Bucket(Box<S3Options>),
}

impl StoreLocation {
    /// The directory `asked`, else the bucket of the environment, else the usual directory. Refuses both at once.
    pub(crate) fn find(app: &App, asked: Option<&Path>) -> anyhow::Result<Self> {
        match (bucket_options(app)?, asked) {
            (Some(_), Some(dir)) => {
                let dir = dir.display();
                let why = format!(
                    "the store is to be {dir} (--store, MEMSYNC_STORE) and an S3 bucket (S3_BUCKET); unset one"
                );
                Err(CommandFailure::usage(why).into())
            }
            (Some(bucket), None) => Ok(Self::Bucket(Box::new(bucket))),
            (None, dir) => Ok(Self::Dir(dir.map_or_else(|| app.dirs.proxy.clone(), Path::to_owned))),
        }
    }
}

/// The private records of a store. A proxy may serve the store at the same time.
pub(crate) enum StoreRecords {
    Sqlite(SqliteRecords),
    S3(Box<S3Store>),
}

impl RecordStore for StoreRecords {
    async fn record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        match self {
            Self::Sqlite(records) => records.record(name).await,
            Self::S3(store) => store.record(name).await,
        }
    }

    async fn put_record(&self, name: &'static str, expected: Option<&str>, content: Bytes) -> Result<bool, StoreError> {
        match self {
            Self::Sqlite(records) => records.put_record(name, expected, content).await,
            Self::S3(store) => store.put_record(name, expected, content).await,
        }
    }
}

/// The reaction to a store that does not exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingStore {
    Refuse,
    Create,
}

/// Opens the private records of the store that [`StoreLocation::find`] finds.
pub(crate) async fn open_records(
    app: &App,
    asked: Option<&Path>,
    missing: MissingStore,
) -> anyhow::Result<StoreRecords> {
    let dir = match StoreLocation::find(app, asked)? {
        StoreLocation::Bucket(options) => return Ok(StoreRecords::S3(Box::new(connect_bucket(&options).await?))),
        StoreLocation::Dir(dir) => dir,
    };
    let records = match missing {
        MissingStore::Create => SqliteRecords::open_or_create(&dir)?,
        MissingStore::Refuse => SqliteRecords::open(&dir)?.ok_or_else(|| {
            let why = "there is no store; `memsync key create` makes one, or give its directory with --store";
            CommandFailure::new(Exit::Error, format!("{}: {why}", dir.display()))
        })?,
    };
    Ok(StoreRecords::Sqlite(records))
}

/// The settings of a store on S3, under the names that Memory Proxies share. `None` if `S3_BUCKET` is not set. An error never shows a
/// secret.
pub(crate) fn bucket_options(app: &App) -> Result<Option<S3Options>, CommandFailure> {
    let set = |name: &str| app.machine.env.get(name).map(|v| v.trim()).filter(|v| !v.is_empty());
    let Some(bucket) = set("S3_BUCKET") else { return Ok(None) };
    let wrong = |why: String| CommandFailure::usage(why);
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

/// Opens the store on S3 and leaves its index as it is.
pub(crate) async fn connect_bucket(options: &S3Options) -> anyhow::Result<S3Store> {
    let place = || {
        let endpoint = options.endpoint.as_deref().unwrap_or("Amazon S3");
        format!("bucket {} at {endpoint} (S3_BUCKET, S3_ENDPOINT_URL)", options.bucket)
    };
    S3Store::open(options).await.with_context(place)
}

/// Opens the store on S3 for serving. A background task repairs the index, because the last process may have crashed.
pub(crate) async fn open_bucket(options: &S3Options) -> anyhow::Result<S3Store> {
    let store = connect_bucket(options).await?;
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
