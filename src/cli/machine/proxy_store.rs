//! The store of this machine's proxy: a directory, or the S3 bucket that the environment names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::s3_store;
use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::store::s3::S3Options;
use crate::store::sqlite::{SqliteRecords, SqliteStore};
use crate::store::{PrivateRecord, RecordStore, S3Store, StoreError};

pub(crate) enum StoreLocation {
    Dir(PathBuf),
    Bucket(Box<S3Options>),
}

impl StoreLocation {
    /// The directory `asked`, else the bucket of the environment, else the usual directory. Refuses both at once.
    pub(crate) fn find(app: &App, asked: Option<&Path>) -> anyhow::Result<Self> {
        match (s3_store::options(app)?, asked) {
            (Some(_), Some(dir)) => {
                let dir = dir.display();
                let why = format!(
                    "the store is to be {dir} (--store, MEMSYNC_STORE) and an S3 bucket (S3_BUCKET); unset one"
                );
                Err(CommandFailure::new(Exit::Usage, why).into())
            }
            (Some(bucket), None) => Ok(Self::Bucket(Box::new(bucket))),
            (None, dir) => Ok(Self::Dir(dir.map_or_else(|| app.dirs.proxy.clone(), Path::to_owned))),
        }
    }
}

/// Opens the store in a directory for serving.
pub(crate) fn open_sqlite(dir: &Path) -> anyhow::Result<Arc<SqliteStore>> {
    Ok(Arc::new(SqliteStore::open(dir)?))
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

/// Opens the private records of the store.
pub(crate) async fn open_records(location: &StoreLocation, missing: MissingStore) -> anyhow::Result<StoreRecords> {
    match (location, missing) {
        (StoreLocation::Bucket(options), _) => Ok(StoreRecords::S3(Box::new(s3_store::connect(options).await?))),
        (StoreLocation::Dir(dir), MissingStore::Create) => {
            Ok(StoreRecords::Sqlite(SqliteRecords::open_or_create(dir)?))
        }
        (StoreLocation::Dir(dir), MissingStore::Refuse) => {
            Ok(StoreRecords::Sqlite(records_in(dir)?.ok_or_else(|| {
                let why = "there is no store; `memsync key create` makes one, or give its directory with --store";
                CommandFailure::new(Exit::Error, format!("{}: {why}", dir.display()))
            })?))
        }
    }
}

/// The private records of the store in `dir`. `None` if there is no store.
pub(crate) fn records_in(dir: &Path) -> anyhow::Result<Option<SqliteRecords>> {
    Ok(SqliteRecords::open(dir)?)
}
