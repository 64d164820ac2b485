//! [`FolderChange`]: a change that a person asks for, such as bringing an earlier version back. What it displaces goes
//! to history.
//!
//! It works in the stage, which belongs to the process that holds the folder: the agent, or a command while no agent
//! runs.

use std::io;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile, FileKind};
use crate::path::{PathError, RelPath};
use crate::sync::SkipReason;

use super::source::{CHUNK, digest};
use super::stage::StagedFile;
use super::{FileMove, Folder, MoveOutcome};

/// A file may change between looking and acting. Then both are done again.
const TRIES: usize = 5;

/// A change to one file. Paths are below the root, as the files are called on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum FolderChange {
    /// Puts a copy of the file `from` at `at`.
    Put { from: String, at: String },
    /// Moves the file at `at` to history.
    Trash { at: String },
}

impl FolderChange {
    /// The path that it changes.
    pub fn at(&self) -> &str {
        match self {
            Self::Put { at, .. } | Self::Trash { at } => at,
        }
    }
}

/// What became of a [`FolderChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOutcome {
    /// It was so already.
    Same,
    /// Nothing stood there before.
    Created,
    /// What stood there went to history.
    Replaced,
    /// The file went to history.
    Removed,
}

/// Why a [`FolderChange`] failed, and what it did until then.
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
    /// Of the path that was to be changed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Of another one.
    #[error("{path}: {source}")]
    Elsewhere { path: String, source: io::Error },
    #[error(transparent)]
    BadPath(#[from] PathError),
    #[error("{0} is gone")]
    Gone(String),
    #[error("{0} is being written; try again when that is over")]
    Unsteady(String),
    #[error("a {0} stands there; move it away first")]
    NotAFile(&'static str),
    #[error("{0}")]
    Blocked(SkipReason),
    #[error("the file keeps changing; try again when that is over")]
    Changing,
    #[error("the folder gave no outcome")]
    NoOutcome,
}

/// What a change that failed has done to the folder.
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
    #[error("the file has another content than before; look at it, and at `memsync history`")]
    Unclear,
}

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathContent {
    Nothing,
    File(Md5),
}

impl<D: Disk> Folder<D> {
    /// Makes a change, durably. Only for the process that holds the folder.
    ///
    /// # Errors
    /// When a file cannot be read or placed. No content is lost then, and the error says what was done.
    pub fn change(&self, change: &FolderChange, now: Timestamp) -> Result<ChangeOutcome, ChangeError> {
        let before = self.standing(change.at()).ok();
        let made = match change {
            FolderChange::Put { from, at } => self.put(from, at, now),
            FolderChange::Trash { at } => self.put_away(at, now),
        };
        made.map_err(|cause| ChangeError {
            at: change.at().to_owned(),
            cause,
            effect: self.effect_on(change.at(), before),
        })
    }

    /// What stands at `at`.
    ///
    /// # Errors
    /// When it is no regular file, cannot be read, or does not stop changing.
    pub fn standing(&self, at: &str) -> Result<PathContent, ChangeFault> {
        match self.disk.stat(at) {
            Ok(meta) if meta.kind == FileKind::File => {}
            Ok(meta) => return Err(ChangeFault::NotAFile(kind_name(meta.kind))),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(PathContent::Nothing);
            }
            Err(e) => return Err(elsewhere(at)(e)),
        }
        for _ in 0..TRIES {
            if let Some(found) = digest(&*self.disk, at, &mut Vec::new()).map_err(elsewhere(at))? {
                return Ok(PathContent::File(found.md5));
            }
        }
        Err(ChangeFault::Unsteady(at.to_owned()))
    }

    fn put(&self, from: &str, at: &str, now: Timestamp) -> Result<ChangeOutcome, ChangeFault> {
        let path = RelPath::from_disk(at)?;
        self.ensure_private().map_err(elsewhere(".memsync"))?;
        for _ in 0..TRIES {
            let PathContent::File(md5) = self.standing(from)? else { return Err(ChangeFault::Gone(from.to_owned())) };
            let there = self.standing(at)?;
            if there == PathContent::File(md5) {
                return Ok(ChangeOutcome::Same);
            }
            let Some((staged, mode)) = self.stage_copy(from, md5)? else { continue };
            let (path, to) = (path.clone(), at.to_owned());
            let (step, outcome) = match there {
                PathContent::Nothing => (FileMove::Create { path, at: to, staged }, ChangeOutcome::Created),
                PathContent::File(expect) => {
                    (FileMove::Replace { path, at: to, staged, expect }, ChangeOutcome::Replaced)
                }
            };
            if self.perform_one(step, now)? {
                if outcome == ChangeOutcome::Created {
                    self.disk.open(at).and_then(|file| file.set_mode(mode))?;
                }
                return Ok(outcome);
            }
        }
        Err(ChangeFault::Changing)
    }

    /// A copy of `from` in the stage, and the mode of `from`. `None`: its content is no longer `md5`.
    fn stage_copy(&self, from: &str, md5: Md5) -> Result<Option<(StagedFile<D>, u32)>, ChangeFault> {
        let stage = || elsewhere(".memsync/stage");
        let mut source = self.disk.open(from).map_err(elsewhere(from))?;
        let mode = source.meta().map_err(elsewhere(from))?.mode & 0o777;
        let mut staging = self.stage().map_err(stage())?;
        let mut buf = vec![0; CHUNK];
        loop {
            let n = source.read(&mut buf).map_err(elsewhere(from))?;
            if n == 0 {
                break;
            }
            staging.write(Bytes::copy_from_slice(&buf[..n])).map_err(stage())?;
        }
        match staging.finish(md5) {
            Ok(staged) => Ok(Some((staged, mode))),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(e) => Err(stage()(e)),
        }
    }

    fn put_away(&self, at: &str, now: Timestamp) -> Result<ChangeOutcome, ChangeFault> {
        let path = RelPath::from_disk(at)?;
        self.ensure_private().map_err(elsewhere(".memsync"))?;
        for _ in 0..TRIES {
            let PathContent::File(expect) = self.standing(at)? else { return Ok(ChangeOutcome::Same) };
            if self.perform_one(FileMove::Trash { path: path.clone(), at: at.to_owned(), expect }, now)? {
                return Ok(ChangeOutcome::Removed);
            }
        }
        Err(ChangeFault::Changing)
    }

    /// False: something else stands there than was expected.
    fn perform_one(&self, step: FileMove<D>, now: Timestamp) -> Result<bool, ChangeFault> {
        let performed = self.perform(vec![step], &[], now)?;
        match performed.moved.into_iter().next() {
            Some(MoveOutcome::Done { .. }) if performed.left_over => {
                Err(io::Error::other("the content that it had before could not be moved to history").into())
            }
            Some(MoveOutcome::Done { .. }) => Ok(true),
            Some(MoveOutcome::Stale { .. }) => Ok(false),
            Some(MoveOutcome::Blocked(why)) => Err(ChangeFault::Blocked(why)),
            Some(MoveOutcome::Failed(e)) => Err(e.into()),
            None => Err(ChangeFault::NoOutcome),
        }
    }

    /// What a failed change has done to `at`, where `before` stood.
    fn effect_on(&self, at: &str, before: Option<PathContent>) -> ChangeEffect {
        let now = self.standing(at).ok();
        match (before, now) {
            (Some(before), Some(now)) if before == now => ChangeEffect::Nothing,
            (Some(PathContent::Nothing), Some(PathContent::File(_))) => ChangeEffect::Created,
            (Some(PathContent::File(old)), Some(now)) => match (now, self.history_has(at, old)) {
                (PathContent::File(_), true) => ChangeEffect::Replaced,
                (PathContent::File(_), false) => ChangeEffect::Displaced,
                (PathContent::Nothing, true) => ChangeEffect::Removed,
                (PathContent::Nothing, false) => ChangeEffect::Taken,
            },
            // Neither could be read, so it was refused before anything was done.
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

fn elsewhere(path: &str) -> impl FnOnce(io::Error) -> ChangeFault + '_ {
    move |source| ChangeFault::Elsewhere { path: path.to_owned(), source }
}

/// The word for what a path is.
pub fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "folder",
        FileKind::Symlink => "symlink",
        FileKind::Other(name) => name,
    }
}
