//! The configured folders as commands see them: finds the folder of a path, and changes a file in it.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;

use super::agent_client;
use super::app::App;
use super::exit::{CommandFailure, Exit};
use super::process::runtime::client_runtime;
use crate::agent::change::describe;
use crate::agent::control::{ControlRequest, ControlResponse};
use crate::config::{FolderConfig, resolve_links};
use crate::disk::real::RealDisk;
use crate::disk::{Disk, FileKind};
use crate::local::history::HistoryVersion;
use crate::local::{ChangeOutcome, Folder, FolderChange};
use crate::path::RelPath;

/// Longest wait for another command that works on the folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// A configured folder, open.
pub(crate) struct ConfiguredFolder {
    /// As the config names it.
    pub(crate) root: PathBuf,
    pub(crate) folder: Folder<RealDisk>,
}

/// A path in a configured folder.
pub(crate) struct FolderPath {
    pub(crate) open: ConfiguredFolder,
    /// Relative to the root, as spelled on the disk. Empty for the root itself.
    pub(crate) at: String,
}

impl FolderPath {
    /// The path on the wire. Refuses a name that cannot be synced, and the root.
    pub(crate) fn rel_path(&self) -> anyhow::Result<RelPath> {
        RelPath::from_disk(&self.at)
            .map_err(|e| CommandFailure::usage(format!("{}: {e}", self.absolute().display())).into())
    }

    /// True if a folder is at the path, or nothing, but the history has files below it.
    pub(crate) fn is_dir(&self) -> anyhow::Result<bool> {
        match self.open.folder.disk().stat(&self.at) {
            _ if self.at.is_empty() => Ok(true),
            Ok(meta) => Ok(meta.kind == FileKind::Dir),
            Err(_) => {
                let versions = versions_at(&self.open.folder, &self.at)?;
                Ok(!versions.is_empty() && versions.iter().all(|v| v.path != self.at))
            }
        }
    }

    /// Refuses a folder, because only files have versions.
    pub(crate) fn require_file(&self) -> anyhow::Result<()> {
        if !self.is_dir()? {
            return Ok(());
        }
        let path = self.absolute();
        let path = path.display();
        let why = format!("{path} is a folder; name one of the files that `memsync history {path}` lists");
        Err(CommandFailure::usage(why).into())
    }

    pub(crate) fn absolute(&self) -> PathBuf {
        self.open.root.join(&self.at)
    }
}

pub(crate) fn open_all(app: &App) -> anyhow::Result<Vec<ConfiguredFolder>> {
    let config = app.config()?;
    config.folders.iter().map(|f| open_folder(app, f)).collect()
}

fn open_folder(app: &App, folder: &FolderConfig) -> anyhow::Result<ConfiguredFolder> {
    let device = app.config()?.device.clone();
    let disk = RealDisk::open(&resolve_links(&folder.path))
        .with_context(|| format!("{}: the folder cannot be opened; is it mounted?", folder.path.display()))?;
    Ok(ConfiguredFolder { folder: Folder::new(Arc::new(disk), &device, fastrand::u64(..)), root: folder.path.clone() })
}

/// The configured folder that is `dir` itself.
pub(crate) fn configured_folder<'a>(app: &'a App, dir: &Path) -> anyhow::Result<&'a FolderConfig> {
    let folders = &app.config().map_err(anyhow::Error::from)?.folders;
    let wanted = resolve_links(&std::path::absolute(dir)?);
    folders.iter().find(|f| resolve_links(&f.path) == wanted).ok_or_else(|| outside(dir, folders))
}

/// Finds `path`, which is absolute, relative to the working directory, or relative to a configured folder. If
/// several folders match, `is_known` picks those with a file or a version of that name.
pub(crate) fn find_path(
    app: &App,
    path: &Path,
    is_known: impl Fn(&Folder<RealDisk>, &str) -> bool,
) -> anyhow::Result<FolderPath> {
    let folders = &app.config()?.folders;
    let absolute = resolve_parent(&std::path::absolute(path).with_context(|| format!("{}: no path", path.display()))?);
    let below = |f: &FolderConfig| Some(absolute.strip_prefix(resolve_links(&f.path)).ok()?.to_owned());
    let inside = folders.iter().filter_map(|f| Some((f, below(f)?)));
    // The innermost folder wins.
    if let Some((folder, rest)) = inside.min_by_key(|(_, rest)| rest.components().count()) {
        return Ok(FolderPath { open: open_folder(app, folder)?, at: name_below(path, &rest)? });
    }
    if path.is_absolute() || path.components().any(|c| !matches!(c, Component::Normal(_))) {
        return Err(outside(path, folders));
    }
    let at = name_below(path, path)?;
    let mut places = Vec::new();
    for folder in folders {
        places.push(FolderPath { open: open_folder(app, folder)?, at: at.clone() });
    }
    if places.len() > 1 {
        places.retain(|p| p.open.folder.disk().stat(&at).is_ok() || is_known(&p.open.folder, &at));
    }
    match (places.pop(), places.is_empty()) {
        (Some(place), true) => Ok(place),
        (None, _) => Err(outside(path, folders)),
        (Some(_), false) => {
            let why = format!("{}: several folders have it; give its absolute path", path.display());
            Err(CommandFailure::usage(why).into())
        }
    }
}

/// True if the history of `folder` has a version of the file at `at`, or of a file below it.
pub(crate) fn has_versions(folder: &Folder<RealDisk>, at: &str) -> bool {
    folder.versions(Some(at)).is_ok_and(|v| !v.is_empty())
}

/// The earlier versions of a file, of the files below a folder, or of all files if `at` is empty.
pub(crate) fn versions_at(folder: &Folder<RealDisk>, at: &str) -> anyhow::Result<Vec<HistoryVersion>> {
    let versions = folder.versions(Some(at).filter(|at| !at.is_empty()));
    versions.with_context(|| format!("{}: the history cannot be read", folder.disk().path().display()))
}

fn name_below(path: &Path, rest: &Path) -> anyhow::Result<String> {
    let text = rest.to_str().ok_or_else(|| {
        CommandFailure::usage(format!("{}: the name is not UTF-8, so it is not synced", path.display()))
    })?;
    if text.is_empty() {
        return Ok(String::new());
    }
    // Refuses paths that leave the folder or are private to memsync. The result keeps the spelling on the disk.
    RelPath::from_disk(text).map_err(|e| CommandFailure::usage(format!("{}: {e}", path.display())))?;
    Ok(text.to_owned())
}

fn outside(path: &Path, folders: &[FolderConfig]) -> anyhow::Error {
    let all: Vec<_> = folders.iter().map(|f| f.path.display().to_string()).collect();
    let why = format!("{} is in none of the synced folders ({})", path.display(), all.join(", "));
    CommandFailure::usage(why).into()
}

/// Resolves the symlinks of the parent. The last name may be a symlink, and then means the link itself.
fn resolve_parent(path: &Path) -> PathBuf {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolve_links(parent).join(name),
        _ => resolve_links(path),
    }
}

/// Makes a change, through the running agent or alone. Replaced and removed files go to history.
pub(crate) fn change_file(app: &App, open: &ConfiguredFolder, change: &FolderChange) -> anyhow::Result<ChangeOutcome> {
    let runtime = client_runtime()?;
    let request = ControlRequest::Change { folder: resolve_links(&open.root), change: change.clone() };
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match runtime.block_on(agent_client::request_change(app, &request))? {
            Some(ControlResponse::Changed { outcome }) => return Ok(outcome),
            Some(_) => return Err(agent_client::unexpected_answer()),
            None => {}
        }
        let lock =
            open.folder.disk().lock_root().with_context(|| format!("{}: cannot lock it", open.root.display()))?;
        if lock.is_some() {
            let made = open.folder.change_and_sweep(change, Timestamp::now());
            return made.map_err(|e| CommandFailure::new(Exit::Error, describe(&open.root, &e)).into());
        }
        if Instant::now() >= deadline {
            let why =
                "another memsync works on this folder; nothing was changed; try again when it has ended, or stop it";
            return Err(CommandFailure::new(Exit::Error, format!("{}: {why}", open.root.display())).into());
        }
        std::thread::sleep(LOCK_POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolve_parent_keeps_a_link_in_the_last_name() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        std::fs::create_dir(home.join("real")).unwrap();
        std::os::unix::fs::symlink("real", home.join("link")).unwrap();
        assert_eq!(resolve_parent(&home.join("link")), home.join("link"));
        assert_eq!(resolve_parent(&home.join("link/new")), home.join("real/new"));
    }
}
