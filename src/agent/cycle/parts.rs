//! [`CycleParts`]: the parts of an engine that a cycle applies a plan with.

use std::sync::Mutex;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::remote::Remote;
use crate::sync::{Base, PlanStep};

use super::memory::CycleMemory;
use super::observed::Observed;
use super::plan::PlanInput;
use super::ports::Ports;
use super::quarantine::PathFailure;
use super::report::{CycleReport, FinishedAction};
use super::step::StepWork;
use super::transit::SlowTransfers;
use super::unconfirmed::UnconfirmedUploads;

/// Everything of an engine but its gates.
pub(in crate::agent) struct CycleParts<D: Disk, R: Remote, W: World> {
    pub ports: Ports<D, R, W>,
    pub observed: Observed,
    pub memory: CycleMemory,
    pub uploads: UnconfirmedUploads,
    pub transfers: SlowTransfers<D, R>,
}

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    pub(crate) fn new(ports: Ports<D, R, W>) -> Self {
        Self {
            observed: Observed::seeded(ports.container.entries()),
            memory: CycleMemory::default(),
            uploads: UnconfirmedUploads::after(ports.container.uploads().clone()),
            transfers: SlowTransfers::default(),
            ports,
        }
    }

    pub(crate) fn plan_input(&self) -> PlanInput<'_> {
        PlanInput {
            base: self.ports.container.entries(),
            observed: &self.observed,
            memory: &self.memory,
            uploads: &self.uploads,
            in_transit: &self.transfers.steps,
            options: &self.ports.options,
            ignored: &self.ports.ignored,
            now: self.ports.world.elapsed(),
        }
    }

    /// Makes a step ready to run beside others.
    pub(super) fn prepare(&self, step: PlanStep) -> StepWork<D, R> {
        // An emptied file is no edit of content that this device had or sent.
        let is_emptied = self.memory.crash.emptied.contains(&step.path);
        let entry = self.ports.container.entries().get(&step.path).filter(|_| !is_emptied);
        StepWork {
            folder: self.ports.folder.clone(),
            remote: self.ports.remote.clone(),
            disk_name: self.observed.tree.disk_name(&step.path),
            base: entry.and_then(|entry| entry.base.content()),
            seen: entry.and_then(|entry| match entry.base {
                Base::Seen(md5) => Some(md5),
                Base::Synced(_) | Base::Detached(_) => None,
            }),
            version: entry.map_or(0, |entry| entry.version),
            uploads: if is_emptied { UnconfirmedUploads::default() } else { self.uploads.clone() },
            sent_before: self.uploads.contents(&step.path),
            max_file_size: self.ports.options.max_file_size,
            listed: self.observed.listed(&step.path).copied(),
            is_exact: self.observed.has_exact_index(),
            heals: self.observed.heals.clone(),
            now: self.ports.world.elapsed(),
            first: Mutex::default(),
            step,
        }
    }

    /// Puts the path of a failed step in quarantine. `is_open`: a program has the file open.
    pub(super) fn quarantine(&mut self, step: &PlanStep, why: String, is_open: bool) -> CycleReport {
        let failure = PathFailure { why: why.clone(), content: self.observed.local_content(&step.path), is_open };
        let world = &self.ports.world;
        self.memory.quarantine.fail(&step.path, failure, world.elapsed(), world.random());
        CycleReport { failed: 1, recent: vec![FinishedAction::failed(step, why)], ..CycleReport::default() }
    }

    /// Gives up the slow transfers. The next plan begins them again.
    pub(crate) fn drop_transfers(&mut self) {
        for path in self.transfers.drop_all() {
            self.memory.plan_again(&path);
        }
    }
}
