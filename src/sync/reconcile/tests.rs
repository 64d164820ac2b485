use super::*;
use crate::digest::Md5;

fn p(path: &str) -> RelPath {
    RelPath::parse(path).unwrap()
}

fn md5(path: &str) -> Md5 {
    Md5::of(path.as_bytes())
}

/// Plans for paths of base (synced), local (files) and remote (live, or a tombstone after `-`). Each path's content is
/// its name, so equal paths have equal content. Returns the row of each path, and the reason of a skip.
fn plan(base: &[&str], local: &[&str], remote: &[&str], fold: bool) -> BTreeMap<String, (u8, Option<SkipReason>)> {
    let base: BTreeMap<RelPath, Base> = base.iter().map(|n| (p(n), Base::Synced(md5(n)))).collect();
    let local: BTreeMap<RelPath, LocalState> = local.iter().map(|n| (p(n), LocalState::File(md5(n)))).collect();
    let remote: BTreeMap<RelPath, RemoteSide> = remote
        .iter()
        .map(|n| match n.strip_prefix('-') {
            Some(n) => (p(n), RemoteSide::Tombstone(md5(n))),
            None => (p(n), RemoteSide::Live(md5(n))),
        })
        .collect();
    let plan = reconcile(
        base.iter().map(|(p, b)| (p, *b)),
        &local,
        remote.iter().map(|(p, r)| (p, *r)),
        IndexTrust::Evidence,
        fold,
    );
    let why = |action| if let Action::Skip(why) = action { Some(why) } else { None };
    plan.steps.into_iter().map(|s| (s.path.to_string(), (s.row, why(s.action)))).collect()
}

fn clash(with: &str) -> (u8, Option<SkipReason>) {
    (20, Some(SkipReason::Clash(with.into())))
}

const WAITS: (u8, Option<SkipReason>) = (20, Some(SkipReason::Changing));

#[test]
fn steps_are_ordered_and_equal_sides_have_none() {
    let plan = plan(&["b", "c"], &["a", "b"], &["b", "c", "d"], false);
    let rows: Vec<_> = plan.iter().map(|(path, (row, _))| (path.as_str(), *row)).collect();
    assert_eq!(rows, [("a", 4), ("c", 9), ("d", 2)]);
}

#[test]
fn download_below_local_file_is_blocked() {
    let plan = plan(&["a"], &["a"], &["a", "a/b", "a/c/d"], false);
    assert_eq!(plan["a/b"], clash("a"));
    assert_eq!(plan["a/c/d"], clash("a"));
}

#[test]
fn download_in_place_of_local_folder_is_blocked() {
    // `a.` and `a0` sort next to `a/`, but are not in the folder.
    let plan = plan(&[], &["a/x", "a.", "a0"], &["a", "a.", "a0"], false);
    assert_eq!(plan["a"], clash("a/x"));
    assert_eq!((plan["a."].0, plan["a0"].0), (5, 5));
}

#[test]
fn first_of_clashing_downloads_wins() {
    let plan = plan(&[], &[], &["a", "a/b"], false);
    assert_eq!(plan["a"], (2, None));
    assert_eq!(plan["a/b"], clash("a"));
}

#[test]
fn download_waits_for_file_that_leaves_its_place() {
    let plan = plan(&["a"], &["a"], &["-a", "a/b"], false);
    assert_eq!(plan["a"].0, 14);
    assert_eq!(plan["a/b"], WAITS);
}

#[test]
fn type_change_deletes_before_upload() {
    let file_to_folder = plan(&["a"], &["a/b"], &["a"], false);
    assert_eq!((file_to_folder["a"].0, &file_to_folder["a/b"]), (9, &WAITS));
    let folder_to_file = plan(&["a/b"], &["a"], &["a/b"], false);
    assert_eq!((folder_to_file["a/b"].0, &folder_to_file["a"]), (9, &WAITS));
    // The proxy already has the deletion, so the upload goes.
    assert_eq!(plan(&["a"], &["a/b"], &["-a"], false)["a/b"].0, 4);
    assert_eq!(plan(&[], &["a/b"], &["-a"], false)["a/b"].0, 4);
}

#[test]
fn tracked_path_wins_where_case_is_ignored() {
    let plan = plan(&["Notes/a"], &["Notes/a"], &["Notes/a", "Notes/A", "notes/b", "c"], true);
    assert_eq!(plan["Notes/A"], (20, Some(SkipReason::Collides("Notes/a".into()))));
    assert_eq!(plan["notes/b"], (20, Some(SkipReason::Collides("Notes".into()))));
    assert_eq!(plan["c"], (2, None));
}

#[test]
fn first_of_colliding_downloads_wins() {
    let plan = plan(&[], &[], &["B", "a", "b"], true);
    assert_eq!((&plan["B"], &plan["a"]), (&(2, None), &(2, None)));
    assert_eq!(plan["b"], (20, Some(SkipReason::Collides("B".into()))));
}

#[test]
fn nothing_collides_where_case_counts() {
    let plan = plan(&["a"], &["a"], &["a", "A"], false);
    assert_eq!(plan["A"], (2, None));
}

#[test]
fn blocked_path_is_never_deleted() {
    // Blocked in an earlier cycle, so it is not in base and not local. It stays a download.
    for row in plan(&["a"], &["a"], &["a", "a/b"], true).values() {
        assert!(row.0 == 20 || row.0 == 2);
    }
}

#[test]
fn unread_file_is_uploaded_only_without_base_and_entry() {
    let unread = LocalState::Unknown(SkipReason::Unread);
    let (b, r) = (md5("b"), md5("r"));
    for base in [None, Some(Base::Synced(b)), Some(Base::Seen(b))] {
        for remote in [None, Some(RemoteSide::Live(r)), Some(RemoteSide::Tombstone(r))] {
            let wanted = match (base, remote) {
                (None, None) => (4, Some(Action::UploadUnread)),
                _ => (20, Some(Action::Skip(SkipReason::Unread))),
            };
            assert_eq!(decide(base, Some(&unread), remote, IndexTrust::Hints), wanted, "{base:?} {remote:?}");
        }
    }
    // Like every upload, it waits for the deletion of the path in its place.
    let base = BTreeMap::from([(p("a/b"), Base::Synced(b))]);
    let plan = reconcile(
        base.iter().map(|(p, b)| (p, *b)),
        &BTreeMap::from([(p("a"), unread)]),
        [].into_iter(),
        IndexTrust::Hints,
        false,
    );
    assert_eq!(plan.steps[0].action, Action::Skip(SkipReason::Changing));
}

#[test]
fn older_hint_does_not_override_base() {
    let (b, l, x) = (md5("b"), md5("l"), md5("x"));
    let file = LocalState::File(l);
    let fetches = |base| Some(Action::Conflict { local: l, base });
    let adopts = Some(Action::Adopt { local: l });
    let (live, tombstone) = (Some(RemoteSide::Live(l)), Some(RemoteSide::Tombstone(x)));
    for (base, row, hinted) in [
        (None, 5, adopts.clone()),
        (Some(Base::Seen(l)), 5, fetches(None)),
        (Some(Base::Seen(x)), 5, fetches(None)),
        (Some(Base::Synced(b)), 17, fetches(Some(b))),
    ] {
        assert_eq!(decide(base, Some(&file), live, IndexTrust::Hints), (row, hinted), "{base:?}");
        assert_eq!(decide(base, Some(&file), live, IndexTrust::Evidence), (row, adopts.clone()), "{base:?}");
    }
    let records = |tombstone| (10, Some(Action::RecordSeen { tombstone }));
    let base = Some(Base::Synced(b));
    assert_eq!(decide(base, None, tombstone, IndexTrust::Hints), (10, Some(Action::DeleteRemote { base: b })));
    assert_eq!(decide(base, None, tombstone, IndexTrust::Evidence), records(x));
    assert_eq!(decide(base, None, Some(RemoteSide::Tombstone(b)), IndexTrust::Hints), records(b));
    // An upload in the place of a file that the proxy may still have waits for the deletion.
    let base = BTreeMap::from([(p("a"), Base::Synced(b))]);
    let (local, remote) = (BTreeMap::from([(p("a/b"), file)]), BTreeMap::from([(p("a"), RemoteSide::Tombstone(x))]));
    let rows = |trust| {
        let (base, remote) = (base.iter().map(|(p, b)| (p, *b)), remote.iter().map(|(p, r)| (p, *r)));
        reconcile(base, &local, remote, trust, false).steps.into_iter().map(|s| s.row).collect::<Vec<_>>()
    };
    assert_eq!((rows(IndexTrust::Hints), rows(IndexTrust::Evidence)), (vec![10, 20], vec![10, 4]));
}
