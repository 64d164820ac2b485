//! What is done without an agent: sync once, or say what would be done.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::disk::real::RealDisk;
use crate::local::Scope;
use crate::state::Lock;

use super::control::PlannedStep;
use super::engine::CycleError;
use super::session::{CONFIRM, FolderSetup, OpenError, Session};
use super::shared::halt_status;
use super::status::{HaltStatus, Problem};

/// What [`sync_once`] did.
#[derive(Debug, Default)]
pub struct Summary {
    pub uploaded: usize,
    pub downloaded: usize,
    /// On the proxy.
    pub deleted: usize,
    /// Here, into history.
    pub trashed: usize,
    /// Conflict copies made.
    pub conflicts: Vec<String>,
    pub problems: Vec<Problem>,
    pub halts: Vec<HaltStatus>,
    /// Paths that are left to do: they failed, or somebody goes on writing.
    pub pending: usize,
}

/// Why a sync without an agent did not go through.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Cycle(#[from] CycleError),
}

/// Cycles without an agent until nothing is left to do. `progress` is told steps done and steps in all.
///
/// # Errors
/// What ended it; what was finished before is committed.
pub async fn sync_once(setup: &FolderSetup, mut progress: impl FnMut(usize, usize)) -> Result<Summary, OnceError> {
    let _lock = once_lock(setup)?;
    let mut session = Session::open(setup)?;
    let mut summary = Summary::default();
    let counts = session.engine.progress();
    let mut blocked = BTreeMap::new();
    let mut unfinished = false;
    // A deletion wants two scans, a conflict copy a cycle of its own; beyond that somebody is writing.
    for round in 0..20 {
        if round > 0 {
            tokio::time::sleep(CONFIRM + Duration::from_millis(10)).await;
        }
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
        summary.uploaded += report.uploaded;
        summary.downloaded += report.downloaded;
        summary.deleted += report.deleted_remote;
        summary.trashed += report.trashed;
        summary.conflicts.extend(report.conflicts.iter().map(ToString::to_string));
        blocked = report.blocked;
        unfinished = report.again || report.waiting > 0;
        if !report.again {
            break;
        }
    }
    let now = jiff::Timestamp::now();
    let all: BTreeMap<_, _> = session.engine.problems().into_iter().chain(blocked).collect();
    summary.problems =
        all.into_iter().map(|(p, problem)| Problem { path: p.to_string(), problem, since: now }).collect();
    summary.pending = session.engine.failing().max(usize::from(unfinished));
    summary.halts = session.engine.halts().iter().map(|h| halt_status(h, session.engine.held())).collect();
    session.engine.tidy().map_err(CycleError::from)?;
    Ok(summary)
}

/// What a cycle would do.
///
/// # Errors
/// When the folder or the proxy cannot be read.
pub async fn dry_run(setup: &FolderSetup) -> Result<Vec<PlannedStep>, OnceError> {
    let _lock = once_lock(setup)?;
    let mut session = Session::open(setup)?;
    let plan = session.engine.dry_run().await?;
    Ok(PlannedStep::of(&setup.root, &plan))
}

fn once_lock(setup: &FolderSetup) -> Result<Lock, OpenError> {
    RealDisk::create_private(&setup.state_dir)
        .map_err(|source| OpenError::Io { path: setup.state_dir.clone(), source })?;
    Ok(Lock::acquire(&setup.lock)?)
}
