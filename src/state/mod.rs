//! The state container: the base of one folder, kept across restarts.
//!
//! [`Container`] holds what both sides last agreed on, in memory and in a few files of one directory: the
//! container itself (JSON or MessagePack), its predecessor `.bak`, and a journal of what was committed since.
//! [`FolderLock`] sees to it that one agent works on a folder. What an entry means, and when the base may advance,
//! is not decided here. `format` says what a container looks like, `journal` what a journal does, and `load`
//! how the files are brought together after any crash or damage.

use std::collections::BTreeMap;
use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::disk::FileStat;
use crate::path::RelPath;
use crate::protocol::HistoryPoint;
use crate::sync::Base;

mod container;
mod format;
mod journal;
mod load;
mod lock;
mod migrate;
mod note;
mod notes;
mod pause;

pub use container::Container;
pub use load::{StateView, peek};
pub use lock::{FolderLock, LockError};
pub use note::{read_note, write_note};
pub use notes::{UploadNote, UploadNotes, WireNotes};
pub use pause::Pause;

/// The container version this build writes. It reads all before it.
pub const VERSION: u32 = 2;

/// What is kept of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseEntry {
    pub base: Base,
    /// Of the local file when it had the base content; `None`: hash it again.
    pub stat: Option<FileStat>,
    /// The version token of the namespaced dialect, 0 where there is none.
    pub version: u64,
}

/// One step of the base, after an action is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseChange {
    Set(RelPath, BaseEntry),
    Forget(RelPath),
}

/// How a container is written. Reading tells the formats apart by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StateFormat {
    #[default]
    Json,
    MsgPack,
}

/// How to write the container, and who writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateOptions {
    pub format: StateFormat,
    /// JSON with line breaks; without effect on MessagePack.
    pub pretty: bool,
    /// The device id; given to a container that is new. One that was loaded keeps its own.
    pub session_id: String,
}

/// What a container says besides its entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHeader {
    pub session_id: String,
    pub created_at: Timestamp,
    /// When the container was last saved; commits to the journal do not move it.
    pub modified_at: Timestamp,
    /// The folder's `.memsync/id`, once bound.
    pub folder_id: Option<String>,
    pub remote: RemoteState,
    /// The entries were recovered from damage, and nobody has compared them with the folder since: what is missing there
    /// was not necessarily deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovered: bool,
    /// The conflict copies that were made here, by their paths.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<RelPath, CopyLink>,
    /// The start of the machine in which an agent last worked on the folder; `None` after it stopped cleanly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Tells the folder that was opened last from its copies, which have its identity too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_mark: Option<String>,
}

/// The file that a conflict copy is of. The copy's name may not say it: it may be cut, or in a folder above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyLink {
    pub original: RelPath,
    /// Where the copy's text was written.
    pub device: String,
    /// The copy holds what a crash of the machine left of the original: nothing, or zero bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_emptied: bool,
}

/// The server side that the base was agreed with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteState {
    /// Scheme, host and port; empty while unknown.
    pub origin: String,
    pub namespace: String,
    /// Of the index last taken in, where the proxy has one.
    pub epoch: Option<String>,
    pub cursor: Option<u64>,
    /// Every deletion up to this cursor has been taken over, so that the proxy may forget its tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obeyed: Option<u64>,
    /// The store was seen to stand behind `cursor`, and nobody has approved of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub set_back: bool,
    /// The point of the store's history where the index last taken in stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryPoint>,
}

/// How opening went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenOutcome {
    /// There was nothing.
    New,
    /// Everything committed is there.
    Loaded,
    /// As `Loaded`, from an older version. The old file stays, and becomes the backup with the first save.
    Migrated { from: u32 },
    /// Something was damaged or missing; the entries are those of an earlier commit, or none. A local file that
    /// is missing must not be taken for deleted on the strength of them (invariant 11).
    Recovered {
        /// The names under which the damaged files are kept, in the state directory.
        set_aside: Vec<String>,
        /// Whether the entries come from the backup.
        from_backup: bool,
    },
}

/// Why the state cannot be used. Nothing was changed by a refusal.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "{file} has version {found}, this memsync knows versions up to {known}: use a newer memsync; \
         the file was left as it is"
    )]
    FutureVersion { file: String, found: u64, known: u32 },
    #[error("cannot {what} {file} in the state directory: {source}")]
    Io { what: &'static str, file: String, source: io::Error },
}

impl StateError {
    fn io(what: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { what, file, source }
    }
}

#[cfg(test)]
mod tests;
