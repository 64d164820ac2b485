//! How the files of a container fit together, after any crash or damage, and what they add up to.
//!
//! This file only reads; `state_dir` carries out the repairs. The files, with `N` for the name of the container:
//!
//! | file | content |
//! |---|---|
//! | `N` | container *g* |
//! | `N.journal` | the commits since *g*; its head names *g*, and *g-1* as the backup |
//! | `N.bak` | container *g-1* |
//! | `N.journal.bak` | the commits that lead from *g-1* to *g*; its head names *g-1* |
//!
//! A container is identified by the fingerprint of its bytes. So a journal proves which container it extends, and is
//! never applied to another one.
//!
//! # Every crash point
//!
//! A *commit* appends one line to `N.journal` and syncs it. After a crash in between, the line is there (the commit
//! counts, although no caller has seen its success) or torn (it does not count). A torn journal gets no more lines: a
//! save follows.
//!
//! A *save* has these steps. The directory is synced between them, so no step is durable before an earlier one. Each
//! step says how the files look after a crash.
//!
//! 1. Write and sync `N.tmp.PID`. The next opening removes it.
//! 2. Rename `N` to `N.bak` (*g*). There is no `N`, and the journal extends the backup. Both are used; nothing is lost.
//! 3. Rename the temporary file to `N` (*g+1*). The journal extends the backup, not `N`. `N` contains its commits, so the
//!    journal is stale.
//! 4. Write and sync `N.journal.tmp.PID`, which extends *g+1*. Rename `N.journal` to `N.journal.bak`. `N` has no journal, so
//!    there are no commits since.
//! 5. Rename the temporary file to `N.journal` and sync the directory. The table above holds. If this rename is durable
//!    and the one before it is not, `N.journal.bak` is older than the backup. Its head says so, and it is not used.
//!
//! The *first save* has nothing to rename in step 2. Its journal extends the empty container, and is stale once `N`
//! exists. A container of an *older version* is like any other. It stays `N` until the first save, and becomes the
//! backup then.
//!
//! # Damage
//!
//! A container is set aside if it cannot be read or its journal extends another one. The backup replaces it if a
//! journal names the backup, or if no journal is left. `N.journal.bak` follows, and then `N.journal` if the two join:
//! then nothing is lost. Without a backup the folder starts from nothing, which is safe: all content is compared anew.
//! The damaged files are set aside before the new container is written. So a crash in between finds the same damage, or
//! the same gap, and recovers the same entries. The new container is marked as recovered until it is compared with the
//! folder.

use std::sync::Arc;

use crate::disk::Disk;

use super::format::{ContainerContent, FileLayout, Fingerprint};
use super::journal::{JournalContent, JournalEnd, JournalStep};
use super::notes::UploadNotes;
use super::state_dir::{ContainerFile, JournalFile, RepairPlan, StateFiles, read_container, read_file, read_journal};
use super::types::{BaseEntries, OpenOutcome, StateError, StateHeader, VERSION};

/// How often [`peek`] reads again before it reports damage.
const PEEK_RETRIES: usize = 3;

/// A container that was read without the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateView {
    pub header: StateHeader,
    pub entries: BaseEntries,
    /// `Loaded`, `Migrated` or `Recovered`. Nothing is set aside, because nothing was changed.
    pub opened: OpenOutcome,
}

/// Reads a container without any change, even while an agent uses it. `None` if there is none.
///
/// # Errors
/// The container has a newer version or cannot be read.
pub(crate) fn peek<D: Disk>(disk: &Arc<D>, name: &str) -> Result<Option<StateView>, StateError> {
    let files = StateFiles::new(name);
    let mut loaded = load(&**disk, &files)?;
    // A save between the reads of two files looks like damage.
    for _ in 0..PEEK_RETRIES {
        if !matches!(loaded.opened, OpenOutcome::Recovered { .. }) {
            break;
        }
        loaded = load(&**disk, &files)?;
    }
    let LoadedState { header, entries, opened, .. } = loaded;
    Ok(header.map(|header| StateView { header, entries, opened }))
}

/// The journal on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum LoadedJournal {
    /// There is none, or it does not extend the container.
    #[default]
    None,
    /// It extends the container.
    Extends { commits: usize, steps: usize },
}

/// The state that was read from the files. The default is that of a folder without any file.
#[derive(Default)]
pub(super) struct LoadedState {
    /// `None` if no file has one.
    pub(super) header: Option<StateHeader>,
    pub(super) entries: BaseEntries,
    pub(super) uploads: UploadNotes,
    pub(super) opened: OpenOutcome,
    /// The container after the repair; the default if there is none.
    pub(super) container: Fingerprint,
    pub(super) layout: Option<FileLayout>,
    pub(super) journal: LoadedJournal,
    /// The backup, if it was read and is whole.
    pub(super) backup: Option<Fingerprint>,
    pub(super) repair: RepairPlan,
}

impl LoadedState {
    fn take_content(&mut self, content: ContainerContent) {
        self.header = Some(content.header);
        self.entries = content.entries;
        self.uploads = content.uploads;
        self.layout = Some(content.layout);
    }

    fn apply(&mut self, commits: Vec<Vec<JournalStep>>) {
        for step in commits.into_iter().flatten() {
            if let Some(header) = step.apply(&mut self.entries, &mut self.uploads) {
                self.header = Some(header);
            }
        }
    }
}

/// Reads the container and the journal that extends it.
pub(super) fn load<D: Disk>(disk: &D, files: &StateFiles) -> Result<LoadedState, StateError> {
    let journal = read_journal(disk, &files.journal)?;
    match read_container(disk, &files.main)? {
        ContainerFile::Nothing => load_without_container(disk, files, journal),
        ContainerFile::Whole(content, print) => load_with_container(disk, files, content, print, journal),
        ContainerFile::Damaged => {
            let backup = read_container(disk, &files.backup)?;
            recover(disk, files, ContainerFile::Damaged, journal, backup)
        }
    }
}

fn load_without_container<D: Disk>(
    disk: &D,
    files: &StateFiles,
    journal: JournalFile,
) -> Result<LoadedState, StateError> {
    let nothing = Fingerprint::default();
    if journal.extends(&nothing) {
        return Ok(replay(None, nothing, journal, files));
    }
    match read_container(disk, &files.backup)? {
        // A save was cut off after step 2.
        ContainerFile::Whole(content, print) if journal.extends(&print) => {
            let mut loaded = replay(Some(*content), print, journal, files);
            loaded.repair.restore_backup = true;
            Ok(loaded)
        }
        ContainerFile::Nothing
            if matches!(journal, JournalFile::Absent) && read_file(disk, &files.old_journal)?.is_none() =>
        {
            Ok(LoadedState::default())
        }
        backup => recover(disk, files, ContainerFile::Nothing, journal, backup),
    }
}

fn load_with_container<D: Disk>(
    disk: &D,
    files: &StateFiles,
    content: Box<ContainerContent>,
    print: Fingerprint,
    journal: JournalFile,
) -> Result<LoadedState, StateError> {
    let extends = match &journal {
        JournalFile::Absent => return Ok(replay(Some(*content), print, journal, files)),
        // The container is whole, but the commits since are unknown.
        JournalFile::Damaged => {
            let mut loaded = replay(Some(*content), print, JournalFile::Absent, files);
            // The damaged journal stays until the save. A crash before that finds the same damage.
            let copy_aside = vec![files.journal.clone()];
            loaded.repair = RepairPlan { copy_aside, save: true, ..RepairPlan::default() };
            loaded.opened = OpenOutcome::Recovered { set_aside: Vec::new(), from_backup: false };
            return Ok(loaded);
        }
        JournalFile::Readable(j) if j.head.extends == print => {
            return Ok(replay(Some(*content), print, journal, files));
        }
        JournalFile::Readable(j) => &j.head.extends,
    };
    let backup = read_container(disk, &files.backup)?;
    let extends_backup = matches!(&backup, ContainerFile::Whole(_, old) if old == extends);
    if extends_backup || *extends == Fingerprint::default() {
        // A save was cut off after step 3.
        let mut loaded = replay(Some(*content), print, JournalFile::Absent, files);
        loaded.backup = backup.fingerprint();
        return Ok(loaded);
    }
    recover(disk, files, ContainerFile::Whole(content, print), journal, backup)
}

/// Replays the journal on top of a container.
fn replay(
    content: Option<ContainerContent>,
    container: Fingerprint,
    journal: JournalFile,
    files: &StateFiles,
) -> LoadedState {
    let mut loaded = LoadedState { container, opened: OpenOutcome::Loaded, ..LoadedState::default() };
    if let Some(content) = content {
        if content.version < VERSION {
            loaded.opened = OpenOutcome::Migrated { from: content.version };
        }
        loaded.take_content(content);
    }
    if let JournalFile::Readable(JournalContent { commits, end, .. }) = journal {
        loaded.journal = LoadedJournal::Extends { commits: commits.len(), steps: commits.iter().map(Vec::len).sum() };
        loaded.apply(commits);
        loaded.repair.save = end != JournalEnd::Whole;
        if end == JournalEnd::Damaged {
            loaded.repair.copy_aside.push(files.journal.clone());
            loaded.opened = OpenOutcome::Recovered { set_aside: Vec::new(), from_backup: false };
        }
    }
    loaded
}

/// Takes the backup and the journals that follow it, or starts from nothing. `main` and `journal` are the files that do
/// not fit.
fn recover<D: Disk>(
    disk: &D,
    files: &StateFiles,
    main: ContainerFile,
    journal: JournalFile,
    backup: ContainerFile,
) -> Result<LoadedState, StateError> {
    let old_journal = read_journal(disk, &files.old_journal)?;
    let mut loaded = LoadedState::default();
    let mut set_aside = Vec::new();
    if !matches!(main, ContainerFile::Nothing) {
        set_aside.push(files.main.clone());
    }
    let mut used = UsedJournals::default();
    match backup {
        ContainerFile::Nothing => {}
        ContainerFile::Whole(content, print) if is_credible(&print, &main, &journal, &old_journal) => {
            loaded.take_content(*content);
            used = replay_backup(&mut loaded, &print, journal, old_journal);
            loaded.backup = Some(print);
        }
        ContainerFile::Whole(..) | ContainerFile::Damaged => set_aside.push(files.backup.clone()),
    }
    for (name, is_used) in [(&files.journal, used.journal), (&files.old_journal, used.old_journal)] {
        if !is_used && read_file(disk, name)?.is_some() {
            set_aside.push(name.clone());
        }
    }
    let copy_aside = if used.is_damaged { vec![files.journal.clone()] } else { Vec::new() };
    loaded.repair = RepairPlan { set_aside, copy_aside, restore_backup: false, save: true };
    loaded.opened = OpenOutcome::Recovered { set_aside: Vec::new(), from_backup: loaded.backup.is_some() };
    Ok(loaded)
}

/// The journals that a recovery has used.
#[derive(Default)]
struct UsedJournals {
    journal: bool,
    old_journal: bool,
    /// The journal that was used is damaged.
    is_damaged: bool,
}

/// Replays the journals that lead on from the backup `print`.
fn replay_backup(
    loaded: &mut LoadedState,
    print: &Fingerprint,
    journal: JournalFile,
    old_journal: JournalFile,
) -> UsedJournals {
    let mut used = UsedJournals::default();
    let link = journal.readable().and_then(|j| j.head.backup.as_ref()).filter(|b| b.container == *print);
    // The number of commits from the backup to the container that the journal extends.
    let commits_between = link.and_then(|b| b.commits);
    let extends_backup = journal.extends(print);
    match old_journal {
        JournalFile::Readable(mut old) if old.head.extends == *print && !extends_backup => {
            used.old_journal = true;
            if let Some(n) = commits_between.filter(|n| *n <= old.commits.len()) {
                // Later commits in the old journal were never acknowledged.
                old.commits.truncate(n);
                used.journal = true;
            }
            loaded.apply(old.commits);
        }
        _ => used.journal = extends_backup || commits_between == Some(0),
    }
    if let (true, JournalFile::Readable(JournalContent { commits, end, .. })) = (used.journal, journal) {
        used.is_damaged = end == JournalEnd::Damaged;
        loaded.apply(commits);
    }
    used
}

/// True if the backup can be trusted: a journal names it, or no journal is left to contradict it, or there is no
/// container, so that a save has just made it the backup.
fn is_credible(backup: &Fingerprint, main: &ContainerFile, journal: &JournalFile, old_journal: &JournalFile) -> bool {
    let names_it = |journal: &JournalFile| {
        journal.readable().is_some_and(|j| {
            j.head.extends == *backup || j.head.backup.as_ref().is_some_and(|b| b.container == *backup)
        })
    };
    let no_journal = journal.readable().is_none() && old_journal.readable().is_none();
    names_it(journal) || names_it(old_journal) || no_journal || matches!(main, ContainerFile::Nothing)
}
