//! The commands, one file each, and the dispatch to them.

mod approve;
mod completions;
mod conflicts;
pub mod doctor;
mod history;
pub mod init;
mod key;
mod link;
mod merge;
mod paths;
mod pause;
mod reindex;
mod restore;
mod run;
mod serve;
mod status;
mod store;
mod sync;
mod up;
mod user;
mod wait;

use super::app::App;
use super::args::{Command, FIRST_STEPS};
use super::exit::Exit;
use super::probe::HttpProbe;
use super::process::output;

/// Runs one command. [`Exit::of`] gives the exit code of an error.
pub(super) fn run(app: &App, command: Command) -> anyhow::Result<Exit> {
    if let Ok(config) = app.config() {
        config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    }
    match command {
        Command::Init(args) => init::run(app, &args, &HttpProbe),
        Command::Doctor => doctor::run(app, &HttpProbe),
        Command::Paths => paths::run(app),
        Command::Completions { shell } => completions::run(shell),
        Command::Up(args) => up::run(app, &args),
        Command::Link { dir } => link::run(app, dir.as_deref()),
        Command::Run => run::run(app),
        Command::Serve(args) => serve::run(app, &args),
        Command::Reindex => reindex::run(app),
        Command::User(args) => user::run(app, &args),
        Command::Key(args) => key::run(app, &args),
        Command::Store { action } => store::run(app, action),
        Command::Sync(args) => sync::run(app, &args),
        Command::Status(args) => status::run(app, &args),
        Command::Wait(args) => wait::run(app, &args),
        Command::Pause(args) => pause::pause(app, &args),
        Command::Resume => pause::resume(app),
        Command::Approve(args) => approve::run(app, &args),
        Command::Conflicts { action } => conflicts::run(app, action),
        Command::History { path } => history::run(app, path.as_deref()),
        Command::Restore(args) => restore::run(app, &args),
        Command::Merge(args) => merge::run(app, &args),
    }
}

/// `memsync` without a command.
pub(super) fn show_first_steps() -> anyhow::Result<Exit> {
    output::print(|out| out.write_all(FIRST_STEPS.as_bytes()))?;
    Ok(Exit::Done)
}
