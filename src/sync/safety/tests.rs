use super::*;
use crate::sync::{Action, IndexTrust};

fn path(n: usize) -> RelPath {
    RelPath::parse(&format!("{n:03}")).unwrap()
}

fn md5(n: usize) -> Md5 {
    Md5::of(&n.to_be_bytes())
}

/// A plan with `there` deletions on the proxy and then `here` deletions in the folder.
fn plan(there: usize, here: usize) -> Plan {
    let step = |n| {
        if n < there {
            PlanStep { path: path(n), row: 9, action: Action::DeleteRemote { base: md5(n) } }
        } else {
            let action = Action::Trash { local: md5(n), base: Some(md5(n)), tombstone: md5(n) };
            PlanStep { path: path(n), row: 14, action }
        }
    };
    Plan { steps: (0..there + here).map(step).collect() }
}

fn hold(plan: &mut Plan, tracked: usize, approved: &BTreeSet<RelPath>) -> Vec<HeldDeletions> {
    hold_mass_delete(plan, &facts(tracked), approved, &[])
}

fn facts(tracked: usize) -> DeletionFacts {
    DeletionFacts { tracked, staying: BTreeMap::new(), max_delete: 0.5 }
}

#[test]
fn mass_delete_is_held_from_ten_files_and_half() {
    for (files, tracked, holds) in [
        (9, 9, false),
        (9, 0, false),
        (10, 10, true),
        (10, 19, true),
        // Exactly half goes through.
        (10, 20, false),
        (11, 21, true),
        (50, 100, false),
        (51, 100, true),
        // Row 7 deletes files that are not tracked.
        (10, 0, true),
    ] {
        for (there, here) in [(files, 0), (0, files)] {
            let mut plan = plan(there, here);
            let held = hold(&mut plan, tracked, &BTreeSet::new());
            assert_eq!(held.len(), usize::from(holds), "{files} of {tracked}");
            assert_eq!(plan.steps.len(), if holds { 0 } else { files });
        }
    }
}

#[test]
fn moved_files_are_not_held() {
    for side in [Side::Local, Side::Remote] {
        // Of 40 files: those that get another name, those with the same content, and those that are held.
        for (moved, twins, held) in [(40, 0, 0), (20, 0, 0), (19, 0, 21), (1, 40, 39), (0, 0, 40)] {
            let content = |n: usize| if n < twins { md5(0) } else { md5(n) };
            let mut plan = Plan::default();
            for n in 0..40 {
                let md5 = content(n);
                let action = match side {
                    Side::Local => Action::Trash { local: md5, base: Some(md5), tombstone: md5 },
                    Side::Remote => Action::DeleteRemote { base: md5 },
                };
                plan.steps.push(PlanStep { path: path(n), row: 14, action });
            }
            for n in 0..moved {
                let action = match side {
                    Side::Local => Action::Download { remote: content(n) },
                    Side::Remote => {
                        Action::Upload { local: content(n), precondition: Precondition::New, tombstone: None }
                    }
                };
                plan.steps.push(PlanStep { path: path(100 + n), row: 2, action });
            }
            let found: usize = hold(&mut plan, 40, &BTreeSet::new()).iter().map(|h| h.steps.len()).sum();
            assert_eq!(found, held, "{side:?}: {moved} moved, {twins} twins");
        }
    }
}

#[test]
fn files_with_a_staying_copy_are_not_held() {
    let approved = BTreeSet::new();
    for (there, here) in [(20, 0), (0, 20)] {
        // The contents that stay under another name, and the number of held deletions.
        for (staying, held) in [(0..20, 0), (0..10, 0), (0..9, 11), (0..0, 20)] {
            let staying = staying.map(|n| (md5(n), 1)).collect();
            let facts = DeletionFacts { staying, ..facts(20) };
            let found = hold_mass_delete(&mut plan(there, here), &facts, &approved, &[]);
            assert_eq!(found.iter().map(|h| h.steps.len()).sum::<usize>(), held, "{facts:?}");
        }
    }
}

#[test]
fn held_deletions_keep_their_tracked_count() {
    let approved = BTreeSet::new();
    let held = hold(&mut plan(12, 0), 20, &approved);
    let hold = |there, here| hold_mass_delete(&mut plan(there, here), &facts(100), &approved, &held);
    assert_eq!(hold(12, 0), held);
    assert!(hold(0, 12).is_empty(), "the other side was not held");
    assert!(hold(9, 0).is_empty(), "some are back");
}

#[test]
fn approval_waits_for_unread_uploads() {
    for (unread, waits) in [(0, false), (9, false), (10, true), (30, true)] {
        let mut plan = plan(20, 0);
        for n in 0..unread {
            plan.steps.push(PlanStep { path: path(100 + n), row: 4, action: Action::UploadUnread });
        }
        let held = hold(&mut plan, 20, &BTreeSet::new());
        assert_eq!((held.len(), held[0].unread, plan.steps.len()), (1, waits, unread), "{unread}");
    }
}

#[test]
fn sides_are_counted_separately() {
    let mut one = plan(9, 9);
    assert!(hold(&mut one, 18, &BTreeSet::new()).is_empty());
    let mut two = plan(10, 12);
    let held = hold(&mut two, 19, &BTreeSet::new());
    let seen: Vec<_> = held.iter().map(|h| (h.side, h.steps.len(), h.of)).collect();
    assert_eq!(seen, [(Side::Local, 12, 19), (Side::Remote, 10, 19)]);
    assert_ne!(held[0].id, held[1].id);
    assert!(two.steps.is_empty());
}

#[test]
fn plan_goes_on_without_held_deletions() {
    let mut plan = plan(10, 0);
    let up = Action::Upload { local: md5(99), precondition: super::super::Precondition::New, tombstone: None };
    plan.steps.push(PlanStep { path: RelPath::parse("new").unwrap(), row: 4, action: up.clone() });
    assert_eq!(hold(&mut plan, 10, &BTreeSet::new())[0].halt().name(), "mass_delete");
    assert_eq!(plan.steps.len(), 1);
    assert_eq!(plan.steps[0].action, up);
}

#[test]
fn approved_deletions_pass_and_do_not_count() {
    let mut plan = plan(15, 0);
    let approved = (0..6).map(path).collect();
    // Nine unapproved deletions are below the limit.
    assert!(hold(&mut plan, 15, &approved).is_empty());
    assert_eq!(plan.steps.len(), 15);
    let mut more = self::plan(16, 0);
    let held = hold(&mut more, 16, &approved);
    assert_eq!((held[0].steps.len(), more.steps.len()), (10, 6));
}

#[test]
fn halt_id_depends_on_the_plan() {
    let id = |there, here| hold(&mut plan(there, here), 0, &BTreeSet::new())[0].id.clone();
    assert_eq!(id(10, 0), id(10, 0));
    assert_ne!(id(10, 0), id(11, 0));
    assert_ne!(id(10, 0), id(0, 10));
}

#[test]
fn rejected_deletions_restore_files() {
    use crate::sync::{LocalState, RemoteSide, decide};
    // Deleted here: the next cycle downloads it.
    let held = &hold(&mut plan(10, 0), 10, &BTreeSet::new())[0];
    let (at, base) = reject(held)[3].clone();
    assert_eq!((at, base), (path(3), None));
    assert_eq!(decide(base, None, Some(RemoteSide::Live(md5(3))), IndexTrust::Evidence).0, 2);
    // Deleted there: the next cycle uploads it, whether the index has the tombstone or not.
    let held = &hold(&mut plan(0, 10), 10, &BTreeSet::new())[0];
    let (at, base) = reject(held)[3].clone();
    assert_eq!((at, base), (path(3), Some(Base::Seen(md5(3)))));
    let local = LocalState::File(md5(3));
    assert_eq!(decide(base, Some(&local), Some(RemoteSide::Tombstone(md5(3))), IndexTrust::Evidence).0, 8);
    assert_eq!(decide(base, Some(&local), None, IndexTrust::Evidence).0, 4);
}

fn standing<'a>(origin: &'a str, namespace: &'a str, position: Option<(&'a str, u64)>) -> StorePosition<'a> {
    let position = position.map(|(epoch, cursor)| IndexPosition { epoch, cursor });
    StorePosition { origin, namespace, position, set_back: false }
}

#[test]
fn shrunken_index_is_a_reset_from_five_files_and_a_fifth() {
    let at = standing("o", "", None);
    for (tracked, missing, halts) in
        [(4, 4, false), (5, 5, true), (25, 5, true), (26, 5, false), (100, 19, false), (100, 20, true), (0, 0, false)]
    {
        assert_eq!(server_reset(tracked, missing, at, at).is_some(), halts, "{missing} of {tracked}");
    }
}

#[test]
fn index_that_goes_back_or_restarts_is_a_reset() {
    let at = |position| standing("o", "n", position);
    for (before, now, halts) in [
        (Some(("e", 7)), Some(("e", 7)), false),
        (Some(("e", 7)), Some(("e", 8)), false),
        (Some(("e", 7)), Some(("e", 6)), true),
        (Some(("e", 7)), Some(("f", 9)), true),
        // Nothing to compare with.
        (None, Some(("f", 1)), false),
        (Some(("e", 7)), None, false),
    ] {
        let halt = server_reset(1, 0, at(before), at(now));
        assert_eq!(halt.is_some(), halts, "{before:?} → {now:?}");
        assert!(halt.is_none_or(|h| h.name() == "server_reset" && !h.id().is_empty()));
    }
}

#[test]
fn set_back_store_stays_a_reset_after_new_writes() {
    let at = |cursor| standing("o", "n", Some(("e", cursor)));
    let before = StorePosition { set_back: true, ..at(7) };
    let seen = server_reset(1, 0, at(7), at(6));
    assert!(seen.is_some());
    assert_eq!(server_reset(1, 0, before, at(9)), seen, "the id to approve stays the same");
}

#[test]
fn store_with_another_history_is_a_reset() {
    let at = |epoch, cursor| standing("o", "n", Some((epoch, cursor)));
    let denies_history = |now| StorePosition { set_back: true, ..now };
    assert!(at("e", 7).is_set_back(&denies_history(at("e", 9))), "its cursor is ahead, but its history differs");
    assert!(server_reset(1, 0, at("e", 7), denies_history(at("e", 9))).is_some());
    assert!(!at("e", 7).is_set_back(&denies_history(at("f", 9))), "another store is not this one set back");
    let hints = standing("o", "n", None);
    assert!(server_reset(1, 0, hints, hints).is_none() && server_reset(1, 0, hints, denies_history(hints)).is_some());
}

#[test]
fn other_origin_is_a_reset_unless_epoch_matches() {
    let e = Some(("e", 3));
    let before = standing("https://old", "team", e);
    let halts = |tracked, before, now| server_reset(tracked, 0, before, now).is_some();
    assert!(halts(1, before, standing("https://new", "team", None)));
    assert!(halts(1, standing("https://old", "team", None), standing("https://new", "team", e)));
    assert!(halts(1, before, standing("https://new", "team", Some(("f", 3)))));
    assert!(!halts(1, before, standing("https://new", "team", e)), "moved to another address");
    // All namespaces of a store have the same epoch.
    assert!(halts(1, before, standing("https://old", "mine", e)));
    // No base yet, or a base from before the origin was recorded.
    assert!(!halts(0, before, standing("https://new", "mine", e)));
    assert!(!halts(1, standing("", "", None), standing("https://new", "mine", e)));
}
