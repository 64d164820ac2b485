//! Stories of one engine over a simulated disk and proxy.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use jiff::Timestamp;
use memsync::agent::{BatchOptions, CycleError, CycleReport, Engine, EngineOptions, EnginePorts, MergeMap, World};
use memsync::digest::Md5;
use memsync::disk::FileKind;
use memsync::disk::boot::MachineBoot;
use memsync::local::{Folder, ScanScope};
use memsync::path::RelPath;
use memsync::protocol::IndexEntry;

use memsync::state::{Container, StateFormat, StateOptions};
use memsync::sync::Base;
use memsync::testing::{
    FakeConfig, FakeRemote, FakeRequest, FakeServer, LostPart, SimDisk, StepFate, StepKind, TombstoneKind,
};

mod approved;
mod crash;
mod deletions;
mod hints;
mod leftovers;
mod merging;
mod scope;
mod store;
mod unread;
mod uploads;

/// The seconds that have passed, and the start of the machine.
struct Clock(AtomicU64, Mutex<Option<MachineBoot>>);

impl World for Clock {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }

    fn random(&self) -> u64 {
        0
    }

    fn boot(&self) -> Option<MachineBoot> {
        self.1.lock().unwrap().clone()
    }
}

struct Story {
    disk: SimDisk,
    state: SimDisk,
    server: FakeServer,
    clock: Arc<Clock>,
    engine: Engine<SimDisk, FakeRemote, Clock>,
}

fn options() -> EngineOptions {
    EngineOptions {
        max_file_size: 1 << 20,
        unread_from: u64::MAX,
        max_delete: 0.5,
        concurrency: 2,
        batch: BatchOptions::default(),
        threads: 1,
        fold: false,
        quiet: Duration::ZERO,
        confirm: Duration::from_secs(1),
        merge: Some(MergeMap::default()),
        origin: "https://old".into(),
        namespace: String::new(),
    }
}

impl Story {
    fn new(config: FakeConfig) -> Self {
        let (disk, state) = (SimDisk::new(), SimDisk::new());
        let server = FakeServer::new(config, 1);
        let clock = Arc::new(Clock(AtomicU64::new(0), Mutex::default()));
        let engine = Self::open(&disk, &state, &server, &clock);
        Self { disk, state, server, clock, engine }
    }

    fn open(
        disk: &SimDisk,
        state: &SimDisk,
        server: &FakeServer,
        clock: &Arc<Clock>,
    ) -> Engine<SimDisk, FakeRemote, Clock> {
        Engine::open(Self::parts_of(disk, state, server, clock, 1), "id").unwrap()
    }

    /// The parts of an engine for another run.
    fn parts(&self, run: u64) -> EnginePorts<SimDisk, FakeRemote, Clock> {
        Self::parts_of(&self.disk, &self.state, &self.server, &self.clock, run)
    }

    fn parts_of(
        disk: &SimDisk,
        state: &SimDisk,
        server: &FakeServer,
        clock: &Arc<Clock>,
        run: u64,
    ) -> EnginePorts<SimDisk, FakeRemote, Clock> {
        let written = StateOptions { format: StateFormat::Json, pretty: false, session_id: "here".into() };
        let (container, _) =
            Container::open(Arc::new(state.handle()), "state.json", written, Timestamp::UNIX_EPOCH).unwrap();
        EnginePorts {
            folder: Folder::new(Arc::new(disk.handle()), "here", run),
            container,
            remote: Arc::new(server.client()),
            world: clock.clone(),
            ignored: Arc::new(|_: &str, _: bool| false),
            options: options(),
        }
    }

    fn restart(&mut self) {
        self.engine = Self::open(&self.disk, &self.state, &self.server, &self.clock);
    }

    fn cycle(&mut self, scope: ScanScope) -> Result<CycleReport, CycleError> {
        self.cycle_while(scope, || true).expect("the cycle was dropped")
    }

    /// Runs a cycle and drops it when `goes_on` is false. `goes_on` is called after each poll.
    fn cycle_while(
        &mut self,
        scope: ScanScope,
        mut goes_on: impl FnMut() -> bool,
    ) -> Option<Result<CycleReport, CycleError>> {
        self.clock.0.fetch_add(2, Ordering::Relaxed);
        let mut cycle = pin!(self.engine.cycle(scope));
        let mut context = Context::from_waker(futures::task::noop_waker_ref());
        loop {
            if let Poll::Ready(result) = cycle.as_mut().poll(&mut context) {
                return Some(result);
            }
            if !goes_on() {
                return None;
            }
        }
    }

    /// Runs cycles until none is needed soon.
    #[track_caller]
    fn settle(&mut self) {
        for _ in 0..10 {
            if !self.cycle(ScanScope::full()).unwrap().again {
                return;
            }
        }
        panic!("ten cycles were not enough");
    }

    /// Ignores exactly these paths from now on.
    fn ignore(&mut self, ignored: &'static [&'static str]) {
        let rules = Arc::new(move |path: &str, _: bool| ignored.contains(&path));
        self.engine.set_options(options(), rules, Arc::new(self.server.client()));
    }

    fn names(&self) -> Vec<String> {
        self.server.contents().into_keys().map(|p| p.to_string()).collect()
    }
}

fn touched(path: &str) -> ScanScope {
    ScanScope { paths: BTreeSet::from([path.to_owned()]), ..ScanScope::default() }
}

fn plain() -> FakeConfig {
    FakeConfig { strong: false, tombstones: TombstoneKind::Absent, ..FakeConfig::default() }
}

#[test]
fn change_is_synced_after_the_proxy_was_away() {
    let mut story = Story::new(FakeConfig::default());
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "1").unwrap();
    story.server.lose(0, LostPart::Request);
    assert!(story.cycle(touched("a")).is_err());
    story.cycle(ScanScope::default()).unwrap();
    assert_eq!(story.names(), ["a"]);
}

/// The index may take long to come.
#[test]
fn change_is_reported_before_the_index_request() {
    let mut story = Story::new(FakeConfig { yields: 1.0, ..FakeConfig::default() });
    story.disk.user_write("a", "1").unwrap();
    story.server.foreign_put(&RelPath::parse("b").unwrap(), "theirs");
    story.settle();
    let reports = Arc::new(AtomicU64::new(0));
    let count = reports.clone();
    story.engine.on_change(move || count.store(1, Ordering::Relaxed));
    let is_reported = |story: &mut Story, path: &str| {
        assert!(story.cycle_while(touched(path), || false).is_none(), "the cycle waits for the index");
        reports.swap(0, Ordering::Relaxed) > 0
    };
    assert!(!is_reported(&mut story, "a") && !is_reported(&mut story, "b"), "the agent wrote them itself");
    story.disk.user_write("a", "edited").unwrap();
    assert!(is_reported(&mut story, "a"));
    story.disk.user_rename("b", "c").unwrap();
    assert!(is_reported(&mut story, "b") && is_reported(&mut story, "c"));
}

#[test]
fn dry_run_leaves_changes_to_the_next_cycle() {
    let mut story = Story::new(FakeConfig::default());
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "1").unwrap();
    {
        let mut dry_run = pin!(story.engine.dry_run());
        let mut context = Context::from_waker(futures::task::noop_waker_ref());
        assert!(matches!(dry_run.as_mut().poll(&mut context), Poll::Ready(Ok(plan)) if plan.steps.len() == 1));
    }
    story.cycle(ScanScope::default()).unwrap();
    assert_eq!(story.names(), ["a"]);
}

#[test]
fn file_in_an_unreadable_folder_is_not_missed() {
    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("d/a", "1").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.set_unreadable("d", true).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_remove("d/a").unwrap();
    story.disk.set_unreadable("d", false).unwrap();
    story.settle();
    assert_eq!(story.names(), ["d/a"], "the reason of its absence is unknown");
    assert_eq!(story.disk.user_read("d/a").unwrap(), "1");
}

#[test]
fn problem_ends_with_its_path() {
    let mut story = Story::new(plain());
    story.disk.user_write("a", "1").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    // The folder with a symlink is in the way of the proxy's file.
    story.disk.user_mkdir("b").unwrap();
    story.disk.plant_symlink("b/link").unwrap();
    story.server.foreign_put(&RelPath::parse("b").unwrap(), "2");
    story.cycle(ScanScope::default()).unwrap();
    assert!(!story.engine.problems().is_empty());
    story.disk.user_remove_dir_all("b").unwrap();
    story.server.server_delete(&RelPath::parse("b").unwrap());
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.engine.problems().len(), 0, "{:?}", story.engine.problems());
}

#[test]
fn another_proxy_halts_and_deletes_nothing_when_approved() {
    let mut story = Story::new(plain());
    for name in ["a", "b"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.cycle(ScanScope::full()).unwrap();
    // The other proxy has a tombstone of the same content for `a`, and other content for `b`.
    let other = FakeServer::new(plain(), 2);
    let (a, b) = (RelPath::parse("a").unwrap(), RelPath::parse("b").unwrap());
    other.foreign_put(&a, "a");
    other.server_delete(&a);
    other.foreign_put(&b, "theirs");
    let options = EngineOptions { origin: "https://new".into(), ..options() };
    story.engine.set_options(options, Arc::new(|_: &str, _: bool| false), Arc::new(other.client()));
    let Err(CycleError::Halted(halt)) = story.cycle(ScanScope::full()) else { panic!("no halt") };
    assert_eq!(halt.name(), "server_reset");
    assert_eq!((story.disk.user_tree("").len(), other.writes()), (2, 0));
    assert!(story.engine.approve(halt.id()).unwrap());
    for _ in 0..3 {
        story.cycle(ScanScope::full()).unwrap();
    }
    assert_eq!(story.disk.user_read("a").unwrap(), "a");
    assert_eq!(story.disk.user_read("b").unwrap(), "theirs");
    assert_eq!(other.contents().len(), 3, "a, b and the copy of ours");
    assert_eq!(story.disk.user_tree("").len(), 3);
}

#[test]
fn full_scan_of_an_unchanged_folder_plans_nothing() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["a", "b/c", "b/d"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.cycle(ScanScope::full()).unwrap();
    // New files are read once more, without a change.
    story.cycle(ScanScope::full()).unwrap();
    assert!(!story.cycle(ScanScope::full()).unwrap().planned, "nothing was changed");
    story.disk.user_write("b/c", "other").unwrap();
    let report = story.cycle(ScanScope::full()).unwrap();
    assert!(report.planned && report.uploaded == 1);
    story.disk.user_remove("a").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.names(), ["b/c", "b/d"]);
}

#[test]
fn retry_all_tries_a_quarantined_path_at_once() {
    let mut story = Story::new(FakeConfig::default());
    story.cycle(ScanScope::full()).unwrap();
    story.server.foreign_put(&RelPath::parse("a").unwrap(), "1");
    story.disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::Create if op.path.starts_with(".memsync/stage/") => StepFate::Fail(ErrorKind::StorageFull),
        _ => StepFate::Go,
    })));
    let failures: usize = (0..30).map(|_| story.cycle(ScanScope::default()).unwrap().failed).sum();
    assert!((3..10).contains(&failures), "the waits grow: {failures} failures");
    story.disk.set_hook(None);
    assert_eq!(story.cycle(ScanScope::full()).unwrap().downloaded, 0, "it waits in quarantine");
    story.engine.retry_all();
    assert_eq!(story.cycle(ScanScope::full()).unwrap().downloaded, 1);
    assert_eq!(story.engine.failing(), 0);
}

#[test]
fn file_comes_back_when_removed_in_an_unreadable_folder() {
    for scope in [ScanScope::full(), ScanScope { subtrees: BTreeSet::from(["dir".to_owned()]), ..ScanScope::default() }]
    {
        let mut story = Story::new(FakeConfig::default());
        for name in ["dir/a", "dir/b", "c"] {
            story.disk.user_write(name, name).unwrap();
        }
        story.cycle(ScanScope::full()).unwrap();
        story.disk.set_unreadable("dir", true).unwrap();
        story.cycle(scope.clone()).unwrap();
        story.disk.user_remove("dir/a").unwrap();
        story.cycle(scope.clone()).unwrap();
        assert_eq!(story.names(), ["c", "dir/a", "dir/b"], "unknown is not absent");
        story.disk.set_unreadable("dir", false).unwrap();
        for _ in 0..3 {
            story.cycle(scope.clone()).unwrap();
        }
        assert_eq!(story.names(), ["c", "dir/a", "dir/b"], "{scope:?}");
        assert_eq!(story.disk.user_read("dir/a").unwrap(), "dir/a", "{scope:?}");
        // Both are in scope again.
        story.disk.user_remove_dir_all("dir").unwrap();
        story.settle();
        assert_eq!(story.names(), ["c"], "{scope:?}");
    }
}

#[test]
fn own_deletion_that_is_undone_at_once_is_noticed() {
    let mut story = Story::new(plain());
    let path = RelPath::parse("a").unwrap();
    story.disk.user_write("a", "1").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    // Fetches the proxy's own index.
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_remove("a").unwrap();
    story.cycle(touched("a")).unwrap();
    assert_eq!(story.cycle(ScanScope::default()).unwrap().deleted_remote, 1);
    story.server.foreign_put(&path, "1");
    assert_eq!(story.cycle(ScanScope::default()).unwrap().downloaded, 1);
}

#[test]
fn empty_folder_gives_way_to_a_downloaded_file_only() {
    let mut story = Story::new(plain());
    let path = RelPath::parse("a").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_mkdir("a").unwrap();
    // The index names a file that does not exist.
    let entry = IndexEntry { md5: Md5::of(b"1"), size: 1, is_deleted: false, version: 0, cursor: 0 };
    story.server.set_index_entry(&path, Some(entry));
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.disk.user_stat("a").unwrap().kind, FileKind::Dir, "the user's folder stays");
    story.server.foreign_put(&path, "1");
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.disk.user_read("a").unwrap(), "1");
}
