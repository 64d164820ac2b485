//! Sync and dry runs without an agent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use crate::disk::real::RealDisk;
use crate::local::ScanScope;
use crate::state::FolderLock;

use super::activity::ActivityRecorder;
use super::control::PlannedStep;
use super::cycle::{CycleError, CycleReport};
use super::findings::CycleFindings;
use super::open_folder::OpenFolder;
use super::root::OpenError;
use super::setup::{CONFIRM_INTERVAL, FolderSetup};
use super::standstill::Standstill;
use super::status::{FolderStatus, HaltStatus, halt_status};
use super::status_file::{last_known, save_status};

/// Follow-up cycles in a row. A deletion needs two scans and a conflict copy a cycle of its own; more than this many
/// means that a program keeps writing.
const MAX_FOLLOW_UPS: u32 = 20;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The result of [`sync_standalone`].
#[derive(Debug)]
pub(crate) struct SyncSummary {
    pub uploaded: usize,
    pub downloaded: usize,
    pub merged: usize,
    /// Deleted on the proxy.
    pub deleted: usize,
    /// Deleted here; history has the files.
    pub trashed: usize,
    /// The conflict copies that were made.
    pub conflicts: Vec<String>,
    pub halts: Vec<HaltStatus>,
    /// The folder after the sync.
    pub status: FolderStatus,
}

/// Runs cycles until nothing is left to do, and writes the status file. `progress` gets the finished steps and all
/// steps. After an error, finished work is committed.
pub(crate) async fn sync_standalone(
    setup: &FolderSetup,
    progress: impl FnMut(usize, usize),
) -> Result<SyncSummary, OpenError> {
    let _lock = lock_state(setup)?;
    let mut status = FolderStatus { halt: None, ..last_known(setup) };
    let result = match OpenFolder::open(setup) {
        Ok(mut folder) => {
            let result = run_cycles(setup, &mut folder, &mut status, progress).await;
            if result.is_err() {
                let done = std::mem::take(&mut folder.engine.parts.memory.cut_off);
                ActivityRecorder::default().note(setup, &done);
                CycleFindings::enter_partly(&folder.engine, &mut status, Timestamp::now());
            }
            result.map_err(OpenError::from)
        }
        Err(e) => Err(e),
    };
    if let Err(e) = &result {
        Standstill::from(e).enter(&mut status);
    }
    if let Err(e) = save_status(setup, &status) {
        tracing::warn!("{}: {e}", setup.status_file.display());
    }
    result
}

async fn run_cycles(
    setup: &FolderSetup,
    folder: &mut OpenFolder,
    status: &mut FolderStatus,
    mut progress: impl FnMut(usize, usize),
) -> Result<SyncSummary, CycleError> {
    let (mut uploaded, mut downloaded, mut merged, mut deleted, mut trashed) = (0, 0, 0, 0, 0);
    let mut conflicts = Vec::new();
    let mut follow_ups = 0;
    let mut activity = ActivityRecorder::default();
    loop {
        let report = run_cycle(folder, &mut progress).await?;
        activity.note(setup, &report.recent);
        uploaded += report.uploaded;
        downloaded += report.downloaded;
        merged += report.merged;
        deleted += report.deleted_remote;
        trashed += report.trashed;
        conflicts.extend(report.conflicts.iter().map(ToString::to_string));
        let findings = CycleFindings::of(&folder.engine, &report, folder.rules.problems(), status);
        findings.enter(status, Timestamp::now());
        if report.again {
            follow_ups += 1;
            if follow_ups == MAX_FOLLOW_UPS {
                break;
            }
            tokio::time::sleep(CONFIRM_INTERVAL + Duration::from_millis(10)).await;
        } else if folder.engine.in_transit().next().is_some() {
            folder.engine.transfer_ends().await;
        } else {
            break;
        }
    }
    let halts = folder.engine.halts().iter().map(|h| halt_status(h, folder.engine.held())).collect();
    folder.engine.tidy()?;
    folder.engine.note_clean_stop()?;
    Ok(SyncSummary { uploaded, downloaded, merged, deleted, trashed, conflicts, halts, status: status.clone() })
}

async fn run_cycle(
    folder: &mut OpenFolder,
    progress: &mut impl FnMut(usize, usize),
) -> Result<CycleReport, CycleError> {
    let counts = folder.engine.parts.signals.progress.clone();
    let load = |n: &AtomicUsize| n.load(Ordering::Relaxed);
    let cycle = folder.engine.cycle(ScanScope::full());
    tokio::pin!(cycle);
    loop {
        tokio::select! {
            report = &mut cycle => return report,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => progress(load(&counts.done), load(&counts.steps)),
        }
    }
}

/// Approves the halt `id` of the folder's root. False: no such halt.
pub(crate) fn approve_root(setup: &FolderSetup, id: &str) -> Result<bool, OpenError> {
    let _lock = lock_state(setup)?;
    let Some(mut folder) = OpenFolder::open_approved(setup, id)? else { return Ok(false) };
    folder.engine.note_clean_stop()?;
    Ok(true)
}

/// The steps of the next cycle. Nothing is changed.
pub(crate) async fn plan_standalone(setup: &FolderSetup) -> Result<Vec<PlannedStep>, OpenError> {
    let _lock = lock_state(setup)?;
    let mut folder = OpenFolder::open(setup)?;
    let plan = folder.engine.dry_run().await?;
    folder.engine.note_clean_stop().map_err(CycleError::from)?;
    Ok(PlannedStep::list(&setup.root, &plan))
}

fn lock_state(setup: &FolderSetup) -> Result<FolderLock, OpenError> {
    RealDisk::create_private(&setup.state_dir)
        .map_err(|source| OpenError::Io { path: setup.state_dir.clone(), source })?;
    Ok(FolderLock::acquire(&setup.lock)?)
}
