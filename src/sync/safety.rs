//! The gates, which halt a cycle instead of deleting. Pure checks of a plan or an index as a whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Md5;
use crate::path::RelPath;

use super::plan::{Action, Plan, PlanStep, Precondition, Side};
use super::snapshot::{Base, SkipReason};

/// A state that a person must approve before sync goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// The folder is absent (unmounted, moved away), or it lost its identity.
    RootMissing { id: String, why: String },
    /// Another folder is at the path: another identity, a symlink, another device.
    RootChanged { id: String, why: String },
    /// The plan would delete implausibly many files on one side. The rest of the plan goes on.
    MassDelete { id: String, side: Side, files: usize, of: usize },
    /// The proxy's store is another one, or was set back.
    ServerReset { id: String, why: String },
}

impl Halt {
    /// The name in `status --json`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RootMissing { .. } => "root_missing",
            Self::RootChanged { .. } => "root_changed",
            Self::MassDelete { .. } => "mass_delete",
            Self::ServerReset { .. } => "server_reset",
        }
    }

    pub fn root_missing(evidence: &[&str], why: String) -> Self {
        Self::RootMissing { id: evidence_id("root_missing", evidence), why }
    }

    pub fn root_changed(evidence: &[&str], why: String) -> Self {
        Self::RootChanged { id: evidence_id("root_changed", evidence), why }
    }

    /// The id that `memsync approve` takes.
    pub fn id(&self) -> &str {
        match self {
            Self::RootMissing { id, .. }
            | Self::RootChanged { id, .. }
            | Self::MassDelete { id, .. }
            | Self::ServerReset { id, .. } => id,
        }
    }

    /// True for `root_missing` and `root_changed`.
    pub fn is_of_root(&self) -> bool {
        matches!(self, Self::RootMissing { .. } | Self::RootChanged { .. })
    }
}

/// The same evidence always gives the same id.
fn evidence_id(kind: &str, evidence: &[&str]) -> String {
    Md5::of(format!("{kind}\n{}\n", evidence.join("\n")).as_bytes()).short()
}

/// Fewer deletions than this are never held.
pub const MASS_DELETE_MIN: usize = 10;

/// Fewer missing files than this are never a `server_reset`.
pub const MISSING_MIN: usize = 5;

/// Deletions taken out of a plan until a person approves or rejects them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldDeletions {
    pub id: String,
    pub side: Side,
    pub steps: Vec<PlanStep>,
    /// Tracked files when it was held.
    pub of: usize,
    /// Files without a known digest are being uploaded. They may be the same files under new names, so approval is not
    /// requested before they have arrived.
    pub unread: bool,
}

impl HeldDeletions {
    pub fn halt(&self) -> Halt {
        Halt::MassDelete { id: self.id.clone(), side: self.side, files: self.steps.len(), of: self.of }
    }
}

/// The facts about the folder that the gate `mass_delete` needs besides the plan.
#[derive(Debug, Clone)]
pub struct DeletionFacts {
    /// Files in the base.
    pub tracked: usize,
    /// The contents that the plan deletes, each with the number of files that hold it on both sides and that the plan leaves
    /// alone.
    pub staying: BTreeMap<Md5, usize>,
    /// The share of the tracked files, 0 to 1, that one plan may delete on one side (`sync.max_delete`).
    pub max_delete: f64,
}

/// The gate `mass_delete`: takes the deletions of one side out of the plan when they are at least
/// [`MASS_DELETE_MIN`] and more than `max_delete` of the tracked files.
///
/// `approved`: paths whose deletion a person has approved. They do not count and go through. The same holds for paths
/// whose content has another name on that side, or gets one with this plan (a renamed folder). `held_before`:
/// deletions of earlier plans that wait for approval. While they wait, new files do not raise the limit.
pub fn hold_mass_delete(
    plan: &mut Plan,
    facts: &DeletionFacts,
    approved: &BTreeSet<RelPath>,
    held_before: &[HeldDeletions],
) -> Vec<HeldDeletions> {
    let mut held = Vec::new();
    for side in [Side::Local, Side::Remote] {
        let tracked = held_before.iter().filter(|h| h.side == side).map(|h| h.of).fold(facts.tracked, usize::min);
        let moved = moved(plan, side, facts.staying.clone());
        let counts =
            |s: &PlanStep| s.action.deletes() == Some(side) && !approved.contains(&s.path) && !moved.contains(&s.path);
        let deletes = plan.steps.iter().filter(|s| counts(s)).count();
        // A file that one scan missed will be deleted by the next plan. Files that vanish together are judged together.
        let vanishing = |s: &&PlanStep| s.action == Action::Skip(SkipReason::Vanished) && !approved.contains(&s.path);
        let soon = if side == Side::Remote { plan.steps.iter().filter(vanishing).count() } else { 0 };
        let files = deletes + soon;
        // Counts of files are far below 2^52, where f64 is exact.
        let too_many = |files: usize| files >= MASS_DELETE_MIN && files as f64 > facts.max_delete * tracked as f64;
        if deletes == 0 || !too_many(files) {
            continue;
        }
        let is_unread = |s: &&PlanStep| matches!(s.action, Action::UploadUnread | Action::Skip(SkipReason::Unread));
        let unread_files = if side == Side::Remote { plan.steps.iter().filter(is_unread).count() } else { 0 };
        let (steps, rest) = std::mem::take(&mut plan.steps).into_iter().partition(|s| counts(s));
        plan.steps = rest;
        let paths: Vec<&str> = steps.iter().map(|step: &PlanStep| step.path.as_str()).collect();
        let was_held = held_before.iter().any(|h| h.side == side);
        let unread = !was_held && !too_many(files.saturating_sub(unread_files));
        held.push(HeldDeletions { id: evidence_id(&format!("{side:?}"), &paths), side, steps, of: tracked, unread });
    }
    held
}

/// The paths that one side loses although it keeps or gets their content under another name. Each kept or new file
/// accounts for one lost file.
fn moved(plan: &Plan, side: Side, staying: BTreeMap<Md5, usize>) -> BTreeSet<RelPath> {
    let mut there = staying;
    for step in &plan.steps {
        match (side, &step.action) {
            (Side::Local, Action::Download { remote: md5 })
            | (Side::Remote, Action::Upload { local: md5, precondition: Precondition::New, .. }) => {
                *there.entry(*md5).or_default() += 1;
            }
            _ => {}
        }
    }
    let mut goes = |step: &&PlanStep| {
        let md5 = step.action.deleted().filter(|_| step.action.deletes() == Some(side));
        md5.and_then(|md5| there.get_mut(&md5)).filter(|n| **n > 0).map(|n| *n -= 1).is_some()
    };
    plan.steps.iter().filter(|step| goes(step)).map(|step| step.path.clone()).collect()
}

/// The new base of rejected deletions, with which the next cycle restores the files. A file deleted here loses its base
/// (row 2 downloads it). A file deleted on the proxy gets `Seen` (row 8 uploads it).
pub fn reject(held: &HeldDeletions) -> Vec<(RelPath, Option<Base>)> {
    held.steps
        .iter()
        .map(|step| {
            let base = match &step.action {
                Action::Trash { tombstone, .. } => Some(Base::Seen(*tombstone)),
                _ => None,
            };
            (step.path.clone(), base)
        })
        .collect()
}

/// The position of an index (capability `strong-index`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexPosition<'a> {
    pub epoch: &'a str,
    pub cursor: u64,
}

/// The store that the base was agreed with, or that the proxy has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorePosition<'a> {
    /// Scheme, host and port; empty while unknown.
    pub origin: &'a str,
    pub namespace: &'a str,
    /// `None` where the proxy does not give it.
    pub position: Option<IndexPosition<'a>>,
    /// In `before`: the store was set back, and nobody has approved that yet. Its cursor may have moved on since. In `now`:
    /// the history of the proxy does not contain the agreed point.
    pub set_back: bool,
}

impl StorePosition<'_> {
    /// True if the same store has an earlier cursor now, or another history.
    pub fn is_set_back(&self, now: &Self) -> bool {
        match (self.position, now.position) {
            (Some(b), Some(n)) => b.epoch == n.epoch && (n.cursor < b.cursor || now.set_back),
            _ => now.set_back,
        }
    }
}

/// The gate `server_reset`. `tracked`: files of the base. `missing`: tracked files that the index does not name, not
/// even as a tombstone. `before`: the store of the last commit. `now`: the store of the settings and of this index.
pub fn server_reset(tracked: usize, missing: usize, before: StorePosition<'_>, now: StorePosition<'_>) -> Option<Halt> {
    // The same epoch at another address is the same store. An epoch covers all namespaces of a store.
    let same_store = matches!((before.position, now.position), (Some(b), Some(n)) if b.epoch == n.epoch);
    let known = tracked > 0 && !before.origin.is_empty();
    let why = match (before.position, now.position) {
        _ if known && before.namespace != now.namespace => {
            format!("the folder was synced with the namespace {:?}, not {:?}", before.namespace, now.namespace)
        }
        _ if known && before.origin != now.origin && !same_store => {
            format!("the folder was synced with {}, not with {}", before.origin, now.origin)
        }
        (Some(b), Some(n)) if b.epoch != n.epoch => {
            "the proxy's store is another one than before (its epoch changed)".to_owned()
        }
        (Some(b), _) if before.set_back || before.is_set_back(&now) => {
            format!("the proxy's store was set back behind its change {}, with which the folder was synced", b.cursor)
        }
        _ if before.set_back || before.is_set_back(&now) => {
            "the proxy's store was set back: it has never been as it was when the folder was synced".to_owned()
        }
        _ if missing >= MISSING_MIN && missing * 5 >= tracked => {
            format!("{missing} of {tracked} synced files are missing from the proxy's index")
        }
        _ => return None,
    };
    Some(Halt::ServerReset { id: evidence_id("reset", &[&why]), why })
}

#[cfg(test)]
mod tests;
