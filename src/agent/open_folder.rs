//! [`OpenFolder`]: one folder opened for syncing, from its directories to its engine.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::Folder;
use crate::remote::http::HttpRemote;
use crate::state::{Container, LockError, StateOptions};

use super::cycle::{BatchOptions, CycleError, Engine, EngineOptions, EnginePorts, IgnoreFn};
use super::root::{OpenError, RootGuard, find_or_make, open_root};
use super::rules::{FolderRules, SharedRules};
use super::setup::{CONFIRM_INTERVAL, ConflictPolicy, FolderSetup};
use super::world::{RealWorld, World};

/// The engine over the real world.
pub(super) type RealEngine = Engine<RealDisk, HttpRemote, RealWorld>;
type RealParts = EnginePorts<RealDisk, HttpRemote, RealWorld>;

/// Bytes. A new file from this size on is uploaded without being read first; its digest is then known late.
const UNREAD_FROM: u64 = 8 * 1024 * 1024;

/// A folder that is open.
pub(super) struct OpenFolder {
    pub engine: RealEngine,
    pub remote: Arc<HttpRemote>,
    pub world: Arc<RealWorld>,
    pub rules: FolderRules,
    pub root: RootGuard,
    /// Keeps out agents with another home directory.
    _hold: OwnedFd,
}

impl OpenFolder {
    /// Opens the folder. The caller holds the lock.
    ///
    /// # Errors
    /// [`CycleError::Halted`] when the folder is not the one that the state belongs to.
    pub(super) fn open(setup: &FolderSetup) -> Result<Self, OpenError> {
        let mut container = open_container(setup)?;
        let folder_id = container.header().folder_id.clone();
        let root = open_root(setup, folder_id.as_deref())?;
        let mark = root.root_mark().map_err(|source| OpenError::Io { path: setup.root.clone(), source })?;
        if container.header().root_mark.as_ref().is_some_and(|was| *was != mark) {
            // An old copy of the folder lacks the files that came later.
            container.set_absence_doubted(true);
        }
        container.set_root_mark(&mark);
        if folder_id.is_some() {
            container.commit(Vec::new())?;
        }
        Self::assemble(setup, container, root, Engine::open)
    }

    /// Opens the folder although the halt `id` keeps it shut, because a person approved. The folder is taken as it is
    /// now at the configured path, and made where it is missing. Nothing is deleted. `None`: no such halt. The caller
    /// holds the lock.
    pub(super) fn open_approved(setup: &FolderSetup, id: &str) -> Result<Option<Self>, OpenError> {
        let mut container = open_container(setup)?;
        match open_root(setup, container.header().folder_id.as_deref()) {
            Err(OpenError::Cycle(CycleError::Halted(halt))) if halt.id() == id => {}
            Ok(_) | Err(OpenError::Cycle(CycleError::Halted(_))) => return Ok(None),
            Err(e) => return Err(e),
        }
        let io_error = |source| OpenError::Io { path: setup.folder.path.clone(), source };
        let root = Arc::new(find_or_make(&setup.folder.path).and_then(|path| RealDisk::open(&path)).map_err(io_error)?);
        container.set_root_mark(&root.root_mark().map_err(io_error)?);
        Self::assemble(setup, container, root, Engine::open_approved).map(Some)
    }

    fn assemble(
        setup: &FolderSetup,
        container: Container<RealDisk>,
        root: Arc<RealDisk>,
        open: impl FnOnce(RealParts, &str) -> Result<RealEngine, CycleError>,
    ) -> Result<Self, OpenError> {
        let world = Arc::new(RealWorld::default());
        let hold = lock_root(&root)?;
        let rules = FolderRules::open(&*root, &setup.folder.ignore)?;
        let remote = Arc::new(HttpRemote::new(setup.http.clone())?);
        let parts = EnginePorts {
            folder: Folder::new(root.clone(), &setup.device, world.random()),
            container,
            remote: remote.clone(),
            world: world.clone(),
            ignored: ignore_check(&rules.shared),
            options: engine_options(setup, false),
        };
        let mut engine = open(parts, &random_id())?;
        if let Err(e) = engine.folder().hide_from_git() {
            let root = root.path().display();
            tracing::warn!("{root}/.memsync/.gitignore: {e}; git may take .memsync for files of yours");
        }
        // A filesystem that ignores case also finds the identity under another spelling.
        if root.stat(".memsync/ID").is_ok() {
            engine.set_options(engine_options(setup, true), ignore_check(&rules.shared), remote.clone());
        }
        let root = RootGuard { root, folder_id: engine.container().header().folder_id.clone() };
        Ok(Self { engine, remote, world, rules, root, _hold: hold })
    }
}

fn open_container(setup: &FolderSetup) -> Result<Container<RealDisk>, OpenError> {
    let state = RealDisk::create_private(&setup.state_dir)
        .map_err(|source| OpenError::Io { path: setup.state_dir.clone(), source })?;
    let options =
        StateOptions { format: setup.state.format, pretty: setup.state.pretty, session_id: setup.session_id.clone() };
    let (container, _) = Container::open(Arc::new(state), &setup.container, options, RealWorld::default().now())?;
    Ok(container)
}

fn lock_root(root: &RealDisk) -> Result<OwnedFd, OpenError> {
    match root.lock_root() {
        Ok(Some(hold)) => Ok(hold),
        Ok(None) => Err(OpenError::Lock(LockError::Held { pid: None })),
        Err(source) => Err(OpenError::Io { path: root.path().to_owned(), source }),
    }
}

fn ignore_check(rules: &Arc<SharedRules>) -> IgnoreFn {
    let rules = rules.clone();
    Arc::new(move |path: &str, is_dir: bool| rules.get().ignored(path, is_dir))
}

/// `fold`: the filesystem ignores case.
fn engine_options(setup: &FolderSetup, fold: bool) -> EngineOptions {
    EngineOptions {
        max_file_size: setup.sync.max_file_size,
        unread_from: UNREAD_FROM,
        max_delete: setup.sync.max_delete,
        concurrency: setup.sync.concurrency,
        batch: BatchOptions::default(),
        threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
        fold,
        quiet: setup.sync.debounce,
        confirm: CONFIRM_INTERVAL,
        merge: (setup.sync.conflict == ConflictPolicy::Merge).then(|| setup.sync.merge.clone()),
        origin: setup.http.origin.clone(),
        namespace: setup.folder.namespace.clone(),
    }
}

/// 128 random bits in hex.
fn random_id() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}
