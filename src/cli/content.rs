//! Changing a file of a folder, for `restore` and `conflicts resolve`: through the agent, or alone while none runs.

use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;

use super::app::App;
use super::exit::{Exit, Failure};
use super::locate::{self, Open};
use super::talk;
use crate::agent::change::describe;
use crate::agent::control::{ControlRequest, ControlResponse};
use crate::local::{ChangeOutcome, FolderChange};

/// The longest wait for another command that works on the folder.
const BUSY_LIMIT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Makes a change. What it displaces goes to history.
///
/// # Errors
/// Why it failed, and what it did until then. No content is lost.
pub fn change(app: &App, open: &Open, change: &FolderChange) -> anyhow::Result<ChangeOutcome> {
    let runtime = talk::runtime()?;
    let request = ControlRequest::Change { folder: locate::real(&open.root), change: change.clone() };
    let until = Instant::now() + BUSY_LIMIT;
    loop {
        match runtime.block_on(talk::ask_change(app, &request))? {
            Some(ControlResponse::Changed { outcome }) => return Ok(outcome),
            Some(_) => return Err(talk::unexpected()),
            None => {}
        }
        let held =
            open.folder.disk().lock_root().with_context(|| format!("{}: cannot lock it", open.root.display()))?;
        if held.is_some() {
            let made = open.folder.change(change, Timestamp::now());
            return made.map_err(|e| Failure::new(Exit::Error, describe(&open.root, &e)).into());
        }
        if Instant::now() >= until {
            let why =
                "another memsync works on this folder; nothing was changed; try again when it is done, or stop it";
            return Err(Failure::new(Exit::Error, format!("{}: {why}", open.root.display())).into());
        }
        std::thread::sleep(BUSY_PAUSE);
    }
}
