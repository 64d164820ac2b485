//! [`Agent`]: the folders of this machine, and the control socket.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::disk::real::RealDisk;
use crate::local::FolderChange;
use crate::state::{FolderLock, LockError};

use super::change;
use super::commands::{CommandQueue, FolderCommand};
use super::control::{self, PlannedStep, Request, Response};
use super::folder_task::{FolderTask, TaskLinks};
use super::offline_status::summarize;
use super::pause::PauseSwitch;
use super::root::is_in_use;
use super::setup::FolderSetup;
use super::status::{AgentStatus, HaltStatus, ProxyStatus, State, Status};
use super::status_cell::{MAX_RECENT_ACTIONS, StatusCell, lock};

/// An agent that was killed a moment ago may still hold its socket and its locks.
const MAX_LOCK_WAIT: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_millis(25);
/// An approval that takes longer is answered with [`Response::Noted`].
const MAX_APPROVAL_WAIT: Duration = Duration::from_secs(2);
const MAX_STOP: Duration = Duration::from_millis(9500);

/// The settings of an agent.
#[derive(Debug, Clone)]
pub struct AgentOptions {
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
pub enum StartError {
    #[error("an agent runs already (its socket is {}); see `memsync status`", .0.display())]
    AlreadyRunning(PathBuf),
    #[error("the control socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("{}: {source}; stop the other one first", folder.display())]
    Locked { folder: PathBuf, source: LockError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A running agent: one thread a folder, and the control socket.
pub struct Agent {
    supervisor: Arc<Supervisor>,
    socket: PathBuf,
    control: tokio::task::JoinHandle<()>,
}

impl Agent {
    /// Starts to sync. Fails if another agent runs, or works on one of the folders.
    pub async fn start(options: AgentOptions) -> Result<Self, StartError> {
        let socket = options.socket.clone();
        let deadline = Instant::now() + MAX_LOCK_WAIT;
        let listener = bind_socket(&socket, deadline).await?;
        let supervisor = match Supervisor::start(options, deadline).await {
            Ok(supervisor) => Arc::new(supervisor),
            Err(e) => {
                control::remove(&socket);
                return Err(e);
            }
        };
        let answering = supervisor.clone();
        let control = tokio::spawn(control::serve(listener, move |request| {
            let supervisor = answering.clone();
            async move { supervisor.answer(request).await }
        }));
        Ok(Self { supervisor, socket, control })
    }

    /// Applies other settings: starts new folders, and stops those that are gone. If a new folder cannot be started, the
    /// others go on.
    pub async fn reload(&self, options: AgentOptions) -> Result<(), StartError> {
        self.supervisor.reload(options).await
    }

    /// Returns when the proxy refuses the token of a folder.
    pub async fn token_refused(&self) {
        let mut changes = self.changes();
        while !self.supervisor.has_refused_token() {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// Gives `token` to the folders that sync with the proxy at `origin`. True: it is new to one of them.
    pub fn replace_token(&self, origin: &str, token: &SecretString) -> bool {
        self.supervisor.replace_token(origin, token)
    }

    /// Returns when a command asks over the socket to read the config again.
    pub async fn reload_wanted(&self) {
        self.supervisor.reload_request.notified().await;
    }

    /// Requests a full scan and a cycle in every folder.
    pub fn sync_now(&self) {
        drop(self.supervisor.request_sync(None));
    }

    pub fn status(&self) -> Status {
        self.supervisor.status()
    }

    /// Counts the changes of the status.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.supervisor.changed.subscribe()
    }

    /// Finishes or abandons the requests in flight, and saves. Takes at most 10 s.
    pub async fn stop(self) {
        self.control.abort();
        self.supervisor.stop().await;
        control::remove(&self.socket);
    }
}

async fn bind_socket(socket: &Path, deadline: Instant) -> Result<UnixListener, StartError> {
    loop {
        match control::bind(socket) {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() != io::ErrorKind::AddrInUse => {
                return Err(StartError::Socket { path: socket.to_owned(), source: e });
            }
            Err(_) if Instant::now() >= deadline => return Err(StartError::AlreadyRunning(socket.to_owned())),
            Err(_) => tokio::time::sleep(LOCK_RETRY).await,
        }
    }
}

/// The task of one folder, as the supervisor sees it.
struct FolderHandle {
    /// The folder as the config names it.
    path: PathBuf,
    root: PathBuf,
    commands: mpsc::UnboundedSender<FolderCommand>,
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

/// Starts and stops the folders' tasks, and answers the control API.
struct Supervisor {
    options: Mutex<AgentOptions>,
    folders: Mutex<Vec<FolderHandle>>,
    pause: PauseSwitch,
    started: Instant,
    changed: watch::Sender<u64>,
    /// Notified by [`Request::Reload`]. The owner of the config reads it again.
    reload_request: Notify,
}

impl Supervisor {
    /// Starts all folders. Waits for the locks of a dying agent until `deadline`.
    async fn start(options: AgentOptions, deadline: Instant) -> Result<Self, StartError> {
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
        let (path, root) = (setup.path.clone(), setup.root.clone());
        RealDisk::create_private(&setup.state_dir)
            .map_err(|source| StartError::Io { path: setup.state_dir.clone(), source })?;
        let held =
            FolderLock::acquire(&setup.lock).map_err(|source| StartError::Locked { folder: root.clone(), source })?;
        if is_in_use(&root) {
            return Err(StartError::Locked { folder: root, source: LockError::Held { pid: None } });
        }
        let status = Arc::new(StatusCell::new(&setup, self.changed.clone()));
        let (commands, receiver) = mpsc::unbounded_channel();
        let quit = Arc::new(AtomicBool::new(false));
        let links = TaskLinks {
            commands: CommandQueue::new(receiver),
            pause: self.pause.subscribe(),
            quit: quit.clone(),
            status: status.clone(),
        };
        let task = FolderTask::new(setup, links, held);
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

    async fn reload(&self, options: AgentOptions) -> Result<(), StartError> {
        let wanted: BTreeSet<PathBuf> = options.folders.iter().map(|f| f.root.clone()).collect();
        let gone = lock(&self.folders).extract_if(.., |f| !wanted.contains(&f.root)).collect();
        stop_all(gone).await;
        let mut result = Ok(());
        for setup in options.folders.iter().cloned() {
            if !self.reload_running(&setup) {
                result = result.and(self.add(setup));
            }
        }
        *lock(&self.options) = options;
        result
    }

    /// False: the folder has no task.
    fn reload_running(&self, setup: &FolderSetup) -> bool {
        let mut folders = lock(&self.folders);
        let Some(folder) = folders.iter_mut().find(|f| f.root == setup.root) else { return false };
        folder.path.clone_from(&setup.path);
        folder.send(FolderCommand::Reload(Box::new(setup.clone())));
        true
    }

    fn replace_token(&self, origin: &str, token: &SecretString) -> bool {
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

    fn has_refused_token(&self) -> bool {
        lock(&self.folders).iter().any(|f| f.status.status().state == State::AuthRequired)
    }

    async fn stop(&self) {
        let folders = std::mem::take(&mut *lock(&self.folders));
        stop_all(folders).await;
    }

    fn status(&self) -> Status {
        let folders = lock(&self.folders);
        let options = lock(&self.options);
        let proxy = folders.iter().map(|f| f.status.proxy()).reduce(ProxyStatus::merge);
        let mut recent: Vec<_> = folders.iter().flat_map(|f| f.status.recent()).collect();
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

    /// Answers one request of the control API.
    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Status => self.status_response(),
            Request::Sync { folder } => match self.sync(folder.as_deref()).await {
                true => self.status_response(),
                false => no_such_folder(),
            },
            Request::Wait { timeout_s } => {
                let wait = self.wait();
                match timeout_s {
                    // The status shows what is not done.
                    Some(s) => drop(tokio::time::timeout(Duration::from_secs(s), wait).await),
                    None => wait.await,
                }
                self.status_response()
            }
            Request::Plan { folder } => self.plan(folder.as_deref()).await,
            Request::Pause { for_s } => done_or_failed(self.pause.pause(for_s)),
            Request::Resume => done_or_failed(self.pause.resume()),
            Request::Held => Response::Held { plans: self.held() },
            Request::Approve { id, reject } => self.approve(id, reject).await,
            Request::Reload => {
                self.reload_request.notify_one();
                Response::Done
            }
            Request::Change { folder, change } => self.change(&folder, change).await,
        }
    }

    fn status_response(&self) -> Response {
        Response::Status(Box::new(self.status()))
    }

    fn request_sync(&self, folder: Option<&Path>) -> Vec<oneshot::Receiver<()>> {
        let request = |f: &FolderHandle| {
            let (answer, done) = oneshot::channel();
            f.send(FolderCommand::Sync(answer)).then_some(done)
        };
        lock(&self.folders).iter().filter(|f| f.matches(folder)).filter_map(request).collect()
    }

    /// False: no such folder.
    async fn sync(&self, folder: Option<&Path>) -> bool {
        let requests = self.request_sync(folder);
        let has_folder = !requests.is_empty();
        for done in requests {
            // An error is a task that ended: nothing is left to wait for.
            let _ = done.await;
        }
        has_folder
    }

    async fn plan(&self, folder: Option<&Path>) -> Response {
        let request = |f: &FolderHandle| {
            let (answer, plan) = oneshot::channel();
            f.send(FolderCommand::Plan(answer)).then(|| (f.root.clone(), plan))
        };
        let requests: Vec<_> = lock(&self.folders).iter().filter(|f| f.matches(folder)).filter_map(request).collect();
        if requests.is_empty() {
            return no_such_folder();
        }
        let failed = |why, state| Response::Failed { why, state: Some(state) };
        let mut steps = Vec::new();
        for (root, plan) in requests {
            match plan.await {
                Ok(Ok(plan)) => steps.extend(PlannedStep::list(&root, &plan)),
                Ok(Err(why)) => return failed(format!("{}: {}", root.display(), why.reason), why.state),
                Err(_) => return failed(format!("{}: the agent stops", root.display()), State::Stopped),
            }
        }
        Response::Plan { steps }
    }

    /// Returns when every folder is in sync or needs a person.
    async fn wait(&self) {
        let mut changed = self.changed.subscribe();
        self.sync(None).await;
        loop {
            let status = self.status();
            let is_settled = status.folders.iter().all(|f| f.in_sync || f.needs_person());
            if status.in_sync || is_settled || changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn held(&self) -> Vec<(PathBuf, HaltStatus)> {
        let halts = |f: &FolderHandle| f.status.halts().into_iter().map(|h| (f.root.clone(), h)).collect::<Vec<_>>();
        lock(&self.folders).iter().flat_map(halts).collect()
    }

    async fn approve(&self, id: String, reject: bool) -> Response {
        let (answer, done) = oneshot::channel();
        let is_held = |f: &&FolderHandle| f.status.halts().iter().any(|halt| halt.id.as_deref() == Some(&id));
        let command = FolderCommand::Approve { id: id.clone(), reject, answer };
        if lock(&self.folders).iter().find(is_held).is_some_and(|f| f.send(command)) {
            match tokio::time::timeout(MAX_APPROVAL_WAIT, done).await {
                Ok(Ok(Ok(true))) => return Response::Done,
                Ok(Ok(Err(why))) => return Response::Failed { why, state: None },
                Ok(Ok(Ok(false)) | Err(_)) => {}
                Err(_) => return Response::Noted,
            }
        }
        Response::NotFound { what: format!("no plan {id} is held; `memsync approve --list` shows those that are") }
    }

    async fn change(&self, folder: &Path, change: FolderChange) -> Response {
        let commands = lock(&self.folders).iter().find(|f| f.matches(Some(folder))).map(|f| f.commands.clone());
        match commands {
            Some(commands) => {
                change::request(|request| commands.send(FolderCommand::Change(request)).is_ok(), folder, change).await
            }
            None => Response::NotFound { what: format!("{}: the agent does not sync it", folder.display()) },
        }
    }
}

fn no_such_folder() -> Response {
    Response::NotFound { what: "no such folder is configured".to_owned() }
}

fn done_or_failed(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::Done,
        Err(why) => Response::Failed { why, state: None },
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
        Err(_) => tracing::warn!("a folder does not come to its end; it is left as it is"),
    }
}
