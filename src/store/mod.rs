//! The proxy's storage: trait [`Store`], with one implementation in SQLite and one on S3.
//!
//! A store decides every conditional write in one step, so exactly one of several racing writers wins. It acknowledges a
//! write only when the index has it, too. Paths arrive validated; wire format, authentication and limits are the
//! proxy's. [`s3`] describes the one guarantee that a bucket with several proxies weakens.

pub mod copy;
pub mod s3;
pub mod sqlite;

mod api;
pub(crate) mod body;
mod error;
mod meta;
pub(crate) mod rules;
mod types;

pub use api::{RecordStore, Store};
pub use body::BodyWriter;
pub use error::{NamespaceName, StoreError};
pub use meta::{BlobMeta, stored_size};
pub use s3::S3Store;
pub use sqlite::SqliteStore;
pub(crate) use types::{BACKLOG, lock, new_id, run_blocking, strong_state};
pub use types::{
    BatchWrite, BlobBody, BlobChange, BlobChanges, BlobVersion, CLOCK_RECORD, DeleteOutcome, GetOutcome, ImportOutcome,
    IndexCursor, IndexEntry, IndexSnapshot, IndexState, IndexTraffic, KEY_USES_RECORD, KEYS_RECORD, PrivateRecord,
    PutOutcome, Retention, StoredBlob, SweepReport, WallClock, WriteCondition, WriteOutcome, system_clock,
};
