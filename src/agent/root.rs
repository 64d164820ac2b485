//! The gates `root_missing` and `root_changed`: whether the configured path still names the folder that the state
//! belongs to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::real::RealDisk;
use crate::local::Folder;
use crate::state::peek;
use crate::sync::safety::Halt;

use super::engine::{CycleError, root_halt};
use super::session::{FolderSetup, OpenError};

/// Opens the root of a folder, if it is where it was when the settings were made and carries the identity
/// `folder_id`.
///
/// # Errors
/// [`CycleError::Halted`] when a gate is shut.
pub(super) fn open_root(setup: &FolderSetup, folder_id: Option<&str>) -> Result<Arc<RealDisk>, OpenError> {
    let shown = setup.path.display().to_string();
    let now = match setup.path.canonicalize() {
        Ok(now) => now,
        Err(e) if is_absent(&e) => return Err(halted(absent(setup, folder_id))),
        Err(source) => return Err(OpenError::Io { path: setup.path.clone(), source }),
    };
    if now != setup.root {
        let (was, now) = (setup.root.display().to_string(), now.display().to_string());
        let why = format!("{shown} leads to {now} now, and led to {was} before; point it back");
        return Err(halted(Halt::root_changed(&["elsewhere", &shown, &now], why)));
    }
    let root = match RealDisk::open(&setup.root) {
        Ok(root) => Arc::new(root),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(halted(absent(setup, folder_id))),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            let why = format!("{shown} is no folder; move it away and bring the folder back");
            return Err(halted(Halt::root_changed(&["no folder", &shown], why)));
        }
        Err(source) => return Err(OpenError::Io { path: setup.root.clone(), source }),
    };
    if let Some(folder_id) = folder_id {
        Folder::new(root.clone(), &setup.device, 0).check(folder_id).map_err(root_halt)?;
    }
    Ok(root)
}

/// Where the configured path leads now. A folder that is not there is made, for its owner only.
///
/// # Errors
/// As `mkdir(2)` and `realpath(3)`.
pub(super) fn find_or_make(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if is_absent(&e) => {
            RealDisk::create_private(path)?;
            path.canonicalize()
        }
        found => found,
    }
}

/// The gate that is shut for the root of a folder, looked at without the agent that may work on it.
///
/// # Errors
/// When the state or the folder cannot be read.
pub fn find_root_halt(setup: &FolderSetup) -> Result<Option<Halt>, OpenError> {
    let view = match RealDisk::open(&setup.state_dir) {
        Ok(state) => peek(&Arc::new(state), &setup.container)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(OpenError::Io { path: setup.state_dir.clone(), source }),
    };
    let folder_id = view.and_then(|view| view.header.folder_id);
    match open_root(setup, folder_id.as_deref()) {
        Ok(_) => Ok(None),
        Err(OpenError::Cycle(CycleError::Halted(halt))) => Ok(Some(halt)),
        Err(e) => Err(e),
    }
}

fn absent(setup: &FolderSetup, folder_id: Option<&str>) -> Halt {
    let shown = setup.path.display().to_string();
    let why = format!("{shown} is not there; if it was moved or unmounted, bring it back");
    Halt::root_missing(&["no folder", &shown, folder_id.unwrap_or_default()], why)
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn halted(halt: Halt) -> OpenError {
    OpenError::Cycle(CycleError::Halted(halt))
}
