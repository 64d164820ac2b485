//! Scans, and reads of single files.

use super::*;

#[test]
fn young_file_is_read_again_and_an_old_one_is_not() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    disk.set_time(100 * SECOND + 1);
    disk.user_write("a", "one").unwrap();
    // The next write comes in the same tick as the scan, so neither size nor time would show it.
    assert_eq!(scan(&folder, &mut tree, &ScanScope::full(), 100 * SECOND + 2).hashed, 1);
    disk.user_write("a", "two").unwrap();
    assert_eq!(scan(&folder, &mut tree, &ScanScope::full(), 101 * SECOND).hashed, 1);
    assert_eq!(local(&tree, "a"), Some(file("two")));
    assert_eq!(scan(&folder, &mut tree, &ScanScope::full(), 102 * SECOND).hashed, 0);
    // A filesystem with whole seconds has longer ticks.
    disk.set_time(200 * SECOND);
    disk.user_write("a", "tri").unwrap();
    assert_eq!(scan(&folder, &mut tree, &ScanScope::full(), 201 * SECOND).hashed, 1);
    assert_eq!(scan(&folder, &mut tree, &ScanScope::full(), 203 * SECOND).hashed, 1);
    assert_eq!(scan(&folder, &mut tree, &ScanScope::full(), 204 * SECOND).hashed, 0);
}

#[test]
fn replaced_file_is_noticed_by_its_inode() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    disk.user_write("a", "one").unwrap();
    full(&folder, &mut tree);
    disk.user_replace("a", "two").unwrap();
    assert_eq!(full(&folder, &mut tree).hashed, 1);
    assert_eq!(local(&tree, "a"), Some(file("two")));
}

#[test]
fn names_come_in_nfc_and_keep_their_form_on_the_disk() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    let (nfd, nfc) = ("cafe\u{301}/x", "caf\u{e9}/x");
    disk.user_write(nfd, "1").unwrap();
    full(&folder, &mut tree);
    assert_eq!(local(&tree, nfc), Some(file("1")));
    assert_eq!(tree.disk_name(&p(nfc)), nfd);
    assert_eq!(tree.disk_name(&p("caf\u{e9}/new")), "cafe\u{301}/new", "a new file goes into the existing folder");
    disk.user_remove(nfd).unwrap();
    scan(&folder, &mut tree, &paths(&[nfd]), 0);
    assert_eq!(local(&tree, nfc), None);
}

#[test]
fn second_form_of_a_name_is_left_out_by_any_scan() {
    let (nfd, nfc) = ("cafe\u{301}", "caf\u{e9}");
    let left_out = |tree: &LocalTree| -> Vec<String> {
        let collides = tree.left_out().iter().filter(|(_, why)| matches!(why, SkipReason::Collides(_)));
        collides.map(|(name, _)| String::from_utf8(name.clone()).unwrap()).collect()
    };
    for (first, second) in [(nfd, nfc), (nfc, nfd)] {
        for is_full in [true, false] {
            let (disk, folder) = super::folder();
            let mut tree = LocalTree::default();
            let look = |tree: &mut LocalTree, name: &str| match is_full {
                true => full(&folder, tree),
                false => scan(&folder, tree, &paths(&[name]), folder.disk().time() + 10 * SECOND),
            };
            disk.user_write(first, "1").unwrap();
            look(&mut tree, first);
            disk.user_write(second, "2").unwrap();
            look(&mut tree, second);
            assert_eq!((local(&tree, nfc), left_out(&tree)), (Some(file("1")), vec![second.to_owned()]));
            assert_eq!(tree.disk_name(&p(nfc)), first);
            // An edit of either file, in place or by a rename, does not change the winner.
            disk.set_time(disk.time() + SECOND);
            disk.user_replace(first, "11").unwrap();
            disk.user_write(second, "22").unwrap();
            look(&mut tree, first);
            assert_eq!((local(&tree, nfc), left_out(&tree)), (Some(file("11")), vec![second.to_owned()]));
            // After a restart the state knows the inode, but not the form.
            let stat = FileStat::from(&disk.user_stat(first).unwrap());
            let mut again = LocalTree::default();
            again.seed(p(nfc), Md5::of(b"11"), stat);
            full(&folder, &mut again);
            assert_eq!((local(&again, nfc), left_out(&again)), (Some(file("11")), vec![second.to_owned()]));
            assert_eq!(again.disk_name(&p(nfc)), first);
            // The second file is synced when the first is gone.
            disk.user_remove(first).unwrap();
            look(&mut tree, first);
            assert_eq!((local(&tree, nfc), left_out(&tree)), (Some(file("22")), vec![]));
            assert_eq!(tree.disk_name(&p(nfc)), second);
        }
    }
    // After a restart without a known inode, the content of the base decides. If no file has it, no file is synced.
    let (disk, folder) = super::folder();
    disk.user_write("basede\u{301}", "base").unwrap();
    disk.user_write("based\u{e9}", "2").unwrap();
    let mut tree = LocalTree::default();
    full(&folder, &mut tree);
    assert_eq!((local(&tree, "based\u{e9}"), left_out(&tree)), (Some(file("base")), vec!["based\u{e9}".to_owned()]));
    disk.user_write("basede\u{301}", "edited").unwrap();
    let mut tree = LocalTree::default();
    full(&folder, &mut tree);
    let ambiguous = SkipReason::Ambiguous("basede\\u{301}, based\\u{e9}".to_owned());
    assert_eq!(local(&tree, "based\u{e9}"), Some(LocalState::Unknown(ambiguous.clone())));
    assert_eq!(tree.left_out().values().collect::<Vec<_>>(), [&ambiguous, &ambiguous], "no text may call one synced");
    disk.user_remove("based\u{e9}").unwrap();
    scan(&folder, &mut tree, &paths(&["based\u{e9}"]), 0);
    assert_eq!((local(&tree, "based\u{e9}"), left_out(&tree)), (Some(file("edited")), vec![]));
    // If both files are new, the one whose name equals the path is synced.
    let (disk, folder) = super::folder();
    disk.user_write(nfd, "1").unwrap();
    disk.user_write(nfc, "2").unwrap();
    let mut tree = LocalTree::default();
    full(&folder, &mut tree);
    assert_eq!((local(&tree, nfc), left_out(&tree)), (Some(file("2")), vec![nfd.to_owned()]));
}

#[test]
fn invalid_names_are_listed_apart_and_forgotten() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    for name in ["odd\n", "odd\t", "odd\u{fffd}", "d/odd\n"] {
        disk.user_write(name, "1").unwrap();
    }
    full(&folder, &mut tree);
    let names = |tree: &LocalTree| tree.left_out().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&tree), [b"d/odd\n".to_vec(), b"odd\t".to_vec(), b"odd\n".to_vec()]);
    assert_eq!(local(&tree, "odd\u{fffd}"), Some(file("1")), "the name is valid");
    assert!(tree.take_news());
    full(&folder, &mut tree);
    assert!(!tree.take_news(), "nothing has changed");
    disk.user_remove("odd\n").unwrap();
    scan(&folder, &mut tree, &paths(&["odd\n"]), 0);
    disk.user_remove_dir_all("d").unwrap();
    let subtree = ScanScope { subtrees: BTreeSet::from(["d".to_owned()]), ..ScanScope::default() };
    scan(&folder, &mut tree, &subtree, 0);
    assert_eq!((names(&tree), tree.take_news()), (vec![b"odd\t".to_vec()], true));
}

#[test]
fn folder_with_its_own_identity_is_left_out() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    for name in ["d/inner/a", "d/inner/deep/b", "d/c"] {
        disk.user_write(name, "1").unwrap();
    }
    full(&folder, &mut tree);
    disk.user_write("d/inner/.memsync/id", "another").unwrap();
    let found = |tree: &LocalTree| tree.found().keys().map(ToString::to_string).collect::<Vec<_>>();
    scan(&folder, &mut tree, &paths(&["d/inner/deep/b"]), 0);
    for _ in 0..2 {
        assert_eq!(local(&tree, "d/inner"), Some(LocalState::Unknown(SkipReason::OtherFolder)));
        assert_eq!(found(&tree), ["d/c", "d/inner"]);
        assert_eq!(tree.unknown_above(&p("d/inner/deep/b")), Some(SkipReason::OtherFolder));
        full(&folder, &mut tree);
    }
    disk.user_remove_dir_all("d/inner/.memsync").unwrap();
    full(&folder, &mut tree);
    assert_eq!(found(&tree), ["d/c", "d/inner/a", "d/inner/deep/b"]);
}

/// After any changes between two full scans, the tree equals that of a fresh scan, and `touched` names exactly the
/// differences.
#[test]
fn full_scan_reports_exactly_the_changes() {
    let seed = crate::testing::seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let names = ["a", "d/b", "d/c", "cafe\u{301}", "caf\u{e9}", "d/e\u{301}", "d/\u{e9}", "odd\n", "odd\t"];
    for _ in 0..50 {
        let (disk, folder) = folder();
        let mut tree = LocalTree::default();
        let mut before = BTreeMap::new();
        for _ in 0..8 {
            for _ in 0..rng.usize(..4) {
                let name = rng.choice(names).unwrap();
                disk.set_time(disk.time() + 1);
                // A failed call changes nothing.
                let _ = match rng.u8(..4) {
                    0 => disk.user_remove(name),
                    1 => disk.user_rename(name, rng.choice(names).unwrap()),
                    _ => disk.user_write(name, rng.choice(["1", "2"]).unwrap()),
                };
            }
            disk.set_time(disk.time() + SECOND);
            full(&folder, &mut tree);
            let mut fresh = LocalTree::default();
            full(&folder, &mut fresh);
            // The scans before decide which of two forms of one name is synced.
            let shown = |tree: &LocalTree| -> BTreeMap<RelPath, Option<(LocalState, String)>> {
                let names =
                    tree.left_out().keys().filter_map(|name| RelPath::from_disk(str::from_utf8(name).ok()?).ok());
                let twins: BTreeSet<RelPath> = names.collect();
                let all = tree.found().iter();
                all.map(|(p, f)| (p.clone(), (!twins.contains(p)).then(|| (f.local.clone(), tree.disk_name(p)))))
                    .collect()
            };
            let after = shown(&tree);
            assert_eq!(after, shown(&fresh));
            let paths = before.keys().chain(after.keys());
            let had_twin = |p: &RelPath| [before.get(p), after.get(p)].contains(&Some(&None));
            let differs = |p: &&RelPath| before.get(*p) != after.get(*p) && !had_twin(p);
            let differ: BTreeSet<RelPath> = paths.filter(differs).cloned().collect();
            let TouchedPaths::Paths(mut touched) = tree.take_touched() else { panic!("everywhere") };
            touched.retain(|p| !had_twin(p));
            assert_eq!(touched, differ);
            before = after;
        }
    }
}

#[test]
fn narrow_scan_updates_its_scope_and_keeps_the_rest() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    for name in ["a", "d/b", "d/e/c", "z"] {
        disk.user_write(name, "1").unwrap();
    }
    full(&folder, &mut tree);
    for name in ["a", "d/b", "d/e/c", "z"] {
        disk.user_replace(name, "22").unwrap();
    }
    disk.user_write("d/new", "3").unwrap();
    scan(&folder, &mut tree, &paths(&["a", "gone", "ignored"]), 0);
    assert_eq!(local(&tree, "a"), Some(file("22")));
    assert_eq!(
        (local(&tree, "z"), local(&tree, "d/b"), local(&tree, "d/new")),
        (Some(file("1")), Some(file("1")), None)
    );
    let subtree = ScanScope { subtrees: BTreeSet::from(["d".to_owned()]), ..ScanScope::default() };
    scan(&folder, &mut tree, &subtree, 0);
    for (name, content) in [("d/b", "22"), ("d/e/c", "22"), ("d/new", "3"), ("z", "1")] {
        assert_eq!(local(&tree, name), Some(file(content)), "{name}");
    }
    disk.user_remove_dir_all("d").unwrap();
    scan(&folder, &mut tree, &paths(&["d/b", "d"]), 0);
    assert_eq!(tree.found().keys().map(RelPath::as_str).collect::<Vec<_>>(), ["a", "z"]);
}

#[test]
fn file_becomes_a_folder_and_a_folder_becomes_a_file() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    disk.user_write("a", "1").unwrap();
    disk.user_write("d/b", "1").unwrap();
    full(&folder, &mut tree);
    disk.user_remove("a").unwrap();
    disk.user_write("a/x", "2").unwrap();
    disk.user_remove_dir_all("d").unwrap();
    disk.user_write("d", "3").unwrap();
    scan(&folder, &mut tree, &paths(&["a", "d"]), 0);
    let names: Vec<_> = tree.found().keys().map(RelPath::as_str).collect();
    assert_eq!(names, ["a/x", "d"]);
}

#[test]
fn unreadable_path_is_unknown_and_not_absent() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    disk.user_write("d/a", "1").unwrap();
    disk.user_write("f", "1").unwrap();
    disk.user_write("big", "x".repeat(101)).unwrap();
    disk.plant_symlink("link").unwrap();
    disk.plant_other("pipe", "FIFO").unwrap();
    disk.user_mkdir("s/.MemSync").unwrap();
    disk.set_unreadable("d", true).unwrap();
    disk.set_unreadable("f", true).unwrap();
    full(&folder, &mut tree);
    let unknown = |path: &str| match local(&tree, path) {
        Some(LocalState::Unknown(why)) => why,
        other => panic!("{path}: {other:?}"),
    };
    assert!(matches!(unknown("d"), SkipReason::Unreadable(_)) && matches!(unknown("f"), SkipReason::Unreadable(_)));
    assert!(matches!(tree.unknown_above(&p("d/a")), Some(SkipReason::Unreadable(_))));
    assert_eq!(unknown("big"), SkipReason::TooLarge(101));
    assert_eq!(unknown("link"), SkipReason::NotAFile("symlink"));
    assert_eq!(unknown("pipe"), SkipReason::NotAFile("FIFO"));
    // A folder that became a symlink hides the paths below it.
    disk.user_write("e/x", "1").unwrap();
    full(&folder, &mut tree);
    disk.user_remove_dir_all("e").unwrap();
    disk.plant_symlink("e").unwrap();
    scan(&folder, &mut tree, &paths(&["e"]), 0);
    assert_eq!(tree.unknown_above(&p("e/x")), Some(SkipReason::NotAFile("symlink")));
    // The folder is readable again.
    disk.set_unreadable("d", false).unwrap();
    scan(&folder, &mut tree, &paths(&["d"]), 0);
    assert_eq!((local(&tree, "d"), local(&tree, "d/a")), (None, Some(file("1"))));
}

// ---- source ----

/// Edits `path` right before its second read.
fn edit_while_read(disk: &SimDisk, path: &'static str, to: &'static str) {
    let done = AtomicBool::new(false);
    disk.set_hook(Some(Box::new(move |op| {
        if op.kind == StepKind::Read && op.path == path && !done.swap(true, Ordering::Relaxed) {
            op.disk.set_time(op.disk.time() + 1);
            op.disk.user_write(path, to).unwrap();
        }
        StepFate::Go
    })));
}

#[test]
fn torn_read_is_not_taken_for_content() {
    let (disk, folder) = folder();
    let mut tree = LocalTree::default();
    disk.user_write("a", "one").unwrap();
    edit_while_read(&disk, "a", "two");
    full(&folder, &mut tree);
    assert_eq!(local(&tree, "a"), Some(LocalState::Unknown(SkipReason::Changing)));
    full(&folder, &mut tree);
    assert_eq!(local(&tree, "a"), Some(file("two")));
}

#[test]
fn upload_fails_if_the_file_changes_meanwhile() {
    let (disk, folder) = folder();
    for edited in ["two", "on", "", "longer than that"] {
        disk.user_write("a", "one").unwrap();
        let mut source = folder.source("a", Md5::of(b"one")).unwrap();
        edit_while_read(&disk, "a", edited);
        let first = source.next_piece();
        assert_eq!(first.map_err(|e| e.kind()), Err(ErrorKind::InvalidData), "{edited:?}");
        disk.set_hook(None);
    }
    disk.user_write("empty", "").unwrap();
    assert_eq!(folder.source("empty", Md5::of(b"")).unwrap().next_piece().unwrap(), None);
    assert!(folder.source("empty", Md5::of(b"x")).unwrap().next_piece().is_err());
}
