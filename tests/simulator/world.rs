//! A device: its disk, its state directory, its clock, and the engine that runs on them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use memsync::agent::engine::Sabotage;
use memsync::agent::{BatchOptions, CycleError, CycleReport, Engine, EngineOptions, EnginePorts, MergeMap, World};
use memsync::local::{Folder, ScanScope};
use memsync::state::{Container, StateFormat, StateOptions};
use memsync::testing::{FakeRemote, FakeServer, SimDisk};

/// Simulated milliseconds, shared by all devices.
#[derive(Clone, Default)]
pub(crate) struct SimClock(Arc<AtomicU64>);

impl SimClock {
    pub(crate) fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }

    pub(crate) fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn ns(&self) -> i64 {
        i64::try_from(self.ms()).unwrap() * 1_000_000 + 1_700_000_000_000_000_000
    }
}

pub(crate) struct SimWorld {
    clock: SimClock,
    random: AtomicU64,
    /// Transfers may take longer than a cycle waits.
    is_slow: Arc<AtomicBool>,
}

impl World for SimWorld {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanosecond(self.clock.ns().into()).unwrap()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.clock.ms())
    }

    fn random(&self) -> u64 {
        self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        if !self.is_slow.load(Ordering::Relaxed) {
            return std::future::pending().boxed();
        }
        let mut polls = self.random() >> 60;
        std::future::poll_fn(move |context| {
            polls = polls.saturating_sub(1);
            if polls == 0 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .boxed()
    }
}

/// The ignore rules of a device: paths, each with everything below it.
#[derive(Default)]
pub(crate) struct SimRules {
    /// In force from the next cycle on.
    pub wanted: BTreeSet<String>,
    followed: BTreeSet<String>,
    /// A whole cycle has followed them.
    noted: bool,
}

impl SimRules {
    fn ignores(&self, path: &str) -> bool {
        self.followed
            .iter()
            .any(|rule| path.strip_prefix(rule).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }

    /// True if the rules changed.
    fn follow(&mut self) -> bool {
        let changed = self.followed != self.wanted;
        self.followed.clone_from(&self.wanted);
        self.noted &= !changed;
        changed
    }
}

/// The merges of all schedules.
static MERGES: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn merges() -> usize {
    MERGES.load(Ordering::Relaxed)
}

pub(crate) type SimEngine = Engine<SimDisk, FakeRemote, SimWorld>;
type Cycle = Pin<Box<dyn Future<Output = (SimEngine, Result<CycleReport, CycleError>)>>>;

pub(crate) struct Device {
    pub name: String,
    unread_from: u64,
    pub number: u64,
    /// The disk as the user sees it. Engines get handles.
    pub disk: SimDisk,
    pub state: SimDisk,
    handles: Option<(SimDisk, SimDisk)>,
    engine: Option<SimEngine>,
    cycle: Option<Cycle>,
    runs: u64,
    /// The bug that is planted into every engine.
    pub sabotage: Option<Sabotage>,
    /// The format of its container.
    pub format: StateFormat,
    /// The disk is full: some writes fail.
    pub full: Arc<AtomicBool>,
    /// Its link is slow.
    pub is_slow: Arc<AtomicBool>,
    /// The scope that a watcher would report to the next cycle.
    pub touched: Arc<Mutex<ScanScope>>,
    pub rules: Arc<Mutex<SimRules>>,
}

/// The settings of every engine, without its name.
pub(crate) fn options(unread_from: u64) -> EngineOptions {
    EngineOptions {
        max_file_size: 1 << 20,
        unread_from,
        max_delete: 0.5,
        concurrency: 3,
        batch: BatchOptions { from: 2, least: 1, most: 4, ..BatchOptions::default() },
        threads: 1,
        fold: false,
        quiet: Duration::ZERO,
        confirm: Duration::from_millis(1),
        merge: Some(MergeMap::default()),
        origin: "sim".into(),
        namespace: String::new(),
    }
}

impl Device {
    pub(crate) fn new(number: usize, unread_from: u64) -> Self {
        Self {
            name: format!("dev{number}"),
            number: number as u64,
            unread_from,
            disk: SimDisk::new(),
            state: SimDisk::new(),
            handles: None,
            engine: None,
            cycle: None,
            runs: 0,
            sabotage: None,
            format: StateFormat::Json,
            full: Arc::default(),
            is_slow: Arc::default(),
            touched: Arc::default(),
            rules: Arc::default(),
        }
    }

    /// The proxy's content of files that the rules leave out here. Removing them here removes them on no other device.
    pub(crate) fn left_out(&self, server: &FakeServer) -> BTreeMap<String, Bytes> {
        let rules = self.rules.lock().unwrap();
        let live = server.contents().into_iter().map(|(path, content)| (path.to_string(), content));
        live.filter(|(path, _)| rules.noted && rules.ignores(path)).collect()
    }

    /// All content on the disk, including the private folder.
    pub(crate) fn contents(&self) -> BTreeSet<Bytes> {
        self.disk.user_tree("").into_values().chain(self.disk.user_tree(".memsync").into_values()).collect()
    }

    pub(crate) fn history(&self) -> BTreeMap<String, Bytes> {
        self.disk.user_tree(".memsync/history")
    }

    pub(crate) fn engine(&mut self) -> Option<&mut SimEngine> {
        self.engine.as_mut()
    }

    pub(crate) fn set_time(&self, clock: &SimClock) {
        self.disk.set_time(clock.ns());
        self.state.set_time(clock.ns());
    }

    pub(crate) fn cycling(&self) -> bool {
        self.cycle.is_some()
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        self.engine.iter().flat_map(|e| e.problems()).map(|(p, w)| format!("{p}: {w}")).collect()
    }

    pub(crate) fn alive(&self) -> bool {
        self.handles.as_ref().is_some_and(|(a, b)| a.is_alive() && b.is_alive())
    }

    /// Kills the process in the middle of its work.
    pub(crate) fn kill(&mut self) {
        if let Some((disk, state)) = self.handles.take() {
            disk.kill();
            state.kill();
        }
        self.cycle = None;
        self.engine = None;
    }

    pub(crate) fn power_cut(&mut self, rng: &mut fastrand::Rng) {
        self.kill();
        self.disk.power_cut(rng);
        self.state.power_cut(rng);
    }

    /// Removes the container, its backup and its journal.
    pub(crate) fn lose_state(&mut self) {
        self.kill();
        for name in self.state.user_tree("").into_keys() {
            self.state.user_remove(&name).unwrap();
        }
    }

    /// Starts the engine if it does not run. False: it could not start.
    pub(crate) fn ensure_engine(&mut self, server: &FakeServer, clock: &SimClock) -> Result<bool, String> {
        if self.engine.is_some() || self.cycle.is_some() {
            return Ok(true);
        }
        let (disk, state) = (self.disk.handle(), self.state.handle());
        self.handles = Some((disk.clone(), state.clone()));
        self.runs += 1;
        let world = Arc::new(SimWorld {
            clock: clock.clone(),
            random: AtomicU64::new(self.number << 32 | self.runs),
            is_slow: self.is_slow.clone(),
        });
        let written = StateOptions { format: self.format, pretty: false, session_id: self.name.clone() };
        let opened = Container::open(Arc::new(state), "state.json", written, world.now());
        let (container, _) = match opened {
            Ok(ok) => ok,
            Err(_) if !self.alive() || self.full.load(Ordering::Relaxed) => return Ok(false),
            Err(e) => return Err(format!("{}: container: {e}", self.name)),
        };
        let folder = Folder::new(Arc::new(disk), &self.name, self.number << 32 | self.runs);
        self.rules.lock().unwrap().follow();
        let rules = self.rules.clone();
        let parts = EnginePorts {
            folder,
            container,
            remote: Arc::new(server.client()),
            world,
            ignored: Arc::new(move |path: &str, _: bool| rules.lock().unwrap().ignores(path)),
            options: options(self.unread_from),
        };
        match Engine::open(parts, &format!("id-{}", self.number)) {
            Ok(mut engine) => {
                if let Some(sabotage) = self.sabotage {
                    engine.sabotage(sabotage);
                }
                self.engine = Some(engine);
            }
            Err(_) if !self.alive() || self.full.load(Ordering::Relaxed) => return Ok(false),
            Err(e) => return Err(format!("{}: engine: {e:?}", self.name)),
        }
        Ok(true)
    }

    /// `full`: scan everything, not only the paths that the watcher reported.
    pub(crate) fn start_cycle(&mut self, full: bool) {
        if let Some(mut engine) = self.engine.take() {
            if self.rules.lock().unwrap().follow() {
                engine.rules_changed();
            }
            let touched = std::mem::take(&mut *self.touched.lock().unwrap());
            let scope = if full { ScanScope::full() } else { touched };
            self.cycle = Some(Box::pin(async move {
                let result = engine.cycle(scope).await;
                (engine, result)
            }));
        }
    }

    /// Polls the running cycle once. Returns its result if it ended.
    pub(crate) fn poll(&mut self) -> Option<Result<CycleReport, CycleError>> {
        let cycle = self.cycle.as_mut()?;
        let mut cx = Context::from_waker(futures::task::noop_waker_ref());
        let Poll::Ready((engine, result)) = cycle.as_mut().poll(&mut cx) else { return None };
        self.cycle = None;
        self.engine = Some(engine);
        self.rules.lock().unwrap().noted |= result.is_ok();
        MERGES.fetch_add(result.as_ref().map_or(0, |report| report.merged), Ordering::Relaxed);
        if !self.alive() {
            self.kill();
        }
        Some(result)
    }

    /// Continues the transfers that no cycle waits for until one ends, with at most `polls` polls.
    pub(crate) fn transfer(&mut self, polls: usize) {
        let Some(engine) = &mut self.engine else { return };
        if engine.in_transit().next().is_none() {
            return;
        }
        let mut ends = std::pin::pin!(engine.transfer_ends());
        let mut context = Context::from_waker(futures::task::noop_waker_ref());
        for _ in 0..polls {
            if ends.as_mut().poll(&mut context).is_ready() {
                break;
            }
        }
    }

    /// Ends the transfers that no cycle waits for.
    pub(crate) fn finish_transfers(&mut self) {
        self.is_slow.store(false, Ordering::Relaxed);
        let count = self.engine.as_ref().map_or(0, |engine| engine.in_transit().count());
        (0..count).for_each(|_| self.transfer(100_000));
    }

    /// Runs one cycle to its end.
    pub(crate) fn cycle_to_end(&mut self, full: bool) -> Option<Result<CycleReport, CycleError>> {
        self.start_cycle(full);
        let mut result = None;
        for _ in 0..100_000 {
            result = self.poll();
            if result.is_some() || self.cycle.is_none() {
                break;
            }
        }
        result
    }

    /// A person decides on every halt. Returns the number of decisions.
    pub(crate) fn decide(&mut self, mut approve: impl FnMut() -> bool) -> usize {
        let Some(engine) = &mut self.engine else { return 0 };
        let ids: Vec<String> = engine.halts().iter().map(|h| h.id().to_owned()).collect();
        for id in &ids {
            // A full disk or a kill fails it. The next halt is answered again.
            if approve() || !engine.reject(id).unwrap_or(true) {
                let _ = engine.approve(id);
            }
        }
        ids.len()
    }

    pub(crate) fn tidy(&mut self) {
        if let Some(engine) = &mut self.engine {
            // The next check of the handles notices a kill in between.
            let _ = engine.tidy();
        }
    }
}
