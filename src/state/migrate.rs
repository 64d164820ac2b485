//! Older versions of the container. A pure function migrates each one to the next.

use jiff::Timestamp;
use serde::Deserialize;

use super::notes::StoredNotes;
use super::stored::StoredEntry;
use super::types::StateHeader;

/// The session id for a container without one.
const MIGRATED_SESSION: &str = "migrated";

/// Version 0: a bare array of entries.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct VersionZero(pub Vec<StoredEntry>);

/// Version 1: a session and times.
#[derive(Deserialize)]
pub(super) struct VersionOne {
    session_id: String,
    created_at: Timestamp,
    modified_at: Timestamp,
    entries: Vec<StoredEntry>,
}

/// Version 2: bound to a folder and a remote.
#[derive(Deserialize)]
pub(super) struct VersionTwo {
    #[serde(flatten)]
    pub(super) header: StateHeader,
    pub(super) entries: Vec<StoredEntry>,
    /// Older containers have none.
    #[serde(default)]
    pub(super) uploads: Option<StoredNotes>,
}

impl VersionZero {
    /// `written`: time of the file's last write. No other time is known.
    pub(super) fn into_v1(self, written: Timestamp) -> VersionOne {
        VersionOne {
            session_id: MIGRATED_SESSION.to_owned(),
            created_at: written,
            modified_at: written,
            entries: self.0,
        }
    }
}

impl VersionOne {
    pub(super) fn into_v2(self) -> VersionTwo {
        let header = StateHeader::new(self.session_id, self.created_at, self.modified_at);
        VersionTwo { header, entries: self.entries, uploads: None }
    }
}
