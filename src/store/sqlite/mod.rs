//! A durable store in one directory: entries and small bodies in SQLite, large bodies in files.
//!
//! A write is acknowledged when it is on the medium (WAL, `synchronous=FULL`). One thread writes, in groups. Readers have
//! their own connections and do not wait for it.

pub mod upkeep;

mod core;
mod history;
mod read;
mod records;
mod schema;
mod store;
mod versions;
mod writer;

pub use core::SqliteSettings;
pub use records::SqliteRecords;
pub use store::SqliteStore;
