//! [`Agent`]: the running agent, with its folders and its control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::commands::FolderCommand;
use super::control;
use super::requests::answer;
use super::status::Status;
use super::supervisor::{AgentOptions, LOCK_RETRY, StartError, Supervisor};

/// An agent that was killed a moment ago may still hold its socket and its locks.
const MAX_LOCK_WAIT: Duration = Duration::from_millis(500);

/// A running agent: one thread a folder, and the control socket.
pub(crate) struct Agent {
    supervisor: Arc<Supervisor>,
    socket: PathBuf,
    control: tokio::task::JoinHandle<()>,
}

impl Agent {
    /// Starts to sync. Fails if another agent runs, or works on one of the folders.
    pub(crate) async fn start(options: AgentOptions) -> Result<Self, StartError> {
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
            async move { answer(&supervisor, request).await }
        }));
        Ok(Self { supervisor, socket, control })
    }

    /// Applies other settings: starts new folders, and stops those that are gone. If a new folder cannot be started, the
    /// others go on.
    pub(crate) async fn reload(&self, options: AgentOptions) -> Result<(), StartError> {
        self.supervisor.reload(options).await
    }

    /// Returns when the proxy refuses the token of a folder.
    pub(crate) async fn token_refused(&self) {
        let mut changes = self.changes();
        while !self.supervisor.has_refused_token() {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// Gives `token` to the folders that sync with the proxy at `origin`. True: it is new to one of them.
    pub(crate) fn replace_token(&self, origin: &str, token: &SecretString) -> bool {
        self.supervisor.replace_token(origin, token)
    }

    /// Returns when a command asks over the socket to read the config again.
    pub(crate) async fn reload_wanted(&self) {
        self.supervisor.reload_request.notified().await;
    }

    /// Requests a full scan and a cycle in every folder.
    pub(crate) fn sync_now(&self) {
        drop(self.supervisor.send_to(None, FolderCommand::Sync));
    }

    pub(crate) fn status(&self) -> Status {
        self.supervisor.status()
    }

    /// Counts the changes of the status.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.supervisor.changes()
    }

    /// Finishes or abandons the requests in flight, and saves. Takes at most 10 s.
    pub(crate) async fn stop(self) {
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
