//! [`StateDir`]: the files of one container, and the operations on them.

use std::io::{self, Write};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::failpoint;

use super::journal::BackupLink;
use super::loaded::{RepairPlan, StateFiles, read_file};
use super::types::StateError;

/// State files are private to their owner.
const MODE: u32 = 0o600;

/// Where the next commit goes.
pub(super) enum JournalState<D: Disk> {
    /// To the journal, which is whole and extends the container. The first commit opens `file`.
    Open { file: Option<D::File>, commits: usize, steps: usize },
    /// To a new journal. `old`: the journal on disk extends the backup and must be kept.
    Next { backup: Option<BackupLink>, old: bool },
    /// Nowhere. A write to the journal was cut off after `commits` commits, or the files do not match the loaded state. A save
    /// must come first, and must not touch the journal until the new container is in place.
    Broken { commits: usize },
}

pub(super) struct StateDir<D: Disk> {
    pub(super) disk: Arc<D>,
    pub(super) files: StateFiles,
}

impl<D: Disk> StateDir<D> {
    /// Removes the temporary files of dead processes. A file that cannot be removed only wastes space.
    pub(super) fn remove_leftovers(&self) -> Result<(), StateError> {
        let prefixes = [format!("{}.tmp.", self.files.main), format!("{}.tmp.", self.files.journal)];
        for (name, _) in self.disk.list("").map_err(StateError::io("list", "."))? {
            let Some(name) = name.to_str() else { continue };
            if prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
                && let Err(e) = self.remove(name)
            {
                tracing::warn!("{e}");
            }
        }
        Ok(())
    }

    /// Carries out a repair. Returns the new names of the damaged files.
    pub(super) fn repair(&self, plan: &RepairPlan) -> Result<Vec<String>, StateError> {
        let mut kept = Vec::new();
        for name in &plan.copy_aside {
            if let Some((bytes, _)) = read_file(&*self.disk, name)? {
                let tmp = self.tmp_name(&self.files.main);
                self.write_new(&tmp, |file| file.write_all(&bytes))?;
                kept.push(self.set_aside(&tmp, name)?);
            }
        }
        for name in &plan.set_aside {
            kept.push(self.set_aside(name, name)?);
        }
        if plan.restore_backup {
            self.rename(&self.files.backup, &self.files.main)?;
        }
        if plan.restore_backup || !kept.is_empty() {
            self.sync()?;
        }
        Ok(kept)
    }

    /// Renames `file` to the first free name for a damaged `name`.
    fn set_aside(&self, file: &str, name: &str) -> Result<String, StateError> {
        let mut number = 1u32;
        loop {
            let aside = format!("{name}.damaged-{number}");
            match self.disk.rename_new(file, &aside) {
                Ok(()) => return Ok(aside),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(StateError::io("set aside", name)(e)),
            }
        }
    }

    /// Creates a file and makes its content durable.
    pub(super) fn write_new<T>(
        &self,
        name: &str,
        write: impl FnOnce(&mut FileWriter<D::File>) -> io::Result<T>,
    ) -> Result<T, StateError> {
        // A save of this process may have failed and left it.
        self.remove(name)?;
        let written = (|| {
            let mut file = FileWriter(self.disk.create(name)?);
            file.0.set_mode(MODE)?;
            let value = write(&mut file)?;
            file.0.sync()?;
            Ok(value)
        })();
        written.map_err(StateError::io("write", name))
    }

    pub(super) fn tmp_name(&self, name: &str) -> String {
        format!("{name}.tmp.{}", std::process::id())
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), StateError> {
        self.disk.rename(from, to).map_err(StateError::io("rename", from))
    }

    /// Renames a file, unless an earlier attempt has done so.
    pub(super) fn rename_once(&self, from: &str, to: &str) -> Result<(), StateError> {
        match self.disk.rename(from, to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StateError::io("rename", from)(e)),
            _ => Ok(()),
        }
    }

    /// Removes a file, if it exists.
    pub(super) fn remove(&self, name: &str) -> Result<(), StateError> {
        match self.disk.unlink(name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StateError::io("remove", name)(e)),
            _ => Ok(()),
        }
    }

    /// Makes the names in the directory durable.
    pub(super) fn sync(&self) -> Result<(), StateError> {
        self.disk.sync_dir("").map_err(StateError::io("sync", "."))
    }

    /// Appends to the journal, durably. `file` keeps it open for the next call.
    pub(super) fn append_journal(&self, file: &mut Option<D::File>, bytes: &[u8]) -> io::Result<()> {
        let file = match file {
            Some(file) => file,
            None => file.insert(self.disk.append(&self.files.journal)?),
        };
        file.write_all(bytes)?;
        failpoint::pass("journal.appended");
        file.sync()
    }
}

/// A [`DiskFile`] as a [`Write`].
pub(super) struct FileWriter<F>(F);

impl<F: DiskFile> Write for FileWriter<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
