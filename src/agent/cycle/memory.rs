//! [`CycleMemory`]: the work that the next cycle takes up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::local::TouchedPaths;
use crate::path::RelPath;

use super::emptied::CrashCheck;
use super::leftovers::StageLeftovers;
use super::missed::MissedFiles;
use super::quarantine::Quarantine;
use super::recent_merges::RecentMerges;
use super::report::FinishedAction;
use super::unconfirmed::LostUploads;

/// The work that the next cycle takes up. It is not saved: after a restart, a full scan and a plan for all paths find
/// the same.
#[derive(Debug, Default)]
pub(in crate::agent) struct CycleMemory {
    /// The paths that the next plan must decide: those that changed on either side, and those that the last plan left.
    /// For all others the decision table has nothing to do.
    pub unplanned: TouchedPaths,
    /// Tracked files that the last scan missed.
    pub missed: MissedFiles,
    /// Files that were being written when last scanned, with the time since when
    /// ([`World::elapsed`](crate::agent::World::elapsed)).
    pub changing: BTreeMap<RelPath, Duration>,
    /// New files whose upload needs a digest first. The scan reads them.
    pub read_first: BTreeSet<RelPath>,
    pub quarantine: Quarantine,
    pub merges: RecentMerges,
    pub stage: StageLeftovers,
    pub crash: CrashCheck,
    pub lost_uploads: LostUploads,
    /// The last cycle left work, so that the next one makes a plan in any case.
    pub is_unfinished: bool,
    /// Deletions of the last plan that wait, because the same file may appear under another name.
    pub waiting_deletions: usize,
    /// Finished actions of a cycle that ended early.
    pub cut_off: Vec<FinishedAction>,
}

impl CycleMemory {
    /// At a start, all paths are to be planned.
    pub(crate) fn at_start() -> Self {
        let mut memory = Self::default();
        memory.plan_everything();
        memory
    }

    /// The next cycle plans all paths.
    pub(crate) fn plan_everything(&mut self) {
        self.is_unfinished = true;
        self.unplanned = TouchedPaths::Everywhere;
    }

    /// The next cycle plans this path.
    pub(crate) fn plan_again(&mut self, path: &RelPath) {
        self.is_unfinished = true;
        self.unplanned.add(path);
    }

    /// Lets every path in quarantine try again with the next cycle.
    pub(crate) fn retry_all(&mut self) {
        self.quarantine.retry_all();
        self.is_unfinished |= !self.quarantine.is_empty();
        self.quarantine.iter().for_each(|(path, _)| self.unplanned.add(path));
    }

    /// The open paths that a plan can decide, and those whose deletion no scan of this cycle can confirm. While an
    /// `rm -r` runs, the latter would be planned again and again for nothing.
    pub(crate) fn split_unplanned(&self, is_confirming: bool) -> (TouchedPaths, BTreeSet<RelPath>) {
        match &self.unplanned {
            TouchedPaths::Paths(paths) if !is_confirming => {
                let (waiting, ready) = paths.iter().cloned().partition(|path| self.missed.contains(path));
                (TouchedPaths::Paths(ready), waiting)
            }
            unplanned => (unplanned.clone(), BTreeSet::new()),
        }
    }
}
