//! `memsync restore PATH[@N]`: brings back an earlier version. `--deleted` lists the files that sync removed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::history::{has_versions, read_versions, versions_at};
use crate::cli::app::App;
use crate::cli::args::RestoreArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::change::change_file;
use crate::cli::folder::lookup::{FolderPath, find_path, open_all};
use crate::cli::view::format;
use crate::cli::view::versions::{VersionList, number_versions, write_versions};
use crate::disk::Disk;
use crate::local::history::{HistoryVersion, VersionKind};
use crate::local::{ChangeOutcome, FolderChange};

#[derive(Serialize)]
struct RestoredFile {
    path: PathBuf,
    n: usize,
    at: Timestamp,
    size: u64,
    /// False if the file had this content already.
    changed: bool,
}

pub(super) fn run(app: &App, args: &RestoreArgs) -> anyhow::Result<Exit> {
    match &args.path {
        Some(path) if !args.deleted => restore(app, path),
        _ => list_deleted(app),
    }
}

/// Lists the newest version of each file that sync removed and that is still missing.
fn list_deleted(app: &App) -> anyhow::Result<Exit> {
    let mut versions = Vec::new();
    for open in open_all(app)? {
        let all = number_versions(&open.root, read_versions(&open.folder, None)?);
        let removed = all.into_iter().filter(|v| v.n == 1 && v.kind == VersionKind::Removed.name());
        versions.extend(removed.filter(|v| open.folder.disk().stat(&v.path).is_err()));
    }
    app.answer(&VersionList { versions }, |out, list| {
        if list.versions.is_empty() {
            return writeln!(out, "Sync removed nothing that is still missing.");
        }
        write_versions(out, &list.versions)?;
        writeln!(out, "Bring one back with `memsync restore PATH`.")
    })?;
    Ok(Exit::Done)
}

/// Puts a version in its place. The present file goes to history first.
fn restore(app: &App, text: &str) -> anyhow::Result<Exit> {
    let (place, n) = parse_target(app, text)?;
    let versions = versions_at(&place.open.folder, &place.at)?;
    let Some(version) = versions.iter().filter(|v| v.path == place.at).nth(n - 1) else {
        return Err(CommandFailure::new(Exit::Usage, why_no_version(&place, &versions, n)).into());
    };
    let put = FolderChange::Put { from: version.file.clone(), at: place.at.clone() };
    let outcome = change_file(app, &place.open, &put)?;
    let changed = outcome != ChangeOutcome::Same;
    let restored = RestoredFile { path: place.absolute(), n, at: version.at, size: version.size, changed };
    app.answer(&restored, |out, restored| write_restored(out, restored, outcome))?;
    Ok(Exit::Done)
}

fn write_restored(out: &mut dyn Write, restored: &RestoredFile, outcome: ChangeOutcome) -> io::Result<()> {
    let (path, when) = (format::path(&restored.path), format::time(restored.at));
    match outcome {
        ChangeOutcome::Same => writeln!(out, "{path} has its text from before {when} already; nothing to do."),
        ChangeOutcome::Created => writeln!(out, "{path} is back, as it was before {when}."),
        ChangeOutcome::Replaced | ChangeOutcome::Removed => writeln!(
            out,
            "{path} is back as it was before {when}. The replaced text is in its history: `memsync restore {path}` \
             undoes this."
        ),
    }
}

fn why_no_version(place: &FolderPath, versions: &[HistoryVersion], n: usize) -> String {
    let path = place.absolute();
    let path = path.display();
    match (versions.iter().filter(|v| v.path == place.at).count(), versions.len()) {
        (0, 0) => format!("{path}: no earlier version is kept; `memsync history` lists all versions"),
        (0, _) => format!("{path} is a folder; name one of the files that `memsync history {path}` lists"),
        (kept, _) => format!("{path}: there are versions 1 to {kept}, no {n}"),
    }
}

/// Splits `PATH@N`. A file whose own name ends like that wins over the number.
fn parse_target(app: &App, text: &str) -> anyhow::Result<(FolderPath, usize)> {
    let numbered =
        text.rsplit_once('@').and_then(|(path, n)| Some((path, n.parse::<usize>().ok().filter(|n| *n > 0)?)));
    if let Some((path, n)) = numbered {
        let literal = find_path(app, Path::new(text), has_versions);
        if !literal.is_ok_and(|place| has_versions(&place.open.folder, &place.at)) {
            return Ok((find_path(app, Path::new(path), has_versions)?, n));
        }
    }
    Ok((find_path(app, Path::new(text), has_versions)?, 1))
}
