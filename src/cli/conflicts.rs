//! `memsync conflicts`: lists the conflict copies, and settles one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::app::App;
use super::args::{ConflictsAction, Keep};
use super::copies::{self, Conflict, beside, last_name};
use super::exit::{Exit, Failure};
use super::locate::{self, Open, Place};
use super::{content, show};
use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::moves::{parse_copy_name, split_ext};
use crate::local::{ChangeOutcome, Folder, FolderChange};
use crate::path::MAX_SEGMENT;

/// More names than this were tried: none is free.
const NAMES: u32 = 1000;

#[derive(Serialize)]
struct Listing {
    conflicts: Vec<Conflict>,
}

#[derive(Serialize)]
struct Settled {
    original: PathBuf,
    keep: &'static str,
    /// What became of each copy.
    copies: Vec<SettledCopy>,
}

#[derive(Serialize)]
struct SettledCopy {
    path: PathBuf,
    /// `used`, `removed` or `renamed`.
    outcome: &'static str,
    renamed_to: Option<PathBuf>,
}

/// # Errors
/// When a folder cannot be read; of `resolve`, when a file cannot be placed.
pub fn run(app: &App, action: Option<ConflictsAction>) -> anyhow::Result<Exit> {
    match action {
        None => list(app),
        Some(ConflictsAction::Resolve { path, keep }) => resolve(app, &path, keep),
    }
}

fn list(app: &App) -> anyhow::Result<Exit> {
    let mut conflicts = Vec::new();
    for open in locate::folders(app)? {
        conflicts.extend(copies::list(app, &open)?);
    }
    let exit = if conflicts.is_empty() { Exit::Done } else { Exit::Conflicts };
    app.answer(&Listing { conflicts }, |out, listing| people(out, &listing.conflicts))?;
    Ok(exit)
}

fn people(out: &mut dyn Write, conflicts: &[Conflict]) -> io::Result<()> {
    let now = Timestamp::now();
    if conflicts.is_empty() {
        return writeln!(out, "No conflicts.");
    }
    for c in conflicts {
        let original = c.folder.join(&c.original);
        let gone = if c.original_exists { "" } else { " (gone)" };
        writeln!(out, "{}{gone}", show::painted(show::BOLD, &show::name(&original.display().to_string())))?;
        let when = |at: Option<Timestamp>| at.map(|at| format!(", written {}", show::ago(now, at))).unwrap_or_default();
        if let Some(size) = c.original_size {
            let (size, when) = (show::size(size), when(c.original_modified));
            writeln!(out, "  file  from another machine than {}{when} ({size})", c.device)?;
        }
        let (size, when) = (show::size(c.size), when(c.modified));
        writeln!(out, "  copy  from {}{when} ({size}): {}", c.device, show::name(&c.path))?;
    }
    writeln!(out, "\nLook at both, then settle each with `memsync conflicts resolve PATH --keep TEXT`:")?;
    writeln!(out, "  file  the file keeps its text; the copy goes to history")?;
    writeln!(out, "  copy  the copy's text takes the file's place; the file's text goes to history")?;
    writeln!(out, "  both  both stay; the copy becomes an ordinary file")
}

fn resolve(app: &App, path: &Path, keep: Keep) -> anyhow::Result<Exit> {
    let has = |folder: &Folder<RealDisk>, at: &str| folder.disk().stat(at).is_ok();
    let place = locate::find(app, path, has)?;
    let all = copies::list(app, &place.open)?;
    let named = all.iter().find(|c| c.path == place.at);
    let copy_name = parse_copy_name(last_name(&place.at));
    let original = match (named, copy_name) {
        (Some(copy), _) => copy.original.clone(),
        // A copy that was settled already.
        (None, Some(name)) => beside(&place.at, &name.original()),
        (None, None) => place.at.clone(),
    };
    let copies: Vec<Conflict> = match named {
        Some(copy) => vec![copy.clone()],
        None => all.iter().filter(|c| c.original == place.at).cloned().collect(),
    };
    let shown = place.open.root.join(&original);
    if copies.is_empty() && copy_name.is_none() && !has(&place.open.folder, &place.at) {
        return Err(Failure::new(Exit::Usage, format!("{}: there is no such file", place.absolute().display())).into());
    }
    if keep == Keep::Copy && copies.len() > 1 {
        let names: Vec<_> = copies.iter().map(|c| show::name(&c.path)).collect();
        let why = format!(
            "{} has {} conflict copies; name the one to keep: {}",
            shown.display(),
            copies.len(),
            names.join(", ")
        );
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let mut settled = Settled { original: shown, keep: word(keep), copies: Vec::new() };
    for copy in &copies {
        match settle(app, &place.open, copy, keep) {
            Ok(done) => settled.copies.push(done),
            Err(e) if settled.copies.is_empty() => return Err(e),
            Err(e) => return Err(e.context(done_before(&settled))),
        }
    }
    app.answer(&settled, tell)?;
    Ok(Exit::Done)
}

/// The copies that were settled before one failed, in words.
fn done_before(settled: &Settled) -> String {
    let names: Vec<_> = settled.copies.iter().map(|c| show::name(&c.path.display().to_string())).collect();
    format!("settled before this: {}", names.join(", "))
}

fn settle(app: &App, open: &Open, copy: &Conflict, keep: Keep) -> anyhow::Result<SettledCopy> {
    let path = open.root.join(&copy.path);
    let trash = FolderChange::Trash { at: copy.path.clone() };
    match keep {
        Keep::Copy => {
            // In this order: killed in between, the copy is still there, and doing it again ends it.
            let put = FolderChange::Put { from: copy.path.clone(), at: copy.original.clone() };
            let put = content::change(app, open, &put)?;
            content::change(app, open, &trash)
                .with_context(|| format!("{} has the copy's content already; run this again", copy.original))?;
            let outcome = if put == ChangeOutcome::Same { "removed" } else { "used" };
            Ok(SettledCopy { path, outcome, renamed_to: None })
        }
        Keep::File => {
            content::change(app, open, &trash)?;
            Ok(SettledCopy { path, outcome: "removed", renamed_to: None })
        }
        Keep::Both => {
            let to = rename_plain(&open.folder, copy)?;
            Ok(SettledCopy { path, outcome: "renamed", renamed_to: Some(open.root.join(to)) })
        }
    }
}

/// Gives a copy a plain name that is free: `stem (device).ext`.
fn rename_plain(folder: &Folder<RealDisk>, copy: &Conflict) -> anyhow::Result<String> {
    for n in 1..NAMES {
        let to = beside(&copy.path, &plain_name(last_name(&copy.original), &copy.device, n));
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
    Err(Failure::new(Exit::Error, format!("{}: no plain name is free", copy.path)).into())
}

/// `stem (device).ext`, with the stem cut where the whole would be too long.
fn plain_name(original: &str, device: &str, n: u32) -> String {
    let (stem, ext) = split_ext(original);
    let number = if n > 1 { format!(" {n}") } else { String::new() };
    let tail = format!(" ({device}{number}){ext}");
    let stem = &stem[..stem.floor_char_boundary(MAX_SEGMENT.saturating_sub(tail.len()))];
    format!("{stem}{tail}")
}

fn tell(out: &mut dyn Write, settled: &Settled) -> io::Result<()> {
    let shown = |path: &Path| show::name(&path.display().to_string());
    let original = shown(&settled.original);
    if settled.copies.is_empty() {
        return writeln!(out, "{original} has no conflict; nothing to do.");
    }
    for copy in &settled.copies {
        let path = shown(&copy.path);
        match (&copy.renamed_to, copy.outcome) {
            (Some(to), _) => writeln!(out, "{path} is now {}; {original} stays as it is.", shown(to))?,
            (None, "used") => {
                writeln!(out, "{original} has the content of {path} now; what it was before is in its history.")?;
            }
            (None, _) => writeln!(out, "{original} stays as it is; {path} went to history.")?,
        }
    }
    writeln!(out, "Undo with `memsync history` and `memsync restore`.")
}

fn word(keep: Keep) -> &'static str {
    match keep {
        Keep::Copy => "copy",
        Keep::File => "file",
        Keep::Both => "both",
    }
}

/// The conflict copies of the file at `place`, below the folder.
///
/// # Errors
/// When the folder or the state cannot be read.
pub fn copies_of(app: &App, place: &Place) -> anyhow::Result<Vec<String>> {
    let all = copies::list(app, &place.open)?;
    Ok(all.into_iter().filter(|c| c.original == place.at).map(|c| c.path).collect())
}

/// The file that the conflict copy at `place` is of. `None`: it is no conflict copy.
///
/// # Errors
/// When the folder or the state cannot be read.
pub fn origin_of(app: &App, place: &Place) -> anyhow::Result<Option<String>> {
    if parse_copy_name(last_name(&place.at)).is_none() {
        return Ok(None);
    }
    Ok(copies::list(app, &place.open)?.into_iter().find(|c| c.path == place.at).map(|c| c.original))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_name_of_a_copy_fits() {
        assert_eq!(plain_name("a.md", "phone", 1), "a (phone).md");
        assert_eq!(plain_name(".profile", "phone", 2), ".profile (phone 2)");
        let long = plain_name(&format!("{}.md", "é".repeat(126)), "phone", 1);
        assert!(long.len() <= MAX_SEGMENT && long.ends_with("é (phone).md"), "{long}");
        let dotted = plain_name(&format!("x.{}", "y".repeat(253)), "phone", 1);
        assert!(dotted.len() <= MAX_SEGMENT, "{dotted}");
    }
}
