//! The gates `root_missing` and `root_changed`. They check that the configured path still names the folder that the
//! state belongs to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::real::RealDisk;
use crate::local::Folder;
use crate::local::ignore::PatternError;
use crate::remote::http::OptionsError;
use crate::state::{LockError, StateError, peek};
use crate::sync::safety::Halt;

use super::cycle::CycleError;
use super::cycle::report::root_halt;
use super::setup::FolderSetup;

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Http(#[from] OptionsError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(transparent)]
    Cycle(#[from] CycleError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Opens the root of a folder. It must be where it was when the settings were made, and carry the identity `folder_id`.
///
/// # Errors
/// [`CycleError::Halted`] when a gate is shut.
pub(super) fn open_root(setup: &FolderSetup, folder_id: Option<&str>) -> Result<Arc<RealDisk>, OpenError> {
    let shown = setup.folder.path.display().to_string();
    let now = match setup.folder.path.canonicalize() {
        Ok(now) => now,
        Err(e) if is_absent(&e) => return Err(halted(missing_root(setup, folder_id))),
        Err(source) => return Err(OpenError::Io { path: setup.folder.path.clone(), source }),
    };
    if now != setup.root {
        let (was, now) = (setup.root.display().to_string(), now.display().to_string());
        let why = format!("{shown} leads to {now} now, and led to {was} before; point it back");
        return Err(halted(Halt::root_changed(&["elsewhere", &shown, &now], why)));
    }
    let root = match RealDisk::open(&setup.root) {
        Ok(root) => Arc::new(root),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(halted(missing_root(setup, folder_id))),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            let why = format!("{shown} is no folder; move it away and bring the folder back");
            return Err(halted(Halt::root_changed(&["no folder", &shown], why)));
        }
        Err(source) => return Err(OpenError::Io { path: setup.root.clone(), source }),
    };
    if let Some(folder_id) = folder_id {
        check_identity(&root, folder_id)?;
    }
    Ok(root)
}

fn check_identity(root: &Arc<RealDisk>, folder_id: &str) -> Result<(), CycleError> {
    // Device name and random seed are for writes alone.
    Folder::new(root.clone(), "", 0).check(folder_id).map_err(root_halt)
}

/// The root of an open folder, to be checked again while the folder is in use.
pub(super) struct RootGuard {
    /// As [`open_root`] gave it.
    pub root: Arc<RealDisk>,
    pub folder_id: Option<String>,
}

impl RootGuard {
    /// Checks that the root was not moved, replaced or unmounted, and that it has its identity.
    ///
    /// # Errors
    /// [`CycleError::Halted`] when a gate is shut.
    pub(super) fn check(&self, setup: &FolderSetup) -> Result<(), CycleError> {
        let unreadable = |source| CycleError::Folder { what: "looking at the folder", source };
        let is_same = self.root.root_identity().map_err(unreadable)?.is_same();
        // The root itself is no symlink, so only another configured path has to be followed.
        if is_same && (setup.folder.path == setup.root || self.root.is_at(&setup.folder.path).map_err(unreadable)?) {
            return self.folder_id.as_deref().map_or(Ok(()), |folder_id| check_identity(&self.root, folder_id));
        }
        match open_root(setup, self.folder_id.as_deref()) {
            Err(OpenError::Cycle(e)) => Err(e),
            Err(OpenError::Io { source, .. }) => Err(unreadable(source)),
            _ => {
                let shown = setup.folder.path.display().to_string();
                let why = format!("{shown} was replaced by a copy of itself; it is opened again");
                Err(CycleError::Halted(Halt::root_changed(&["replaced", &shown], why)))
            }
        }
    }
}

/// Resolves the configured path. A missing folder is made, for its owner only.
pub(super) fn find_or_make(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if is_absent(&e) => {
            RealDisk::create_private(path)?;
            path.canonicalize()
        }
        found => found,
    }
}

/// The gate that is shut for the root of a folder. Works beside a running agent.
pub(crate) fn find_root_halt(setup: &FolderSetup) -> Result<Option<Halt>, OpenError> {
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

/// True: another agent, with another home directory, works on the folder. False for a folder that cannot be opened.
pub(super) fn is_in_use(root: &Path) -> bool {
    RealDisk::open(root).is_ok_and(|disk| matches!(disk.lock_root(), Ok(None)))
}

fn missing_root(setup: &FolderSetup, folder_id: Option<&str>) -> Halt {
    let shown = setup.folder.path.display().to_string();
    let why = format!("{shown} is not there; if it was moved or unmounted, bring it back");
    Halt::root_missing(&["no folder", &shown, folder_id.unwrap_or_default()], why)
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn halted(halt: Halt) -> OpenError {
    OpenError::Cycle(CycleError::Halted(halt))
}
