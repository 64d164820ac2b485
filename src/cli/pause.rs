//! `memsync pause` and `memsync resume`.

use std::time::Duration;

use serde::Serialize;

use super::app::App;
use super::exit::Exit;
use super::{show, talk};
use crate::agent::control::ControlRequest;

#[derive(Serialize)]
struct Paused {
    paused: bool,
    /// `None`: until `memsync resume`.
    for_s: Option<u64>,
}

/// # Errors
/// Where no agent runs.
pub fn pause(app: &App, duration: Option<Duration>) -> anyhow::Result<Exit> {
    let for_s = duration.map(|d| d.as_secs().max(1));
    talk::runtime()?.block_on(talk::ask(app, &ControlRequest::Pause { for_s }))?;
    app.answer(&Paused { paused: true, for_s }, |out, paused| match paused.for_s {
        Some(s) => writeln!(out, "Paused for {}; `memsync resume` goes on sooner.", show::span(Duration::from_secs(s))),
        None => writeln!(out, "Paused; `memsync resume` goes on."),
    })?;
    Ok(Exit::Done)
}

/// # Errors
/// Where no agent runs.
pub fn resume(app: &App) -> anyhow::Result<Exit> {
    talk::runtime()?.block_on(talk::ask(app, &ControlRequest::Resume))?;
    app.answer(&Paused { paused: false, for_s: None }, |out, _| writeln!(out, "Syncing again."))?;
    Ok(Exit::Done)
}
