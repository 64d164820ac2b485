//! The gates: when a cycle halts instead of deleting. Pure checks of a plan or an index as a whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Md5;
use crate::path::RelPath;

use super::plan::{Action, Plan, Precondition, Side, Step};
use super::snapshot::{Base, Unknown};

/// What a person must approve before it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// The folder is not there (unmounted, moved away), or it lost its identity.
    RootMissing { id: String, why: String },
    /// Another folder stands at the path: another identity, a symlink, another device.
    RootChanged { id: String, why: String },
    /// More files would go on one side than is plausible. The rest of the plan goes on.
    MassDelete { id: String, side: Side, files: usize, of: usize },
    /// The proxy does not know what it knew before.
    ServerReset { id: String, why: String },
}

impl Halt {
    /// As `status --json` names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RootMissing { .. } => "root_missing",
            Self::RootChanged { .. } => "root_changed",
            Self::MassDelete { .. } => "mass_delete",
            Self::ServerReset { .. } => "server_reset",
        }
    }

    /// The gate `root_missing`. The same evidence always gives the same id.
    pub fn root_missing(evidence: &[&str], why: String) -> Self {
        Self::RootMissing { id: evidence_id("root_missing", evidence), why }
    }

    /// The gate `root_changed`. The same evidence always gives the same id.
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

    /// True for `root_missing` and `root_changed`: the folder itself cannot be opened.
    pub fn is_of_root(&self) -> bool {
        matches!(self, Self::RootMissing { .. } | Self::RootChanged { .. })
    }
}

fn evidence_id(gate: &str, evidence: &[&str]) -> String {
    Md5::of(format!("{gate}\n{}\n", evidence.join("\n")).as_bytes()).short()
}

/// The deletions a plan may make without asking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Share of the tracked files, 0 to 1, that may go on one side (`sync.max_delete`).
    pub max_delete: f64,
}

/// Fewer deletions than this are never held.
pub const MASS_DELETE_MIN: usize = 10;

/// With fewer synced files missing from it no index is taken for another one.
pub const MISSING_MIN: usize = 5;

/// Deletions taken out of a plan until a person approves or rejects them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub id: String,
    pub side: Side,
    pub steps: Vec<Step>,
    /// Tracked files when it was held.
    pub of: usize,
    /// They may come under other names, in files that go up and that nobody has read: nobody is asked before those have
    /// arrived.
    pub unread: bool,
}

impl Held {
    pub fn halt(&self) -> Halt {
        Halt::MassDelete { id: self.id.clone(), side: self.side, files: self.steps.len(), of: self.of }
    }
}

/// What the gate `mass_delete` has to know besides the plan.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// Files in the base.
    pub tracked: usize,
    /// How many files, which the plan leaves alone, hold a content on both sides.
    pub staying: BTreeMap<Md5, usize>,
    /// What a person has let through.
    pub approved: &'a BTreeSet<RelPath>,
    /// What waits for a person since an earlier plan.
    pub held: &'a [Held],
}

/// The gate `mass_delete`: takes the deletions of one side out of the plan when they are at least
/// [`MASS_DELETE_MIN`] and more than `max_delete` of the tracked files. Paths that are approved, and those whose content
/// is there under another name, or comes there with this plan (a folder was renamed), do not count and go through.
/// While a person is being asked, files that are new make nothing more plausible.
pub fn hold_mass_delete(plan: &mut Plan, limits: Limits, known: &Known<'_>) -> Vec<Held> {
    let mut held = Vec::new();
    let approved = known.approved;
    for side in [Side::Local, Side::Remote] {
        let tracked = known.held.iter().filter(|h| h.side == side).map(|h| h.of).fold(known.tracked, usize::min);
        let moved = moved(plan, side, known.staying.clone());
        let counts =
            |s: &Step| s.action.deletes() == Some(side) && !approved.contains(&s.path) && !moved.contains(&s.path);
        let deletes = plan.steps.iter().filter(|s| counts(s)).count();
        // A file that one scan missed is about to be one of them: what vanishes together is judged together.
        let vanishing = |s: &&Step| s.action == Action::Skip(Unknown::Vanished) && !approved.contains(&s.path);
        let soon = if side == Side::Remote { plan.steps.iter().filter(vanishing).count() } else { 0 };
        let files = deletes + soon;
        // Counts of files are far below 2^52, where f64 is exact.
        let too_many = |files: usize| files >= MASS_DELETE_MIN && files as f64 > limits.max_delete * tracked as f64;
        if deletes == 0 || !too_many(files) {
            continue;
        }
        let unread = |s: &&Step| matches!(s.action, Action::UploadUnread | Action::Skip(Unknown::Unread));
        let unread = if side == Side::Remote { plan.steps.iter().filter(unread).count() } else { 0 };
        let (steps, rest) = std::mem::take(&mut plan.steps).into_iter().partition(|s| counts(s));
        plan.steps = rest;
        let asked = known.held.iter().any(|h| h.side == side);
        let unread = !asked && !too_many(files.saturating_sub(unread));
        held.push(Held { id: plan_id(side, &steps), side, steps, of: tracked, unread });
    }
    held
}

/// The paths that go on one side while their content is there under another name, by what is `staying`, or comes there.
/// One that stays or comes stands for one that goes.
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
    let mut goes = |step: &&Step| {
        let md5 = step.action.deleted().filter(|_| step.action.deletes() == Some(side));
        md5.and_then(|md5| there.get_mut(&md5)).filter(|n| **n > 0).map(|n| *n -= 1).is_some()
    };
    plan.steps.iter().filter(|step| goes(step)).map(|step| step.path.clone()).collect()
}

fn plan_id(side: Side, steps: &[Step]) -> String {
    let mut text = format!("{side:?}\n");
    for step in steps {
        text.push_str(step.path.as_str());
        text.push('\n');
    }
    Md5::of(text.as_bytes()).short()
}

/// What rejecting held deletions makes of the base, so that the next cycle brings the files back: a file deleted
/// here is forgotten (row 2 downloads it), one deleted there counts as obeyed (row 8 uploads it).
pub fn reject(held: &Held) -> Vec<(RelPath, Option<Base>)> {
    held.steps
        .iter()
        .map(|step| {
            let base = match &step.action {
                super::Action::Obey { tombstone, .. } => Some(Base::Seen(*tombstone)),
                _ => None,
            };
            (step.path.clone(), base)
        })
        .collect()
}

/// Where an index stood, or stands (capability `strong-index`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position<'a> {
    pub epoch: &'a str,
    pub cursor: u64,
}

/// The store that a base was agreed with, or would be now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing<'a> {
    /// Scheme, host and port; empty while unknown.
    pub origin: &'a str,
    pub namespace: &'a str,
    /// `None` where the proxy does not tell.
    pub position: Option<Position<'a>>,
    /// Before: it was seen to be set back, and nobody has approved of that; other writes may have moved its cursor on
    /// since. Now: it says itself that it has never stood at the point of its history that was agreed with.
    pub set_back: bool,
}

impl Standing<'_> {
    /// Whether the same store stands at an earlier change now than it did before, or came to its change another way.
    pub fn is_set_back(&self, now: &Self) -> bool {
        match (self.position, now.position) {
            (Some(b), Some(n)) => b.epoch == n.epoch && (n.cursor < b.cursor || now.set_back),
            _ => now.set_back,
        }
    }
}

/// The gate `server_reset`. `tracked`: files of the base; `missing`: those of them that the index does not name,
/// not even by a tombstone; `before`: what was committed last; `now`: the settings and this index.
pub fn server_reset(tracked: usize, missing: usize, before: Standing<'_>, now: Standing<'_>) -> Option<Halt> {
    // A store moved to another address is still the same one; an epoch says nothing of namespaces.
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
    Some(Halt::ServerReset { id: Md5::of(format!("reset\n{why}\n").as_bytes()).short(), why })
}

#[cfg(test)]
mod tests;
