//! What is done without an agent: sync once, or say what would be done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::disk::real::RealDisk;
use crate::local::Scope;
use crate::state::Lock;

use super::control::PlannedStep;
use super::engine::CycleError;
use super::findings::Findings;
use super::last_known::{last_known, note};
use super::session::{CONFIRM, FolderSetup, OpenError, Session};
use super::shared::halt_status;
use super::standstill::Standstill;
use super::status::{FolderStatus, HaltStatus};

/// What [`sync_once`] did.
#[derive(Debug)]
pub struct Summary {
    pub uploaded: usize,
    pub downloaded: usize,
    /// On the proxy.
    pub deleted: usize,
    /// Here, into history.
    pub trashed: usize,
    /// Conflict copies made.
    pub conflicts: Vec<String>,
    pub halts: Vec<HaltStatus>,
    /// The folder afterwards.
    pub status: FolderStatus,
}

/// Why a sync without an agent did not go through.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Cycle(#[from] CycleError),
}

impl From<&OnceError> for Standstill {
    fn from(e: &OnceError) -> Self {
        match e {
            OnceError::Open(e) => e.into(),
            OnceError::Cycle(e) => e.into(),
        }
    }
}

/// Cycles without an agent until nothing is left to do. `progress` is told steps done and steps in all. The outcome is
/// noted for `memsync status`.
///
/// # Errors
/// What ended it; what was finished before is committed.
pub async fn sync_once(setup: &FolderSetup, progress: impl FnMut(usize, usize)) -> Result<Summary, OnceError> {
    let _lock = once_lock(setup)?;
    let mut status = FolderStatus { halt: None, ..last_known(setup) };
    let result = match Session::open(setup) {
        Ok(mut session) => {
            let result = cycles(&mut session, &mut status, progress).await;
            if result.is_err() {
                Findings::enter_partly(&session.engine, &mut status, jiff::Timestamp::now());
            }
            result.map_err(OnceError::from)
        }
        Err(e) => Err(e.into()),
    };
    if let Err(e) = &result {
        let why = Standstill::from(e);
        (status.state, status.waits_for) = (why.state, why.waits_for);
        (status.reason, status.halt) = (Some(why.reason), why.halt);
    }
    if let Err(e) = note(setup, &status) {
        tracing::warn!("{}: {e}", setup.status_file.display());
    }
    result
}

async fn cycles(
    session: &mut Session,
    status: &mut FolderStatus,
    mut progress: impl FnMut(usize, usize),
) -> Result<Summary, CycleError> {
    let counts = session.engine.progress();
    let (mut uploaded, mut downloaded, mut deleted, mut trashed, mut conflicts) = (0, 0, 0, 0, Vec::new());
    // A deletion wants two scans, a conflict copy a cycle of its own; beyond that somebody is writing.
    let mut rounds = 20;
    loop {
        let report = {
            let cycle = session.engine.cycle(Scope::full());
            tokio::pin!(cycle);
            loop {
                let tick = tokio::time::sleep(Duration::from_millis(100));
                tokio::select! {
                    report = &mut cycle => break report?,
                    () = tick => {
                        let load = |n: &AtomicUsize| n.load(Ordering::Relaxed);
                        progress(load(&counts.done), load(&counts.steps));
                    }
                }
            }
        };
        uploaded += report.uploaded;
        downloaded += report.downloaded;
        deleted += report.deleted_remote;
        trashed += report.trashed;
        conflicts.extend(report.conflicts.iter().map(ToString::to_string));
        let findings = Findings::of(&session.engine, &report, session.rules.problems(), status);
        findings.enter(status, jiff::Timestamp::now());
        if report.again {
            rounds -= 1;
            if rounds == 0 {
                break;
            }
            tokio::time::sleep(CONFIRM + Duration::from_millis(10)).await;
        } else if session.engine.in_transit().next().is_some() {
            session.engine.transfer_ends().await;
        } else {
            break;
        }
    }
    let halts = session.engine.halts().iter().map(|h| halt_status(h, session.engine.held())).collect();
    session.engine.tidy()?;
    session.engine.note_clean_stop()?;
    Ok(Summary { uploaded, downloaded, deleted, trashed, conflicts, halts, status: status.clone() })
}

/// Lets the halt `id` of the folder's root through, for the next sync. False: no such halt.
///
/// # Errors
/// When an agent works on the folder, or it cannot be read or written.
pub fn approve_root(setup: &FolderSetup, id: &str) -> Result<bool, OpenError> {
    let _lock = once_lock(setup)?;
    let Some(mut session) = Session::open_approved(setup, id)? else { return Ok(false) };
    session.engine.note_clean_stop()?;
    Ok(true)
}

/// What a cycle would do.
///
/// # Errors
/// When the folder or the proxy cannot be read.
pub async fn dry_run(setup: &FolderSetup) -> Result<Vec<PlannedStep>, OnceError> {
    let _lock = once_lock(setup)?;
    let mut session = Session::open(setup)?;
    let plan = session.engine.dry_run().await?;
    session.engine.note_clean_stop().map_err(CycleError::from)?;
    Ok(PlannedStep::of(&setup.root, &plan))
}

fn once_lock(setup: &FolderSetup) -> Result<Lock, OpenError> {
    RealDisk::create_private(&setup.state_dir)
        .map_err(|source| OpenError::Io { path: setup.state_dir.clone(), source })?;
    Ok(Lock::acquire(&setup.lock)?)
}
