//! [`Agent`]: all folders of this machine, and the control socket.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::disk::real::RealDisk;
use crate::state::{Lock, LockError, Pause};

use super::change;
use super::control::{self, PlannedStep, Request, Response};
use super::last_known::{is_over, last_known};
use super::root::find_root_halt;
use super::session::{FolderSetup, is_held};
use super::shared::{Shared, halt_status, lock};
use super::standstill::Standstill;
use super::status::{AgentStatus, FolderStatus, HaltStatus, Pending, ProxyStatus, State, Status};
use super::worker::{Command, Paused, Worker, pause_reason};

/// An agent that was killed a moment ago may still hold its socket and its locks.
const LAST_BREATH: Duration = Duration::from_millis(500);
const BREATH: Duration = Duration::from_millis(25);
/// How long a decision may take to be carried out; then the caller hears that it is noted.
const DECISION: Duration = Duration::from_secs(2);
/// The longest that a stop takes.
const STOP: Duration = Duration::from_millis(9500);

/// What an agent syncs.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    pub device: String,
    pub proxy_url: String,
    /// Keeps what is true of all folders: that syncing is paused.
    pub state_dir: PathBuf,
    /// Where it listens for `memsync status` and the like.
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

struct FolderHandle {
    /// As the config names it.
    path: PathBuf,
    root: PathBuf,
    commands: mpsc::UnboundedSender<Command>,
    wake: Arc<Notify>,
    shared: Arc<Shared>,
    /// Ends the worker's scan and cycle for good.
    quit: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl FolderHandle {
    /// Whether a request for this folder, or for all, is meant for it.
    fn is_asked(&self, folder: Option<&Path>) -> bool {
        folder.is_none_or(|folder| folder == self.root || folder == self.path)
    }
}

struct Inner {
    options: Mutex<AgentOptions>,
    folders: Mutex<Vec<FolderHandle>>,
    /// For folders that are added; the others have been told.
    pause: Mutex<Option<Pause>>,
    started: Instant,
    changed: watch::Sender<u64>,
    /// Asked for by [`Request::Reload`]; the owner of the config does it.
    reload: Notify,
}

/// A running agent: one thread a folder, and the control socket.
pub struct Agent {
    inner: Arc<Inner>,
    socket: PathBuf,
    control: tokio::task::JoinHandle<()>,
}

impl Agent {
    /// Starts syncing.
    ///
    /// # Errors
    /// When another agent runs, or works on one of the folders.
    pub async fn start(options: AgentOptions) -> Result<Self, StartError> {
        let socket = options.socket.clone();
        let patience = Instant::now() + LAST_BREATH;
        let listener = loop {
            match control::bind(&socket) {
                Ok(listener) => break listener,
                Err(e) if e.kind() != io::ErrorKind::AddrInUse => {
                    return Err(StartError::Socket { path: socket, source: e });
                }
                Err(_) if Instant::now() >= patience => return Err(StartError::AlreadyRunning(socket)),
                Err(_) => tokio::time::sleep(BREATH).await,
            }
        };
        let pause = match Pause::load(&options.state_dir, Timestamp::now()) {
            Ok(pause) => pause,
            Err(source) => {
                control::remove(&socket);
                return Err(StartError::Io { path: options.state_dir, source });
            }
        };
        if let Some(pause) = &pause {
            tracing::warn!("{}", pause_reason(pause.until));
        }
        let inner = Arc::new(Inner {
            options: Mutex::new(options.clone()),
            folders: Mutex::default(),
            pause: Mutex::new(pause),
            started: Instant::now(),
            changed: watch::Sender::new(0),
            reload: Notify::new(),
        });
        for setup in options.folders {
            let added = loop {
                match inner.add(setup.clone()) {
                    Err(StartError::Locked { .. }) if Instant::now() < patience => tokio::time::sleep(BREATH).await,
                    added => break added,
                }
            };
            if let Err(e) = added {
                inner.stop().await;
                control::remove(&socket);
                return Err(e);
            }
        }
        let answering = inner.clone();
        let control = tokio::spawn(control::serve(listener, move |request| {
            let inner = answering.clone();
            async move { inner.answer(request).await }
        }));
        Ok(Self { inner, socket, control })
    }

    /// Goes over to other settings: folders that are new are started, those gone are stopped.
    ///
    /// # Errors
    /// When a new folder cannot be started; the others go on.
    pub async fn reload(&self, options: AgentOptions) -> Result<(), StartError> {
        let wanted: BTreeSet<PathBuf> = options.folders.iter().map(|f| f.root.clone()).collect();
        let gone: Vec<FolderHandle> = {
            let mut folders = lock(&self.inner.folders);
            let (stay, gone) = std::mem::take(&mut *folders).into_iter().partition(|f| wanted.contains(&f.root));
            *folders = stay;
            gone
        };
        stop_all(gone).await;
        let mut result = Ok(());
        for setup in options.folders.iter().cloned() {
            let running = {
                let mut folders = lock(&self.inner.folders);
                let handle = folders.iter_mut().find(|f| f.root == setup.root);
                handle.map(|f| {
                    f.path.clone_from(&setup.path);
                    // A worker that has gone is noticed when the agent stops.
                    drop(f.commands.send(Command::Reload(Box::new(setup.clone()))));
                })
            };
            if running.is_none() {
                result = result.and(self.inner.add(setup));
            }
        }
        *lock(&self.inner.options) = options;
        result
    }

    /// Returns when the proxy refuses the token of a folder.
    pub async fn token_refused(&self) {
        let mut changes = self.changes();
        loop {
            let is_refused = |f: &FolderHandle| f.shared.status().state == State::AuthRequired;
            if lock(&self.inner.folders).iter().any(is_refused) {
                return;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// Gives every folder `token`, unless they have it already or sync with another proxy than `origin`. True: a
    /// folder has a new token now.
    pub fn replace_token(&self, origin: &str, token: &SecretString) -> bool {
        let folders = lock(&self.inner.folders);
        let mut options = lock(&self.inner.options);
        let mut is_new = false;
        for setup in options.folders.iter_mut().filter(|setup| setup.http.origin == origin) {
            if setup.http.token.expose_secret() == token.expose_secret() {
                continue;
            }
            setup.http.token = token.clone();
            is_new = true;
            if let Some(folder) = folders.iter().find(|f| f.root == setup.root) {
                // A worker that has gone is noticed when the agent stops.
                let _ = folder.commands.send(Command::Reload(Box::new(setup.clone())));
            }
        }
        is_new
    }

    /// Returns when somebody asked over the socket that the config be read again.
    pub async fn reload_wanted(&self) {
        self.inner.reload.notified().await;
    }

    /// A full scan and a cycle in every folder, soon.
    pub fn sync_now(&self) {
        for folder in lock(&self.inner.folders).iter() {
            let (answer, _) = oneshot::channel();
            // A worker that has gone is noticed when the agent stops.
            let _ = folder.commands.send(Command::Sync(answer));
            folder.wake.notify_one();
        }
    }

    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Counts the changes of the status.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Finishes or abandons what is in flight, and saves. Within 10 s.
    pub async fn stop(self) {
        self.control.abort();
        self.inner.stop().await;
        control::remove(&self.socket);
    }
}

impl Inner {
    fn add(&self, setup: FolderSetup) -> Result<(), StartError> {
        RealDisk::create_private(&setup.state_dir)
            .map_err(|source| StartError::Io { path: setup.state_dir.clone(), source })?;
        let held =
            Lock::acquire(&setup.lock).map_err(|source| StartError::Locked { folder: setup.root.clone(), source })?;
        if is_held(&setup.root) {
            return Err(StartError::Locked { folder: setup.root, source: LockError::Held { pid: None } });
        }
        let shared = Arc::new(Shared::new(&setup, self.changed.clone()));
        let (commands, receiver) = mpsc::unbounded_channel();
        let wake = Arc::new(Notify::new());
        let quit = Arc::new(AtomicBool::new(false));
        let (path, root) = (setup.path.clone(), setup.root.clone());
        let mut worker = Worker::new(setup, shared.clone(), receiver, wake.clone(), quit.clone(), held);
        worker.paused = lock(&self.pause).and_then(|pause| Paused::of(&pause));
        // A runtime of its own: requests and files are then served by one thread, which saves two switches a request.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| StartError::Io { path: root.clone(), source })?;
        let thread = std::thread::Builder::new()
            .name("folder".to_owned())
            .spawn(move || runtime.block_on(worker.run()))
            .map_err(|source| StartError::Io { path: root.clone(), source })?;
        lock(&self.folders).push(FolderHandle { path, root, commands, wake, shared, quit, thread });
        Ok(())
    }

    async fn stop(&self) {
        let folders = std::mem::take(&mut *lock(&self.folders));
        stop_all(folders).await;
    }

    fn status(&self) -> Status {
        let folders = lock(&self.folders);
        let options = lock(&self.options);
        let proxy = folders.iter().map(|f| f.shared.proxy()).reduce(ProxyStatus::merge);
        let mut recent: Vec<_> = folders.iter().flat_map(|f| f.shared.recent()).collect();
        recent.sort_by_key(|r| std::cmp::Reverse(r.at));
        recent.truncate(50);
        let agent = AgentStatus {
            running: true,
            pid: Some(std::process::id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            start_command: None,
        };
        let proxy = proxy.unwrap_or_else(|| ProxyStatus::unasked(&options.proxy_url));
        let all = folders.iter().map(|f| f.shared.status()).collect();
        Status { recent, ..summary(agent, options.device.clone(), proxy, all) }
    }

    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Sync { folder } => match self.sync(folder.as_deref()).await {
                true => Response::Status(Box::new(self.status())),
                false => Response::NotFound { what: "no such folder is configured".to_owned() },
            },
            Request::Wait { timeout_s } => {
                let wait = self.wait();
                match timeout_s {
                    // What is missing shows in the status.
                    Some(s) => drop(tokio::time::timeout(Duration::from_secs(s), wait).await),
                    None => wait.await,
                }
                Response::Status(Box::new(self.status()))
            }
            Request::Plan { folder } => self.plan(folder.as_deref()).await,
            Request::Pause { for_s } => self.pause(for_s),
            Request::Resume => self.resume(),
            Request::Held => Response::Held { plans: self.held() },
            Request::Approve { id, reject } => self.approve(id, reject).await,
            Request::Reload => {
                self.reload.notify_one();
                Response::Done
            }
            Request::Change { folder, change } => {
                let commands =
                    lock(&self.folders).iter().find(|f| f.is_asked(Some(&folder))).map(|f| f.commands.clone());
                match commands {
                    Some(commands) => change::request(&commands, &folder, change).await,
                    None => Response::NotFound { what: format!("{}: the agent does not sync it", folder.display()) },
                }
            }
        }
    }

    /// Pauses all folders, once that is kept for the next start.
    fn pause(&self, for_s: Option<u64>) -> Response {
        let pause = Pause::new(for_s, Timestamp::now());
        let dir = lock(&self.options).state_dir.clone();
        if let Err(e) = pause.save(&dir) {
            return Response::Failed { why: format!("not paused: {}: {e}", dir.display()), state: None };
        }
        *lock(&self.pause) = Some(pause);
        self.tell_all(|| Command::Pause(pause));
        Response::Done
    }

    fn resume(&self) -> Response {
        *lock(&self.pause) = None;
        self.tell_all(|| Command::Resume);
        let dir = lock(&self.options).state_dir.clone();
        match Pause::forget(&dir) {
            Ok(()) => Response::Done,
            Err(e) => {
                let why = format!("syncing again, but the next start pauses again: {}: {e}", dir.display());
                Response::Failed { why, state: None }
            }
        }
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        for folder in lock(&self.folders).iter() {
            // A worker that has gone is noticed when the agent stops.
            let _ = folder.commands.send(command());
        }
    }

    /// False: no folder of that name.
    async fn sync(&self, folder: Option<&Path>) -> bool {
        let mut answers = Vec::new();
        for handle in lock(&self.folders).iter().filter(|f| f.is_asked(folder)) {
            let (answer, done) = oneshot::channel();
            if handle.commands.send(Command::Sync(answer)).is_ok() {
                answers.push(done);
            }
        }
        let any = !answers.is_empty();
        for answer in answers {
            // An error is a worker that stopped: nothing is left to wait for.
            let _ = answer.await;
        }
        any
    }

    async fn plan(&self, folder: Option<&Path>) -> Response {
        let mut asked = Vec::new();
        for handle in lock(&self.folders).iter().filter(|f| f.is_asked(folder)) {
            let (answer, plan) = oneshot::channel();
            if handle.commands.send(Command::Plan(answer)).is_ok() {
                asked.push((handle.root.clone(), plan));
            }
        }
        if asked.is_empty() {
            return Response::NotFound { what: "no such folder is configured".to_owned() };
        }
        let failed = |why, state| Response::Failed { why, state: Some(state) };
        let mut steps = Vec::new();
        for (root, plan) in asked {
            match plan.await {
                Ok(Ok(plan)) => steps.extend(PlannedStep::of(&root, &plan)),
                Ok(Err(why)) => return failed(format!("{}: {}", root.display(), why.reason), why.state),
                Err(_) => return failed(format!("{}: the agent stops", root.display()), State::Stopped),
            }
        }
        Response::Plan { steps }
    }

    async fn wait(&self) {
        let mut changed = self.changed.subscribe();
        self.sync(None).await;
        loop {
            let status = self.status();
            let rests = status.folders.iter().all(|f| f.in_sync || f.needs_person());
            if status.in_sync || rests || changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn held(&self) -> Vec<(PathBuf, HaltStatus)> {
        let folders = lock(&self.folders);
        let of = |f: &FolderHandle| f.shared.halts().into_iter().map(|halt| (f.root.clone(), halt)).collect::<Vec<_>>();
        folders.iter().flat_map(of).collect()
    }

    async fn approve(&self, id: String, reject: bool) -> Response {
        let has_it = |f: &&FolderHandle| f.shared.halts().iter().any(|halt| halt.id.as_deref() == Some(&id));
        let holder = lock(&self.folders).iter().find(has_it).map(|f| f.commands.clone());
        let (answer, done) = oneshot::channel();
        if let Some(holder) = holder
            && holder.send(Command::Approve { id: id.clone(), reject, answer }).is_ok()
        {
            match tokio::time::timeout(DECISION, done).await {
                Ok(Ok(Ok(true))) => return Response::Done,
                Ok(Ok(Err(why))) => return Response::Failed { why, state: None },
                Ok(Ok(Ok(false)) | Err(_)) => {}
                Err(_) => return Response::Noted,
            }
        }
        Response::NotFound { what: format!("no plan {id} is held; `memsync approve --list` shows those that are") }
    }
}

async fn stop_all(folders: Vec<FolderHandle>) {
    for folder in &folders {
        folder.quit.store(true, Ordering::Relaxed);
        // A worker that has ended already is joined below.
        let _ = folder.commands.send(Command::Stop);
    }
    let joined = tokio::task::spawn_blocking(move || {
        for folder in folders {
            if folder.thread.join().is_err() {
                tracing::error!(folder = %folder.root.display(), "the folder's thread panicked");
            }
        }
    });
    // Whatever hangs then (a dead network disk, say) is left as a crash would leave it.
    match tokio::time::timeout(STOP, joined).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::error!("stopping: {e}"),
        Err(_) => tracing::warn!("a folder does not come to its end; it is left as it is"),
    }
}

/// The status of the whole from that of its folders: the worst state counts.
fn summary(agent: AgentStatus, device: String, proxy: ProxyStatus, folders: Vec<FolderStatus>) -> Status {
    let worst = folders.iter().max_by_key(|f| f.state);
    let (state, reason) = worst.map_or((State::Idle, None), |f| (f.state, f.reason.clone()));
    let in_sync = !folders.is_empty() && folders.iter().all(|f| f.in_sync);
    Status { schema: 1, state, reason, in_sync, agent, device, proxy, folders, recent: Vec::new() }
}

/// The status while no agent runs: what the last one noted, or what the containers hold. `start`: the command that
/// starts one.
pub fn offline_status(setups: &[FolderSetup], device: &str, proxy_url: &str, start: &str) -> Status {
    let agent = AgentStatus {
        running: false,
        pid: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: 0,
        start_command: Some(start.to_owned()),
    };
    let folders = setups.iter().map(|setup| offline_folder(setup, start)).collect();
    summary(agent, device.to_owned(), ProxyStatus::unasked(proxy_url), folders)
}

fn offline_folder(setup: &FolderSetup, start: &str) -> FolderStatus {
    let reason = Some(format!("no agent runs; start it with `{start}`"));
    let known = last_known(setup);
    let known = match &known.halt {
        Some(halt) if is_over(setup, halt) => {
            let pending = Pending { held_delete: 0, ..known.pending };
            FolderStatus { halt: None, pending, ..known }
        }
        _ => known,
    };
    with_root_halt(FolderStatus { reason, ..known }, setup)
}

/// The status with what holds the folder now, as far as that shows without an agent.
fn with_root_halt(mut status: FolderStatus, setup: &FolderSetup) -> FolderStatus {
    let was_of_root = status.halt.as_ref().is_some_and(|halt| halt.kind.starts_with("root_"));
    status.halt = status.halt.filter(|_| !was_of_root);
    match find_root_halt(setup) {
        Ok(None) => {}
        Ok(Some(halt)) => {
            let halt = halt_status(&halt, &[]);
            (status.state, status.reason) = (State::Halted, Some(halt.reason.clone()));
            status.halt = Some(halt);
        }
        Err(e) => {
            let why = Standstill::from(&e);
            (status.state, status.waits_for, status.reason) = (why.state, why.waits_for, Some(why.reason));
        }
    }
    status
}
