//! The decision table, row by row: every combination of base, local, index and truth, driven through the real engine;
//! then each again with a kill, a power cut, or a lost request or reply at every place where one can be.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use jiff::Timestamp;
use memsync::agent::{BatchOptions, CycleError, Engine, EngineOptions, Parts, Report, World};
use memsync::digest::Md5;
use memsync::disk::sim::{SimDisk, Verdict};
use memsync::local::{Folder, Scope};
use memsync::path::RelPath;
use memsync::remote::IndexEntry;
use memsync::remote::fake::{Config, FakeRemote, FakeServer, Faults, Losing, TombstoneKind};
use memsync::state::{Change, Container, Entry, Format, Options};
use memsync::sync::{Base, Local, Remote, Unknown, decide};

const PATH: &str = "notes/p.md";
/// Cycles after which all must be at rest, whatever happened in the first.
const CYCLES: usize = 4;

/// The contents of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum C {
    B,
    L,
    R,
}

impl C {
    const ALL: [Self; 3] = [Self::B, Self::L, Self::R];

    fn bytes(self) -> Bytes {
        Bytes::from(format!("the content {self:?}"))
    }

    fn md5(self) -> Md5 {
        Md5::of(&self.bytes())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Here {
    Absent,
    File(C),
    /// A file that cannot be read.
    Unreadable(C),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Absent,
    Live(C),
    Tombstone(C),
}

impl There {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Absent];
        all.extend(C::ALL.map(Self::Live));
        all.extend(C::ALL.map(Self::Tombstone));
        all
    }

    fn remote(self) -> Option<Remote> {
        match self {
            Self::Absent => None,
            Self::Live(c) => Some(Remote::Live(c.md5())),
            Self::Tombstone(c) => Some(Remote::Tombstone(c.md5())),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Was {
    Nothing,
    Seen(C),
    Synced,
}

impl Was {
    fn base(self) -> Option<Base> {
        match self {
            Self::Nothing => None,
            Self::Seen(c) => Some(Base::Seen(c.md5())),
            Self::Synced => Some(Base::Synced(C::B.md5())),
        }
    }
}

/// What kind of proxy it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Strong,
    /// A plain index; tombstones exist or not, and are told of or not.
    Plain(TombstoneKind, bool),
    /// A namespaced one of those that are deployed: a plain index, versions, and no word of tombstones. Base holds
    /// this version: 0 for none, or one that is no longer right.
    Versions(u64),
}

#[derive(Debug, Clone, Copy)]
struct Case {
    base: Was,
    local: Here,
    index: There,
    truth: There,
    proxy: Proxy,
    /// Whether the first request of each step goes in a batch.
    batch: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut proxies = vec![Proxy::Strong, Proxy::Versions(0), Proxy::Versions(66)];
    for kind in [TombstoneKind::Absent, TombstoneKind::Exists] {
        proxies.extend([true, false].map(|honest| Proxy::Plain(kind, honest)));
    }
    let locals = [Here::Absent, Here::File(C::B), Here::File(C::L), Here::Unreadable(C::B), Here::Unreadable(C::L)];
    for base in [Was::Nothing, Was::Seen(C::L), Was::Seen(C::R), Was::Synced] {
        for local in locals {
            for index in There::all() {
                for truth in There::all() {
                    for &proxy in &proxies {
                        // A strong index does not lie.
                        if proxy != Proxy::Strong || index == truth {
                            cases.extend([false, true].map(|batch| Case { base, local, index, truth, proxy, batch }));
                        }
                    }
                }
            }
        }
    }
    cases
}

impl Case {
    fn row(&self) -> u8 {
        let local = match self.local {
            Here::Absent => None,
            Here::File(c) => Some(Local::File(c.md5())),
            Here::Unreadable(_) => Some(Local::Unknown(Unknown::Unreadable("permission denied".into()))),
        };
        decide(self.base.base(), local.as_ref(), self.index.remote()).0
    }

    fn truthful(&self) -> bool {
        self.index == self.truth
    }

    /// What may stand at the path in the end, here and there, if the first cycle saw `index`.
    fn ends(&self, index: There) -> BTreeSet<Option<C>> {
        use There::{Absent, Live, Tombstone};
        let truthful = index == self.truth;
        let (Here::File(local) | Here::Unreadable(local)) = self.local else {
            return match (self.base, self.truth) {
                // Row 9. An index that names something else, or a tombstone, brings the file back (rows 10, 11).
                (Was::Synced, Live(C::B)) if truthful || index == Absent => [None].into(),
                (Was::Synced, Live(C::B)) => [None, Some(C::B)].into(),
                (_, Live(c)) => [Some(c)].into(),
                _ => [None].into(),
            };
        };
        if index == Live(local) {
            // Rows 5 and 17 take the index's word: it names what the blob held once. What it holds now came after.
            return match self.truth {
                Live(c) => [Some(c)].into(),
                Tombstone(_) => [None].into(),
                Absent => [Some(local)].into(),
            };
        }
        let seen = matches!(self.base, Was::Seen(c) if c == local);
        match (self.base, self.truth) {
            // The server's edit: a conflict, or row 13. Our content is in a copy, or in history.
            (_, Live(c)) if !(matches!(self.base, Was::Synced) && c == C::B) => [Some(c)].into(),
            (_, Live(_)) => [Some(local)].into(),
            // Rows 13 to 15: deleted there. Without proof row 15 has to offer the file again.
            (Was::Synced, Tombstone(_)) if local == C::B => {
                if truthful || index != Absent {
                    [None].into()
                } else {
                    [None, Some(local)].into()
                }
            }
            (Was::Synced, Absent) if local == C::B => {
                if matches!(index, Tombstone(_)) {
                    [None].into()
                } else {
                    [Some(local)].into()
                }
            }
            (Was::Synced, _) => [Some(local)].into(),
            // Row 7: our own upload, deleted by somebody.
            (_, Tombstone(t)) if t == local && !seen => {
                if truthful {
                    [None].into()
                } else {
                    [None, Some(local)].into()
                }
            }
            (_, Absent | Tombstone(_)) => {
                if index == Tombstone(local) && !seen {
                    [None].into()
                } else {
                    [Some(local)].into()
                }
            }
        }
    }

    /// Content that must be in the folder in the end (history will not do).
    fn owed(&self) -> BTreeSet<C> {
        let mut owed = BTreeSet::new();
        if let Here::File(c) | Here::Unreadable(c) = self.local {
            let synced = matches!(self.base, Was::Synced) && c == C::B;
            let adopted = self.index == There::Live(c);
            let deleted = [self.index, self.truth].contains(&There::Tombstone(c)) && !matches!(self.base, Was::Synced);
            if !synced && !deleted && !adopted {
                owed.insert(c);
            }
        }
        if let There::Live(c) = self.truth
            && !(matches!(self.base, Was::Synced) && c == C::B)
        {
            owed.insert(c);
        }
        owed
    }
}

struct Still(AtomicU64);

impl World for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn elapsed(&self) -> Duration {
        // Each look is an hour later: nothing rests for long.
        Duration::from_secs(3600 * self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn random(&self) -> u64 {
        0
    }
}

type Sim = Engine<SimDisk, FakeRemote, Still>;

struct Setting {
    disk: SimDisk,
    state: SimDisk,
    server: FakeServer,
    path: RelPath,
    runs: u64,
}

impl Setting {
    fn new(case: &Case) -> Self {
        let (strong, tombstones, honest, versions) = match case.proxy {
            Proxy::Strong => (true, TombstoneKind::Absent, true, false),
            Proxy::Plain(kind, honest) => (false, kind, honest, false),
            Proxy::Versions(_) => (false, TombstoneKind::Exists, false, true),
        };
        let faults = Faults::default();
        let config =
            Config { strong, etag_delta: true, tombstones, honest, versions, faults, batch: case.batch, yields: 0.0 };
        let server = FakeServer::new(config, 1);
        let path = RelPath::parse(PATH).unwrap();
        if let There::Live(c) | There::Tombstone(c) = case.truth {
            server.foreign_put(&path, c.bytes());
        }
        if let There::Tombstone(_) = case.truth {
            assert!(server.server_delete(&path));
        }
        let entry = match case.index {
            There::Absent => None,
            There::Live(c) => Some((c, false)),
            There::Tombstone(c) => Some((c, true)),
        };
        let (lied, known) = if let Proxy::Versions(known) = case.proxy { (77, known) } else { (0, 0) };
        let entry = entry.map(|(c, is_deleted)| IndexEntry { md5: c.md5(), size: 13, is_deleted, version: lied });
        if !case.truthful() || known != 0 {
            server.set_index_entry(&path, entry);
        }
        let this = Self { disk: SimDisk::new(), state: SimDisk::new(), server, path, runs: 0 };
        if let Here::File(c) | Here::Unreadable(c) = case.local {
            this.disk.user_write(PATH, c.bytes()).unwrap();
        }
        if let Here::Unreadable(_) = case.local {
            this.disk.set_unreadable(PATH, true).unwrap();
        }
        this.disk.set_time(1_600_000_000_000_000_000);
        let mut container = this.container().unwrap();
        if let Some(base) = case.base.base() {
            let entry = Entry { base, stat: None, version: known };
            container.0.commit(vec![Change::Set(this.path.clone(), entry)]).unwrap();
        }
        this
    }

    fn container(&self) -> Result<(Container<SimDisk>, memsync::state::Opened), memsync::state::StateError> {
        let options = Options { format: Format::Json, pretty: false, session_id: "here".into() };
        Container::open(Arc::new(self.state.handle()), "state.json", options, Timestamp::UNIX_EPOCH)
    }

    /// A new process. Dropping the engine does not end it; its handles are what it has.
    fn engine(&mut self) -> Sim {
        self.runs += 1;
        let (container, opened) = self.container().unwrap();
        let parts = Parts {
            folder: Folder::new(Arc::new(self.disk.handle()), "here", self.runs),
            container,
            remote: Arc::new(self.server.client()),
            world: Arc::new(Still(AtomicU64::new(0))),
            ignored: Arc::new(|_: &str, _: bool| false),
            options: EngineOptions {
                max_file_size: 1 << 20,
                unread_from: u64::MAX,
                max_delete: 0.5,
                concurrency: 1,
                batch: BatchOptions { from: 1, ..BatchOptions::default() },
                threads: 1,
                fold: false,
                quiet: Duration::ZERO,
                confirm: Duration::ZERO,
                origin: "there".into(),
                namespace: String::new(),
            },
        };
        Engine::open(parts, &opened, "id").unwrap()
    }

    fn here(&self) -> Option<Bytes> {
        self.disk.user_read(PATH).ok()
    }

    fn there(&self) -> Option<Bytes> {
        self.server.contents().remove(&self.path)
    }

    /// The index is right from now on; all come to rest and nothing is missing.
    fn ends_well(&mut self, mut engine: Sim, case: &Case, ends: &BTreeSet<Option<C>>) {
        self.server.calm();
        if let Here::Unreadable(c) = case.local {
            assert_eq!(self.here(), Some(c.bytes()), "unknown is not touched");
            self.disk.set_unreadable(PATH, false).unwrap();
        }
        let mut writes = usize::MAX;
        for _ in 0..CYCLES {
            writes = self.server.writes();
            cycle(&mut engine).unwrap();
        }
        assert_eq!(self.server.writes(), writes, "at rest after {CYCLES} cycles");
        assert_eq!(self.here(), self.there(), "both sides hold the same");
        assert!(
            ends.iter().any(|end| end.map(C::bytes) == self.here()),
            "in the end {:?}, allowed {ends:?}",
            self.here()
        );
        let tree: BTreeSet<Bytes> = self.disk.user_tree("").into_values().collect();
        let server: BTreeMap<_, _> = self.server.contents().into_iter().map(|(p, c)| (p.to_string(), c)).collect();
        assert_eq!(self.disk.user_tree(""), server, "conflict copies are on both sides");
        for c in case.owed() {
            assert!(tree.contains(&c.bytes()), "{c:?} is lost");
        }
        let kept: BTreeSet<Bytes> = self.disk.user_tree(".memsync/history").into_values().collect();
        if let Here::File(c) | Here::Unreadable(c) = case.local {
            assert!(tree.contains(&c.bytes()) || kept.contains(&c.bytes()), "{c:?} is not even in history");
        }
        assert!(engine.problems().is_empty(), "{:?}", engine.problems());
        assert!(self.disk.user_tree(".memsync/stage").is_empty(), "stage is swept");
    }
}

fn cycle(engine: &mut Sim) -> Result<Report, CycleError> {
    let mut cycle = pin!(engine.cycle(Scope::full()));
    let mut context = Context::from_waker(futures::task::noop_waker_ref());
    loop {
        if let Poll::Ready(result) = cycle.as_mut().poll(&mut context) {
            return result;
        }
    }
}

/// Runs `check` on every case, on all cores; a failure names the row and the case.
fn each(cases: &[Case], check: impl Fn(&Case) + Sync) {
    let next = AtomicUsize::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            s.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = std::panic::AssertUnwindSafe(|| check(case));
                    if let Err(panic) = std::panic::catch_unwind(run) {
                        let why = panic.downcast_ref::<String>().cloned();
                        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                        failed.lock().unwrap().push(format!(
                            "row {}: {case:?}: {}",
                            case.row(),
                            why.unwrap_or_default()
                        ));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {} cases:\n{}",
        failed.len(),
        cases.len(),
        failed[..failed.len().min(12)].join("\n")
    );
}

#[test]
fn every_combination_comes_to_the_end_its_row_promises() {
    let cases = cases();
    let rows: BTreeSet<u8> = cases.iter().map(Case::row).collect();
    assert_eq!(rows, (1..=20).collect(), "every row is hit");
    each(&cases, |case| {
        let mut setting = Setting::new(case);
        let mut engine = setting.engine();
        cycle(&mut engine).unwrap();
        let ends = case.ends(case.index);
        if case.row() == 20 {
            let truth = if let There::Live(c) = case.truth { Some(c.bytes()) } else { None };
            assert_eq!(setting.there(), truth, "nothing is decided for what is unknown");
        } else if case.truthful() {
            assert_eq!(setting.here(), setting.there(), "one cycle does, where the index is right");
            assert!(ends.iter().any(|end| end.map(C::bytes) == setting.here()), "{:?}, not {ends:?}", setting.here());
        }
        let ends = if case.row() == 20 { case.ends(case.truth) } else { ends };
        setting.ends_well(engine, case, &ends);
    });
}

/// The combinations in which a crash can matter; of the lying indexes those of our own kind of tombstone.
fn eventful() -> Vec<Case> {
    let readable = |c: &Case| !matches!(c.local, Here::Unreadable(_)) && !matches!(c.row(), 1 | 3 | 12);
    let liars = [Proxy::Plain(TombstoneKind::Absent, true), Proxy::Versions(66)];
    let kind = |c: &Case| c.truthful() || liars.contains(&c.proxy);
    cases().into_iter().filter(|c| readable(c) && kind(c)).collect()
}

/// What may be in the end when the first cycle did anything between nothing and all.
fn ends_after_trouble(case: &Case) -> BTreeSet<Option<C>> {
    let mut ends = case.ends(case.index);
    ends.extend(case.ends(case.truth));
    ends
}

#[test]
fn a_crash_before_any_write_is_a_row() {
    each(&eventful(), |case| {
        for power in [false, true] {
            for number in 0.. {
                let mut setting = Setting::new(case);
                let mut engine = setting.engine();
                let count = Arc::new(AtomicUsize::new(0));
                for disk in [&setting.disk, &setting.state] {
                    let count = count.clone();
                    disk.set_hook(Some(Box::new(move |op| {
                        let here = op.kind.writes() && count.fetch_add(1, Ordering::Relaxed) == number;
                        if here { Verdict::Kill } else { Verdict::Go }
                    })));
                }
                let _ = cycle(&mut engine);
                // Both disks belong to the process that died.
                engine.folder().disk().kill();
                drop(engine);
                setting.disk.set_hook(None);
                setting.state.set_hook(None);
                if power {
                    let mut rng = Rng::with_seed(number as u64);
                    setting.disk.power_cut(&mut rng);
                    setting.state.power_cut(&mut rng);
                }
                let engine = setting.engine();
                setting.ends_well(engine, case, &ends_after_trouble(case));
                if count.load(Ordering::Relaxed) <= number {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_lost_request_or_reply_is_a_row() {
    each(&eventful(), |case| {
        for what in [Losing::Request, Losing::Reply] {
            for skip in 0.. {
                let mut setting = Setting::new(case);
                let mut engine = setting.engine();
                setting.server.lose(skip, what);
                let lost = cycle(&mut engine).is_err();
                if setting.server.is_losing() {
                    assert!(!lost);
                    break;
                }
                setting.ends_well(engine, case, &ends_after_trouble(case));
            }
        }
    });
}
