//! [`FolderChange::Edit`](super::FolderChange::Edit): puts, appends and removals with a condition, for programs.
//!
//! The condition is checked twice: before the content is staged, and on the displaced file. So it also holds against an
//! editor that saves in between.

use std::io;

use bytes::Bytes;
use jiff::Timestamp;

use crate::digest::{Md5, Md5Hasher};
use crate::disk::{Disk, DiskFile};
use crate::path::RelPath;

use super::Folder;
use super::change::{ChangeFault, EditAction, EditCondition, EditOutcome, MAX_TRIES, PathContent, other_path};
use super::folder::STAGE;
use super::moves::FileMove;
use super::source::CHUNK_BYTES;
use super::stage::{StagedFile, StagedWriter};

/// The path to write, validated, and its name on the disk.
struct WriteTarget<'a> {
    path: RelPath,
    at: &'a str,
    /// Its content.
    found: PathContent,
}

impl EditCondition {
    fn is_met_by(self, found: PathContent) -> bool {
        match self {
            Self::Any => true,
            Self::New => found == PathContent::Nothing,
            Self::Md5(md5) => found == PathContent::File(md5),
        }
    }
}

impl<D: Disk> Folder<D> {
    pub(super) fn write_file(
        &self,
        at: &str,
        action: &EditAction,
        when: EditCondition,
        now: Timestamp,
    ) -> Result<EditOutcome, ChangeFault> {
        let path = RelPath::from_disk(at)?;
        self.ensure_private().map_err(other_path(".memsync"))?;
        for _ in 0..MAX_TRIES {
            let target = WriteTarget { path: path.clone(), at, found: self.path_content(at)? };
            if !when.is_met_by(target.found) {
                return Ok(unmet(target.found));
            }
            let written = match action {
                EditAction::Put { from } => self.try_put(target, from, now),
                EditAction::Append { from, max_bytes } => self.try_append(target, from, *max_bytes, now),
                EditAction::Remove => self.try_remove(target, now),
            };
            if let Some(outcome) = written? {
                return Ok(outcome);
            }
        }
        Err(ChangeFault::Changing)
    }

    /// Returns `None` if the file changed meanwhile.
    fn try_put(&self, target: WriteTarget<'_>, from: &str, now: Timestamp) -> Result<Option<EditOutcome>, ChangeFault> {
        let PathContent::File(md5) = self.path_content(from)? else { return Err(ChangeFault::Gone(from.to_owned())) };
        match self.stage_copy(from, md5)? {
            Some(staged) => self.place(target, staged, now),
            None => Ok(None),
        }
    }

    /// Returns `None` if the file changed meanwhile.
    fn try_append(
        &self,
        target: WriteTarget<'_>,
        from: &str,
        max_bytes: u64,
        now: Timestamp,
    ) -> Result<Option<EditOutcome>, ChangeFault> {
        let PathContent::File(old) = target.found else { return self.try_put(target, from, now) };
        match self.stage_joined(target.at, from, old)? {
            Some(staged) if staged.size > max_bytes => Err(ChangeFault::TooLarge { size: staged.size, max_bytes }),
            Some(staged) => self.place(target, staged, now),
            None => Ok(None),
        }
    }

    /// Returns `None` if the file changed meanwhile.
    fn try_remove(&self, target: WriteTarget<'_>, now: Timestamp) -> Result<Option<EditOutcome>, ChangeFault> {
        let PathContent::File(md5) = target.found else { return Ok(Some(unmet(target.found))) };
        let size = match self.disk.stat(target.at) {
            Ok(meta) => meta.size,
            // An editor is saving the file.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let step = FileMove::Trash { path: target.path, at: target.at.to_owned(), expect: md5 };
        Ok(self.perform_one(step, now)?.then_some(EditOutcome::Taken { md5, size }))
    }

    /// Places a staged file, if the path still has the content that was found.
    fn place(
        &self,
        target: WriteTarget<'_>,
        staged: StagedFile<D>,
        now: Timestamp,
    ) -> Result<Option<EditOutcome>, ChangeFault> {
        let WriteTarget { path, at, found } = target;
        let outcome = EditOutcome::Written { md5: staged.md5, size: staged.size };
        if found == PathContent::File(staged.md5) {
            return Ok(Some(outcome));
        }
        let at = at.to_owned();
        let step = match found {
            PathContent::Nothing => FileMove::Create { path, at, staged },
            PathContent::File(expect) => FileMove::Swap { path, at, staged, expect },
        };
        Ok(self.perform_one(step, now)?.then_some(outcome))
    }

    /// Stages the content of `at`, which must be `old`, with the content of `from` on a new line below it. Returns `None`
    /// if `at` has other content.
    fn stage_joined(&self, at: &str, from: &str, old: Md5) -> Result<Option<StagedFile<D>>, ChangeFault> {
        let mut joined = JoinedContent { writer: self.stage().map_err(other_path(STAGE))?, hasher: Md5Hasher::new() };
        let (mut read, mut last) = (Md5Hasher::new(), None);
        self.read_pieces(at, |piece| {
            read.update(piece);
            last = piece.last().copied();
            joined.add(piece)
        })?;
        if read.finish() != old {
            return Ok(None);
        }
        let mut needs_newline = last.is_some_and(|byte| byte != b'\n');
        self.read_pieces(from, |piece| {
            if std::mem::take(&mut needs_newline) {
                joined.add(b"\n")?;
            }
            joined.add(piece)
        })?;
        joined.writer.finish(joined.hasher.finish()).map(Some).map_err(other_path(STAGE))
    }

    fn read_pieces(&self, path: &str, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), ChangeFault> {
        let mut file = self.disk.open(path).map_err(other_path(path))?;
        let mut buf = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut buf).map_err(other_path(path))? {
                0 => return Ok(()),
                n => take(&buf[..n]).map_err(other_path(STAGE))?,
            }
        }
    }
}

/// Content that is staged, with its digest so far.
struct JoinedContent<D: Disk> {
    writer: StagedWriter<D>,
    hasher: Md5Hasher,
}

impl<D: Disk> JoinedContent<D> {
    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        self.hasher.update(piece);
        self.writer.write(Bytes::copy_from_slice(piece))
    }
}

fn unmet(found: PathContent) -> EditOutcome {
    let found = match found {
        PathContent::Nothing => None,
        PathContent::File(md5) => Some(md5),
    };
    EditOutcome::Unmet { found }
}
