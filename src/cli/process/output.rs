//! Answers go to stdout, messages for people to stderr.
//!
//! A reader that closes stdout early (`memsync status | head -1`) is no error: the command keeps its exit code.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::exit::CommandFailure;
use crate::cli::view::format;

const ERROR: Style = AnsiColor::Red.on_default().bold();

/// The state of the process that reads stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputReader {
    Present,
    Gone,
}

/// Writes to stdout, without colours where stdout is no terminal.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<OutputReader> {
    let mut out = anstream::AutoStream::auto(io::stdout()).lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(OutputReader::Present),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(OutputReader::Gone),
        Err(e) => Err(e),
    }
}

/// Writes bytes to stdout as they are, also bytes that look like colours.
pub(crate) fn print_bytes(bytes: &[u8]) -> io::Result<OutputReader> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(OutputReader::Present),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(OutputReader::Gone),
        Err(e) => Err(e),
    }
}

/// True if a terminal shows stdout.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// True if colours reach the reader of stdout.
pub(crate) fn has_colors() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// Writes a line to stderr.
pub(crate) fn note(text: impl Display) {
    note_with(|out| writeln!(out, "{text}"));
}

/// Writes to stderr. A failure is ignored: it cannot be reported anywhere.
pub(crate) fn note_with(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
    let _ = write(&mut anstream::stderr().lock());
}

/// Prints an error: its causes on one line, then the lines to copy.
pub(crate) fn show_error(error: &anyhow::Error) {
    note(format_args!("{} {}", format::painted(ERROR, "error:"), format::printable(&format!("{error:#}"))));
    let advice = error.chain().find_map(|cause| cause.downcast_ref::<CommandFailure>()?.advice.as_deref());
    for line in advice.into_iter().flat_map(str::lines) {
        note(format::printable(line));
    }
}

/// A progress bar on stderr, drawn on a terminal only.
pub(crate) fn progress_bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
