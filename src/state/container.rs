//! [`Container`]: the base in memory, the commits to it, and the writes of its files. `load` lists the crash points,
//! and the reason for the order of every step.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::disk::Disk;
use crate::failpoint;
use crate::path::RelPath;

use super::format::{self, FileLayout, Fingerprint};
use super::journal::{self, BackupLink, HeaderStep, JournalHead, JournalStep};
use super::load::{LoadedJournal, LoadedState, load};
use super::notes::{UploadNote, UploadNotes};
use super::shadow::ShadowTexts;
use super::state_dir::{JournalState, RepairPlan, StateDir, StateFiles};
use super::types::{
    BaseChange, BaseEntries, BaseEntry, CopyLink, OpenOutcome, RemoteState, StateError, StateHeader, StateOptions,
    VERSION,
};

/// A journal with fewer steps is never worth a save.
const MIN_JOURNAL_STEPS: usize = 1024;

/// The base of one folder. Its content is that of the container and the journal on disk, plus the steps that
/// [`Container::commit`] could not write yet.
pub struct Container<D: Disk> {
    dir: StateDir<D>,
    layout: FileLayout,
    header: StateHeader,
    entries: BaseEntries,
    uploads: UploadNotes,
    /// The container on disk.
    on_disk: Fingerprint,
    layout_on_disk: Option<FileLayout>,
    /// The container on disk has an older version.
    outdated: bool,
    journal: JournalState<D>,
    /// The backup on disk, if opening has read it and no container has been written since.
    backup: Option<Fingerprint>,
    /// Steps in memory that are not in the journal yet.
    pending: Vec<JournalStep>,
    /// The last commit failed. Its changes are in memory and may not be on disk.
    has_failed: bool,
}

impl<D: Disk> Container<D> {
    /// Opens the container `name` in the directory of `disk`, and repairs the effects of a crash or of damage. The
    /// caller holds the [`FolderLock`](super::FolderLock). A new container has the time `now`.
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
        let mut opened = std::mem::take(&mut loaded.opened);
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

    /// The texts that are kept beside the container.
    pub fn shadow_texts(&self) -> ShadowTexts<D> {
        ShadowTexts::beside(self.dir.disk.clone(), &self.dir.files.main)
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

    /// Changes the header, where that makes a difference. Durable with the next commit or save, like every change
    /// below.
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
        self.update_header(|header| header.copies.retain(|copy, _| is_there(copy)));
    }

    /// `true`: a missing file proves no deletion, because the entries may be older or newer than the folder. `false`: the
    /// entries were compared with the folder since.
    pub(crate) fn set_absence_doubted(&mut self, is_doubted: bool) {
        self.update_header(|header| header.recovered = is_doubted);
    }

    /// Records which of several copies of the folder the entries belong to.
    pub(crate) fn set_root_mark(&mut self, mark: &str) {
        self.update_header(|header| header.root_mark = Some(mark.to_owned()));
    }

    /// Records the boot of the machine in which an agent works on the folder. `None` records a clean stop.
    pub fn set_boot(&mut self, boot: Option<String>) {
        self.update_header(|header| header.boot = boot);
    }

    /// Records the state of the server.
    pub(crate) fn set_remote(&mut self, remote: RemoteState) {
        self.update_header(|header| header.remote = remote);
    }

    /// Replaces all entries.
    pub fn replace_all(&mut self, entries: BTreeMap<RelPath, BaseEntry>) {
        self.pending.push(JournalStep::Clear);
        self.pending.extend(entries.iter().map(|(path, entry)| JournalStep::set(path, entry)));
        self.entries = entries;
        self.uploads.clear();
    }

    /// Applies the changes and makes them durable, all or none, with everything pending. The cost depends on the number
    /// of changes, not of entries.
    ///
    /// # Errors
    /// The journal cannot be written. The changes are in memory then, and the next commit writes them.
    pub fn commit(&mut self, changes: Vec<BaseChange>) -> Result<(), StateError> {
        self.pending.extend(changes.iter().map(JournalStep::from));
        changes.into_iter().for_each(|change| change.apply(&mut self.entries, &mut self.uploads));
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

    /// Writes the whole container, keeps the old one as the backup, and begins a new journal.
    ///
    /// # Errors
    /// A file cannot be written. The disk still holds every commit then.
    pub fn save(&mut self, now: Timestamp) -> Result<(), StateError> {
        let commits = self.finish_journal()?;
        // Never write the same bytes twice, whatever the clock does: two containers must differ in their fingerprints.
        let after_last = self.header.modified_at.checked_add(SignedDuration::from_nanos(1)).unwrap_or(now);
        let header = StateHeader { modified_at: now.max(after_last), ..self.header.clone() };
        let (dir, files) = (&self.dir, &self.dir.files);
        let tmp = dir.tmp_name(&files.main);
        let fingerprint =
            dir.write_new(&tmp, |file| format::encode(file, self.layout, &header, &self.entries, &self.uploads))?;
        failpoint::pass("save.staged");
        let has_old = self.on_disk != Fingerprint::default();
        let backup = if has_old {
            dir.rename_once(&files.main, &files.backup)?;
            failpoint::pass("save.backed-up");
            dir.sync()?;
            Some(BackupLink { container: self.on_disk.clone(), commits })
        } else {
            self.backup.clone().map(BackupLink::unconnected)
        };
        dir.rename(&tmp, &files.main)?;
        failpoint::pass("save.placed");
        // The journal on disk is stale from here on. Never append to it, even if the next steps fail.
        self.journal = JournalState::Next { backup, old: has_old };
        self.on_disk = fingerprint;
        self.layout_on_disk = Some(self.layout);
        self.outdated = false;
        self.header = header;
        self.pending.clear();
        self.dir.sync()?;
        self.write_journal()
    }

    /// Writes the pending steps, so that the old journal leads to the new container. Returns the number of commits that
    /// lead there, or `None` if they do not.
    fn finish_journal(&mut self) -> Result<Option<usize>, StateError> {
        if let JournalState::Broken { commits } = self.journal {
            return Ok(self.pending.is_empty().then_some(commits));
        }
        self.write_journal()?;
        Ok(match self.journal {
            JournalState::Open { commits, .. } => Some(commits),
            _ => None,
        })
    }

    /// Writes the pending steps to the journal, or to a new one if that is due.
    fn write_journal(&mut self) -> Result<(), StateError> {
        let failed = StateError::io("write", &self.dir.files.journal);
        let mut bytes = Vec::new();
        if let JournalState::Next { backup, .. } = &self.journal {
            let (extends, backup) = (self.on_disk.clone(), backup.clone());
            let head = JournalHead { version: VERSION.into(), extends, backup };
            journal::encode_line(&mut bytes, &head).map_err(|e| failed(e.into()))?;
        }
        let added = self.pending.len();
        if added > 0 {
            journal::encode_line(&mut bytes, &self.pending).map_err(|e| failed(e.into()))?;
        }
        match &mut self.journal {
            JournalState::Open { .. } if bytes.is_empty() => return Ok(()),
            JournalState::Open { file, commits, steps } => {
                if let Err(e) = self.dir.append_journal(file, &bytes) {
                    // After a failed fsync, not even the system knows which part of the line is on disk.
                    self.journal = JournalState::Broken { commits: *commits };
                    return Err(failed(e));
                }
                *commits += 1;
                *steps += added;
            }
            JournalState::Next { old, .. } => {
                let old = *old;
                self.begin_journal(&bytes, old)?;
                self.journal = JournalState::Open { file: None, commits: usize::from(added > 0), steps: added };
            }
            // Only a save mends this, and it does not come here.
            JournalState::Broken { .. } => return Ok(()),
        }
        self.pending.clear();
        Ok(())
    }

    /// Places a new journal. `keep_old`: the old one extends the backup.
    fn begin_journal(&self, bytes: &[u8], keep_old: bool) -> Result<(), StateError> {
        let (dir, files) = (&self.dir, &self.dir.files);
        let tmp = dir.tmp_name(&files.journal);
        dir.write_new(&tmp, |file| file.write_all(bytes))?;
        failpoint::pass("journal.staged");
        if keep_old {
            dir.rename_once(&files.journal, &files.old_journal)?;
            failpoint::pass("journal.backed-up");
        } else {
            dir.remove(&files.old_journal)?;
        }
        dir.rename(&tmp, &files.journal)?;
        failpoint::pass("journal.placed");
        dir.sync()
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
