//! The options of a scan, and its cost.

use crate::digest::Md5;
use crate::path::RelPath;

/// The rules and limits of a scan.
pub struct ScanOptions<'a> {
    /// Bytes. A larger file is not synced.
    pub max_file_size: u64,
    /// True if a new or changed file of this size, in bytes, need not be read yet
    /// ([`SkipReason::Unread`](crate::sync::SkipReason::Unread)).
    pub unread: &'a (dyn Fn(&RelPath, u64) -> bool + Sync),
    /// True if the ignore rules exclude a path, given its name on the disk and whether it is a folder.
    pub ignored: &'a (dyn Fn(&str, bool) -> bool + Sync),
    /// The rules are those of the last full scan, so a known and unchanged file is not ignored.
    pub same_rules: bool,
    /// The content that both sides agreed on for a path.
    pub base: &'a (dyn Fn(&RelPath) -> Option<Md5> + Sync),
    /// A file that a program has open for writing is not taken until its last write is this old, in ns. 0 takes every
    /// file that does not change while it is read.
    pub quiet_ns: i64,
    /// True if a path has waited long enough: it is taken even if it is open and young.
    pub overdue: &'a (dyn Fn(&RelPath) -> bool + Sync),
    /// Threads to read with, at least 1.
    pub threads: usize,
    /// The wall clock in ns since the epoch. It tells how old a stat is.
    pub now_ns: i64,
    /// True to give up. The scan then fails with `Interrupted` and leaves the tree unchanged.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// The cost of a scan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanStats {
    pub files: u64,
    /// Files that were read.
    pub hashed: u64,
    /// Bytes that were read.
    pub bytes: u64,
}
