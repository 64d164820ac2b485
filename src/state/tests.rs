//! Crashes at every operation, one or two in a row, and failing writes.

mod notes;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::digest::Md5;
use crate::disk::FileStat;
use crate::path::RelPath;
use crate::protocol::HistoryPoint;
use crate::sync::Base;
use crate::testing::{DiskFault, MemDisk, seed};

use super::*;

type Files = BTreeMap<String, Vec<u8>>;
type Entries = BTreeMap<RelPath, BaseEntry>;

const NAME: &str = "notes";

fn options() -> StateOptions {
    StateOptions { format: StateFormat::Json, pretty: false, session_id: "laptop".into() }
}

fn open(disk: &MemDisk) -> Result<(Container<MemDisk>, OpenOutcome), StateError> {
    Container::open(Arc::new(disk.clone()), NAME, options(), Timestamp::UNIX_EPOCH)
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn entry(n: u64) -> BaseEntry {
    BaseEntry {
        base: Base::Synced(Md5::of(&n.to_le_bytes())),
        stat: Some(FileStat { size: n, mtime_ns: 5, ctime_ns: 6, inode: n + 1 }),
        version: n,
    }
}

fn set(name: &str, n: u64) -> BaseChange {
    BaseChange::Set(path(name), entry(n))
}

/// A call on a container.
#[derive(Clone, Debug)]
enum Call {
    Commit(Vec<BaseChange>),
    Save,
    Bind(&'static str),
    ReplaceAll(Entries),
}

fn call(container: &mut Container<MemDisk>, call: &Call) -> Result<(), StateError> {
    match call {
        Call::Commit(changes) => container.commit(changes.clone()),
        Call::Save => container.save(Timestamp::UNIX_EPOCH),
        Call::Bind(id) => {
            container.bind_folder(id);
            Ok(())
        }
        Call::ReplaceAll(entries) => {
            container.replace_all(entries.clone());
            container.commit(Vec::new())
        }
    }
}

fn apply(entries: &mut Entries, call: &Call) {
    match call {
        Call::Commit(changes) => {
            for change in changes {
                match change.clone() {
                    BaseChange::Set(path, entry) => drop(entries.insert(path, entry)),
                    BaseChange::Forget(path) => drop(entries.remove(&path)),
                }
            }
        }
        Call::ReplaceAll(new) => *entries = new.clone(),
        Call::Save | Call::Bind(_) => {}
    }
}

fn script() -> Vec<Call> {
    vec![
        Call::Commit(vec![set("a", 1), set("b", 2)]),
        Call::Commit(vec![set("b", 3)]),
        Call::Save,
        Call::Commit(vec![BaseChange::Forget(path("a")), set("c/d", 4)]),
        Call::Bind("id"),
        Call::Save,
        Call::Commit(vec![set("e", 5)]),
        Call::Save,
        Call::ReplaceAll([(path("z"), entry(9))].into()),
        Call::Commit(vec![set("f", 6)]),
        Call::Save,
        Call::Save,
        Call::Commit(vec![set("g", 7)]),
    ]
}

/// Runs the script until a call fails. Returns the acknowledged entries, and those of the failed call.
fn run(disk: &MemDisk, calls: &[Call]) -> (Entries, Entries) {
    let Ok((mut container, _)) = open(disk) else { return Default::default() };
    let mut known = container.entries().clone();
    for step in calls {
        let mut next = known.clone();
        apply(&mut next, step);
        if call(&mut container, step).is_err() {
            return (known, next);
        }
        known = next;
        assert_eq!(*container.entries(), known);
    }
    (known.clone(), known)
}

fn assert_one_of(files: &Files, (before, after): &(Entries, Entries), what: &str) {
    let (container, opened) = open(&MemDisk::with(files)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(!matches!(opened, OpenOutcome::Recovered { .. }), "{what}: {opened:?} {:?}", files.keys());
    let got = container.entries();
    assert!(got == before || got == after, "{what}: {got:?} is neither {before:?} nor {after:?}");
}

fn ops_of(calls: &[Call]) -> u64 {
    let disk = MemDisk::default();
    run(&disk, calls);
    disk.ops()
}

#[test]
fn kill_at_any_operation_loses_nothing() {
    let calls = script();
    for k in 0..=ops_of(&calls) {
        let disk = MemDisk::default();
        disk.fail(DiskFault::From(k));
        let known = run(&disk, &calls);
        assert_one_of(&disk.files(), &known, &format!("killed at {k}"));
    }
}

#[test]
fn power_cut_at_any_operation_loses_nothing() {
    let mut random = fastrand::Rng::with_seed(seed());
    let calls = script();
    for k in 0..=ops_of(&calls) {
        let disk = MemDisk::default();
        disk.fail(DiskFault::From(k));
        let known = run(&disk, &calls);
        for _ in 0..40 {
            assert_one_of(&disk.after_power_cut(&mut random), &known, &format!("power cut at {k}"));
        }
    }
}

#[test]
fn second_crash_loses_nothing() {
    let mut random = fastrand::Rng::with_seed(seed());
    let calls = script();
    let more = [Call::Commit(vec![set("h", 8)]), Call::Save, Call::Save];
    for k in 0..=ops_of(&calls) {
        let disk = MemDisk::default();
        disk.fail(DiskFault::From(k));
        let (before, after) = run(&disk, &calls);
        for files in [disk.files(), disk.after_power_cut(&mut random)] {
            for j in 0.. {
                let again = MemDisk::with(&files);
                again.fail(DiskFault::From(j));
                let (mut early, mut late) = run(&again, &more);
                if early.is_empty() && late.is_empty() {
                    // The second crash came while the container was opened.
                    (early, late) = (before.clone(), after.clone());
                }
                let what = format!("killed at {k}, then at {j}");
                assert_one_of(&again.files(), &(early.clone(), late.clone()), &what);
                assert_one_of(&again.after_power_cut(&mut random), &(early, late), &format!("{what}, without power"));
                if again.ops() < j {
                    break;
                }
            }
        }
    }
}

#[test]
fn failed_write_is_repeated_by_the_next_one() {
    let mut random = fastrand::Rng::with_seed(seed());
    let calls = script();
    for k in 0..ops_of(&calls) {
        let disk = MemDisk::default();
        disk.fail(DiskFault::Only(k));
        let Ok((mut container, _)) = open(&disk) else { continue };
        let mut known = Entries::new();
        for step in &calls {
            apply(&mut known, step);
            let went = call(&mut container, step);
            assert_eq!(*container.entries(), known);
            if went.is_ok() && !matches!(step, Call::Bind(_)) {
                let what = format!("operation {k} failed, after {step:?}");
                let both = (known.clone(), known.clone());
                assert_one_of(&disk.files(), &both, &what);
                assert_one_of(&disk.after_power_cut(&mut random), &both, &what);
            }
        }
    }
}

/// The files of a container after several saves, with a journal; and every state it has had.
fn lived_in() -> (Files, Vec<Entries>) {
    let disk = MemDisk::default();
    let (mut container, _) = open(&disk).unwrap();
    let mut states = vec![Entries::new()];
    for step in script() {
        call(&mut container, &step).unwrap();
        states.push(container.entries().clone());
    }
    (disk.files(), states)
}

#[test]
fn damaged_container_is_recovered_after_any_cut_off_recovery() {
    let mut random = fastrand::Rng::with_seed(seed());
    let (mut files, states) = lived_in();
    files.get_mut(NAME).unwrap()[30] ^= 1;
    let last = states.last().unwrap();
    for j in 0.. {
        let disk = MemDisk::with(&files);
        disk.fail(DiskFault::From(j));
        let cut_off = open(&disk).is_err();
        for left in [disk.files(), disk.after_power_cut(&mut random)] {
            assert!(left.keys().any(|n| n == NAME || n == "notes.damaged-1"), "cut off at {j}: {:?}", left.keys());
            let again = MemDisk::with(&left);
            let (container, opened) = open(&again).unwrap();
            assert_eq!(container.entries(), last, "cut off at {j}: {opened:?}");
            // The backup is still good if the container is damaged again before the next save.
            drop(container);
            let mut left = again.files();
            left.get_mut(NAME).unwrap().truncate(9);
            let (container, opened) = open(&MemDisk::with(&left)).unwrap();
            assert!(matches!(opened, OpenOutcome::Recovered { from_backup: true, .. }), "cut off at {j}: {opened:?}");
            assert!(states.contains(container.entries()));
        }
        if !cut_off {
            break;
        }
    }
}

#[test]
fn damage_without_a_backup_is_reported_and_starts_empty() {
    let disk = MemDisk::default();
    let (mut container, opened) = open(&disk).unwrap();
    assert_eq!(opened, OpenOutcome::New);
    container.commit(vec![set("a", 1)]).unwrap();
    container.save(Timestamp::UNIX_EPOCH).unwrap();
    let mut files = disk.files();
    files.get_mut(NAME).unwrap().truncate(20);
    let disk = MemDisk::with(&files);
    let (container, opened) = open(&disk).unwrap();
    assert!(container.entries().is_empty());
    let set_aside = vec!["notes.damaged-1".to_owned(), "notes.journal.damaged-1".to_owned()];
    assert_eq!(opened, OpenOutcome::Recovered { set_aside, from_backup: false });
    assert_eq!(disk.files()["notes.damaged-1"], files[NAME]);
    drop(container);
    assert_eq!(open(&disk).unwrap().1, OpenOutcome::Loaded);
}

#[test]
fn torn_tail_is_removed_before_the_next_append() {
    let (mut files, states) = lived_in();
    files.get_mut("notes.journal").unwrap().extend_from_slice(b"0123abcd [{\"forg");
    let disk = MemDisk::with(&files);
    let (mut container, opened) = open(&disk).unwrap();
    assert_eq!((container.entries(), &opened), (states.last().unwrap(), &OpenOutcome::Loaded));
    container.commit(vec![set("late", 1)]).unwrap();
    let expected = container.entries().clone();
    let (container, opened) = open(&MemDisk::with(&disk.files())).unwrap();
    assert_eq!((container.entries(), opened), (&expected, OpenOutcome::Loaded));
}

#[test]
fn damaged_journal_is_set_aside_and_reported() {
    let disk = MemDisk::default();
    let (mut container, _) = open(&disk).unwrap();
    container.commit(vec![set("a", 1)]).unwrap();
    container.save(Timestamp::UNIX_EPOCH).unwrap();
    container.commit(vec![set("b", 2)]).unwrap();
    let expected = container.entries().clone();
    let good = disk.files()["notes.journal"].len();
    container.commit(vec![set("c", 3)]).unwrap();
    container.commit(vec![set("d", 4)]).unwrap();
    let mut files = disk.files();
    files.get_mut("notes.journal").unwrap()[good + 20] ^= 4;
    let disk = MemDisk::with(&files);
    let (container, opened) = open(&disk).unwrap();
    assert_eq!(*container.entries(), expected);
    assert_eq!(
        opened,
        OpenOutcome::Recovered { set_aside: vec!["notes.journal.damaged-1".to_owned()], from_backup: false }
    );
    assert_eq!(disk.files()["notes.journal.damaged-1"], files["notes.journal"]);
}

#[test]
fn empty_file_is_no_container_unless_a_journal_says_otherwise() {
    let alone = MemDisk::with(&[(NAME.to_owned(), Vec::new())].into());
    assert_eq!(open(&alone).unwrap().1, OpenOutcome::New);
    let (mut files, states) = lived_in();
    files.insert(NAME.to_owned(), Vec::new());
    let (container, opened) = open(&MemDisk::with(&files)).unwrap();
    assert_eq!(container.entries(), states.last().unwrap());
    assert_eq!(opened, OpenOutcome::Recovered { set_aside: Vec::new(), from_backup: true });
}

#[test]
fn leftovers_are_removed_and_files_are_private() {
    let (mut files, _) = lived_in();
    for name in ["notes.tmp.77", "notes.journal.tmp.77", "notes.tmpfile", "other.tmp.77"] {
        files.insert(name.to_owned(), b"x".to_vec());
    }
    let disk = MemDisk::with(&files);
    let (mut container, _) = open(&disk).unwrap();
    container.save(Timestamp::UNIX_EPOCH).unwrap();
    container.save(Timestamp::UNIX_EPOCH).unwrap();
    let names: Vec<_> = disk.files().into_keys().collect();
    let expected =
        [NAME, "notes.bak", "notes.journal", "notes.journal.bak", "notes.tmpfile", "other.tmp.77"].map(str::to_owned);
    assert_eq!(names, expected);
    for name in &names[..4] {
        assert_eq!(disk.mode(name), 0o600, "{name}");
    }
}

#[test]
fn cost_of_a_commit_depends_on_its_changes_only() {
    let mut cost = Vec::new();
    for count in [10, 10_000] {
        let disk = MemDisk::default();
        let (mut container, _) = open(&disk).unwrap();
        container.replace_all((0..count).map(|n| (path(&format!("{n}")), entry(n))).collect());
        container.save(Timestamp::UNIX_EPOCH).unwrap();
        let before = (disk.written(), disk.ops());
        container.commit(vec![set("one", 1)]).unwrap();
        cost.push((disk.written() - before.0, disk.ops() - before.1));
    }
    assert_eq!(cost[0], cost[1]);
    // Open, write, fsync.
    assert_eq!(cost[0].1, 3);
}

#[test]
fn save_is_due_when_the_journal_has_outgrown_the_entries() {
    let disk = MemDisk::default();
    let (mut container, _) = open(&disk).unwrap();
    assert!(container.wants_save(), "there is no container yet");
    container.save(Timestamp::UNIX_EPOCH).unwrap();
    for n in 0..1024 {
        assert!(!container.wants_save(), "after {n}");
        container.commit(vec![set("a", n)]).unwrap();
    }
    container.commit(vec![set("a", 0)]).unwrap();
    assert!(container.wants_save());
    let (mut container, _) = open(&disk).unwrap();
    assert!(container.wants_save(), "the journal is as long after a restart");
    container.save(Timestamp::UNIX_EPOCH).unwrap();
    assert!(!container.wants_save());
}

#[test]
fn peek_writes_nothing() {
    let (mut files, states) = lived_in();
    let disk = MemDisk::with(&files);
    let view = peek(&Arc::new(disk.clone()), NAME).unwrap().unwrap();
    assert_eq!((&view.entries, view.opened), (states.last().unwrap(), OpenOutcome::Loaded));
    assert_eq!(view.header.folder_id.as_deref(), Some("id"));
    assert_eq!(disk.ops(), 0);
    files.get_mut(NAME).unwrap().truncate(40);
    files.insert("notes.tmp.1".into(), b"an agent is saving".to_vec());
    let disk = MemDisk::with(&files);
    let view = peek(&Arc::new(disk.clone()), NAME).unwrap().unwrap();
    assert_eq!(view.entries, *states.last().unwrap());
    assert_eq!(view.opened, OpenOutcome::Recovered { set_aside: Vec::new(), from_backup: true });
    assert_eq!((disk.ops(), disk.files()), (0, files));
    assert_eq!(peek(&Arc::new(MemDisk::default()), NAME).unwrap(), None);
}
