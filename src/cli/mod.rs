//! The command line: one small file per command, and the only place that prints or reads the environment.

pub mod app;
pub mod args;
pub mod doctor;
pub mod exit;
pub mod init;
pub mod link;
pub mod logging;
pub mod memory;
pub mod probe;

mod approve;
mod completions;
mod conflicts;
mod content;
mod copies;
mod file_status;
mod history;
mod join;
mod key;
mod locate;
mod machine_store;
mod output;
mod own_proxy;
mod paths;
mod pause;
mod run;
mod s3;
mod secret;
mod serve;
mod setup;
mod show;
mod signals;
mod state_files;
mod status;
mod status_text;
mod store;
mod sync;
mod talk;
mod tls;
mod up;
mod user;
mod verdict;
mod wait;

use app::App;
use args::{Command, FIRST_STEPS};
use exit::Exit;
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
        Command::Up { dir, listen, tls, no_tls } => {
            up::run(app, &up::Asked { dir, listen, tls: tls::Source::of(&tls)?, no_tls })
        }
        Command::Link { dir } => join::run(app, dir.as_deref()),
        Command::Run => run::run(app),
        Command::Serve {
            listen,
            store,
            token_file,
            max_body_size,
            tls,
            metrics_listen,
            rate,
            verified_namespaces,
            verified_quota,
        } => {
            let tls = tls::Source::of(&tls)?;
            let max_body = max_body_size;
            let serve = serve::Serve {
                listen,
                store,
                token_file,
                max_body,
                tls,
                metrics_listen,
                rate,
                verified_namespaces,
                verified_quota,
            };
            serve::run(app, &serve)
        }
        Command::Reindex => s3::reindex(app),
        Command::User { store, action } => user::run(app, store.store.as_deref(), &action),
        Command::Key { store, action } => key::run(app, store.store.as_deref(), &action),
        Command::Store { action } => store::run(app, action),
        Command::Sync { dir, dry_run } => sync::run(app, dir.as_deref(), dry_run),
        Command::Status { path, watch } => status::run(app, path.as_deref(), watch),
        Command::Wait { timeout } => wait::run(app, timeout),
        Command::Pause { duration } => pause::pause(app, duration),
        Command::Resume => pause::resume(app),
        Command::Approve { id, reject, list } => approve::run(app, id, reject, list),
        Command::Conflicts { action } => conflicts::run(app, action),
        Command::History { path } => history::history(app, path.as_deref()),
        Command::Restore { path: Some(path), deleted: false } => history::restore(app, &path),
        Command::Restore { .. } => history::deleted(app),
    }
}

/// `memsync` alone: what to type first.
///
/// # Errors
/// As writing does.
pub fn first_steps() -> anyhow::Result<Exit> {
    output::print(|out| out.write_all(FIRST_STEPS.as_bytes()))?;
    Ok(Exit::Done)
}

/// Prints an error on stderr: its causes on one line, then the lines to copy.
pub fn tell(error: &anyhow::Error) {
    let shown = show::name(&format!("{error:#}"));
    output::note(format_args!("{}error:{} {shown}", ERROR.render(), ERROR.render_reset()));
    let advice = error.chain().find_map(|cause| cause.downcast_ref::<exit::Failure>()?.advice.as_deref());
    for line in advice.into_iter().flat_map(str::lines) {
        output::note(show::name(line));
    }
}

const ERROR: anstyle::Style = anstyle::AnsiColor::Red.on_default().bold();
