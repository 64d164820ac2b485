//! `memsync history [PATH]` and `memsync restore PATH[@N]`: the earlier versions kept in the folders.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::app::App;
use super::content;
use super::exit::{Exit, Failure};
use super::locate::{self, Place};
use super::show;
use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::history::{HistoryVersion, VersionKind};
use crate::local::{ChangeOutcome, Folder, FolderChange};

/// The answer: versions, the newest first.
#[derive(Serialize)]
struct Listing {
    versions: Vec<Numbered>,
}

#[derive(Serialize)]
struct Numbered {
    folder: PathBuf,
    path: String,
    /// What `restore PATH@N` takes: 1 is the newest version of this path.
    n: usize,
    at: Timestamp,
    /// Bytes.
    size: u64,
    /// `replaced` or `removed`.
    kind: &'static str,
    /// Where it is kept, below the folder.
    file: String,
}

#[derive(Serialize)]
struct Restored {
    path: PathBuf,
    n: usize,
    at: Timestamp,
    size: u64,
    /// False: the file had this content already.
    changed: bool,
}

/// # Errors
/// When a folder or its history cannot be read, or `path` is in no folder.
pub fn history(app: &App, path: Option<&Path>) -> anyhow::Result<Exit> {
    let mut versions = Vec::new();
    match path {
        Some(path) => {
            let place = locate::find(app, path, has_versions)?;
            versions = numbered(&place.open.root, versions_at(&place.open.folder, &place.at)?);
        }
        None => {
            for open in locate::folders(app)? {
                versions.extend(numbered(&open.root, read(&open.folder, None)?));
            }
        }
    }
    app.answer(&Listing { versions }, |out, listing| {
        if listing.versions.is_empty() {
            return writeln!(out, "No earlier versions are kept here.");
        }
        table(out, &listing.versions)?;
        writeln!(out, "Bring one back with `memsync restore PATH@N`.")
    })?;
    Ok(Exit::Done)
}

/// `memsync restore --deleted`: the newest version of every file that sync removed and that has not come back.
///
/// # Errors
/// When a folder or its history cannot be read.
pub fn deleted(app: &App) -> anyhow::Result<Exit> {
    let mut versions = Vec::new();
    for open in locate::folders(app)? {
        let all = numbered(&open.root, read(&open.folder, None)?);
        let newest = all.into_iter().filter(|v| v.n == 1 && v.kind == VersionKind::Removed.name());
        versions.extend(newest.filter(|v| open.folder.disk().stat(&v.path).is_err()));
    }
    app.answer(&Listing { versions }, |out, listing| {
        if listing.versions.is_empty() {
            return writeln!(out, "Sync removed nothing that is still missing.");
        }
        table(out, &listing.versions)?;
        writeln!(out, "Bring one back with `memsync restore PATH`.")
    })?;
    Ok(Exit::Done)
}

/// Puts a version back; what stands there now goes to history first.
///
/// # Errors
/// When there is no such version, or the file cannot be placed.
pub fn restore(app: &App, text: &str) -> anyhow::Result<Exit> {
    let (place, n) = target(app, text)?;
    let versions = versions_at(&place.open.folder, &place.at)?;
    let mut own = versions.iter().filter(|v| v.path == place.at);
    let Some(version) = own.nth(n - 1) else {
        let kept = versions.iter().filter(|v| v.path == place.at).count();
        let shown = place.absolute();
        let why = match (kept, versions.len()) {
            (0, 0) => format!("{}: no earlier version is kept; `memsync history` lists what is", shown.display()),
            (0, _) => format!(
                "{} is a folder; name one of the files that `memsync history {}` lists",
                shown.display(),
                shown.display()
            ),
            _ => format!("{}: there are versions 1 to {kept}, no {n}", shown.display()),
        };
        return Err(Failure::new(Exit::Usage, why).into());
    };
    let put = FolderChange::Put { from: version.file.clone(), at: place.at.clone() };
    let outcome = content::change(app, &place.open, &put)?;
    let changed = outcome != ChangeOutcome::Same;
    let restored = Restored { path: place.absolute(), n, at: version.at, size: version.size, changed };
    app.answer(&restored, |out, restored| {
        let (path, when) = (show::name(&restored.path.display().to_string()), show::time(restored.at));
        match outcome {
            ChangeOutcome::Same => writeln!(out, "{path} is what it was before {when}; nothing to do."),
            ChangeOutcome::Created => writeln!(out, "{path} is back, as it was before {when}."),
            ChangeOutcome::Replaced | ChangeOutcome::Removed => writeln!(
                out,
                "{path} is again what it was before {when}. What it was until now is in its history: \
                 `memsync restore {path}` undoes this."
            ),
        }
    })?;
    Ok(Exit::Done)
}

/// `PATH@N`; a name that really ends so goes before the number.
fn target(app: &App, text: &str) -> anyhow::Result<(Place, usize)> {
    let numbered =
        text.rsplit_once('@').and_then(|(path, n)| Some((path, n.parse::<usize>().ok().filter(|n| *n > 0)?)));
    if let Some((path, n)) = numbered {
        let literal = locate::find(app, Path::new(text), has_versions);
        if !literal.is_ok_and(|place| has_versions(&place.open.folder, &place.at)) {
            return Ok((locate::find(app, Path::new(path), has_versions)?, n));
        }
    }
    Ok((locate::find(app, Path::new(text), has_versions)?, 1))
}

fn has_versions(folder: &Folder<RealDisk>, at: &str) -> bool {
    folder.versions(Some(at)).is_ok_and(|v| !v.is_empty())
}

/// Versions of a file, or of all files in a folder.
fn versions_at(folder: &Folder<RealDisk>, at: &str) -> anyhow::Result<Vec<HistoryVersion>> {
    read(folder, Some(at).filter(|at| !at.is_empty()))
}

fn read(folder: &Folder<RealDisk>, at: Option<&str>) -> anyhow::Result<Vec<HistoryVersion>> {
    folder.versions(at).with_context(|| format!("{}: the history cannot be read", folder.disk().path().display()))
}

fn numbered(root: &Path, versions: Vec<HistoryVersion>) -> Vec<Numbered> {
    let mut seen = BTreeMap::<String, usize>::new();
    let number = |v: HistoryVersion| {
        let n = seen.entry(v.path.clone()).and_modify(|n| *n += 1).or_insert(1);
        let kind = v.kind.name();
        Numbered { folder: root.to_owned(), n: *n, path: v.path, at: v.at, size: v.size, kind, file: v.file }
    };
    versions.into_iter().map(number).collect()
}

fn table(out: &mut dyn Write, versions: &[Numbered]) -> io::Result<()> {
    let several = versions.iter().any(|v| v.folder != versions[0].folder);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for v in versions {
        let path = if several { v.folder.join(&v.path).display().to_string() } else { v.path.clone() };
        let spec = format!("{}@{}", show::name(&path), v.n);
        table.add_row([spec, show::time(v.at), show::size(v.size), v.kind.to_owned()]);
    }
    if let Some(sizes) = table.column_mut(2) {
        sizes.set_cell_alignment(CellAlignment::Right);
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    Ok(())
}
