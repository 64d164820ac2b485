//! `memsync conflicts`: lists the conflict copies, and resolves one.

mod edit;
mod texts;

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
    /// `null` after `--edit`.
    keep: Option<KeepChoice>,
    copies: Vec<ResolvedCopy>,
}

#[derive(Serialize)]
struct ResolvedCopy {
    path: PathBuf,
    /// `used`, `removed`, `renamed` or `edited`.
    outcome: &'static str,
    renamed_to: Option<PathBuf>,
}

pub(super) fn run(app: &App, action: Option<ConflictsAction>) -> anyhow::Result<Exit> {
    match action {
        None => list(app),
        Some(ConflictsAction::Resolve { path, keep: Some(keep), .. }) => resolve(app, &path, keep),
        Some(ConflictsAction::Resolve { path, keep: None, .. }) => resolve_by_edit(app, &path),
    }
}

fn list(app: &App) -> anyhow::Result<Exit> {
    let (mut conflicts, mut diffs) = (Vec::new(), Vec::new());
    for open in open_all(app)? {
        let mut found = list_copies(app, &open)?;
        texts::add_devices(app, &open, &mut found);
        if !app.global.json {
            diffs.extend(found.iter().map(|copy| texts::difference(&open, copy)));
        }
        conflicts.extend(found);
    }
    let exit = if conflicts.is_empty() { Exit::Done } else { Exit::Conflicts };
    app.answer_list("conflicts", &conflicts, |out, conflicts| write_conflicts(out, conflicts, &diffs))?;
    Ok(exit)
}

/// Opens both texts in an editor, and gives the file the result.
fn resolve_by_edit(app: &App, path: &Path) -> anyhow::Result<Exit> {
    let place = find_path(app, path, |folder, at| folder.disk().stat(at).is_ok())?;
    let (original, copies) = find_conflict(app, &place)?;
    let shown = place.open.root.join(&original);
    let mut resolution = ConflictResolution { original: shown, keep: None, copies: Vec::new() };
    match copies.as_slice() {
        [] => {}
        [copy] => {
            edit::resolve_by_edit(app, &place.open, copy)?;
            let path = place.open.root.join(&copy.path);
            resolution.copies.push(ResolvedCopy { path, outcome: "edited", renamed_to: None });
        }
        several => return Err(name_one(&resolution.original, several, "edit")),
    }
    app.answer(&resolution, write_resolution)
}

/// The error for a file with several copies, one of which must be named.
fn name_one(original: &Path, copies: &[ConflictCopy], purpose: &str) -> anyhow::Error {
    let names: Vec<_> = copies.iter().map(|c| format::printable(&c.path)).collect();
    let (shown, count) = (original.display(), copies.len());
    let why = format!("{shown} has {count} conflict copies; name the one to {purpose}: {}", names.join(", "));
    CommandFailure::usage(why).into()
}

fn resolve(app: &App, path: &Path, keep: KeepChoice) -> anyhow::Result<Exit> {
    let place = find_path(app, path, |folder, at| folder.disk().stat(at).is_ok())?;
    let (original, copies) = find_conflict(app, &place)?;
    let shown = place.open.root.join(&original);
    if keep == KeepChoice::Copy && copies.len() > 1 {
        return Err(name_one(&shown, &copies, "keep"));
    }
    let mut resolution = ConflictResolution { original: shown, keep: Some(keep), copies: Vec::new() };
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

fn write_conflicts(out: &mut dyn Write, conflicts: &[ConflictCopy], diffs: &[Option<String>]) -> io::Result<()> {
    if conflicts.is_empty() {
        return writeln!(out, "No conflicts.");
    }
    let now = Timestamp::now();
    for (copy, diff) in conflicts.iter().zip(diffs) {
        texts::write_conflict(out, copy, diff.as_deref(), now)?;
    }
    writeln!(out, "\nLook at both, then settle each with `memsync conflicts resolve PATH --keep TEXT`:")?;
    writeln!(out, "  file  the file keeps its text; the copy goes to history")?;
    writeln!(out, "  copy  the copy's text takes the file's place; the file's text goes to history")?;
    writeln!(out, "  both  both stay; the copy becomes an ordinary file")?;
    writeln!(out, "Or make one text of both: `memsync conflicts resolve PATH --edit`.")
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
            (None, "edited") => {
                writeln!(out, "{original} has the edited text now; both earlier texts are in history.")?;
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
