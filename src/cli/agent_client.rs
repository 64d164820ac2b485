//! Asks the running agent through its control socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::app::App;
use super::exit::{CommandFailure, Exit};
use super::machine::{agent_setup, own_proxy};
use crate::agent::control::{self, ControlError, ControlRequest, ControlResponse};
use crate::agent::offline_status;
use crate::agent::status::Status;

/// Longest wait for a change: a large file on a slow disk, after the running cycle.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(600);

/// The agent's answer. `None` if no agent runs.
pub(crate) async fn ask_if_running(app: &App, request: &ControlRequest) -> anyhow::Result<Option<ControlResponse>> {
    let Some(socket) = socket(app)? else { return Ok(None) };
    check_answer(control::ask(&socket, request).await)
}

/// The agent's answer. Without a running agent, the error says how to start it.
pub(crate) async fn ask(app: &App, request: &ControlRequest) -> anyhow::Result<ControlResponse> {
    match ask_if_running(app, request).await? {
        Some(response) => Ok(response),
        None => Err(no_agent(app)),
    }
}

/// As [`ask`], without a time limit. `on_silence` is called if the agent answers nothing at all for a while.
pub(crate) async fn ask_without_limit(
    app: &App,
    request: &ControlRequest,
    on_silence: impl FnOnce(ControlError),
) -> anyhow::Result<ControlResponse> {
    let Some(socket) = socket(app)? else { return Err(no_agent(app)) };
    let answer = control::ask_unlimited(&socket, request);
    tokio::pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        why = control::wait_until_silent(&socket) => {
            on_silence(why);
            answer.await
        }
    };
    check_answer(answer)?.ok_or_else(|| no_agent(app))
}

/// `None` if no agent has recorded a socket.
fn socket(app: &App) -> anyhow::Result<Option<PathBuf>> {
    match app.dirs.socket() {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context("the agent's socket cannot be found"),
    }
}

fn check_answer(answer: Result<ControlResponse, ControlError>) -> anyhow::Result<Option<ControlResponse>> {
    match answer {
        Ok(ControlResponse::Failed { why, state }) => {
            Err(CommandFailure::new(state.map_or(Exit::Error, Exit::of_state), why).into())
        }
        Ok(ControlResponse::NotFound { what }) => Err(CommandFailure::usage(what).into()),
        Ok(response) => Ok(Some(response)),
        Err(ControlError::NoAgent(_)) => Ok(None),
        Err(e @ ControlError::Silent { .. }) => Err(e.into()),
        Err(e @ ControlError::Io { .. }) => Err(e).context("the agent gave no answer"),
    }
}

/// Asks the agent to change a file, and waits as long as a slow disk may take. `None` if no agent runs, or it does not
/// sync the folder.
pub(crate) async fn request_change(app: &App, request: &ControlRequest) -> anyhow::Result<Option<ControlResponse>> {
    let Some(socket) = socket(app)? else { return Ok(None) };
    // A silent agent would make the change much later. So the agent first has to answer another request.
    match control::ask(&socket, &ControlRequest::Status).await {
        Ok(_) => {}
        Err(ControlError::NoAgent(_)) => return Ok(None),
        Err(e) => return Err(anyhow::Error::new(e).context("nothing was changed")),
    }
    let unknown = "so the change may have been made or not; look at the file, and at `memsync history`";
    match tokio::time::timeout(CHANGE_TIMEOUT, control::ask(&socket, request)).await {
        Ok(Ok(ControlResponse::NotFound { .. })) => Ok(None),
        // An older agent does not know the request.
        Ok(Ok(ControlResponse::Failed { why, .. })) if why.starts_with(control::NOT_A_REQUEST) => {
            Err(unexpected_answer())
        }
        Ok(Ok(ControlResponse::Failed { why, .. })) => Err(CommandFailure::new(Exit::Error, why).into()),
        Ok(Ok(response)) => Ok(Some(response)),
        Ok(Err(ControlError::NoAgent(_))) => Ok(None),
        Ok(Err(e)) => Err(anyhow::Error::new(e).context(format!("the agent gave no answer, {unknown}"))),
        Err(_) => {
            Err(CommandFailure::new(Exit::Error, format!("the agent has not answered for minutes, {unknown}")).into())
        }
    }
}

/// The agent's status. `None` if no agent runs.
pub(crate) async fn agent_status(app: &App) -> anyhow::Result<Option<Status>> {
    match ask_if_running(app, &ControlRequest::Status).await? {
        Some(ControlResponse::Status(status)) => Ok(Some(*status)),
        Some(_) => Err(unexpected_answer()),
        None => Ok(None),
    }
}

/// The agent's status. Without a running agent, the error says how to start it.
pub(crate) async fn require_status(app: &App) -> anyhow::Result<Status> {
    agent_status(app).await?.ok_or_else(|| no_agent(app))
}

/// The agent's status. If no agent runs, the status that the last one left.
pub(crate) async fn current_status(app: &App) -> anyhow::Result<Status> {
    match agent_status(app).await? {
        Some(status) => Ok(status),
        None => {
            let config = app.config()?;
            let setups = agent_setup::folders_without_secrets(app, config);
            Ok(offline_status(&setups, &config.device, &config.proxy.url, own_proxy::start_command(app)))
        }
    }
}

/// The error when no agent runs: the config is missing or wrong, or the agent was not started.
pub(crate) fn no_agent(app: &App) -> anyhow::Error {
    match app.config() {
        Err(e) => e.into(),
        Ok(_) => {
            let start = own_proxy::start_command(app);
            CommandFailure::new(Exit::NotConfigured, format!("no agent runs; start it with `{start}`")).into()
        }
    }
}

/// The error for an answer that this version does not know.
pub(crate) fn unexpected_answer() -> anyhow::Error {
    let why = "the agent's answer is not understood; it may be another version: stop it, and start it again";
    CommandFailure::new(Exit::Error, why).into()
}
