//! `memsync run`: the agent in the foreground, for all configured folders.

use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;

use crate::agent::Agent;
use crate::cli::app::App;
use crate::cli::exit::Exit;
use crate::cli::machine::agent_setup;
use crate::cli::process::runtime::server_runtime;
use crate::cli::process::server::{SignalRequest, SignalRequests, notify_systemd};
use crate::config::Config;

/// How often the token is read again while the proxy refuses it.
const TOKEN_POLL: Duration = Duration::from_secs(2);

pub(super) fn run(app: &App) -> anyhow::Result<Exit> {
    let options = agent_setup::agent_options(app, app.config()?)?;
    server_runtime()?.block_on(async {
        let mut signals = SignalRequests::listen()?;
        let folders = options.folders.len();
        let url = options.proxy_url.clone();
        let agent = Agent::start(options).await?;
        tracing::info!("syncing {folders} folder(s) with {url}");
        notify_systemd(NotifyState::Ready);
        serve_requests(app, &agent, &mut signals, || ()).await;
        notify_systemd(NotifyState::Stopping);
        agent.stop().await;
        anyhow::Ok(())
    })?;
    Ok(Exit::Done)
}

/// Carries out the requests of signals and of the control socket, until a signal stops the process. A reload also calls
/// `on_reload`.
pub(super) async fn serve_requests(app: &App, agent: &Agent, signals: &mut SignalRequests, on_reload: impl Fn()) {
    loop {
        let request = tokio::select! {
            request = signals.next() => request,
            () = agent.reload_wanted() => SignalRequest::Reload,
            () = replace_refused_token(app, agent) => {
                tracing::info!("the token was read again, because the proxy refused the previous one");
                continue;
            }
        };
        match request {
            SignalRequest::Stop => return,
            SignalRequest::SyncNow => agent.sync_now(),
            SignalRequest::Reload => {
                on_reload();
                match reload(app, agent).await {
                    Ok(()) => tracing::info!("config and token were read again"),
                    Err(e) => tracing::error!("reload: {e:#}; the agent goes on with the previous config"),
                }
            }
        }
    }
}

/// Returns once the agent has a new token in place of one that the proxy refused.
async fn replace_refused_token(app: &App, agent: &Agent) {
    loop {
        agent.token_refused().await;
        match reread_token(app, agent) {
            Ok(true) => return,
            Ok(false) => {}
            // The user may be editing the file. `doctor` reports a fault that stays.
            Err(e) => tracing::debug!("the token cannot be read again: {e:#}"),
        }
        tokio::time::sleep(TOKEN_POLL).await;
    }
}

/// True if the agent has a new token. The token of another proxy waits for a reload of the config.
fn reread_token(app: &App, agent: &Agent) -> anyhow::Result<bool> {
    let config = Config::load(&app.dirs.config_file, &app.machine)?;
    let (token, _) = config.token(&app.machine.env)?;
    Ok(agent.replace_token(&config.proxy.url, &token))
}

async fn reload(app: &App, agent: &Agent) -> anyhow::Result<()> {
    let config = Config::load(&app.dirs.config_file, &app.machine)?;
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let options = agent_setup::agent_options(app, &config).context(app.dirs.config_file.display().to_string())?;
    Ok(agent.reload(options).await?)
}
