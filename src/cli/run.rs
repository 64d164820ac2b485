//! `memsync run`: the agent in the foreground, for all configured folders.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;

use super::app::App;
use super::exit::Exit;
use super::signals::{Wish, Wishes, notify};
use super::{serve, setup};
use crate::agent::{Agent, AgentOptions};
use crate::config::Config;

/// How often the token is read again while the proxy refuses the one in use.
const REREAD_INTERVAL: Duration = Duration::from_secs(2);

/// # Errors
/// When nothing is configured, the config is not right, or another agent runs.
pub fn run(app: &App) -> anyhow::Result<Exit> {
    let options = setup::agent(app, app.config()?)?;
    serve::runtime()?.block_on(async {
        let mut wishes = Wishes::listen()?;
        let folders = options.folders.len();
        let url = options.proxy_url.clone();
        let agent = Agent::start(options).await?;
        tracing::info!("syncing {folders} folder(s) with {url}");
        notify(NotifyState::Ready);
        tend(app, &agent, &mut wishes, || ()).await;
        notify(NotifyState::Stopping);
        agent.stop().await;
        anyhow::Ok(())
    })?;
    Ok(Exit::Done)
}

/// Does what the signals and the control socket ask, until a signal says stop. `also`: what else a reload reads again.
pub async fn tend(app: &App, agent: &Agent, wishes: &mut Wishes, also: impl Fn()) {
    loop {
        let wish = tokio::select! {
            wish = wishes.next() => wish,
            () = agent.reload_wanted() => Wish::Reload,
            () = corrected_token(app, agent) => {
                tracing::info!("the token was read again, because the proxy refused the one before");
                continue;
            }
        };
        match wish {
            Wish::Stop => return,
            Wish::SyncNow => agent.sync_now(),
            Wish::Reload => {
                also();
                match reload(app, agent).await {
                    Ok(()) => tracing::info!("config and token were read again"),
                    // What runs well is not stopped for a slip of the pen.
                    Err(e) => tracing::error!("reload: {e:#}; what ran before goes on"),
                }
            }
        }
    }
}

/// Returns once the agent has another token in place of one that the proxy refused.
async fn corrected_token(app: &App, agent: &Agent) {
    loop {
        agent.token_refused().await;
        match reread_token(app, agent) {
            Ok(true) => return,
            Ok(false) => {}
            // The file may be in the middle of its correction. `doctor` names what stays wrong with it.
            Err(e) => tracing::debug!("the token cannot be read again: {e:#}"),
        }
        tokio::time::sleep(REREAD_INTERVAL).await;
    }
}

/// True: the token is another one than before, and the agent has it. The token of another proxy is left alone until
/// the config is reloaded.
fn reread_token(app: &App, agent: &Agent) -> anyhow::Result<bool> {
    let config = Config::load(&app.dirs.config_file, &app.around)?;
    let (token, _) = config.token(&app.around.env)?;
    Ok(agent.replace_token(&config.proxy.url, &token))
}

async fn reload(app: &App, agent: &Agent) -> anyhow::Result<()> {
    Ok(agent.reload(reread(app)?).await?)
}

fn reread(app: &App) -> anyhow::Result<AgentOptions> {
    let config = Config::load(&app.dirs.config_file, &app.around).map_err(Arc::new)?;
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    setup::agent(app, &config).context(app.dirs.config_file.display().to_string())
}
