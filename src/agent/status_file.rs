//! The status file: the last status of a folder, beside its state container.
//!
//! An agent starts with it, and `memsync status` shows it while no agent runs. So no figure is ever made up.

use std::io;
use std::sync::Arc;

use crate::disk::real::RealDisk;
use crate::local::conflicts::is_conflict_name;
use crate::state::{StateView, peek, read_note, write_note};

use super::setup::FolderSetup;
use super::status::{FolderStatus, Pending, SyncState};

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
    write_note(&setup.status_file, &serde_json::to_vec(status)?)
}

/// Reads the state container beside a running agent. `None`: there is none that can be read.
pub(super) fn view_container(setup: &FolderSetup) -> Option<StateView> {
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
        path: setup.root.display().to_string(),
        namespace: setup.folder.namespace.clone(),
        state: SyncState::Stopped,
        reason: None,
        waits_for: None,
        in_sync: false,
        files: tracked().count(),
        bytes: tracked().filter_map(|(_, e)| e.stat).map(|s| s.size).sum(),
        watcher: "poll".to_owned(),
        watcher_remedy: None,
        push_remedy: None,
        counted_at: saved_at,
        last_success: saved_at.filter(|_| tracked().next().is_some()),
        next_sync_s: None,
        pending: Pending::default(),
        conflicts: tracked().filter(|(p, _)| is_conflict_name(p.file_name())).count(),
        problems: Vec::new(),
        halt: None,
        progress: None,
    }
}
