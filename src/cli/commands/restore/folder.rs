//! Restores a whole folder: its deleted files, or all files as they were at a moment.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::deleted::MovedText;
use super::put::put_version;
use crate::cli::app::App;
use crate::cli::conflict_copies::last_name;
use crate::cli::exit::Exit;
use crate::cli::folder::{FolderPath, has_versions};
use crate::cli::versions::{EarlierVersion, FolderVersions, ProxyPart};
use crate::cli::view::format;
use crate::disk::Disk;
use crate::local::ChangeOutcome;
use crate::local::conflicts::parse_copy_name;

/// Most files of one kind that are named.
const MAX_NAMED: usize = 50;

/// The document of `restore DIR`.
#[derive(Serialize)]
struct RestoredFolder {
    path: PathBuf,
    /// The moment of `--at`.
    at: Option<Timestamp>,
    restored: Vec<RestoredPath>,
    /// Number of files that had their text already.
    unchanged: usize,
    /// Files that have no known text of that time. They stay.
    newer: Vec<PathBuf>,
    /// Deleted files whose text another file has now. They stay deleted.
    moved: Vec<MovedText>,
    /// Number of files deleted earlier that were not looked at.
    left_out: usize,
    failed: Vec<FailedRestore>,
    proxy: ProxyPart,
}

#[derive(Serialize)]
struct RestoredPath {
    path: PathBuf,
    id: String,
    /// True if a text was replaced, which is in history now.
    replaced: bool,
}

#[derive(Serialize)]
struct FailedRestore {
    path: PathBuf,
    why: String,
}

impl RestoredFolder {
    fn new(place: &FolderPath, at: Option<Timestamp>, proxy: ProxyPart) -> Self {
        Self {
            path: place.absolute(),
            at,
            restored: Vec::new(),
            unchanged: 0,
            newer: Vec::new(),
            moved: Vec::new(),
            left_out: 0,
            failed: Vec::new(),
            proxy,
        }
    }

    fn restore(&mut self, app: &App, place: &FolderPath, folder: &FolderVersions<'_>, version: &EarlierVersion) {
        let path = place.open.root.join(&version.path);
        match put_version(app, &place.open, version, || folder.fetch(version)) {
            Ok(ChangeOutcome::Same) => self.unchanged += 1,
            Ok(outcome) => {
                let replaced = outcome == ChangeOutcome::Replaced;
                self.restored.push(RestoredPath { path, id: version.id(), replaced });
            }
            Err(e) => self.failed.push(FailedRestore { path, why: format!("{e:#}") }),
        }
    }

    fn answer(&self, app: &App) -> anyhow::Result<Exit> {
        self.proxy.note();
        app.answer(self, write_restored)?;
        Ok(match (self.failed.is_empty(), self.proxy.has_answered()) {
            (false, _) => Exit::Error,
            // Files whose texts only the proxy has are missing.
            (true, false) => Exit::Temporary,
            (true, true) => Exit::Done,
        })
    }
}

/// True if nothing is at the path, and only the proxy knows that files were below it.
pub(super) fn is_deleted_folder(app: &App, place: &FolderPath) -> anyhow::Result<bool> {
    let is_here = place.open.folder.disk().stat(&place.at).is_ok() || has_versions(&place.open.folder, &place.at);
    Ok(!is_here && FolderVersions::load(app, &place.open, &place.at)?.has_files_below())
}

/// Brings back the deleted files below a folder, each with its newest text.
pub(super) fn restore_deleted(app: &App, place: &FolderPath) -> anyhow::Result<Exit> {
    let mut folder = FolderVersions::load(app, &place.open, &place.at)?;
    let deleted = folder.deleted();
    let mut report = RestoredFolder::new(place, None, folder.proxy_part());
    report.left_out = deleted.left_out;
    for file in deleted.files.into_iter().filter(|file| !is_conflict_copy(&file.version)) {
        match file.moved_to {
            None => report.restore(app, place, &folder, &file.version),
            Some(now) => {
                let [path, now] = [&file.version.path, &now].map(|path| place.open.root.join(path));
                report.moved.push(MovedText { path, now });
            }
        }
    }
    report.answer(app)
}

/// Gives each file at a path, or below it, the text that it had at `moment`. Newer files stay.
pub(super) fn restore_time(app: &App, place: &FolderPath, moment: Timestamp) -> anyhow::Result<Exit> {
    let mut folder = FolderVersions::load(app, &place.open, &place.at)?;
    let files = folder.at_time(moment);
    let mut report = RestoredFolder::new(place, Some(moment), folder.proxy_part());
    report.unchanged = files.unchanged;
    report.newer = files.newer.iter().map(|path| place.open.root.join(path)).collect();
    for (path, why) in files.unreadable {
        report.failed.push(FailedRestore { path: place.open.root.join(path), why });
    }
    for version in files.changed.iter().filter(|version| !is_conflict_copy(version)) {
        report.restore(app, place, &folder, version);
    }
    report.answer(app)
}

/// A conflict copy was resolved when it went away. `restore` brings it back by its name only.
fn is_conflict_copy(version: &EarlierVersion) -> bool {
    parse_copy_name(last_name(&version.path)).is_some()
}

fn write_restored(out: &mut dyn Write, report: &RestoredFolder) -> io::Result<()> {
    let path = format::path(&report.path);
    let when = report.at.map(|at| format!(" as it was at {}", format::time(at))).unwrap_or_default();
    let restored = format::count(report.restored.len(), "file");
    writeln!(out, "{path}{when}: {restored} restored, {} unchanged.", report.unchanged)?;
    write_paths(out, report.restored.iter().map(|file| file.path.as_path()))?;
    if report.restored.iter().any(|file| file.replaced) {
        writeln!(out, "The replaced texts are in history; `memsync restore PATH` undoes this for a file.")?;
    }
    if !report.newer.is_empty() {
        writeln!(out, "{} stay as they are, because they are newer:", format::count(report.newer.len(), "file"))?;
        write_paths(out, report.newer.iter().map(PathBuf::as_path))?;
    }
    if !report.moved.is_empty() {
        let count = format::count(report.moved.len(), "file");
        writeln!(out, "{count} stay deleted, because another file has the text now:")?;
        write_paths(out, report.moved.iter().map(|file| file.path.as_path()))?;
    }
    if report.left_out > 0 {
        let count = format::count(report.left_out, "file");
        writeln!(out, "{count} deleted earlier left out; run this for a folder below.")?;
    }
    for failed in &report.failed {
        writeln!(out, "not restored: {}: {}", format::path(&failed.path), format::printable(&failed.why))?;
    }
    Ok(())
}

fn write_paths<'p>(out: &mut dyn Write, paths: impl ExactSizeIterator<Item = &'p Path>) -> io::Result<()> {
    let more = paths.len().saturating_sub(MAX_NAMED);
    for path in paths.take(MAX_NAMED) {
        writeln!(out, "  {}", format::path(path))?;
    }
    if more > 0 { writeln!(out, "  … and {more} more") } else { Ok(()) }
}
