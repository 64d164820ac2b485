//! What the engine remembers between cycles: stories over a simulated disk and proxy.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use jiff::Timestamp;
use memsync::agent::{BatchOptions, CycleError, Engine, EngineOptions, Parts, Report, World};
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
mod scope;
mod store;
mod unread;
mod uploads;

/// Seconds that have passed, and the start of the machine.
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

    /// What the engine of another run is made of.
    fn parts(&self, run: u64) -> Parts<SimDisk, FakeRemote, Clock> {
        Self::parts_of(&self.disk, &self.state, &self.server, &self.clock, run)
    }

    fn parts_of(
        disk: &SimDisk,
        state: &SimDisk,
        server: &FakeServer,
        clock: &Arc<Clock>,
        run: u64,
    ) -> Parts<SimDisk, FakeRemote, Clock> {
        let written = StateOptions { format: StateFormat::Json, pretty: false, session_id: "here".into() };
        let (container, _) =
            Container::open(Arc::new(state.handle()), "state.json", written, Timestamp::UNIX_EPOCH).unwrap();
        Parts {
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

    fn cycle(&mut self, scope: ScanScope) -> Result<Report, CycleError> {
        self.cycle_while(scope, || true).expect("it runs to its end")
    }

    /// A cycle that is dropped once `goes_on` says no; it is asked between any two of its moments.
    fn cycle_while(
        &mut self,
        scope: ScanScope,
        mut goes_on: impl FnMut() -> bool,
    ) -> Option<Result<Report, CycleError>> {
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

    /// Cycles until nothing is left to do.
    #[track_caller]
    fn settle(&mut self) {
        for _ in 0..10 {
            if !self.cycle(ScanScope::full()).unwrap().again {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// From now on these paths are ignored.
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
fn what_a_scan_saw_before_the_proxy_went_away_is_synced_when_it_is_back() {
    let mut story = Story::new(FakeConfig::default());
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_write("a", "1").unwrap();
    story.server.lose(0, LostPart::Request);
    assert!(story.cycle(touched("a")).is_err());
    story.cycle(ScanScope::default()).unwrap();
    assert_eq!(story.names(), ["a"]);
}

/// The proxy may take long to give its index.
#[test]
fn a_change_is_told_before_the_proxy_is_asked_and_an_echo_is_not() {
    let mut story = Story::new(FakeConfig { yields: 1.0, ..FakeConfig::default() });
    story.disk.user_write("a", "1").unwrap();
    story.server.foreign_put(&RelPath::parse("b").unwrap(), "theirs");
    story.settle();
    let told = Arc::new(AtomicU64::new(0));
    let tell = told.clone();
    story.engine.on_change(move || tell.store(1, Ordering::Relaxed));
    let is_told = |story: &mut Story, path: &str| {
        assert!(story.cycle_while(touched(path), || false).is_none(), "it waits for the index");
        told.swap(0, Ordering::Relaxed) > 0
    };
    assert!(!is_told(&mut story, "a") && !is_told(&mut story, "b"), "sync wrote them itself");
    story.disk.user_write("a", "edited").unwrap();
    assert!(is_told(&mut story, "a"));
    story.disk.user_rename("b", "c").unwrap();
    assert!(is_told(&mut story, "b") && is_told(&mut story, "c"));
}

#[test]
fn a_dry_run_leaves_its_news_to_the_next_cycle() {
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
fn a_folder_that_could_not_be_read_was_not_missed() {
    let mut story = Story::new(FakeConfig::default());
    story.disk.user_write("d/a", "1").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.set_unreadable("d", true).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_remove("d/a").unwrap();
    story.disk.set_unreadable("d", false).unwrap();
    story.settle();
    assert_eq!(story.names(), ["d/a"], "it may have gone for any reason");
    assert_eq!(story.disk.user_read("d/a").unwrap(), "1");
}

#[test]
fn a_problem_goes_with_its_path() {
    let mut story = Story::new(plain());
    story.disk.user_write("a", "1").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    // A folder with a file in it stands where the proxy has a file.
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
fn another_proxy_waits_for_a_person_and_then_deletes_nothing() {
    let mut story = Story::new(plain());
    for name in ["a", "b"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.cycle(ScanScope::full()).unwrap();
    // The other proxy has a tombstone of the very same content, and other content of `b`.
    let other = FakeServer::new(plain(), 2);
    let (a, b) = (RelPath::parse("a").unwrap(), RelPath::parse("b").unwrap());
    other.foreign_put(&a, "a");
    other.server_delete(&a);
    other.foreign_put(&b, "theirs");
    let options = EngineOptions { origin: "https://new".into(), ..options() };
    story.engine.set_options(options, Arc::new(|_: &str, _: bool| false), Arc::new(other.client()));
    let Err(CycleError::Halted(halt)) = story.cycle(ScanScope::full()) else { panic!("it went on") };
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
fn a_full_scan_of_an_unchanged_folder_plans_nothing() {
    let mut story = Story::new(FakeConfig::default());
    for name in ["a", "b/c", "b/d"] {
        story.disk.user_write(name, name).unwrap();
    }
    story.cycle(ScanScope::full()).unwrap();
    // Young files are read once more, and are what they were.
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
fn asking_for_a_sync_tries_what_rests_again() {
    let mut story = Story::new(FakeConfig::default());
    story.cycle(ScanScope::full()).unwrap();
    story.server.foreign_put(&RelPath::parse("a").unwrap(), "1");
    story.disk.set_hook(Some(Box::new(|op| match op.kind {
        StepKind::Create if op.path.starts_with(".memsync/stage/") => StepFate::Fail(ErrorKind::StorageFull),
        _ => StepFate::Go,
    })));
    let failures: usize = (0..30).map(|_| story.cycle(ScanScope::default()).unwrap().failed).sum();
    assert!((3..10).contains(&failures), "it is tried less and less often: {failures}");
    story.disk.set_hook(None);
    assert_eq!(story.cycle(ScanScope::full()).unwrap().downloaded, 0, "it rests");
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
fn a_deletion_of_ours_that_is_undone_before_the_next_look_is_noticed() {
    let mut story = Story::new(plain());
    let path = RelPath::parse("a").unwrap();
    story.disk.user_write("a", "1").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    // The index that is held is the proxy's.
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_remove("a").unwrap();
    story.cycle(touched("a")).unwrap();
    assert_eq!(story.cycle(ScanScope::default()).unwrap().deleted_remote, 1);
    story.server.foreign_put(&path, "1");
    assert_eq!(story.cycle(ScanScope::default()).unwrap().downloaded, 1);
}

#[test]
fn an_empty_folder_of_the_users_gives_way_to_a_file_alone() {
    let mut story = Story::new(plain());
    let path = RelPath::parse("a").unwrap();
    story.cycle(ScanScope::full()).unwrap();
    story.disk.user_mkdir("a").unwrap();
    // The index tells of a file that is not there.
    let entry = IndexEntry { md5: Md5::of(b"1"), size: 1, is_deleted: false, version: 0 };
    story.server.set_index_entry(&path, Some(entry));
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.disk.user_stat("a").unwrap().kind, FileKind::Dir, "it is the user's");
    story.server.foreign_put(&path, "1");
    story.cycle(ScanScope::full()).unwrap();
    assert_eq!(story.disk.user_read("a").unwrap(), "1");
}
