//! [`reconcile()`]: the decision table, one match arm per row.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use crate::path::{RelPath, subtree_range};

use super::plan::{Action, Plan, PlanStep, Precondition};
use super::snapshot::{Base, IndexTrust, LocalState, RemoteSide, SkipReason};

/// The row of the table for one path, and its action (`None` in rows 1, 12 and 22).
///
/// A hint may be older than base: it may name a content from before base, or the deletion of one. Where `trust` is
/// `Hints` and base is newer than the entry can be, rows 5 and 17 fetch the blob, and row 10 deletes with base as the
/// precondition.
#[expect(clippy::too_many_lines, reason = "one arm a row of the table")]
pub fn decide(
    base: Option<Base>,
    local: Option<&LocalState>,
    remote: Option<RemoteSide>,
    trust: IndexTrust,
) -> (u8, Option<Action>) {
    use Precondition::{Holds, New};
    use RemoteSide::{Live, Tombstone};

    if let (None, Some(LocalState::Unknown(SkipReason::Unread)), None) = (base, local, remote) {
        return (4, Some(Action::UploadUnread));
    }
    // Invariant 5: no decision without a known local state.
    let local = match local {
        Some(LocalState::Unknown(why)) => return (20, Some(Action::Skip(why.clone()))),
        Some(LocalState::File(md5)) => Some(*md5),
        None => None,
    };
    if let (Some(Base::Detached(_)), None) = (base, local) {
        return match remote {
            Some(Live(r)) => (21, Some(Action::Download { remote: r })),
            Some(Tombstone(t)) => (10, Some(Action::RecordSeen { tombstone: t })),
            None => (22, None),
        };
    }
    let (base, seen) = match base {
        Some(Base::Synced(md5) | Base::Detached(md5)) => (Some(md5), None),
        Some(Base::Seen(md5)) => (None, Some(md5)),
        None => (None, None),
    };
    match (base, local, remote) {
        (None, None, None) => (1, None),
        (None, None, Some(Live(r))) => (2, Some(Action::Download { remote: r })),
        (None, None, Some(Tombstone(t))) if seen == Some(t) => (1, None),
        (None, None, Some(Tombstone(t))) => (3, Some(Action::RecordSeen { tombstone: t })),
        (None, Some(l), None) => (4, Some(Action::Upload { local: l, precondition: New, tombstone: seen })),
        (None, Some(l), Some(Live(r))) if l == r && seen.is_some() && trust == IndexTrust::Hints => {
            (5, Some(Action::Conflict { local: l, base: None }))
        }
        (None, Some(l), Some(Live(r))) if l == r => (5, Some(Action::Adopt { local: l })),
        (None, Some(l), Some(Live(_))) => (6, Some(Action::Conflict { local: l, base: None })),
        // The content equals the tombstone's: another device has deleted our upload. If we have seen this tombstone
        // before, the user made the file again (row 8).
        (None, Some(l), Some(Tombstone(t))) if l == t && seen != Some(t) => {
            (7, Some(Action::Trash { local: l, base: None, tombstone: t }))
        }
        (None, Some(l), Some(Tombstone(t))) => {
            (8, Some(Action::Upload { local: l, precondition: New, tombstone: Some(t) }))
        }
        (Some(b), None, None) => (9, Some(Action::DeleteRemote { base: b })),
        (Some(b), None, Some(Live(r))) if b == r => (9, Some(Action::DeleteRemote { base: b })),
        (Some(b), None, Some(Tombstone(t))) if b != t && trust == IndexTrust::Hints => {
            (10, Some(Action::DeleteRemote { base: b }))
        }
        (Some(_), None, Some(Tombstone(t))) => (10, Some(Action::RecordSeen { tombstone: t })),
        (Some(_), None, Some(Live(r))) => (11, Some(Action::Download { remote: r })),
        (Some(b), Some(l), Some(Live(r))) if l == b && r == b => (12, None),
        (Some(b), Some(l), Some(Live(_))) if l == b => (13, Some(Action::Replace { base: b })),
        (Some(b), Some(l), Some(Tombstone(t))) if l == b => {
            (14, Some(Action::Trash { local: l, base: Some(b), tombstone: t }))
        }
        (Some(b), Some(l), None) if l == b => (15, Some(Action::Probe { base: b })),
        (Some(b), Some(l), None) => (16, Some(Action::Upload { local: l, precondition: Holds(b), tombstone: None })),
        (Some(b), Some(l), Some(Live(r))) if r == b => {
            (16, Some(Action::Upload { local: l, precondition: Holds(b), tombstone: None }))
        }
        (Some(b), Some(l), Some(Live(r))) if l == r && trust == IndexTrust::Hints => {
            (17, Some(Action::Conflict { local: l, base: Some(b) }))
        }
        (Some(_), Some(l), Some(Live(r))) if l == r => (17, Some(Action::Adopt { local: l })),
        (Some(b), Some(l), Some(Live(_))) => (18, Some(Action::Conflict { local: l, base: Some(b) })),
        (Some(_), Some(l), Some(Tombstone(t))) => {
            (19, Some(Action::Upload { local: l, precondition: New, tombstone: Some(t) }))
        }
    }
}

/// The plan that makes the two sides agree: [`decide`] for every path, then [`Action::Skip`] for paths that cannot
/// exist beside one another.
///
/// The iterators must be in the order of their paths. `fold`: the filesystem ignores the case of names.
pub fn reconcile<'a>(
    base: impl Iterator<Item = (&'a RelPath, Base)>,
    local: &'a BTreeMap<RelPath, LocalState>,
    remote: impl Iterator<Item = (&'a RelPath, RemoteSide)>,
    trust: IndexTrust,
    fold: bool,
) -> Plan {
    // A map without values, because `subtree_range` takes a map.
    let mut undeleted: BTreeMap<RelPath, ()> = BTreeMap::new();
    let mut steps = Vec::new();
    let (mut base, mut locals, mut remote) = (base.peekable(), local.iter().peekable(), remote.peekable());
    loop {
        let next = [base.peek().map(|e| e.0), locals.peek().map(|e| e.0), remote.peek().map(|e| e.0)];
        let Some(path) = next.into_iter().flatten().min() else { break };
        let here = |other: Option<&RelPath>| other.is_some_and(|p| p.cmp(path) == Ordering::Equal);
        let b = if here(next[0]) { base.next().map(|e| e.1) } else { None };
        let l = if here(next[1]) { locals.next().map(|e| e.1) } else { None };
        let r = if here(next[2]) { remote.next().map(|e| e.1) } else { None };
        let (row, action) = decide(b, l, r, trust);
        // The proxy already has this deletion. Ignored and detached paths are never deleted there.
        let is_recorded = matches!(action, Some(Action::RecordSeen { .. }));
        let is_settled =
            is_recorded || matches!(l, Some(LocalState::File(_) | LocalState::Unknown(SkipReason::Ignored)));
        if b.is_some_and(Base::is_synced) && !is_settled {
            undeleted.insert(path.clone(), ());
        }
        if let Some(action) = action {
            steps.push(PlanStep { path: path.clone(), row, action });
        }
    }
    block_clashes(&mut steps, local, &undeleted);
    if fold {
        block_collisions(&mut steps, local);
    }
    Plan { steps }
}

/// Blocks files in the place of folders, and folders in the place of files. A download is skipped when its place is
/// taken. An upload waits until the proxy has acknowledged the deletion of the path in its place.
fn block_clashes(steps: &mut [PlanStep], local: &BTreeMap<RelPath, LocalState>, undeleted: &BTreeMap<RelPath, ()>) {
    let trashed: BTreeSet<RelPath> =
        steps.iter().filter(|s| matches!(s.action, Action::Trash { .. })).map(|s| s.path.clone()).collect();
    let mut placed: BTreeSet<RelPath> = BTreeSet::new();
    for step in steps.iter_mut() {
        let path = &step.path;
        let blocker = match &step.action {
            Action::Download { .. } => path
                .ancestors()
                .find_map(|a| local.get_key_value(a).map(|(p, _)| p).or_else(|| placed.get(a)))
                .or_else(|| subtree_range(local, path.as_str()).next().map(|(path, _)| path)),
            Action::Upload { .. } | Action::UploadUnread => {
                let is_above = subtree_range(undeleted, path.as_str()).next().is_some();
                if is_above || path.ancestors().any(|a| undeleted.contains_key(a)) {
                    step.action = Action::Skip(SkipReason::Changing);
                    step.row = 20;
                }
                continue;
            }
            _ => continue,
        };
        match blocker {
            None => {
                placed.insert(path.clone());
            }
            Some(blocker) => {
                let leaving = trashed.contains(blocker);
                let why = if leaving { SkipReason::Changing } else { SkipReason::Clash(blocker.to_string()) };
                step.action = Action::Skip(why);
                step.row = 20;
            }
        }
    }
}

/// Skips downloads whose name, or a folder of it, exists in another letter case. The tracked path wins. Only for
/// filesystems that ignore case.
fn block_collisions(steps: &mut [PlanStep], local: &BTreeMap<RelPath, LocalState>) {
    let mut spelt: BTreeMap<String, String> = BTreeMap::new();
    let mut enter = |path: &RelPath| -> Option<String> {
        let all = std::iter::once(path.as_str()).chain(path.ancestors());
        for name in all {
            let Ok(p) = RelPath::parse(name) else { continue };
            let there = spelt.entry(p.fold()).or_insert_with(|| name.to_owned());
            if there != name {
                return Some(there.clone());
            }
        }
        None
    };
    for path in local.keys() {
        enter(path);
    }
    for step in steps.iter_mut().filter(|s| matches!(s.action, Action::Download { .. })) {
        if let Some(other) = enter(&step.path) {
            step.action = Action::Skip(SkipReason::Collides(other));
            step.row = 20;
        }
    }
}

#[cfg(test)]
mod tests;
