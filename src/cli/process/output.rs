//! Answers go to stdout, messages for people to stderr.
//!
//! A reader that closes stdout early (`memsync status | head -1`) is no error: the command keeps its exit code.

use std::fmt::Display;
use std::io::{self, Write};

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

/// Writes a line to stderr.
pub(crate) fn note(text: impl Display) {
    note_with(|out| writeln!(out, "{text}"));
}

/// Writes to stderr. A failure is ignored: it cannot be reported anywhere.
pub(crate) fn note_with(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
    let _ = write(&mut anstream::stderr().lock());
}
