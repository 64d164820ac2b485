//! What a cycle comes to: when the next one is due, and what others are told.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Running, pace};
use crate::agent::Report;
use crate::agent::engine::CycleError;
use crate::agent::findings::Findings;
use crate::agent::shared::{halt_status, lock};
use crate::agent::standstill::Standstill;
use crate::agent::status::Pending;
use crate::agent::world::World;
use crate::local::watch::WatchState;
use crate::remote::RemoteError;
use crate::sync::safety::Halt;

/// After so many cycles in vain, whoever waits is told how things are.
const GIVE_UP: u32 = 10;

impl Running<'_> {
    /// Takes in how a cycle went. True: the session must be opened anew.
    pub(super) fn after(&mut self, result: Result<Report, CycleError>) -> bool {
        let now = Instant::now();
        let root = self.worker.setup.root.display().to_string();
        match result {
            Ok(report) => {
                self.failures = 0;
                self.offline_until = None;
                lock(&self.worker.shared.proxy).reachable = true;
                if report.wrote() {
                    tracing::info!(
                        folder = root,
                        "up {}, down {}, deleted there {}, deleted here {}, conflicts {}",
                        report.uploaded,
                        report.downloaded,
                        report.deleted_remote,
                        report.trashed,
                        report.conflicts.len()
                    );
                }
                let in_vain = report.again && !report.wrote() && !self.eventful;
                self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
                if report.again {
                    let passed = self.session.world.elapsed().saturating_sub(report.looked);
                    self.again = Some(now + pace::again(self.in_vain, passed));
                }
                self.tell(&report);
                self.retry =
                    self.session.engine.next_retry().map(|due| {
                        now + due.saturating_sub(self.session.world.elapsed()).max(Duration::from_millis(50))
                    });
                let changed = report.wrote() || report.adopted > 0 || report.scan.hashed > 0;
                if changed || self.prune <= now {
                    self.tidy.changed(now);
                }
                // Whoever asked is answered when nothing is left to do that another cycle could.
                let left = report.again || self.watcher.changes_wait() || self.look_at_rules.is_some();
                if !left || self.in_vain > GIVE_UP {
                    self.answer_waiting();
                }
                false
            }
            Err(e) => {
                let reopen = self.failed(&e, now);
                // A cycle that was stopped for a command is followed by another one.
                if !matches!(e, CycleError::Stopped) {
                    self.answer_waiting();
                }
                reopen
            }
        }
    }

    /// Takes in why a cycle ended early. True: the session must be opened anew.
    pub(super) fn failed(&mut self, e: &CycleError, now: Instant) -> bool {
        let folder = self.worker.setup.root.display().to_string();
        if matches!(e, CycleError::Stopped) {
            self.forced = true;
            return false;
        }
        let why = Standstill::from(e);
        tracing::warn!(folder, "{}", why.reason);
        let reopen = match e {
            CycleError::Halted(Halt::RootMissing(_) | Halt::RootChanged(_)) => true,
            CycleError::State(_) | CycleError::Folder { .. } => true,
            CycleError::Halted(_) | CycleError::Remote(_) | CycleError::Stopped => false,
        };
        self.offline_until = None;
        if let CycleError::Remote(remote) = e {
            self.failures += 1;
            let random = self.session.world.random();
            self.offline_until = Some(now + pace::retry(remote, self.failures, self.worker.setup.interval, random));
            lock(&self.worker.shared.proxy).reachable = !matches!(remote, RemoteError::Unreachable { .. });
        }
        let engine = &self.session.engine;
        let (files, bytes) = engine.totals();
        let pending = engine.has_scanned().then(|| engine.pending());
        let has_index = engine.has_index();
        self.worker.shared.set(|s| {
            let Some(pending) = pending else { return };
            // Without an index nothing is known of what the proxy has, but for what was known before.
            let download = if has_index { pending.download } else { s.pending.download };
            s.pending = Pending { download, ..pending };
            (s.files, s.bytes, s.counted_at) = (files, bytes, Some(Timestamp::now()));
        });
        let held = engine.halts().first().map(|h| halt_status(h, engine.held()));
        self.worker.stand_still(Standstill { halt: why.halt.clone().or(held), ..why });
        reopen
    }

    /// The status after a cycle that went through.
    fn tell(&mut self, report: &Report) {
        let now = Timestamp::now();
        let shared = self.worker.shared.clone();
        shared.note_done(&report.recent, now);
        let findings =
            Findings::of(&self.session.engine, report, self.session.rules.problem.as_deref(), &lock(&shared.status));
        let changes_wait = self.watcher.changes_wait() || self.look_at_rules.is_some();
        let watch = self.watcher.state();
        shared.set(|s| {
            findings.enter(s, now);
            s.in_sync &= !changes_wait;
            s.watcher = watch.name().to_owned();
            s.watcher_remedy = match watch {
                WatchState::Degraded { reason, remedy } => Some(format!("{reason}; {remedy}")),
                _ => None,
            };
        });
        self.worker.note();
    }
}
