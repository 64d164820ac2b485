//! The work that is left, as `memsync status` counts it.

use std::collections::BTreeSet;

use crate::agent::problems::ProblemEffect;
use crate::agent::status::Pending;
use crate::path::RelPath;
use crate::sync::safety::HeldDeletions;
use crate::sync::{Action, Base, LocalState, PlanStep, SkipReason, decide};

use super::observed::unchanged;
use super::plan::PlanInput;

/// Counts the changes that the last scan and index show and that are not made yet. `twins`: files that are blocked,
/// because their path is another file's too.
pub(in crate::agent) fn count_pending(input: &PlanInput<'_>, held: &[HeldDeletions], twins: usize) -> Pending {
    let mut pending = Pending { held_delete: held.iter().map(|held| held.steps.len()).sum(), ..Pending::default() };
    let held: BTreeSet<&RelPath> = held.iter().flat_map(|held| held.steps.iter().map(|step| &step.path)).collect();
    let (ready, waiting) = input.memory.split_unplanned(input.observed.is_confirming);
    pending.delete += waiting.iter().filter(|path| !held.contains(path)).count();
    let has_index = input.observed.index.is_some();
    let plan = if has_index { input.plan(&ready) } else { input.plan_local_changes() };
    let is_deleting = plan.steps.iter().any(|step| step.action.deletes().is_some());
    for step in plan.steps.into_iter().filter(|step| !held.contains(&step.path)) {
        let Some((action, is_blocked)) = pending_action(input, step, is_deleting) else { continue };
        let count = match action {
            Action::Upload { .. } | Action::UploadUnread | Action::Probe { .. } => &mut pending.upload,
            Action::Download { .. } | Action::Replace { .. } | Action::Conflict { .. } => &mut pending.download,
            Action::DeleteRemote { .. } | Action::Obey { .. } => &mut pending.delete,
            Action::RecordSeen { .. } | Action::Adopt { .. } | Action::Skip(_) => continue,
        };
        *count += 1;
        pending.blocked += usize::from(is_blocked);
    }
    // The second name of a path is a file that would be uploaded under another name.
    pending.upload += twins;
    pending.blocked += twins;
    // Deletions wait for a failed file, which is retried, or for one that cannot be read.
    if input.memory.quarantine.is_empty() {
        pending.blocked += input.memory.waiting_deletions.min(pending.delete);
    }
    pending
}

/// The action that a step, or a skipped path, waits to do, and whether a person must help first. `is_deleting`: the plan
/// has deletions.
fn pending_action(input: &PlanInput<'_>, step: PlanStep, is_deleting: bool) -> Option<(Action, bool)> {
    let Action::Skip(why) = step.action else { return Some((step.action, false)) };
    let effect = ProblemEffect::of(&why);
    if effect == Some(ProblemEffect::LeftOut) {
        return None;
    }
    // An upload that waits for the name of a blocked path waits for the same person.
    let waits_for_name = why == SkipReason::Changing && !is_deleting && !input.observed.is_changing(&step.path);
    let action = skipped_action(input, &step.path, &why)?;
    Some((action, waits_for_name || effect == Some(ProblemEffect::Blocked)))
}

/// The action that a skipped path waits for, by the last known content of both sides.
fn skipped_action(input: &PlanInput<'_>, path: &RelPath, why: &SkipReason) -> Option<Action> {
    let base = input.base_side(path);
    let remote = if input.observed.index.is_some() { input.remote_side(path) } else { base.map(unchanged) };
    let found = input.observed.found(path).map(|found| &found.local);
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
    let trust = if input.observed.index.is_some() { input.observed.trust() } else { crate::sync::IndexTrust::Evidence };
    decide(base, local.as_ref(), remote, trust).1
}
