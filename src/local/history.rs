//! History: what sync replaced or removed, kept in `.memsync/history/` until it is too old or too much.
//!
//! A version of `notes/a.md` is `notes/a.md.<stamp>-<kind>` there, so that a person can find it without this program,
//! and so that a small version costs one inode and no folder of its own.

use std::collections::BTreeSet;
use std::io;

use jiff::Timestamp;

use crate::disk::{Disk, DiskFile};
use crate::failpoint;
use crate::path::PRIVATE_DIR;

use super::Folder;
use super::folder::HISTORY;
use super::moves::dir_of;
use super::source::CHUNK;

mod names;
mod prune;
mod walk;

use names::{Mark, version_name};
pub use prune::{HistoryLimits, PruneFailure, PruneReport};
use walk::batch_of;

/// Versions of one path within one millisecond.
const MOST_NUMBERS: u32 = 1000;

/// How a version came into history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VersionKind {
    /// Newer content took its place.
    Replaced,
    /// The file was deleted elsewhere.
    Removed,
}

impl VersionKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Removed => "removed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Replaced, Self::Removed].into_iter().find(|k| k.name() == text)
    }
}

/// One earlier version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryVersion {
    /// The path as it was called on the disk.
    pub path: String,
    /// When sync displaced it.
    pub at: Timestamp,
    pub kind: VersionKind,
    /// Bytes.
    pub size: u64,
    /// Where it is kept, below the root.
    pub file: String,
}

/// What one run of [`Folder::perform`] puts into history.
pub(super) struct Shelf {
    now: Timestamp,
    /// Folders that are there, and whose names must be made durable.
    made: BTreeSet<String>,
    copied: Vec<Copied>,
}

/// A displaced file that has other names, and its copy in the stage: what is written through those names must not
/// change the version.
struct Copied {
    /// The copy.
    copy: String,
    /// The displaced file.
    slot: String,
    at: String,
    kind: VersionKind,
}

impl Shelf {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, made: BTreeSet::new(), copied: Vec::new() }
    }

    /// The folders whose names must be made durable.
    pub(super) fn dirs(&self) -> BTreeSet<String> {
        self.made.clone()
    }

    /// A free place for a file that is about to be removed. The folder for it is made.
    pub(super) fn reserve<D: Disk>(&mut self, disk: &D, at: &str) -> io::Result<String> {
        let mut in_batch = false;
        for number in 0..MOST_NUMBERS {
            let to = self.spot(at, number, VersionKind::Removed, in_batch);
            match self.make_dir(disk, dir_of(&to)).and_then(|()| disk.stat(&to)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(to),
                Err(e) if e.kind() == io::ErrorKind::NotADirectory && !in_batch => in_batch = true,
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Where a version goes. `in_batch`: into a folder that is named for the time, because a version stands where its
    /// own folder would be.
    fn spot(&self, at: &str, number: u32, kind: VersionKind, in_batch: bool) -> String {
        let mark = Mark { at: self.now, number, kind };
        let (dir, name) = at.rsplit_once('/').unwrap_or(("", at));
        match version_name(name, mark).filter(|_| !in_batch && batch_of(at).is_none()) {
            Some(name) if dir.is_empty() => format!("{HISTORY}/{name}"),
            Some(name) => format!("{HISTORY}/{dir}/{name}"),
            None => format!("{HISTORY}/{}/{at}", mark.text()),
        }
    }

    /// Takes a displaced file. One that has other names stays in its slot until [`Shelf::place_copies`].
    pub(super) fn take<D: Disk>(
        &mut self,
        folder: &Folder<D>,
        slot: &str,
        at: &str,
        kind: VersionKind,
    ) -> io::Result<()> {
        if folder.disk.stat(slot)?.links > 1 {
            match folder.copy(slot) {
                Ok(copy) => {
                    self.copied.push(Copied { copy, slot: slot.to_owned(), at: at.to_owned(), kind });
                    return Ok(());
                }
                // A version that others can write to is better than a folder that stands still until there is room.
                Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {}
                Err(e) => return Err(e),
            }
        }
        self.place(&*folder.disk, slot, at, kind)
    }

    /// Makes the copies durable, all at once, and puts them into history. A displaced file goes only then: a crash
    /// before that leaves it to its intent, and half a copy is never a version.
    pub(super) fn place_copies<D: Disk>(&mut self, folder: &Folder<D>) -> io::Result<()> {
        let copied = std::mem::take(&mut self.copied);
        if copied.is_empty() {
            return Ok(());
        }
        failpoint::pass("history.copied");
        let copies: Vec<String> = copied.iter().map(|c| c.copy.clone()).collect();
        let unsynced = folder.sync_contents(&copies, &BTreeSet::new())?;
        if !unsynced.is_empty() {
            return Err(io::Error::other("a copy for the history could not be made durable"));
        }
        for Copied { copy, at, kind, .. } in &copied {
            self.place(&*folder.disk, copy, at, *kind)?;
            failpoint::pass("history.placed");
        }
        folder.sync_dirs(&self.dirs())?;
        for Copied { slot, .. } in &copied {
            folder.disk.unlink(slot)?;
        }
        Ok(())
    }

    fn place<D: Disk>(&mut self, disk: &D, slot: &str, at: &str, kind: VersionKind) -> io::Result<()> {
        let (mut in_batch, mut is_retry) = (false, false);
        for number in 0..MOST_NUMBERS {
            let to = self.spot(at, number, kind, in_batch);
            let made = self.make_dir(disk, dir_of(&to));
            failpoint::pass("history.before");
            match made.and_then(|()| disk.rename_new(slot, &to)) {
                // A second version of the same path within the millisecond.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) if e.kind() == io::ErrorKind::NotADirectory => in_batch = true,
                // Another process pruned the folder away after it was made.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !is_retry => {
                    is_retry = true;
                    self.made.retain(|made| *made != dir_of(&to) && !to.starts_with(&format!("{made}/")));
                }
                other => return other,
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{HISTORY} has no free name for {at}")))
    }

    /// Makes a folder of the history and those above it. One that is there may not be durable yet, so it counts as made.
    fn make_dir<D: Disk>(&mut self, disk: &D, dir: &str) -> io::Result<()> {
        if self.made.contains(dir) {
            return Ok(());
        }
        if dir != HISTORY {
            self.make_dir(disk, dir_of(dir))?;
        }
        match disk.mkdir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            // All history, or the whole private folder, was cleared away.
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir == HISTORY => {
                disk.mkdir(PRIVATE_DIR)?;
                disk.mkdir(dir)?;
                self.made.extend([String::new(), PRIVATE_DIR.to_owned()]);
            }
            Ok(()) if dir == HISTORY => drop(self.made.insert(PRIVATE_DIR.to_owned())),
            made => made?,
        }
        self.made.insert(dir.to_owned());
        Ok(())
    }
}

impl<D: Disk> Folder<D> {
    /// Copies a file of the stage within it, and gives the copy's name. It is not durable yet.
    fn copy(&self, slot: &str) -> io::Result<String> {
        let name = self.slot();
        let mut from = self.disk.open(slot)?;
        let copied = self.disk.create(&name).and_then(|mut copy| {
            copy.set_mode(from.meta()?.mode & 0o777)?;
            let mut buf = vec![0; CHUNK];
            loop {
                match from.read(&mut buf)? {
                    0 => return Ok(()),
                    n => copy.write_all(&buf[..n])?,
                }
                failpoint::pass("history.copying");
            }
        });
        match copied {
            Ok(()) => Ok(name),
            Err(e) => {
                // Best effort: what stays is swept at start-up.
                let _ = self.disk.unlink(&name);
                Err(e)
            }
        }
    }

    /// Every version that is kept, the newest first; of one path, or of all.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn versions(&self, path: Option<&str>) -> io::Result<Vec<HistoryVersion>> {
        let mut found = match path {
            Some(path) => self.walk_path(path)?,
            None => self.walk_history().into_versions()?,
        };
        found.sort_by(|a, b| b.mark.cmp(&a.mark).then_with(|| a.path.cmp(&b.path)));
        Ok(found.into_iter().map(HistoryVersion::from).collect())
    }
}
