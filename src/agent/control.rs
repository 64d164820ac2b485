//! The control API: one JSON document a line over a unix socket, request and answer.
//!
//! The socket has mode 0600, and a caller of another user is turned away by the kernel's word for who it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::cycle::verb;
use super::status::{HaltStatus, State, Status};
use crate::local::{ChangeOutcome, FolderChange};
use crate::sync::{Plan, Step};

/// Longest line taken, bytes. A status with thousands of problems is far below it.
const MAX_LINE: usize = 16 * 1024 * 1024;

/// Begins the answer to a line that the agent does not understand.
pub const NOT_A_REQUEST: &str = "not a request";

/// What can be asked of a running agent. `folder`: one of its folders; `None`: all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Request {
    Status,
    /// A full scan and cycles until nothing is left to do or one fails; then the answer, [`Response::Status`].
    Sync {
        folder: Option<PathBuf>,
    },
    /// As `Sync`, and waits through what is temporary, for `timeout_s` seconds or for ever, until all is in sync or
    /// a person is needed; then the answer, [`Response::Status`].
    Wait {
        timeout_s: Option<u64>,
    },
    /// What a cycle would do now; changes nothing. The answer is [`Response::Plan`].
    Plan {
        folder: Option<PathBuf>,
    },
    Pause {
        for_s: Option<u64>,
    },
    Resume,
    /// The plans that are held.
    Held,
    Approve {
        id: String,
        reject: bool,
    },
    /// Reads config and token again.
    Reload,
    /// A change to one file. The answer is [`Response::Changed`].
    Change {
        folder: PathBuf,
        change: FolderChange,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Plan {
        steps: Vec<PlannedStep>,
    },
    Done,
    Changed {
        outcome: ChangeOutcome,
    },
    /// It is done as soon as the folder's running cycle has ended.
    Noted,
    /// What is held, with the folder it belongs to.
    Held {
        plans: Vec<(PathBuf, HaltStatus)>,
    },
    /// No such folder or plan.
    NotFound {
        what: String,
    },
    /// `state`: what the folder is in that kept it, where that is known.
    Failed {
        why: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<State>,
    },
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    pub folder: PathBuf,
    pub path: String,
    pub action: String,
    /// Of the decision table.
    pub row: u8,
}

impl PlannedStep {
    /// The steps of the plan for the folder `root`.
    pub(super) fn list(root: &Path, plan: &Plan) -> Vec<Self> {
        let step = |s: &Step| Self {
            folder: root.to_owned(),
            path: s.path.to_string(),
            action: verb(&s.action).to_owned(),
            row: s.row,
        };
        plan.steps.iter().map(step).collect()
    }
}

/// How long the agent may take to answer a question that needs no work.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Between two such questions, while the agent works on a request.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It listens, and gives no sign of life.
    #[error("the agent{} does not answer; {}", show_pid(*pid), remedy(*pid))]
    Silent { pid: Option<i32> },
    /// Nobody listens: no agent runs.
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

/// Asks the agent that listens at `path`. The answer may take as long as the agent works on it, and it fails once the
/// agent no longer gives its status within 3 s.
///
/// # Errors
/// [`ControlError::NoAgent`] when no agent listens, [`ControlError::Silent`] when it does not answer.
pub async fn ask(path: &Path, request: &Request) -> Result<Response, ControlError> {
    if *request == Request::Status {
        return ask_for_status(path).await;
    }
    tokio::select! {
        biased;
        answer = ask_patiently(path, request) => answer,
        silent = falls_silent(path) => Err(silent),
    }
}

/// Returns once the agent does not give its status in time.
pub async fn falls_silent(path: &Path) -> ControlError {
    loop {
        if let Err(silent @ ControlError::Silent { .. }) = ask_for_status(path).await {
            return silent;
        }
        tokio::time::sleep(PING_INTERVAL).await;
    }
}

async fn ask_for_status(path: &Path) -> Result<Response, ControlError> {
    let mut pid = None;
    let answer = converse_once(path, &Request::Status, &mut pid);
    match tokio::time::timeout(ANSWER_LIMIT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ControlError::Silent { pid }),
    }
}

/// As [`ask`], and waits for the answer for ever.
///
/// # Errors
/// [`ControlError::NoAgent`] when no agent listens.
pub async fn ask_patiently(path: &Path, request: &Request) -> Result<Response, ControlError> {
    converse_once(path, request, &mut None).await
}

/// One request and its answer. `pid`: of the process that listens, once it is known.
async fn converse_once(path: &Path, request: &Request, pid: &mut Option<i32>) -> Result<Response, ControlError> {
    let fail = |source| ControlError::Io { path: path.to_owned(), source };
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(ControlError::NoAgent(path.to_owned()));
        }
        // More callers wait than the system lets: the agent has not taken any for long.
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
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    let read = tokio::io::AsyncReadExt::take(&mut *reader, limit).read_until(b'\n', &mut line).await?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if read >= MAX_LINE => Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long")),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Listens at `path`. A socket that a dead agent left is replaced; that of a live one is not.
///
/// # Errors
/// `AddrInUse` when an agent answers there already; as `bind(2)` otherwise.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "an agent runs already")),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    // Only the umask decides the mode at bind, so the socket is made under a name that nobody knows, closed to
    // others, and then given its own.
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

/// Removes the socket's file. One that stays is replaced by the next [`bind`].
pub fn remove(path: &Path) {
    if let Err(e) = std::fs::remove_file(path) {
        tracing::debug!("{}: {e}", path.display());
    }
}

/// Answers requests until dropped. `answer` runs once for each request, many at a time.
pub async fn serve<F, A>(listener: UnixListener, answer: F)
where
    F: Fn(Request) -> A + Send + Sync + 'static,
    A: Future<Output = Response> + Send + 'static,
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
                tracing::warn!("control socket: user {} was turned away", cred.uid());
                continue;
            }
            Err(e) => {
                tracing::warn!("control socket: the caller is unknown: {e}");
                continue;
            }
        }
        let answer = answer.clone();
        tokio::spawn(async move {
            if let Err(e) = converse(stream, &*answer).await {
                tracing::debug!("control socket: {e}");
            }
        });
    }
}

/// Whether the caller has closed its end of the connection.
fn has_gone(stream: &UnixStream) -> io::Result<bool> {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

async fn converse<F, A>(stream: UnixStream, answer: &F) -> io::Result<()>
where
    F: Fn(Request) -> A,
    A: Future<Output = Response>,
{
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    while let Some(line) = read_line(&mut reader).await? {
        if has_gone(reader.get_ref().as_ref())? {
            // The caller has reported that nothing was done.
            return Ok(());
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) => answer(request).await,
            Err(e) => Response::Failed { why: format!("{NOT_A_REQUEST}: {e}"), state: None },
        };
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
    }
    Ok(())
}
