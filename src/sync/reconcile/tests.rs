use super::*;
use crate::digest::Md5;

fn p(path: &str) -> RelPath {
    RelPath::parse(path).unwrap()
}

fn md5(path: &str) -> Md5 {
    Md5::of(path.as_bytes())
}

/// Paths of base (synced), local (files) and remote (live, or a tombstone after `-`), all with content of their own
/// name, so that what stands on two sides is equal. Gives path → row, and why it is skipped.
fn plan(base: &[&str], local: &[&str], remote: &[&str], fold: bool) -> BTreeMap<String, (u8, Option<Unknown>)> {
    let base: BTreeMap<RelPath, Base> = base.iter().map(|n| (p(n), Base::Synced(md5(n)))).collect();
    let local: BTreeMap<RelPath, Local> = local.iter().map(|n| (p(n), Local::File(md5(n)))).collect();
    let remote: BTreeMap<RelPath, Remote> = remote
        .iter()
        .map(|n| match n.strip_prefix('-') {
            Some(n) => (p(n), Remote::Tombstone(md5(n))),
            None => (p(n), Remote::Live(md5(n))),
        })
        .collect();
    let plan = reconcile(
        base.iter().map(|(p, b)| (p, *b)),
        &local,
        remote.iter().map(|(p, r)| (p, *r)),
        Trust::Evidence,
        fold,
    );
    let why = |action| if let Action::Skip(why) = action { Some(why) } else { None };
    plan.steps.into_iter().map(|s| (s.path.to_string(), (s.row, why(s.action)))).collect()
}

fn clash(with: &str) -> (u8, Option<Unknown>) {
    (20, Some(Unknown::Clash(with.into())))
}

const WAITS: (u8, Option<Unknown>) = (20, Some(Unknown::Changing));

#[test]
fn steps_come_in_the_order_of_their_paths_and_equal_sides_need_none() {
    let plan = plan(&["b", "c"], &["a", "b"], &["b", "c", "d"], false);
    let rows: Vec<_> = plan.iter().map(|(path, (row, _))| (path.as_str(), *row)).collect();
    assert_eq!(rows, [("a", 4), ("c", 9), ("d", 2)]);
}

#[test]
fn a_download_below_a_local_file_is_blocked_by_it() {
    let plan = plan(&["a"], &["a"], &["a", "a/b", "a/c/d"], false);
    assert_eq!(plan["a/b"], clash("a"));
    assert_eq!(plan["a/c/d"], clash("a"));
}

#[test]
fn a_download_in_the_place_of_a_local_folder_is_blocked_by_what_is_in_it() {
    // `a.` and `a0` stand beside `a/` in the order of bytes, and not in the folder.
    let plan = plan(&[], &["a/x", "a.", "a0"], &["a", "a.", "a0"], false);
    assert_eq!(plan["a"], clash("a/x"));
    assert_eq!((plan["a."].0, plan["a0"].0), (5, 5));
}

#[test]
fn of_two_downloads_that_clash_the_first_is_placed() {
    let plan = plan(&[], &[], &["a", "a/b"], false);
    assert_eq!(plan["a"], (2, None));
    assert_eq!(plan["a/b"], clash("a"));
}

#[test]
fn a_download_waits_for_the_file_that_leaves_its_place() {
    let plan = plan(&["a"], &["a"], &["-a", "a/b"], false);
    assert_eq!(plan["a"].0, 14);
    assert_eq!(plan["a/b"], WAITS);
}

#[test]
fn a_local_change_of_type_sends_the_delete_before_the_upload() {
    let file_to_folder = plan(&["a"], &["a/b"], &["a"], false);
    assert_eq!((file_to_folder["a"].0, &file_to_folder["a/b"]), (9, &WAITS));
    let folder_to_file = plan(&["a/b"], &["a"], &["a/b"], false);
    assert_eq!((folder_to_file["a/b"].0, &folder_to_file["a"]), (9, &WAITS));
    // The server knows, by whomever it was told: now it goes.
    assert_eq!(plan(&["a"], &["a/b"], &["-a"], false)["a/b"].0, 4);
    assert_eq!(plan(&[], &["a/b"], &["-a"], false)["a/b"].0, 4);
}

#[test]
fn where_case_is_one_the_tracked_path_wins() {
    let plan = plan(&["Notes/a"], &["Notes/a"], &["Notes/a", "Notes/A", "notes/b", "c"], true);
    assert_eq!(plan["Notes/A"], (20, Some(Unknown::Collides("Notes/a".into()))));
    assert_eq!(plan["notes/b"], (20, Some(Unknown::Collides("Notes".into()))));
    assert_eq!(plan["c"], (2, None));
}

#[test]
fn of_two_downloads_that_fold_into_one_the_first_wins() {
    let plan = plan(&[], &[], &["B", "a", "b"], true);
    assert_eq!((&plan["B"], &plan["a"]), (&(2, None), &(2, None)));
    assert_eq!(plan["b"], (20, Some(Unknown::Collides("B".into()))));
}

#[test]
fn where_case_is_two_nothing_collides() {
    let plan = plan(&["a"], &["a"], &["a", "A"], false);
    assert_eq!(plan["A"], (2, None));
}

#[test]
fn a_blocked_path_is_never_deleted() {
    // Blocked in an earlier cycle, so never in base and never local: it stays a download.
    for row in plan(&["a"], &["a"], &["a", "a/b"], true).values() {
        assert!(row.0 == 20 || row.0 == 2);
    }
}

#[test]
fn a_file_that_nobody_has_read_is_uploaded_only_where_nothing_else_can_be_meant() {
    let unread = Local::Unknown(Unknown::Unread);
    let (b, r) = (md5("b"), md5("r"));
    for base in [None, Some(Base::Synced(b)), Some(Base::Seen(b))] {
        for remote in [None, Some(Remote::Live(r)), Some(Remote::Tombstone(r))] {
            let wanted = match (base, remote) {
                (None, None) => (4, Some(Action::UploadUnread)),
                _ => (20, Some(Action::Skip(Unknown::Unread))),
            };
            assert_eq!(decide(base, Some(&unread), remote, Trust::Hints), wanted, "{base:?} {remote:?}");
        }
    }
    // As every upload, it waits for the deletion of what stands in its place.
    let base = BTreeMap::from([(p("a/b"), Base::Synced(b))]);
    let plan = reconcile(
        base.iter().map(|(p, b)| (p, *b)),
        &BTreeMap::from([(p("a"), unread)]),
        [].into_iter(),
        Trust::Hints,
        false,
    );
    assert_eq!(plan.steps[0].action, Action::Skip(Unknown::Changing));
}

/// A hint that is older than base was overtaken by it.
#[test]
fn a_hint_is_not_agreed_with_where_base_knows_more() {
    let (b, l, x) = (md5("b"), md5("l"), md5("x"));
    let file = Local::File(l);
    let asks = |base| Some(Action::Conflict { local: l, base });
    let adopts = Some(Action::Adopt { local: l });
    let (live, tombstone) = (Some(Remote::Live(l)), Some(Remote::Tombstone(x)));
    for (base, row, hinted) in [
        (None, 5, adopts.clone()),
        (Some(Base::Seen(l)), 5, asks(None)),
        (Some(Base::Seen(x)), 5, asks(None)),
        (Some(Base::Synced(b)), 17, asks(Some(b))),
    ] {
        assert_eq!(decide(base, Some(&file), live, Trust::Hints), (row, hinted), "{base:?}");
        assert_eq!(decide(base, Some(&file), live, Trust::Evidence), (row, adopts.clone()), "{base:?}");
    }
    let records = |tombstone| (10, Some(Action::RecordSeen { tombstone }));
    let base = Some(Base::Synced(b));
    assert_eq!(decide(base, None, tombstone, Trust::Hints), (10, Some(Action::DeleteRemote { base: b })));
    assert_eq!(decide(base, None, tombstone, Trust::Evidence), records(x));
    assert_eq!(decide(base, None, Some(Remote::Tombstone(b)), Trust::Hints), records(b));
    // What stands in the place of a file that may be on the server still waits until it is told.
    let base = BTreeMap::from([(p("a"), Base::Synced(b))]);
    let (local, remote) = (BTreeMap::from([(p("a/b"), file)]), BTreeMap::from([(p("a"), Remote::Tombstone(x))]));
    let rows = |trust| {
        let (base, remote) = (base.iter().map(|(p, b)| (p, *b)), remote.iter().map(|(p, r)| (p, *r)));
        reconcile(base, &local, remote, trust, false).steps.into_iter().map(|s| s.row).collect::<Vec<_>>()
    };
    assert_eq!((rows(Trust::Hints), rows(Trust::Evidence)), (vec![10, 20], vec![10, 4]));
}
