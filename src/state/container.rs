//! [`Container`]: the base in memory, and the writing of its files. `load` says why the order of every step is
//! what it is.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::disk::{Disk, DiskFile};
use crate::failpoint;
use crate::path::RelPath;

use super::format::{self, Entries, Fingerprint, Layout};
use super::journal::{self, Backup, Head, HeaderStep, Step};
use super::load::{self, Loaded, Names, OnDisk, Repair};
use super::{
    BaseChange, BaseEntry, CopyLink, OpenOutcome, RemoteState, StateError, StateHeader, StateOptions, UploadNote,
    UploadNotes,
};

/// State files are their owner's alone.
const MODE: u32 = 0o600;

/// A journal of fewer steps is never worth a save.
const JOURNAL_MIN: usize = 1024;

/// The base of one folder. What it holds is always the container on disk, the journal, and what
/// [`Container::commit`] could not write yet.
pub struct Container<D: Disk> {
    disk: Arc<D>,
    names: Names,
    layout: Layout,
    header: StateHeader,
    entries: Entries,
    uploads: UploadNotes,
    /// The container on disk.
    on_disk: Fingerprint,
    layout_on_disk: Option<Layout>,
    /// It is of an older version.
    outdated: bool,
    journal: Journal<D>,
    /// The backup on disk, where opening looked at it and no container has been written since.
    backup: Option<Fingerprint>,
    /// Steps in memory that are not in the journal.
    pending: Vec<Step>,
    /// The last commit has failed: what it changed is in memory, and may not be on disk.
    has_failed: bool,
}

/// Where the next commit goes.
enum Journal<D: Disk> {
    /// Onto the journal, which extends the container and is whole. `file` is opened with the first commit.
    Open { file: Option<D::File>, commits: usize, steps: usize },
    /// Into a new journal. `old`: the one on disk extends the backup and is to be kept.
    Next { backup: Option<Backup>, old: bool },
    /// Nowhere: a write to the journal was cut off after so many commits, or the files are not what was loaded.
    /// A save must come first, and must leave the journal alone until the new container stands.
    Broken { commits: usize },
}

impl<D: Disk> Container<D> {
    /// Opens the container `name` in the directory that `disk` was opened on, and puts right what a crash or
    /// damage has left. The caller holds the [`FolderLock`](super::Lock). `now` is taken for the times of a new container.
    ///
    /// # Errors
    /// A newer version (nothing is touched), or files that cannot be read or put right.
    pub fn open(
        disk: Arc<D>,
        name: &str,
        options: StateOptions,
        now: Timestamp,
    ) -> Result<(Self, OpenOutcome), StateError> {
        let names = Names::new(name);
        let Loaded { header, entries, mut uploads, mut opened, container, layout, journal, backup, repair } =
            load::load(&*disk, &names)?;
        uploads.begin_boot(disk.boot_id());
        let journal = match journal {
            OnDisk::Extends { commits, .. } if repair.save => Journal::Broken { commits },
            OnDisk::None if repair.save => Journal::Broken { commits: 0 },
            OnDisk::Extends { commits, steps } => Journal::Open { file: None, commits, steps },
            OnDisk::None => Journal::Next { backup: backup.clone().map(Backup::apart), old: false },
        };
        let mut pending = Vec::new();
        let header = header.unwrap_or_else(|| {
            let header = StateHeader {
                session_id: options.session_id.clone(),
                created_at: now,
                modified_at: now,
                folder_id: None,
                remote: RemoteState::default(),
                recovered: false,
                copies: BTreeMap::new(),
                boot: None,
                root_mark: None,
            };
            pending.push(Step::from(&header));
            header
        });
        let mut this = Self {
            disk,
            names,
            layout: Layout::from(&options),
            header,
            entries,
            uploads,
            on_disk: container,
            layout_on_disk: layout,
            outdated: matches!(opened, OpenOutcome::Migrated { .. }),
            journal,
            backup,
            pending,
            has_failed: false,
        };
        this.sweep()?;
        let kept = this.repair(&repair)?;
        if let OpenOutcome::Recovered { set_aside, .. } = &mut opened {
            *set_aside = kept;
            // With the save that ends the recovery: whoever opens it after a crash finds nothing wrong with it.
            this.header.recovered = true;
        }
        if repair.save {
            this.save(now)?;
        }
        Ok((this, opened))
    }

    pub fn header(&self) -> &StateHeader {
        &self.header
    }

    pub fn entries(&self) -> &BTreeMap<RelPath, BaseEntry> {
        &self.entries
    }

    /// The uploads that may have arrived although no commit says so.
    pub fn uploads(&self) -> &UploadNotes {
        &self.uploads
    }

    /// Binds the container to the folder with this `.memsync/id`; durable with the next commit or save.
    pub fn bind_folder(&mut self, folder_id: &str) {
        if self.header.folder_id.as_deref() != Some(folder_id) {
            self.header.folder_id = Some(folder_id.to_owned());
            self.pending.push(Step::from(&self.header));
        }
    }

    /// Notes the file that a conflict copy is of; durable with the next commit or save.
    pub fn link_copy(&mut self, copy: RelPath, link: CopyLink) {
        self.header.copies.insert(copy, link);
        self.pending.push(Step::from(&self.header));
    }

    /// Forgets the conflict copies that are gone; durable with the next commit or save.
    pub fn retain_copies(&mut self, is_there: impl Fn(&RelPath) -> bool) {
        let before = self.header.copies.len();
        self.header.copies.retain(|copy, _| is_there(copy));
        if self.header.copies.len() != before {
            self.pending.push(Step::from(&self.header));
        }
    }

    /// The entries were compared with the folder after a recovery; durable with the next commit or save.
    pub fn set_compared(&mut self) {
        self.set_recovered(false);
    }

    /// The folder may be an older copy of the one that the entries were agreed with: a missing file is no evidence of a
    /// deletion. Durable with the next commit or save.
    pub fn distrust_absence(&mut self) {
        self.set_recovered(true);
    }

    fn set_recovered(&mut self, recovered: bool) {
        if self.header.recovered != recovered {
            self.header.recovered = recovered;
            self.pending.push(Step::from(&self.header));
        }
    }

    /// Notes which folder, of all copies, the entries are agreed with; durable with the next commit or save.
    pub fn set_root_mark(&mut self, mark: &str) {
        if self.header.root_mark.as_deref() != Some(mark) {
            self.header.root_mark = Some(mark.to_owned());
            self.pending.push(Step::from(&self.header));
        }
    }

    /// Notes in which start of the machine an agent works on the folder, `None` for a clean stop; durable with the next
    /// commit or save.
    pub fn set_boot(&mut self, boot: Option<String>) {
        if self.header.boot != boot {
            self.header.boot = boot;
            self.pending.push(Step::from(&self.header));
        }
    }

    /// Notes where the remote stands; durable with the next commit or save.
    pub fn set_remote(&mut self, remote: RemoteState) {
        if self.header.remote != remote {
            self.header.remote = remote;
            self.pending.push(Step::from(&self.header));
        }
    }

    /// Puts other entries in the place of all; durable with the next commit or save.
    pub fn replace_all(&mut self, entries: BTreeMap<RelPath, BaseEntry>) {
        self.pending.push(Step::Clear);
        self.pending.extend(entries.iter().map(|(path, entry)| Step::Set(format::WireEntry::new(path, entry))));
        self.entries = entries;
        self.uploads.clear();
    }

    /// Takes the changes in and makes them durable, all or none, with whatever else is waiting. The cost is that
    /// of the changes, however many entries there are.
    ///
    /// # Errors
    /// When the journal cannot be written. The changes are then in memory, and the next commit writes them too.
    pub fn commit(&mut self, changes: Vec<BaseChange>) -> Result<(), StateError> {
        self.pending.extend(changes.iter().map(Step::from));
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
        let is_broken = matches!(self.journal, Journal::Broken { .. });
        let written = if is_broken { self.save(self.header.modified_at) } else { self.write_journal() };
        self.has_failed = written.is_err();
        written
    }

    /// Makes durable what a commit that failed has left in memory.
    ///
    /// # Errors
    /// As [`Container::commit`].
    pub fn finish_commit(&mut self) -> Result<(), StateError> {
        if self.has_failed { self.commit(Vec::new()) } else { Ok(()) }
    }

    /// Notes uploads that are about to be sent, and makes that durable. The next commit for a path settles its notes.
    ///
    /// # Errors
    /// As [`Container::commit`].
    pub fn note_uploads(&mut self, uploads: Vec<UploadNote>) -> Result<(), StateError> {
        if let Some(wire) = self.uploads.add(uploads) {
            let step = HeaderStep { header: self.header.clone(), uploads: Some(wire) };
            self.pending.push(Step::Header(Box::new(step)));
        }
        // A write that failed before leaves notes that are in memory only.
        let is_unwritten = |step: &Step| matches!(step, Step::Header(with) if with.uploads.is_some());
        if self.pending.iter().any(is_unwritten) { self.commit(Vec::new()) } else { Ok(()) }
    }

    /// Whether a save is due: the journal has outgrown the entries, or the file is not as the options want it.
    pub fn wants_save(&self) -> bool {
        let steps = match self.journal {
            Journal::Open { steps, .. } => steps,
            Journal::Next { .. } => 0,
            Journal::Broken { .. } => return true,
        };
        self.outdated
            || self.layout_on_disk != Some(self.layout)
            || steps + self.pending.len() > JOURNAL_MIN.max(self.entries.len() / 2)
    }

    /// Writes the whole container, keeps the one before as the backup, and begins a new journal.
    ///
    /// # Errors
    /// When something cannot be written; what is on disk then still holds all that was committed.
    pub fn save(&mut self, now: Timestamp) -> Result<(), StateError> {
        // The journal must extend the container that goes, and lead to the one that comes.
        let commits = match self.journal {
            Journal::Broken { commits } => self.pending.is_empty().then_some(commits),
            _ => {
                self.write_journal()?;
                match self.journal {
                    Journal::Open { commits, .. } => Some(commits),
                    _ => None,
                }
            }
        };
        // Never the same bytes twice, whatever the clock does: two containers must not have one fingerprint.
        let after_last = self.header.modified_at.checked_add(SignedDuration::from_nanos(1)).unwrap_or(now);
        let header = StateHeader { modified_at: now.max(after_last), ..self.header.clone() };
        let tmp = self.tmp(&self.names.main);
        let print =
            self.write_new(&tmp, |file| format::encode(file, self.layout, &header, &self.entries, &self.uploads))?;
        failpoint::pass("save.staged");
        let follows = self.on_disk != Fingerprint::of_nothing();
        let backup = if follows {
            self.rename_once(&self.names.main, &self.names.backup)?;
            failpoint::pass("save.backed-up");
            self.sync_dir()?;
            Some(Backup { container: self.on_disk.clone(), commits })
        } else {
            self.backup.clone().map(Backup::apart)
        };
        self.rename(&tmp, &self.names.main)?;
        failpoint::pass("save.placed");
        // From here on the journal on disk is stale, and must not be appended to even if the rest fails.
        self.journal = Journal::Next { backup, old: follows };
        self.on_disk = print;
        self.layout_on_disk = Some(self.layout);
        self.outdated = false;
        self.header = header;
        self.pending.clear();
        self.sync_dir()?;
        self.write_journal()
    }

    /// Brings the pending steps to disk, in a new journal where one is due.
    fn write_journal(&mut self) -> Result<(), StateError> {
        let mut bytes = Vec::new();
        let mut added = (0, 0);
        let encoded = (|| {
            if let Journal::Next { backup, .. } = &self.journal {
                journal::encode_line(&mut bytes, &Head::new(self.on_disk.clone(), backup.clone()))?;
            }
            if !self.pending.is_empty() {
                journal::encode_line(&mut bytes, &self.pending)?;
                added = (1, self.pending.len());
            }
            Ok(())
        })();
        encoded.map_err(|e: serde_json::Error| StateError::io("write", &self.names.journal)(e.into()))?;
        match &mut self.journal {
            Journal::Open { .. } if bytes.is_empty() => return Ok(()),
            Journal::Open { file, commits, steps } => {
                if let Err(e) = append(&*self.disk, &self.names.journal, file, &bytes) {
                    // What of the line is on disk is unknown, after a failed fsync even to the system.
                    self.journal = Journal::Broken { commits: *commits };
                    return Err(StateError::io("write", &self.names.journal)(e));
                }
                *commits += added.0;
                *steps += added.1;
            }
            Journal::Next { old, .. } => {
                let old = *old;
                let tmp = self.tmp(&self.names.journal);
                self.write_new(&tmp, |file| file.write_all(&bytes))?;
                failpoint::pass("journal.staged");
                if old {
                    self.rename_once(&self.names.journal, &self.names.old_journal)?;
                    failpoint::pass("journal.backed-up");
                } else {
                    self.remove(&self.names.old_journal)?;
                }
                self.rename(&tmp, &self.names.journal)?;
                failpoint::pass("journal.placed");
                self.sync_dir()?;
                self.journal = Journal::Open { file: None, commits: added.0, steps: added.1 };
            }
            // Only a save gets past it, and does not come here.
            Journal::Broken { .. } => return Ok(()),
        }
        self.pending.clear();
        Ok(())
    }

    /// Removes what dead runs were writing. A file that cannot be removed costs space alone.
    fn sweep(&self) -> Result<(), StateError> {
        let marks = [format!("{}.tmp.", self.names.main), format!("{}.tmp.", self.names.journal)];
        for (name, _) in self.disk.list("").map_err(StateError::io("list", "."))? {
            let Some(name) = name.to_str() else { continue };
            if marks.iter().any(|mark| name.starts_with(mark.as_str()))
                && let Err(e) = self.remove(name)
            {
                tracing::warn!("{e}");
            }
        }
        Ok(())
    }

    /// Gives the names under which damaged files are kept.
    fn repair(&self, repair: &Repair) -> Result<Vec<String>, StateError> {
        let mut kept = Vec::new();
        for name in &repair.copy_aside {
            if let Some((bytes, _)) = load::read(&*self.disk, name)? {
                let tmp = self.tmp(&self.names.main);
                self.write_new(&tmp, |file| file.write_all(&bytes))?;
                kept.push(self.set_aside(&tmp, name)?);
            }
        }
        for name in &repair.set_aside {
            kept.push(self.set_aside(name, name)?);
        }
        if repair.restore_backup {
            self.rename(&self.names.backup, &self.names.main)?;
        }
        if repair.restore_backup || !kept.is_empty() {
            self.sync_dir()?;
        }
        Ok(kept)
    }

    /// Renames `file` to the first free name that says it is a damaged `name`.
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
    fn write_new<T>(
        &self,
        name: &str,
        write: impl FnOnce(&mut Output<D::File>) -> io::Result<T>,
    ) -> Result<T, StateError> {
        // Left by a save of this run that failed.
        self.remove(name)?;
        let written = (|| {
            let mut file = Output(self.disk.create(name)?);
            file.0.set_mode(MODE)?;
            let value = write(&mut file)?;
            file.0.sync()?;
            Ok(value)
        })();
        written.map_err(StateError::io("write", name))
    }

    fn tmp(&self, name: &str) -> String {
        format!("{name}.tmp.{}", std::process::id())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StateError> {
        self.disk.rename(from, to).map_err(StateError::io("rename", from))
    }

    /// Renames a file that an attempt before this one may have renamed.
    fn rename_once(&self, from: &str, to: &str) -> Result<(), StateError> {
        match self.disk.rename(from, to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StateError::io("rename", from)(e)),
            _ => Ok(()),
        }
    }

    /// Removes a file that may not be there.
    fn remove(&self, name: &str) -> Result<(), StateError> {
        match self.disk.unlink(name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StateError::io("remove", name)(e)),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self) -> Result<(), StateError> {
        self.disk.sync_dir("").map_err(StateError::io("sync", "."))
    }
}

fn append<D: Disk>(disk: &D, name: &str, file: &mut Option<D::File>, bytes: &[u8]) -> io::Result<()> {
    let file = match file {
        Some(file) => file,
        None => file.insert(disk.append(name)?),
    };
    file.write_all(bytes)?;
    failpoint::pass("journal.appended");
    file.sync()
}

/// A [`DiskFile`] as a writer.
struct Output<F>(F);

impl<F: DiskFile> Write for Output<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
