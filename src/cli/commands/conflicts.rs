//! `memsync conflicts`: lists the conflict copies, and resolves one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::{ConflictsAction, KeepChoice};
use crate::cli::conflict_copies::{ConflictCopy, last_name, list_copies, sibling};
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::{ConfiguredFolder, FolderPath, change_file, find_path, open_all};
use crate::cli::view::format;
use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::conflicts::{parse_copy_name, split_ext};
use crate::local::{ChangeOutcome, Folder, FolderChange};
use crate::path::MAX_SEGMENT;

/// Plain names tried for a copy that becomes an ordinary file.
const MAX_NAMES: u32 = 1000;

/// The document of `conflicts resolve`.
#[derive(Serialize)]
struct ConflictResolution {
    original: PathBuf,
    keep: KeepChoice,
    copies: Vec<ResolvedCopy>,
}

#[derive(Serialize)]
struct ResolvedCopy {
    path: PathBuf,
    /// `used`, `removed` or `renamed`.
    outcome: &'static str,
    renamed_to: Option<PathBuf>,
}

pub(super) fn run(app: &App, action: Option<ConflictsAction>) -> anyhow::Result<Exit> {
    match action {
        None => list(app),
        Some(ConflictsAction::Resolve { path, keep }) => resolve(app, &path, keep),
    }
}

fn list(app: &App) -> anyhow::Result<Exit> {
    let mut conflicts = Vec::new();
    for open in open_all(app)? {
        conflicts.extend(list_copies(app, &open)?);
    }
    let exit = if conflicts.is_empty() { Exit::Done } else { Exit::Conflicts };
    app.answer_list("conflicts", &conflicts, write_conflicts)?;
    Ok(exit)
}

fn resolve(app: &App, path: &Path, keep: KeepChoice) -> anyhow::Result<Exit> {
    let place = find_path(app, path, |folder, at| folder.disk().stat(at).is_ok())?;
    let (original, copies) = find_conflict(app, &place)?;
    let shown = place.open.root.join(&original);
    if keep == KeepChoice::Copy && copies.len() > 1 {
        let names: Vec<_> = copies.iter().map(|c| format::printable(&c.path)).collect();
        let why = format!(
            "{} has {} conflict copies; name the one to keep: {}",
            shown.display(),
            copies.len(),
            names.join(", ")
        );
        return Err(CommandFailure::usage(why).into());
    }
    let mut resolution = ConflictResolution { original: shown, keep, copies: Vec::new() };
    for copy in &copies {
        match resolve_copy(app, &place.open, copy, keep) {
            Ok(resolved) => resolution.copies.push(resolved),
            Err(e) if resolution.copies.is_empty() => return Err(e),
            Err(e) => {
                let names: Vec<_> = resolution.copies.iter().map(|c| format::path(&c.path)).collect();
                return Err(e.context(format!("resolved before this: {}", names.join(", "))));
            }
        }
    }
    app.answer(&resolution, write_resolution)
}

/// The original and the copies that `place` names: one copy, or all copies of a file. No copies if they were resolved
/// before.
fn find_conflict(app: &App, place: &FolderPath) -> anyhow::Result<(String, Vec<ConflictCopy>)> {
    let all = list_copies(app, &place.open)?;
    if let Some(copy) = all.iter().find(|c| c.path == place.at) {
        return Ok((copy.original.clone(), vec![copy.clone()]));
    }
    let copies: Vec<ConflictCopy> = all.into_iter().filter(|c| c.original == place.at).collect();
    if let Some(name) = parse_copy_name(last_name(&place.at)) {
        return Ok((sibling(&place.at, &name.original()), copies));
    }
    if copies.is_empty() && place.open.folder.disk().stat(&place.at).is_err() {
        return Err(CommandFailure::usage(format!("{}: there is no such file", place.absolute().display())).into());
    }
    Ok((place.at.clone(), copies))
}

fn resolve_copy(
    app: &App,
    open: &ConfiguredFolder,
    copy: &ConflictCopy,
    keep: KeepChoice,
) -> anyhow::Result<ResolvedCopy> {
    let path = open.root.join(&copy.path);
    let trash = FolderChange::Trash { at: copy.path.clone() };
    match keep {
        KeepChoice::Copy => {
            // The copy goes last. After a crash in between, the same command completes the rest.
            let put = FolderChange::Put { from: copy.path.clone(), at: copy.original.clone() };
            let put = change_file(app, open, &put)?;
            change_file(app, open, &trash)
                .with_context(|| format!("{} has the copy's content already; run this again", copy.original))?;
            let outcome = if put == ChangeOutcome::Same { "removed" } else { "used" };
            Ok(ResolvedCopy { path, outcome, renamed_to: None })
        }
        KeepChoice::File => {
            change_file(app, open, &trash)?;
            Ok(ResolvedCopy { path, outcome: "removed", renamed_to: None })
        }
        KeepChoice::Both => {
            let to = rename_plain(&open.folder, copy)?;
            Ok(ResolvedCopy { path, outcome: "renamed", renamed_to: Some(open.root.join(to)) })
        }
    }
}

/// Gives a copy a free plain name: `stem (device).ext`.
fn rename_plain(folder: &Folder<RealDisk>, copy: &ConflictCopy) -> anyhow::Result<String> {
    for n in 1..MAX_NAMES {
        let to = sibling(&copy.path, &plain_name(last_name(&copy.original), &copy.device, n));
        match folder.disk().rename_new(&copy.path, &to) {
            Ok(()) => {
                let dir = to.rsplit_once('/').map_or("", |(dir, _)| dir);
                folder.disk().sync_dir(dir).with_context(|| to.clone())?;
                return Ok(to);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("{} cannot be renamed to {to}", copy.path)),
        }
    }
    Err(CommandFailure::new(Exit::Error, format!("{}: no plain name is free", copy.path)).into())
}

/// `stem (device).ext`, with the stem cut to fit.
fn plain_name(original: &str, device: &str, n: u32) -> String {
    let (stem, ext) = split_ext(original);
    let number = if n > 1 { format!(" {n}") } else { String::new() };
    let tail = format!(" ({device}{number}){ext}");
    let stem = &stem[..stem.floor_char_boundary(MAX_SEGMENT.saturating_sub(tail.len()))];
    format!("{stem}{tail}")
}

fn write_conflicts(out: &mut dyn Write, conflicts: &[ConflictCopy]) -> io::Result<()> {
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

fn write_resolution(out: &mut dyn Write, resolution: &ConflictResolution) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_name_fits_into_a_segment() {
        assert_eq!(plain_name("a.md", "phone", 1), "a (phone).md");
        assert_eq!(plain_name(".profile", "phone", 2), ".profile (phone 2)");
        let long = plain_name(&format!("{}.md", "é".repeat(126)), "phone", 1);
        assert!(long.len() <= MAX_SEGMENT && long.ends_with("é (phone).md"), "{long}");
        let dotted = plain_name(&format!("x.{}", "y".repeat(253)), "phone", 1);
        assert!(dotted.len() <= MAX_SEGMENT, "{dotted}");
    }
}
