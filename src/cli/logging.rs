//! Where log lines go: stderr, and for the agent a file where the config asks for one.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::app::App;
use super::args::{Command, LogFormat};
use super::exit::{Exit, Failure};
use crate::config::create_private_dir;
use crate::path::is_turning;

/// Daily log files kept.
const KEPT: usize = 7;

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Keeps the log file's writer alive; dropped last, so that the last lines reach the file.
#[must_use]
pub struct Logging {
    _file: Option<WorkerGuard>,
}

/// Starts logging for `command`. `MEMSYNC_LOG` (filter directives) goes before the flags, those shift the
/// config's level. Commands that answer and exit log warnings only, unless asked.
///
/// # Errors
/// When the log folder cannot be made or the directives are not right.
pub fn start(app: &App, command: &Command) -> anyhow::Result<Logging> {
    let stays = matches!(command, Command::Run | Command::Up { .. } | Command::Serve { .. });
    let configured = configured_level(app, command)?;
    let base = if stays { configured } else { configured.min(LevelFilter::WARN) };
    let directives = match app.around.env.get("MEMSYNC_LOG").filter(|v| !v.is_empty()) {
        Some(directives) => directives.clone(),
        None => {
            let level = directives(shifted(base, app.global.verbose, app.global.quiet));
            // A line for every request is for whoever runs a proxy, not for whoever runs everything in a terminal.
            let chatty = !matches!(command, Command::Up { .. }) || app.global.verbose > 0;
            if chatty { level } else { format!("{level},memsync::access=warn") }
        }
    };
    let filter = || {
        let bad = |e| Failure::new(Exit::Usage, format!("MEMSYNC_LOG={directives}: {e}; write it like memsync=debug"));
        EnvFilter::try_new(&directives).map_err(bad)
    };
    let log_file = matches!(command, Command::Run) && app.config().is_ok_and(|c| c.log_file);
    let format = app.global.log_format;
    let (file, guard) = if log_file {
        let (writer, guard) = tracing_appender::non_blocking(log_files(&app.dirs.logs)?);
        let writer = BoxMakeWriter::new(move || LineWriter { inner: writer.clone(), format });
        (Some(lines(format, false, writer).with_filter(filter()?)), Some(guard))
    } else {
        (None, None)
    };
    // Through the same choice of colours as everything else.
    let color = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let writer = BoxMakeWriter::new(move || LineWriter { inner: io::stderr(), format });
    let stderr = lines(format, color, writer).with_filter(filter()?);
    tracing_subscriber::registry().with(stderr).with(file).try_init()?;
    Ok(Logging { _file: guard })
}

/// The level that the config or the environment names. A proxy alone needs no config, so its variables count without one:
/// `MEMSYNC_LOG_LEVEL`, and `LOG_LEVEL`, by which other proxies are set.
fn configured_level(app: &App, command: &Command) -> anyhow::Result<LevelFilter> {
    let set = |name: &'static str| app.around.env.get(name).filter(|v| !v.is_empty()).map(|value| (name, value));
    let is_proxy = matches!(command, Command::Serve { .. });
    match (app.config(), set("MEMSYNC_LOG_LEVEL").or_else(|| set("LOG_LEVEL"))) {
        (_, Some((name, value))) if is_proxy => level(value).ok_or_else(|| {
            let why = format!("{name}={value}: write one of off, error, warn, info, debug, trace");
            Failure::new(Exit::Usage, why).into()
        }),
        (Ok(config), _) => Ok(config.log_level),
        (Err(_), _) => Ok(set("MEMSYNC_LOG_LEVEL").and_then(|(_, value)| level(value)).unwrap_or(LevelFilter::INFO)),
    }
}

/// A level by its name, in any case, or by the one that Python has for it.
fn level(name: &str) -> Option<LevelFilter> {
    match name.trim().to_ascii_lowercase().as_str() {
        "warning" => Some(LevelFilter::WARN),
        "critical" | "fatal" => Some(LevelFilter::ERROR),
        name => LEVELS.into_iter().find(|level| level.to_string() == name),
    }
}

/// Other crates stay silent: memsync says itself what their errors mean. At the most verbose level their warnings are
/// shown; below that they may show headers.
fn directives(level: LevelFilter) -> String {
    let others = if level == LevelFilter::TRACE { LevelFilter::WARN } else { LevelFilter::OFF };
    format!("{others},memsync={level}")
}

fn shifted(base: LevelFilter, verbose: u8, quiet: u8) -> LevelFilter {
    let at = LEVELS.iter().position(|l| *l == base).unwrap_or(3);
    LEVELS[(at + usize::from(verbose)).saturating_sub(usize::from(quiet)).min(LEVELS.len() - 1)]
}

fn lines<S>(format: LogFormat, color: bool, writer: BoxMakeWriter) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    // A failure would be printed to stderr, and a stderr that nobody reads would end the process.
    let layer = fmt::layer().with_writer(writer).with_ansi(color).log_internal_errors(false);
    match format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// Escapes in lines of text what would turn them around. Control characters in messages are escaped already, and JSON is
/// no text for people.
struct LineWriter<W> {
    inner: W,
    format: LogFormat,
}

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        if self.format == LogFormat::Text && text.contains(is_turning) {
            let escaped = |c: char| if is_turning(c) { c.escape_unicode().to_string() } else { c.to_string() };
            self.inner.write_all(text.chars().map(escaped).collect::<String>().as_bytes())?;
        } else {
            self.inner.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The folder is for these files alone: the rotation deletes whatever has their prefix and suffix.
fn log_files(dir: &Path) -> anyhow::Result<RollingFileAppender> {
    create_private_dir(dir).with_context(|| format!("{}: the log folder cannot be made", dir.display()))?;
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("memsync")
        .filename_suffix("log")
        .max_log_files(KEPT)
        .build(dir)
        .with_context(|| format!("{}: the log file cannot be written", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_shift_the_level_and_stop_at_the_ends() {
        assert_eq!(shifted(LevelFilter::INFO, 1, 0), LevelFilter::DEBUG);
        assert_eq!(shifted(LevelFilter::INFO, 9, 0), LevelFilter::TRACE);
        assert_eq!(shifted(LevelFilter::INFO, 0, 2), LevelFilter::ERROR);
        assert_eq!(shifted(LevelFilter::WARN, 0, 9), LevelFilter::OFF);
    }

    #[test]
    fn level_is_read_by_either_name() {
        assert_eq!(level("WARNING"), Some(LevelFilter::WARN));
        assert_eq!((level(" Debug "), level("off")), (Some(LevelFilter::DEBUG), Some(LevelFilter::OFF)));
        assert_eq!((level(""), level("loud")), (None, None));
    }

    #[test]
    fn lines_do_not_turn_text_around() {
        let mut line = LineWriter { inner: Vec::new(), format: LogFormat::Text };
        line.write_all("\u{1b}[1mnote\u{202e}dm.md\n".as_bytes()).unwrap();
        assert_eq!(line.inner, b"\x1b[1mnote\\u{202e}dm.md\n");
    }

    #[test]
    fn other_crates_log_warnings_at_trace_alone() {
        assert_eq!(directives(LevelFilter::TRACE), "warn,memsync=trace");
        assert_eq!(directives(LevelFilter::DEBUG), "off,memsync=debug");
        assert_eq!(directives(LevelFilter::ERROR), "off,memsync=error");
    }
}
