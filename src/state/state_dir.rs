//! [`StateDir`]: the files of one container, and the operations on them.

use std::io::{self, Write};
use std::sync::Arc;

use jiff::Timestamp;

use crate::disk::{Disk, DiskFile};
use crate::failpoint;

use super::format::{self, ContainerContent, DecodeError, Fingerprint};
use super::journal::{self, BackupLink, JournalContent};
use super::types::{StateError, VERSION};

/// State files are private to their owner.
const MODE: u32 = 0o600;

/// The names of the files of one container.
#[derive(Debug, Clone)]
pub(super) struct StateFiles {
    pub(super) main: String,
    pub(super) backup: String,
    pub(super) journal: String,
    pub(super) old_journal: String,
}

impl StateFiles {
    pub(super) fn new(name: &str) -> Self {
        Self {
            main: name.to_owned(),
            backup: format!("{name}.bak"),
            journal: format!("{name}.journal"),
            old_journal: format!("{name}.journal.bak"),
        }
    }
}

/// The file at the name of a container.
pub(super) enum ContainerFile {
    /// No file, or an empty one.
    Nothing,
    Damaged,
    Whole(Box<ContainerContent>, Fingerprint),
}

impl ContainerFile {
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Whole(_, print) => Some(print.clone()),
            Self::Nothing | Self::Damaged => None,
        }
    }
}

/// The file at the name of a journal.
pub(super) enum JournalFile {
    Absent,
    Damaged,
    Readable(JournalContent),
}

impl JournalFile {
    pub(super) fn readable(&self) -> Option<&JournalContent> {
        match self {
            Self::Readable(journal) => Some(journal),
            Self::Absent | Self::Damaged => None,
        }
    }

    pub(super) fn extends(&self, container: &Fingerprint) -> bool {
        self.readable().is_some_and(|j| j.head.extends == *container)
    }
}

/// The repairs to make before the container is used.
#[derive(Debug, Default)]
pub(super) struct RepairPlan {
    /// Files to rename.
    pub(super) set_aside: Vec<String>,
    /// Files to copy, because another opening needs them if the repair is cut off.
    pub(super) copy_aside: Vec<String>,
    /// Rename the backup back, because a save was cut off after its first rename.
    pub(super) restore_backup: bool,
    /// Save, because the files do not match the loaded state.
    pub(super) save: bool,
}

/// Where the next commit goes.
pub(super) enum JournalState<D: Disk> {
    /// To the journal, which is whole and extends the container. The first commit opens `file`.
    Open { file: Option<D::File>, commits: usize, steps: usize },
    /// To a new journal. `old`: the journal on disk extends the backup and must be kept.
    Next { backup: Option<BackupLink>, old: bool },
    /// Nowhere. A write to the journal was cut off after `commits` commits, or the files do not match the loaded state.
    /// A save must come first, and must not touch the journal until the new container is in place.
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

/// The bytes of a file and the time of its last write. `None` if it does not exist.
pub(super) fn read_file<D: Disk>(disk: &D, name: &str) -> Result<Option<(Vec<u8>, Timestamp)>, StateError> {
    let mut file = match disk.open(name) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StateError::io("open", name)(e)),
    };
    let meta = file.meta().map_err(StateError::io("read", name))?;
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(StateError::io("read", name)(e)),
        }
    }
    let written = Timestamp::from_nanosecond(meta.mtime_ns.into()).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(Some((bytes, written)))
}

pub(super) fn read_container<D: Disk>(disk: &D, name: &str) -> Result<ContainerFile, StateError> {
    let Some((bytes, written)) = read_file(disk, name)?.filter(|(bytes, _)| !bytes.is_empty()) else {
        return Ok(ContainerFile::Nothing);
    };
    match format::decode(&bytes, written) {
        Ok(content) => Ok(ContainerFile::Whole(Box::new(content), Fingerprint::of(&bytes))),
        Err(DecodeError::Damaged) => Ok(ContainerFile::Damaged),
        Err(DecodeError::Future(found)) => Err(newer_version(name, found)),
    }
}

pub(super) fn read_journal<D: Disk>(disk: &D, name: &str) -> Result<JournalFile, StateError> {
    let Some((bytes, _)) = read_file(disk, name)? else { return Ok(JournalFile::Absent) };
    match journal::decode(&bytes) {
        Ok(journal) => Ok(JournalFile::Readable(journal)),
        Err(DecodeError::Damaged) => Ok(JournalFile::Damaged),
        Err(DecodeError::Future(found)) => Err(newer_version(name, found)),
    }
}

fn newer_version(file: &str, found: u64) -> StateError {
    StateError::FutureVersion { file: file.to_owned(), found, known: VERSION }
}
