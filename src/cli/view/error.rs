//! Errors on stderr.

use anstyle::{AnsiColor, Style};

use super::format;
use crate::cli::exit::CommandFailure;
use crate::cli::process::output::note;

const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Prints an error: its causes on one line, then the lines to copy.
pub(crate) fn show_error(error: &anyhow::Error) {
    note(format_args!("{} {}", format::painted(ERROR, "error:"), format::printable(&format!("{error:#}"))));
    let advice = error.chain().find_map(|cause| cause.downcast_ref::<CommandFailure>()?.advice.as_deref());
    for line in advice.into_iter().flat_map(str::lines) {
        note(format::printable(line));
    }
}
