//! Older container versions, each brought one step forward by a pure function. No file is touched here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

use super::format::WireEntry;
use super::{RemoteState, StateHeader, WireNotes};

/// The session of a container that had none.
const MIGRATED_SESSION: &str = "migrated";

/// Version 0: a bare array of entries.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct V0(pub Vec<WireEntry>);

/// Version 1: a session and times.
#[derive(Deserialize)]
pub struct V1 {
    session_id: String,
    created_at: Timestamp,
    modified_at: Timestamp,
    entries: Vec<WireEntry>,
}

/// Version 2: bound to a folder and a remote.
#[derive(Deserialize)]
pub struct V2 {
    #[serde(flatten)]
    pub header: StateHeader,
    pub entries: Vec<WireEntry>,
    /// Absent before uploads were noted.
    #[serde(default)]
    pub uploads: Option<WireNotes>,
}

impl V0 {
    /// `written`: when the file was last written, the only time known of it.
    pub fn into_v1(self, written: Timestamp) -> V1 {
        V1 { session_id: MIGRATED_SESSION.to_owned(), created_at: written, modified_at: written, entries: self.0 }
    }
}

impl V1 {
    pub fn into_v2(self) -> V2 {
        let Self { session_id, created_at, modified_at, entries } = self;
        let remote = RemoteState::default();
        let header = StateHeader {
            session_id,
            created_at,
            modified_at,
            folder_id: None,
            remote,
            recovered: false,
            copies: BTreeMap::new(),
            boot: None,
            root_mark: None,
        };
        V2 { header, entries, uploads: None }
    }
}
