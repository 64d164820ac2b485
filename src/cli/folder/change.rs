//! Changes a file of a folder, for `restore` and `conflicts resolve`: through the running agent, or alone.

use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;

use super::lookup::ConfiguredFolder;
use crate::agent::change::describe;
use crate::agent::control::{ControlRequest, ControlResponse};
use crate::cli::agent_client;
use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::process::runtime::client_runtime;
use crate::config::resolve_links;
use crate::local::{ChangeOutcome, FolderChange};

/// Longest wait for another command that works on the folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Makes a change. Replaced and removed files go to history.
pub(crate) fn change_file(app: &App, open: &ConfiguredFolder, change: &FolderChange) -> anyhow::Result<ChangeOutcome> {
    let runtime = client_runtime()?;
    let request = ControlRequest::Change { folder: resolve_links(&open.root), change: change.clone() };
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match runtime.block_on(agent_client::request_change(app, &request))? {
            Some(ControlResponse::Changed { outcome }) => return Ok(outcome),
            Some(_) => return Err(agent_client::unexpected_answer()),
            None => {}
        }
        let lock =
            open.folder.disk().lock_root().with_context(|| format!("{}: cannot lock it", open.root.display()))?;
        if lock.is_some() {
            let made = open.folder.change_and_sweep(change, Timestamp::now());
            return made.map_err(|e| CommandFailure::new(Exit::Error, describe(&open.root, &e)).into());
        }
        if Instant::now() >= deadline {
            let why =
                "another memsync works on this folder; nothing was changed; try again when it has ended, or stop it";
            return Err(CommandFailure::new(Exit::Error, format!("{}: {why}", open.root.display())).into());
        }
        std::thread::sleep(LOCK_POLL);
    }
}
