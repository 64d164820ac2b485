//! What a cycle comes to: when the next one is due, and what others are told.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Running, pace};
use crate::agent::Report;
use crate::agent::conditions::action_line;
use crate::agent::cycle::Recent;
use crate::agent::engine::CycleError;
use crate::agent::findings::Findings;
use crate::agent::shared::lock;
use crate::agent::standstill::Standstill;
use crate::agent::world::World;
use crate::protocol::capability;
use crate::remote::RemoteError;

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
                self.worker.shared.proxy_asked(true);
                if report.wrote() {
                    tracing::debug!(
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
                let engine = &self.session.engine;
                self.retry =
                    [engine.next_retry(), engine.next_heal(), engine.next_named()].into_iter().flatten().min().map(
                        |due| now + due.saturating_sub(self.session.world.elapsed()).max(Duration::from_millis(50)),
                    );
                let changed = report.wrote() || report.adopted > 0 || report.scan.hashed > 0;
                if report.downloaded + report.trashed + report.conflicts.len() > 0 {
                    self.history.has_grown();
                }
                if changed || self.history.due() <= self.session.world.elapsed() {
                    self.tidy.changed(now);
                }
                // Whoever asked is answered when nothing is left to do that another cycle could.
                let is_in_transit = self.session.engine.in_transit().next().is_some();
                let left = report.again || is_in_transit || self.watcher.changes_wait() || self.look_at_rules.is_some();
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
        let cut_off = self.session.engine.take_cut_off();
        self.tell_actions(&cut_off);
        if matches!(e, CycleError::Stopped) {
            self.forced = true;
            self.worker.shared.not_in_sync();
            self.session.engine.progress().clear();
            return false;
        }
        let why = Standstill::from(e);
        tracing::debug!(folder, "the cycle ended early: {}", why.reason);
        let reopen = match e {
            CycleError::Halted(halt) => halt.is_of_root(),
            CycleError::State(_) | CycleError::Folder { .. } => true,
            CycleError::Remote(_) | CycleError::Stopped => false,
        };
        self.offline_until = None;
        if let CycleError::Remote(remote) = e {
            self.failures += 1;
            let random = self.session.world.random();
            self.offline_until = Some(now + pace::retry(remote, self.failures, self.worker.setup.interval, random));
            self.worker.shared.proxy_asked(!matches!(remote, RemoteError::Unreachable { .. }));
        }
        let engine = &self.session.engine;
        self.worker.shared.set(|s| {
            engine.progress().clear();
            s.in_sync = false;
            Findings::enter_partly(engine, s, Timestamp::now());
        });
        let of_root = why.halt.clone().filter(|_| matches!(e, CycleError::Halted(halt) if halt.is_of_root()));
        let halts: Vec<_> = of_root.into_iter().chain(self.halts()).collect();
        self.worker.stand_still(Standstill { halt: why.halt.clone().or_else(|| halts.first().cloned()), ..why });
        self.worker.shared.set_halts(halts);
        reopen
    }

    /// Notes finished actions in the status and in the log.
    fn tell_actions(&self, done: &[Recent]) {
        self.worker.shared.note_done(done, Timestamp::now());
        let folder = self.worker.setup.root.display().to_string();
        done.iter().filter_map(action_line).for_each(|line| tracing::info!(folder, "{line}"));
    }

    /// The remedy for events that do not come though the proxy offers them.
    fn push_remedy(&self, report: &Report) -> Option<String> {
        let shared = &self.worker.shared;
        if !lock(&shared.proxy).capabilities.iter().any(|name| name == capability::EVENTS) {
            return None;
        }
        if report.news {
            shared.push.index_changed();
        }
        shared.push.is_silent().then(|| {
            let every = self.worker.setup.interval.as_secs_f64();
            format!(
                "the proxy offers events, and none comes though its index changes, so it is asked every {every} s; a reverse \
                 proxy in front of it that keeps answers back must let /events through (nginx: `proxy_buffering off`)"
            )
        })
    }

    /// The status after a cycle that went through.
    fn tell(&mut self, report: &Report) {
        let now = Timestamp::now();
        let shared = self.worker.shared.clone();
        self.tell_actions(&report.recent);
        let folder = self.worker.setup.root.display().to_string();
        for copy in &report.conflicts {
            tracing::warn!(folder, "conflict: {copy} keeps what this machine had; settle it with `memsync conflicts`");
        }
        let mut others = self.session.rules.problems();
        others.extend(self.history.problems().clone());
        let findings = Findings::of(&self.session.engine, report, others, &lock(&shared.status));
        let changes_wait = self.watcher.changes_wait() || self.look_at_rules.is_some();
        let progress = self.session.engine.progress();
        shared.watched_by(&self.watcher);
        let push_remedy = self.push_remedy(report);
        shared.set_halts(self.halts());
        shared.set(|s| {
            progress.clear();
            findings.enter(s, now);
            s.in_sync &= !changes_wait;
            s.push_remedy = push_remedy;
        });
        self.worker.note();
        self.worker.log_conditions();
    }
}
