//! Reads the files of a container, and holds the state that they add up to.

use std::io;

use jiff::Timestamp;

use crate::disk::{Disk, DiskFile};

use super::format::{self, ContainerContent, DecodeError, FileLayout, Fingerprint};
use super::journal::{self, JournalContent, JournalError, JournalStep};
use super::notes::UploadNotes;
use super::types::{BaseEntries, OpenOutcome, StateError, StateHeader, VERSION};

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

/// The journal on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoadedJournal {
    /// There is none, or it does not extend the container.
    None,
    /// It extends the container.
    Extends { commits: usize, steps: usize },
}

/// The state that was read from the files.
pub(super) struct LoadedState {
    /// `None` if no file has one.
    pub(super) header: Option<StateHeader>,
    pub(super) entries: BaseEntries,
    pub(super) uploads: UploadNotes,
    pub(super) opened: OpenOutcome,
    /// The container after the repair; [`Fingerprint::empty`] if there is none.
    pub(super) container: Fingerprint,
    pub(super) layout: Option<FileLayout>,
    pub(super) journal: LoadedJournal,
    /// The backup, if it was read and is whole.
    pub(super) backup: Option<Fingerprint>,
    pub(super) repair: RepairPlan,
}

impl ContainerFile {
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Whole(_, print) => Some(print.clone()),
            Self::Nothing | Self::Damaged => None,
        }
    }
}

impl LoadedState {
    /// The state of a folder without any file.
    pub(super) fn empty() -> Self {
        Self {
            header: None,
            entries: BaseEntries::new(),
            uploads: UploadNotes::default(),
            opened: OpenOutcome::New,
            container: Fingerprint::empty(),
            layout: None,
            journal: LoadedJournal::None,
            backup: None,
            repair: RepairPlan::default(),
        }
    }

    pub(super) fn take_content(&mut self, content: ContainerContent) {
        self.header = Some(content.header);
        self.entries = content.entries;
        self.uploads = content.uploads;
        self.layout = Some(content.layout);
    }

    pub(super) fn apply(&mut self, commits: Vec<Vec<JournalStep>>) {
        for step in commits.into_iter().flatten() {
            if let Some(header) = step.apply(&mut self.entries, &mut self.uploads) {
                self.header = Some(header);
            }
        }
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
        Err(DecodeError::Damaged(_)) => Ok(ContainerFile::Damaged),
        Err(DecodeError::Future(found)) => Err(newer_version(name, found)),
    }
}

pub(super) fn read_journal<D: Disk>(disk: &D, name: &str) -> Result<JournalFile, StateError> {
    let Some((bytes, _)) = read_file(disk, name)? else { return Ok(JournalFile::Absent) };
    match journal::decode(&bytes) {
        Ok(journal) => Ok(JournalFile::Readable(journal)),
        Err(JournalError::Damaged) => Ok(JournalFile::Damaged),
        Err(JournalError::Future(found)) => Err(newer_version(name, found)),
    }
}

fn newer_version(file: &str, found: u64) -> StateError {
    StateError::FutureVersion { file: file.to_owned(), found, known: VERSION }
}
