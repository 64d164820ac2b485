//! The command line: one small file per command, and the only place that prints or reads the environment.

pub mod app;
pub mod args;
pub mod doctor;
pub mod exit;
pub mod init;
pub mod link;
pub mod logging;
pub mod probe;

mod completions;
mod paths;

use std::io::Write;

use app::App;
use args::{Command, FIRST_STEPS};
use exit::{Exit, Failure};
use probe::http::HttpProbe;

/// Runs one command.
///
/// # Errors
/// What went wrong, to which path or URL, and what to do next; [`Exit::of`] gives the exit code.
pub fn run(app: &App, command: Command) -> anyhow::Result<Exit> {
    if let Ok(config) = app.config() {
        config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    }
    match command {
        Command::Init(init) => init::run(app, &init, &HttpProbe),
        Command::Doctor => doctor::run(app, &HttpProbe),
        Command::Paths => paths::run(app),
        Command::Completions { shell } => completions::run(shell),
        // The commands that need the agent or the proxy have their arms above this line.
        other => Err(Failure::new(Exit::Error, format!("this build has no such command: {other:?}")).into()),
    }
}

/// `memsync` alone: what to type first.
///
/// # Errors
/// As writing does.
pub fn first_steps() -> anyhow::Result<Exit> {
    std::io::stdout().lock().write_all(FIRST_STEPS.as_bytes())?;
    Ok(Exit::Done)
}

/// Tells an error on stderr, with its causes, on one line.
pub fn tell(error: &anyhow::Error) {
    anstream::eprintln!("{}error:{} {error:#}", ERROR.render(), ERROR.render_reset());
}

const ERROR: anstyle::Style = anstyle::AnsiColor::Red.on_default().bold();
