//! The moves that a caller asks for, and their outcomes.

use std::collections::BTreeMap;
use std::io;

use crate::digest::Md5;
use crate::disk::{Disk, FileStat};
use crate::path::RelPath;
use crate::sync::SkipReason;

use super::super::stage::StagedFile;

/// One change to the folder. `at` is the name of the path on the disk.
pub enum FileMove<D: Disk> {
    /// Creates a file at a free path.
    Create { path: RelPath, at: String, staged: StagedFile<D> },
    /// Replaces the content `expect`, which goes to history.
    Replace { path: RelPath, at: String, staged: StagedFile<D>, expect: Md5 },
    /// Replaces the content `expect` by the result of a merge. Before that, copies of both merged versions go to history.
    Merge { path: RelPath, at: String, staged: StagedFile<D>, expect: Md5, inputs: Box<[StagedFile<D>; 2]> },
    /// As `Replace`, but changes nothing if the path has other content. The next attempt may then compare again.
    Swap { path: RelPath, at: String, staged: StagedFile<D>, expect: Md5 },
    /// Places the content of the server. The file that was there becomes a conflict copy.
    Conflict { path: RelPath, at: String, staged: StagedFile<D> },
    /// Moves the content `expect` to history.
    Trash { path: RelPath, at: String, expect: Md5 },
}

impl<D: Disk> FileMove<D> {
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Create { path, .. }
            | Self::Replace { path, .. }
            | Self::Merge { path, .. }
            | Self::Swap { path, .. }
            | Self::Conflict { path, .. }
            | Self::Trash { path, .. } => path,
        }
    }

    pub(super) fn at(&self) -> &str {
        match self {
            Self::Create { at, .. }
            | Self::Replace { at, .. }
            | Self::Merge { at, .. }
            | Self::Swap { at, .. }
            | Self::Conflict { at, .. }
            | Self::Trash { at, .. } => at,
        }
    }

    /// The content to place; `None` for a move that only removes.
    pub(crate) fn staged(&self) -> Option<&StagedFile<D>> {
        match self {
            Self::Create { staged, .. }
            | Self::Replace { staged, .. }
            | Self::Merge { staged, .. }
            | Self::Swap { staged, .. }
            | Self::Conflict { staged, .. } => Some(staged),
            Self::Trash { .. } => None,
        }
    }

    /// The versions that go to history before the move.
    pub(super) fn inputs(&self) -> &[StagedFile<D>] {
        match self {
            Self::Merge { inputs, .. } => &inputs[..],
            _ => &[],
        }
    }
}

/// The outcome of a [`FileMove`].
#[derive(Debug)]
pub enum MoveOutcome {
    Done {
        /// The conflict copy that the move made.
        copy: Option<RelPath>,
        /// The stat of the placed file, if it proves the content without another read.
        stat: Option<FileStat>,
    },
    /// The path holds something else than the plan saw. Plan again.
    Stale {
        copy: Option<RelPath>,
    },
    /// A file and a folder claim one name.
    Blocked(SkipReason),
    Failed(io::Error),
}

impl MoveOutcome {
    /// The path is not as the plan saw it, and the move made no conflict copy.
    pub(super) fn stale() -> Self {
        Self::Stale { copy: None }
    }
}

/// The outcome of a batch of moves.
#[derive(Debug, Default)]
pub struct MoveReport {
    /// One outcome for each move, in the same order.
    pub moved: Vec<MoveOutcome>,
    /// Files of `settle` that are not durable, by their names on the disk, each with the reason. Do not commit them.
    pub unsettled: BTreeMap<String, io::Error>,
    /// A displaced file could not be put where it belongs. It is safe in `stage/`, and
    /// [`Folder::sweep`](super::super::Folder::sweep) tries again.
    pub left_over: bool,
}
