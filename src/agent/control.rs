//! The control API of a running agent: requests and answers over a unix socket, one JSON document a line.
//!
//! The socket has mode 0600. Connections of another user are refused by their peer credentials.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::cycle::verb;
use super::status::{HaltStatus, Status, SyncState};
use crate::local::{ChangeOutcome, FolderChange};
use crate::sync::{Plan, PlanStep};

/// Longer lines are refused. A status with thousands of problems is far shorter.
const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// The beginning of the answer to a line that the agent does not understand.
pub(crate) const NOT_A_REQUEST: &str = "not a request";

/// A request to a running agent. `folder`: one of its folders; `None`: all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub(crate) enum ControlRequest {
    Status,
    /// Scans everything and runs cycles until nothing is left to do or one fails; then answers
    /// [`ControlResponse::Status`].
    Sync {
        folder: Option<PathBuf>,
    },
    /// As `Sync`, but waits through temporary failures until everything is in sync or needs a person; then answers
    /// [`ControlResponse::Status`]. `timeout_s`: in seconds; `None`: no limit.
    Wait {
        timeout_s: Option<u64>,
    },
    /// Plans a cycle and changes nothing. The answer is [`ControlResponse::Plan`].
    Plan {
        folder: Option<PathBuf>,
    },
    Pause {
        for_s: Option<u64>,
    },
    Resume,
    /// Lists the halts that wait for approval.
    Held,
    Approve {
        id: String,
        reject: bool,
    },
    /// Reads config and token again.
    Reload,
    /// Changes one file. The answer is [`ControlResponse::Changed`].
    Change {
        folder: PathBuf,
        change: FolderChange,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum ControlResponse {
    Status(Box<Status>),
    Plan {
        steps: Vec<PlannedStep>,
    },
    Done,
    Changed {
        outcome: ChangeOutcome,
    },
    /// The request is carried out when the folder's running cycle has ended.
    Noted,
    /// The halts that wait for approval, each with its folder.
    Held {
        plans: Vec<(PathBuf, HaltStatus)>,
    },
    /// There is no such folder or plan.
    NotFound {
        what: String,
    },
    /// `state`: the state of the folder that caused the failure, if known.
    Failed {
        why: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<SyncState>,
    },
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedStep {
    pub folder: PathBuf,
    pub path: String,
    pub action: String,
    /// The row of the decision table.
    pub row: u8,
}

impl PlannedStep {
    /// The steps of the plan for the folder `root`.
    pub(super) fn list(root: &Path, plan: &Plan) -> Vec<Self> {
        let step = |s: &PlanStep| Self {
            folder: root.to_owned(),
            path: s.path.to_string(),
            action: verb(&s.action).to_owned(),
            row: s.row,
        };
        plan.steps.iter().map(step).collect()
    }
}

/// An agent that does not give its status within this time is silent.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);
/// The time between two requests for the status, while the agent works on another request.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The agent listens but does not answer.
    #[error("the agent{} does not answer; {}", show_pid(*pid), remedy(*pid))]
    Silent { pid: Option<i32> },
    /// No agent runs.
    #[error("no agent answers at {}", .0.display())]
    NoAgent(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn show_pid(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn remedy(pid: Option<i32>) -> String {
    match pid {
        Some(pid) => {
            format!("if it was stopped, `kill -CONT {pid}` lets it go on; else `kill -KILL {pid}`, and start it again")
        }
        None => "if it was stopped, let it go on; else kill it, and start it again".to_owned(),
    }
}

/// Sends a request to the agent that listens at `path`. The agent may work on it for any time, as long as it gives its
/// status within 3 s.
///
/// # Errors
/// [`ControlError::NoAgent`] when no agent listens, [`ControlError::Silent`] when it does not answer.
pub(crate) async fn ask(path: &Path, request: &ControlRequest) -> Result<ControlResponse, ControlError> {
    if *request == ControlRequest::Status {
        return ask_for_status(path).await;
    }
    tokio::select! {
        biased;
        answer = ask_unlimited(path, request) => answer,
        silent = wait_until_silent(path) => Err(silent),
    }
}

/// Returns once the agent does not give its status in time.
pub(crate) async fn wait_until_silent(path: &Path) -> ControlError {
    loop {
        if let Err(silent @ ControlError::Silent { .. }) = ask_for_status(path).await {
            return silent;
        }
        tokio::time::sleep(PING_INTERVAL).await;
    }
}

async fn ask_for_status(path: &Path) -> Result<ControlResponse, ControlError> {
    let mut pid = None;
    let answer = exchange(path, &ControlRequest::Status, &mut pid);
    match tokio::time::timeout(STATUS_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ControlError::Silent { pid }),
    }
}

/// As [`ask`], but also waits for a silent agent.
pub(crate) async fn ask_unlimited(path: &Path, request: &ControlRequest) -> Result<ControlResponse, ControlError> {
    exchange(path, request, &mut None).await
}

/// Sends one request and reads its answer. `pid` gets the process id of the agent once it is connected.
async fn exchange(
    path: &Path,
    request: &ControlRequest,
    pid: &mut Option<i32>,
) -> Result<ControlResponse, ControlError> {
    let fail = |source| ControlError::Io { path: path.to_owned(), source };
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(ControlError::NoAgent(path.to_owned()));
        }
        // The backlog of the socket is full: the agent has accepted no connection for a long time.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(ControlError::Silent { pid: None }),
        Err(e) => return Err(fail(e)),
    };
    *pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(request).map_err(|e| fail(e.into()))?;
    line.push(b'\n');
    writer.write_all(&line).await.map_err(fail)?;
    let answer = read_line(&mut BufReader::new(reader)).await.map_err(fail)?;
    match answer {
        Some(line) => serde_json::from_slice(&line).map_err(|e| fail(e.into())),
        None => Err(fail(io::ErrorKind::UnexpectedEof.into())),
    }
}

async fn read_line(reader: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
    let read = tokio::io::AsyncReadExt::take(&mut *reader, limit).read_until(b'\n', &mut line).await?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if read >= MAX_LINE_BYTES => Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long")),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Listens at `path`. The socket of a dead agent is replaced.
///
/// # Errors
/// `AddrInUse` when an agent answers there already; as `bind(2)` otherwise.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "an agent runs already")),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    // The umask decides the mode at bind. So the socket is made under a temporary name, closed to others, and renamed.
    let fresh = path.with_extension(format!("sock.{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    let closed = std::fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .and_then(|()| std::fs::rename(&fresh, path));
    if let Err(e) = closed {
        let _ = std::fs::remove_file(&fresh);
        return Err(e);
    }
    Ok(listener)
}

/// Removes the socket. The next [`bind`] replaces one that stays.
pub(crate) fn remove(path: &Path) {
    if let Err(e) = std::fs::remove_file(path) {
        tracing::debug!("{}: {e}", path.display());
    }
}

/// Answers requests until dropped. `answer` runs once a request, many at a time.
pub(crate) async fn serve<F, A>(listener: UnixListener, answer: F)
where
    F: Fn(ControlRequest) -> A + Send + Sync + 'static,
    A: Future<Output = ControlResponse> + Send + 'static,
{
    let answer = Arc::new(answer);
    let me = rustix::process::geteuid().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("control socket: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(cred) if cred.uid() == me || cred.uid() == 0 => {}
            Ok(cred) => {
                tracing::warn!("control socket: a connection of user {} was refused", cred.uid());
                continue;
            }
            Err(e) => {
                tracing::warn!("control socket: a connection was refused, because its user is unknown: {e}");
                continue;
            }
        }
        let answer = answer.clone();
        tokio::spawn(async move {
            if let Err(e) = serve_connection(stream, &*answer).await {
                tracing::debug!("control socket: {e}");
            }
        });
    }
}

/// True: the client has closed the connection.
fn is_closed(stream: &UnixStream) -> io::Result<bool> {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

async fn serve_connection<F, A>(stream: UnixStream, answer: &F) -> io::Result<()>
where
    F: Fn(ControlRequest) -> A,
    A: Future<Output = ControlResponse>,
{
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    while let Some(line) = read_line(&mut reader).await? {
        if is_closed(reader.get_ref().as_ref())? {
            // The client has reported that nothing was done.
            return Ok(());
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) => answer(request).await,
            Err(e) => ControlResponse::Failed { why: format!("{NOT_A_REQUEST}: {e}"), state: None },
        };
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
    }
    Ok(())
}
