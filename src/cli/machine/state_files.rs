//! Finds the state files of a configured folder.
//!
//! The identity in the folder decides. So a folder keeps its state when its path in the config changes: through a
//! symlink, or by another spelling.

use std::path::Path;
use std::sync::Arc;

use crate::cli::app::App;
use crate::config::{FolderConfig, resolve_links};
use crate::dirs::{CONTAINER_SUFFIX, FolderFiles};
use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local;
use crate::state;

const JOURNAL_SUFFIX: &str = ".json.journal";
const STATUS_SUFFIX: &str = ".status.json";

struct ContainerLookup<'a> {
    app: &'a App,
    disk: Arc<RealDisk>,
}

/// The state files of the configured folder at `path`.
pub(crate) fn find(app: &App, path: &Path) -> FolderFiles {
    let by_path = || app.dirs.folder(path);
    let folders = app.config().map(|config| config.folders.as_slice()).unwrap_or_default();
    let Ok(disk) = RealDisk::open(&resolve_links(&app.dirs.state)) else { return by_path() };
    let dir = ContainerLookup { app, disk: Arc::new(disk) };
    let Some(id) = identity(path) else { return dir.first_that_exists(path).unwrap_or_else(by_path) };
    if let Some(own) = dir.named_by_path(path, &id) {
        return own;
    }
    let others = folders.iter().filter(|f| f.path != path);
    dir.belonging_to(&id, others).or_else(|| dir.first_that_exists(path)).unwrap_or_else(by_path)
}

impl ContainerLookup<'_> {
    /// The files named after the path as spelled, and after the path with its symlinks resolved.
    fn candidates(&self, path: &Path) -> [FolderFiles; 2] {
        [self.app.dirs.folder(path), self.app.dirs.folder(&resolve_links(path))]
    }

    fn first_that_exists(&self, path: &Path) -> Option<FolderFiles> {
        self.candidates(path).into_iter().find(|files| {
            let exists = |suffix: &str| self.disk.stat(&format!("{}{suffix}", files.name)).is_ok();
            exists(CONTAINER_SUFFIX) || exists(JOURNAL_SUFFIX)
        })
    }

    /// The files named after the path, if they belong to the folder `id`.
    fn named_by_path(&self, path: &Path, id: &str) -> Option<FolderFiles> {
        self.candidates(path).into_iter().find(|files| self.folder_id(&files.name).as_deref() == Some(id))
    }

    /// The files of any name that belong to the folder `id`. A copy of a folder has the same identity, so the files of
    /// `others` do not count.
    fn belonging_to<'f>(&self, id: &str, others: impl Iterator<Item = &'f FolderConfig>) -> Option<FolderFiles> {
        let taken: Vec<FolderFiles> =
            others.filter_map(|other| self.named_by_path(&other.path, &identity(&other.path)?)).collect();
        let names = self.disk.list("").ok()?.into_iter().filter_map(|(name, _)| shared_name(name.to_str()?));
        let mut free = names.filter(|name| taken.iter().all(|files| files.name != *name));
        let found = free.find(|name| self.folder_id(name).as_deref() == Some(id))?;
        Some(self.app.dirs.files_named(found))
    }

    /// The folder that a container belongs to. `None` for a container that cannot be read; opening it gives the error.
    fn folder_id(&self, name: &str) -> Option<String> {
        let view = state::peek(&self.disk, &format!("{name}{CONTAINER_SUFFIX}")).ok().flatten();
        view.and_then(|view| view.header.folder_id)
    }
}

/// The identity of the folder at `path`. `None` if it cannot be read; opening the folder gives the error.
fn identity(path: &Path) -> Option<String> {
    let disk = RealDisk::open(&resolve_links(path)).ok()?;
    local::Folder::new(Arc::new(disk), "", 0).identity().ok().flatten()
}

/// The name that state files share, if `file` is a container or its journal.
fn shared_name(file: &str) -> Option<String> {
    let name = file.strip_suffix(JOURNAL_SUFFIX).or_else(|| file.strip_suffix(CONTAINER_SUFFIX))?;
    (!file.ends_with(STATUS_SUFFIX)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_is_recognized_by_its_name() {
        for (file, name) in [
            ("notes-0a1b2c3d.json", Some("notes-0a1b2c3d")),
            ("notes-0a1b2c3d.json.journal", Some("notes-0a1b2c3d")),
            ("notes-0a1b2c3d.json.bak", None),
            ("notes-0a1b2c3d.status.json", None),
            ("notes-0a1b2c3d.lock", None),
            ("device-id", None),
        ] {
            assert_eq!(shared_name(file).as_deref(), name, "{file}");
        }
    }
}
