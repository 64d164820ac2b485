//! [`Shared`]: what others may see of a folder's worker, in the words of the status.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::local::watch::{WatchState, Watcher};
use crate::sync::plan::Side;
use crate::sync::safety::{Halt, Held};

use super::cycle::Recent;
use super::engine::Progress;
use super::last_known::last_known;
use super::push::Push;
use super::session::FolderSetup;
use super::status::{FolderStatus, HaltStatus, ProgressStatus, ProxyStatus, RecentAction, State};

/// Finished actions that the status shows.
const RECENT: usize = 50;

/// What others may see of a worker.
pub struct Shared {
    pub(super) status: Mutex<FolderStatus>,
    pub(super) proxy: Mutex<ProxyStatus>,
    pub(super) push: Push,
    recent: Mutex<VecDeque<RecentAction>>,
    /// Everything that waits for a person; the status shows the first.
    halts: Mutex<Vec<HaltStatus>>,
    pub(super) progress: Mutex<Option<Arc<Progress>>>,
    pub(super) next_cycle: Mutex<Option<Instant>>,
    /// Counts the changes of all this.
    changed: watch::Sender<u64>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Starts from the last known figures; the first cycle finds out all else.
    pub fn new(setup: &FolderSetup, changed: watch::Sender<u64>) -> Self {
        Self {
            status: Mutex::new(FolderStatus { state: State::Syncing, halt: None, ..last_known(setup) }),
            proxy: Mutex::new(ProxyStatus::unasked(&setup.http.origin)),
            push: Push::default(),
            recent: Mutex::default(),
            halts: Mutex::default(),
            progress: Mutex::default(),
            next_cycle: Mutex::default(),
            changed,
        }
    }

    pub fn status(&self) -> FolderStatus {
        // Held to the end: a cycle clears its progress together with its outcome.
        let told = lock(&self.status);
        let mut status = told.clone();
        if let Some(progress) = &*lock(&self.progress) {
            let load = |n: &AtomicUsize| n.load(Ordering::Relaxed);
            let now = ProgressStatus { done: load(&progress.done), steps: load(&progress.steps) };
            if now.steps > 0 {
                (status.state, status.in_sync) = (State::Syncing, false);
                status.progress = Some(now);
            }
        }
        drop(told);
        let next = *lock(&self.next_cycle);
        status.next_sync_s = next.map(|at| at.saturating_duration_since(Instant::now()).as_secs());
        status
    }

    /// A change has been seen that no cycle has taken in yet.
    pub(super) fn not_in_sync(&self) {
        let was = std::mem::replace(&mut lock(&self.status).in_sync, false);
        if was {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Notes how the proxy was asked just now.
    pub(super) fn proxy_asked(&self, answered: bool) {
        let mut proxy = lock(&self.proxy);
        (proxy.reachable, proxy.asked_at) = (answered, Some(jiff::Timestamp::now()));
    }

    /// Notes how changes of the folder are noticed.
    pub(super) fn watched_by(&self, watcher: &Watcher) {
        let watch = watcher.state();
        self.set(|s| {
            s.watcher = watch.name().to_owned();
            s.watcher_remedy = match watch {
                WatchState::Degraded { reason, remedy } => Some(format!("{reason}; {remedy}")),
                _ => None,
            };
        });
    }

    pub fn proxy(&self) -> ProxyStatus {
        lock(&self.proxy).clone()
    }

    pub fn recent(&self) -> Vec<RecentAction> {
        lock(&self.recent).iter().cloned().collect()
    }

    pub fn halts(&self) -> Vec<HaltStatus> {
        lock(&self.halts).clone()
    }

    pub(super) fn set_halts(&self, halts: Vec<HaltStatus>) {
        *lock(&self.halts) = halts;
    }

    /// Notes what a cycle did, the newest first.
    pub(super) fn note_done(&self, done: &[Recent], at: jiff::Timestamp) {
        let mut recent = lock(&self.recent);
        for done in done.iter().rev().take(RECENT).rev() {
            recent.push_front(RecentAction {
                at,
                path: done.path.to_string(),
                action: done.action.to_owned(),
                outcome: done.outcome.clone(),
            });
        }
        recent.truncate(RECENT);
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut FolderStatus)) {
        change(&mut lock(&self.status));
        self.changed.send_modify(|n| *n += 1);
    }
}
/// A gate that is shut, in words that say what to do.
pub fn halt_status(halt: &Halt, held: &[Held]) -> HaltStatus {
    let reason = match halt {
        Halt::RootMissing { id, why } | Halt::RootChanged { id, why } => format!(
            "{why}. If this is still your folder, `memsync approve {id}` goes on with the files of both sides; \
             nothing is deleted"
        ),
        Halt::MassDelete { id, side, files, of } => {
            let place = match side {
                Side::Local => "here, because they were deleted elsewhere",
                Side::Remote => "on the proxy, because they were deleted here",
            };
            format!(
                "{files} of {of} files would be deleted {place}; `memsync approve {id}` lets it happen, \
                 `memsync approve --reject {id}` brings them back"
            )
        }
        Halt::ServerReset { id, why } => format!(
            "{why}; nothing is synced until you have looked; `memsync approve {id}` offers the files of this folder \
             to it again (nothing is deleted, differences become conflict copies)"
        ),
    };
    let steps = match halt {
        Halt::MassDelete { id, .. } => held.iter().find(|h| h.id == *id).map_or(&[][..], |h| &h.steps),
        _ => &[],
    };
    let sample = steps.iter().take(10).map(|s| s.path.to_string()).collect();
    HaltStatus {
        kind: halt.name().to_owned(),
        id: Some(halt.id().to_owned()),
        reason,
        sample,
        paths: steps.len(),
        deleted_here: matches!(halt, Halt::MassDelete { side: Side::Remote, .. }),
    }
}
