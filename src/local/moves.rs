//! Changing the user's files: create, replace, trash, and set a conflict copy aside.
//!
//! **Displace, then verify** (invariant 6): what stands in the way is moved aside in one step and looked at only
//! then, so that an edit made at the last moment is never lost. It goes to history if it is what the plan saw, and
//! becomes a conflict copy if it is not.
//!
//! **Order on disk** (invariant 7), for a whole batch at once: content and intents durable → moves → names durable
//! → the caller commits the base. A crash between any two leaves nothing but what [`Folder::sweep`] knows to put in
//! order: the *intent* of the batch says, for every displaced file, where it came from and what was expected.

use std::collections::BTreeSet;
use std::io;

use jiff::Timestamp;

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile, FileKind, FileStat};
use crate::failpoint;
use crate::path::RelPath;
use crate::sync::SkipReason;

use super::Folder;
use super::folder::{HISTORY, STAGE};
use super::history::{Shelf, VersionKind};
use super::scan::unchanged;
use super::source;
use super::stage::{StagedFile, displaced_slot};

mod durable;
mod folders;
mod intent;
mod names;
mod sweep;

use intent::Intent;
pub use names::{CopyName, conflict_name, is_conflict_name, parse_copy_name, split_ext};
pub use sweep::{SweepFailure, SweepReport};

/// One change to the folder. `at` is what the path is called on the disk.
pub enum FileMove<D: Disk> {
    /// Puts the content where nothing is.
    Create { path: RelPath, at: String, staged: StagedFile<D> },
    /// REPLACE: `expect` is the content that the plan saw; it goes to history.
    Replace { path: RelPath, at: String, staged: StagedFile<D>, expect: Md5 },
    /// CONFLICT: the server keeps the name; what stands there becomes a conflict copy.
    Conflict { path: RelPath, at: String, staged: StagedFile<D> },
    /// TRASH: into history, if it is `expect`.
    Trash { path: RelPath, at: String, expect: Md5 },
}

impl<D: Disk> FileMove<D> {
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Create { path, .. }
            | Self::Replace { path, .. }
            | Self::Conflict { path, .. }
            | Self::Trash { path, .. } => path,
        }
    }

    fn at(&self) -> &str {
        match self {
            Self::Create { at, .. } | Self::Replace { at, .. } | Self::Conflict { at, .. } | Self::Trash { at, .. } => {
                at
            }
        }
    }
}

/// What became of a [`FileMove`].
#[derive(Debug)]
pub enum MoveOutcome {
    /// `copy`: the conflict copy that was made. `stat`: of the file placed, where it can be trusted without reading
    /// the file again.
    Done {
        copy: Option<RelPath>,
        stat: Option<FileStat>,
    },
    /// Something else stands there than the plan saw: plan again.
    Stale {
        copy: Option<RelPath>,
    },
    /// A file and a folder claim one name.
    Blocked(SkipReason),
    Failed(io::Error),
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct MoveReport {
    /// One outcome for each move, in their order.
    pub moved: Vec<MoveOutcome>,
    /// Files of `settle` that could not be made durable, by their names on the disk: they must not be committed.
    pub unsettled: BTreeSet<String>,
    /// Something displaced could not be put where it belongs; it is safe in `stage/`, and [`Folder::sweep`] tries
    /// again.
    pub left_over: bool,
}

/// Stands for content that does not hold still; no file has it.
const BEING_WRITTEN: Md5 = Md5::from_bytes([0xff; 16]);

impl<D: Disk> Folder<D> {
    /// Makes a batch of moves, and the content of the files named in `settle` (as they are called on the disk),
    /// durable: on return the caller may commit them to the base.
    ///
    /// # Errors
    /// When the disk cannot be made durable. Then nothing may be committed; the next cycle finds out what happened.
    pub fn perform(&self, moves: Vec<FileMove<D>>, settle: &[String], now: Timestamp) -> io::Result<MoveReport> {
        let mut shelf = Shelf::new(now);
        let mut touched = BTreeSet::new();
        let mut to_sync: Vec<String> = settle.to_vec();
        for path in settle {
            touched.insert(dir_of(path).to_owned());
        }
        let mut ready = Vec::with_capacity(moves.len());
        let mut intents = Vec::new();
        for step in moves {
            ready.push(self.prepare(step, &mut shelf, &mut intents, &mut to_sync));
        }
        let intent = if intents.is_empty() { None } else { Some(self.write_intents(&intents)?) };
        if !ready.is_empty() {
            touched.insert(STAGE.to_owned());
        }
        failpoint::pass("moves.intended");
        for step in &mut ready {
            if let Ok((FileMove::Replace { staged, .. } | FileMove::Conflict { staged, .. }, slot)) = step
                && let Err(e) = staged.rename_slot(slot)
            {
                *step = Err(MoveOutcome::Failed(e));
            }
        }
        failpoint::pass("moves.marked");
        to_sync.extend(intent.clone());
        let refused = self.sync_contents(&to_sync, &touched).inspect_err(|_| {
            // Nothing has been displaced yet. Best effort: what stays is swept at start-up.
            let _ = intent.as_ref().map(|name| self.disk.unlink(name));
        })?;
        failpoint::pass("moves.durable");

        touched.retain(|dir| dir == STAGE);
        let mut moved = Vec::with_capacity(ready.len());
        let mut left_over = false;
        let mut vacated = BTreeSet::new();
        for step in ready {
            let outcome = match step {
                Ok((_, slot)) if refused.contains(&slot) => MoveOutcome::Stale { copy: None },
                Ok((step, slot)) => {
                    let from = matches!(step, FileMove::Trash { .. }).then(|| dir_of(step.at()).to_owned());
                    let outcome = self.make(step, &slot, &mut shelf, &mut touched);
                    left_over |= matches!(outcome, MoveOutcome::Failed(_));
                    // The folders that this has left empty go when all files have gone.
                    vacated.extend(match outcome {
                        MoveOutcome::Done { .. } => from,
                        _ if is_kept(&slot) => Some(dir_of(&slot).to_owned()),
                        _ => None,
                    });
                    outcome
                }
                // Nothing was displaced.
                Err(outcome) => outcome,
            };
            moved.push(outcome);
        }
        // What could not be placed stands in its slot still.
        left_over |= shelf.place_copies(self).is_err();
        for dir in vacated.iter().rev() {
            self.remove_empty(dir, &mut touched);
        }
        if !moved.is_empty() {
            touched.extend(shelf.dirs());
            self.sync_dirs(&touched)?;
        }
        failpoint::pass("moves.placed");
        // After a failure the intent stays for the sweep.
        if let (Some(intent), false) = (intent, left_over) {
            match self.disk.unlink(&intent) {
                // The sweep of another process has settled it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        let unsettled = refused.into_iter().filter(|name| settle.contains(name)).collect();
        Ok(MoveReport { moved, unsettled, left_over })
    }

    /// Looks at the place before anything is displaced, and writes down what is going to be.
    fn prepare(
        &self,
        step: FileMove<D>,
        shelf: &mut Shelf,
        intents: &mut Vec<Intent>,
        to_sync: &mut Vec<String>,
    ) -> Result<(FileMove<D>, String), MoveOutcome> {
        let incoming = match &step {
            FileMove::Create { staged, .. } | FileMove::Replace { staged, .. } | FileMove::Conflict { staged, .. } => {
                Some(staged)
            }
            FileMove::Trash { .. } => None,
        };
        let mut slot = match (&step, incoming) {
            (FileMove::Create { .. }, Some(staged)) => staged.slot().to_owned(),
            (_, Some(staged)) => displaced_slot(staged.slot()),
            (_, None) => displaced_slot(&self.slot()),
        };
        if incoming.is_some() {
            to_sync.push(slot.clone());
        }
        let (at, expect) = match &step {
            FileMove::Create { .. } => return Ok((step, slot)),
            FileMove::Replace { at, expect, .. } | FileMove::Trash { at, expect, .. } => (at, Some(*expect)),
            FileMove::Conflict { at, .. } => {
                // The conflict copy must hold its content before the name is the server's.
                to_sync.push(at.clone());
                (at, None)
            }
        };
        match self.disk.stat(at) {
            Ok(meta) if meta.kind == FileKind::File => {
                if let Some(staged) = incoming {
                    // The file keeps the permissions that it had.
                    let file = self.disk.open(staged.slot()).map_err(MoveOutcome::Failed)?;
                    file.set_mode(meta.mode & 0o777).map_err(MoveOutcome::Failed)?;
                } else if self.disk.open(at).is_ok_and(|file| file.is_open_for_writing()) {
                    // What the program writes yet would go into history: asked before the name blinks.
                    let why = "a program has it open for writing, it is removed when that is done";
                    return Err(MoveOutcome::Failed(io::Error::new(io::ErrorKind::ResourceBusy, why)));
                } else if meta.links <= 1 {
                    // Straight to where it is to be kept, in one move; where there is no place for it, `keep` says why.
                    slot = shelf.reserve(&*self.disk, at).unwrap_or(slot);
                }
            }
            Ok(_) => return Err(MoveOutcome::Stale { copy: None }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MoveOutcome::Stale { copy: None }),
            Err(e) => return Err(MoveOutcome::Failed(e)),
        }
        intents.push(Intent {
            slot: slot.clone(),
            incoming_inode: incoming.map_or(0, |staged| staged.meta.inode),
            at: at.clone(),
            expect,
            put_back: matches!(step, FileMove::Trash { .. }),
        });
        Ok((step, slot))
    }

    fn make(&self, step: FileMove<D>, slot: &str, shelf: &mut Shelf, touched: &mut BTreeSet<String>) -> MoveOutcome {
        let outcome = match step {
            FileMove::Create { at, staged, .. } => self.create(&at, staged, touched),
            FileMove::Replace { path, at, staged, expect } => {
                self.replace(&path, &at, staged, Some(expect), shelf, touched)
            }
            FileMove::Conflict { path, at, staged } => self.replace(&path, &at, staged, None, shelf, touched),
            FileMove::Trash { path, at, expect } => self.trash(&path, &at, slot, expect, shelf, touched),
        };
        outcome.unwrap_or_else(MoveOutcome::Failed)
    }

    fn create(&self, at: &str, mut staged: StagedFile<D>, touched: &mut BTreeSet<String>) -> io::Result<MoveOutcome> {
        // Where a file was placed a moment ago there is a folder.
        if !touched.contains(dir_of(at))
            && let Some(clash) = self.ensure_parents(at, touched)?
        {
            return Ok(MoveOutcome::Blocked(SkipReason::Clash(clash)));
        }
        failpoint::pass("create.before");
        let placed = match self.disk.rename_new(staged.slot(), at) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                match self.disk.stat(at) {
                    Ok(meta) if meta.kind == FileKind::Dir => {}
                    _ => return Ok(MoveOutcome::Stale { copy: None }),
                }
                // An empty folder of the user's gives way to a file, now that it has come.
                if !self.make_room(at)? {
                    return Ok(MoveOutcome::Blocked(SkipReason::Clash(at.to_owned())));
                }
                self.disk.rename_new(staged.slot(), at)
            }
            placed => placed,
        };
        match placed {
            Ok(()) => staged.placed(),
            // Somebody was faster: plan again.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(MoveOutcome::Stale { copy: None }),
            // The folder went between the two: plan again.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(MoveOutcome::Stale { copy: None }),
            Err(e) => return Err(e),
        }
        failpoint::pass("create.renamed");
        touched.insert(dir_of(at).to_owned());
        Ok(MoveOutcome::Done { copy: None, stat: self.stat_of(at, &staged) })
    }

    /// The stat of a file just placed, if it proves that the file is still what was staged.
    fn stat_of(&self, at: &str, staged: &StagedFile<D>) -> Option<FileStat> {
        unchanged(&staged.meta, &self.disk.stat(at).ok()?)
    }

    fn replace(
        &self,
        path: &RelPath,
        at: &str,
        mut staged: StagedFile<D>,
        expect: Option<Md5>,
        shelf: &mut Shelf,
        touched: &mut BTreeSet<String>,
    ) -> io::Result<MoveOutcome> {
        let slot = staged.slot().to_owned();
        failpoint::pass("replace.before");
        match self.exchange(&mut staged, at) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(MoveOutcome::Stale { copy: None });
            }
            Err(e) => return Err(e),
        }
        failpoint::pass("replace.exchanged");
        touched.insert(dir_of(at).to_owned());
        let Some(displaced) = self.digest_displaced(&slot)? else {
            // No file, or none that may be read: it goes back where it stood. The download may have been edited there.
            self.disk.exchange(&slot, at)?;
            let copy = match self.digest_displaced(&slot)? {
                Some(md5) if md5 == staged.md5 => {
                    self.disk.unlink(&slot)?;
                    None
                }
                other => self.set_aside(&slot, path, at, other.unwrap_or(BEING_WRITTEN), shelf, touched)?,
            };
            return Ok(MoveOutcome::Stale { copy });
        };
        let wanted = expect == Some(displaced) || displaced == staged.md5;
        let copy = if wanted {
            self.keep(&slot, at, VersionKind::Replaced, shelf)?;
            None
        } else {
            Some(self.set_aside(&slot, path, at, displaced, shelf, touched)?)
        };
        failpoint::pass("replace.kept");
        Ok(MoveOutcome::Done { copy: copy.flatten(), stat: self.stat_of(at, &staged) })
    }

    fn trash(
        &self,
        path: &RelPath,
        at: &str,
        slot: &str,
        expect: Md5,
        shelf: &mut Shelf,
        touched: &mut BTreeSet<String>,
    ) -> io::Result<MoveOutcome> {
        failpoint::pass("trash.before");
        match self.disk.rename_new(at, slot) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists
                ) =>
            {
                return Ok(MoveOutcome::Stale { copy: None });
            }
            Err(e) => return Err(e),
        }
        failpoint::pass("trash.displaced");
        touched.insert(dir_of(at).to_owned());
        let displaced = self.digest_displaced(slot)?;
        if displaced == Some(expect) {
            if !is_kept(slot) {
                self.keep(slot, at, VersionKind::Removed, shelf)?;
            }
            failpoint::pass("trash.kept");
            return Ok(MoveOutcome::Done { copy: None, stat: None });
        }
        Ok(MoveOutcome::Stale { copy: self.put_back(slot, path, at, displaced, shelf, touched)? })
    }

    /// Back where it came from; where that place is taken, beside it as a conflict copy.
    fn put_back(
        &self,
        slot: &str,
        path: &RelPath,
        at: &str,
        content: Option<Md5>,
        shelf: &mut Shelf,
        touched: &mut BTreeSet<String>,
    ) -> io::Result<Option<RelPath>> {
        self.ensure_parents(at, touched)?;
        touched.insert(dir_of(at).to_owned());
        match self.disk.rename_new(slot, at) {
            Ok(()) => Ok(None),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                self.set_aside(slot, path, at, content.unwrap_or(BEING_WRITTEN), shelf, touched)
            }
            Err(e) => Err(e),
        }
    }

    /// The displaced file becomes a conflict copy beside `at`, or in the nearest folder above that is still one and in
    /// which its path fits. `None` where a copy of the same content is there.
    fn set_aside(
        &self,
        slot: &str,
        path: &RelPath,
        at: &str,
        content: Md5,
        shelf: &mut Shelf,
        touched: &mut BTreeSet<String>,
    ) -> io::Result<Option<RelPath>> {
        let mut dir = dir_of(at);
        for n in 1..100u32 {
            let name = conflict_name(path.file_name(), self.device(), content, n);
            let copy_at = loop {
                let copy_at = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
                let fits = dir.is_empty() || RelPath::from_disk(&copy_at).is_ok();
                if fits && self.ensure_parents(&copy_at, touched)?.is_none() {
                    break copy_at;
                }
                // The path is too long, or a file stands where the folder was. History alone would not do: it is pruned.
                dir = dir_of(dir);
            };
            let Ok(copy) = RelPath::from_disk(&copy_at) else { continue };
            match self.disk.rename_new(slot, &copy_at) {
                Ok(()) => {
                    failpoint::pass("conflict.renamed");
                    touched.insert(dir_of(&copy_at).to_owned());
                    return Ok(Some(copy));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    // The copy of an earlier try, or one that the user has edited since.
                    if self.content_is(&copy_at, content) {
                        self.keep(slot, at, VersionKind::Replaced, shelf)?;
                        return Ok(None);
                    }
                }
                // The user removed the folder under our hands, or made a file of it: once more, or into history.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(e),
            }
        }
        self.keep(slot, at, VersionKind::Replaced, shelf)?;
        Ok(None)
    }

    fn content_is(&self, at: &str, content: Md5) -> bool {
        matches!(source::digest(&*self.disk, at, &mut Vec::new()), Ok(Some(d)) if d.md5 == content)
    }

    /// The digest of what was displaced; `None` for what is no readable file, for whatever reason: it goes back, or
    /// aside, and its bytes are somebody's still.
    fn digest_displaced(&self, slot: &str) -> io::Result<Option<Md5>> {
        let mut buf = Vec::new();
        for _ in 0..3 {
            let read = self.disk.open(slot).and_then(|mut file| {
                let digested = source::digest_open(&mut file, &mut buf)?;
                // Who has it open may write to it still, and would write to a version in history.
                Ok(digested.filter(|_| !file.is_open_for_writing()))
            });
            match read {
                Ok(Some(d)) => return Ok(Some(d.md5)),
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(e),
                Err(_) => return Ok(None),
            }
        }
        // A program has it open for writing: that is no content that the plan saw, whatever it is.
        Ok(Some(BEING_WRITTEN))
    }

    /// `RENAME_EXCHANGE`, or where the filesystem cannot: the old file aside, then the new one in. Readers may then
    /// miss the file for a moment, but nothing unseen is overwritten. Afterwards the slot holds what was displaced.
    fn exchange(&self, staged: &mut StagedFile<D>, at: &str) -> io::Result<()> {
        let slot = staged.slot().to_owned();
        match self.disk.exchange(&slot, at) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
            other => {
                if other.is_ok() {
                    staged.placed();
                }
                return other;
            }
        }
        // The displaced file must stand at the slot that the intent names, so the incoming one makes room.
        let incoming = self.slot();
        self.disk.rename_new(&slot, &incoming)?;
        staged.placed();
        let placed = self.disk.rename_new(at, &slot).and_then(|()| {
            self.disk.rename_new(&incoming, at).map_err(|e| match self.disk.rename_new(&slot, at) {
                Ok(()) => e,
                // Somebody was faster. What cannot go back now is put in order by the sweep.
                Err(stuck) => io::Error::other(format!("{e}; {stuck}")),
            })
        });
        placed.inspect_err(|_| {
            // Best effort: a download that stays is swept at start-up.
            let _ = self.disk.unlink(&incoming);
        })
    }

    pub(super) fn keep(&self, slot: &str, at: &str, kind: VersionKind, shelf: &mut Shelf) -> io::Result<()> {
        shelf.take(self, slot, at, kind)
    }
}

/// Whether a displaced file stands where it is to be kept.
fn is_kept(slot: &str) -> bool {
    slot.strip_prefix(HISTORY).is_some_and(|rest| rest.starts_with('/'))
}

/// The folder part of a name on the disk.
pub(super) fn dir_of(at: &str) -> &str {
    at.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Nanoseconds since the epoch, as file times are kept.
pub fn ns(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}
