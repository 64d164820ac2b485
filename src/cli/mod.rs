//! The command line. Only this module prints and reads the environment.
//!
//! `args` declares the commands, `commands` has one file for each, and `view` shows their answers. They share `folder`
//! (paths and changes in synced folders), `machine` (files that memsync keeps), `process` (output, logs, signals),
//! [`agent_client`] (the running agent) and [`probe`] (a proxy that is not configured yet).

mod agent_client;
pub mod app;
pub mod args;
pub mod commands;
pub mod exit;
mod folder;
mod machine;
pub mod probe;
mod process;
mod view;

pub use process::allocator::configure as configure_allocator;

use app::App;
use args::{Args, Command, GlobalArgs};
use exit::Exit;

/// Runs the command that was typed, and shows its error.
pub fn run(args: Args) -> Exit {
    let Args { global, command } = args;
    let ended = match command {
        Some(command) => run_command(global, command),
        None => commands::show_first_steps(),
    };
    ended.unwrap_or_else(|error| {
        view::error::show_error(&error);
        Exit::of(&error)
    })
}

fn run_command(global: GlobalArgs, command: Command) -> anyhow::Result<Exit> {
    let app = App::start(global)?;
    let _guard = process::logging::start(&app, &command)?;
    commands::run(&app, command)
}
