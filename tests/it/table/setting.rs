//! A folder, a state and a proxy as a case has them, and the engine on them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use memsync::agent::{BatchOptions, CycleError, CycleReport, Engine, EngineOptions, EnginePorts, MergeMap, World};
use memsync::local::{Folder, ScanScope};
use memsync::path::RelPath;
use memsync::protocol::IndexEntry;

use memsync::state::{BaseChange, BaseEntry, Container, StateFormat, StateOptions};
use memsync::testing::{FakeConfig, FakeFaults, FakeRemote, FakeServer, SimDisk, TombstoneKind};

use crate::table::case::{C, Case, Here, Proxy, There};

const PATH: &str = "notes/p.md";
/// Cycles after which both sides must be at rest after any first cycle.
const CYCLES: usize = 4;

pub(crate) struct Still(AtomicU64);

impl World for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn elapsed(&self) -> Duration {
        // Each check is an hour later, so every backoff is over.
        Duration::from_secs(3600 * self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn random(&self) -> u64 {
        0
    }
}

pub(crate) type Sim = Engine<SimDisk, FakeRemote, Still>;

pub(crate) struct Setting {
    pub disk: SimDisk,
    pub state: SimDisk,
    pub server: FakeServer,
    path: RelPath,
    runs: u64,
}

impl Setting {
    pub(crate) fn new(case: &Case) -> Self {
        let (strong, tombstones, honest, versions) = match case.proxy {
            Proxy::Strong => (true, TombstoneKind::Absent, true, false),
            Proxy::Plain(kind, honest) => (false, kind, honest, false),
            Proxy::Versions(_) => (false, TombstoneKind::Exists, false, true),
        };
        let faults = FakeFaults::default();
        let config = FakeConfig {
            strong,
            etag_delta: true,
            tombstones,
            honest,
            versions,
            faults,
            keeps_versions: true,
            batch: case.batch,
            yields: 0.0,
        };
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
        let entry =
            entry.map(|(c, is_deleted)| IndexEntry { md5: c.md5(), size: 13, is_deleted, version: lied, cursor: 0 });
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
            let entry = BaseEntry { base, stat: None, version: known };
            container.0.commit(vec![BaseChange::Set(this.path.clone(), entry)]).unwrap();
        }
        this
    }

    fn container(&self) -> Result<(Container<SimDisk>, memsync::state::OpenOutcome), memsync::state::StateError> {
        let options = StateOptions { format: StateFormat::Json, pretty: false, session_id: "here".into() };
        Container::open(Arc::new(self.state.handle()), "state.json", options, Timestamp::UNIX_EPOCH)
    }

    /// Starts a new process. Dropping the engine does not end the old process; closing its handles does.
    pub(crate) fn engine(&mut self) -> Sim {
        self.runs += 1;
        let (container, _) = self.container().unwrap();
        let parts = EnginePorts {
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
                merge: Some(MergeMap::default()),
                origin: "there".into(),
                namespace: String::new(),
            },
        };
        Engine::open(parts, "id").unwrap()
    }

    pub(crate) fn here(&self) -> Option<Bytes> {
        self.disk.user_read(PATH).ok()
    }

    pub(crate) fn there(&self) -> Option<Bytes> {
        self.server.contents().remove(&self.path)
    }

    /// Makes the index right. Then both sides come to rest, and nothing is missing.
    pub(crate) fn ends_well(&mut self, mut engine: Sim, case: &Case, ends: &BTreeSet<Option<C>>) {
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

pub(crate) fn cycle(engine: &mut Sim) -> Result<CycleReport, CycleError> {
    let mut cycle = pin!(engine.cycle(ScanScope::full()));
    let mut context = Context::from_waker(futures::task::noop_waker_ref());
    loop {
        if let Poll::Ready(result) = cycle.as_mut().poll(&mut context) {
            return result;
        }
    }
}
