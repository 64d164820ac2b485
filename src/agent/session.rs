//! [`Session`]: one folder opened for syncing, from its directories to its engine.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
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
use super::rules::{FolderRules, Look, SharedRules};
use super::world::{RealWorld, World};

/// The engine over the real world.
pub type RealEngine = Engine<RealDisk, HttpRemote, RealWorld>;

/// How far apart two scans must be to prove a file deleted: longer than any editor takes to save.
pub const CONFIRM: Duration = Duration::from_millis(100);

/// All there is to know of one folder.
#[derive(Debug, Clone)]
pub struct FolderSetup {
    /// The folder itself, absolute.
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
        let world = Arc::new(RealWorld::default());
        let io_at = |path: &PathBuf| {
            let path = path.clone();
            move |source| OpenError::Io { path, source }
        };
        let state = RealDisk::create_private(&setup.state_dir).map_err(io_at(&setup.state_dir))?;
        let options = Options { format: setup.format, pretty: setup.pretty, session_id: setup.session_id.clone() };
        let (container, opened) = Container::open(Arc::new(state), &setup.container, options, world.now())?;
        let root = Arc::new(open_root(setup)?);
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
        let mut engine = Engine::open(parts, &new_id())?;
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

    /// The gate for a root that was moved, replaced or unmounted since it was opened.
    ///
    /// # Errors
    /// Which of them.
    pub fn check_path(&self) -> Result<(), CycleError> {
        match self.root.root_identity() {
            Ok(identity) if identity.is_same() => Ok(()),
            Ok(identity) if identity.now.is_none() => Err(CycleError::Halted(missing(self.root.path()))),
            Ok(_) => Err(CycleError::Halted(Halt::RootChanged(format!(
                "{} is another folder than before; bring the old one back, or set the new one up with `memsync init`",
                self.root.path().display()
            )))),
            Err(source) => Err(CycleError::Folder { what: "looking at the folder", source }),
        }
    }
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
pub fn is_held(root: &std::path::Path) -> bool {
    RealDisk::open(root).is_ok_and(|disk| matches!(disk.lock_root(), Ok(None)))
}

fn missing(root: &std::path::Path) -> Halt {
    Halt::RootMissing(format!(
        "{} is not there; if it was moved or unmounted, bring it back (nothing is deleted meanwhile)",
        root.display()
    ))
}

fn open_root(setup: &FolderSetup) -> Result<RealDisk, OpenError> {
    RealDisk::open(&setup.root).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CycleError::Halted(missing(&setup.root)).into(),
        io::ErrorKind::NotADirectory => CycleError::Halted(Halt::RootChanged(format!(
            "{} is no folder (a symlink is not followed; name the folder itself)",
            setup.root.display()
        )))
        .into(),
        _ => OpenError::Io { path: setup.root.clone(), source },
    })
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
