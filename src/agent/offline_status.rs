//! The status while no agent runs.

use std::sync::Arc;

use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::Folder;

use super::root::find_root_halt;
use super::setup::FolderSetup;
use super::standstill::Standstill;
use super::status::{AgentStatus, FolderStatus, HaltStatus, Pending, ProxyStatus, Status, SyncState, halt_status};
use super::status_file::{last_known, view_container};

/// The status from the files of the last run. `start`: the command that starts an agent.
pub(crate) fn offline_status(setups: &[FolderSetup], device: &str, proxy_url: &str, start: &str) -> Status {
    let agent = AgentStatus {
        running: false,
        pid: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: 0,
        start_command: Some(start.to_owned()),
    };
    let folders = setups.iter().map(|setup| offline_folder(setup, start)).collect();
    summarize(agent, device.to_owned(), ProxyStatus::unasked(proxy_url), folders)
}

/// Combines the folders into one status. The worst state counts.
pub(super) fn summarize(agent: AgentStatus, device: String, proxy: ProxyStatus, folders: Vec<FolderStatus>) -> Status {
    let worst = folders.iter().max_by_key(|f| f.state);
    let (state, reason) = worst.map_or((SyncState::Idle, None), |f| (f.state, f.reason.clone()));
    let in_sync = !folders.is_empty() && folders.iter().all(|f| f.in_sync);
    Status { schema: 1, state, reason, in_sync, agent, device, proxy, folders, recent: Vec::new() }
}

fn offline_folder(setup: &FolderSetup, start: &str) -> FolderStatus {
    let reason = Some(format!("no agent runs; start it with `{start}`"));
    let known = last_known(setup);
    let known = match &known.halt {
        Some(halt) if is_over(setup, halt) => {
            let pending = Pending { held_delete: 0, ..known.pending };
            FolderStatus { halt: None, pending, ..known }
        }
        _ => known,
    };
    with_root_halt(FolderStatus { reason, ..known }, setup)
}

/// True: the folder alone shows that a halt of the last run is over.
fn is_over(setup: &FolderSetup, halt: &HaltStatus) -> bool {
    let Ok(root) = RealDisk::open(&setup.root) else { return false };
    if halt.deleted_here {
        return halt.sample.iter().all(|path| root.stat(path).is_ok());
    }
    let is_root_halt = matches!(halt.kind.as_str(), "root_missing" | "root_changed");
    let id = view_container(setup).and_then(|view| view.header.folder_id);
    is_root_halt && id.is_some_and(|id| Folder::new(Arc::new(root), &setup.device, 0).check(&id).is_ok())
}

/// Replaces the root halt of the last run by the one of now.
fn with_root_halt(mut status: FolderStatus, setup: &FolderSetup) -> FolderStatus {
    let was_of_root = status.halt.as_ref().is_some_and(|halt| halt.kind.starts_with("root_"));
    status.halt = status.halt.filter(|_| !was_of_root);
    match find_root_halt(setup) {
        Ok(None) => {}
        Ok(Some(halt)) => {
            let halt = halt_status(&halt, &[]);
            (status.state, status.reason) = (SyncState::Halted, Some(halt.reason.clone()));
            status.halt = Some(halt);
        }
        Err(e) => {
            let why = Standstill::from(&e);
            (status.state, status.waits_for, status.reason) = (why.state, why.waits_for, Some(why.reason));
        }
    }
    status
}
