//! One pass over a folder and its proxy: observe → plan → apply → commit.
//!
//! [`Engine`] is the orchestrator. Each step is a method of its [`CycleParts`]: `observe` scans and fetches, `plan`
//! decides and is pure, `apply` carries the steps out, `commit` makes their outcomes durable.
//! [`CycleMemory`](memory::CycleMemory) holds the work that the next cycle takes up.

use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::{ScanScope, TouchedPaths};
#[cfg(any(test, feature = "testing"))]
use crate::remote::FetchedIndex;
use crate::remote::Remote;
use crate::sync::{Action, Plan, SkipReason};

mod apply;
mod batch;
mod commit;
mod corrections;
mod decisions;
mod emptied;
pub(super) mod gates;
mod leftovers;
mod memory;
mod merging;
mod missed;
mod observe;
mod observed;
pub(super) mod parts;
mod plan;
mod ports;
mod quarantine;
mod recent_merges;
pub(super) mod report;
mod reset;
mod step;
mod tidy;
mod transit;
mod unarrived;
mod unconfirmed;
mod upload;

pub use parts::CycleProgress;
pub use ports::{BatchOptions, EngineOptions, EnginePorts, IgnoreFn};
pub use report::{CycleError, CycleReport, FinishedAction, verb};

use gates::Gates;
use parts::CycleParts;

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
    /// Brings the folder and the proxy as near to agreement as is possible now. Dropping the future stops the cycle
    /// between two steps; the next cycle's table row is right (invariant 8).
    ///
    /// # Errors
    /// When the cycle as a whole cannot go on. Finished steps are committed.
    pub async fn cycle(&mut self, scope: ScanScope) -> Result<CycleReport, CycleError> {
        let Self { parts, gates, .. } = self;
        let began = parts.ports.world.elapsed();
        let scan = parts.observe_folder(&scope)?;
        let index_changed = parts.fetch_index().await?;
        let mut report = CycleReport { scan, scanned_at: parts.observed.scanned_at, ..CycleReport::default() };
        if !parts.is_due(index_changed) {
            report.held = gates.held_steps();
            report.waiting = parts.memory.waiting_deletions;
            return Ok(report);
        }
        parts.memory.is_unfinished = true;
        let has_obeyed_all = parts.check_index(gates, index_changed).await?;
        parts.note_position(has_obeyed_all)?;
        parts.forget_lost_uploads();
        (report.index_changed, report.planned) = (index_changed, true);
        let (mut plan, is_waiting) = self.take_plan();
        let Self { parts, gates, .. } = self;
        report.planning = parts.ports.world.elapsed().saturating_sub(began);
        let facts = parts.plan_input().deletion_facts(&plan);
        report.again = is_waiting | gates.hold_deletions(&mut plan, &facts);
        report.held = gates.held_steps();
        let applied = parts.apply(plan).await?;
        report.waiting = applied.waiting;
        report.add(applied);
        let entries = parts.ports.container.entries();
        gates.approved.retain(|path| entries.get(path).is_some_and(|entry| entry.base.is_synced()));
        parts.memory.is_unfinished = report.again;
        parts.memory.crash.end(&mut parts.ports)?;
        Ok(report)
    }

    /// The plan of the next cycle. This scans and fetches, and changes nothing.
    ///
    /// # Errors
    /// As [`Engine::cycle`].
    pub async fn dry_run(&mut self) -> Result<Plan, CycleError> {
        let Self { parts, gates, .. } = self;
        parts.ports.check_root()?;
        // Everything that this scan and this index show is still news to the next cycle.
        parts.memory.plan_everything();
        parts.scan(&ScanScope::full())?;
        let index_changed = parts.fetch_index().await?;
        parts.check_index(gates, index_changed).await?;
        // One scan is enough proof for a dry run.
        let confirm = std::mem::take(&mut parts.ports.options.confirm);
        let plan = parts.plan_input().plan(&TouchedPaths::Everywhere);
        parts.ports.options.confirm = confirm;
        Ok(plan)
    }

    /// The plan for the open paths. True if some of them wait for a later scan. If the cycle ends early, the next one
    /// plans all these paths again.
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

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// True if there may be something to plan.
    fn is_due(&mut self, index_changed: bool) -> bool {
        let Self { ports, observed, memory, transfers, .. } = self;
        let now = ports.world.elapsed();
        let is_named = transfers.name_due(now);
        let healed = observed.heals.take_due(now);
        healed.iter().for_each(|path| memory.unplanned.add(path));
        let is_retry_due = memory.quarantine.next_due().is_some_and(|at| at <= now);
        memory.is_unfinished || index_changed || is_named || !healed.is_empty() || is_retry_due
    }
}
