//! Files that a program has open. Only the real disk knows about them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;

use super::*;
use crate::disk::real::RealDisk;
use crate::local::stat_trust::unix_ns;
use crate::path::RelPath;
use crate::sync::{LocalState, SkipReason};

const SECOND_NS: i64 = 1_000_000_000;
const QUIET_NS: i64 = SECOND_NS;

struct Scanned {
    dir: tempfile::TempDir,
    folder: Folder<RealDisk>,
    tree: LocalTree,
}

impl Scanned {
    fn new() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let folder = Folder::new(Arc::new(RealDisk::open(dir.path()).unwrap()), "dev", 1);
        Self { dir, folder, tree: LocalTree::default() }
    }

    fn open(&self, name: &str) -> File {
        OpenOptions::new().create(true).append(true).open(self.dir.path().join(name)).unwrap()
    }

    /// The entry of `note.md` after a full scan, `later_ns` from now.
    fn scan(&mut self, later_ns: i64, quiet_ns: i64, overdue: &(dyn Fn(&RelPath) -> bool + Sync)) -> LocalState {
        let options = ScanOptions {
            max_file_size: 100,
            unread: &|_, _| false,
            ignored: &|_, _| false,
            base: &|_| None,
            same_rules: false,
            quiet_ns,
            overdue,
            threads: 1,
            now_ns: unix_ns(jiff::Timestamp::now()) + later_ns,
            stop: &|| false,
        };
        self.folder.scan(&mut self.tree, &ScanScope::full(), &options).unwrap();
        self.tree.found().get("note.md").unwrap().local.clone()
    }
}

fn file(content: &str) -> LocalState {
    LocalState::File(crate::digest::Md5::of(content.as_bytes()))
}

#[cfg(target_os = "linux")]
#[test]
fn file_being_written_is_not_taken_before_it_is_closed() {
    let mut scanned = Scanned::new();
    let mut writer = scanned.open("note.md");
    writer.write_all(b"half").unwrap();
    let changing = LocalState::Unknown(SkipReason::Changing);
    assert_eq!(scanned.scan(0, QUIET_NS, &|_| false), changing);
    writer.write_all(b" and half").unwrap();
    // With two writers, both must close the file.
    let other = scanned.open("note.md");
    drop(writer);
    assert_eq!(scanned.scan(0, QUIET_NS, &|_| false), changing);
    drop(other);
    assert_eq!(scanned.scan(0, QUIET_NS, &|_| false), file("half and half"));
}

#[test]
fn open_file_is_taken_if_quiet_or_overdue_or_without_a_wait() {
    let mut scanned = Scanned::new();
    let mut log = scanned.open("note.md");
    log.write_all(b"one").unwrap();
    assert_eq!(scanned.scan(QUIET_NS + SECOND_NS, QUIET_NS, &|_| false), file("one"));
    log.write_all(b" two").unwrap();
    assert_eq!(scanned.scan(0, QUIET_NS, &|path| path.as_str() == "note.md"), file("one two"));
    log.write_all(b" three").unwrap();
    assert_eq!(scanned.scan(0, 0, &|_| false), file("one two three"));
    // The clock was set back after the last write, so its age is unknown.
    log.write_all(b" four").unwrap();
    assert_eq!(scanned.scan(-3600 * SECOND_NS, QUIET_NS, &|_| false), file("one two three four"));
}

#[test]
fn file_open_for_reading_is_taken() {
    let mut scanned = Scanned::new();
    scanned.open("note.md").write_all(b"whole").unwrap();
    let reader = File::open(scanned.dir.path().join("note.md")).unwrap();
    assert_eq!(scanned.scan(0, QUIET_NS, &|_| false), file("whole"));
    drop(reader);
}
