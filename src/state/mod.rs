//! The state container: the base of one folder, kept across restarts.

use crate::disk::Stat;
use crate::path::RelPath;
use crate::sync::Base;

/// What is kept of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub base: Base,
    /// Of the local file when it had the base content; `None`: hash it again.
    pub stat: Option<Stat>,
    /// The version token of the namespaced dialect, 0 where there is none.
    pub version: u64,
}

/// One step of the base, after an action is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Set(RelPath, Entry),
    Forget(RelPath),
}
