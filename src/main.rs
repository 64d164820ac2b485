//! Parse, logging, dispatch, exit code.

use std::process::ExitCode;

use clap::FromArgMatches;
use memsync::cli::app::App;
use memsync::cli::args::{self, Args, Command, Global};
use memsync::cli::exit::Exit;
use memsync::cli::{self, logging};

fn main() -> ExitCode {
    cli::memory::set_up();
    let Args { global, command } = Args::from_arg_matches(&args::command().get_matches()).unwrap_or_else(|e| e.exit());
    let ended = match command {
        Some(command) => start(global, command),
        None => cli::first_steps(),
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => {
            cli::tell(&error);
            Exit::of(&error).into()
        }
    }
}

fn start(global: Global, command: Command) -> anyhow::Result<Exit> {
    let app = App::start(global)?;
    let _logging = logging::start(&app, &command)?;
    cli::run(&app, command)
}
