//! [`HistoryWriter`]: moves displaced files into the history folder.

use std::collections::BTreeSet;
use std::io;

use jiff::Timestamp;

use crate::disk::{Disk, DiskFile};
use crate::failpoint;
use crate::path::{PRIVATE_DIR, dir_of};

use super::super::Folder;
use super::super::folder::HISTORY;
use super::super::source::CHUNK_BYTES;
use super::version::{VersionKind, VersionStamp, version_name};
use super::walk::batch_of;

/// Versions of one path that may come within one millisecond.
const MAX_PER_MILLISECOND: u32 = 1000;

/// Adds the versions of one batch to the history.
pub(in crate::local) struct HistoryWriter {
    now: Timestamp,
    /// Folders that exist, and whose names must be made durable.
    made: BTreeSet<String>,
    copied: Vec<LinkedCopy>,
}

/// A displaced file with other hard links, and its copy in the stage. Only the copy may go to history: a write through one
/// of the links would change the version.
struct LinkedCopy {
    copy: String,
    /// The displaced file.
    slot: String,
    at: String,
    kind: VersionKind,
}

/// A displaced file with other hard links that is still in its slot.
pub(in crate::local) struct CopyFailure {
    pub slot: String,
    /// The path that it comes from.
    pub at: String,
    pub source: io::Error,
}

impl LinkedCopy {
    fn into_failure(self, source: io::Error) -> CopyFailure {
        CopyFailure { slot: self.slot, at: self.at, source }
    }
}

impl HistoryWriter {
    pub(in crate::local) fn new(now: Timestamp) -> Self {
        Self { now, made: BTreeSet::new(), copied: Vec::new() }
    }

    /// The folders whose names must be made durable.
    pub(in crate::local) fn dirs(&self) -> BTreeSet<String> {
        self.made.clone()
    }

    /// A free path for a file that is about to be removed. Creates its folder.
    pub(in crate::local) fn reserve<D: Disk>(&mut self, disk: &D, at: &str) -> io::Result<String> {
        let mut in_batch = false;
        for number in 0..MAX_PER_MILLISECOND {
            let to = self.version_path(at, number, VersionKind::Removed, in_batch);
            match self.make_dir(disk, dir_of(&to)).and_then(|()| disk.stat(&to)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(to),
                Err(e) if e.kind() == io::ErrorKind::NotADirectory && !in_batch => in_batch = true,
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The path for a version. `in_batch`: below a folder named after the time, because a version has the name of the
    /// folder that it would need.
    fn version_path(&self, at: &str, number: u32, kind: VersionKind, in_batch: bool) -> String {
        let stamp = VersionStamp { at: self.now, number, kind };
        let (dir, name) = at.rsplit_once('/').unwrap_or(("", at));
        match version_name(name, stamp).filter(|_| !in_batch && batch_of(at).is_none()) {
            Some(name) if dir.is_empty() => format!("{HISTORY}/{name}"),
            Some(name) => format!("{HISTORY}/{dir}/{name}"),
            None => format!("{HISTORY}/{}/{at}", stamp.text()),
        }
    }

    /// Takes a displaced file. One with other hard links stays in its slot until [`HistoryWriter::place_copies`].
    pub(in crate::local) fn take<D: Disk>(
        &mut self,
        folder: &Folder<D>,
        slot: &str,
        at: &str,
        kind: VersionKind,
    ) -> io::Result<()> {
        if folder.disk.stat(slot)?.links > 1 {
            match folder.copy_slot(slot) {
                Ok(copy) => {
                    self.copied.push(LinkedCopy { copy, slot: slot.to_owned(), at: at.to_owned(), kind });
                    return Ok(());
                }
                // A version that can still change is better than a folder that cannot sync until the disk has space.
                Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {}
                Err(e) => return Err(e),
            }
        }
        self.place(&*folder.disk, slot, at, kind)
    }

    /// Makes all copies durable at once and moves them to history, then removes the displaced files. A crash before the
    /// end leaves a displaced file to its intent, so a torn copy never becomes a version. The failure of one copy does not
    /// stop the others; its displaced file stays in the stage.
    pub(in crate::local) fn place_copies<D: Disk>(&mut self, folder: &Folder<D>) -> Vec<CopyFailure> {
        let copied = std::mem::take(&mut self.copied);
        if copied.is_empty() {
            return Vec::new();
        }
        failpoint::pass("history.copied");
        let copies: Vec<String> = copied.iter().map(|c| c.copy.clone()).collect();
        let mut unsynced = match folder.sync_contents(&copies, &BTreeSet::new()) {
            Ok(unsynced) => unsynced,
            Err(e) => return fail_all(copied, &e),
        };
        let (mut placed, mut failures) = (Vec::new(), Vec::new());
        for linked in copied {
            let outcome = match unsynced.remove(&linked.copy) {
                Some(e) => Err(e),
                None => self.place(&*folder.disk, &linked.copy, &linked.at, linked.kind),
            };
            match outcome {
                Ok(()) => {
                    failpoint::pass("history.placed");
                    placed.push(linked);
                }
                Err(e) => {
                    folder.discard_slot(&linked.copy);
                    failures.push(linked.into_failure(e));
                }
            }
        }
        if let Err(e) = folder.sync_dirs(&self.dirs()) {
            failures.extend(fail_all(placed, &e));
            return failures;
        }
        for linked in placed {
            if let Err(e) = folder.disk.unlink(&linked.slot) {
                failures.push(linked.into_failure(e));
            }
        }
        failures
    }

    fn place<D: Disk>(&mut self, disk: &D, slot: &str, at: &str, kind: VersionKind) -> io::Result<()> {
        let (mut in_batch, mut is_retry) = (false, false);
        for number in 0..MAX_PER_MILLISECOND {
            let to = self.version_path(at, number, kind, in_batch);
            let made = self.make_dir(disk, dir_of(&to));
            failpoint::pass("history.before");
            match made.and_then(|()| disk.rename_new(slot, &to)) {
                // Another version of the path in this millisecond.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) if e.kind() == io::ErrorKind::NotADirectory => in_batch = true,
                // Another process has just pruned the folder.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !is_retry => {
                    is_retry = true;
                    self.made.retain(|made| *made != dir_of(&to) && !to.starts_with(&format!("{made}/")));
                }
                other => return other,
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{HISTORY} has no free name for {at}")))
    }

    /// Creates a folder of the history and those above it. An existing folder may not be durable yet, so it counts as made.
    fn make_dir<D: Disk>(&mut self, disk: &D, dir: &str) -> io::Result<()> {
        if self.made.contains(dir) {
            return Ok(());
        }
        if dir != HISTORY {
            self.make_dir(disk, dir_of(dir))?;
        }
        match disk.mkdir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            // The user has removed the history, or all of `.memsync`.
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

fn fail_all(copies: Vec<LinkedCopy>, e: &io::Error) -> Vec<CopyFailure> {
    copies.into_iter().map(|copy| copy.into_failure(io::Error::new(e.kind(), e.to_string()))).collect()
}

impl<D: Disk> Folder<D> {
    /// Copies a file of the stage to a new slot and returns its path. The copy is not durable yet.
    fn copy_slot(&self, slot: &str) -> io::Result<String> {
        let name = self.slot();
        let mut from = self.disk.open(slot)?;
        let copied = self.disk.create(&name).and_then(|mut copy| {
            copy.set_mode(from.meta()?.mode & 0o777)?;
            let mut buf = vec![0; CHUNK_BYTES];
            loop {
                match from.read(&mut buf)? {
                    0 => return Ok(()),
                    n => copy.write_all(&buf[..n])?,
                }
                failpoint::pass("history.copying");
            }
        });
        copied.inspect_err(|_| self.discard_slot(&name))?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::local::tests::folder;
    use crate::testing::{StepFate, StepKind};

    #[test]
    fn copy_that_cannot_be_placed_does_not_stop_the_others() {
        let (disk, folder) = folder();
        let mut writer = HistoryWriter::new(Timestamp::UNIX_EPOCH);
        for name in ["a", "b", "c"] {
            let (copy, slot) = (folder.slot(), format!(".memsync/stage/{name}.displaced"));
            disk.user_write(&copy, name).unwrap();
            disk.user_write(&slot, name).unwrap();
            writer.copied.push(LinkedCopy { copy, slot, at: name.to_owned(), kind: VersionKind::Replaced });
        }
        let (unsynced, unplaced) = (writer.copied[0].copy.clone(), writer.copied[1].copy.clone());
        disk.set_hook(Some(Box::new(move |op| match op.kind {
            StepKind::Sync if op.path == unsynced => StepFate::Fail(ErrorKind::Other),
            StepKind::RenameNew if op.path == unplaced => StepFate::Fail(ErrorKind::StorageFull),
            _ => StepFate::Go,
        })));
        let failures = writer.place_copies(&folder);
        assert_eq!(failures.iter().map(|failed| failed.at.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        disk.set_hook(None);
        let versions = folder.versions(None).unwrap();
        assert_eq!(versions.iter().map(|v| v.path.as_str()).collect::<Vec<_>>(), ["c"]);
        let stage: Vec<String> = disk.user_tree(".memsync/stage").into_keys().collect();
        assert_eq!(stage, [".memsync/stage/a.displaced", ".memsync/stage/b.displaced"]);
    }
}
