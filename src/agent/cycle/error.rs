//! [`CycleError`]: why a cycle ended early.

use std::io;

use crate::local::RootError;
use crate::remote::RemoteError;
use crate::state::StateError;
use crate::sync::safety::Halt;

/// Why a cycle ended early. A cycle decides nothing from half an answer.
#[derive(Debug, thiserror::Error)]
pub enum CycleError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The state container cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The folder cannot be read or written.
    #[error("{what}: {source}; {}", remedy(source))]
    Folder { what: &'static str, source: io::Error },
    /// A gate is shut for the folder or the proxy as a whole.
    #[error("halted ({})", .0.name())]
    Halted(Halt),
    #[error("stopped")]
    Stopped,
}

/// The halt for a folder that is missing or another one than before.
pub(in crate::agent) fn root_halt(e: RootError) -> CycleError {
    match e {
        RootError::Missing { ref expected } => {
            CycleError::Halted(Halt::root_missing(&["no identity", expected], e.to_string()))
        }
        RootError::Changed { ref expected, ref found } => {
            CycleError::Halted(Halt::root_changed(&["identity", expected, found], e.to_string()))
        }
        RootError::Io { path, source } => CycleError::Folder { what: path, source },
    }
}

/// The remedy for a full disk.
pub(in crate::agent) const MAKE_ROOM: &str = "make room, then it goes on by itself";

/// The remedy for a disk error.
pub(in crate::agent) fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => MAKE_ROOM,
        io::ErrorKind::PermissionDenied => "give memsync's user the right to write there",
        io::ErrorKind::ResourceBusy => "close it there",
        io::ErrorKind::ReadOnlyFilesystem => "mount the filesystem for writing",
        _ => "check the disk and the permissions",
    }
}

/// An error of the folder; `what`: the file, or the action that failed.
pub(in crate::agent) fn folder_error(what: &'static str) -> impl FnOnce(io::Error) -> CycleError {
    move |source| CycleError::Folder { what, source }
}
