//! The last status of a folder, as it was noted beside the state container.
//!
//! An agent starts from it, and `memsync status` shows it where no agent runs. So no figure is ever made up.

use std::io;
use std::sync::Arc;

use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::Folder;
use crate::local::moves::is_conflict_name;
use crate::state::{View, peek, read_note, write_note};

use super::session::FolderSetup;
use super::status::{FolderStatus, HaltStatus, Pending, State};

/// The figures of the last cycle, with their time, and the halt of the last run. The state is left to the caller.
pub(super) fn last_known(setup: &FolderSetup) -> FolderStatus {
    let noted = read_note(&setup.status_file).unwrap_or_else(|e| {
        tracing::debug!("{}: {e}", setup.status_file.display());
        None
    });
    let noted = noted.and_then(|text| serde_json::from_slice::<FolderStatus>(&text).ok());
    let known = noted.unwrap_or_else(|| in_container(setup));
    FolderStatus {
        path: setup.root.display().to_string(),
        namespace: setup.namespace.clone(),
        state: State::Stopped,
        reason: None,
        waits_for: None,
        push_remedy: None,
        in_sync: false,
        next_sync_s: None,
        progress: None,
        ..known
    }
}

/// Whether a halt of an earlier run is over, as far as the folder alone tells.
pub(super) fn is_over(setup: &FolderSetup, halt: &HaltStatus) -> bool {
    let Ok(root) = RealDisk::open(&setup.root) else { return false };
    if halt.deleted_here {
        return halt.sample.iter().all(|path| root.stat(path).is_ok());
    }
    let is_root_halt = matches!(halt.kind.as_str(), "root_missing" | "root_changed");
    let id = container(setup).and_then(|view| view.header.folder_id);
    is_root_halt && id.is_some_and(|id| Folder::new(Arc::new(root), &setup.device, 0).check(&id).is_ok())
}

fn container(setup: &FolderSetup) -> Option<View> {
    let disk = RealDisk::open(&setup.state_dir).ok()?;
    peek(&Arc::new(disk), &setup.container).unwrap_or_else(|e| {
        tracing::debug!("{}: {e}", setup.container);
        None
    })
}

/// Keeps `status` for those who ask while no agent runs.
///
/// # Errors
/// When the file beside the container cannot be written.
pub(super) fn note(setup: &FolderSetup, status: &FolderStatus) -> io::Result<()> {
    write_note(&setup.status_file, &serde_json::to_vec(status)?)
}

/// The figures of the container, as of its last save.
fn in_container(setup: &FolderSetup) -> FolderStatus {
    let view = container(setup);
    let saved_at = view.as_ref().map(|view| view.header.modified_at);
    let entries = view.map(|view| view.entries).unwrap_or_default();
    let tracked = || entries.iter().filter(|(_, e)| e.base.content().is_some());
    FolderStatus {
        path: setup.root.display().to_string(),
        namespace: setup.namespace.clone(),
        state: State::Stopped,
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
