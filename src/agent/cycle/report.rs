//! The end of a cycle: [`CycleReport`], the work that it did and left, or [`CycleError`], why it ended early.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::agent::problems::PathProblem;
use crate::disk::Disk;
use crate::local::scan::ScanStats;
use crate::local::{FileMove, RootError};
use crate::path::RelPath;
use crate::remote::RemoteError;
use crate::state::StateError;
use crate::sync::safety::Halt;
use crate::sync::{Action, PlanStep};

/// One finished action, for the status and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedAction {
    pub path: RelPath,
    pub action: &'static str,
    /// `done`, or the error.
    pub outcome: String,
    /// The machine that wrote a download or the other side of a merge, where the proxy says so.
    pub device: Option<String>,
}

impl FinishedAction {
    pub(super) fn done(step: &PlanStep) -> Self {
        Self::moved(&step.path, verb(&step.action), None)
    }

    /// A change to the folder that was made.
    pub(super) fn moved(path: &RelPath, action: &'static str, device: Option<String>) -> Self {
        Self { path: path.clone(), action, outcome: "done".to_owned(), device }
    }

    pub(super) fn failed(step: &PlanStep, why: String) -> Self {
        Self { path: step.path.clone(), action: verb(&step.action), outcome: why, device: None }
    }
}

/// The work that a cycle did, and the work that is left. Each run of steps fills one, and [`CycleReport::add`] adds it to
/// the cycle's.
#[derive(Debug, Default)]
pub struct CycleReport {
    pub scan: ScanStats,
    /// When the scan ended ([`World::elapsed`](crate::agent::World::elapsed)).
    pub scanned_at: Duration,
    /// The index has changed.
    pub index_changed: bool,
    /// There was something to plan.
    pub planned: bool,
    /// The time from the start of the cycle to its plan.
    pub planning: Duration,
    pub uploaded: usize,
    pub downloaded: usize,
    pub deleted_remote: usize,
    pub trashed: usize,
    pub adopted: usize,
    pub merged: usize,
    /// Conflict copies made.
    pub conflicts: Vec<RelPath>,
    pub recent: Vec<FinishedAction>,
    /// Paths that failed and are in quarantine.
    pub failed: usize,
    /// Work is left that another cycle can do soon.
    pub again: bool,
    /// Deletions held for approval.
    pub held: usize,
    /// Deletions that wait, because the same file may appear under another name.
    pub waiting: usize,
    /// Blocked paths, with the reason.
    pub blocked: BTreeMap<RelPath, PathProblem>,
}

impl CycleReport {
    /// True if the cycle changed anything on either side.
    pub fn wrote(&self) -> bool {
        self.uploaded + self.downloaded + self.deleted_remote + self.trashed + self.merged + self.conflicts.len() > 0
    }

    /// Adds the report of other steps.
    pub(super) fn add(&mut self, other: Self) {
        self.uploaded += other.uploaded;
        self.downloaded += other.downloaded;
        self.deleted_remote += other.deleted_remote;
        self.trashed += other.trashed;
        self.adopted += other.adopted;
        self.merged += other.merged;
        self.conflicts.extend(other.conflicts);
        self.recent.extend(other.recent);
        self.failed += other.failed;
        self.again |= other.again;
        self.blocked.extend(other.blocked);
    }
}

/// The action's name in `recent` and in a dry run.
pub fn verb(action: &Action) -> &'static str {
    match action {
        Action::Download { .. } | Action::Replace { .. } => "download",
        Action::RecordSeen { .. } => "record",
        Action::Upload { .. } | Action::UploadUnread | Action::Probe { .. } => "upload",
        Action::Adopt { .. } => "adopt",
        Action::Conflict { .. } => "conflict",
        Action::Trash { .. } => "trash",
        Action::DeleteRemote { .. } => "delete",
        Action::Skip(_) => "skip",
    }
}

/// The name of a change to the folder in `recent`. A step may end in another change than it began with.
pub(super) fn move_verb<D: Disk>(change: &FileMove<D>) -> &'static str {
    match change {
        FileMove::Create { .. } | FileMove::Replace { .. } | FileMove::Swap { .. } => "download",
        FileMove::Merge { .. } => "merged",
        FileMove::Conflict { .. } => "conflict",
        FileMove::Trash { .. } => "trash",
    }
}

/// Why a cycle ended early. A cycle decides nothing from half an answer.
#[derive(Debug, thiserror::Error)]
pub enum CycleError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The state container cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The folder cannot be read or written.
    #[error("{what}: {source}; {}", remedy(source))]
    Folder { what: &'static str, source: io::Error },
    /// A gate is shut for the folder or the proxy as a whole.
    #[error("halted ({})", .0.name())]
    Halted(Halt),
    #[error("stopped")]
    Stopped,
}

/// The halt for a folder that is missing or another one than before.
pub(in crate::agent) fn root_halt(e: RootError) -> CycleError {
    match e {
        RootError::Missing { ref expected } => {
            CycleError::Halted(Halt::root_missing(&["no identity", expected], e.to_string()))
        }
        RootError::Changed { ref expected, ref found } => {
            CycleError::Halted(Halt::root_changed(&["identity", expected, found], e.to_string()))
        }
        RootError::Io { path, source } => CycleError::Folder { what: path, source },
    }
}

/// The remedy for a full disk.
pub(in crate::agent) const MAKE_ROOM: &str = "make room, then it goes on by itself";

/// The remedy for a disk error.
pub(in crate::agent) fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => MAKE_ROOM,
        io::ErrorKind::PermissionDenied => "give memsync's user the right to write there",
        io::ErrorKind::ResourceBusy => "close it there",
        io::ErrorKind::ReadOnlyFilesystem => "mount the filesystem for writing",
        _ => "check the disk and the permissions",
    }
}

/// An error of the folder; `what`: the file, or the action that failed.
pub(in crate::agent) fn folder_error(what: &'static str) -> impl FnOnce(io::Error) -> CycleError {
    move |source| CycleError::Folder { what, source }
}
