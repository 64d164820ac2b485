//! Which state files belong to a configured folder. The folder's identity decides, so that a folder that is named
//! through a symlink, moved behind one or spelled otherwise keeps its state.

use std::path::Path;
use std::sync::Arc;

use super::app::App;
use super::locate::real;
use crate::config::Folder;
use crate::dirs::{CONTAINER, FolderFiles};
use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local;
use crate::state;

/// Ends the name of a container's journal.
const JOURNAL: &str = ".json.journal";
/// Ends the name of a status that an agent noted.
const STATUS: &str = ".status.json";

/// The state directory, to look containers up in.
struct StateDir<'a> {
    app: &'a App,
    disk: Arc<RealDisk>,
}

/// The state files of the configured folder at `path`.
pub fn find(app: &App, path: &Path) -> FolderFiles {
    let by_path = || app.dirs.folder(path);
    let folders = app.config().map(|config| config.folders.as_slice()).unwrap_or_default();
    let Ok(disk) = RealDisk::open(&real(&app.dirs.state)) else { return by_path() };
    let dir = StateDir { app, disk: Arc::new(disk) };
    let Some(id) = identity(path) else { return dir.first_that_exists(path).unwrap_or_else(by_path) };
    if let Some(own) = dir.named_by_path(path, &id) {
        return own;
    }
    let others = folders.iter().filter(|f| f.path != path);
    dir.bound_to(&id, others).or_else(|| dir.first_that_exists(path)).unwrap_or_else(by_path)
}

impl StateDir<'_> {
    /// The files under the two names that a path gives: as it is spelled, and with its symlinks resolved.
    fn candidates(&self, path: &Path) -> [FolderFiles; 2] {
        [self.app.dirs.folder(path), self.app.dirs.folder(&real(path))]
    }

    fn first_that_exists(&self, path: &Path) -> Option<FolderFiles> {
        self.candidates(path).into_iter().find(|files| {
            let there = |suffix: &str| self.disk.stat(&format!("{}{suffix}", files.name)).is_ok();
            there(CONTAINER) || there(JOURNAL)
        })
    }

    /// The files that the path names, if they are bound to the identity.
    fn named_by_path(&self, path: &Path, id: &str) -> Option<FolderFiles> {
        self.candidates(path).into_iter().find(|files| self.folder_id(&files.name).as_deref() == Some(id))
    }

    /// The files that are bound to the identity under any name. `others`: folders that keep what they name by path, as a
    /// copy of a folder has its identity too.
    fn bound_to<'f>(&self, id: &str, others: impl Iterator<Item = &'f Folder>) -> Option<FolderFiles> {
        let taken: Vec<FolderFiles> =
            others.filter_map(|other| self.named_by_path(&other.path, &identity(&other.path)?)).collect();
        let names = self.disk.list("").ok()?.into_iter().filter_map(|(name, _)| container_name(name.to_str()?));
        let mut free = names.filter(|name| taken.iter().all(|files| files.name != *name));
        let found = free.find(|name| self.folder_id(name).as_deref() == Some(id))?;
        Some(self.app.dirs.files_named(found))
    }

    /// The identity that a container is bound to. A container that cannot be read is bound to none; whoever opens it
    /// says so.
    fn folder_id(&self, name: &str) -> Option<String> {
        let view = state::peek(&self.disk, &format!("{name}{CONTAINER}")).ok().flatten();
        view.and_then(|view| view.header.folder_id)
    }
}

/// The identity of the folder that stands at the path. One that cannot be read is told by whoever opens the folder.
fn identity(path: &Path) -> Option<String> {
    let disk = RealDisk::open(&real(path)).ok()?;
    local::Folder::new(Arc::new(disk), "", 0).identity().ok().flatten()
}

/// The name of the state files that a file in the state directory belongs to.
fn container_name(file: &str) -> Option<String> {
    let name = file.strip_suffix(JOURNAL).or_else(|| file.strip_suffix(CONTAINER))?;
    (!file.ends_with(STATUS)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_is_told_by_its_name() {
        for (file, name) in [
            ("notes-0a1b2c3d.json", Some("notes-0a1b2c3d")),
            ("notes-0a1b2c3d.json.journal", Some("notes-0a1b2c3d")),
            ("notes-0a1b2c3d.json.bak", None),
            ("notes-0a1b2c3d.status.json", None),
            ("notes-0a1b2c3d.lock", None),
            ("device-id", None),
        ] {
            assert_eq!(container_name(file).as_deref(), name, "{file}");
        }
    }
}
