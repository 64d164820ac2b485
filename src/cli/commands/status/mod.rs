//! `memsync status`: shows all folders or one file, once or with `--watch`, with or without an agent.

mod file;
mod watch;

use std::path::Path;

use jiff::Timestamp;

use crate::agent::status::Status;
use crate::cli::agent_client::current_status;
use crate::cli::app::App;
use crate::cli::args::StatusArgs;
use crate::cli::exit::Exit;
use crate::cli::process::runtime::client_runtime;
use crate::cli::view::file_status::file_status_text;
use crate::cli::view::status::status_text;
use crate::cli::view::verdict::StatusVerdict;

pub(super) fn run(app: &App, args: &StatusArgs) -> anyhow::Result<Exit> {
    let runtime = client_runtime()?;
    if args.watch {
        return runtime.block_on(watch::watch(app, args.path.as_deref()));
    }
    let status = runtime.block_on(current_status(app))?;
    match args.path.as_deref() {
        Some(path) => show_file(app, path, &status),
        None => {
            app.answer(&status, |out, status| write!(out, "{}", status_text(status, Timestamp::now())))?;
            Ok(StatusVerdict::of(&status).exit)
        }
    }
}

fn show_file(app: &App, path: &Path, status: &Status) -> anyhow::Result<Exit> {
    let file = file::file_status(app, path, status)?;
    app.answer(&file, |out, file| write!(out, "{}", file_status_text(file, Timestamp::now())))?;
    Ok(file.exit())
}
