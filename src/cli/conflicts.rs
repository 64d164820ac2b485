//! `memsync conflicts`: lists the conflict copies, and settles one.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::app::App;
use super::args::{ConflictsAction, Keep};
use super::content;
use super::exit::{Exit, Failure};
use super::locate::{self, Open, Place};
use super::show;
use crate::disk::real::RealDisk;
use crate::disk::{Disk, Kind};
use crate::local::moves::is_conflict_name;
use crate::local::{ChangeOutcome, Folder, FolderChange};
use crate::path::is_private;

/// More names than this were tried: none is free.
const NAMES: u32 = 1000;

#[derive(Serialize)]
struct Listing {
    conflicts: Vec<Conflict>,
}

/// One conflict copy.
#[derive(Debug, Clone, Serialize)]
struct Conflict {
    folder: PathBuf,
    /// The copy, below the folder.
    path: String,
    /// The file that kept the name, below the folder.
    original: String,
    /// Whether the original is there.
    original_exists: bool,
    /// Where the copy was made.
    device: String,
    /// Bytes of the copy.
    size: u64,
    modified: Option<Timestamp>,
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
        conflicts.extend(copies_below(&open)?);
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
        let when = c.modified.map(|at| format!(", written {}", show::ago(now, at))).unwrap_or_default();
        writeln!(out, "  the version of {}: {} ({}{when})", c.device, show::name(&c.path), show::size(c.size))?;
    }
    writeln!(out, "\nLook at both, then settle each with `memsync conflicts resolve PATH --keep SIDE`:")?;
    writeln!(out, "  local   the copy's content takes the file's place; the file goes to history")?;
    writeln!(out, "  remote  the file stays; the copy goes to history")?;
    writeln!(out, "  both    the copy becomes an ordinary file beside it")
}

/// The folder that a copy is in, and what its name says: the original's name and the device.
fn parse(name: &str) -> Option<(String, String)> {
    if !is_conflict_name(name) {
        return None;
    }
    let (stem, rest) = name.split_once(".conflict-")?;
    let (mark, ext) = rest.rfind('.').map_or((rest, ""), |at| rest.split_at(at));
    // device-md5 or device-md5-n
    let (before, last) = mark.rsplit_once('-')?;
    let device = if last.len() < 8 { before.rsplit_once('-')?.0 } else { before };
    Some((format!("{stem}{ext}"), device.to_owned()))
}

fn beside(at: &str, name: &str) -> String {
    at.rsplit_once('/').map_or_else(|| name.to_owned(), |(dir, _)| format!("{dir}/{name}"))
}

fn last(at: &str) -> &str {
    at.rsplit_once('/').map_or(at, |(_, name)| name)
}

fn copies_below(open: &Open) -> anyhow::Result<Vec<Conflict>> {
    let mut found = Vec::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        let names = match open.folder.disk().list(&dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.is_empty() => continue,
            Err(e) if !dir.is_empty() => {
                tracing::warn!("{}: cannot be looked into: {e}", open.root.join(&dir).display());
                continue;
            }
            Err(e) => return Err(e).with_context(|| open.root.display().to_string()),
        };
        for (name, meta) in names {
            let Some(name) = OsStr::to_str(&name) else { continue };
            let at = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            match (meta.kind, parse(name)) {
                (Kind::Dir, _) if !is_private(name) => dirs.push(at),
                (Kind::File, Some((original, device))) => {
                    let original = beside(&at, &original);
                    found.push(Conflict {
                        folder: open.root.clone(),
                        original_exists: open.folder.disk().stat(&original).is_ok(),
                        path: at,
                        original,
                        device,
                        size: meta.size,
                        modified: Timestamp::from_nanosecond(i128::from(meta.mtime_ns)).ok(),
                    });
                }
                _ => {}
            }
        }
    }
    found.sort_by(|a, b| (&a.original, &a.path).cmp(&(&b.original, &b.path)));
    Ok(found)
}

fn resolve(app: &App, path: &Path, keep: Keep) -> anyhow::Result<Exit> {
    let has = |folder: &Folder<RealDisk>, at: &str| folder.disk().stat(at).is_ok();
    let place = locate::find(app, path, has)?;
    let named = parse(last(&place.at));
    let original = named.as_ref().map_or_else(|| place.at.clone(), |(name, _)| beside(&place.at, name));
    let copies: Vec<Conflict> = match &named {
        Some(_) => copies_beside(&place, |c| c.path == place.at)?,
        None => copies_beside(&place, |c| c.original == place.at)?,
    };
    let shown = place.open.root.join(&original);
    if copies.is_empty() && named.is_none() && !has(&place.open.folder, &place.at) {
        return Err(Failure::new(Exit::Usage, format!("{}: there is no such file", place.absolute().display())).into());
    }
    if keep == Keep::Local && copies.len() > 1 {
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

fn copies_beside(place: &Place, wanted: impl Fn(&Conflict) -> bool) -> anyhow::Result<Vec<Conflict>> {
    Ok(copies_below(&place.open)?.into_iter().filter(wanted).collect())
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
        Keep::Local => {
            // In this order: killed in between, the copy is still there, and doing it again ends it.
            let put = FolderChange::Put { from: copy.path.clone(), at: copy.original.clone() };
            let put = content::change(app, open, &put)?;
            content::change(app, open, &trash)
                .with_context(|| format!("{} has the copy's content already; run this again", copy.original))?;
            let outcome = if put == ChangeOutcome::Same { "removed" } else { "used" };
            Ok(SettledCopy { path, outcome, renamed_to: None })
        }
        Keep::Remote => {
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
    let name = last(&copy.original);
    let (stem, ext) = name.rfind('.').filter(|at| *at > 0).map_or((name, ""), |at| name.split_at(at));
    for n in 1..NAMES {
        let number = if n > 1 { format!(" {n}") } else { String::new() };
        let to = beside(&copy.path, &format!("{stem} ({}{number}){ext}", copy.device));
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
        Keep::Local => "local",
        Keep::Remote => "remote",
        Keep::Both => "both",
    }
}

/// The conflict copies of the file at `place`, below the folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn copies_of(place: &Place) -> anyhow::Result<Vec<String>> {
    Ok(copies_beside(place, |c| c.original == place.at)?.into_iter().map(|c| c.path).collect())
}

/// The file that a conflict copy is of, and the device that made it.
pub fn origin_of(at: &str) -> Option<(String, String)> {
    parse(last(at)).map(|(name, device)| (beside(at, &name), device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copys_name_tells_its_original_and_device() {
        for (at, original, device) in [
            ("a.conflict-laptop-0123abcd.md", "a.md", "laptop"),
            ("n/a.b.conflict-my-phone-0123abcd-2.md", "n/a.b.md", "my-phone"),
            ("note.conflict-x-00000000", "note", "x"),
        ] {
            assert_eq!(origin_of(at), Some((original.to_owned(), device.to_owned())), "{at}");
        }
        assert_eq!(origin_of("a.conflict-of-interest.md"), None);
    }
}
