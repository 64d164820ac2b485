//! Talking to the agent that runs, through its control socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

use super::app::App;
use super::exit::{Exit, Failure};
use super::own_proxy;
use crate::agent::control::{self, ControlError, ControlRequest, ControlResponse};
use crate::agent::status::Status;

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
/// What the agent refused, or why it cannot be asked; that it does not answer any more.
pub async fn ask_any(app: &App, request: &ControlRequest) -> anyhow::Result<Option<ControlResponse>> {
    let Some(socket) = socket(app)? else { return Ok(None) };
    judge(control::ask(&socket, request).await)
}

/// As [`ask`], and waits for the answer even if the agent does not answer anything. `silent` is told when that shows.
///
/// # Errors
/// As [`ask`].
pub async fn ask_patiently(
    app: &App,
    request: &ControlRequest,
    silent: impl FnOnce(ControlError),
) -> anyhow::Result<ControlResponse> {
    let Some(socket) = socket(app)? else { return Err(no_agent(app)) };
    let answer = control::ask_unlimited(&socket, request);
    tokio::pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        why = control::wait_until_silent(&socket) => {
            silent(why);
            answer.await
        }
    };
    judge(answer)?.ok_or_else(|| no_agent(app))
}

/// `None` where no agent can have one.
fn socket(app: &App) -> anyhow::Result<Option<PathBuf>> {
    match app.dirs.socket() {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context("the agent's socket cannot be found"),
    }
}

fn judge(answer: Result<ControlResponse, ControlError>) -> anyhow::Result<Option<ControlResponse>> {
    match answer {
        Ok(ControlResponse::Failed { why, state }) => {
            Err(Failure::new(state.map_or(Exit::Error, Exit::of_state), why).into())
        }
        Ok(ControlResponse::NotFound { what }) => Err(Failure::new(Exit::Usage, what).into()),
        Ok(response) => Ok(Some(response)),
        Err(ControlError::NoAgent(_)) => Ok(None),
        Err(e @ ControlError::Silent { .. }) => Err(e.into()),
        Err(e @ ControlError::Io { .. }) => Err(e).context("the agent gave no answer"),
    }
}

/// The agent's answer to a change, which may take as long as a disk takes. `None` where no agent runs, or where the
/// agent does not sync the folder.
///
/// # Errors
/// Why the change was not made, or that its end is unknown.
pub async fn ask_change(app: &App, request: &ControlRequest) -> anyhow::Result<Option<ControlResponse>> {
    let Some(socket) = socket(app)? else { return Ok(None) };
    // A silent agent would make the change whenever it goes on. So it has to answer something else first.
    match control::ask(&socket, &ControlRequest::Status).await {
        Ok(_) => {}
        Err(ControlError::NoAgent(_)) => return Ok(None),
        Err(e) => return Err(anyhow::Error::new(e).context("nothing was changed")),
    }
    let unknown = "so the change may have been made or not; look at the file, and at `memsync history`";
    match tokio::time::timeout(CHANGE_LIMIT, control::ask(&socket, request)).await {
        Ok(Ok(ControlResponse::NotFound { .. })) => Ok(None),
        // An agent of an older version does not know the request.
        Ok(Ok(ControlResponse::Failed { why, .. })) if why.starts_with(control::NOT_A_REQUEST) => Err(unexpected()),
        Ok(Ok(ControlResponse::Failed { why, .. })) => Err(Failure::new(Exit::Error, why).into()),
        Ok(Ok(response)) => Ok(Some(response)),
        Ok(Err(ControlError::NoAgent(_))) => Ok(None),
        Ok(Err(e)) => Err(anyhow::Error::new(e).context(format!("the agent gave no answer, {unknown}"))),
        Err(_) => Err(Failure::new(Exit::Error, format!("the agent has not answered for minutes, {unknown}")).into()),
    }
}

/// The agent's answer.
///
/// # Errors
/// As [`ask_any`]; where no agent runs, what to do about it.
pub async fn ask(app: &App, request: &ControlRequest) -> anyhow::Result<ControlResponse> {
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
    match ask_any(app, &ControlRequest::Status).await? {
        Some(ControlResponse::Status(status)) => Ok(Some(*status)),
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
