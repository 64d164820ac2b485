//! [`FolderChange`]: a change that a person asks for, such as restoring an old version. The content that it displaces goes
//! to history.
//!
//! A change uses the stage, so only the process that holds the folder may make it: the agent, or a command while no agent
//! runs.

use std::io;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile, FileKind};
use crate::path::{PathError, RelPath};
use crate::sync::SkipReason;

use super::Folder;
use super::folder::STAGE;
use super::moves::{FileMove, MoveOutcome};
use super::source::{CHUNK_BYTES, digest};
use super::stage::StagedFile;

/// How often a change or a read is repeated for a file that other programs change meanwhile.
pub(super) const MAX_TRIES: usize = 5;

/// A change to one file. Paths are below the root, as named on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum FolderChange {
    /// Puts a copy of the file `from` at `at`.
    Put { from: String, at: String },
    /// Moves the file at `at` to history.
    Trash { at: String },
    /// Writes or removes the file at `at`, if its content meets the condition.
    Edit { at: String, action: EditAction, when: EditCondition },
}

/// The action of [`FolderChange::Edit`]. Text that it displaces goes to history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EditAction {
    /// Puts a copy of the file `from`.
    Put {
        from: String,
    },
    /// Adds the content of the file `from` on a new line. The file may have `max_bytes` in the end.
    Append {
        from: String,
        max_bytes: u64,
    },
    Remove,
}

/// The content that a file must have before a [`EditAction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EditCondition {
    Any,
    /// There is no file.
    New,
    Md5(Md5),
}

impl FolderChange {
    /// The path that it changes.
    pub fn at(&self) -> &str {
        match self {
            Self::Put { at, .. } | Self::Trash { at } | Self::Edit { at, .. } => at,
        }
    }
}

/// The outcome of a [`FolderChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOutcome {
    /// The path had this content already.
    Same,
    /// The path was free.
    Created,
    /// The old content is in history.
    Replaced,
    /// The file is in history.
    Removed,
    /// The outcome of [`FolderChange::Edit`].
    Edited(EditOutcome),
}

/// The outcome of a [`EditAction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EditOutcome {
    /// The file has this content now. `size`: in bytes.
    Written { md5: Md5, size: u64 },
    /// The file with this content is in history. `size`: in bytes.
    Taken { md5: Md5, size: u64 },
    /// The file does not meet the condition, or there is no file to remove. `found`: its content.
    Unmet { found: Option<Md5> },
}

/// Why a [`FolderChange`] failed, and its effect until then.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {cause}; {effect}")]
pub struct ChangeError {
    pub at: String,
    pub cause: ChangeFault,
    pub effect: ChangeEffect,
}

/// Why a change failed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeFault {
    /// An error of the path to change.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An error of another path.
    #[error("{path}: {source}")]
    OtherPath { path: String, source: io::Error },
    #[error(transparent)]
    BadPath(#[from] PathError),
    #[error("{0} is gone")]
    Gone(String),
    #[error("{0} is being written; try again when that is over")]
    Unsteady(String),
    #[error("there is a {0} at this path; move it away first")]
    NotAFile(&'static str),
    #[error("{0}")]
    Blocked(SkipReason),
    #[error("the file would have {size} bytes, and `sync.max_file_size` allows {max_bytes}")]
    TooLarge { size: u64, max_bytes: u64 },
    #[error("the file keeps changing; try again when that is over")]
    Changing,
    #[error("the move had no outcome; this is an error of memsync")]
    NoOutcome,
}

/// The effect of a failed change on the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeEffect {
    #[error("nothing was changed")]
    Nothing,
    #[error("the file is there now, with its new content")]
    Created,
    #[error("the file has its new content, and the content that it had before is in its history")]
    Replaced,
    #[error(
        "the file has its new content; the content that it had before waits in .memsync/stage, and goes to history when \
         the folder is synced next"
    )]
    Displaced,
    #[error("the file was removed; its content is in its history")]
    Removed,
    #[error("the file was removed; its content waits in .memsync/stage, and goes where it belongs with the next sync")]
    Taken,
    #[error("the file has other content than before; look at it, and at `memsync history`")]
    Unclear,
}

/// The content at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathContent {
    Nothing,
    File(Md5),
}

impl<D: Disk> Folder<D> {
    /// Makes a change, durably, for an agent. After a failure the agent must [`sweep`](Folder::sweep) the stage.
    ///
    /// # Errors
    /// A file cannot be read or placed. No content is lost then, and the error says what was done.
    pub fn change(&self, change: &FolderChange, now: Timestamp) -> Result<ChangeOutcome, ChangeError> {
        let before = self.path_content(change.at()).ok();
        self.try_change(change, now).map_err(|cause| self.describe_failure(change.at(), before, cause))
    }

    /// Makes a change like [`Folder::change`] for a command that ends right after it. A failure leaves nothing in the
    /// stage, unless the sweep fails as well.
    ///
    /// # Errors
    /// As [`Folder::change`].
    pub(crate) fn change_and_sweep(&self, change: &FolderChange, now: Timestamp) -> Result<ChangeOutcome, ChangeError> {
        let before = self.path_content(change.at()).ok();
        self.try_change(change, now).map_err(|cause| {
            if let Err(e) = self.sweep(now) {
                tracing::warn!("{STAGE} cannot be cleaned up; the next sync tries again: {e}");
            }
            self.describe_failure(change.at(), before, cause)
        })
    }

    fn try_change(&self, change: &FolderChange, now: Timestamp) -> Result<ChangeOutcome, ChangeFault> {
        match change {
            FolderChange::Put { from, at } => self.put_file(from, at, now),
            FolderChange::Trash { at } => self.trash_file(at, now),
            FolderChange::Edit { at, action, when } => {
                self.write_file(at, action, *when, now).map(ChangeOutcome::Edited)
            }
        }
    }

    /// The content at `at`.
    ///
    /// # Errors
    /// The path is no regular file, cannot be read, or keeps changing.
    pub(crate) fn path_content(&self, at: &str) -> Result<PathContent, ChangeFault> {
        match self.disk.stat(at) {
            Ok(meta) if meta.kind == FileKind::File => {}
            Ok(meta) => return Err(ChangeFault::NotAFile(kind_name(meta.kind))),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(PathContent::Nothing);
            }
            Err(e) => return Err(other_path(at)(e)),
        }
        for _ in 0..MAX_TRIES {
            if let Some(found) = digest(&*self.disk, at, &mut Vec::new()).map_err(other_path(at))? {
                return Ok(PathContent::File(found.md5));
            }
        }
        Err(ChangeFault::Unsteady(at.to_owned()))
    }

    fn put_file(&self, from: &str, at: &str, now: Timestamp) -> Result<ChangeOutcome, ChangeFault> {
        let path = RelPath::from_disk(at)?;
        self.ensure_private().map_err(other_path(".memsync"))?;
        for _ in 0..MAX_TRIES {
            let PathContent::File(md5) = self.path_content(from)? else {
                return Err(ChangeFault::Gone(from.to_owned()));
            };
            let content = self.path_content(at)?;
            if content == PathContent::File(md5) {
                return Ok(ChangeOutcome::Same);
            }
            let Some(staged) = self.stage_copy(from, md5)? else { continue };
            let (path, to) = (path.clone(), at.to_owned());
            let (step, outcome) = match content {
                PathContent::Nothing => (FileMove::Create { path, at: to, staged }, ChangeOutcome::Created),
                PathContent::File(expect) => {
                    (FileMove::Replace { path, at: to, staged, expect }, ChangeOutcome::Replaced)
                }
            };
            if self.perform_one(step, now)? {
                return Ok(outcome);
            }
        }
        Err(ChangeFault::Changing)
    }

    /// Copies `from` to the stage, with its mode. Returns `None` if its content is not `md5` any more.
    pub(super) fn stage_copy(&self, from: &str, md5: Md5) -> Result<Option<StagedFile<D>>, ChangeFault> {
        let mut source = self.disk.open(from).map_err(other_path(from))?;
        let mode = source.meta().map_err(other_path(from))?.mode & 0o777;
        let mut writer = self.stage().map_err(other_path(STAGE))?;
        let mut buf = vec![0; CHUNK_BYTES];
        loop {
            let n = source.read(&mut buf).map_err(other_path(from))?;
            if n == 0 {
                break;
            }
            writer.write(Bytes::copy_from_slice(&buf[..n])).map_err(other_path(STAGE))?;
        }
        match writer.finish(md5) {
            Ok(staged) => {
                staged.open().and_then(|file| file.set_mode(mode)).map_err(other_path(STAGE))?;
                Ok(Some(staged))
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(e) => Err(other_path(STAGE)(e)),
        }
    }

    fn trash_file(&self, at: &str, now: Timestamp) -> Result<ChangeOutcome, ChangeFault> {
        let path = RelPath::from_disk(at)?;
        self.ensure_private().map_err(other_path(".memsync"))?;
        for _ in 0..MAX_TRIES {
            let PathContent::File(expect) = self.path_content(at)? else { return Ok(ChangeOutcome::Same) };
            if self.perform_one(FileMove::Trash { path: path.clone(), at: at.to_owned(), expect }, now)? {
                return Ok(ChangeOutcome::Removed);
            }
        }
        Err(ChangeFault::Changing)
    }

    /// Returns false if the path does not have the expected content any more.
    pub(super) fn perform_one(&self, step: FileMove<D>, now: Timestamp) -> Result<bool, ChangeFault> {
        let report = self.perform(vec![step], &[], now)?;
        match report.moved.into_iter().next() {
            Some(MoveOutcome::Blocked(why)) => Err(ChangeFault::Blocked(why)),
            Some(MoveOutcome::Failed(e)) => Err(e.into()),
            // Do not retry: the retry would succeed and hide that the displaced file is still in the stage.
            Some(_) if report.left_over => {
                Err(io::Error::other("the content that it had before could not be moved to history").into())
            }
            Some(MoveOutcome::Done { .. }) => Ok(true),
            Some(MoveOutcome::Stale { .. }) => Ok(false),
            None => Err(ChangeFault::NoOutcome),
        }
    }

    fn describe_failure(&self, at: &str, before: Option<PathContent>, cause: ChangeFault) -> ChangeError {
        ChangeError { at: at.to_owned(), cause, effect: self.effect_on(at, before) }
    }

    /// The effect of a failed change on `at`, which had the content `before`.
    fn effect_on(&self, at: &str, before: Option<PathContent>) -> ChangeEffect {
        let now = self.path_content(at).ok();
        match (before, now) {
            (Some(before), Some(now)) if before == now => ChangeEffect::Nothing,
            (Some(PathContent::Nothing), Some(PathContent::File(_))) => ChangeEffect::Created,
            (Some(PathContent::File(old)), Some(now)) => match (now, self.history_has(at, old)) {
                (PathContent::File(_), true) => ChangeEffect::Replaced,
                (PathContent::File(_), false) => ChangeEffect::Displaced,
                (PathContent::Nothing, true) => ChangeEffect::Removed,
                (PathContent::Nothing, false) => ChangeEffect::Taken,
            },
            // The path was unreadable from the start, so the change was refused before it did anything.
            (None, None) => ChangeEffect::Nothing,
            _ => ChangeEffect::Unclear,
        }
    }

    fn history_has(&self, at: &str, content: Md5) -> bool {
        let versions = self.versions(Some(at)).unwrap_or_default();
        versions
            .iter()
            .filter(|v| v.path == at)
            .any(|v| matches!(digest(&*self.disk, &v.file, &mut Vec::new()), Ok(Some(found)) if found.md5 == content))
    }
}

pub(super) fn other_path(path: &str) -> impl FnOnce(io::Error) -> ChangeFault + '_ {
    move |source| ChangeFault::OtherPath { path: path.to_owned(), source }
}

/// The word for a kind of path, in messages.
pub(crate) fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "folder",
        FileKind::Symlink => "symlink",
        FileKind::Other(name) => name,
    }
}
