//! How the files of a container are brought together, whatever a crash or damage left of them.
//!
//! Reads only; `container` puts right what is found wrong. The files, `N` being the container's name:
//!
//! | file | holds |
//! |---|---|
//! | `N` | container *g* |
//! | `N.journal` | the commits since; its head names *g*, and *g-1* as the backup |
//! | `N.bak` | container *g-1* |
//! | `N.journal.bak` | the commits that lead from *g-1* to *g*; its head names *g-1* |
//!
//! A container is named by the fingerprint of its bytes, so a journal vouches for the container it extends,
//! and no journal is ever applied to another one.
//!
//! # Every crash point
//!
//! *Commit*: one append to `N.journal`, then fsync. Cut off in between, the line is there (the commit counts,
//! unacknowledged) or torn (it does not). A torn journal is never appended to: it is followed by a save.
//!
//! *Save*, with what a crash after each step leaves. The steps are parted by a sync of the directory, so no
//! later one is durable before an earlier one.
//!
//! 1. Write and fsync `N.tmp.PID`. Left over: swept at the next opening.
//! 2. Rename `N` to `N.bak` (*g*). No `N`, and the journal extends the backup: both are taken, nothing is lost.
//! 3. Rename the temporary file to `N` (*g+1*). The journal extends the backup, not `N`: `N` contains it, and
//!    the journal is stale.
//! 4. Write and fsync `N.journal.tmp.PID`, which extends *g+1*; rename `N.journal` to `N.journal.bak`. `N` without
//!    a journal: nothing was committed since.
//! 5. Rename the temporary file to `N.journal`, sync the directory: the picture above. Should this rename last
//!    and the one before it not, `N.journal.bak` is older than the backup: its head says so, and it is not used.
//!
//! The *first save* has nothing to rename in 2; its journal extends the empty container, and is stale as soon
//! as there is an `N`. An *older version* is a container like any other: it stays `N` until the first save,
//! journalled upon meanwhile, and is the backup after it.
//!
//! # Damage
//!
//! A container that cannot be read, or that its journal does not vouch for, is set aside. The backup is taken
//! instead where a journal vouches for it (or none is left to say otherwise), followed by `N.journal.bak`, and by
//! `N.journal` when the two join up: then nothing is lost. Failing that, the folder starts from nothing, which
//! is always safe: content on both sides is compared anew. The set-aside goes first, the new container after it,
//! so a crash in between finds the same damage, or the same gap, and recovers the same entries.
//! The new container says that it is recovered, until somebody has compared it with the folder.

use std::io;
use std::sync::Arc;

use jiff::Timestamp;

use crate::disk::{Disk, DiskFile};

use super::format::{self, DecodeError, Document, Entries, Fingerprint, Layout};
use super::journal::{self, End, Journal, NoJournal};
use super::{OpenOutcome, StateError, StateHeader, UploadNotes, VERSION};

/// The names of one container's files.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub main: String,
    pub backup: String,
    pub journal: String,
    pub old_journal: String,
}

impl Names {
    pub fn new(name: &str) -> Self {
        Self {
            main: name.to_owned(),
            backup: format!("{name}.bak"),
            journal: format!("{name}.journal"),
            old_journal: format!("{name}.journal.bak"),
        }
    }
}

/// What stands at a container's name.
enum Main {
    /// Nothing, or no byte.
    Nothing,
    Damaged,
    Whole(Box<Document>, Fingerprint),
}

/// What stands at a journal's name.
enum Log {
    Absent,
    Damaged,
    Readable(Journal),
}

impl Log {
    fn readable(&self) -> Option<&Journal> {
        match self {
            Self::Readable(journal) => Some(journal),
            Self::Absent | Self::Damaged => None,
        }
    }

    fn extends(&self, container: &Fingerprint) -> Option<&Journal> {
        self.readable().filter(|j| j.head.extends == *container)
    }
}

/// What must be put right before the container is used.
#[derive(Debug, Default)]
pub(super) struct Repair {
    /// Files to rename out of the way.
    pub set_aside: Vec<String>,
    /// Files to copy, because they are read again should the repair be cut off.
    pub copy_aside: Vec<String>,
    /// The save was cut off after its first rename: the backup is to be renamed back.
    pub restore_backup: bool,
    /// The files do not add up to what was loaded: a save must follow.
    pub save: bool,
}

/// The journal that is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDisk {
    /// None that has to do with the container, though one may stand there.
    None,
    /// One that extends the container, of so many commits and steps.
    Extends { commits: usize, steps: usize },
}

/// A container brought together.
pub(super) struct Loaded {
    /// `None`: there is nothing to take it from.
    pub header: Option<StateHeader>,
    pub entries: Entries,
    pub uploads: UploadNotes,
    pub opened: OpenOutcome,
    /// The container that stands at the name once the repair is done; `of_nothing` when none does.
    pub container: Fingerprint,
    pub layout: Option<Layout>,
    pub journal: OnDisk,
    /// The backup, where one was looked at and is whole.
    pub backup: Option<Fingerprint>,
    pub repair: Repair,
}

/// A container as read without a lock, for a look from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateView {
    pub header: StateHeader,
    pub entries: Entries,
    /// `Loaded`, `Migrated` or `Recovered` (with nothing set aside: nothing was touched).
    pub opened: OpenOutcome,
}

/// Reads a container without writing anything, while an agent may be at work on it. `None`: there is none.
///
/// # Errors
/// A container of a newer version, or one that cannot be read.
pub fn peek<D: Disk>(disk: &Arc<D>, name: &str) -> Result<Option<StateView>, StateError> {
    let names = Names::new(name);
    let mut loaded = load(&**disk, &names)?;
    // The files are read one after the other; a save in between makes them look as if they did not fit.
    for _ in 0..3 {
        if !matches!(loaded.opened, OpenOutcome::Recovered { .. }) {
            break;
        }
        loaded = load(&**disk, &names)?;
    }
    let Loaded { header, entries, opened, .. } = loaded;
    let opened = match opened {
        OpenOutcome::Recovered { from_backup, .. } => OpenOutcome::Recovered { set_aside: Vec::new(), from_backup },
        other => other,
    };
    Ok(header.map(|header| StateView { header, entries, opened }))
}

/// Brings the files together. Takes the container that the journal vouches for; see the module's text.
pub(super) fn load<D: Disk>(disk: &D, names: &Names) -> Result<Loaded, StateError> {
    let log = read_journal(disk, &names.journal)?;
    let main = read_container(disk, &names.main)?;
    let nothing = Fingerprint::of_nothing();
    match main {
        Main::Nothing if log.extends(&nothing).is_some() => Ok(replay(None, nothing, log, names)),
        Main::Nothing => match read_container(disk, &names.backup)? {
            // Step 2 of a save.
            Main::Whole(document, print) if log.extends(&print).is_some() => {
                let mut loaded = replay(Some(*document), print, log, names);
                loaded.repair.restore_backup = true;
                Ok(loaded)
            }
            Main::Nothing if matches!(log, Log::Absent) && read(disk, &names.old_journal)?.is_none() => Ok(fresh()),
            backup => recover(disk, names, Main::Nothing, log, backup),
        },
        Main::Whole(document, print) => match &log {
            Log::Absent => Ok(replay(Some(*document), print, log, names)),
            // The container stands by itself; what was committed since cannot be known.
            Log::Damaged => {
                let mut loaded = replay(Some(*document), print, Log::Absent, names);
                // It goes with the save, so that a crash before that finds the same damage.
                loaded.repair = Repair { copy_aside: vec![names.journal.clone()], save: true, ..Repair::default() };
                loaded.opened = OpenOutcome::Recovered { set_aside: Vec::new(), from_backup: false };
                Ok(loaded)
            }
            Log::Readable(j) if j.head.extends == print => Ok(replay(Some(*document), print, log, names)),
            Log::Readable(j) => {
                let backup = read_container(disk, &names.backup)?;
                let backed = matches!(&backup, Main::Whole(_, old) if *old == j.head.extends);
                if backed || j.head.extends == nothing {
                    // Step 3 of a save.
                    let mut loaded = replay(Some(*document), print, Log::Absent, names);
                    loaded.backup = backup.fingerprint();
                    Ok(loaded)
                } else {
                    recover(disk, names, Main::Whole(document, print), log, backup)
                }
            }
        },
        Main::Damaged => {
            let backup = read_container(disk, &names.backup)?;
            recover(disk, names, Main::Damaged, log, backup)
        }
    }
}

impl Main {
    fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Whole(_, print) => Some(print.clone()),
            Self::Nothing | Self::Damaged => None,
        }
    }
}

fn fresh() -> Loaded {
    Loaded {
        header: None,
        entries: Entries::new(),
        uploads: UploadNotes::default(),
        opened: OpenOutcome::New,
        container: Fingerprint::of_nothing(),
        layout: None,
        journal: OnDisk::None,
        backup: None,
        repair: Repair::default(),
    }
}

/// A container and the journal that extends it, or none.
fn replay(document: Option<Document>, container: Fingerprint, log: Log, names: &Names) -> Loaded {
    let mut loaded = Loaded { container, opened: OpenOutcome::Loaded, ..fresh() };
    if let Some(Document { header, entries, uploads, version, layout }) = document {
        loaded.header = Some(header);
        loaded.entries = entries;
        loaded.uploads = uploads;
        loaded.layout = Some(layout);
        if version < VERSION {
            loaded.opened = OpenOutcome::Migrated { from: version };
        }
    }
    if let Log::Readable(Journal { commits, end, .. }) = log {
        loaded.journal = OnDisk::Extends { commits: commits.len(), steps: commits.iter().map(Vec::len).sum() };
        loaded.apply(commits);
        loaded.repair.save = end != End::Whole;
        if end == End::Damaged {
            loaded.repair.copy_aside.push(names.journal.clone());
            loaded.opened = OpenOutcome::Recovered { set_aside: Vec::new(), from_backup: false };
        }
    }
    loaded
}

impl Loaded {
    fn apply(&mut self, commits: Vec<Vec<journal::Step>>) {
        for step in commits.into_iter().flatten() {
            if let Some(header) = step.apply(&mut self.entries, &mut self.uploads) {
                self.header = Some(header);
            }
        }
    }
}

/// The backup and what fits it, or nothing.
fn recover<D: Disk>(disk: &D, names: &Names, main: Main, log: Log, backup: Main) -> Result<Loaded, StateError> {
    let old_log = read_journal(disk, &names.old_journal)?;
    let mut loaded = fresh();
    let mut aside = Vec::new();
    if !matches!(main, Main::Nothing) {
        aside.push(names.main.clone());
    }
    let (mut log_used, mut old_log_used) = (false, false);
    let mut damaged_in_use = Vec::new();
    match backup {
        Main::Nothing => {}
        Main::Whole(document, print) if vouched(&print, &main, &log, &old_log) => {
            loaded.header = Some(document.header);
            loaded.entries = document.entries;
            loaded.uploads = document.uploads;
            loaded.layout = Some(document.layout);
            let join = log.readable().and_then(|j| j.head.backup.as_ref()).filter(|b| b.container == print);
            let join = join.and_then(|b| b.commits);
            let fits = log.extends(&print).is_some();
            if let Log::Readable(mut old) = old_log
                && old.head.extends == print
                && !fits
            {
                old_log_used = true;
                // More than the number that leads to the container were never acknowledged.
                let joins = join.is_some_and(|n| n <= old.commits.len());
                if let (true, Some(n)) = (joins, join) {
                    old.commits.truncate(n);
                }
                log_used = joins;
                loaded.apply(old.commits);
            } else {
                log_used = fits || join == Some(0);
            }
            if let (true, Log::Readable(journal)) = (log_used, log) {
                if journal.end == End::Damaged {
                    damaged_in_use.push(names.journal.clone());
                }
                loaded.apply(journal.commits);
            }
            loaded.backup = Some(print);
        }
        Main::Whole(..) | Main::Damaged => aside.push(names.backup.clone()),
    }
    for (name, used) in [(&names.journal, log_used), (&names.old_journal, old_log_used)] {
        if !used && read(disk, name)?.is_some() {
            aside.push(name.clone());
        }
    }
    let from_backup = loaded.backup.is_some();
    loaded.repair = Repair { set_aside: aside, copy_aside: damaged_in_use, restore_backup: false, save: true };
    loaded.opened = OpenOutcome::Recovered { set_aside: Vec::new(), from_backup };
    Ok(loaded)
}

/// Whether the backup can be believed: a journal names it; or no journal is left to contradict it; or there is
/// no container, so that it is the one that a save had just put there.
fn vouched(backup: &Fingerprint, main: &Main, log: &Log, old_log: &Log) -> bool {
    let named = |log: &Log| {
        log.readable().is_some_and(|j| {
            j.head.extends == *backup || j.head.backup.as_ref().is_some_and(|b| b.container == *backup)
        })
    };
    let silent = log.readable().is_none() && old_log.readable().is_none();
    named(log) || named(old_log) || silent || matches!(main, Main::Nothing)
}

/// The bytes of a file and when it was last written; `None` when it does not exist.
pub(super) fn read<D: Disk>(disk: &D, name: &str) -> Result<Option<(Vec<u8>, Timestamp)>, StateError> {
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

fn read_container<D: Disk>(disk: &D, name: &str) -> Result<Main, StateError> {
    let Some((bytes, written)) = read(disk, name)?.filter(|(bytes, _)| !bytes.is_empty()) else {
        return Ok(Main::Nothing);
    };
    match format::decode(&bytes, written) {
        Ok(document) => Ok(Main::Whole(Box::new(document), Fingerprint::of(&bytes))),
        Err(DecodeError::Damaged(_)) => Ok(Main::Damaged),
        Err(DecodeError::Future(found)) => Err(future(name, found)),
    }
}

fn read_journal<D: Disk>(disk: &D, name: &str) -> Result<Log, StateError> {
    let Some((bytes, _)) = read(disk, name)? else { return Ok(Log::Absent) };
    match journal::decode(&bytes) {
        Ok(journal) => Ok(Log::Readable(journal)),
        Err(NoJournal::Damaged) => Ok(Log::Damaged),
        Err(NoJournal::Future(found)) => Err(future(name, found)),
    }
}

fn future(file: &str, found: u64) -> StateError {
    StateError::FutureVersion { file: file.to_owned(), found, known: VERSION }
}
