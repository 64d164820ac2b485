//! `memsync run`: the agent in the foreground, for all configured folders.

use std::sync::Arc;

use anyhow::Context;
use sd_notify::NotifyState;

use super::app::App;
use super::exit::Exit;
use super::signals::{Wish, Wishes, notify};
use super::{serve, setup};
use crate::agent::run::{Agent, AgentOptions};
use crate::config::Config;

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

async fn reload(app: &App, agent: &Agent) -> anyhow::Result<()> {
    Ok(agent.reload(reread(app)?).await?)
}

fn reread(app: &App) -> anyhow::Result<AgentOptions> {
    let config = Config::load(&app.dirs.config_file, &app.around).map_err(Arc::new)?;
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    setup::agent(app, &config).context(app.dirs.config_file.display().to_string())
}
