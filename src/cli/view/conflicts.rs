//! Conflicts: the list, and the outcome of resolving one.

use std::io::{self, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::format;
use crate::cli::folder::conflict_copies::ConflictCopy;

/// The document of `conflicts`.
#[derive(Serialize)]
pub(crate) struct ConflictList {
    pub(crate) conflicts: Vec<ConflictCopy>,
}

/// The document of `conflicts resolve`.
#[derive(Serialize)]
pub(crate) struct ConflictResolution {
    pub(crate) original: PathBuf,
    /// `file`, `copy` or `both`.
    pub(crate) keep: &'static str,
    pub(crate) copies: Vec<ResolvedCopy>,
}

#[derive(Serialize)]
pub(crate) struct ResolvedCopy {
    pub(crate) path: PathBuf,
    /// `used`, `removed` or `renamed`.
    pub(crate) outcome: &'static str,
    pub(crate) renamed_to: Option<PathBuf>,
}

pub(crate) fn write_conflicts(out: &mut dyn Write, conflicts: &[ConflictCopy]) -> io::Result<()> {
    if conflicts.is_empty() {
        return writeln!(out, "No conflicts.");
    }
    let now = Timestamp::now();
    for copy in conflicts {
        write_conflict(out, copy, now)?;
    }
    writeln!(out, "\nLook at both, then settle each with `memsync conflicts resolve PATH --keep TEXT`:")?;
    writeln!(out, "  file  the file keeps its text; the copy goes to history")?;
    writeln!(out, "  copy  the copy's text takes the file's place; the file's text goes to history")?;
    writeln!(out, "  both  both stay; the copy becomes an ordinary file")
}

fn write_conflict(out: &mut dyn Write, copy: &ConflictCopy, now: Timestamp) -> io::Result<()> {
    let original = format::path(&copy.folder.join(&copy.original));
    let gone = if copy.original_exists { "" } else { " (gone)" };
    writeln!(out, "{}{gone}", format::painted(format::BOLD, &original))?;
    let when = |at: Option<Timestamp>| at.map(|at| format!(", written {}", format::ago(now, at))).unwrap_or_default();
    if let Some(size) = copy.original_size {
        let (size, when) = (format::size(size), when(copy.original_modified));
        writeln!(out, "  file  from another machine than {}{when} ({size})", copy.device)?;
    }
    let (size, when) = (format::size(copy.size), when(copy.modified));
    writeln!(out, "  copy  from {}{when} ({size}): {}", copy.device, format::printable(&copy.path))
}

pub(crate) fn write_resolution(out: &mut dyn Write, resolution: &ConflictResolution) -> io::Result<()> {
    let original = format::path(&resolution.original);
    if resolution.copies.is_empty() {
        return writeln!(out, "{original} has no conflict; nothing to do.");
    }
    for copy in &resolution.copies {
        let path = format::path(&copy.path);
        match (&copy.renamed_to, copy.outcome) {
            (Some(to), _) => writeln!(out, "{path} is now {}; {original} stays as it is.", format::path(to))?,
            (None, "used") => {
                writeln!(out, "{original} has the text of {path} now; its previous text is in its history.")?;
            }
            (None, _) => writeln!(out, "{original} stays as it is; {path} went to history.")?,
        }
    }
    writeln!(out, "Undo with `memsync history` and `memsync restore`.")
}
