//! The status file: the last status of a folder, beside its state container.
//!
//! An agent starts with it, and `memsync status` shows it while no agent runs. So no figure is ever made up.

use std::io;
use std::sync::Arc;

use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::disk::whole::replace_note;
use crate::local::Folder;
use crate::local::conflicts::is_conflict_name;
use crate::state::{StateView, peek, read_note};

use super::root::find_root_halt;
use super::setup::FolderSetup;
use super::standstill::Standstill;
use super::status::{AgentStatus, FolderStatus, HaltStatus, Pending, ProxyStatus, Status, SyncState, halt_status};

/// The figures and the halt of the last run, stopped. Without a status file the figures come from the container.
pub(super) fn last_known(setup: &FolderSetup) -> FolderStatus {
    let saved = read_note(&setup.status_file).unwrap_or_else(|e| {
        tracing::debug!("{}: {e}", setup.status_file.display());
        None
    });
    let saved = saved.and_then(|text| serde_json::from_slice::<FolderStatus>(&text).ok());
    let known = saved.unwrap_or_else(|| container_status(setup));
    FolderStatus {
        path: setup.root.display().to_string(),
        namespace: setup.folder.namespace.clone(),
        state: SyncState::Stopped,
        reason: None,
        waits_for: None,
        push_remedy: None,
        in_sync: false,
        next_sync_s: None,
        progress: None,
        ..known
    }
}

/// Writes the status file.
pub(super) fn save_status(setup: &FolderSetup, status: &FolderStatus) -> io::Result<()> {
    replace_note(&setup.status_file, &serde_json::to_vec(status)?)
}

/// Reads the state container beside a running agent. `None`: there is none that can be read.
fn view_container(setup: &FolderSetup) -> Option<StateView> {
    let disk = RealDisk::open(&setup.state_dir).ok()?;
    peek(&Arc::new(disk), &setup.container).unwrap_or_else(|e| {
        tracing::debug!("{}: {e}", setup.container);
        None
    })
}

/// The figures of the container, as of its last save.
fn container_status(setup: &FolderSetup) -> FolderStatus {
    let view = view_container(setup);
    let saved_at = view.as_ref().map(|view| view.header.modified_at);
    let entries = view.map(|view| view.entries).unwrap_or_default();
    let tracked = || entries.iter().filter(|(_, e)| e.base.content().is_some());
    FolderStatus {
        files: tracked().count(),
        bytes: tracked().filter_map(|(_, e)| e.stat).map(|s| s.size).sum(),
        watcher: "poll".to_owned(),
        counted_at: saved_at,
        last_success: saved_at.filter(|_| tracked().next().is_some()),
        conflicts: tracked().filter(|(p, _)| is_conflict_name(p.file_name())).count(),
        ..FolderStatus::default()
    }
}

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
    let id = view_container(setup).and_then(|view| view.header.folder_id);
    halt.is_of_root() && id.is_some_and(|id| Folder::new(Arc::new(root), &setup.device, 0).check(&id).is_ok())
}

/// Replaces the root halt of the last run by the one of now.
fn with_root_halt(mut status: FolderStatus, setup: &FolderSetup) -> FolderStatus {
    status.halt = status.halt.filter(|halt| !halt.is_of_root());
    match find_root_halt(setup) {
        Ok(None) => {}
        Ok(Some(halt)) => {
            let halt = halt_status(&halt, &[]);
            (status.state, status.reason) = (SyncState::Halted, Some(halt.reason.clone()));
            status.halt = Some(halt);
        }
        Err(e) => {
            Standstill { halt: status.halt.take(), ..Standstill::from(&e) }.enter(&mut status);
        }
    }
    status
}
