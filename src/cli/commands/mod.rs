//! The commands, and the dispatch to them.

mod activity;
mod approve;
mod conflicts;
mod diff;
pub mod doctor;
mod files;
mod history;
pub mod init;
mod keys;
mod link;
mod merge;
mod paths;
mod pause;
mod restore;
mod run;
mod serve;
mod show;
mod status;
mod store;
mod sync;
mod up;
mod wait;

use clap::CommandFactory;
use clap_complete::Shell;

use super::app::App;
use super::args::{Args, Command, FIRST_STEPS};
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
        Command::Completions { shell } => print_completions(shell),
        Command::Up(args) => up::run(app, &args),
        Command::Link { dir } => link::run(app, dir.as_deref()),
        Command::Run => run::run(app),
        Command::Serve(args) => serve::run(app, &args),
        Command::Reindex => store::reindex(app),
        Command::User(args) => keys::run_user(app, &args),
        Command::Key(args) => keys::run_key(app, &args),
        Command::Store { action } => store::run(app, action),
        Command::Sync(args) => sync::run(app, &args),
        Command::Status(args) => status::run(app, &args),
        Command::Wait(args) => wait::run(app, &args),
        Command::Pause(args) => pause::pause(app, &args),
        Command::Resume => pause::resume(app),
        Command::Approve(args) => approve::run(app, &args),
        Command::Conflicts { action } => conflicts::run(app, action),
        Command::Log(args) => activity::run(app, &args),
        Command::History { path } => history::run(app, path.as_deref()),
        Command::Show(args) => show::run(app, &args),
        Command::Diff(args) => diff::run(app, &args),
        Command::Restore(args) => restore::run(app, &args),
        Command::Merge(args) => merge::run(app, &args),
        Command::Put(args) => files::put(app, &args),
        Command::Append { path } => files::append(app, &path),
        Command::Rm(args) => files::remove(app, &args),
        Command::Cat { path } => files::cat(app, &path),
    }
}

/// `memsync` without a command.
pub(super) fn show_first_steps() -> anyhow::Result<Exit> {
    output::print(|out| out.write_all(FIRST_STEPS.as_bytes()))?;
    Ok(Exit::Done)
}

fn print_completions(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "memsync", &mut script);
    output::print(|out| out.write_all(&script))?;
    Ok(Exit::Done)
}
