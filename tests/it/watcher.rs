//! The watcher on real folders reports every change, and no noise.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use memsync::local::ScanScope;
use memsync::local::ignore::IgnoreRules;
use memsync::local::watch::{FolderWatcher, WatchOptions, WatchState};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);
/// The quiet time of most tests.
const QUIET: Duration = Duration::from_millis(200);

/// A watched folder, and everything that was reported of it so far.
struct Watched {
    dir: TempDir,
    watcher: FolderWatcher,
    wakes: Receiver<()>,
    told: ScanScope,
}

fn options(debounce: Duration) -> WatchOptions {
    WatchOptions {
        debounce,
        poll_interval: Duration::from_secs(3600),
        force_poll: false,
        rules: Arc::new(IgnoreRules::new(&["*.tmp".to_owned()], None).unwrap()),
    }
}

impl Watched {
    /// Watches a folder after `before` filled it.
    fn new(before: impl FnOnce(&Path)) -> Self {
        Self::with(options(QUIET), before)
    }

    fn with(options: WatchOptions, before: impl FnOnce(&Path)) -> Self {
        let dir = TempDir::new().unwrap();
        before(dir.path());
        let (wake, wakes) = channel();
        let watcher = FolderWatcher::start(dir.path(), options, move || _ = wake.send(())).unwrap();
        Self { dir, watcher, wakes, told: ScanScope::default() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Waits like an agent, on the wake and the next due time only, until `enough`.
    fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !enough(self) {
            let now = Instant::now();
            let told = (self.told.paths.len(), &self.told.subtrees, self.told.full);
            assert!(now < deadline, "{what}: not told; so far (paths, subtrees, full) {told:?}");
            let until = self.watcher.next_due().unwrap_or(deadline).min(deadline);
            if until > now {
                let _ = self.wakes.recv_timeout(until - now);
            }
            let due = self.watcher.take_due(Instant::now());
            self.told.paths.extend(due.paths);
            self.told.subtrees.extend(due.subtrees);
            self.told.full |= due.full;
        }
    }

    fn until_told(&mut self, paths: &[&str]) {
        self.until(&format!("{:?}.. ({})", paths.first(), paths.len()), |w| paths.iter().all(|path| w.covers(path)));
    }

    /// True if a scan of the reported scope would check `path`.
    fn covers(&self, path: &str) -> bool {
        self.told.full
            || self.told.paths.contains(path)
            || self.told.subtrees.contains(path)
            || path.match_indices('/').any(|(end, _)| self.told.subtrees.contains(&path[..end]))
    }

    /// Waits until all earlier changes are reported, and then clears the report.
    fn settle(&mut self) {
        fs::write(self.path("marker"), "m").unwrap();
        self.until_told(&["marker"]);
        self.told = ScanScope::default();
    }
}

#[test]
fn a_written_file_is_told_at_once_whatever_the_debounce() {
    let mut w = Watched::with(options(Duration::from_secs(600)), |_| {});
    fs::write(w.path("note.md"), "hello").unwrap();
    w.until_told(&["note.md"]);
    assert_eq!(w.told.paths, BTreeSet::from(["note.md".to_owned()]));
    assert!(!w.told.full && w.told.subtrees.is_empty());
}

#[test]
fn a_file_that_stays_open_is_told_after_the_quiet_time() {
    let mut w = Watched::new(|_| {});
    let begun = Instant::now();
    let mut file = fs::File::create(w.path("log")).unwrap();
    file.write_all(b"line").unwrap();
    w.until_told(&["log"]);
    assert!(begun.elapsed() >= QUIET, "{:?}", begun.elapsed());
    drop(file);
}

#[test]
fn an_atomic_replace_is_told_under_the_final_name() {
    let mut w = Watched::new(|dir| fs::write(dir.join("note.md"), "old").unwrap());
    fs::write(w.path(".note.md.tmp"), "new").unwrap();
    fs::rename(w.path(".note.md.tmp"), w.path("note.md")).unwrap();
    w.until_told(&["note.md"]);
    assert!(!w.told.paths.contains(".note.md.tmp"));
}

#[test]
fn a_file_in_folders_made_just_before_is_told() {
    // Repeat it, because the writer races with the thread that adds watches.
    for round in 0..20 {
        let mut w = Watched::new(|_| {});
        fs::create_dir_all(w.path("n/m")).unwrap();
        fs::write(w.path("n/m/first"), "1").unwrap();
        w.until_told(&["n/m/first"]);
        // If a scan now does not find the second file, the watcher must report it later.
        w.told = ScanScope::default();
        fs::write(w.path("n/m/second"), "2").unwrap();
        w.until(&format!("round {round}"), |w| w.covers("n/m/second"));
    }
}

#[test]
fn no_write_into_a_growing_tree_is_missed() {
    // If the agent does not find a file in a scan of the reported scope, the watcher must report it again.
    let mut w = Watched::with(options(Duration::ZERO), |_| {});
    let root = w.dir.path().to_owned();
    let writer = std::thread::spawn(move || {
        for i in 0..200 {
            let dir = root.join(format!("a{i}/b/c"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), "x").unwrap();
        }
    });
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + DEADLINE;
    while seen.len() < 200 {
        assert!(Instant::now() < deadline, "{} of 200 seen", seen.len());
        w.told = ScanScope::default();
        w.until("growing tree", |w| !w.told.is_empty());
        for i in 0..200 {
            let path = format!("a{i}/b/c/file");
            if w.covers(&path) && w.path(&path).exists() {
                seen.insert(i);
            }
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_folder_moved_in_is_scanned_and_watched() {
    let outside = TempDir::new().unwrap();
    fs::create_dir_all(outside.path().join("notes/deep")).unwrap();
    fs::write(outside.path().join("notes/deep/a.md"), "a").unwrap();
    let mut w = Watched::new(|_| {});
    fs::rename(outside.path().join("notes"), w.path("notes")).unwrap();
    w.until_told(&["notes/deep/a.md"]);
    assert!(w.told.subtrees.contains("notes"));
    w.settle();
    fs::write(w.path("notes/deep/b.md"), "b").unwrap();
    w.until_told(&["notes/deep/b.md"]);
}

#[test]
fn deletes_and_renames_are_told() {
    let mut w = Watched::new(|dir| {
        fs::create_dir(dir.join("sub")).unwrap();
        for name in ["gone", "from", "sub/x"] {
            fs::write(dir.join(name), name).unwrap();
        }
    });
    fs::remove_file(w.path("gone")).unwrap();
    w.until_told(&["gone"]);
    fs::rename(w.path("from"), w.path("to")).unwrap();
    w.until_told(&["from", "to"]);
    // A removed folder is reported by its own name, because nothing is below it.
    let outside = TempDir::new().unwrap();
    fs::rename(w.path("sub"), outside.path().join("sub")).unwrap();
    w.until("sub", |w| w.told.paths.contains("sub"));
}

#[test]
fn a_storm_is_told_whole() {
    let mut w = Watched::new(|dir| fs::create_dir(dir.join("many")).unwrap());
    let names: Vec<String> = (0..5_000).map(|i| format!("many/{i}")).collect();
    for name in &names {
        fs::write(w.path(name), name).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    w.until_told(&names);
}

#[test]
fn reading_and_what_takes_no_part_are_not_told() {
    let mut w = Watched::new(|dir| {
        fs::create_dir_all(dir.join(".memsync/staging")).unwrap();
        fs::write(dir.join("note.md"), "hello").unwrap();
    });
    for _ in 0..50 {
        assert_eq!(fs::read(w.path("note.md")).unwrap(), b"hello");
        assert_eq!(fs::read_dir(w.dir.path()).unwrap().count(), 2);
    }
    fs::write(w.path("x.tmp"), "t").unwrap();
    fs::write(w.path(".note.md.swp"), "s").unwrap();
    fs::write(w.path(".memsync/staging/1"), "s").unwrap();
    fs::rename(w.path(".memsync/staging/1"), w.path(".memsync/2")).unwrap();
    for name in ["x.tmp", ".note.md.swp"] {
        fs::remove_file(w.path(name)).unwrap();
    }
    // Events keep their order: the last written file is reported last.
    fs::write(w.path("last"), "l").unwrap();
    w.until_told(&["last"]);
    assert_eq!(w.told, ScanScope { paths: ["last".to_owned()].into(), ..ScanScope::default() });
    assert_eq!(w.watcher.next_due(), None, "idle means no timer");
}

#[test]
fn a_symlink_out_of_the_folder_is_not_followed() {
    let outside = TempDir::new().unwrap();
    fs::create_dir(outside.path().join("sub")).unwrap();
    let mut w = Watched::new(|dir| std::os::unix::fs::symlink(outside.path(), dir.join("link")).unwrap());
    fs::write(outside.path().join("sub/x"), "x").unwrap();
    fs::write(outside.path().join("y"), "y").unwrap();
    fs::write(w.path("last"), "l").unwrap();
    w.until_told(&["last"]);
    assert_eq!(w.told.paths, BTreeSet::from(["last".to_owned()]));
}

#[test]
fn a_root_that_moves_away_and_back_is_told_and_still_watched() {
    let outside = TempDir::new().unwrap();
    let mut w = Watched::new(|_| {});
    let root = w.dir.path().to_owned();
    fs::rename(&root, outside.path().join("away")).unwrap();
    w.until("the root is gone", |w| w.told.full);
    assert!(matches!(w.watcher.state(), WatchState::Degraded { .. }));
    fs::rename(outside.path().join("away"), &root).unwrap();
    let at = w.watcher.next_due().expect("polls while the root is away");
    assert!(w.watcher.take_due(at).full);
    assert!(!matches!(w.watcher.state(), WatchState::Degraded { .. }));
    w.told = ScanScope::default();
    fs::write(w.path("note.md"), "back").unwrap();
    w.until_told(&["note.md"]);
}

#[test]
fn polling_asks_for_everything_at_its_interval() {
    let options = WatchOptions { force_poll: true, poll_interval: Duration::from_millis(50), ..options(QUIET) };
    let mut w = Watched::with(options, |_| {});
    assert_eq!(w.watcher.state(), WatchState::Poll);
    for _ in 0..3 {
        w.told = ScanScope::default();
        w.until("poll", |w| w.told.full);
    }
}

#[test]
fn a_poll_to_come_is_no_change_that_waits() {
    let options = WatchOptions { force_poll: true, poll_interval: Duration::from_secs(600), ..options(QUIET) };
    let mut w = Watched::with(options, |_| {});
    w.watcher.take_due(Instant::now());
    assert!(w.watcher.next_due().is_some() && !w.watcher.changes_wait(), "a folder that is polled can be in sync");
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    let error = FolderWatcher::start(&missing, options(Duration::ZERO), || {}).err().unwrap();
    assert!(error.to_string().contains("missing"));
    fs::write(&missing, "a file").unwrap();
    assert!(FolderWatcher::start(&missing, options(Duration::ZERO), || {}).is_err());
}
