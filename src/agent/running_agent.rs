//! [`Agent`]: the running agent, with its folders, and its answers to the requests of the control API.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::local::FolderChange;

use super::change;
use super::control::{self, ControlRequest, ControlResponse, PlannedStep};
use super::inbox::FolderCommand;
use super::status::SyncState;
use super::supervisor::{AgentOptions, LOCK_RETRY, StartError, Supervisor};

/// An agent that was killed a moment ago may still hold its socket and its locks.
const MAX_LOCK_WAIT: Duration = Duration::from_millis(500);
/// An approval that takes longer is answered with [`ControlResponse::Noted`].
const MAX_APPROVAL_WAIT: Duration = Duration::from_secs(2);

/// A running agent: the supervisor of its folders, and the control socket.
pub(crate) struct Agent {
    supervisor: Arc<Supervisor>,
    socket: PathBuf,
    control: tokio::task::JoinHandle<()>,
}

impl Deref for Agent {
    type Target = Supervisor;

    fn deref(&self) -> &Supervisor {
        &self.supervisor
    }
}

impl Agent {
    /// Starts to sync. Fails if another agent runs, or works on one of the folders.
    pub(crate) async fn start(options: AgentOptions) -> Result<Self, StartError> {
        let socket = options.socket.clone();
        let deadline = Instant::now() + MAX_LOCK_WAIT;
        let listener = loop {
            match control::bind(&socket) {
                Ok(listener) => break listener,
                Err(source) if source.kind() != io::ErrorKind::AddrInUse => {
                    return Err(StartError::Socket { path: socket, source });
                }
                Err(_) if Instant::now() >= deadline => return Err(StartError::AlreadyRunning(socket)),
                Err(_) => tokio::time::sleep(LOCK_RETRY).await,
            }
        };
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
            async move { answer(&supervisor, request).await }
        }));
        Ok(Self { supervisor, socket, control })
    }

    /// Returns when the proxy refuses the token of a folder.
    pub(crate) async fn token_refused(&self) {
        let mut changes = self.changes();
        while !self.has_refused_token() {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// Returns when a command asks over the socket to read the config again.
    pub(crate) async fn reload_wanted(&self) {
        self.reload_request.notified().await;
    }

    /// Requests a full scan and a cycle in every folder.
    pub(crate) fn sync_now(&self) {
        drop(self.send_to(None, FolderCommand::Sync));
    }

    /// Finishes or abandons the requests in flight, and saves. Takes at most 10 s.
    pub(crate) async fn stop(self) {
        self.control.abort();
        self.supervisor.stop().await;
        control::remove(&self.socket);
    }
}

/// Answers one request.
async fn answer(supervisor: &Supervisor, request: ControlRequest) -> ControlResponse {
    match request {
        ControlRequest::Status => status(supervisor),
        ControlRequest::Sync { folder } => match sync(supervisor, folder.as_deref()).await {
            true => status(supervisor),
            false => no_such_folder(),
        },
        ControlRequest::Wait { timeout_s } => {
            let wait = wait(supervisor);
            match timeout_s {
                // The status shows what is not done.
                Some(s) => drop(tokio::time::timeout(Duration::from_secs(s), wait).await),
                None => wait.await,
            }
            status(supervisor)
        }
        ControlRequest::Plan { folder } => plan(supervisor, folder.as_deref()).await,
        ControlRequest::Pause { for_s } => done_or_failed(supervisor.pause.pause(for_s)),
        ControlRequest::Resume => done_or_failed(supervisor.pause.resume()),
        ControlRequest::Held => ControlResponse::Held { plans: supervisor.halts() },
        ControlRequest::Approve { id, reject } => approve(supervisor, id, reject).await,
        ControlRequest::Reload => {
            supervisor.reload_request.notify_one();
            ControlResponse::Done
        }
        ControlRequest::Change { folder, change } => change_file(supervisor, &folder, change).await,
    }
}

fn status(supervisor: &Supervisor) -> ControlResponse {
    ControlResponse::Status(Box::new(supervisor.status()))
}

/// False: no such folder.
async fn sync(supervisor: &Supervisor, folder: Option<&Path>) -> bool {
    let syncs = supervisor.send_to(folder, FolderCommand::Sync);
    let has_folder = !syncs.is_empty();
    for (_, done) in syncs {
        // An error is a task that ended: nothing is left to wait for.
        let _ = done.await;
    }
    has_folder
}

/// Returns when every folder is in sync or needs a person.
async fn wait(supervisor: &Supervisor) {
    let mut changes = supervisor.changes();
    sync(supervisor, None).await;
    loop {
        let status = supervisor.status();
        let is_settled = status.folders.iter().all(|f| f.in_sync || f.needs_person());
        if status.in_sync || is_settled || changes.changed().await.is_err() {
            return;
        }
    }
}

async fn plan(supervisor: &Supervisor, folder: Option<&Path>) -> ControlResponse {
    let plans = supervisor.send_to(folder, FolderCommand::Plan);
    if plans.is_empty() {
        return no_such_folder();
    }
    let failed = |why, state| ControlResponse::Failed { why, state: Some(state) };
    let mut steps = Vec::new();
    for (root, plan) in plans {
        match plan.await {
            Ok(Ok(plan)) => steps.extend(PlannedStep::list(&root, &plan)),
            Ok(Err(why)) => return failed(format!("{}: {}", root.display(), why.reason), why.state),
            Err(_) => return failed(format!("{}: the agent stops", root.display()), SyncState::Stopped),
        }
    }
    ControlResponse::Plan { steps }
}

async fn approve(supervisor: &Supervisor, id: String, reject: bool) -> ControlResponse {
    let (answer, done) = tokio::sync::oneshot::channel();
    let command = FolderCommand::Approve { id: id.clone(), reject, answer };
    if supervisor.commands_for_halt(&id).is_some_and(|commands| commands.send(command).is_ok()) {
        match tokio::time::timeout(MAX_APPROVAL_WAIT, done).await {
            Ok(Ok(Ok(true))) => return ControlResponse::Done,
            Ok(Ok(Err(why))) => return ControlResponse::Failed { why, state: None },
            Ok(Ok(Ok(false)) | Err(_)) => {}
            Err(_) => return ControlResponse::Noted,
        }
    }
    ControlResponse::NotFound { what: format!("no plan {id} is held; `memsync approve --list` shows those that are") }
}

async fn change_file(supervisor: &Supervisor, folder: &Path, change: FolderChange) -> ControlResponse {
    let Some(commands) = supervisor.commands_of(folder) else {
        return ControlResponse::NotFound { what: format!("{}: the agent does not sync it", folder.display()) };
    };
    change::request(|request| commands.send(FolderCommand::Change(request)).is_ok(), folder, change).await
}

fn no_such_folder() -> ControlResponse {
    ControlResponse::NotFound { what: "no such folder is configured".to_owned() }
}

fn done_or_failed(result: Result<(), String>) -> ControlResponse {
    match result {
        Ok(()) => ControlResponse::Done,
        Err(why) => ControlResponse::Failed { why, state: None },
    }
}
