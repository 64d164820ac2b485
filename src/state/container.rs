//! [`Container`]: the base in memory, and the commits to it. `save` writes its files.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::disk::Disk;
use crate::path::RelPath;

use super::format::{FileLayout, Fingerprint};
use super::journal::{BackupLink, HeaderStep, JournalStep};
use super::load::load;
use super::loaded::{LoadedJournal, LoadedState, RepairPlan, StateFiles};
use super::notes::{UploadNote, UploadNotes};
use super::state_dir::{JournalState, StateDir};
use super::types::{
    BaseChange, BaseEntries, BaseEntry, CopyLink, OpenOutcome, RemoteState, StateError, StateHeader, StateOptions,
};

/// A journal with fewer steps is never worth a save.
const MIN_JOURNAL_STEPS: usize = 1024;

/// The base of one folder. Its content is that of the container and the journal on disk, plus the steps that
/// [`Container::commit`] could not write yet.
pub struct Container<D: Disk> {
    pub(super) dir: StateDir<D>,
    pub(super) layout: FileLayout,
    pub(super) header: StateHeader,
    pub(super) entries: BaseEntries,
    pub(super) uploads: UploadNotes,
    /// The container on disk.
    pub(super) on_disk: Fingerprint,
    pub(super) layout_on_disk: Option<FileLayout>,
    /// The container on disk has an older version.
    pub(super) outdated: bool,
    pub(super) journal: JournalState<D>,
    /// The backup on disk, if opening has read it and no container has been written since.
    pub(super) backup: Option<Fingerprint>,
    /// Steps in memory that are not in the journal yet.
    pub(super) pending: Vec<JournalStep>,
    /// The last commit failed. Its changes are in memory and may not be on disk.
    has_failed: bool,
}

impl<D: Disk> Container<D> {
    /// Opens the container `name` in the directory of `disk`, and repairs the effects of a crash or of damage. The caller
    /// holds the [`FolderLock`](super::FolderLock). A new container has the time `now`.
    ///
    /// # Errors
    /// The container has a newer version (nothing is changed then), or a file cannot be read or repaired.
    pub fn open(
        disk: Arc<D>,
        name: &str,
        options: StateOptions,
        now: Timestamp,
    ) -> Result<(Self, OpenOutcome), StateError> {
        let files = StateFiles::new(name);
        let mut loaded = load(&*disk, &files)?;
        loaded.uploads.begin_boot(disk.boot_id());
        let repair = std::mem::take(&mut loaded.repair);
        let mut opened = std::mem::replace(&mut loaded.opened, OpenOutcome::New);
        let outdated = matches!(opened, OpenOutcome::Migrated { .. });
        let mut this = Self::from_loaded(StateDir { disk, files }, loaded, &repair, &options, now);
        this.outdated = outdated;
        this.dir.remove_leftovers()?;
        let kept = this.dir.repair(&repair)?;
        if let OpenOutcome::Recovered { set_aside, .. } = &mut opened {
            *set_aside = kept;
            // The save below ends the recovery and makes this durable, because a later opening finds no damage.
            this.header.recovered = true;
        }
        if repair.save {
            this.save(now)?;
        }
        Ok((this, opened))
    }

    fn from_loaded(
        dir: StateDir<D>,
        loaded: LoadedState,
        repair: &RepairPlan,
        options: &StateOptions,
        now: Timestamp,
    ) -> Self {
        let LoadedState { header, entries, uploads, container, layout, journal, backup, .. } = loaded;
        let journal = match journal {
            LoadedJournal::Extends { commits, .. } if repair.save => JournalState::Broken { commits },
            LoadedJournal::None if repair.save => JournalState::Broken { commits: 0 },
            LoadedJournal::Extends { commits, steps } => JournalState::Open { file: None, commits, steps },
            LoadedJournal::None => {
                JournalState::Next { backup: backup.clone().map(BackupLink::unconnected), old: false }
            }
        };
        let mut pending = Vec::new();
        let header = header.unwrap_or_else(|| {
            let header = StateHeader::new(options.session_id.clone(), now, now);
            pending.push(JournalStep::from(&header));
            header
        });
        Self {
            dir,
            layout: FileLayout::from(options),
            header,
            entries,
            uploads,
            on_disk: container,
            layout_on_disk: layout,
            outdated: false,
            journal,
            backup,
            pending,
            has_failed: false,
        }
    }

    pub fn header(&self) -> &StateHeader {
        &self.header
    }

    pub fn entries(&self) -> &BTreeMap<RelPath, BaseEntry> {
        &self.entries
    }

    /// The uploads that may have arrived at the server without a commit.
    pub fn uploads(&self) -> &UploadNotes {
        &self.uploads
    }

    /// Changes the header. Durable with the next commit or save, like every change below.
    fn update_header(&mut self, update: impl FnOnce(&mut StateHeader)) {
        let before = self.header.clone();
        update(&mut self.header);
        if self.header != before {
            self.pending.push(JournalStep::from(&self.header));
        }
    }

    /// Binds the container to the folder with this `.memsync/id`.
    pub(crate) fn bind_folder(&mut self, folder_id: &str) {
        self.update_header(|header| header.folder_id = Some(folder_id.to_owned()));
    }

    /// Records the original of a conflict copy.
    pub(crate) fn link_copy(&mut self, copy: RelPath, link: CopyLink) {
        self.update_header(|header| drop(header.copies.insert(copy, link)));
    }

    /// Forgets the conflict copies that are gone.
    pub(crate) fn retain_copies(&mut self, is_there: impl Fn(&RelPath) -> bool) {
        if self.header.copies.keys().all(&is_there) {
            return;
        }
        self.update_header(|header| header.copies.retain(|copy, _| is_there(copy)));
    }

    /// Records that the entries were compared with the folder after a recovery.
    pub(crate) fn set_compared(&mut self) {
        self.set_recovered(false);
    }

    /// Records that a missing file does not prove a deletion, because the folder may be an older copy of itself.
    pub(crate) fn distrust_absence(&mut self) {
        self.set_recovered(true);
    }

    fn set_recovered(&mut self, recovered: bool) {
        if self.header.recovered != recovered {
            self.update_header(|header| header.recovered = recovered);
        }
    }

    /// Records which of several copies of the folder the entries belong to.
    pub(crate) fn set_root_mark(&mut self, mark: &str) {
        if self.header.root_mark.as_deref() != Some(mark) {
            self.update_header(|header| header.root_mark = Some(mark.to_owned()));
        }
    }

    /// Records the boot of the machine in which an agent works on the folder. `None` records a clean stop.
    pub fn set_boot(&mut self, boot: Option<String>) {
        self.update_header(|header| header.boot = boot);
    }

    /// Records the state of the server.
    pub(crate) fn set_remote(&mut self, remote: RemoteState) {
        if self.header.remote != remote {
            self.update_header(|header| header.remote = remote);
        }
    }

    /// Replaces all entries.
    pub fn replace_all(&mut self, entries: BTreeMap<RelPath, BaseEntry>) {
        self.pending.push(JournalStep::Clear);
        self.pending.extend(entries.iter().map(|(path, entry)| JournalStep::set(path, entry)));
        self.entries = entries;
        self.uploads.clear();
    }

    /// Applies the changes and makes them durable, all or none, with everything pending. The cost depends on the number of
    /// changes, not of entries.
    ///
    /// # Errors
    /// The journal cannot be written. The changes are in memory then, and the next commit writes them.
    pub fn commit(&mut self, changes: Vec<BaseChange>) -> Result<(), StateError> {
        self.pending.extend(changes.iter().map(JournalStep::from));
        for change in changes {
            match change {
                BaseChange::Set(path, entry) => {
                    self.uploads.settle(&path);
                    self.entries.insert(path, entry);
                }
                BaseChange::Forget(path) => {
                    self.uploads.settle(&path);
                    self.entries.remove(&path);
                }
            }
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let is_broken = matches!(self.journal, JournalState::Broken { .. });
        let written = if is_broken { self.save(self.header.modified_at) } else { self.write_journal() };
        self.has_failed = written.is_err();
        written
    }

    /// Makes durable the changes of a commit that failed.
    ///
    /// # Errors
    /// As [`Container::commit`].
    pub(crate) fn finish_commit(&mut self) -> Result<(), StateError> {
        if self.has_failed { self.commit(Vec::new()) } else { Ok(()) }
    }

    /// Records uploads, durably, before they are sent. The next commit for a path settles its notes.
    ///
    /// # Errors
    /// As [`Container::commit`].
    pub(crate) fn note_uploads(&mut self, uploads: Vec<UploadNote>) -> Result<(), StateError> {
        if let Some(stored) = self.uploads.add(uploads) {
            let step = HeaderStep { header: self.header.clone(), uploads: Some(stored) };
            self.pending.push(JournalStep::Header(Box::new(step)));
        }
        // An earlier write may have failed, so that its notes are only in memory.
        let is_unwritten = |step: &JournalStep| matches!(step, JournalStep::Header(with) if with.uploads.is_some());
        if self.pending.iter().any(is_unwritten) { self.commit(Vec::new()) } else { Ok(()) }
    }

    /// True if a save is due: the journal has outgrown the entries, or the file does not match the options.
    pub fn wants_save(&self) -> bool {
        let steps = match self.journal {
            JournalState::Open { steps, .. } => steps,
            JournalState::Next { .. } => 0,
            JournalState::Broken { .. } => return true,
        };
        self.outdated
            || self.layout_on_disk != Some(self.layout)
            || steps + self.pending.len() > MIN_JOURNAL_STEPS.max(self.entries.len() / 2)
    }
}
