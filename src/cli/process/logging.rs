//! Where log lines go: to stderr, and for `run` also to a file if the config asks for one.

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

use crate::cli::app::App;
use crate::cli::args::{Command, LogFormat};
use crate::cli::exit::CommandFailure;
use crate::config::create_private_dir;
use crate::path::is_turning;

const MAX_LOG_FILES: usize = 7;

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Starts logging for `command`. `MEMSYNC_LOG` (filter directives) overrides the flags, and the flags shift the level of
/// the config. Commands that answer and exit log warnings only, unless flags ask for more.
///
/// The guard flushes the log file when it is dropped, so drop it last.
pub(crate) fn start(app: &App, command: &Command) -> anyhow::Result<Option<WorkerGuard>> {
    let directives = directives_for(app, command)?;
    let filter = || {
        let bad = |e| CommandFailure::usage(format!("MEMSYNC_LOG={directives}: {e}; write it like memsync=debug"));
        EnvFilter::try_new(&directives).map_err(bad)
    };
    let writes_file = matches!(command, Command::Run) && app.config().is_ok_and(|c| c.log_file);
    let format = app.global.log_format;
    let (file, guard) = if writes_file {
        let (writer, guard) = tracing_appender::non_blocking(log_files(&app.dirs.logs)?);
        let writer = BoxMakeWriter::new(move || LineWriter { inner: writer.clone(), format });
        (Some(log_layer(format, false, writer).with_filter(filter()?)), Some(guard))
    } else {
        (None, None)
    };
    let color = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let writer = BoxMakeWriter::new(move || LineWriter { inner: io::stderr(), format });
    let stderr = log_layer(format, color, writer).with_filter(filter()?);
    tracing_subscriber::registry().with(stderr).with(file).try_init()?;
    Ok(guard)
}

fn directives_for(app: &App, command: &Command) -> anyhow::Result<String> {
    let stays = matches!(command, Command::Run | Command::Up(_) | Command::Serve(_));
    let configured = configured_level(app, command)?;
    let base = if stays { configured } else { configured.min(LevelFilter::WARN) };
    if let Some(directives) = app.machine.env.get("MEMSYNC_LOG").filter(|v| !v.is_empty()) {
        return Ok(directives.clone());
    }
    let level = directives(shift_level(base, app.global.verbose, app.global.quiet));
    // `up` runs in a person's terminal, where a line for each request would bury the rest.
    let logs_access = !matches!(command, Command::Up(_)) || app.global.verbose > 0;
    Ok(if logs_access { level } else { format!("{level},memsync::access=warn") })
}

/// The level of the config or the environment. `serve` needs no config, so it reads `MEMSYNC_LOG_LEVEL` by itself, and
/// `LOG_LEVEL` as other proxies do.
fn configured_level(app: &App, command: &Command) -> anyhow::Result<LevelFilter> {
    let set = |name: &'static str| app.machine.env.get(name).filter(|v| !v.is_empty()).map(|value| (name, value));
    let is_proxy = matches!(command, Command::Serve(_));
    match (app.config(), set("MEMSYNC_LOG_LEVEL").or_else(|| set("LOG_LEVEL"))) {
        (_, Some((name, value))) if is_proxy => parse_level(value).ok_or_else(|| {
            let why = format!("{name}={value}: write one of off, error, warn, info, debug, trace");
            CommandFailure::usage(why).into()
        }),
        (Ok(config), _) => Ok(config.log_level),
        (Err(_), _) => {
            Ok(set("MEMSYNC_LOG_LEVEL").and_then(|(_, value)| parse_level(value)).unwrap_or(LevelFilter::INFO))
        }
    }
}

/// A level by its name or by Python's name for it, in any case.
fn parse_level(name: &str) -> Option<LevelFilter> {
    match name.trim().to_ascii_lowercase().as_str() {
        "warning" => Some(LevelFilter::WARN),
        "critical" | "fatal" => Some(LevelFilter::ERROR),
        name => LEVELS.into_iter().find(|level| level.to_string() == name),
    }
}

/// Other crates stay silent, because memsync explains their errors itself and they may log headers. At trace level their
/// warnings are shown.
fn directives(level: LevelFilter) -> String {
    let others = if level == LevelFilter::TRACE { LevelFilter::WARN } else { LevelFilter::OFF };
    format!("{others},memsync={level}")
}

fn shift_level(base: LevelFilter, verbose: u8, quiet: u8) -> LevelFilter {
    let at = LEVELS.iter().position(|l| *l == base).unwrap_or(3);
    LEVELS[(at + usize::from(verbose)).saturating_sub(usize::from(quiet)).min(LEVELS.len() - 1)]
}

fn log_layer<S>(format: LogFormat, color: bool, writer: BoxMakeWriter) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    // Printing an internal error to a closed stderr would end the process.
    let layer = fmt::layer().with_writer(writer).with_ansi(color).log_internal_errors(false);
    match format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// Escapes characters that reverse the direction of text. Control characters in messages are escaped already. JSON lines
/// stay as they are.
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

/// The daily log files in `dir`. The rotation deletes old files there that have the same prefix and suffix.
fn log_files(dir: &Path) -> anyhow::Result<RollingFileAppender> {
    create_private_dir(dir).with_context(|| format!("{}: the log folder cannot be made", dir.display()))?;
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("memsync")
        .filename_suffix("log")
        .max_log_files(MAX_LOG_FILES)
        .build(dir)
        .with_context(|| format!("{}: the log file cannot be written", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_shift_the_level_within_its_bounds() {
        assert_eq!(shift_level(LevelFilter::INFO, 1, 0), LevelFilter::DEBUG);
        assert_eq!(shift_level(LevelFilter::INFO, 9, 0), LevelFilter::TRACE);
        assert_eq!(shift_level(LevelFilter::INFO, 0, 2), LevelFilter::ERROR);
        assert_eq!(shift_level(LevelFilter::WARN, 0, 9), LevelFilter::OFF);
    }

    #[test]
    fn parse_level_accepts_python_names() {
        assert_eq!(parse_level("WARNING"), Some(LevelFilter::WARN));
        assert_eq!((parse_level(" Debug "), parse_level("off")), (Some(LevelFilter::DEBUG), Some(LevelFilter::OFF)));
        assert_eq!((parse_level(""), parse_level("loud")), (None, None));
    }

    #[test]
    fn direction_marks_are_escaped_in_text_lines() {
        let mut line = LineWriter { inner: Vec::new(), format: LogFormat::Text };
        line.write_all("\u{1b}[1mnote\u{202e}dm.md\n".as_bytes()).unwrap();
        assert_eq!(line.inner, b"\x1b[1mnote\\u{202e}dm.md\n");
    }

    #[test]
    fn other_crates_log_warnings_at_trace_only() {
        assert_eq!(directives(LevelFilter::TRACE), "warn,memsync=trace");
        assert_eq!(directives(LevelFilter::DEBUG), "off,memsync=debug");
        assert_eq!(directives(LevelFilter::ERROR), "off,memsync=error");
    }
}
