//! `memsync wait`: returns when everything is in sync, with the exit code of `memsync status`.
//!
//! Without a timeout it also returns when only a person can help.

use std::time::{Duration, Instant};

use crate::agent::control::{ControlRequest, ControlResponse};
use crate::agent::status::Status;
use crate::cli::agent_client;
use crate::cli::app::App;
use crate::cli::args::WaitArgs;
use crate::cli::exit::Exit;
use crate::cli::process::output;
use crate::cli::process::runtime::client_runtime;
use crate::cli::view::verdict::StatusVerdict;

/// Wait between two questions, when the agent answered at once and not all was in sync.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

pub(super) fn run(app: &App, args: &WaitArgs) -> anyhow::Result<Exit> {
    // A timeout beyond the clock's range never ends.
    let deadline = args.timeout.and_then(|t| Instant::now().checked_add(t));
    client_runtime()?.block_on(wait(app, deadline))
}

async fn wait(app: &App, deadline: Option<Instant>) -> anyhow::Result<Exit> {
    let left = || deadline.map(|d| d.saturating_duration_since(Instant::now()));
    let mut last_note = None;
    let mut status = scanned_status(app, left()).await?;
    loop {
        let StatusVerdict { exit, headline, .. } = StatusVerdict::of(&status);
        if status.in_sync {
            return Ok(exit);
        }
        let needs_person = status.folders.iter().all(|f| f.in_sync || f.needs_person());
        // With a timeout, a person may still help in time.
        if needs_person && deadline.is_none() {
            output::note(format_args!("not in sync: {headline}; see `memsync status`"));
            return Ok(exit);
        }
        if left() == Some(Duration::ZERO) {
            output::note(format_args!("not in sync in time: {headline}; see `memsync status`"));
            return Ok(exit);
        }
        if (needs_person || exit >= Exit::Temporary) && last_note.as_ref() != Some(&headline) {
            output::note(format_args!("waiting: {headline}; see `memsync status`"));
            last_note = Some(headline);
        }
        tokio::time::sleep(left().map_or(POLL_INTERVAL, |l| l.min(POLL_INTERVAL))).await;
        // Where a person is needed, the agent does not wait and another scan does not help.
        status =
            if needs_person { agent_client::require_status(app).await? } else { scanned_status(app, left()).await? };
    }
}

/// The status after a full scan, so that files written just before count. Returns without the scan when time is up.
async fn scanned_status(app: &App, left: Option<Duration>) -> anyhow::Result<Status> {
    let request = ControlRequest::Wait { timeout_s: left.map(|l| l.as_secs() + 1) };
    let answer = agent_client::ask_without_limit(app, &request, |why| output::note(format_args!("waiting: {why}")));
    let answer = match left {
        Some(left) => tokio::time::timeout(left, answer).await.ok().transpose()?,
        None => Some(answer.await?),
    };
    match answer {
        Some(ControlResponse::Status(status)) => Ok(*status),
        Some(_) => Err(agent_client::unexpected_answer()),
        // The scan has not ended, so the status may lack a change.
        None => agent_client::require_status(app).await.map(|status| Status { in_sync: false, ..status }),
    }
}
