//! [`Session`]: one folder opened for syncing, from its directories to its engine.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::Folder;
use crate::local::ignore::BadPattern;
use crate::remote::http::{HttpOptions, HttpRemote, OptionsError};
use crate::state::{Container, Format, LockError, Opened, Options, StateError};
use crate::sync::safety::Halt;

use super::batch::BatchOptions;
use super::engine::{CycleError, Engine, EngineOptions, Ignored, Parts};
use super::root::{find_or_make, open_root};
use super::rules::{FolderRules, Look, SharedRules};
use super::world::{RealWorld, World};

/// The engine over the real world.
pub type RealEngine = Engine<RealDisk, HttpRemote, RealWorld>;
type RealParts = Parts<RealDisk, HttpRemote, RealWorld>;

/// How far apart two scans must be to prove a file deleted: longer than any editor takes to save.
pub const CONFIRM: Duration = Duration::from_millis(100);

/// All there is to know of one folder.
#[derive(Debug, Clone)]
pub struct FolderSetup {
    /// The folder as the config names it, absolute.
    pub path: PathBuf,
    /// The folder itself: `path` with its symlinks resolved when the settings were made.
    pub root: PathBuf,
    /// Where the container, its lock and the status file are.
    pub state_dir: PathBuf,
    /// The container's name in `state_dir`.
    pub container: String,
    pub lock: PathBuf,
    pub status_file: PathBuf,
    /// Names conflict copies.
    pub device: String,
    pub namespace: String,
    /// Patterns in gitignore syntax.
    pub ignore: Vec<String>,
    pub http: HttpOptions,
    pub format: Format,
    pub pretty: bool,
    pub session_id: String,
    /// The poll.
    pub interval: Duration,
    pub debounce: Duration,
    /// Full scan, whatever the watcher said.
    pub rescan: Duration,
    pub concurrency: usize,
    /// Bytes.
    pub max_file_size: u64,
    /// 0 to 1.
    pub max_delete: f64,
    pub history_keep: Duration,
    /// Bytes.
    pub history_max: u64,
}

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Http(#[from] OptionsError),
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    #[error(transparent)]
    Cycle(#[from] CycleError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A folder that is open.
pub struct Session {
    pub engine: RealEngine,
    pub remote: Arc<HttpRemote>,
    pub world: Arc<RealWorld>,
    pub rules: FolderRules,
    /// Where the root was found when it was opened.
    pub root: Arc<RealDisk>,
    pub opened: Opened,
    /// One agent per folder, from whatever home it runs.
    _hold: OwnedFd,
}

impl Session {
    /// Opens the folder. The caller holds the lock.
    ///
    /// # Errors
    /// What is missing or damaged, and where; [`CycleError::Halted`] when the folder is not what it was.
    pub fn open(setup: &FolderSetup) -> Result<Self, OpenError> {
        let (mut container, opened) = open_state(setup)?;
        let folder_id = container.header().folder_id.clone();
        let root = open_root(setup, folder_id.as_deref())?;
        let mark = root.root_mark().map_err(|source| OpenError::Io { path: setup.root.clone(), source })?;
        if container.header().root_mark.as_ref().is_some_and(|was| *was != mark) {
            // An old copy of the folder lacks the files that came later.
            container.distrust_absence();
        }
        container.set_root_mark(&mark);
        if folder_id.is_some() {
            container.commit(Vec::new())?;
        }
        Self::assemble(setup, (container, opened), root, Engine::open)
    }

    /// Opens the folder where the halt `id` keeps it shut, because a person approved. The folder is taken as it is now at
    /// the configured path, and made where it is missing. Nothing is deleted. `None`: no such halt. The caller holds the
    /// lock.
    ///
    /// # Errors
    /// When the folder or the state cannot be read or written.
    pub fn open_approved(setup: &FolderSetup, id: &str) -> Result<Option<Self>, OpenError> {
        let (mut container, opened) = open_state(setup)?;
        match open_root(setup, container.header().folder_id.as_deref()) {
            Err(OpenError::Cycle(CycleError::Halted(halt))) if halt.id() == id => {}
            Ok(_) | Err(OpenError::Cycle(CycleError::Halted(_))) => return Ok(None),
            Err(e) => return Err(e),
        }
        let io_here = |source| OpenError::Io { path: setup.path.clone(), source };
        let root = Arc::new(find_or_make(&setup.path).and_then(|path| RealDisk::open(&path)).map_err(io_here)?);
        container.set_root_mark(&root.root_mark().map_err(io_here)?);
        Self::assemble(setup, (container, opened), root, Engine::open_approved).map(Some)
    }

    fn assemble(
        setup: &FolderSetup,
        (container, opened): (Container<RealDisk>, Opened),
        root: Arc<RealDisk>,
        open: impl FnOnce(RealParts, &str) -> Result<RealEngine, CycleError>,
    ) -> Result<Self, OpenError> {
        let world = Arc::new(RealWorld::default());
        let hold = hold(&root)?;
        let rules = FolderRules::open(&*root, &setup.ignore)?;
        let remote = Arc::new(HttpRemote::new(setup.http.clone())?);
        let folder = Folder::new(root.clone(), &setup.device, world.random());
        let parts = Parts {
            folder,
            container,
            remote: remote.clone(),
            world: world.clone(),
            ignored: ignored(&rules.shared),
            options: engine_options(setup, false),
        };
        let mut engine = open(parts, &new_id())?;
        if let Err(e) = engine.folder().hide_from_git() {
            tracing::warn!(
                "{}/.memsync/.gitignore: {e}; git may take .memsync for files of yours",
                root.path().display()
            );
        }
        // Where case does not tell names apart, the identity also answers to another spelling.
        if root.stat(".memsync/ID").is_ok() {
            engine.set_options(engine_options(setup, true), ignored(&rules.shared), remote.clone());
        }
        Ok(Self { engine, remote, world, rules, root, opened, _hold: hold })
    }

    /// Looks at the folder's `.memsyncignore` again.
    ///
    /// # Errors
    /// When the patterns of the config do not hold.
    pub fn look_at_rules(&mut self, setup: &FolderSetup, now: Instant) -> Result<Look, OpenError> {
        Ok(self.rules.look(&*self.root, &setup.ignore, now, CONFIRM)?)
    }

    /// The gates for the folder as a whole, without the proxy.
    ///
    /// # Errors
    /// Which of them is shut.
    pub fn check_root(&self, setup: &FolderSetup) -> Result<(), CycleError> {
        self.check_path(setup)?;
        self.engine.check_root()
    }

    /// The gate for a root that was moved, replaced or unmounted since it was opened.
    ///
    /// # Errors
    /// Which of them.
    pub fn check_path(&self, setup: &FolderSetup) -> Result<(), CycleError> {
        let unreadable = |source| CycleError::Folder { what: "looking at the folder", source };
        let is_same = self.root.root_identity().map_err(unreadable)?.is_same();
        // The root itself is no symlink, so that only another path has to be followed.
        if is_same && (setup.path == setup.root || self.root.is_at(&setup.path).map_err(unreadable)?) {
            return Ok(());
        }
        match open_root(setup, self.engine.container().header().folder_id.as_deref()) {
            Err(OpenError::Cycle(e)) => Err(e),
            Err(OpenError::Io { source, .. }) => Err(unreadable(source)),
            _ => {
                let shown = setup.path.display().to_string();
                let why = format!("{shown} was replaced by a copy of itself; it is opened again");
                Err(CycleError::Halted(Halt::root_changed(&["replaced", &shown], why)))
            }
        }
    }
}

/// Opens the state of the folder.
fn open_state(setup: &FolderSetup) -> Result<(Container<RealDisk>, Opened), OpenError> {
    let state = RealDisk::create_private(&setup.state_dir)
        .map_err(|source| OpenError::Io { path: setup.state_dir.clone(), source })?;
    let options = Options { format: setup.format, pretty: setup.pretty, session_id: setup.session_id.clone() };
    Ok(Container::open(Arc::new(state), &setup.container, options, RealWorld::default().now())?)
}

/// Holds the folder against any other agent.
fn hold(root: &RealDisk) -> Result<OwnedFd, OpenError> {
    match root.lock_root() {
        Ok(Some(hold)) => Ok(hold),
        Ok(None) => Err(OpenError::Lock(LockError::Held { pid: None })),
        Err(source) => Err(OpenError::Io { path: root.path().to_owned(), source }),
    }
}

/// Whether another agent, of another home, works on the folder now. A folder that is not there is nobody's.
pub fn is_held(root: &Path) -> bool {
    RealDisk::open(root).is_ok_and(|disk| matches!(disk.lock_root(), Ok(None)))
}

fn ignored(rules: &Arc<SharedRules>) -> Ignored {
    let rules = rules.clone();
    Arc::new(move |path: &str, is_dir: bool| rules.get().ignored(path, is_dir))
}

/// Bytes. Reading a file of this size once less is worth that its digest is known late.
const UNREAD_FROM: u64 = 8 * 1024 * 1024;

fn engine_options(setup: &FolderSetup, fold: bool) -> EngineOptions {
    EngineOptions {
        max_file_size: setup.max_file_size,
        unread_from: UNREAD_FROM,
        max_delete: setup.max_delete,
        concurrency: setup.concurrency,
        batch: BatchOptions::default(),
        threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
        fold,
        quiet: setup.debounce,
        confirm: CONFIRM,
        origin: setup.http.origin.clone(),
        namespace: setup.namespace.clone(),
    }
}

/// A new identity: 128 random bits.
fn new_id() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}
