//! [`Supervisor`]: starts, reloads and stops the tasks of all folders.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::disk::real::RealDisk;
use crate::state::{FolderLock, LockError};

use super::folder_task::FolderTask;
use super::inbox::{CommandQueue, CommandSender, FolderCommand, TaskInbox};
use super::pause::PauseSwitch;
use super::root::is_in_use;
use super::setup::FolderSetup;
use super::status::{AgentStatus, HaltStatus, ProxyStatus, Status, SyncState};
use super::status_cell::{MAX_RECENT_ACTIONS, StatusCell, lock};
use super::status_file::summarize;

/// The time between two tries to get the lock or socket of a dying agent.
pub(super) const LOCK_RETRY: Duration = Duration::from_millis(25);
const MAX_STOP: Duration = Duration::from_millis(9500);

/// The settings of an agent.
#[derive(Debug, Clone)]
pub(crate) struct AgentOptions {
    pub device: String,
    pub proxy_url: String,
    /// Has the file that keeps a pause.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    pub folders: Vec<FolderSetup>,
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("an agent runs already (its socket is {}); see `memsync status`", .0.display())]
    AlreadyRunning(PathBuf),
    #[error("the control socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("{}: {source}; try again when it has ended, or stop it", folder.display())]
    Locked { folder: PathBuf, source: LockError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The task of one folder, as the supervisor sees it.
struct FolderHandle {
    /// The folder as the config names it.
    path: PathBuf,
    root: PathBuf,
    commands: CommandSender,
    status: Arc<StatusCell>,
    /// Ends the task's scan or cycle.
    quit: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl FolderHandle {
    /// False: the task has ended. The stop of the agent reports that.
    fn send(&self, command: FolderCommand) -> bool {
        self.commands.send(command).is_ok()
    }

    /// True: a request for this folder, or for all, is meant for it.
    fn matches(&self, folder: Option<&Path>) -> bool {
        folder.is_none_or(|folder| folder == self.root || folder == self.path)
    }
}

/// The tasks of all folders.
pub(crate) struct Supervisor {
    options: Mutex<AgentOptions>,
    folders: Mutex<Vec<FolderHandle>>,
    pub(super) pause: PauseSwitch,
    started: Instant,
    changed: watch::Sender<u64>,
    /// Notified when a command asks to reload. The owner of the config reads it again.
    pub(super) reload_request: Notify,
}

impl Supervisor {
    /// Starts all folders. Waits for the locks of a dying agent until `deadline`.
    pub(super) async fn start(options: AgentOptions, deadline: Instant) -> Result<Self, StartError> {
        let pause = PauseSwitch::load(options.state_dir.clone())
            .map_err(|source| StartError::Io { path: options.state_dir.clone(), source })?;
        let this = Self {
            options: Mutex::new(options.clone()),
            folders: Mutex::default(),
            pause,
            started: Instant::now(),
            changed: watch::Sender::new(0),
            reload_request: Notify::new(),
        };
        for setup in options.folders {
            let added = loop {
                match this.add(setup.clone()) {
                    Err(StartError::Locked { .. }) if Instant::now() < deadline => {
                        tokio::time::sleep(LOCK_RETRY).await;
                    }
                    added => break added,
                }
            };
            if let Err(e) = added {
                this.stop().await;
                return Err(e);
            }
        }
        Ok(this)
    }

    /// Starts the task of a folder.
    fn add(&self, setup: FolderSetup) -> Result<(), StartError> {
        let (path, root) = (setup.folder.path.clone(), setup.root.clone());
        RealDisk::create_private(&setup.state_dir)
            .map_err(|source| StartError::Io { path: setup.state_dir.clone(), source })?;
        let held =
            FolderLock::acquire(&setup.lock).map_err(|source| StartError::Locked { folder: root.clone(), source })?;
        if is_in_use(&root) {
            return Err(StartError::Locked { folder: root, source: LockError::Held { pid: None } });
        }
        let status = Arc::new(StatusCell::new(&setup, self.changed.clone()));
        let (commands, receiver) = mpsc::unbounded_channel();
        let inbox = TaskInbox::new(CommandQueue::new(receiver), self.pause.subscribe());
        let task = FolderTask::new(setup, inbox, status.clone(), held);
        let quit = task.quit.clone();
        // One thread serves requests and files, which saves two switches a request.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| StartError::Io { path: root.clone(), source })?;
        let thread = std::thread::Builder::new()
            .name("folder".to_owned())
            .spawn(move || runtime.block_on(task.run()))
            .map_err(|source| StartError::Io { path: root.clone(), source })?;
        lock(&self.folders).push(FolderHandle { path, root, commands, status, quit, thread });
        Ok(())
    }

    /// Applies other settings: starts new folders, and stops those that are gone. If a new folder cannot be started,
    /// the others go on.
    pub(crate) async fn reload(&self, options: AgentOptions) -> Result<(), StartError> {
        let wanted: BTreeSet<PathBuf> = options.folders.iter().map(|f| f.root.clone()).collect();
        let gone = lock(&self.folders).extract_if(.., |f| !wanted.contains(&f.root)).collect();
        stop_all(gone).await;
        let mut result = Ok(());
        for setup in options.folders.iter().cloned() {
            if self.reload_running(&setup) {
                continue;
            }
            match self.add(setup) {
                // The caller gets the first error.
                Err(e) if result.is_err() => tracing::warn!("{e}"),
                Err(e) => result = Err(e),
                Ok(()) => {}
            }
        }
        *lock(&self.options) = options;
        result
    }

    /// False: the folder has no task.
    fn reload_running(&self, setup: &FolderSetup) -> bool {
        let mut folders = lock(&self.folders);
        let Some(folder) = folders.iter_mut().find(|f| f.root == setup.root) else { return false };
        folder.path.clone_from(&setup.folder.path);
        folder.send(FolderCommand::Reload(Box::new(setup.clone())));
        true
    }

    /// Gives `token` to the folders that sync with the proxy at `origin`. True: it is new to one of them.
    pub(crate) fn replace_token(&self, origin: &str, token: &SecretString) -> bool {
        let folders = lock(&self.folders);
        let mut options = lock(&self.options);
        let mut is_new = false;
        for setup in options.folders.iter_mut().filter(|setup| setup.http.origin == origin) {
            if setup.http.token.expose_secret() == token.expose_secret() {
                continue;
            }
            setup.http.token = token.clone();
            is_new = true;
            if let Some(folder) = folders.iter().find(|f| f.root == setup.root) {
                folder.send(FolderCommand::Reload(Box::new(setup.clone())));
            }
        }
        is_new
    }

    pub(super) fn has_refused_token(&self) -> bool {
        lock(&self.folders).iter().any(|f| f.status.status().state == SyncState::AuthRequired)
    }

    pub(super) async fn stop(&self) {
        let folders = std::mem::take(&mut *lock(&self.folders));
        stop_all(folders).await;
    }

    pub(crate) fn status(&self) -> Status {
        let folders = lock(&self.folders);
        let options = lock(&self.options);
        let proxy = folders.iter().map(|f| lock(&f.status.proxy).clone()).reduce(ProxyStatus::merge);
        let mut recent: Vec<_> = folders.iter().flat_map(|f| lock(&f.status.recent).clone()).collect();
        recent.sort_by_key(|r| std::cmp::Reverse(r.at));
        recent.truncate(MAX_RECENT_ACTIONS);
        let agent = AgentStatus {
            running: true,
            pid: Some(std::process::id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            start_command: None,
        };
        let proxy = proxy.unwrap_or_else(|| ProxyStatus::unasked(&options.proxy_url));
        let all = folders.iter().map(|f| f.status.status()).collect();
        Status { recent, ..summarize(agent, options.device.clone(), proxy, all) }
    }

    /// Sends a command to the folder, or to all, each with a channel for its answer. Returns the answers to come, by
    /// root.
    pub(super) fn send_to<T>(
        &self,
        folder: Option<&Path>,
        command: impl Fn(oneshot::Sender<T>) -> FolderCommand,
    ) -> Vec<(PathBuf, oneshot::Receiver<T>)> {
        let send = |f: &FolderHandle| {
            let (answer, answered) = oneshot::channel();
            f.send(command(answer)).then(|| (f.root.clone(), answered))
        };
        lock(&self.folders).iter().filter(|f| f.matches(folder)).filter_map(send).collect()
    }

    /// The commands of one folder's task. `None`: the agent does not sync the folder.
    pub(super) fn commands_of(&self, folder: &Path) -> Option<CommandSender> {
        lock(&self.folders).iter().find(|f| f.matches(Some(folder))).map(|f| f.commands.clone())
    }

    /// The commands of the task that has the halt `id`.
    pub(super) fn commands_for_halt(&self, id: &str) -> Option<CommandSender> {
        let has_halt = |f: &&FolderHandle| lock(&f.status.halts).iter().any(|halt| halt.id.as_deref() == Some(id));
        lock(&self.folders).iter().find(has_halt).map(|f| f.commands.clone())
    }

    /// All that waits for a person, by root.
    pub(super) fn halts(&self) -> Vec<(PathBuf, HaltStatus)> {
        let halts = |f: &FolderHandle| {
            lock(&f.status.halts).clone().into_iter().map(|h| (f.root.clone(), h)).collect::<Vec<_>>()
        };
        lock(&self.folders).iter().flat_map(halts).collect()
    }

    /// Counts the changes of the status.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

async fn stop_all(folders: Vec<FolderHandle>) {
    for folder in &folders {
        folder.quit.store(true, Ordering::Relaxed);
        folder.send(FolderCommand::Stop);
    }
    let joined = tokio::task::spawn_blocking(move || {
        for folder in folders {
            if folder.thread.join().is_err() {
                tracing::error!(folder = %folder.root.display(), "the folder's thread panicked");
            }
        }
    });
    // A folder that hangs, for example on a dead network disk, is left as a crash would leave it.
    match tokio::time::timeout(MAX_STOP, joined).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::error!("stopping: {e}"),
        Err(_) => tracing::warn!("a folder did not stop in time; the next start repairs what it left"),
    }
}
