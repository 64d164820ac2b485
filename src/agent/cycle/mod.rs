//! One pass over a folder and its proxy: observe → plan → apply → commit.
//!
//! [`Engine`] is the orchestrator. Each step is a function of the parts that it is given, and returns a value:
//! `observe` scans and fetches, `plan` decides and is pure, `apply` carries the steps out, `commit` makes their outcomes
//! durable. [`CycleMemory`](memory::CycleMemory) holds the work that the next cycle takes up.

use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::scan::ScanStats;
use crate::local::{ScanScope, TouchedPaths};
use crate::path::RelPath;
#[cfg(any(test, feature = "testing"))]
use crate::remote::FetchedIndex;
use crate::remote::Remote;
use crate::sync::{Action, Plan, SkipReason};

mod apply;
mod batch;
mod commit;
mod corrections;
pub(super) mod decisions;
mod emptied;
pub(super) mod error;
mod flight;
pub(super) mod gates;
mod heal;
mod leftovers;
mod memory;
mod missed;
pub(super) mod observe;
mod observed;
mod pacing;
pub(super) mod parts;
pub(super) mod pending;
mod plan;
pub(super) mod ports;
mod quarantine;
mod report;
mod reset;
mod scope;
mod silence;
mod step;
pub(super) mod tidy;
mod transit;
mod unarrived;
mod unconfirmed;
mod upload;

pub use error::CycleError;
pub use ports::{BatchOptions, CycleProgress, EngineOptions, EngineParts, IgnoreFn};
pub use report::{CycleReport, FinishedAction, verb};

use gates::Gates;
use parts::CycleParts;
use unconfirmed::UploadTrace;

/// Spoils a plan, to show that the simulator notices.
#[cfg(any(test, feature = "testing"))]
pub type Sabotage = fn(&mut Plan, &FetchedIndex);

/// One folder that is kept in sync with one namespace of a proxy.
pub struct Engine<D: Disk, R: Remote, W: World> {
    pub(super) parts: CycleParts<D, R, W>,
    pub(super) gates: Gates,
    #[cfg(any(test, feature = "testing"))]
    pub(super) sabotage: Option<Sabotage>,
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Brings the folder and the proxy as near to agreement as is possible now. Dropping the future stops the cycle between
    /// two steps; the next cycle's table row is right (invariant 8).
    ///
    /// # Errors
    /// When the cycle as a whole cannot go on. Finished steps are committed.
    pub async fn cycle(&mut self, scope: ScanScope) -> Result<CycleReport, CycleError> {
        let began = self.parts.ports.world.elapsed();
        let scan = self.observe_folder(&scope)?;
        let news = self.fetch_index().await?;
        let mut report = CycleReport { scan, scanned_at: self.parts.observed.scanned_at, ..CycleReport::default() };
        if !self.is_due(news) {
            report.held = self.gates.held_steps();
            report.waiting = self.parts.memory.waiting_deletions;
            return Ok(report);
        }
        self.parts.memory.is_unfinished = true;
        let has_obeyed_all = self.check_index(news).await?;
        reset::note_position(&mut self.parts.ports, self.parts.observed.index.as_ref(), has_obeyed_all)?;
        self.forget_lost_uploads();
        (report.index_changed, report.planned) = (news, true);
        let (mut plan, is_waiting) = self.take_plan();
        report.planning = self.parts.ports.world.elapsed().saturating_sub(began);
        report.again = is_waiting;
        let facts = self.parts.plan_input().deletion_facts(&plan);
        report.again |= self.gates.hold_deletions(&mut plan, facts);
        report.held = self.gates.held_steps();
        let applied = apply::apply(&mut self.parts, plan).await?;
        report.waiting = applied.waiting;
        report.add(applied);
        let entries = self.parts.ports.container.entries();
        self.gates.approved.retain(|path| entries.get(path).is_some_and(|entry| entry.base.is_synced()));
        self.parts.memory.is_unfinished = report.again;
        self.parts.memory.crash.end(&mut self.parts.ports)?;
        Ok(report)
    }

    /// The plan of the next cycle. This scans and fetches, and changes nothing.
    ///
    /// # Errors
    /// As [`Engine::cycle`].
    pub async fn dry_run(&mut self) -> Result<Plan, CycleError> {
        self.parts.ports.check_root()?;
        // Everything that this scan and this index show is still news to the next cycle.
        self.parts.memory.plan_everything();
        let CycleParts { ports, observed, memory, uploads, .. } = &mut self.parts;
        observe::scan(ports, observed, memory, uploads, &ScanScope::full())?;
        let news = self.fetch_index().await?;
        self.check_index(news).await?;
        // One scan is enough proof for a dry run.
        let confirm = std::mem::take(&mut self.parts.ports.options.confirm);
        let plan = self.parts.plan_input().plan(&TouchedPaths::Everywhere);
        self.parts.ports.options.confirm = confirm;
        Ok(plan)
    }

    /// Scans the folder after the checks that a scan relies on.
    fn observe_folder(&mut self, scope: &ScanScope) -> Result<ScanStats, CycleError> {
        let CycleParts { ports, observed, memory, uploads, .. } = &mut self.parts;
        // After a failed scan the next one is full, so that its scope is not forgotten.
        let full = !std::mem::take(&mut observed.is_scanned) || memory.stage.is_dirty || scope.full;
        ports.check_root()?;
        if memory.stage.needs_sweep(full) {
            memory.stage.sweep(ports)?;
        }
        let scope = ScanScope { full, ..scope.clone() };
        let scan = observe::scan(ports, observed, memory, uploads, &scope)?;
        scope::commit_scope(ports, observed, memory, uploads)?;
        memory.quarantine.retry_open(|path| full || scope.paths.contains(&observed.tree.disk_name(path)));
        // Every full scan takes up the paths that the last plan left.
        memory.is_unfinished |= full && !memory.unplanned.is_empty();
        Ok(scan)
    }

    async fn fetch_index(&mut self) -> Result<bool, CycleError> {
        let CycleParts { ports, observed, memory, .. } = &mut self.parts;
        observe::fetch_index(ports, observed, memory).await
    }

    /// True if there may be something to plan.
    fn is_due(&mut self, news: bool) -> bool {
        let CycleParts { ports, observed, memory, transfers, .. } = &mut self.parts;
        let now = ports.world.elapsed();
        let is_named = transfers.name_due(now);
        let healed = observed.heals.take_due(now);
        healed.iter().for_each(|path| memory.unplanned.add(path));
        let is_retry_due = memory.quarantine.next_due().is_some_and(|at| at <= now);
        memory.is_unfinished || news || is_named || !healed.is_empty() || is_retry_due
    }

    /// The gate `server_reset`. True if the folder has obeyed all deletions that the index names or has dropped.
    async fn check_index(&mut self, has_changed: bool) -> Result<bool, CycleError> {
        let CycleParts { ports, observed, memory, .. } = &mut self.parts;
        let was_reset = self.gates.reset.is_some();
        let check = reset::check_index(ports, observed, memory, was_reset, has_changed).await?;
        self.gates.reset = check.halt;
        match &self.gates.reset {
            Some(halt) => Err(CycleError::Halted(halt.clone())),
            None => Ok(check.has_obeyed_all),
        }
    }

    fn forget_lost_uploads(&mut self) {
        let CycleParts { ports, observed, memory, uploads, .. } = &mut self.parts;
        if observed.index.is_none() {
            return;
        }
        let trace = |path: &RelPath| {
            let is_absent = observed.found(path).is_none()
                && observed::unknown_absence(&observed.tree, &ports.ignored, path).is_none();
            if !is_absent {
                UploadTrace::Here
            } else if observed.is_listed_live(path) {
                UploadTrace::Listed
            } else {
                UploadTrace::Nowhere
            }
        };
        let now = ports.world.elapsed();
        memory.lost_uploads.forget_lost(uploads, trace, observed.has_exact_index(), now);
    }

    /// The plan for the open paths. True if some of them wait for a later scan. If the cycle ends early, the next one plans
    /// all these paths again.
    fn take_plan(&mut self) -> (Plan, bool) {
        let (ready, waiting) = self.parts.memory.split_unplanned(self.parts.observed.is_confirming);
        let plan = self.parts.plan_input().plan(&ready);
        let left = plan.steps.iter().filter(|step| step.action != Action::Skip(SkipReason::Ignored));
        let is_waiting = !waiting.is_empty();
        let unplanned = waiting.into_iter().chain(left.map(|step| step.path.clone()));
        self.parts.memory.unplanned = TouchedPaths::Paths(unplanned.collect());
        #[cfg(any(test, feature = "testing"))]
        let plan = self.sabotaged(plan);
        (plan, is_waiting)
    }

    #[cfg(any(test, feature = "testing"))]
    fn sabotaged(&self, mut plan: Plan) -> Plan {
        if let (Some(sabotage), Some(index)) = (self.sabotage, &self.parts.observed.index) {
            sabotage(&mut plan, index);
        }
        plan
    }
}
