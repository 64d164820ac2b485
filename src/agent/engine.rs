//! The interface of an [`Engine`] besides its cycles: opening a folder, settings, and figures for the status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::Disk;
use crate::local::conflicts::is_conflict_name;
use crate::local::{ChangeError, ChangeOutcome, Folder, FolderChange, ScanScope};
use crate::path::{RelPath, ascii_name, shown_name};
use crate::remote::Remote;
use crate::state::{BaseChange, Container, StateError};
use crate::sync::LocalState;
use crate::sync::safety::{Halt, HeldDeletions};

use super::World;
use super::cycle::gates::Gates;
use super::cycle::parts::CycleParts;
use super::cycle::report::{folder_error, root_halt};
use super::cycle::{CycleError, Engine, EngineOptions, EnginePorts, IgnoreFn};
use super::problems::{PathProblem, ProblemEffect};
use super::status::Pending;

#[cfg(any(test, feature = "testing"))]
pub use super::cycle::Sabotage;

/// Opening a folder.
impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Opens a folder, and takes over the state of an earlier run: binds a new container to the folder's identity, puts
    /// the leftovers of a crash in order, and forgets deletions that a recovered container cannot prove. `new_id` is
    /// the identity for a folder that has no identity and whose container is new.
    ///
    /// # Errors
    /// [`CycleError::Halted`] when the container is bound to another folder.
    pub fn open(parts: EnginePorts<D, R, W>, new_id: &str) -> Result<Self, CycleError> {
        let mut engine = Self::new(parts);
        if engine.container().header().folder_id.is_some() {
            engine.parts.ports.check_root()?;
        } else {
            // A container from before identities may have entries. The folder is taken as it is, and the gates hold
            // implausible deletions.
            engine.bind(new_id)?;
        }
        engine.prepare()
    }

    /// Opens a folder that a person has approved. The container is bound to the identity that the folder has now, or to
    /// `new_id`. The next cycle starts with the union of both sides and deletes nothing. Approving again is safe.
    pub fn open_approved(parts: EnginePorts<D, R, W>, new_id: &str) -> Result<Self, CycleError> {
        let mut engine = Self::new(parts);
        engine.parts.scan(&ScanScope::full())?;
        engine.parts.keep_union();
        engine.bind(new_id)?;
        engine.prepare()
    }

    fn new(parts: EnginePorts<D, R, W>) -> Self {
        Self {
            parts: CycleParts::new(parts),
            gates: Gates::default(),
            #[cfg(any(test, feature = "testing"))]
            sabotage: None,
        }
    }

    /// Binds the container to the folder's identity, made durable. A folder without one gets `new_id`.
    fn bind(&mut self, new_id: &str) -> Result<(), CycleError> {
        let failed = folder_error(crate::local::identity::ID_FILE);
        let folder = self.folder();
        let id = match folder.identity().map_err(root_halt)? {
            Some(id) => folder.settle_identity().map_err(failed).map(|()| id),
            None => folder.create_identity(new_id).map_err(failed).map(|()| new_id.to_owned()),
        }?;
        let container = &mut self.parts.ports.container;
        container.bind_folder(&id);
        Ok(container.commit(Vec::new())?)
    }

    /// Makes the private folder, and takes over the state of an earlier run.
    fn prepare(mut self) -> Result<Self, CycleError> {
        self.folder().ensure_private().map_err(folder_error(".memsync"))?;
        let CycleParts { ports, memory, .. } = &mut self.parts;
        memory.stage.sweep(ports)?;
        memory.crash.begin(ports)?;
        if ports.container.header().recovered {
            self.distrust_absence()?;
        }
        Ok(self)
    }

    /// Forgets the entries of missing files. A recovered base may be old, so a missing file was not necessarily
    /// deleted. The file comes back if the proxy has it (invariant 11).
    fn distrust_absence(&mut self) -> Result<(), CycleError> {
        self.parts.scan(&ScanScope::full())?;
        let CycleParts { ports, observed, .. } = &mut self.parts;
        let entries = ports.container.entries().iter();
        let missing = entries.filter(|(path, entry)| entry.base.is_synced() && observed.found(path).is_none());
        let forget = missing.map(|(path, _)| BaseChange::Forget(path.clone())).collect();
        ports.container.set_absence_doubted(false);
        Ok(ports.container.commit(forget)?)
    }
}

/// Settings and commands.
impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    pub fn set_options(&mut self, options: EngineOptions, ignored: IgnoreFn, remote: Arc<R>) {
        let ports = &mut self.parts.ports;
        (ports.options, ports.ignored, ports.remote) = (options, ignored, remote);
        self.parts.observed.forget_index();
        self.parts.observed.heals.clear();
        self.retry_all();
        self.rules_changed();
    }

    /// The ignore rules have changed: the next cycle scans and plans everything.
    pub fn rules_changed(&mut self) {
        self.parts.observed.is_scanned = false;
        self.parts.observed.knows_rules = false;
        self.parts.drop_transfers();
        self.parts.memory.plan_everything();
    }

    /// Lets every path in quarantine try again with the next cycle.
    pub fn retry_all(&mut self) {
        self.parts.memory.retry_all();
    }

    /// Makes a change that a person asks for. The next cycle takes it for an edit.
    pub fn change_folder(&mut self, change: &FolderChange) -> Result<ChangeOutcome, ChangeError> {
        let ports = &self.parts.ports;
        let made = ports.folder.change(change, ports.world.now());
        // A failed change may leave something in the stage. The next cycle puts it in order.
        self.parts.memory.stage.is_dirty |= made.is_err();
        made
    }

    /// Notes a clean stop: the system writes out the folder's files before it goes down.
    pub fn note_clean_stop(&mut self) -> Result<(), StateError> {
        let CycleParts { ports, memory, .. } = &mut self.parts;
        memory.crash.note_clean_stop(&mut ports.container)
    }

    /// Calls `callback` when a scan has found a change, before any request to the proxy.
    pub fn on_change(&mut self, callback: impl Fn() + Send + Sync + 'static) {
        self.parts.signals.on_change = Some(Box::new(callback));
    }

    /// Plants a bug, which the simulator must catch.
    #[cfg(any(test, feature = "testing"))]
    pub fn sabotage(&mut self, sabotage: Sabotage) {
        self.sabotage = Some(sabotage);
    }

    /// Waits for the end of a slow transfer, forever without one. The next cycle takes in the result.
    pub async fn transfer_ends(&mut self) {
        self.parts.transfers.wait_for_end().await;
        self.parts.memory.is_unfinished = true;
    }
}

/// Figures for the status. Times are those of [`World::elapsed`].
impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    pub fn container(&self) -> &Container<D> {
        &self.parts.ports.container
    }

    pub fn folder(&self) -> &Folder<D> {
        &self.parts.ports.folder
    }

    /// True if the last cycle left work, so that the next one makes a plan in any case.
    pub fn is_unfinished(&self) -> bool {
        self.parts.memory.is_unfinished
    }

    /// The work that is left, as far as the last scan and index show.
    pub fn pending(&self) -> Pending {
        let twins = self.left_out().into_values().filter(|problem| problem.effect == ProblemEffect::Blocked).count();
        self.parts.plan_input().count_pending(&self.gates.held, twins)
    }

    /// The number of paths that failed and will be retried.
    pub fn failing(&self) -> usize {
        self.parts.memory.quarantine.iter().count()
    }

    /// The number of conflict copies in the folder.
    pub fn conflicts(&self) -> usize {
        self.parts.observed.tree.found().keys().filter(|path| is_conflict_name(path.file_name())).count()
    }

    /// When a cycle is due for single paths: to try a failed one again, to check a healed entry of a weak index, or to
    /// name a slow transfer in the status.
    pub fn next_due(&self) -> Option<Duration> {
        let CycleParts { observed, memory, transfers, .. } = &self.parts;
        [memory.quarantine.next_due(), observed.heals.next_due(), transfers.next_named()].into_iter().flatten().min()
    }

    /// The paths whose transfer takes long.
    pub fn in_transit(&self) -> impl Iterator<Item = &RelPath> {
        self.parts.transfers.steps.keys()
    }

    /// The number of tracked files, and their bytes as last scanned.
    pub fn totals(&self) -> (usize, u64) {
        let found = self.parts.observed.tree.found().values();
        let files = found.filter(|found| matches!(found.local, LocalState::File(_)));
        files.fold((0, 0), |(files, bytes), found| (files + 1, bytes + found.size))
    }

    /// The halts that wait for a person.
    pub fn halts(&self) -> Vec<Halt> {
        self.gates.halts()
    }

    /// The plans whose deletions are held.
    pub fn held(&self) -> &[HeldDeletions] {
        &self.gates.held
    }

    /// True if a displaced file could not be put where it belongs yet.
    pub fn has_leftovers(&self) -> bool {
        !self.parts.memory.stage.is_empty()
    }

    /// The paths that need a person, with the reason: problems that the scan found, and failures.
    pub fn problems(&self) -> BTreeMap<RelPath, PathProblem> {
        let CycleParts { ports, observed, memory, transfers, .. } = &self.parts;
        let retried = |why: &str| PathProblem::new(ProblemEffect::Retried, why);
        let mut problems: BTreeMap<RelPath, PathProblem> =
            memory.quarantine.iter().map(|(path, why)| (path.clone(), retried(why))).collect();
        problems.extend(memory.crash.problems(&ports.container.header().copies, &observed.tree));
        problems.extend(transfers.problems());
        problems.extend(memory.stage.stuck.iter().filter_map(|(path, why)| Some((path.clone()?, retried(why)))));
        for (path, found) in observed.tree.found() {
            if let LocalState::Unknown(why) = &found.local
                && let Some(problem) = PathProblem::of(why)
            {
                problems.insert(path.clone(), problem);
            }
        }
        problems
    }

    /// Names that are not valid paths, here or on the proxy, or whose path is another file's, with the reason. The
    /// names can be shown.
    pub fn left_out(&self) -> BTreeMap<String, PathProblem> {
        let observed = &self.parts.observed;
        let refused = observed.index.iter().flat_map(|index| &index.refused);
        let on_proxy = refused.map(|(name, why)| {
            let why = format!("is on the proxy under a name that cannot be used here: {why}");
            (shown_name(name.as_bytes()), PathProblem::new(ProblemEffect::LeftOut, why))
        });
        let shown = |name: &[u8]| match str::from_utf8(name) {
            Ok(name) if RelPath::from_disk(name).is_ok() => ascii_name(name),
            _ => shown_name(name),
        };
        let here = observed.tree.left_out().iter();
        let here = here.filter_map(|(name, why)| Some((shown(name), PathProblem::of(why)?)));
        on_proxy.chain(here).collect()
    }
}
