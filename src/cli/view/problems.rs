//! Files that are not synced, with their reasons.

use std::io::{self, Write};
use std::path::Path;

use anstyle::Style;
use jiff::Timestamp;

use super::format;
use crate::agent::problems::ProblemEffect;
use crate::agent::status::{FolderStatus, ProblemStatus, Status};

/// Problems listed by `status`. `--json` has all.
const MAX_SHOWN: usize = 5;

/// The problems of a folder for `status`, the urgent ones first.
pub(crate) fn problem_lines(folder: &FolderStatus, now: Timestamp) -> Vec<String> {
    let (left_out, other): (Vec<_>, Vec<_>) = folder.problems.iter().partition(|p| p.effect == ProblemEffect::LeftOut);
    let mut lines = group_lines(&other, format::BAD, "cannot be synced", now);
    lines.extend(group_lines(&left_out, format::BUSY, "left out", now));
    lines
}

fn group_lines(problems: &[&ProblemStatus], style: Style, what: &str, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    if problems.is_empty() {
        return lines;
    }
    let count = format::count(problems.len(), "file");
    lines.push(format!("  {}", format::painted(style, &format!("{count} {what}"))));
    for p in problems.iter().take(MAX_SHOWN) {
        let (path, problem) = (format::printable(&p.path), format::printable(&p.problem));
        lines.push(format!("    {path}: {problem} (since {})", format::ago(now, p.since)));
    }
    if let more @ 1.. = problems.len().saturating_sub(MAX_SHOWN) {
        lines.push(format!("    and {more} more: memsync status --json"));
    }
    lines
}

/// The number of files that cannot be synced at all, such as symlinks.
pub(crate) fn count_left_out(folder: &FolderStatus) -> usize {
    folder.problems.iter().filter(|p| p.effect == ProblemEffect::LeftOut).count()
}

/// The line of `up` after the first sync: in sync, or in sync except for the files that wait for the user.
pub(crate) fn write_first_sync(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let files = format::count(status.folders.iter().map(|f| f.files).sum(), "file");
    let blocked: Vec<_> = status.folders.iter().flat_map(|f| blocked_files(f).map(move |p| (f, p))).collect();
    if blocked.is_empty() {
        return writeln!(out, "{} {files}.", format::painted(format::GOOD, "In sync:"));
    }
    let count = format::count(blocked.len(), "file");
    writeln!(out, "{} {files}, except {count} that cannot be synced:", format::painted(format::BUSY, "In sync:"))?;
    for (folder, problem) in blocked {
        let path = Path::new(&folder.path).join(&problem.path);
        writeln!(out, "  {}: {}", format::path(&path), format::printable(&problem.problem))?;
    }
    Ok(())
}

fn blocked_files(folder: &FolderStatus) -> impl Iterator<Item = &ProblemStatus> {
    folder.problems.iter().filter(|problem| problem.effect == ProblemEffect::Blocked)
}
