//! The second step of a cycle: make the plan, and count what is left of it for the status. Pure: no I/O and no clock.
//!
//! [`PlanInput`] adds to the decision table the facts that one scan and one index cannot show: deletions that a second
//! scan must confirm, uploads without an answer, paths in quarantine or in transit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::agent::problems::ProblemEffect;
use crate::agent::status::Pending;
use crate::digest::Md5;
use crate::local::TouchedPaths;
use crate::path::{RelPath, subtree_range};
use crate::state::BaseEntry;
use crate::sync::safety::{DeletionFacts, HeldDeletions, MASS_DELETE_MIN};
use crate::sync::{Action, Base, IndexTrust, LocalState, Plan, PlanStep, RemoteSide, SkipReason, decide, reconcile};

use super::memory::CycleMemory;
use super::observed::{Observed, unchanged};
use super::ports::{EngineOptions, IgnoreFn};
use super::transit::SlowSteps;
use super::unconfirmed::UnconfirmedUploads;

/// Everything that a plan depends on.
#[derive(Clone, Copy)]
pub(in crate::agent) struct PlanInput<'a> {
    pub base: &'a BTreeMap<RelPath, BaseEntry>,
    pub observed: &'a Observed,
    pub memory: &'a CycleMemory,
    pub uploads: &'a UnconfirmedUploads,
    pub in_transit: &'a SlowSteps,
    pub options: &'a EngineOptions,
    pub ignored: &'a IgnoreFn,
    /// [`World::elapsed`](crate::agent::World::elapsed).
    pub now: Duration,
}

impl PlanInput<'_> {
    /// The plan for some paths, or for all. Both have the same steps for a path. Empty without an index.
    pub(crate) fn plan(&self, among: &TouchedPaths) -> Plan {
        match among {
            _ if self.observed.index.is_none() => Plan::default(),
            TouchedPaths::Paths(paths) if !self.options.fold => {
                let paths = self.with_neighbours(paths);
                let local = self.local(paths.iter(), paths.iter(), paths.iter());
                let base = paths.iter().filter_map(|path| Some((path, self.base_side(path)?)));
                let remote = paths.iter().filter_map(|path| Some((path, self.remote_side(path)?)));
                reconcile(base, &local, remote, self.observed.trust(), false)
            }
            _ => self.plan_all(),
        }
    }

    fn plan_all(&self) -> Plan {
        let Some(index) = &self.observed.index else { return Plan::default() };
        let corrections = &self.observed.corrections;
        let sent = self.uploads.paths();
        let tracked = self.base.keys().chain(&sent);
        let local = self.local(self.observed.tree.found().keys(), tracked, index.files.keys());
        let base: Box<dyn Iterator<Item = (&RelPath, Base)>> =
            if sent.is_empty() && self.memory.crash.emptied.is_empty() {
                Box::new(self.base.iter().map(|(path, entry)| (path, entry.base)))
            } else {
                let all: BTreeSet<&RelPath> = self.base.keys().chain(&sent).collect();
                Box::new(all.into_iter().filter_map(|path| Some((path, self.base_side(path)?))))
            };
        let known: Box<dyn Iterator<Item = &RelPath>> =
            if self.observed.has_expired_tombstones || !corrections.proven.is_empty() {
                let all = index.files.keys().chain(self.base.keys()).chain(corrections.proven.keys());
                Box::new(all.collect::<BTreeSet<&RelPath>>().into_iter())
            } else {
                Box::new(index.files.keys())
            };
        let remote = known.filter_map(|path| Some((path, self.remote_side(path)?)));
        reconcile(base, &local, remote, self.observed.trust(), self.options.fold)
    }

    /// The plan for local changes, as far as it is known without an index.
    fn plan_local_changes(&self) -> Plan {
        let local = self.local(self.observed.tree.found().keys(), self.base.keys(), std::iter::empty());
        let base = self.base.iter().map(|(path, entry)| (path, entry.base));
        let remote = self.base.iter().map(|(path, entry)| (path, unchanged(entry.base)));
        reconcile(base, &local, remote, IndexTrust::Evidence, self.options.fold)
    }

    fn remote_side(&self, path: &RelPath) -> Option<RemoteSide> {
        self.observed.remote_side(path, self.base.get(path).map(|entry| entry.base))
    }

    /// The base that the table takes for a path. Where the proxy holds an unconfirmed upload of a file that is gone
    /// here, that upload is the base: the user had the file and has deleted it. An emptied file has no base.
    fn base_side(&self, path: &RelPath) -> Option<Base> {
        if self.memory.crash.emptied.contains(path) {
            return None;
        }
        let base = self.base.get(path).map(|entry| entry.base);
        if !self.uploads.contains(path) || self.observed.found(path).is_some() {
            return base;
        }
        match self.observed.listed(path) {
            Some(entry) if !entry.is_deleted && self.uploads.is_from_this_run(path, entry.md5) => match base {
                Some(Base::Detached(_)) => Some(Base::Detached(entry.md5)),
                _ => Some(Base::Synced(entry.md5)),
            },
            _ => base,
        }
    }

    /// The paths, and those that a file or folder of them could clash with.
    fn with_neighbours(&self, paths: &BTreeSet<RelPath>) -> BTreeSet<RelPath> {
        let tree = self.observed.tree.found();
        let mut all = paths.clone();
        for path in paths {
            for above in path.ancestors() {
                let known = [
                    tree.get_key_value(above).map(|(path, _)| path),
                    self.base.get_key_value(above).map(|(path, _)| path),
                    self.observed.index.as_ref().and_then(|i| i.files.get_key_value(above)).map(|(path, _)| path),
                ];
                all.extend(known.into_iter().flatten().next().cloned());
            }
            all.extend(subtree_range(tree, path.as_str()).next().map(|(path, _)| path.clone()));
            all.extend(self.memory.missed.below(path).cloned());
        }
        all
    }

    /// The local side of the table: the files that the scan found, and reasons why other paths are unknown. `tracked`
    /// may have a base, `remote` may be on the proxy.
    fn local<'p>(
        &self,
        found: impl Iterator<Item = &'p RelPath>,
        tracked: impl Iterator<Item = &'p RelPath>,
        remote: impl Iterator<Item = &'p RelPath>,
    ) -> BTreeMap<RelPath, LocalState> {
        let find = |path: &RelPath| self.observed.tree.found().get_key_value(path);
        let mut local: BTreeMap<RelPath, LocalState> =
            found.filter_map(|path| find(path).map(|(path, found)| (path.clone(), found.local.clone()))).collect();
        let memory = self.memory;
        let is_proven = memory.missed.proven(self.observed.scanned_at, self.options.confirm);
        for path in tracked {
            if local.contains_key(path) {
                continue;
            }
            let is_proven = self.observed.is_confirming && is_proven(path);
            if let Some(why) = self.why_unproven(path, is_proven) {
                local.insert(path.clone(), LocalState::Unknown(why));
            }
        }
        for path in remote {
            if !local.contains_key(path)
                && let Some(why) = self.why_not_downloaded(path)
            {
                local.insert(path.clone(), LocalState::Unknown(why));
            }
        }
        for (path, _) in memory.quarantine.iter() {
            let content = match local.get(path) {
                Some(LocalState::File(md5)) => Some(*md5),
                Some(LocalState::Unknown(_)) => continue,
                None => None,
            };
            if let Some(why) = memory.quarantine.reason(path, content, self.now) {
                local.insert(path.clone(), LocalState::Unknown(SkipReason::Quarantined(why.to_owned())));
            }
        }
        for path in self.in_transit.keys() {
            local.insert(path.clone(), LocalState::Unknown(SkipReason::InTransit));
        }
        local
    }

    /// Why the absence of a tracked file decides nothing. `None`: it is gone, or was never here.
    fn why_unproven(&self, path: &RelPath, is_proven: bool) -> Option<SkipReason> {
        let base = self.base.get(path).map(|entry| entry.base);
        match base {
            // Nothing is deleted for a detached base, so one scan is enough.
            Some(Base::Detached(_)) => return self.observed.unknown_absence(self.ignored, path),
            Some(Base::Synced(_)) => {}
            _ if self.base_side(path).is_some_and(Base::is_synced) => {}
            _ => return None,
        }
        self.unknown_absence(path).or((!is_proven).then_some(SkipReason::Vanished))
    }

    /// Why a file that is on the proxy alone is not downloaded.
    fn why_not_downloaded(&self, path: &RelPath) -> Option<SkipReason> {
        let entry = self.observed.listed(path).filter(|entry| !entry.is_deleted)?;
        let is_too_large = entry.size > self.options.max_file_size;
        self.unknown_absence(path).or(is_too_large.then_some(SkipReason::TooLarge(entry.size)))
    }

    /// A file that the scan missed is absent. The scan has already checked it against the rules.
    fn unknown_absence(&self, path: &RelPath) -> Option<SkipReason> {
        if self.memory.missed.contains(path) { None } else { self.observed.unknown_absence(self.ignored, path) }
    }

    /// The facts that the gate `mass_delete` needs to judge the plan.
    pub(super) fn deletion_facts(&self, plan: &Plan) -> DeletionFacts {
        let max_delete = self.options.max_delete;
        if plan.steps.len() < MASS_DELETE_MIN {
            return DeletionFacts { tracked: 0, staying: BTreeMap::new(), max_delete };
        }
        let tracked = self.base.values().filter(|entry| entry.base.is_synced()).count();
        DeletionFacts { tracked, staying: self.staying(plan), max_delete }
    }

    /// How many files that the plan leaves alone hold, on both sides, content that it deletes elsewhere.
    fn staying(&self, plan: &Plan) -> BTreeMap<Md5, usize> {
        let mut staying = BTreeMap::new();
        let going: BTreeSet<Md5> = plan.steps.iter().filter_map(|step| step.action.deleted()).collect();
        if going.is_empty() {
            return staying;
        }
        let is_on_both_sides = |path: &RelPath, md5| {
            let listed = self.observed.listed(path);
            self.observed.local_content(path) == Some(md5)
                && listed.is_some_and(|entry| entry.md5 == md5 && !entry.is_deleted)
        };
        for (path, entry) in self.base {
            let Base::Synced(md5) = entry.base else { continue };
            let is_planned = || plan.steps.binary_search_by(|step| step.path.cmp(path)).is_ok();
            if going.contains(&md5) && !is_planned() && is_on_both_sides(path, md5) {
                *staying.entry(md5).or_default() += 1;
            }
        }
        staying
    }
}

/// The work that is left, as `memsync status` counts it.
impl PlanInput<'_> {
    /// Counts the changes that the last scan and index show and that are not made yet. `twins`: files that are blocked,
    /// because their path is another file's too.
    pub(crate) fn count_pending(&self, held: &[HeldDeletions], twins: usize) -> Pending {
        let mut pending = Pending { held_delete: held.iter().map(|held| held.steps.len()).sum(), ..Pending::default() };
        let held: BTreeSet<&RelPath> = held.iter().flat_map(|held| held.steps.iter().map(|step| &step.path)).collect();
        let (ready, waiting) = self.memory.split_unplanned(self.observed.is_confirming);
        pending.delete += waiting.iter().filter(|path| !held.contains(path)).count();
        let has_index = self.observed.index.is_some();
        let plan = if has_index { self.plan(&ready) } else { self.plan_local_changes() };
        let is_deleting = plan.steps.iter().any(|step| step.action.deletes().is_some());
        for step in plan.steps.into_iter().filter(|step| !held.contains(&step.path)) {
            let Some((action, is_blocked)) = self.pending_action(step, is_deleting) else { continue };
            let count = match action {
                Action::Upload { .. } | Action::UploadUnread | Action::Probe { .. } => &mut pending.upload,
                Action::Download { .. } | Action::Replace { .. } | Action::Conflict { .. } => &mut pending.download,
                Action::DeleteRemote { .. } | Action::Trash { .. } => &mut pending.delete,
                Action::RecordSeen { .. } | Action::Adopt { .. } | Action::Skip(_) => continue,
            };
            *count += 1;
            pending.blocked += usize::from(is_blocked);
        }
        // The second name of a path is a file that would be uploaded under another name.
        pending.upload += twins;
        pending.blocked += twins;
        // Deletions wait for a failed file, which is retried, or for one that cannot be read.
        if self.memory.quarantine.is_empty() {
            pending.blocked += self.memory.waiting_deletions.min(pending.delete);
        }
        pending
    }

    /// The action that a step, or a skipped path, waits to do, and whether a person must help first. `is_deleting`: the
    /// plan has deletions.
    fn pending_action(&self, step: PlanStep, is_deleting: bool) -> Option<(Action, bool)> {
        let Action::Skip(why) = step.action else { return Some((step.action, false)) };
        let effect = ProblemEffect::of(&why);
        if effect == Some(ProblemEffect::LeftOut) {
            return None;
        }
        // An upload that waits for the name of a blocked path waits for the same person.
        let waits_for_name = why == SkipReason::Changing && !is_deleting && !self.observed.is_changing(&step.path);
        let action = self.skipped_action(&step.path, &why)?;
        Some((action, waits_for_name || effect == Some(ProblemEffect::Blocked)))
    }

    /// The action that a skipped path waits for, by the last known content of both sides.
    fn skipped_action(&self, path: &RelPath, why: &SkipReason) -> Option<Action> {
        let base = self.base_side(path);
        let remote = if self.observed.index.is_some() { self.remote_side(path) } else { base.map(unchanged) };
        let found = self.observed.found(path).map(|found| &found.local);
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
        // Without an index, nothing has changed on the proxy for certain.
        let trust = if self.observed.index.is_some() { self.observed.trust() } else { IndexTrust::Evidence };
        decide(base, local.as_ref(), remote, trust).1
    }
}

#[cfg(test)]
mod tests;
