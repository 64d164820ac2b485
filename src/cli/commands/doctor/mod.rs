//! `memsync doctor`: checks everything that can keep a sync from working, and says how to fix it.
//!
//! It changes nothing. Each check is a function that returns a [`DoctorCheck`].

mod check;
mod machine;
mod proxy;

use std::path::Path;

use jiff::Timestamp;

use crate::agent::root::find_root_halt;
use crate::agent::status::{FolderStatus, Status, SyncState};
use crate::agent::{FolderSetup, halt_status};
use crate::cli::agent_client::current_status;
use crate::cli::app::App;
use crate::cli::exit::Exit;
use crate::cli::machine::{agent_setup, own_proxy};
use crate::cli::probe::ProxyProbe;
use crate::cli::process::runtime::client_runtime;
use crate::config::{Config, ConfigError};

use check::{DoctorCheck, write_checks};

/// Prints the checks. Returns the highest exit code that applies.
pub fn run(app: &App, probe: &dyn ProxyProbe) -> anyhow::Result<Exit> {
    let checks = match app.config() {
        Err(error) => vec![check_bad_config(&error)],
        Ok(config) => check_all(app, config, probe)?,
    };
    app.answer(&checks, |out, checks| write_checks(out, checks))?;
    Ok(checks.iter().map(|c| c.exit).max().unwrap_or(Exit::Done))
}

fn check_all(app: &App, config: &Config, probe: &dyn ProxyProbe) -> anyhow::Result<Vec<DoctorCheck>> {
    let mut checks = vec![DoctorCheck::ok("config", app.dirs.config_file.display().to_string())];
    checks.extend(config.warnings.iter().map(|w| DoctorCheck::warn("config", w, "correct or unset it")));
    checks.extend(proxy::check_proxy(config, &app.machine.env, probe, Timestamp::now()));
    let (check, status) = check_agent(app, config)?;
    checks.push(check);
    let setups = agent_setup::folders_without_secrets(app, config);
    for (folder, setup) in config.folders.iter().zip(&setups) {
        let known = status.as_ref().and_then(|status| known_folder(status, setup, &setups));
        // The two checks below report an error of this look.
        let find_halt = || Some(halt_status(&find_root_halt(setup).ok()??, &[]));
        let halt = known.and_then(|known| known.halt.clone()).or_else(find_halt);
        checks.push(halt.map_or_else(|| machine::check_folder(&folder.path), |halt| machine::check_halt(&halt)));
        let container = setup.state_dir.join(&setup.container);
        checks.push(machine::check_container(&container, known.map(|known| known.files)));
    }
    checks.push(machine::check_watches(&config.folders));
    checks.push(machine::check_free_space(config.folders.iter().map(|f| &f.path).chain([&app.dirs.state])));
    Ok(checks)
}

fn check_bad_config(error: &ConfigError) -> DoctorCheck {
    match error {
        ConfigError::NotFound { .. } => {
            DoctorCheck::fail_with_error("config", error.to_string()).exit(Exit::NotConfigured)
        }
        _ => DoctorCheck::fail("config", error.to_string(), "correct it; config.example.toml shows every key")
            .exit(Exit::Usage),
    }
}

/// The check of the agent, and the status that it reports or that the last agent left.
fn check_agent(app: &App, config: &Config) -> anyhow::Result<(DoctorCheck, Option<Status>)> {
    Ok(match client_runtime()?.block_on(current_status(app)) {
        Ok(status) if status.agent.running => (check_running_agent(&status), Some(status)),
        Ok(status) => {
            let start = own_proxy::start_command(app, config);
            (DoctorCheck::ok("agent", format!("none runs; `{start}` starts it")), Some(status))
        }
        Err(e) => (DoctorCheck::fail_with_error("agent", format!("{e:#}")), None),
    })
}

/// The proxy may refuse the agent's token although it accepts the token that this command reads.
fn check_running_agent(status: &Status) -> DoctorCheck {
    if let Some(folder) = status.folders.iter().find(|f| f.state == SyncState::AuthRequired) {
        let what = format!("{}: {}", folder.path, folder.reason.as_deref().unwrap_or("the proxy refused the token"));
        let fix = "it reads a corrected token file by itself; if its token comes from its environment, start it again";
        return DoctorCheck::fail("agent", what, fix).exit(Exit::Refused);
    }
    let process = status.agent.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    DoctorCheck::ok("agent", format!("it runs and answers{process}"))
}

/// The agent's status of a folder. If a symlink in the path was changed since the agent started, the agent has another
/// path for the folder, which matches no other setup.
fn known_folder<'a>(status: &'a Status, setup: &FolderSetup, all: &[FolderSetup]) -> Option<&'a FolderStatus> {
    let is_at = |f: &FolderStatus, setup: &FolderSetup| Path::new(&f.path) == setup.root;
    let same_path = status.folders.iter().find(|f| is_at(f, setup));
    same_path.or_else(|| status.folders.iter().find(|f| !all.iter().any(|setup| is_at(f, setup))))
}
