//! [`SqliteRecords`]: the private records for commands that run while another process may serve the store.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::{PrivateRecord, RecordStore, StoreError};
use super::records;
use super::schema::{self, DATABASE};
use super::spool::run_blocking;
use super::store::SqliteStore;

/// The records of a store that another process may be serving.
#[derive(Debug, Clone)]
pub struct SqliteRecords(PathBuf);

impl SqliteRecords {
    /// Opens the records of the store in `dir`; `None` if there is no store. A store of an older format is migrated. Fails
    /// as [`SqliteStore::open`] does. Blocks.
    pub fn open(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(DATABASE);
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io(&path, &e)),
            Ok(_) => {}
        }
        if !schema::is_current(&path)? {
            drop(SqliteStore::open(dir)?);
        }
        Ok(Some(Self(dir.to_owned())))
    }

    /// As [`SqliteRecords::open`], but creates a missing store.
    pub fn open_or_create(dir: &Path) -> Result<Self, StoreError> {
        if let Some(records) = Self::open(dir)? {
            return Ok(records);
        }
        drop(SqliteStore::open(dir)?);
        Ok(Self(dir.to_owned()))
    }
}

impl RecordStore for SqliteRecords {
    async fn read_record(&self, name: &'static str) -> Result<Option<PrivateRecord>, StoreError> {
        let dir = self.0.clone();
        run_blocking(move || records::read(&records::open(&dir)?, name).map_err(StoreError::database)).await?
    }

    async fn write_record(
        &self,
        name: &'static str,
        expected: Option<&str>,
        content: Bytes,
    ) -> Result<bool, StoreError> {
        let (dir, expected) = (self.0.clone(), expected.map(str::to_owned));
        run_blocking(move || records::write(records::open(&dir)?, name, expected.as_deref(), &content)).await?
    }
}
