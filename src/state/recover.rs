//! Recovers the state from the backup, when the container is damaged or missing.

use crate::disk::Disk;

use super::format::Fingerprint;
use super::journal::{JournalContent, JournalEnd};
use super::loaded::{ContainerFile, JournalFile, LoadedState, RepairPlan, StateFiles, read_file, read_journal};
use super::types::{OpenOutcome, StateError};

/// Takes the backup and the journals that follow it, or starts from nothing. `main` and `journal` are the files that do
/// not fit.
pub(super) fn recover<D: Disk>(
    disk: &D,
    files: &StateFiles,
    main: ContainerFile,
    journal: JournalFile,
    backup: ContainerFile,
) -> Result<LoadedState, StateError> {
    let old_journal = read_journal(disk, &files.old_journal)?;
    let mut loaded = LoadedState::empty();
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

/// True if the backup can be trusted: a journal names it, or no journal is left to contradict it, or there is no container,
/// so that a save has just made it the backup.
fn is_credible(backup: &Fingerprint, main: &ContainerFile, journal: &JournalFile, old_journal: &JournalFile) -> bool {
    let names_it = |journal: &JournalFile| {
        journal.readable().is_some_and(|j| {
            j.head.extends == *backup || j.head.backup.as_ref().is_some_and(|b| b.container == *backup)
        })
    };
    let no_journal = journal.readable().is_none() && old_journal.readable().is_none();
    names_it(journal) || names_it(old_journal) || no_journal || matches!(main, ContainerFile::Nothing)
}
