//! [`reconcile()`]: the decision table, one arm a row.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included};

use crate::path::RelPath;

use super::plan::{Action, Plan, Precondition, Step};
use super::snapshot::{Base, Local, Remote, Trust, Unknown};

/// What the table says of one path: the row's number and what to do (`None`: nothing, rows 1, 12 and 22).
///
/// `trust`: a hint may be older than base. What it names was there before we agreed on base, or deleted it, and says
/// nothing of what there is now. So where base knows more than the hint, rows 5, 10 and 17 ask the blob.
pub fn decide(base: Option<Base>, local: Option<&Local>, remote: Option<Remote>, trust: Trust) -> (u8, Option<Action>) {
    use Precondition::{Holds, New};
    use Remote::{Live, Tombstone};

    if let (None, Some(Local::Unknown(Unknown::Unread)), None) = (base, local, remote) {
        return (4, Some(Action::UploadUnread));
    }
    // Invariant 5: whatever the others say, nothing is decided for a path that is unknown.
    let local = match local {
        Some(Local::Unknown(why)) => return (20, Some(Action::Skip(why.clone()))),
        Some(Local::File(md5)) => Some(*md5),
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
        (None, Some(l), Some(Live(r))) if l == r && seen.is_some() && trust == Trust::Hints => {
            (5, Some(Action::Conflict { local: l, base: None }))
        }
        (None, Some(l), Some(Live(r))) if l == r => (5, Some(Action::Adopt { local: l })),
        (None, Some(l), Some(Live(_))) => (6, Some(Action::Conflict { local: l, base: None })),
        // The same content as the tombstone's: our own upload that somebody deleted, unless we have seen that
        // tombstone before; then the user made the file again (row 8).
        (None, Some(l), Some(Tombstone(t))) if l == t && seen != Some(t) => {
            (7, Some(Action::Obey { local: l, base: None, tombstone: t }))
        }
        (None, Some(l), Some(Tombstone(t))) => {
            (8, Some(Action::Upload { local: l, precondition: New, tombstone: Some(t) }))
        }
        (Some(b), None, None) => (9, Some(Action::DeleteRemote { base: b })),
        (Some(b), None, Some(Live(r))) if b == r => (9, Some(Action::DeleteRemote { base: b })),
        (Some(b), None, Some(Tombstone(t))) if b != t && trust == Trust::Hints => {
            (10, Some(Action::DeleteRemote { base: b }))
        }
        (Some(_), None, Some(Tombstone(t))) => (10, Some(Action::RecordSeen { tombstone: t })),
        (Some(_), None, Some(Live(r))) => (11, Some(Action::Download { remote: r })),
        (Some(b), Some(l), Some(Live(r))) if l == b && r == b => (12, None),
        (Some(b), Some(l), Some(Live(_))) if l == b => (13, Some(Action::Replace { base: b })),
        (Some(b), Some(l), Some(Tombstone(t))) if l == b => {
            (14, Some(Action::Obey { local: l, base: Some(b), tombstone: t }))
        }
        (Some(b), Some(l), None) if l == b => (15, Some(Action::Probe { base: b })),
        (Some(b), Some(l), None) => (16, Some(Action::Upload { local: l, precondition: Holds(b), tombstone: None })),
        (Some(b), Some(l), Some(Live(r))) if r == b => {
            (16, Some(Action::Upload { local: l, precondition: Holds(b), tombstone: None }))
        }
        (Some(b), Some(l), Some(Live(r))) if l == r && trust == Trust::Hints => {
            (17, Some(Action::Conflict { local: l, base: Some(b) }))
        }
        (Some(_), Some(l), Some(Live(r))) if l == r => (17, Some(Action::Adopt { local: l })),
        (Some(b), Some(l), Some(Live(_))) => (18, Some(Action::Conflict { local: l, base: Some(b) })),
        (Some(_), Some(l), Some(Tombstone(t))) => {
            (19, Some(Action::Upload { local: l, precondition: New, tombstone: Some(t) }))
        }
    }
}

/// The plan that brings the two sides to agree: [`decide`] for every path of the three, then the paths that
/// cannot be materialised beside one another are blocked.
///
/// The iterators come in the order of their paths. `trust`: what the word of `remote` is worth. `fold`: the filesystem
/// takes names that differ in case only for one.
pub fn reconcile<'a>(
    base: impl Iterator<Item = (&'a RelPath, Base)>,
    local: &'a BTreeMap<RelPath, Local>,
    remote: impl Iterator<Item = (&'a RelPath, Remote)>,
    trust: Trust,
    fold: bool,
) -> Plan {
    let mut tracked_elsewhere = BTreeSet::new();
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
        let knows = matches!(action, Some(Action::RecordSeen { .. }));
        let told = knows || matches!(l, Some(Local::File(_) | Local::Unknown(Unknown::Ignored)));
        if b.is_some_and(Base::is_synced) && !told {
            tracked_elsewhere.insert(path.clone());
        }
        if let Some(action) = action {
            steps.push(Step { path: path.clone(), row, action });
        }
    }
    block_clashes(&mut steps, local, &tracked_elsewhere);
    if fold {
        block_collisions(&mut steps, local);
    }
    Plan { steps }
}

/// File against folder. A download whose place is taken is blocked; an upload waits until the server has been
/// told that what stood in its place is gone (a local type change sends the acknowledged delete first).
fn block_clashes(steps: &mut [Step], local: &BTreeMap<RelPath, Local>, gone: &BTreeSet<RelPath>) {
    let trashed: BTreeSet<RelPath> =
        steps.iter().filter(|s| matches!(s.action, Action::Obey { .. })).map(|s| s.path.clone()).collect();
    // The path in the way, first among equals the one that is there already.
    let mut placed: BTreeSet<RelPath> = BTreeSet::new();
    for step in steps.iter_mut() {
        let path = &step.path;
        let blocker = match &step.action {
            Action::Download { .. } => path
                .ancestors()
                .find_map(|a| local.get_key_value(a).map(|(p, _)| p).or_else(|| placed.get(a)))
                .or_else(|| first_below(local, path).map(|(p, _)| p)),
            Action::Upload { .. } | Action::UploadUnread => {
                let waits = path.ancestors().any(|a| gone.contains(a)) || any_below(gone, path);
                if waits {
                    step.action = Action::Skip(Unknown::Changing);
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
            Some(in_the_way) => {
                let leaving = trashed.contains(in_the_way);
                let why = if leaving { Unknown::Changing } else { Unknown::Clash(in_the_way.to_string()) };
                step.action = Action::Skip(why);
                step.row = 20;
            }
        }
    }
}

fn below_bounds(path: &RelPath) -> (String, String) {
    // '0' is the byte after '/': the range holds just the paths inside the folder.
    (format!("{path}/"), format!("{path}0"))
}

fn first_below<'a>(map: &'a BTreeMap<RelPath, Local>, path: &RelPath) -> Option<(&'a RelPath, &'a Local)> {
    let (from, to) = below_bounds(path);
    map.range::<str, _>((Included(from.as_str()), Excluded(to.as_str()))).next()
}

fn any_below(set: &BTreeSet<RelPath>, path: &RelPath) -> bool {
    let (from, to) = below_bounds(path);
    set.range::<str, _>((Included(from.as_str()), Excluded(to.as_str()))).next().is_some()
}

/// Where case does not tell names apart, a download whose name (or a folder of it) is spelt otherwise here is
/// blocked: the tracked path wins.
fn block_collisions(steps: &mut [Step], local: &BTreeMap<RelPath, Local>) {
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
            step.action = Action::Skip(Unknown::Collides(other));
            step.row = 20;
        }
    }
}

#[cfg(test)]
mod tests;
