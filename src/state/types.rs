//! The data of the state, the form in which files hold it, and its errors.

use std::collections::BTreeMap;
use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::disk::FileStat;
use crate::path::RelPath;
use crate::protocol::HistoryPoint;
use crate::sync::Base;

use super::notes::UploadNotes;

/// The version of container and journal that this build writes. It reads all earlier versions of both.
pub(crate) const VERSION: u32 = 2;

/// The entries of one folder by path.
pub(super) type BaseEntries = BTreeMap<RelPath, BaseEntry>;

/// The state of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseEntry {
    pub base: Base,
    /// The stat of the local file when it had the base content. `None`: read the file again.
    pub stat: Option<FileStat>,
    /// The version token of the namespaced dialect, or 0.
    pub version: u64,
}

/// An entry in a container or journal file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredEntry {
    path: RelPath,
    md5: Md5,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    mtime_ns: i64,
    #[serde(default)]
    ctime_ns: i64,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    remote: StoredRemote,
    #[serde(default)]
    seen_tombstone: bool,
    /// Older builds ignore it, and treat the entry as one in scope.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    detached: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct StoredRemote {
    #[serde(default)]
    version: u64,
}

impl StoredEntry {
    pub(super) fn new(path: &RelPath, entry: &BaseEntry) -> Self {
        let (md5, seen_tombstone, detached) = match entry.base {
            Base::Synced(md5) => (md5, false, false),
            Base::Detached(md5) => (md5, false, true),
            Base::Seen(md5) => (md5, true, false),
        };
        // No file has inode 0, so 0 in `mtime_ns` and `inode` means "no stat".
        let stat = entry.stat.unwrap_or(FileStat { size: 0, mtime_ns: 0, ctime_ns: 0, inode: 0 });
        Self {
            path: path.clone(),
            md5,
            size: stat.size,
            mtime_ns: stat.mtime_ns,
            ctime_ns: stat.ctime_ns,
            inode: stat.inode,
            remote: StoredRemote { version: entry.version },
            seen_tombstone,
            detached,
        }
    }

    pub(super) fn split(self) -> (RelPath, BaseEntry) {
        let Self { path, md5, size, mtime_ns, ctime_ns, inode, remote, seen_tombstone, detached } = self;
        let base = match (seen_tombstone, detached) {
            (true, _) => Base::Seen(md5),
            (false, true) => Base::Detached(md5),
            (false, false) => Base::Synced(md5),
        };
        let stat = (mtime_ns != 0 || inode != 0).then_some(FileStat { size, mtime_ns, ctime_ns, inode });
        (path, BaseEntry { base, stat, version: remote.version })
    }
}

/// A change of the base, after an action is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseChange {
    Set(RelPath, BaseEntry),
    Forget(RelPath),
}

impl BaseChange {
    /// Applies the change. It settles the uploads to its path.
    pub(super) fn apply(self, entries: &mut BaseEntries, uploads: &mut UploadNotes) {
        let (Self::Set(path, _) | Self::Forget(path)) = &self;
        uploads.settle(path);
        match self {
            Self::Set(path, entry) => drop(entries.insert(path, entry)),
            Self::Forget(path) => drop(entries.remove(&path)),
        }
    }
}

/// The format of a container file. A reader recognises it by the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StateFormat {
    #[default]
    Json,
    MsgPack,
}

/// How to write the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateOptions {
    pub format: StateFormat,
    /// JSON with line breaks. No effect on MessagePack.
    pub pretty: bool,
    /// The device id for a new container. A loaded container keeps its own.
    pub session_id: String,
}

/// The content of a container besides its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHeader {
    pub session_id: String,
    pub created_at: Timestamp,
    /// The time of the last save. A commit to the journal does not change it.
    pub modified_at: Timestamp,
    /// The folder's `.memsync/id`, once bound.
    pub folder_id: Option<String>,
    pub remote: RemoteState,
    /// The entries were recovered from damage and have not been compared with the folder since. A missing file was not
    /// necessarily deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovered: bool,
    /// The conflict copies that this device made, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<RelPath, CopyLink>,
    /// The boot of the machine in which an agent last worked on the folder. `None` after a clean stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Distinguishes the folder that was opened last from its copies, which have the same identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_mark: Option<String>,
}

impl StateHeader {
    /// The header of a new container.
    pub(super) fn new(session_id: String, created_at: Timestamp, modified_at: Timestamp) -> Self {
        Self { session_id, created_at, modified_at, ..Self::default() }
    }
}

/// The original of a conflict copy. The copy's name does not always tell: it may be cut, or in a folder above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyLink {
    pub original: RelPath,
    /// The device that wrote the content of the copy.
    pub device: String,
    /// The copy holds the remains of the original after a crash of the machine: no byte, or only zeros.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_emptied: bool,
}

/// The server side of the base.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteState {
    /// Scheme, host and port. Empty while unknown.
    pub origin: String,
    pub namespace: String,
    /// The epoch of the last index, if the proxy has one.
    pub epoch: Option<String>,
    pub cursor: Option<u64>,
    /// Every deletion up to this cursor is done here, so the proxy may forget its tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obeyed: Option<u64>,
    /// The store was behind `cursor`, and no user has approved of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub set_back: bool,
    /// The point of the store's history at the last index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryPoint>,
}

/// The outcome of opening a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OpenOutcome {
    /// There was no container.
    #[default]
    New,
    /// Every commit is there.
    Loaded,
    /// Every commit is there, in an older version. The old file stays until the first save, and is then the backup.
    Migrated { from: u32 },
    /// A file was damaged or missing. The entries are those of an earlier commit, or none. So a missing local file does
    /// not prove a deletion (invariant 11).
    Recovered {
        /// The new names of the damaged files in the state directory.
        set_aside: Vec<String>,
        /// The entries come from the backup.
        from_backup: bool,
    },
}

/// Why the state cannot be used. A refusal changes nothing.
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
    pub(super) fn io(what: &'static str, file: &str) -> impl Fn(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { what, file: file.clone(), source }
    }
}
