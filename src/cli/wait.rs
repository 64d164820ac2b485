//! `memsync wait`: returns when everything is in sync, with the exit code of `memsync status`. Without a timeout it also
//! returns when only a person can help.

use std::time::{Duration, Instant};

use super::app::App;
use super::exit::Exit;
use super::verdict::Verdict;
use super::{output, talk, verdict};
use crate::agent::control::{ControlRequest, ControlResponse};
use crate::agent::status::Status;

/// Between two looks, when the agent answered at once and not all was in sync.
const PAUSE: Duration = Duration::from_millis(200);

/// # Errors
/// Where no agent runs.
pub fn run(app: &App, timeout: Option<Duration>) -> anyhow::Result<Exit> {
    // A time too far away to be told is for ever.
    let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    talk::runtime()?.block_on(async {
        let left = || deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let mut told = None;
        let mut status = looked(app, left()).await?;
        loop {
            let Verdict { exit, headline, .. } = verdict::of(&status);
            if status.in_sync {
                return Ok(exit);
            }
            // With a timeout, a person may help in time.
            let needs_person = status.folders.iter().all(|f| f.in_sync || f.needs_person());
            if needs_person && timeout.is_none() {
                output::note(format_args!("not in sync: {headline}; see `memsync status`"));
                return Ok(exit);
            }
            if left() == Some(Duration::ZERO) {
                output::note(format_args!("not in sync in time: {headline}; see `memsync status`"));
                return Ok(exit);
            }
            if (needs_person || exit >= Exit::Temporary) && told.as_ref() != Some(&headline) {
                output::note(format_args!("waiting: {headline}; see `memsync status`"));
                told = Some(headline);
            }
            tokio::time::sleep(left().map_or(PAUSE, |l| l.min(PAUSE))).await;
            // Where a person is needed, the agent does not wait, and another scan does not help.
            status = if needs_person { now(app).await? } else { looked(app, left()).await? };
        }
    })
}

/// The status after a look at everything, so that what was written just before counts; at the latest when time is
/// up.
async fn looked(app: &App, left: Option<Duration>) -> anyhow::Result<Status> {
    let request = ControlRequest::Wait { timeout_s: left.map(|l| l.as_secs() + 1) };
    let answer = talk::ask_patiently(app, &request, |why| output::note(format_args!("waiting: {why}")));
    let answer = match left {
        Some(left) => tokio::time::timeout(left, answer).await.ok().transpose()?,
        None => Some(answer.await?),
    };
    match answer {
        Some(ControlResponse::Status(status)) => Ok(*status),
        Some(_) => Err(talk::unexpected()),
        // The agent may know of nothing yet that only a look would find.
        None => now(app).await.map(|status| Status { in_sync: false, ..status }),
    }
}

async fn now(app: &App) -> anyhow::Result<Status> {
    talk::status(app).await?.ok_or_else(|| talk::no_agent(app))
}
