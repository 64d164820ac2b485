//! What a cycle comes to: when the next one is due, and what others are told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Running, pace};
use crate::agent::Report;
use crate::agent::engine::CycleError;
use crate::agent::shared::{halt_status, lock};
use crate::agent::status::{Pending, Problem, State};
use crate::agent::world::World;
use crate::local::ignore::IGNORE_FILE;
use crate::local::watch::WatchState;
use crate::remote::RemoteError;
use crate::sync::safety::Halt;

/// After so many cycles in vain, whoever waits is told how things are.
const GIVE_UP: u32 = 10;

/// The state of a folder whose cycle ended so.
pub(super) fn state_of(e: &CycleError) -> State {
    match e {
        CycleError::Remote(RemoteError::Auth { .. }) => State::AuthRequired,
        CycleError::Remote(_) => State::Offline,
        CycleError::Halted(_) | CycleError::State(_) | CycleError::Folder { .. } => State::Halted,
        CycleError::Stopped => State::Stopped,
    }
}

/// Why it ended, and what to do next, in words.
pub(super) fn reason(e: &CycleError) -> String {
    match e {
        CycleError::Halted(halt) => halt_status(halt, &[]).reason,
        e => e.to_string(),
    }
}

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
                self.answer_waiting();
                reopen
            }
        }
    }

    /// Takes in why a cycle ended early. True: the session must be opened anew.
    pub(super) fn failed(&mut self, e: &CycleError, now: Instant) -> bool {
        let folder = self.worker.setup.root.display().to_string();
        let reason = reason(e);
        match e {
            CycleError::Stopped => {
                self.forced = true;
                return false;
            }
            CycleError::Halted(_) => tracing::warn!(folder, "halted: {reason}"),
            _ => tracing::warn!(folder, "{reason}"),
        }
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
        let halt = match e {
            CycleError::Halted(halt) => Some(halt_status(halt, self.session.engine.held())),
            _ => None,
        };
        let pending = self.session.engine.pending();
        let (files, bytes) = self.session.engine.totals();
        self.worker.shared.set(|s| {
            s.state = state_of(e);
            s.in_sync = false;
            s.reason = Some(reason);
            s.halt = halt;
            s.pending = pending;
            (s.files, s.bytes) = (files, bytes);
        });
        self.worker.note();
        reopen
    }

    /// The status after a cycle that went through.
    fn tell(&mut self, report: &Report) {
        let engine = &self.session.engine;
        let now = Timestamp::now();
        self.worker.shared.note_done(&report.recent, now);
        let rests = report.waiting > 0 || !engine.held().is_empty() || engine.next_retry().is_some();
        let clean = !report.again && report.failed == 0 && !rests;
        let pending = if clean { Pending::default() } else { engine.pending() };
        let changes_wait = self.watcher.changes_wait() || self.look_at_rules.is_some();
        let caught_up = clean && pending == Pending::default() && !changes_wait;
        let halt = engine.halts().first().map(|h| halt_status(h, engine.held()));
        let watch = self.watcher.state();
        let remedy = match &watch {
            WatchState::Degraded { reason, remedy } => Some(format!("{reason}; {remedy}")),
            _ => None,
        };
        // Without a plan all is as it was told last.
        let counts = report.planned.then(|| (engine.totals(), engine.conflicts()));
        let problems = report.planned.then(|| {
            let mut found: BTreeMap<String, String> =
                engine.problems().into_iter().map(|(p, why)| (p.to_string(), why)).collect();
            found.extend(report.blocked.iter().map(|(p, why)| (p.to_string(), why.clone())));
            if let Some(why) = &self.session.rules.problem {
                found.insert(IGNORE_FILE.to_owned(), why.clone());
            }
            found
        });
        if let Some(problems) = &problems {
            self.since.retain(|path, _| problems.contains_key(path));
            for path in problems.keys() {
                self.since.entry(path.clone()).or_insert(now);
            }
        }
        let since = &self.since;
        self.worker.shared.set(|s| {
            s.state = if halt.is_some() { State::Halted } else { State::Idle };
            s.reason = halt.as_ref().map(|h| h.reason.clone());
            s.in_sync = caught_up && halt.is_none();
            s.halt = halt;
            s.pending = pending;
            s.last_success = Some(now);
            s.watcher = watch.name().to_owned();
            s.watcher_remedy = remedy;
            if let Some(((files, bytes), conflicts)) = counts {
                (s.files, s.bytes, s.conflicts) = (files, bytes, conflicts);
            }
            if let Some(problems) = problems {
                s.problems = problems
                    .into_iter()
                    .map(|(path, problem)| Problem { since: since.get(&path).copied().unwrap_or(now), path, problem })
                    .collect();
            }
        });
        self.worker.note();
    }
}
