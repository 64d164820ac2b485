//! `memsync status`: one shot or followed; with and without an agent; of everything or of one file.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::app::App;
use super::exit::Exit;
use super::output::{self, Reader};
use super::{file_status, own_proxy, setup, status_text, talk, verdict};
use crate::agent::control::ControlError;
use crate::agent::offline_status;
use crate::agent::status::Status;

/// Between two looks of `--watch`.
const TICK: Duration = Duration::from_secs(1);

/// # Errors
/// When nothing is configured, or the state cannot be read.
pub fn run(app: &App, path: Option<&Path>, watch: bool) -> anyhow::Result<Exit> {
    let runtime = talk::runtime()?;
    if watch {
        return runtime.block_on(follow(app, path));
    }
    let status = runtime.block_on(current(app))?;
    match path {
        Some(path) => {
            let file = file_status::of(app, path, &status)?;
            app.answer(&file, |out, file| write!(out, "{}", file_status::text(file, Timestamp::now())))?;
            Ok(file.exit())
        }
        None => {
            app.answer(&status, |out, status| write!(out, "{}", status_text::text(status, Timestamp::now())))?;
            Ok(verdict::of(&status).exit)
        }
    }
}

/// What the agent says, or where none runs, what it left behind.
///
/// # Errors
/// When nothing is configured, or the agent cannot be asked.
pub async fn current(app: &App) -> anyhow::Result<Status> {
    match talk::status(app).await? {
        Some(status) => Ok(status),
        None => {
            let config = app.config()?;
            let (setups, start) = (setup::folders_at_rest(app, config), own_proxy::start_command(app, config));
            Ok(offline_status(&setups, &config.device, &config.proxy.url, start))
        }
    }
}

/// Until the process is told to stop, or the reader goes. The exit code is that of the last status shown.
async fn follow(app: &App, path: Option<&Path>) -> anyhow::Result<Exit> {
    let mut screen = Screen::new(app);
    let mut silence_told = false;
    loop {
        let status = match current(app).await {
            Ok(status) => {
                silence_told = false;
                status
            }
            Err(e) if e.chain().any(|c| matches!(c.downcast_ref(), Some(ControlError::Silent { .. }))) => {
                if !std::mem::replace(&mut silence_told, true) {
                    output::note(format_args!("{e:#}"));
                }
                tokio::time::sleep(TICK).await;
                continue;
            }
            // An agent that stops in the middle of an answer; the next look finds it gone, or back.
            Err(e) if e.chain().any(|c| c.is::<ControlError>()) => {
                tracing::debug!("{e:#}");
                tokio::time::sleep(TICK).await;
                continue;
            }
            Err(e) => return Err(e),
        };
        let now = Timestamp::now();
        let (exit, reader) = match path {
            Some(path) => {
                let file = file_status::of(app, path, &status)?;
                (file.exit(), screen.show(&serde_json::to_value(&file)?, || file_status::text(&file, now))?)
            }
            None => {
                let document = serde_json::to_value(&status)?;
                (verdict::of(&status).exit, screen.show(&document, || status_text::text(&status, now))?)
            }
        };
        if reader == Reader::Gone {
            return Ok(exit);
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Where `--watch` draws: over the last picture on a terminal; elsewhere one more picture whenever something has
/// changed, with `--json` in one line.
struct Screen {
    json: bool,
    terminal: bool,
    /// What was shown last, without what changes by itself.
    last: Option<serde_json::Value>,
}

impl Screen {
    fn new(app: &App) -> Self {
        Self { json: app.global.json, terminal: io::stdout().is_terminal() && !app.global.json, last: None }
    }

    fn show(&mut self, document: &serde_json::Value, text: impl FnOnce() -> String) -> io::Result<Reader> {
        let mut lasting = document.clone();
        without_clocks(&mut lasting);
        let changed = self.last.as_ref() != Some(&lasting);
        let is_first = self.last.is_none();
        let reader = output::print(|out| {
            if self.terminal {
                // Every line is cleared to its end and the rest below: no flicker, and nothing of the last picture stays.
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

/// Takes out what is another number every second.
fn without_clocks(document: &mut serde_json::Value) {
    match document {
        serde_json::Value::Object(map) => {
            map.retain(|key, _| !matches!(key.as_str(), "uptime_s" | "next_sync_s" | "asked_at" | "counted_at"));
            map.values_mut().for_each(without_clocks);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(without_clocks),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::status_text::tests::status;
    use super::*;

    #[test]
    fn time_that_goes_by_is_no_change() {
        let lasting = |status: &Status| {
            let mut document = serde_json::to_value(status).unwrap();
            without_clocks(&mut document);
            document
        };
        let (mut later, mut busy) = (status(), status());
        later.agent.uptime_s += 1;
        later.folders[0].next_sync_s = Some(1);
        later.proxy.asked_at = Some(Timestamp::now());
        later.folders[0].counted_at = Some(Timestamp::now());
        busy.folders[0].pending.upload = 1;
        assert_eq!(lasting(&status()), lasting(&later));
        assert_ne!(lasting(&status()), lasting(&busy));
    }
}
