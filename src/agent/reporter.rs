//! [`StatusReporter`]: writes the outcome of a folder's cycles to the status, the status file and the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::activity::ActivityRecorder;
use super::conditions::{Conditions, LogLine, action_line};
use super::cycle::{CycleReport, FinishedAction};
use super::findings::CycleFindings;
use super::pause::ActivePause;
use super::setup::FolderSetup;
use super::standstill::Standstill;
use super::status::{FolderStatus, HaltStatus, SyncState};
use super::status_cell::{StatusCell, lock};
use super::status_file::save_status;

/// An unchanged status is saved again after this time, so that its age stays right.
const RESAVE_INTERVAL: Duration = Duration::from_secs(300);

/// Reports on one folder.
pub(super) struct StatusReporter {
    pub cell: Arc<StatusCell>,
    /// The status of the last save without its times, and the time of the save.
    saved: Option<(FolderStatus, Instant)>,
    conditions: Conditions,
    activity: ActivityRecorder,
}

impl StatusReporter {
    pub(super) fn new(cell: Arc<StatusCell>) -> Self {
        Self { cell, saved: None, conditions: Conditions::default(), activity: ActivityRecorder::default() }
    }

    /// Reports finished actions.
    pub(super) fn report_actions(&mut self, setup: &FolderSetup, done: &[FinishedAction]) {
        self.cell.add_recent(done);
        self.activity.note(setup, done);
        let folder = setup.root.display().to_string();
        done.iter().filter_map(action_line).for_each(|line| tracing::info!(folder, "{line}"));
    }

    /// Reports a cycle that succeeded. `has_changes`: a change was seen since its scan.
    pub(super) fn report_cycle(
        &mut self,
        setup: &FolderSetup,
        report: &CycleReport,
        findings: CycleFindings,
        has_changes: bool,
    ) {
        self.report_actions(setup, &report.recent);
        let folder = setup.root.display().to_string();
        for copy in &report.conflicts {
            tracing::warn!(folder, "conflict: {copy} keeps what this machine had; settle it with `memsync conflicts`");
        }
        let push_remedy = self.push_remedy(setup, report.index_changed);
        self.cell.finish_cycle(|s| {
            findings.enter(s, Timestamp::now());
            s.in_sync &= !has_changes;
            s.push_remedy = push_remedy;
        });
        self.save(setup);
        self.log_conditions(setup);
    }

    /// The remedy for a proxy that offers events but sends none.
    fn push_remedy(&self, setup: &FolderSetup, has_news: bool) -> Option<String> {
        if !self.cell.offers_events() {
            return None;
        }
        if has_news {
            self.cell.push.note_index_change();
        }
        self.cell.push.is_silent().then(|| {
            let every = setup.sync.interval.as_secs_f64();
            format!(
                "the proxy offers events, but none arrives although its index changes, so it is polled every {every} s; a \
                 reverse proxy in front of it must not buffer /events (nginx: `proxy_buffering off`)"
            )
        })
    }

    /// Reports that the folder is not synced for now. `halts`: all that waits for a person.
    pub(super) fn report_standstill(&mut self, setup: &FolderSetup, why: Standstill, halts: Vec<HaltStatus>) {
        *lock(&self.cell.halts) = halts;
        self.cell.update(|s| why.enter(s));
        self.save(setup);
        self.log_conditions(setup);
    }

    pub(super) fn report_pause(&mut self, setup: &FolderSetup, pause: &ActivePause) {
        self.report_inactive(setup, SyncState::Paused, pause.reason());
    }

    pub(super) fn report_stop(&mut self, setup: &FolderSetup) {
        self.saved = None;
        self.report_inactive(setup, SyncState::Stopped, "the agent was stopped".to_owned());
    }

    /// Reports that no cycle runs, because of a pause or a stop. A halt stays in the status.
    fn report_inactive(&mut self, setup: &FolderSetup, state: SyncState, reason: String) {
        self.cell.update(|s| Standstill { state, waits_for: None, reason, halt: s.halt.take() }.enter(s));
        self.save(setup);
    }

    /// Reports that a person approved of the folder as it is now.
    pub(super) fn report_approval(&self, setup: &FolderSetup) {
        tracing::info!(folder = %setup.root.display(), "approved: this is the folder from now on");
        lock(&self.cell.halts).clear();
        self.cell.update(|s| {
            s.path = setup.root.display().to_string();
            s.state = SyncState::Syncing;
            s.reason = None;
            s.halt = None;
        });
    }

    /// Writes the status file if the status has changed, or is old.
    fn save(&mut self, setup: &FolderSetup) {
        let status = FolderStatus { next_sync_s: None, progress: None, ..self.cell.status() };
        let without_times = FolderStatus { last_success: None, counted_at: None, ..status.clone() };
        if self.saved.as_ref().is_some_and(|(saved, at)| *saved == without_times && at.elapsed() < RESAVE_INTERVAL) {
            return;
        }
        match save_status(setup, &status) {
            Ok(()) => self.saved = Some((without_times, Instant::now())),
            Err(e) => tracing::warn!("{}: {e}", setup.status_file.display()),
        }
    }

    /// Logs the conditions that began or ended since the last report.
    fn log_conditions(&mut self, setup: &FolderSetup) {
        let folder = setup.root.display().to_string();
        for line in self.conditions.update(&self.cell.status()) {
            match line {
                LogLine::Warn(text) => tracing::warn!(folder, "{text}"),
                LogLine::Info(text) => tracing::info!(folder, "{text}"),
            }
        }
    }
}
