//! Output to people and programs: the answer to stdout, messages to stderr.
//!
//! A reader that has gone (`memsync status | head -1`) is no error. The command goes on and keeps its exit code.

use std::fmt::Display;
use std::io::{self, Write};

/// Whether a reader of stdout is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Present,
    Gone,
}

/// Writes to stdout, without colours where it is no terminal.
///
/// # Errors
/// As writing does, other than for a closed pipe.
pub fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Reader> {
    let mut out = anstream::AutoStream::auto(io::stdout()).lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Present),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(e) => Err(e),
    }
}

/// Writes a line to stderr.
pub fn note(text: impl Display) {
    notes(|out| writeln!(out, "{text}"));
}

/// Writes to stderr. A failure has nowhere to be reported, and changes no exit code.
pub fn notes(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
    let _ = write(&mut anstream::stderr().lock());
}
