//! [`StoredEntry`]: an entry as container and journal files hold it.

use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::disk::FileStat;
use crate::path::RelPath;
use crate::sync::Base;

use super::types::BaseEntry;

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
