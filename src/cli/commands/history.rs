//! `memsync history [PATH]`: lists the earlier versions kept in the folders. `memsync restore PATH[@N]`: brings one back.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use comfy_table::CellAlignment;
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::RestoreArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::{ConfiguredFolder, FolderPath, change_file, find_path, has_versions, open_all, versions_at};
use crate::cli::view::format::{self, new_table, write_table};
use crate::disk::Disk;
use crate::local::history::{HistoryVersion, VersionKind};
use crate::local::{ChangeOutcome, FolderChange};

#[derive(Serialize)]
struct NumberedVersion {
    folder: PathBuf,
    path: String,
    /// For `restore PATH@N`. The newest version of a path is 1.
    n: usize,
    at: Timestamp,
    /// Bytes.
    size: u64,
    /// `replaced` or `removed`.
    kind: &'static str,
    /// The file with the content, relative to the folder.
    file: String,
}

#[derive(Serialize)]
struct RestoredFile {
    path: PathBuf,
    n: usize,
    at: Timestamp,
    size: u64,
    /// False if the file had this content already.
    changed: bool,
}

pub(super) fn list(app: &App, path: Option<&Path>) -> anyhow::Result<Exit> {
    let mut versions = Vec::new();
    match path {
        Some(path) => {
            let place = find_path(app, path, has_versions)?;
            versions = number_versions(&place.open, &place.at)?;
        }
        None => {
            for open in open_all(app)? {
                versions.extend(number_versions(&open, "")?);
            }
        }
    }
    answer_versions(app, &versions, "No earlier versions are kept here.", "PATH@N")
}

pub(super) fn restore(app: &App, args: &RestoreArgs) -> anyhow::Result<Exit> {
    match &args.path {
        Some(path) if !args.deleted => restore_version(app, path),
        _ => list_deleted(app),
    }
}

/// Lists the newest version of each file that sync removed and that is still missing.
fn list_deleted(app: &App) -> anyhow::Result<Exit> {
    let mut versions = Vec::new();
    for open in open_all(app)? {
        let all = number_versions(&open, "")?;
        let removed = all.into_iter().filter(|v| v.n == 1 && v.kind == VersionKind::Removed.name());
        versions.extend(removed.filter(|v| open.folder.disk().stat(&v.path).is_err()));
    }
    answer_versions(app, &versions, "Sync removed nothing that is still missing.", "PATH")
}

fn answer_versions(app: &App, versions: &[NumberedVersion], nothing: &str, target: &str) -> anyhow::Result<Exit> {
    app.answer_list("versions", versions, |out, versions| {
        if versions.is_empty() {
            return writeln!(out, "{nothing}");
        }
        write_versions(out, versions)?;
        writeln!(out, "Bring one back with `memsync restore {target}`.")
    })
}

/// Puts a version in its place. The present file goes to history first.
fn restore_version(app: &App, text: &str) -> anyhow::Result<Exit> {
    let (place, n) = parse_target(app, text)?;
    let versions = versions_at(&place.open.folder, &place.at)?;
    let Some(version) = versions.iter().filter(|v| v.path == place.at).nth(n - 1) else {
        return Err(CommandFailure::usage(why_no_version(&place, &versions, n)).into());
    };
    let put = FolderChange::Put { from: version.file.clone(), at: place.at.clone() };
    let outcome = change_file(app, &place.open, &put)?;
    let changed = outcome != ChangeOutcome::Same;
    let restored = RestoredFile { path: place.absolute(), n, at: version.at, size: version.size, changed };
    app.answer(&restored, |out, restored| write_restored(out, restored, outcome))
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

/// The versions at `at`, newest first, with their numbers for each path.
fn number_versions(open: &ConfiguredFolder, at: &str) -> anyhow::Result<Vec<NumberedVersion>> {
    let mut counts = BTreeMap::<String, usize>::new();
    let number = |v: HistoryVersion| {
        let n = counts.entry(v.path.clone()).and_modify(|n| *n += 1).or_insert(1);
        let (folder, kind) = (open.root.clone(), v.kind.name());
        NumberedVersion { folder, n: *n, path: v.path, at: v.at, size: v.size, kind, file: v.file }
    };
    Ok(versions_at(&open.folder, at)?.into_iter().map(number).collect())
}

fn write_versions(out: &mut dyn Write, versions: &[NumberedVersion]) -> io::Result<()> {
    let several_folders = versions.iter().any(|v| v.folder != versions[0].folder);
    let mut table = new_table();
    for v in versions {
        let path = if several_folders { v.folder.join(&v.path).display().to_string() } else { v.path.clone() };
        let spec = format!("{}@{}", format::printable(&path), v.n);
        table.add_row([spec, format::time(v.at), format::size(v.size), v.kind.to_owned()]);
    }
    if let Some(sizes) = table.column_mut(2) {
        sizes.set_cell_alignment(CellAlignment::Right);
    }
    write_table(out, &table)
}
