use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::history::Kept;
use super::moves::{conflict_name, is_conflict_name};
use super::scan::{ScanOptions, ScanStats};
use super::stage::Staged;
use super::*;
use crate::digest::Md5;
use crate::disk::sim::{OpKind, SimDisk, Verdict};
use crate::disk::{Disk, DiskFile};
use crate::path::RelPath;
use crate::sync::{Local, Unknown};

const SECOND: i64 = 1_000_000_000;

fn p(path: &str) -> RelPath {
    RelPath::parse(path).unwrap()
}

fn file(content: &str) -> Local {
    Local::File(Md5::of(content.as_bytes()))
}

pub(super) fn folder() -> (SimDisk, Folder<SimDisk>) {
    let disk = SimDisk::new();
    let folder = Folder::new(Arc::new(disk.handle()), "dev", 1);
    folder.ensure_private().unwrap();
    (disk, folder)
}

fn scan(folder: &Folder<SimDisk>, tree: &mut Tree, scope: &Scope, now_ns: i64) -> ScanStats {
    let ignored = |path: &str, _: bool| path == "ignored";
    let options = ScanOptions {
        max_file_size: 100,
        unread: &|_, _| false,
        ignored: &ignored,
        same_rules: false,
        quiet_ns: 0,
        overdue: &|_| false,
        threads: 2,
        now_ns,
        stop: &|| false,
    };
    folder.scan(tree, scope, &options).unwrap()
}

fn full(folder: &Folder<SimDisk>, tree: &mut Tree) -> ScanStats {
    scan(folder, tree, &Scope::full(), folder.disk().time() + 10 * SECOND)
}

fn paths(names: &[&str]) -> Scope {
    Scope { paths: names.iter().map(|n| (*n).to_owned()).collect(), ..Scope::default() }
}

fn local(tree: &Tree, path: &str) -> Option<Local> {
    tree.found().get(path).map(|f| f.local.clone())
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn staged(folder: &Folder<SimDisk>, content: &str) -> Staged<SimDisk> {
    let mut staging = folder.stage().unwrap();
    staging.write(Bytes::copy_from_slice(content.as_bytes())).unwrap();
    staging.finish(Md5::of(content.as_bytes())).unwrap()
}

fn kept(disk: &SimDisk) -> Vec<(String, String)> {
    let text = |b: bytes::Bytes| String::from_utf8(b.to_vec()).unwrap();
    disk.user_tree(".memsync/history").into_iter().map(|(p, c)| (p, text(c))).collect()
}

// ---- scan ----

#[test]
fn a_young_file_is_read_again_and_an_old_one_is_not() {
    let (disk, folder) = folder();
    let mut tree = Tree::default();
    disk.set_time(100 * SECOND + 1);
    disk.user_write("a", "one").unwrap();
    // Written in the same tick, after the scan: neither size nor time would show it.
    assert_eq!(scan(&folder, &mut tree, &Scope::full(), 100 * SECOND + 2).hashed, 1);
    disk.user_write("a", "two").unwrap();
    assert_eq!(scan(&folder, &mut tree, &Scope::full(), 101 * SECOND).hashed, 1);
    assert_eq!(local(&tree, "a"), Some(file("two")));
    assert_eq!(scan(&folder, &mut tree, &Scope::full(), 102 * SECOND).hashed, 0);
    // On a filesystem of whole seconds the ticks are longer.
    disk.set_time(200 * SECOND);
    disk.user_write("a", "tri").unwrap();
    assert_eq!(scan(&folder, &mut tree, &Scope::full(), 201 * SECOND).hashed, 1);
    assert_eq!(scan(&folder, &mut tree, &Scope::full(), 203 * SECOND).hashed, 1);
    assert_eq!(scan(&folder, &mut tree, &Scope::full(), 204 * SECOND).hashed, 0);
}

#[test]
fn a_replaced_file_shows_by_its_inode() {
    let (disk, folder) = folder();
    let mut tree = Tree::default();
    disk.user_write("a", "one").unwrap();
    full(&folder, &mut tree);
    disk.user_replace("a", "two").unwrap();
    assert_eq!(full(&folder, &mut tree).hashed, 1);
    assert_eq!(local(&tree, "a"), Some(file("two")));
}

#[test]
fn names_come_in_nfc_and_keep_their_form_on_the_disk() {
    let (disk, folder) = folder();
    let mut tree = Tree::default();
    let (nfd, nfc) = ("cafe\u{301}/x", "caf\u{e9}/x");
    disk.user_write(nfd, "1").unwrap();
    full(&folder, &mut tree);
    assert_eq!(local(&tree, nfc), Some(file("1")));
    assert_eq!(tree.disk_name(&p(nfc)), nfd);
    assert_eq!(tree.disk_name(&p("caf\u{e9}/new")), "cafe\u{301}/new", "a new file goes into the folder that is there");
    disk.user_remove(nfd).unwrap();
    scan(&folder, &mut tree, &paths(&[nfd]), 0);
    assert_eq!(local(&tree, nfc), None);
}

#[test]
fn two_forms_of_one_name_block_each_other_whatever_is_scanned() {
    let (disk, folder) = folder();
    let (nfd, nfc) = ("cafe\u{301}", "caf\u{e9}");
    disk.user_write(nfd, "1").unwrap();
    disk.user_write(nfc, "2").unwrap();
    let mut tree = Tree::default();
    full(&folder, &mut tree);
    assert!(matches!(local(&tree, nfc), Some(Local::Unknown(Unknown::Collides(_)))));
    disk.user_remove(nfd).unwrap();
    full(&folder, &mut tree);
    assert_eq!(local(&tree, nfc), Some(file("2")));
    disk.user_write(nfd, "1").unwrap();
    scan(&folder, &mut tree, &paths(&[nfd]), 0);
    assert!(matches!(local(&tree, nfc), Some(Local::Unknown(Unknown::Collides(_)))));
}

/// Whatever users do between two full scans: the tree is as that of a scan from nothing, and what differs from before
/// is what counts as touched.
#[test]
fn a_full_scan_knows_all_that_changed_and_nothing_else() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let names = ["a", "d/b", "d/c", "cafe\u{301}", "caf\u{e9}", "d/e\u{301}", "d/\u{e9}", "odd\n", "odd\t"];
    for _ in 0..50 {
        let (disk, folder) = folder();
        let mut tree = Tree::default();
        let mut before = BTreeMap::new();
        for _ in 0..8 {
            for _ in 0..rng.usize(..4) {
                let name = rng.choice(names).unwrap();
                disk.set_time(disk.time() + 1);
                // What fails leaves all as it was.
                let _ = match rng.u8(..4) {
                    0 => disk.user_remove(name),
                    1 => disk.user_rename(name, rng.choice(names).unwrap()),
                    _ => disk.user_write(name, rng.choice(["1", "2"]).unwrap()),
                };
            }
            disk.set_time(disk.time() + SECOND);
            full(&folder, &mut tree);
            let mut fresh = Tree::default();
            full(&folder, &mut fresh);
            // Which of two forms of one name is called the other does not matter.
            let shown = |tree: &Tree| -> BTreeMap<RelPath, Option<(Local, String)>> {
                let collides = |f: &Found| matches!(f.local, Local::Unknown(Unknown::Collides(_)));
                let all = tree.found().iter();
                all.map(|(p, f)| (p.clone(), (!collides(f)).then(|| (f.local.clone(), tree.disk_name(p))))).collect()
            };
            let after = shown(&tree);
            assert_eq!(after, shown(&fresh));
            let paths = before.keys().chain(after.keys());
            let differ: BTreeSet<RelPath> = paths.filter(|p| before.get(*p) != after.get(*p)).cloned().collect();
            let Touched::Paths(mut touched) = tree.take_touched() else { panic!("everywhere") };
            touched.retain(|p| after.get(p) != Some(&None) || differ.contains(p));
            assert_eq!(touched, differ);
            before = after;
        }
    }
}

#[test]
fn a_narrow_scan_sees_what_it_is_told_to_and_keeps_the_rest() {
    let (disk, folder) = folder();
    let mut tree = Tree::default();
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
    let subtree = Scope { subtrees: BTreeSet::from(["d".to_owned()]), ..Scope::default() };
    scan(&folder, &mut tree, &subtree, 0);
    for (name, content) in [("d/b", "22"), ("d/e/c", "22"), ("d/new", "3"), ("z", "1")] {
        assert_eq!(local(&tree, name), Some(file(content)), "{name}");
    }
    disk.user_remove_dir_all("d").unwrap();
    scan(&folder, &mut tree, &paths(&["d/b", "d"]), 0);
    assert_eq!(tree.found().keys().map(RelPath::as_str).collect::<Vec<_>>(), ["a", "z"]);
}

#[test]
fn a_file_becomes_a_folder_and_a_folder_a_file() {
    let (disk, folder) = folder();
    let mut tree = Tree::default();
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
fn what_cannot_be_looked_into_is_unknown_and_not_absent() {
    let (disk, folder) = folder();
    let mut tree = Tree::default();
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
        Some(Local::Unknown(why)) => why,
        other => panic!("{path}: {other:?}"),
    };
    assert!(matches!(unknown("d"), Unknown::Unreadable(_)) && matches!(unknown("f"), Unknown::Unreadable(_)));
    assert!(matches!(tree.unknown_above(&p("d/a")), Some(Unknown::Unreadable(_))));
    assert_eq!(unknown("big"), Unknown::TooLarge(101));
    assert_eq!(unknown("link"), Unknown::NotAFile("symlink"));
    assert_eq!(unknown("pipe"), Unknown::NotAFile("FIFO"));
    // A folder that became a symlink hides what is below it.
    disk.user_write("e/x", "1").unwrap();
    full(&folder, &mut tree);
    disk.user_remove_dir_all("e").unwrap();
    disk.plant_symlink("e").unwrap();
    scan(&folder, &mut tree, &paths(&["e"]), 0);
    assert_eq!(tree.unknown_above(&p("e/x")), Some(Unknown::NotAFile("symlink")));
    // Readable again.
    disk.set_unreadable("d", false).unwrap();
    scan(&folder, &mut tree, &paths(&["d"]), 0);
    assert_eq!((local(&tree, "d"), local(&tree, "d/a")), (None, Some(file("1"))));
}

// ---- source ----

/// Edits `path` right before its second read.
fn edit_while_read(disk: &SimDisk, path: &'static str, to: &'static str) {
    let done = AtomicBool::new(false);
    disk.set_hook(Some(Box::new(move |op| {
        if op.kind == OpKind::Read && op.path == path && !done.swap(true, Ordering::Relaxed) {
            op.disk.set_time(op.disk.time() + 1);
            op.disk.user_write(path, to).unwrap();
        }
        Verdict::Go
    })));
}

#[test]
fn a_torn_read_is_no_content() {
    let (disk, folder) = folder();
    let mut tree = Tree::default();
    disk.user_write("a", "one").unwrap();
    edit_while_read(&disk, "a", "two");
    full(&folder, &mut tree);
    assert_eq!(local(&tree, "a"), Some(Local::Unknown(Unknown::Changing)));
    full(&folder, &mut tree);
    assert_eq!(local(&tree, "a"), Some(file("two")));
}

#[test]
fn an_upload_never_ends_with_other_content() {
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

// ---- moves ----

#[test]
fn conflict_names_are_short_and_never_nest() {
    let content = Md5::of(b"x");
    let short = content.short();
    for (name, expect) in [
        ("a.md", format!("a.conflict-dev-{short}.md")),
        ("a", format!("a.conflict-dev-{short}")),
        (".profile", format!(".profile.conflict-dev-{short}")),
        ("a.tar.gz", format!("a.tar.conflict-dev-{short}.gz")),
        // The copy of a copy is named after the original, also where a device has dashes and the copy a number.
        ("a.conflict-my-old-mac-01234567.md", format!("a.conflict-dev-{short}.md")),
        ("a.conflict-other-01234567-2.md", format!("a.conflict-dev-{short}.md")),
        // Not one of ours.
        ("a.conflict-01234567.md", format!("a.conflict-01234567.conflict-dev-{short}.md")),
        ("a.conflict-dev-0123456X.md", format!("a.conflict-dev-0123456X.conflict-dev-{short}.md")),
    ] {
        let copy = conflict_name(name, "dev", content, 1);
        assert_eq!(copy, expect);
        assert!(is_conflict_name(&copy), "{copy}");
        assert_eq!(conflict_name(&copy, "dev", content, 1), copy, "it does not nest");
    }
    assert_eq!(conflict_name("a.md", "dev", content, 2), format!("a.conflict-dev-{short}-2.md"));
    let long = format!("{}.md", "é".repeat(126));
    // A dot far from the end begins no extension: the copy of such a name must find room, too.
    let dotted = format!("x.{}", "y".repeat(253));
    let copy = conflict_name(&dotted, "dev", content, 1);
    assert!(copy.len() <= 255 && is_conflict_name(&copy), "{copy}");
    assert_eq!(conflict_name(&copy, "dev", content, 1), copy);
    let copy = conflict_name(&long, "dev", content, 1);
    assert!(copy.len() <= crate::path::MAX_SEGMENT && copy.len() > 250 && copy.ends_with(".md"));
    assert!(RelPath::parse(&copy).is_ok());
}

fn replace(folder: &Folder<SimDisk>, at: &str, content: &str, expect: &str) -> Moved {
    let staged = staged(folder, content);
    let step = Move::Replace { path: p(at), at: at.into(), staged, expect: Md5::of(expect.as_bytes()) };
    folder.perform(vec![step], &[], now()).unwrap().moved.remove(0)
}

#[test]
fn replacing_keeps_the_old_content_and_the_permissions() {
    let (disk, folder) = folder();
    disk.user_write("d/a", "old").unwrap();
    folder.disk().open("d/a").unwrap().set_mode(0o640).unwrap();
    assert!(matches!(replace(&folder, "d/a", "new", "old"), Moved::Done { copy: None, .. }));
    assert_eq!(disk.user_read("d/a").unwrap(), "new");
    assert_eq!(disk.user_stat("d/a").unwrap().mode, 0o640);
    let kept = kept(&disk);
    assert_eq!((kept.len(), kept[0].1.as_str()), (1, "old"));
    assert!(kept[0].0.ends_with("-replaced/d/a"), "{kept:?}");
}

#[test]
fn an_edit_at_the_last_moment_becomes_a_copy_with_and_without_exchange() {
    for no_exchange in [false, true] {
        let (disk, folder) = folder();
        disk.user_write("a", "old").unwrap();
        disk.set_hook(Some(Box::new(move |op| match op.kind {
            OpKind::Exchange if no_exchange => Verdict::Fail(ErrorKind::Unsupported),
            OpKind::SyncDir if op.path == ".memsync/stage" && op.disk.user_read("a").unwrap() == "old" => {
                op.disk.user_write("a", "edit").unwrap();
                Verdict::Go
            }
            _ => Verdict::Go,
        })));
        let Moved::Done { copy: Some(copy), .. } = replace(&folder, "a", "new", "old") else { panic!("no copy") };
        assert_eq!(disk.user_read("a").unwrap(), "new");
        assert_eq!(disk.user_read(copy.as_str()).unwrap(), "edit");
        assert!(kept(&disk).is_empty() && disk.user_tree(".memsync/stage").is_empty());
    }
}

#[test]
fn a_file_in_the_place_of_a_displaced_one_never_stops_the_sweep() {
    // The user makes a folder of the file, and a file again, while it is being trashed.
    let (disk, folder) = folder();
    disk.user_write("a", "old").unwrap();
    disk.set_hook(Some(Box::new(|op| {
        if op.kind == OpKind::RenameNew && op.path == "a" {
            op.disk.user_remove("a").unwrap();
            op.disk.user_mkdir("a/empty").unwrap();
        }
        if op.kind == OpKind::RenameNew && op.to == Some("a") {
            op.disk.user_write("a", "file again").unwrap();
        }
        Verdict::Go
    })));
    let step = Move::Trash { path: p("a"), at: "a".into(), expect: Md5::of(b"old") };
    let done = folder.perform(vec![step], &[], now()).unwrap();
    assert!(matches!(done.moved[0], Moved::Stale { .. }), "{:?}", done.moved);
    disk.set_hook(None);
    folder.sweep(now()).unwrap();
    assert_eq!(disk.user_read("a").unwrap(), "file again");
    assert!(folder.disk().list(".memsync/stage").unwrap().is_empty());
}

/// Somebody edits `n/a` just before it is replaced, and takes the folder away before the copy is placed.
fn copy_of_an_edit_in_a_folder_that_goes(before: OpKind, then_a_file: bool) -> (SimDisk, String) {
    let (disk, folder) = folder();
    disk.user_write("n/a", "old").unwrap();
    disk.set_hook(Some(Box::new(move |op| {
        if op.kind == OpKind::Exchange {
            op.disk.user_write("n/a", "edit").unwrap();
        }
        let displaced = op.disk.user_read("n/a").is_ok_and(|content| content == "new");
        if op.kind == before && op.path == "n" && displaced {
            op.disk.user_rename("n", "o").unwrap();
            if then_a_file {
                op.disk.user_write("n", "a file").unwrap();
            }
        }
        Verdict::Go
    })));
    let Moved::Done { copy: Some(copy), .. } = replace(&folder, "n/a", "new", "old") else { panic!("no copy") };
    assert_eq!(disk.user_read(copy.as_str()).unwrap(), "edit");
    assert_eq!(disk.user_read("o/a").unwrap(), "new");
    assert!(kept(&disk).is_empty() && disk.user_tree(".memsync/stage").is_empty());
    (disk, copy.as_str().to_owned())
}

#[test]
fn a_copy_whose_folder_became_a_file_goes_into_the_folder_above() {
    let (disk, copy) = copy_of_an_edit_in_a_folder_that_goes(OpKind::Mkdir, true);
    assert_eq!(disk.user_read("n").unwrap(), "a file");
    assert!(!copy.contains('/') && is_conflict_name(&copy), "{copy}");
}

#[test]
fn a_folder_that_goes_while_it_is_looked_at_is_made_again_for_the_copy() {
    let (_, copy) = copy_of_an_edit_in_a_folder_that_goes(OpKind::Stat, false);
    assert!(copy.starts_with("n/"), "{copy}");
}

#[test]
fn a_folder_gives_way_only_where_no_file_is_in_it() {
    let (disk, folder) = folder();
    disk.user_mkdir("empty/more/still").unwrap();
    assert!(folder.make_room("empty").unwrap());
    assert!(disk.user_stat("empty").is_err());
    disk.user_mkdir("full/more").unwrap();
    disk.user_write("full/last/x", "1").unwrap();
    assert!(!folder.make_room("full").unwrap());
    assert!(disk.user_stat("full/more").is_ok(), "then nothing of it goes");
    assert!(folder.make_room("nothing").unwrap() && folder.make_room("full/last/x").unwrap());
}

// ---- history ----

#[test]
fn versions_are_listed_newest_first_and_pruned_by_age_and_size() {
    let (disk, folder) = folder();
    let at = |s: i64| Timestamp::from_second(1_700_000_000 + s).unwrap();
    let trash = |name: &str, content: &str, when| {
        disk.user_write(name, content.to_owned()).unwrap();
        let step = Move::Trash { path: p(name), at: name.into(), expect: Md5::of(content.as_bytes()) };
        folder.perform(vec![step], &[], when).unwrap();
    };
    trash("d/a", "1", at(0));
    trash("d/a", "22", at(0));
    trash("b", "333", at(100));
    trash("d/a", "4444", at(200));
    let all = folder.versions(None).unwrap();
    assert_eq!(all.iter().map(|v| v.size).collect::<Vec<_>>(), [4, 3, 2, 1]);
    assert!(all.iter().all(|v| v.kind == Kept::Removed));
    assert_eq!(folder.versions(Some("d/a")).unwrap().len(), 3);
    assert_eq!(folder.versions(Some("d")).unwrap().len(), 3, "of a folder, all below it");
    assert!(folder.versions(Some("b/none")).unwrap().is_empty());
    let day = Duration::from_secs(86_400);
    assert_eq!(folder.prune(day, 10, at(200)).unwrap(), 0);
    assert_eq!(folder.prune(Duration::from_secs(150), 10, at(200)).unwrap(), 2, "too old");
    assert_eq!(folder.prune(day, 6, at(200)).unwrap(), 1, "too much: the oldest");
    assert_eq!(folder.versions(None).unwrap()[0].size, 4);
    // What is none of ours stays.
    disk.user_write(".memsync/history/notes/x", "mine").unwrap();
    assert_eq!(folder.prune(Duration::ZERO, 0, at(999)).unwrap(), 1);
    assert_eq!(kept(&disk), [(".memsync/history/notes/x".to_owned(), "mine".to_owned())]);
}

#[test]
fn a_file_and_a_folder_of_one_name_are_both_kept() -> io::Result<()> {
    let (disk, folder) = folder();
    for (first, then) in [("a", "a/b/c"), ("x/y/z", "x")] {
        for name in [first, then] {
            disk.user_write(name, name.to_owned())?;
            let step = Move::Trash { path: p(name), at: name.into(), expect: Md5::of(name.as_bytes()) };
            let done = folder.perform(vec![step], &[], now())?;
            assert!(matches!(done.moved[0], Moved::Done { .. }), "{name}: {:?}", done.moved);
        }
    }
    assert_eq!(kept(&disk).len(), 4);
    Ok(())
}

#[test]
fn what_is_not_removed_after_all_leaves_nothing_in_history() -> io::Result<()> {
    let (disk, folder) = folder();
    disk.user_write("d/a", "edited since")?;
    let step = Move::Trash { path: p("d/a"), at: "d/a".into(), expect: Md5::of(b"as it was planned") };
    let done = folder.perform(vec![step], &[], now())?;
    assert!(matches!(done.moved[0], Moved::Stale { copy: None }), "{:?}", done.moved);
    assert_eq!(disk.user_read("d/a")?, "edited since");
    assert!(kept(&disk).is_empty());
    assert!(disk.handle().list(".memsync/history")?.is_empty(), "no empty folders either");
    Ok(())
}
