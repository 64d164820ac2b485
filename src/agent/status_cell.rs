//! [`StatusCell`]: the current status of one folder. The folder's task writes it, and the control API reads it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::local::watch::{FolderWatcher, WatchState};
use crate::protocol::capability;

use super::cycle::{CycleProgress, FinishedAction};
use super::setup::FolderSetup;
use super::status::{FolderStatus, HaltStatus, ProgressStatus, ProxyStatus, RecentAction, SyncState};
use super::status_file::last_known;

/// Finished actions that the status shows.
pub(super) const MAX_RECENT_ACTIONS: usize = 50;
/// Changes of the index in a row without an event that mean that no events arrive.
const MAX_SILENT_CHANGES: u32 = 3;

/// The current status of one folder.
pub(super) struct StatusCell {
    status: Mutex<FolderStatus>,
    pub proxy: Mutex<ProxyStatus>,
    pub push: PushMonitor,
    pub recent: Mutex<VecDeque<RecentAction>>,
    /// All that waits for a person. The status shows the first.
    pub halts: Mutex<Vec<HaltStatus>>,
    /// Set once the folder is open.
    pub progress: Mutex<Option<Arc<CycleProgress>>>,
    /// `None`: no cycle is due by time.
    pub next_cycle: Mutex<Option<Instant>>,
    /// Counts the changes, for all folders together.
    changed: watch::Sender<u64>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StatusCell {
    /// Starts with the figures of the last run.
    pub(super) fn new(setup: &FolderSetup, changed: watch::Sender<u64>) -> Self {
        Self {
            status: Mutex::new(FolderStatus { state: SyncState::Syncing, halt: None, ..last_known(setup) }),
            proxy: Mutex::new(ProxyStatus::unasked(&setup.http.origin)),
            push: PushMonitor::default(),
            recent: Mutex::default(),
            halts: Mutex::default(),
            progress: Mutex::default(),
            next_cycle: Mutex::default(),
            changed,
        }
    }

    pub(super) fn status(&self) -> FolderStatus {
        // A cycle clears its progress and writes its outcome under one lock, so both are read under it.
        let written = lock(&self.status);
        let mut status = written.clone();
        if let Some(progress) = &*lock(&self.progress) {
            let load = |n: &AtomicUsize| n.load(Ordering::Relaxed);
            let now = ProgressStatus { done: load(&progress.done), steps: load(&progress.steps) };
            if now.steps > 0 {
                (status.state, status.in_sync) = (SyncState::Syncing, false);
                status.progress = Some(now);
            }
        }
        drop(written);
        let next = *lock(&self.next_cycle);
        status.next_sync_s = next.map(|at| at.saturating_duration_since(Instant::now()).as_secs());
        status
    }

    /// Changes the status, and wakes the commands that wait for a change.
    pub(super) fn update(&self, change: impl FnOnce(&mut FolderStatus)) {
        change(&mut lock(&self.status));
        self.note_change();
    }

    /// As [`StatusCell::update`], at the end of a cycle: its progress is over at the same moment.
    pub(super) fn finish_cycle(&self, change: impl FnOnce(&mut FolderStatus)) {
        self.update(|s| {
            if let Some(progress) = &*lock(&self.progress) {
                progress.start(0);
            }
            change(s);
        });
    }

    /// Reads the status as it was last written, without the progress of a running cycle.
    pub(super) fn read<T>(&self, read: impl FnOnce(&FolderStatus) -> T) -> T {
        read(&lock(&self.status))
    }

    /// Notes a change that no cycle has scanned yet.
    pub(super) fn mark_out_of_sync(&self) {
        if std::mem::replace(&mut lock(&self.status).in_sync, false) {
            self.note_change();
        }
    }

    fn note_change(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Notes a request to the proxy.
    pub(super) fn note_proxy_request(&self, was_answered: bool) {
        let mut proxy = lock(&self.proxy);
        (proxy.reachable, proxy.asked_at) = (was_answered, Some(Timestamp::now()));
    }

    /// True: the proxy offers events.
    pub(super) fn offers_events(&self) -> bool {
        lock(&self.proxy).capabilities.iter().any(|name| name == capability::EVENTS)
    }

    /// Notes the proxy and namespace of new settings.
    pub(super) fn set_remote(&self, setup: &FolderSetup) {
        let mut proxy = lock(&self.proxy);
        if proxy.url != setup.http.origin {
            *proxy = ProxyStatus::unasked(&setup.http.origin);
        }
        drop(proxy);
        self.update(|s| s.namespace.clone_from(&setup.folder.namespace));
    }

    pub(super) fn set_watcher(&self, watcher: &FolderWatcher) {
        let watch = watcher.state();
        self.update(|s| {
            s.watcher = watch.name().to_owned();
            s.watcher_remedy = match watch {
                WatchState::Degraded { reason, remedy } => Some(format!("{reason}; {remedy}")),
                _ => None,
            };
        });
    }

    /// Adds finished actions, the oldest first.
    pub(super) fn add_recent(&self, done: &[FinishedAction]) {
        let at = Timestamp::now();
        let mut recent = lock(&self.recent);
        for done in done.iter().rev().take(MAX_RECENT_ACTIONS).rev() {
            recent.push_front(RecentAction {
                at,
                path: done.path.to_string(),
                action: done.action.to_owned(),
                outcome: done.outcome.clone(),
            });
        }
        recent.truncate(MAX_RECENT_ACTIONS);
    }
}

/// Detects a proxy whose events never arrive, by counting the events and the index changes of one folder. A reverse
/// proxy that buffers answers swallows events without an error, and changes are then found by polling only.
#[derive(Debug, Default)]
pub(super) struct PushMonitor {
    events: AtomicU64,
    /// `events` at the last change of the index.
    events_at_change: AtomicU64,
    /// Changes of the index since the last event.
    silent_changes: AtomicU32,
}

impl PushMonitor {
    pub(super) fn note_event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_index_change(&self) {
        let events = self.events.load(Ordering::Relaxed);
        if self.events_at_change.swap(events, Ordering::Relaxed) == events {
            self.silent_changes.fetch_add(1, Ordering::Relaxed);
        } else {
            self.silent_changes.store(0, Ordering::Relaxed);
        }
    }

    /// True: the index changed several times, and no event arrived.
    pub(super) fn is_silent(&self) -> bool {
        let has_event = self.events.load(Ordering::Relaxed) != self.events_at_change.load(Ordering::Relaxed);
        !has_event && self.silent_changes.load(Ordering::Relaxed) >= MAX_SILENT_CHANGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_is_silent_after_changes_without_events() {
        let push = PushMonitor::default();
        for _ in 0..MAX_SILENT_CHANGES {
            assert!(!push.is_silent());
            push.note_index_change();
        }
        assert!(push.is_silent());
        push.note_event();
        assert!(!push.is_silent(), "the event arrived late");
        push.note_index_change();
        assert!(!push.is_silent());
        for _ in 0..MAX_SILENT_CHANGES {
            push.note_index_change();
        }
        assert!(push.is_silent());
    }
}
