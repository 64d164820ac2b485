//! The command line. Only this module prints and reads the environment.
//!
//! `args` declares the commands and `commands` carries them out. They share `view` (texts for people), `machine` (files
//! that memsync keeps), `process` (output, logs, signals), [`folder`] and [`conflict_copies`] (synced folders),
//! [`versions`] (earlier texts), [`agent_client`] (the running agent) and [`probe`] (a proxy that is not configured yet).

mod agent_client;
pub mod app;
pub mod args;
pub mod commands;
mod conflict_copies;
pub mod exit;
mod folder;
mod machine;
pub mod probe;
mod process;
mod versions;
mod view;

pub use process::runtime::configure_allocator;

use app::App;
use args::Args;
use exit::Exit;

/// Runs the command that was typed, and shows its error.
pub fn run(args: Args) -> Exit {
    let Args { global, command } = args;
    let run = || {
        let Some(command) = command else { return commands::show_first_steps() };
        let app = App::start(global)?;
        let _guard = process::logging::start(&app, &command)?;
        commands::run(&app, command)
    };
    run().unwrap_or_else(|error| {
        process::output::show_error(&error);
        Exit::of(&error)
    })
}
