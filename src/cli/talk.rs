//! Talking to the agent that runs, through its control socket.

use std::io;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

use super::app::App;
use super::exit::{Exit, Failure};
use super::own_proxy;
use crate::agent::control::{self, ControlError, Request, Response};
use crate::agent::status::Status;

/// The longest wait for an agent that is asked whether it answers at all.
const GREETING_LIMIT: Duration = Duration::from_secs(3);
/// The longest wait for a change: a large file on a slow disk, after the cycle that is under way.
const CHANGE_LIMIT: Duration = Duration::from_secs(600);

/// The small runtime of a command that asks and exits.
///
/// # Errors
/// As the system gives no thread or descriptor.
pub fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("the runtime cannot start")
}

/// The agent's answer; `None` where no agent runs.
///
/// # Errors
/// What the agent refused, or why it cannot be asked.
pub async fn ask_any(app: &App, request: &Request) -> anyhow::Result<Option<Response>> {
    let socket = match app.dirs.socket() {
        Ok(socket) => socket,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).context("the agent's socket cannot be found"),
    };
    match control::ask(&socket, request).await {
        Ok(Response::Failed { why, state }) => Err(Failure::new(state.map_or(Exit::Error, Exit::of_state), why).into()),
        Ok(Response::NotFound { what }) => Err(Failure::new(Exit::Usage, what).into()),
        Ok(response) => Ok(Some(response)),
        Err(ControlError::NoAgent(_)) => Ok(None),
        Err(e @ ControlError::Io { .. }) => Err(e).context("the agent gave no answer"),
    }
}

/// The agent's answer to a change, which may take as long as a disk takes. `None` where no agent runs, or where the
/// agent does not sync the folder.
///
/// # Errors
/// Why the change was not made, or that its end is unknown.
pub async fn ask_change(app: &App, request: &Request) -> anyhow::Result<Option<Response>> {
    let socket = match app.dirs.socket() {
        Ok(socket) => socket,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).context("the agent's socket cannot be found"),
    };
    // An agent that hangs would make the change whenever it goes on. So it has to answer something else first.
    match tokio::time::timeout(GREETING_LIMIT, control::ask(&socket, &Request::Status)).await {
        Ok(Ok(_)) => {}
        Ok(Err(ControlError::NoAgent(_))) => return Ok(None),
        Ok(Err(e)) => return Err(anyhow::Error::new(e).context("the agent gave no answer; nothing was changed")),
        Err(_) => {
            let why = "the agent does not answer; nothing was changed; restart it, and try again";
            return Err(Failure::new(Exit::Error, why).into());
        }
    }
    let unknown = "so the change may have been made or not; look at the file, and at `memsync history`";
    match tokio::time::timeout(CHANGE_LIMIT, control::ask(&socket, request)).await {
        Ok(Ok(Response::NotFound { .. })) => Ok(None),
        // An agent of an older version does not know the request.
        Ok(Ok(Response::Failed { why, .. })) if why.starts_with(control::NOT_A_REQUEST) => Err(unexpected()),
        Ok(Ok(Response::Failed { why, .. })) => Err(Failure::new(Exit::Error, why).into()),
        Ok(Ok(response)) => Ok(Some(response)),
        Ok(Err(ControlError::NoAgent(_))) => Ok(None),
        Ok(Err(e)) => Err(anyhow::Error::new(e).context(format!("the agent ended before it answered, {unknown}"))),
        Err(_) => Err(Failure::new(Exit::Error, format!("the agent has not answered for minutes, {unknown}")).into()),
    }
}

/// The agent's answer.
///
/// # Errors
/// As [`ask_any`]; where no agent runs, what to do about it.
pub async fn ask(app: &App, request: &Request) -> anyhow::Result<Response> {
    match ask_any(app, request).await? {
        Some(response) => Ok(response),
        None => Err(no_agent(app)),
    }
}

/// The agent's status; `None` where no agent runs.
///
/// # Errors
/// As [`ask_any`].
pub async fn status(app: &App) -> anyhow::Result<Option<Status>> {
    match ask_any(app, &Request::Status).await? {
        Some(Response::Status(status)) => Ok(Some(*status)),
        Some(_) => Err(unexpected()),
        None => Ok(None),
    }
}

/// Why nothing answers: there is no config, it is not right, or nothing was started.
pub fn no_agent(app: &App) -> anyhow::Error {
    match app.config() {
        Err(e) => e.into(),
        Ok(config) => {
            let start = own_proxy::start_command(app, config);
            Failure::new(Exit::NotConfigured, format!("no agent runs; start it with `{start}`")).into()
        }
    }
}

/// An agent of another version may answer in words that are not known here.
pub fn unexpected() -> anyhow::Error {
    let why = "the agent's answer is not understood; it may be another version: stop it, and start it again";
    Failure::new(Exit::Error, why).into()
}
