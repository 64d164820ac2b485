//! [`Standstill`]: why a folder is not synced now. Status, dry runs and `memsync sync` take the state and the exit code
//! from it.

use crate::remote::RemoteError;
use crate::state::StateError;

use super::cycle::CycleError;
use super::root::OpenError;
use super::status::{FolderStatus, HaltStatus, SyncState, WaitsFor, halt_status};

/// Why a folder is not synced now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standstill {
    pub state: SyncState,
    /// Set if sync goes on by itself.
    pub waits_for: Option<WaitsFor>,
    /// The event, and the next step for the user.
    pub reason: String,
    /// Set if a person has to approve.
    pub halt: Option<HaltStatus>,
}

impl Standstill {
    fn waiting(waits_for: WaitsFor, reason: String) -> Self {
        Self { state: SyncState::Offline, waits_for: Some(waits_for), reason, halt: None }
    }

    /// The disk fails. The folder is tried again until the disk is back.
    pub(super) fn on_disk(why: impl std::fmt::Display) -> Self {
        Self::waiting(WaitsFor::Disk, format!("waits for the disk: {why}"))
    }

    /// A person has to correct something outside of the folder.
    pub(super) fn stopped(why: impl std::fmt::Display) -> Self {
        Self { state: SyncState::Stopped, waits_for: None, reason: why.to_string(), halt: None }
    }

    /// Shows it in the status of the folder.
    pub(super) fn enter(self, status: &mut FolderStatus) {
        status.in_sync = false;
        (status.state, status.waits_for) = (self.state, self.waits_for);
        (status.reason, status.halt) = (Some(self.reason), self.halt);
    }
}

impl From<&CycleError> for Standstill {
    fn from(e: &CycleError) -> Self {
        match e {
            CycleError::Remote(e @ RemoteError::Auth { .. }) => {
                Self { state: SyncState::AuthRequired, waits_for: None, reason: e.to_string(), halt: None }
            }
            CycleError::Remote(e) => Self::waiting(WaitsFor::Proxy, e.to_string()),
            CycleError::State(e) => e.into(),
            CycleError::Folder { .. } => Self::on_disk(e),
            CycleError::Halted(halt) => {
                let halt = halt_status(halt, &[]);
                Self { state: SyncState::Halted, waits_for: None, reason: halt.reason.clone(), halt: Some(halt) }
            }
            CycleError::Stopped => Self::stopped(e),
        }
    }
}

impl From<&StateError> for Standstill {
    fn from(e: &StateError) -> Self {
        match e {
            StateError::Io { .. } => Self::on_disk(e),
            StateError::FutureVersion { .. } => Self::stopped(e),
        }
    }
}

impl From<&OpenError> for Standstill {
    fn from(e: &OpenError) -> Self {
        match e {
            OpenError::Cycle(e) => e.into(),
            OpenError::State(e) => e.into(),
            OpenError::Io { .. } => Self::on_disk(e),
            OpenError::Lock(_) | OpenError::Http(_) | OpenError::Pattern(_) => Self::stopped(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn disk_error_waits_without_approval() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let folder = CycleError::Folder { what: "scanning the folder", source: full() };
        let open = OpenError::Io { path: "/state".into(), source: full() };
        for stands in [Standstill::from(&folder), Standstill::from(&open)] {
            assert_eq!(
                (stands.state, stands.waits_for, &stands.halt),
                (SyncState::Offline, Some(WaitsFor::Disk), &None)
            );
            assert!(stands.reason.starts_with("waits for the disk: "), "{}", stands.reason);
        }
    }

    #[test]
    fn state_of_a_newer_version_stops() {
        let e = StateError::FutureVersion { file: "f".to_owned(), found: 9, known: 2 };
        let stands = Standstill::from(&OpenError::State(e));
        assert_eq!((stands.state, stands.waits_for), (SyncState::Stopped, None));
    }
}
