//! `memsync doctor`: checks everything that can keep a sync from working, and says how to fix it.
//!
//! It changes nothing. Each check is a function that returns a [`DoctorCheck`].

mod check;
mod machine;

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;

use crate::agent::root::find_root_halt;
use crate::agent::status::{FolderStatus, Status, SyncState};
use crate::agent::{FolderSetup, halt_status};
use crate::cli::agent_client::current_status;
use crate::cli::app::App;
use crate::cli::exit::Exit;
use crate::cli::machine::{agent_setup, own_proxy};
use crate::cli::probe::{ProbeAnswer, ProxyProbe};
use crate::cli::process::runtime::client_runtime;
use crate::config::{Config, ConfigError};
use crate::remote::RemoteError;

use check::{DoctorCheck, write_checks};

/// A larger difference between the clocks is a warning. No decision depends on clocks.
const MAX_SKEW_S: i64 = 300;

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
    checks.extend(check_proxy(config, &app.machine.env, probe, Timestamp::now()));
    let (check, status) = check_agent(app)?;
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
fn check_agent(app: &App) -> anyhow::Result<(DoctorCheck, Option<Status>)> {
    Ok(match client_runtime()?.block_on(current_status(app)) {
        Ok(status) if status.agent.running => (check_running_agent(&status), Some(status)),
        Ok(status) => {
            let start = own_proxy::start_command(app);
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

/// Checks the token, then asks the proxy. Without a token the proxy is not asked.
fn check_proxy(
    config: &Config,
    env: &BTreeMap<String, String>,
    probe: &dyn ProxyProbe,
    now: Timestamp,
) -> Vec<DoctorCheck> {
    let (token, from) = match config.token(env) {
        Ok(found) => found,
        Err(error) => return vec![DoctorCheck::fail_with_error("token", error.to_string()).exit(Exit::Usage)],
    };
    let ca_pem = match config.ca_pem() {
        Ok(ca_pem) => ca_pem,
        Err(error) => return vec![DoctorCheck::fail_with_error("proxy", error.to_string()).exit(Exit::Usage)],
    };
    // One namespace is enough to try the address and the token.
    let namespace = config.folders.first().map_or("", |f| f.namespace.as_str());
    let answer = probe.ask(&agent_setup::http_options(config, namespace, token, ca_pem));
    let mut checks = vec![DoctorCheck::ok("token", format!("from {from}")), check_answer(&config.proxy.url, &answer)];
    if let Ok(answer) = answer {
        let fix = "tell the owner of the proxy";
        checks.extend(answer.warnings.into_iter().map(|warning| DoctorCheck::warn("proxy", warning, fix)));
        checks.extend(answer.events.map(check_push));
        checks.extend(answer.time.map(|time| check_clock(now, time)));
    }
    checks
}

fn check_answer(url: &str, answer: &Result<ProbeAnswer, RemoteError>) -> DoctorCheck {
    match answer {
        Ok(answer) if answer.capabilities.is_empty() => {
            DoctorCheck::ok("proxy", format!("{url} takes the token; it offers the plain protocol"))
        }
        Ok(answer) => {
            DoctorCheck::ok("proxy", format!("{url} takes the token; it offers {}", answer.capabilities.join(", ")))
        }
        Err(error @ RemoteError::Auth { .. }) => {
            DoctorCheck::fail("proxy", error.to_string(), "ask the proxy's owner for a token that is valid")
                .exit(Exit::Refused)
        }
        Err(error @ RemoteError::NotAProxy { .. }) => DoctorCheck::fail_with_error("proxy", error.to_string()),
        Err(error @ RemoteError::Protocol { .. }) => {
            DoctorCheck::fail("proxy", error.to_string(), "check proxy.url: another server answers there")
        }
        Err(error) => {
            DoctorCheck::fail("proxy", error.to_string(), "check proxy.url, the network and that the proxy runs")
                .exit(Exit::Temporary)
        }
    }
}

fn check_push(events: Result<(), String>) -> DoctorCheck {
    match events {
        Ok(()) => DoctorCheck::ok("push", "the proxy reports changes at once"),
        Err(why) => {
            let what = format!("the proxy offers events, but none arrives, so changes are found late: {why}");
            let fix = "let /events through the server in front of the proxy (nginx: `proxy_buffering off`)";
            DoctorCheck::warn("push", what, fix)
        }
    }
}

fn check_clock(now: Timestamp, theirs: Timestamp) -> DoctorCheck {
    let off = now.as_second() - theirs.as_second();
    match off.abs() {
        ..=MAX_SKEW_S => DoctorCheck::ok("clock", "agrees with the proxy's"),
        seconds => {
            let way = if off > 0 { "ahead of" } else { "behind" };
            let what = format!("{seconds} s {way} the proxy's; sync is not affected, but times shown are wrong");
            DoctorCheck::warn("clock", what, "turn on time synchronisation (NTP) on both machines")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check::CheckVerdict;
    use super::*;
    use crate::remote::http::HttpOptions;

    struct FixedProbe(Result<ProbeAnswer, RemoteError>);
    impl ProxyProbe for FixedProbe {
        fn ask(&self, _proxy: &HttpOptions) -> Result<ProbeAnswer, RemoteError> {
            self.0.clone()
        }
    }

    fn configured() -> Config {
        let mut config = Config::defaults("h");
        config.proxy.url = "https://p".to_owned();
        config.proxy.token = Some("t".to_owned().into());
        config
    }

    fn verdicts(checks: &[DoctorCheck]) -> Vec<(&'static str, CheckVerdict, Exit)> {
        checks.iter().map(|c| (c.name, c.verdict, c.exit)).collect()
    }

    #[test]
    fn check_proxy_judges_each_answer() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let ask = |answer| verdicts(&check_proxy(&configured(), &BTreeMap::new(), &FixedProbe(answer), now));
        let token = ("token", CheckVerdict::Ok, Exit::Done);
        let well = ProbeAnswer { capabilities: vec!["events".to_owned()], time: Some(now), ..ProbeAnswer::default() };
        let ok = |name| (name, CheckVerdict::Ok, Exit::Done);
        assert_eq!(ask(Ok(well)), [token, ok("proxy"), ok("clock")]);
        let late = ProbeAnswer { time: Some(Timestamp::from_second(1_800_000_400).unwrap()), ..ProbeAnswer::default() };
        assert_eq!(ask(Ok(late)), [token, ok("proxy"), ("clock", CheckVerdict::Warn, Exit::Done)]);
        let full = ProbeAnswer { warnings: vec!["the disk is nearly full".to_owned()], ..ProbeAnswer::default() };
        assert_eq!(ask(Ok(full)), [token, ok("proxy"), ("proxy", CheckVerdict::Warn, Exit::Done)]);
        let url = || "https://p".to_owned();
        assert_eq!(
            ask(Err(RemoteError::Auth { url: url(), status: 401 })),
            [token, ("proxy", CheckVerdict::Fail, Exit::Refused)]
        );
        assert_eq!(
            ask(Err(RemoteError::Unreachable { url: url(), why: "refused".to_owned() })),
            [token, ("proxy", CheckVerdict::Fail, Exit::Temporary)]
        );
    }

    #[test]
    fn proxy_is_not_asked_without_a_token() {
        struct NeverAsked;
        impl ProxyProbe for NeverAsked {
            fn ask(&self, _proxy: &HttpOptions) -> Result<ProbeAnswer, RemoteError> {
                panic!("asked")
            }
        }
        let mut config = configured();
        config.proxy.token = None;
        let checks = check_proxy(&config, &BTreeMap::new(), &NeverAsked, Timestamp::UNIX_EPOCH);
        assert_eq!(verdicts(&checks), [("token", CheckVerdict::Fail, Exit::Usage)]);
        config = configured();
        config.proxy.ca_file = Some("/nonexistent/ca.pem".into());
        let checks = check_proxy(&config, &BTreeMap::new(), &NeverAsked, Timestamp::UNIX_EPOCH);
        assert_eq!(verdicts(&checks), [("proxy", CheckVerdict::Fail, Exit::Usage)]);
    }
}
