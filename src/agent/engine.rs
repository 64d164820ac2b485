//! [`Engine`]: one folder and one namespace of a proxy, and what is remembered between cycles.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::disk::Disk;
use crate::local::conflicts::is_conflict_name;
use crate::local::{Folder, LocalTree, RootError, ScanScope, TouchedPaths};
use crate::path::{RelPath, ascii_name, shown_name};
use crate::protocol::IndexEntry;
use crate::remote::{FetchedIndex, Remote, RemoteError};
use crate::state::{BaseChange, Container, StateError};
use crate::sync::safety::{Halt, HeldDeletions};
use crate::sync::{Action, Base, IndexTrust, LocalState, Plan, RemoteSide, SkipReason, decide};

use super::World;
use super::batch::BatchOptions;
use super::batch_pacing::BatchPacing;
use super::cycle::Recent;
use super::emptied::CrashCheck;
use super::heal::HealTimes;
use super::problems::{Effect, PathProblem};
use super::quarantine::Quarantine;
use super::sent::Sent;
use super::status::Pending;
use super::transit::Transfers;

/// Whether a path, as it is called on the disk, is left out; the flag tells a folder.
pub type Ignored = Arc<dyn Fn(&str, bool) -> bool + Send + Sync>;

/// Settings of one folder.
#[derive(Clone)]
pub struct EngineOptions {
    /// Bytes; larger files take no part.
    pub max_file_size: u64,
    /// Bytes; new files from this size on are read once, while they are uploaded.
    pub unread_from: u64,
    /// Share of the tracked files that may be deleted on one side without asking.
    pub max_delete: f64,
    /// Requests in flight.
    pub concurrency: usize,
    pub batch: BatchOptions,
    /// Threads that scan.
    pub threads: usize,
    /// The filesystem takes names that differ in case only for one.
    pub fold: bool,
    /// Quiet time of a file that a program has open for writing; zero: none.
    pub quiet: Duration,
    /// Two scans must be this far apart to prove a file deleted.
    pub confirm: Duration,
    /// The proxy and namespace, to tell another server from the one base was agreed with.
    pub origin: String,
    pub namespace: String,
}

/// What a running cycle has got through, for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    pub steps: AtomicUsize,
    pub done: AtomicUsize,
}

impl Progress {
    /// No cycle runs.
    pub fn clear(&self) {
        self.steps.store(0, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
    }
}

/// Why a cycle ended early. Nothing was decided from half an answer.
#[derive(Debug, thiserror::Error)]
pub enum CycleError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The state container or the folder cannot be written: nothing may go on.
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{what}: {source}; {}", remedy(source))]
    Folder { what: &'static str, source: io::Error },
    /// A gate is shut for the folder or the proxy as a whole.
    #[error("halted ({})", .0.name())]
    Halted(Halt),
    #[error("stopped")]
    Stopped,
}

/// One folder kept in sync. [`Engine::cycle`] is in `cycle.rs`.
pub struct Engine<D: Disk, R: Remote, W: World> {
    pub(super) folder: Folder<D>,
    pub(super) container: Container<D>,
    pub(super) remote: Arc<R>,
    pub(super) world: Arc<W>,
    pub(super) ignored: Ignored,
    pub(super) options: EngineOptions,
    pub(super) tree: LocalTree,
    pub(super) index: Option<FetchedIndex>,
    /// What an index of hints said of the paths that were written from here since it was fetched.
    pub(super) overwritten: BTreeMap<RelPath, Option<IndexEntry>>,
    /// Synced paths that an index of hints does not name: as many at most.
    pub(super) lost: usize,
    /// Tracked files that a scan missed, and when first ([`World::elapsed`]).
    pub(super) missed: BTreeMap<RelPath, Duration>,
    /// Whether the last scan looked at all that were missed before it.
    pub(super) confirming: bool,
    /// Since when files have been written to that were still being written to when last looked at ([`World::elapsed`]).
    pub(super) changing: BTreeMap<RelPath, Duration>,
    /// What the next plan has to look at: what changed on either side, and what the last plan left. All other paths
    /// are as they were when the table had nothing to do for them.
    pub(super) open: TouchedPaths,
    pub(super) quarantine: Quarantine,
    /// New files that could not be uploaded unread: the scan reads them.
    pub(super) read_first: BTreeSet<RelPath>,
    pub(super) sent: Sent,
    pub(super) approved: BTreeSet<RelPath>,
    pub(super) held: Vec<HeldDeletions>,
    pub(super) reset: Option<Halt>,
    /// What blobs told, each with the index entry that contradicts it. Forgotten when that entry changes.
    pub(super) proven: BTreeMap<RelPath, (Option<IndexEntry>, RemoteSide)>,
    /// When entries of a weak index were healed.
    pub(super) heals: HealTimes,
    /// The proxy may have forgotten tombstones that this folder has not obeyed.
    pub(super) behind: bool,
    pub(super) progress: Arc<Progress>,
    pub(super) stop: Arc<AtomicBool>,
    /// As `stop`, and for good.
    pub(super) quit: Arc<AtomicBool>,
    /// When the last scan was ([`World::elapsed`]).
    pub(super) looked: Duration,
    /// Paths that neither side has, by an index of hints, to which something was sent; and since when ([`World::elapsed`]).
    pub(super) unheard: BTreeMap<RelPath, Duration>,
    /// False: the next scan is a full one.
    pub(super) scanned: bool,
    /// The whole folder was scanned under the ignore rules of now.
    pub(super) same_rules: bool,
    /// Something waits in `stage/` to be put in order.
    pub(super) leftovers: bool,
    /// What the last sweep could not put in order, with what was wrong: tried again with every full scan.
    pub(super) stuck: Vec<(Option<RelPath>, String)>,
    pub(super) crash: CrashCheck,
    /// Set while the last cycle left something to do whatever the triggers say.
    pub(super) unfinished: bool,
    /// The last request of this cycle that nobody answered, where none was answered since.
    pub(super) unanswered: Option<Unanswered>,
    /// Deletions that wait for what may be the same file under another name.
    pub(super) waiting: usize,
    /// Finished actions of a cycle that ended early.
    pub(super) cut_off: Vec<Recent>,
    /// Called when a scan has found a change, before anything is asked of the proxy.
    pub(super) on_change: Box<dyn Fn() + Send + Sync>,
    pub(super) transfers: Transfers<D, R>,
    pub(super) pacing: BatchPacing,
    #[cfg(any(test, feature = "testing"))]
    pub(super) sabotage: Option<Sabotage>,
}

/// A request that nobody answered.
pub(super) struct Unanswered {
    pub path: RelPath,
    pub error: RemoteError,
    /// The path had no failure before.
    pub first: bool,
}

/// Spoils a plan, to show that the simulator notices.
#[cfg(any(test, feature = "testing"))]
pub type Sabotage = fn(&mut Plan, &FetchedIndex);

/// What an engine is made of.
pub struct Parts<D: Disk, R: Remote, W: World> {
    pub folder: Folder<D>,
    pub container: Container<D>,
    pub remote: Arc<R>,
    pub world: Arc<W>,
    pub ignored: Ignored,
    pub options: EngineOptions,
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Takes over what an earlier run left: binds a new container to the folder's identity, puts the leftovers of a
    /// crash in order, and forgets deletions that a recovered container cannot vouch for. `new_id` is the identity
    /// for a folder that has none and whose container is new.
    ///
    /// # Errors
    /// [`CycleError::Halted`] when the folder is not the one the container is bound to.
    pub fn open(parts: Parts<D, R, W>, new_id: &str) -> Result<Self, CycleError> {
        let mut engine = Self::new(parts);
        engine.bind(new_id)?;
        engine.prepare()
    }

    pub(super) fn new(parts: Parts<D, R, W>) -> Self {
        let Parts { folder, container, remote, world, ignored, options } = parts;
        let mut tree = LocalTree::default();
        for (path, entry) in container.entries() {
            if let (Base::Synced(md5), Some(stat)) = (entry.base, entry.stat) {
                tree.seed(path.clone(), md5, stat);
            }
        }
        let sent = Sent::after(container.uploads().clone());
        Self {
            folder,
            container,
            remote,
            world,
            ignored,
            options,
            tree,
            index: None,
            overwritten: BTreeMap::new(),
            lost: 0,
            missed: BTreeMap::new(),
            confirming: false,
            changing: BTreeMap::new(),
            open: TouchedPaths::Everywhere,
            quarantine: Quarantine::default(),
            read_first: BTreeSet::new(),
            sent,
            approved: BTreeSet::new(),
            held: Vec::new(),
            reset: None,
            proven: BTreeMap::new(),
            heals: HealTimes::default(),
            behind: false,
            progress: Arc::default(),
            stop: Arc::default(),
            quit: Arc::default(),
            looked: Duration::ZERO,
            unheard: BTreeMap::new(),
            scanned: false,
            same_rules: false,
            leftovers: false,
            stuck: Vec::new(),
            crash: CrashCheck::default(),
            unfinished: true,
            unanswered: None,
            waiting: 0,
            cut_off: Vec::new(),
            on_change: Box::new(|| ()),
            transfers: Transfers::default(),
            pacing: BatchPacing::default(),
            #[cfg(any(test, feature = "testing"))]
            sabotage: None,
        }
    }

    /// Makes the private folder, and takes over what an earlier run left.
    pub(super) fn prepare(mut self) -> Result<Self, CycleError> {
        self.folder.ensure_private().map_err(folder_error(".memsync"))?;
        self.sweep()?;
        self.begin_crash_check()?;
        if self.container.header().recovered {
            self.distrust_absence()?;
        }
        Ok(self)
    }

    fn bind(&mut self, new_id: &str) -> Result<(), CycleError> {
        if self.container.header().folder_id.is_some() {
            return self.check_root();
        }
        // Entries without an identity come from a container older than identities: the folder is taken as it is, and
        // the gates stand against what is implausible.
        let id = self.take_identity(new_id)?;
        self.container.bind_folder(&id);
        Ok(self.container.commit(Vec::new())?)
    }

    /// The folder's identity, made durable; `new_id` where it had none.
    pub(super) fn take_identity(&self, new_id: &str) -> Result<String, CycleError> {
        let failed = folder_error(crate::local::identity::ID_FILE);
        match self.folder.identity().map_err(root_halt)? {
            Some(id) => self.folder.settle_identity().map_err(failed).map(|()| id),
            None => self.folder.create_identity(new_id).map_err(failed).map(|()| new_id.to_owned()),
        }
    }

    pub(super) fn check_root(&self) -> Result<(), CycleError> {
        match &self.container.header().folder_id {
            Some(id) => self.folder.check(id).map_err(root_halt),
            None => Ok(()),
        }
    }

    /// A recovered base may be old: a file that is missing here was not necessarily deleted by the user. Its entry
    /// is forgotten, and the file comes back where the server has it (invariant 11).
    fn distrust_absence(&mut self) -> Result<(), CycleError> {
        self.scan(&ScanScope::full())?;
        let forget = self
            .container
            .entries()
            .iter()
            .filter(|(path, entry)| entry.base.is_synced() && !self.tree.found().contains_key(*path))
            .map(|(path, _)| BaseChange::Forget(path.clone()))
            .collect();
        self.container.set_compared();
        Ok(self.container.commit(forget)?)
    }

    /// Plants a bug, which the simulator must catch.
    #[cfg(any(test, feature = "testing"))]
    pub fn sabotage(&mut self, sabotage: Sabotage) {
        self.sabotage = Some(sabotage);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn sabotaged(&self, mut plan: Plan) -> Plan {
        if let (Some(sabotage), Some(index)) = (self.sabotage, &self.index) {
            sabotage(&mut plan, index);
        }
        plan
    }

    pub fn container(&self) -> &Container<D> {
        &self.container
    }

    pub fn folder(&self) -> &Folder<D> {
        &self.folder
    }

    /// Has `told` called when a scan has found a change, before anything is asked of the proxy.
    pub fn on_change(&mut self, told: impl Fn() + Send + Sync + 'static) {
        self.on_change = Box::new(told);
    }

    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Set it to have the running cycle end soon, with what is done committed.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// A flag of the owner's that ends this engine's work for good, even in the midst of a scan.
    pub fn obey(&mut self, quit: Arc<AtomicBool>) {
        self.quit = quit;
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.quit.load(Ordering::Relaxed)
    }

    pub fn set_options(&mut self, options: EngineOptions, ignored: Ignored, remote: Arc<R>) {
        self.options = options;
        self.ignored = ignored;
        self.remote = remote;
        self.index = None;
        self.proven.clear();
        self.heals.clear();
        self.drop_transfers();
        self.retry_all();
        self.rules_changed();
    }

    /// The ignore rules are others than before: they may take in what the tree does not know, and leave out what it does.
    pub fn rules_changed(&mut self) {
        self.scanned = false;
        self.same_rules = false;
        self.drop_transfers();
        self.look_everywhere();
    }

    /// The next cycle plans anew for every path.
    pub fn look_everywhere(&mut self) {
        self.unfinished = true;
        self.open = TouchedPaths::Everywhere;
    }

    /// Whether the last cycle left something to do whatever the triggers say.
    pub fn unfinished(&self) -> bool {
        self.unfinished
    }

    /// What has still to be done, as far as the last scan and index tell.
    pub fn pending(&self) -> Pending {
        let mut pending = Pending { held_delete: self.held.iter().map(|h| h.steps.len()).sum(), ..Pending::default() };
        let held: BTreeSet<RelPath> = self.held.iter().flat_map(|h| h.steps.iter().map(|s| s.path.clone())).collect();
        let (ripe, waiting) = self.ripe();
        pending.delete += waiting.difference(&held).count();
        let plan = if self.index.is_some() { self.plan(&ripe) } else { self.local_changes() };
        let is_deleting = plan.steps.iter().any(|s| s.action.deletes().is_some());
        for step in plan.steps {
            if held.contains(&step.path) {
                continue;
            }
            let (action, is_blocked) = match step.action {
                Action::Skip(why) => match Effect::of(&why) {
                    Some(Effect::LeftOut) => continue,
                    effect => {
                        // An upload that waits for the name of a blocked path waits for the same person.
                        let waits = why == SkipReason::Changing && !is_deleting && !self.is_changing(&step.path);
                        (self.skipped(&step.path, &why), waits || effect == Some(Effect::Blocked))
                    }
                },
                action => (Some(action), false),
            };
            let count = match action {
                Some(Action::Upload { .. } | Action::UploadUnread | Action::Probe { .. }) => &mut pending.upload,
                Some(Action::Download { .. } | Action::Replace { .. } | Action::Conflict { .. }) => {
                    &mut pending.download
                }
                Some(Action::DeleteRemote { .. } | Action::Obey { .. }) => &mut pending.delete,
                Some(Action::RecordSeen { .. } | Action::Adopt { .. } | Action::Skip(_)) | None => continue,
            };
            *count += 1;
            pending.blocked += usize::from(is_blocked);
        }
        // A second name of a path is a file that would go up under another name.
        let twins = self.left_out().into_values().filter(|problem| problem.effect == Effect::Blocked).count();
        pending.upload += twins;
        pending.blocked += twins;
        // Deletions wait for a file that failed, which is tried again, or for one that cannot be read.
        if self.quarantine.is_empty() {
            pending.blocked += self.waiting.min(pending.delete);
        }
        pending
    }

    /// The action that a skipped path waits for, by the last known content of both sides.
    fn skipped(&self, path: &RelPath, why: &SkipReason) -> Option<Action> {
        let base = self.base_side(path);
        let remote = match &self.index {
            Some(index) => self.remote_side(index, path),
            None => base.map(unchanged),
        };
        let found = self.tree.found().get(path).map(|f| &f.local);
        let local = match (why, found, base) {
            (SkipReason::Ignored, ..) => return None,
            (SkipReason::Changing | SkipReason::Unread, Some(_), _) => return Some(Action::UploadUnread),
            (SkipReason::Vanished, ..) => None,
            (_, Some(LocalState::File(md5)), _) => Some(LocalState::File(*md5)),
            // The content is unknown. Without news from the proxy, only a new file is known to wait.
            (SkipReason::Unreadable(_), _, Some(Base::Synced(md5) | Base::Detached(md5)))
            | (_, Some(_), Some(Base::Synced(md5) | Base::Detached(md5))) => Some(LocalState::File(md5)),
            (_, Some(LocalState::Unknown(_)), _) if remote.is_none() => return Some(Action::UploadUnread),
            _ => None,
        };
        let trust = self.index.as_ref().map_or(IndexTrust::Evidence, |index| self.trust(index));
        decide(base, local.as_ref(), remote, trust).1
    }

    /// The finished actions of a cycle that ended early; the report has those of any other.
    pub fn take_cut_off(&mut self) -> Vec<Recent> {
        std::mem::take(&mut self.cut_off)
    }

    /// Whether the proxy has given its index since this engine was opened.
    pub fn has_index(&self) -> bool {
        self.index.is_some()
    }

    /// Whether the last cycle got through its scan, so that the figures of the folder are those of now.
    pub fn has_scanned(&self) -> bool {
        self.scanned
    }

    /// Paths that failed and will be tried again.
    pub fn failing(&self) -> usize {
        self.quarantine.iter().count()
    }

    /// Conflict copies in the folder.
    pub fn conflicts(&self) -> usize {
        self.tree.found().keys().filter(|p| is_conflict_name(p.file_name())).count()
    }

    /// When a path in quarantine may be tried again, by the clock of [`World::elapsed`].
    pub fn next_retry(&self) -> Option<Duration> {
        self.quarantine.next_due()
    }

    /// Files tracked, and their bytes as last scanned.
    pub fn totals(&self) -> (usize, u64) {
        let files = self.tree.found().values().filter(|f| matches!(f.local, LocalState::File(_)));
        files.fold((0, 0), |(n, bytes), f| (n + 1, bytes + f.size))
    }

    /// What waits for a person.
    pub fn halts(&self) -> Vec<Halt> {
        self.reset.iter().cloned().chain(self.held.iter().map(HeldDeletions::halt)).collect()
    }

    pub fn held(&self) -> &[HeldDeletions] {
        &self.held
    }

    /// Lets every path in quarantine try again with the next cycle.
    pub fn retry_all(&mut self) {
        self.quarantine.clear_all();
        for (path, _) in self.quarantine.iter() {
            self.open.add(path);
            self.unfinished = true;
        }
    }

    /// Paths that need a person, with what is wrong: what the scan found and what failed.
    pub fn problems(&self) -> BTreeMap<RelPath, PathProblem> {
        let retried = |why: &str| PathProblem::new(Effect::Retried, why);
        let mut out: BTreeMap<RelPath, PathProblem> =
            self.quarantine.iter().map(|(p, why)| (p.clone(), retried(why))).collect();
        out.extend(self.emptied_problems());
        out.extend(self.transit_problems());
        out.extend(self.stuck.iter().filter_map(|(path, why)| Some((path.clone()?, retried(why)))));
        for (path, found) in self.tree.found() {
            if let LocalState::Unknown(why) = &found.local
                && let Some(problem) = PathProblem::of(why)
            {
                out.insert(path.clone(), problem);
            }
        }
        out
    }

    /// Names that are no paths, here or on the proxy, or whose path is another file's: as they can be shown, with what is
    /// wrong.
    pub fn left_out(&self) -> BTreeMap<String, PathProblem> {
        let refused = self.index.iter().flat_map(|index| &index.refused);
        let there = refused.map(|(name, why)| {
            let why = format!("is on the proxy under a name that cannot be used here: {why}");
            (shown_name(name.as_bytes()), PathProblem::new(Effect::LeftOut, why))
        });
        let here = self.tree.left_out().iter().filter_map(|(name, why)| Some((name, PathProblem::of(why)?)));
        let shown = |name: &[u8]| match str::from_utf8(name) {
            Ok(name) if RelPath::from_disk(name).is_ok() => ascii_name(name),
            _ => shown_name(name),
        };
        there.chain(here.map(|(name, problem)| (shown(name), problem))).collect()
    }

    /// Why a path takes no part although the scan did not find it; `None`: it is simply absent.
    pub(super) fn unknown_absence(&self, path: &RelPath) -> Option<SkipReason> {
        if let Some(why) = self.tree.unknown_above(path) {
            return Some(why);
        }
        (self.ignored)(path.as_str(), false).then_some(SkipReason::Ignored)
    }
}

/// What the proxy holds where nothing has changed since base.
pub(super) fn unchanged(base: Base) -> RemoteSide {
    match base {
        Base::Synced(md5) | Base::Detached(md5) => RemoteSide::Live(md5),
        Base::Seen(md5) => RemoteSide::Tombstone(md5),
    }
}

pub(super) fn root_halt(e: RootError) -> CycleError {
    match e {
        RootError::Missing { ref expected } => {
            CycleError::Halted(Halt::root_missing(&["no identity", expected], e.to_string()))
        }
        RootError::Changed { ref expected, ref found } => {
            CycleError::Halted(Halt::root_changed(&["identity", expected, found], e.to_string()))
        }
        RootError::Io { path, source } => CycleError::Folder { what: path, source },
    }
}

/// The remedy for a full disk.
pub(super) const MAKE_ROOM: &str = "make room, then it goes on by itself";

/// What a person can do about an error of the disk.
pub(super) fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => MAKE_ROOM,
        io::ErrorKind::PermissionDenied => "give memsync's user the right to write there",
        io::ErrorKind::ResourceBusy => "close it there",
        io::ErrorKind::ReadOnlyFilesystem => "mount the filesystem for writing",
        _ => "check the disk and the permissions",
    }
}

pub(super) fn folder_error(what: &'static str) -> impl FnOnce(io::Error) -> CycleError {
    move |source| CycleError::Folder { what, source }
}
