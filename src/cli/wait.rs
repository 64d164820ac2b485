//! `memsync wait`: returns when everything is in sync.

use std::time::{Duration, Instant};

use super::app::App;
use super::exit::Exit;
use super::{talk, verdict};
use crate::agent::control::Request;

/// Between two tries, when the agent answered at once and nothing was in sync.
const PAUSE: Duration = Duration::from_millis(200);

/// # Errors
/// Where no agent runs.
pub fn run(app: &App, timeout: Option<Duration>) -> anyhow::Result<Exit> {
    // A time too far away to be told is for ever.
    let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    talk::runtime()?.block_on(async {
        let mut told = None;
        loop {
            let Some(status) = talk::status(app).await? else { return Err(talk::no_agent(app)) };
            let exit = verdict::sync_exit(&status);
            if exit == Exit::Done {
                return Ok(exit);
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let headline = verdict::of(&status).headline;
            if left == Some(Duration::ZERO) {
                anstream::eprintln!("not in sync in time: {headline}; see `memsync status`");
                return Ok(exit);
            }
            if exit > Exit::Temporary && told.as_ref() != Some(&headline) {
                anstream::eprintln!("waiting: {headline}; see `memsync status`");
                told = Some(headline);
            }
            let request = Request::Wait { timeout_s: left.map(|l| l.as_secs() + 1) };
            let answer = talk::ask(app, &request);
            match left {
                // The answer comes when it is time to look again; whatever it says, the status decides.
                Some(left) => drop(tokio::time::timeout(left, answer).await.ok().transpose()?),
                None => drop(answer.await?),
            }
            tokio::time::sleep(left.map_or(PAUSE, |l| l.min(PAUSE))).await;
        }
    })
}
