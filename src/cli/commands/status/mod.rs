//! `memsync status`: shows all folders or one file, once or with `--watch`, with or without an agent.

mod file;

pub(super) use file::ignored_by;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::agent::control::ControlError;
use crate::agent::status::Status;
use crate::cli::agent_client::current_status;
use crate::cli::app::App;
use crate::cli::args::StatusArgs;
use crate::cli::exit::Exit;
use crate::cli::process::output::{self, OutputReader};
use crate::cli::process::runtime::client_runtime;
use crate::cli::view::status::status_text;
use crate::cli::view::verdict::StatusVerdict;

use file::{file_status, file_status_text};

const POLL_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(app: &App, args: &StatusArgs) -> anyhow::Result<Exit> {
    let runtime = client_runtime()?;
    if args.watch {
        return runtime.block_on(watch(app, args.path.as_deref()));
    }
    let status = runtime.block_on(current_status(app))?;
    match args.path.as_deref() {
        Some(path) => {
            let file = file_status(app, path, &status)?;
            app.answer(&file, |out, file| write!(out, "{}", file_status_text(file, Timestamp::now())))?;
            Ok(file.exit())
        }
        None => {
            app.answer(&status, |out, status| write!(out, "{}", status_text(status, Timestamp::now())))?;
            Ok(StatusVerdict::of(&status).exit)
        }
    }
}

/// Shows each change until the process is stopped or the reader closes stdout. The exit code is that of the last status
/// shown.
async fn watch(app: &App, path: Option<&Path>) -> anyhow::Result<Exit> {
    let mut screen = WatchScreen::new(app);
    let mut silence_noted = false;
    loop {
        match poll_status(app, &mut silence_noted).await? {
            None => {}
            Some(status) => {
                let (exit, reader) = show(app, path, &status, &mut screen)?;
                if reader == OutputReader::Gone {
                    return Ok(exit);
                }
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// `None` if the agent gave no answer this time. An agent that stays silent is noted once.
async fn poll_status(app: &App, silence_noted: &mut bool) -> anyhow::Result<Option<Status>> {
    match current_status(app).await {
        Ok(status) => {
            *silence_noted = false;
            Ok(Some(status))
        }
        Err(e) if e.chain().any(|c| matches!(c.downcast_ref(), Some(ControlError::Silent { .. }))) => {
            if !std::mem::replace(silence_noted, true) {
                output::note(format_args!("{e:#}"));
            }
            Ok(None)
        }
        // The agent stopped in the middle of an answer.
        Err(e) if e.chain().any(|c| c.is::<ControlError>()) => {
            tracing::debug!("{e:#}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn show(
    app: &App,
    path: Option<&Path>,
    status: &Status,
    screen: &mut WatchScreen,
) -> anyhow::Result<(Exit, OutputReader)> {
    let now = Timestamp::now();
    Ok(match path {
        Some(path) => {
            let file = file_status(app, path, status)?;
            (file.exit(), screen.show(&serde_json::to_value(&file)?, || file_status_text(&file, now))?)
        }
        None => {
            let document = serde_json::to_value(status)?;
            (StatusVerdict::of(status).exit, screen.show(&document, || status_text(status, now))?)
        }
    })
}

/// Redraws in place on a terminal. Elsewhere it prints again when something other than a time changed; with `--json`, one
/// line each.
struct WatchScreen {
    json: bool,
    terminal: bool,
    /// The last document shown, without [`CLOCKS`].
    last: Option<Value>,
}

impl WatchScreen {
    fn new(app: &App) -> Self {
        Self { json: app.global.json, terminal: io::stdout().is_terminal() && !app.global.json, last: None }
    }

    fn show(&mut self, document: &Value, text: impl FnOnce() -> String) -> io::Result<OutputReader> {
        let mut lasting = document.clone();
        remove_clocks(&mut lasting);
        let changed = self.last.as_ref() != Some(&lasting);
        let is_first = self.last.is_none();
        let reader = output::print(|out| {
            if self.terminal {
                // Clearing line by line does not flicker.
                let clear = if is_first { "\x1b[2J" } else { "" };
                write!(out, "{clear}\x1b[H{}\x1b[J", text().replace('\n', "\x1b[K\n"))
            } else if changed && self.json {
                writeln!(out, "{document}")
            } else if changed {
                let gap = if is_first { "" } else { "\n" };
                write!(out, "{gap}{}", text())
            } else {
                Ok(())
            }
        })?;
        self.last = Some(lasting);
        Ok(reader)
    }
}

/// The fields of a status that change with time although nothing else did.
const CLOCKS: [&str; 6] = ["uptime_s", "next_sync_s", "asked_at", "counted_at", "last_success", "since"];

/// Removes [`CLOCKS`] from a document.
fn remove_clocks(document: &mut Value) {
    match document {
        Value::Object(map) => {
            map.retain(|key, _| !CLOCKS.contains(&key.as_str()));
            map.values_mut().for_each(remove_clocks);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_clocks),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples::status;

    #[test]
    fn passing_time_is_no_change() {
        let lasting = |status: &Status| {
            let mut document = serde_json::to_value(status).unwrap();
            remove_clocks(&mut document);
            document
        };
        let (mut later, mut busy) = (status(), status());
        later.agent.uptime_s += 1;
        later.folders[0].next_sync_s = Some(1);
        later.proxy.asked_at = Some(Timestamp::now());
        later.folders[0].counted_at = Some(Timestamp::now());
        later.folders[0].last_success = Some(Timestamp::now());
        busy.folders[0].pending.upload = 1;
        assert_eq!(lasting(&status()), lasting(&later));
        assert_ne!(lasting(&status()), lasting(&busy));
    }
}
