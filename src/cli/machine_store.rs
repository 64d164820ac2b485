//! The store of this machine, for whoever serves it and for whoever changes its users and keys: a directory, or an S3
//! bucket that the environment names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::app::App;
use super::exit::{Exit, Failure};
use super::s3;
use crate::store::sqlite::{SqliteRecords, SqliteStore};
use crate::store::{PrivateRecord, RecordStore, S3Store, Store, StoreError};

/// Where the store is.
pub enum Place {
    Dir(PathBuf),
    Bucket(Box<crate::store::s3::S3Options>),
}

/// Where the store is: as it was asked for, else the bucket that the environment names, else the usual directory.
///
/// # Errors
/// When both are asked for, or the environment names half a bucket.
pub fn place(app: &App, asked: Option<&Path>) -> anyhow::Result<Place> {
    match (s3::options(app)?, asked) {
        (Some(_), Some(dir)) => {
            let dir = dir.display();
            let why =
                format!("the store is to be {dir} (--store, MEMSYNC_STORE) and an S3 bucket (S3_BUCKET); unset one");
            Err(Failure::new(Exit::Usage, why).into())
        }
        (Some(bucket), None) => Ok(Place::Bucket(Box::new(bucket))),
        (None, dir) => Ok(Place::Dir(dir.map_or_else(|| app.dirs.proxy.clone(), Path::to_owned))),
    }
}

/// Opens the embedded store for serving.
///
/// # Errors
/// What the store says.
pub fn open(dir: &Path) -> anyhow::Result<Arc<SqliteStore>> {
    Ok(Arc::new(SqliteStore::open(dir)?))
}

/// The private records of a store, beside a proxy that may be serving it.
pub enum MachineRecords {
    Embedded(SqliteRecords),
    S3(Box<S3Store>),
}

impl RecordStore for MachineRecords {
    async fn read_record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        match self {
            Self::Embedded(beside) => beside.read_record(name).await,
            Self::S3(store) => store.record(name).await,
        }
    }

    async fn write_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> Result<bool, StoreError> {
        match self {
            Self::Embedded(beside) => beside.write_record(name, expected, content).await,
            Self::S3(store) => store.put_record(name, expected, content).await,
        }
    }
}

/// What to do where there is no store yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Refuse,
    Make,
}

/// The private records of the store, also while a proxy serves it.
///
/// # Errors
/// Where there is no store and none is to be made, or as the store says.
pub async fn records(place: &Place, missing: Missing) -> anyhow::Result<MachineRecords> {
    match (place, missing) {
        (Place::Bucket(options), _) => Ok(MachineRecords::S3(Box::new(s3::connect(options).await?))),
        (Place::Dir(dir), Missing::Make) => Ok(MachineRecords::Embedded(SqliteRecords::open_or_create(dir)?)),
        (Place::Dir(dir), Missing::Refuse) => {
            Ok(MachineRecords::Embedded(SqliteRecords::open(dir)?.ok_or_else(|| {
                let why =
                    "there is no store; `memsync key create` makes one, or give --store the directory that one is in";
                Failure::new(Exit::Error, format!("{}: {why}", dir.display()))
            })?))
        }
    }
}

/// [`records`] of the store in `dir`, or `None` where there is none.
///
/// # Errors
/// As the store says.
pub fn records_if_any(dir: &Path) -> anyhow::Result<Option<SqliteRecords>> {
    Ok(SqliteRecords::open(dir)?)
}
