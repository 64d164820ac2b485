//! `memsync pause` and `memsync resume`.

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use crate::agent::control::ControlRequest;
use crate::cli::agent_client;
use crate::cli::app::App;
use crate::cli::args::PauseArgs;
use crate::cli::exit::Exit;
use crate::cli::process::runtime::client_runtime;
use crate::cli::view::format;
use crate::state::Pause;

#[derive(Serialize)]
struct PauseAnswer {
    paused: bool,
    /// `None` without an end.
    for_s: Option<u64>,
}

pub(super) fn pause(app: &App, args: &PauseArgs) -> anyhow::Result<Exit> {
    let for_s = args.duration.or(args.time).map(|d| d.as_secs().max(1));
    client_runtime()?.block_on(agent_client::ask(app, &ControlRequest::Pause { for_s }))?;
    app.answer(&PauseAnswer { paused: true, for_s }, |out, paused| match paused.for_s {
        Some(s) => {
            writeln!(out, "Paused for {}; `memsync resume` ends it sooner.", format::span(Duration::from_secs(s)))
        }
        None => writeln!(out, "Paused until `memsync resume`."),
    })
}

/// Ends the pause through the agent. Without an agent, it ends the pause that the last agent left.
pub(super) fn resume(app: &App) -> anyhow::Result<Exit> {
    if client_runtime()?.block_on(agent_client::ask_if_running(app, &ControlRequest::Resume))?.is_none() {
        return resume_alone(app);
    }
    app.answer(&PauseAnswer { paused: false, for_s: None }, |out, _| writeln!(out, "Syncing again."))
}

fn resume_alone(app: &App) -> anyhow::Result<Exit> {
    let state_dir = &app.dirs.state;
    let at_state_dir = || state_dir.display().to_string();
    if Pause::load(state_dir, Timestamp::now()).with_context(at_state_dir)?.is_none() {
        return Err(agent_client::no_agent(app));
    }
    Pause::forget(state_dir).with_context(at_state_dir)?;
    app.answer(&PauseAnswer { paused: false, for_s: None }, |out, _| {
        writeln!(out, "The pause has ended. No agent runs; `memsync sync` syncs now.")
    })
}
