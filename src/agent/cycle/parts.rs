//! [`CycleParts`]: the parts of an engine that a cycle works with.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::agent::world::World;
use crate::disk::Disk;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::ShadowTexts;
use crate::sync::{Base, PlanStep};

use super::memory::CycleMemory;
use super::observed::Observed;
use super::plan::PlanInput;
use super::ports::EnginePorts;
use super::quarantine::PathFailure;
use super::report::{CycleReport, FinishedAction};
use super::step::StepWork;
use super::transit::SlowTransfers;
use super::unconfirmed::UnconfirmedUploads;

/// How far the running cycle is, for a progress bar.
#[derive(Debug, Default)]
pub struct CycleProgress {
    pub steps: AtomicUsize,
    pub done: AtomicUsize,
}

impl CycleProgress {
    /// Starts with `steps` steps to do; zero: no cycle runs.
    pub fn start(&self, steps: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.steps.store(steps, Ordering::Relaxed);
    }
}

/// The signals between a cycle and its caller.
#[derive(Default)]
pub(in crate::agent) struct CycleSignals {
    pub progress: Arc<CycleProgress>,
    /// Ends the running cycle soon. Its finished steps are committed.
    pub stop: Arc<AtomicBool>,
    /// Ends all work of this engine, even in the middle of a scan.
    pub quit: Arc<AtomicBool>,
    /// Called when a scan has found a change, before any request to the proxy.
    pub on_change: Option<Box<dyn Fn() + Send + Sync>>,
}

impl CycleSignals {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.quit.load(Ordering::Relaxed)
    }
}

/// Everything of an engine but its gates.
pub(in crate::agent) struct CycleParts<D: Disk, R: Remote, W: World> {
    pub ports: EnginePorts<D, R, W>,
    pub signals: CycleSignals,
    pub observed: Observed,
    pub memory: CycleMemory,
    pub uploads: UnconfirmedUploads,
    pub transfers: SlowTransfers<D, R>,
    pub shadow: ShadowTexts<D>,
}

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    pub(crate) fn new(ports: EnginePorts<D, R, W>) -> Self {
        Self {
            signals: CycleSignals::default(),
            observed: Observed::seeded(ports.container.entries()),
            memory: CycleMemory::at_start(),
            uploads: UnconfirmedUploads::after(ports.container.uploads().clone()),
            transfers: SlowTransfers::default(),
            shadow: ports.container.shadow_texts(),
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

    /// True if no file is at the path for certain.
    pub(super) fn is_absent(&self, path: &RelPath) -> bool {
        self.observed.found(path).is_none() && self.observed.unknown_absence(&self.ports.ignored, path).is_none()
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
            merge: if is_emptied { None } else { self.merge_rules(&step.path) },
            shadow: self.shadow.reader.clone(),
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
