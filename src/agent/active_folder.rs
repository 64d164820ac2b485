//! [`ActiveFolder`]: an open folder with its triggers, from the watcher's events to the scope of the next cycle.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::local::ScanScope;
use crate::local::ignore::IGNORE_FILE;
use crate::local::watch::FolderWatcher;
use crate::sync::Plan;

use super::change::{ChangeRequest, describe};
use super::cycle::{CycleError, CycleReport};
use super::findings::CycleFindings;
use super::open_folder::OpenFolder;
use super::pause::ActivePause;
use super::proxy_events::NewsFlag;
use super::retention::{HistoryKeeper, read_clocks};
use super::rules::RulesCheck;
use super::schedule::{DueCycle, Schedule, Triggers};
use super::setup::{CONFIRM_INTERVAL, FolderSetup};
use super::standstill::Standstill;
use super::status::{HaltStatus, halt_status};
use super::status_cell::{StatusCell, lock};
use super::world::World;

/// The shortest wait before maintenance returns to a history that was not pruned yet.
const MIN_MAINTENANCE_WAIT: Duration = Duration::from_secs(5);
/// The shortest wait before a failed path is tried again.
const MIN_PATH_RETRY: Duration = Duration::from_millis(50);
/// A difference between wall clock and monotonic clock that shows that the clock was set or the machine slept.
const MIN_CLOCK_JUMP: Duration = Duration::from_secs(10);

/// An open folder with its triggers.
pub(super) struct ActiveFolder {
    pub folder: OpenFolder,
    pub schedule: Schedule,
    watcher: FolderWatcher,
    news: NewsFlag,
    clock: ClockWatch,
    /// The paths that the next cycle scans.
    scope: ScanScope,
    history: HistoryKeeper,
    /// Commands that wait until a sync is done.
    sync_waiters: Vec<oneshot::Sender<()>>,
    /// Commands that wait for the plan of the next cycle.
    pub plan_waiters: Vec<oneshot::Sender<Result<Plan, Standstill>>>,
}

impl ActiveFolder {
    /// A folder whose first cycle is due at once and scans everything.
    pub(super) fn new(setup: &FolderSetup, folder: OpenFolder, watcher: FolderWatcher, news: NewsFlag) -> Self {
        let clock_note = setup.state_dir.join(&setup.container).with_extension("clock");
        let history = HistoryKeeper::open(clock_note, read_clocks(&*folder.world));
        Self {
            folder,
            schedule: Schedule::new(setup.sync.interval, setup.sync.rescan, Instant::now()),
            watcher,
            news,
            clock: ClockWatch::start(),
            scope: ScanScope::full(),
            history,
            sync_waiters: Vec::new(),
            plan_waiters: Vec::new(),
        }
    }

    pub(super) fn triggers(&self, pause: Option<ActivePause>) -> Triggers {
        Triggers {
            watcher_due: self.watcher.next_due(),
            has_changes: self.watcher.changes_wait(),
            has_news: self.news.is_raised(),
            pause,
        }
    }

    /// Notes in the status a change that is not due yet, such as a file that is being written.
    pub(super) fn note_early_changes(&self, status: &StatusCell, now: Instant) {
        if self.watcher.changes_wait() && self.watcher.next_due().is_some_and(|due| due > now) {
            status.mark_out_of_sync();
        }
    }

    /// True: a change was seen that no cycle has taken in.
    fn has_changes(&self) -> bool {
        self.watcher.changes_wait() || self.schedule.rules_check.is_some()
    }

    /// Adds the watcher's events to the scope of the next cycle. True: there were some.
    pub(super) fn take_events(&mut self, now: Instant) -> bool {
        let due = self.watcher.take_due(now);
        let has_events = !due.is_empty();
        self.scope.merge(due);
        has_events
    }

    /// Prepares a cycle that is due: its scope and the ignore rules. True: run it.
    pub(super) fn prepare_cycle(&mut self, setup: &FolderSetup, due: DueCycle, now: Instant) -> bool {
        // Not `||`: every trigger must be taken.
        let mut is_needed = due.is_certain | self.news.take() | self.take_events(now);
        if due.is_rescan {
            self.scope.full = true;
            // Nothing is taken for granted: all hints may have been wrong.
            self.folder.engine.parts.memory.plan_everything();
        }
        // Events may be lost while the machine sleeps, also that of the ignore file.
        if self.clock.has_jumped() {
            self.scope.full = true;
            is_needed = true;
        }
        is_needed |= self.check_rules(setup, due.checks_rules, now);
        self.history.observe(read_clocks(&*self.folder.world));
        is_needed
    }

    /// Reads the ignore file again where it may have changed. True: the rules have.
    fn check_rules(&mut self, setup: &FolderSetup, is_due: bool, now: Instant) -> bool {
        let is_touched = self.scope.paths.contains(IGNORE_FILE);
        if !is_due && !is_touched && !self.scope.full {
            return false;
        }
        self.schedule.rules_check = None;
        let OpenFolder { rules, root, .. } = &mut self.folder;
        let has_changed = match rules.check(&*root.root, &setup.folder.ignore, now, CONFIRM_INTERVAL) {
            Ok(RulesCheck::Changed) => {
                self.watcher.set_rules(self.folder.rules.shared.get());
                self.folder.engine.rules_changed();
                true
            }
            Ok(RulesCheck::Doubtful(again)) => {
                self.schedule.rules_check = Some(again);
                false
            }
            Ok(RulesCheck::Same) => false,
            Err(e) => {
                tracing::warn!("{e}");
                false
            }
        };
        self.scope.full |= is_touched;
        has_changed
    }

    /// Takes the scope of the cycle that begins now.
    pub(super) fn begin_cycle(&mut self, now: Instant) -> ScanScope {
        let scope = std::mem::take(&mut self.scope);
        self.schedule.begin_cycle(!scope.is_empty(), now);
        scope
    }

    /// Sets the timers after a cycle that succeeded, and answers the commands that waited for it.
    pub(super) fn finish_cycle(&mut self, report: &CycleReport, now: Instant) {
        let engine = &self.folder.engine;
        let elapsed = self.folder.world.elapsed();
        let since_scan = elapsed.saturating_sub(report.scanned_at);
        let path_retry = engine.next_due().map(|due| due.saturating_sub(elapsed).max(MIN_PATH_RETRY));
        self.schedule.note_success(report, since_scan, path_retry, now);
        if report.downloaded + report.merged + report.trashed + report.conflicts.len() > 0 {
            self.history.has_grown = true;
        }
        let has_changed = report.wrote() || report.adopted > 0 || report.scan.hashed > 0;
        if has_changed || self.history.due() <= elapsed {
            self.schedule.maintenance.delay(now);
        }
        let is_in_transit = engine.in_transit().next().is_some();
        let has_work = report.again || is_in_transit || self.has_changes();
        if !has_work || self.schedule.is_idle() {
            self.answer_sync_waiters();
        }
    }

    /// The findings for the status, and whether a change was seen since the scan.
    pub(super) fn findings(&self, report: &CycleReport, status: &StatusCell) -> (CycleFindings, bool) {
        status.set_watcher(&self.watcher);
        *lock(&status.halts) = self.halts();
        let mut others = self.folder.rules.problems();
        others.extend(self.history.problems.clone());
        let findings = status.read(|before| CycleFindings::of(&self.folder.engine, report, others, before));
        (findings, self.has_changes())
    }

    /// All that waits for a person.
    pub(super) fn halts(&self) -> Vec<HaltStatus> {
        let engine = &self.folder.engine;
        engine.halts().iter().map(|halt| halt_status(halt, engine.held())).collect()
    }

    /// Saves the state, and prunes the history when that is due.
    pub(super) fn maintain(&mut self, setup: &FolderSetup, now: Instant) -> Result<(), CycleError> {
        self.folder.engine.tidy()?;
        let clocks = read_clocks(&*self.folder.world);
        let due = self.history.due();
        // A displaced file that could not be put back may lie in history.
        if due <= clocks.running && !self.folder.engine.has_leftovers() {
            let (keep, max) = (setup.history.keep, setup.history.max_size);
            if self.history.prune(self.folder.engine.folder(), keep, max, clocks) {
                // Only a cycle with a plan brings the problems into the status.
                self.folder.engine.parts.memory.plan_everything();
                self.schedule.force();
            }
        } else if self.history.has_grown {
            let wait = due.saturating_sub(clocks.running).max(MIN_MAINTENANCE_WAIT);
            self.schedule.maintenance.plan(now + wait);
        }
        Ok(())
    }

    /// Requests a cycle that scans everything and retries failed paths. `waiter` is answered when the sync is done.
    pub(super) fn request_sync(&mut self, waiter: oneshot::Sender<()>) {
        self.folder.engine.retry_all();
        self.scope.full = true;
        self.schedule.force();
        self.sync_waiters.push(waiter);
    }

    pub(super) fn answer_sync_waiters(&mut self) {
        for waiter in self.sync_waiters.drain(..) {
            // The command may have ended.
            let _ = waiter.send(());
        }
    }

    /// Approves or rejects the held plan `id`. False: no such plan.
    pub(super) fn decide(&mut self, id: &str, reject: bool) -> Result<bool, String> {
        let engine = &mut self.folder.engine;
        let done = if reject { engine.reject(id) } else { engine.approve(id) };
        if matches!(done, Ok(true)) {
            self.schedule.force();
            self.scope.full = true;
        }
        done.map_err(|e| e.to_string())
    }

    /// Makes a change for a command. The next cycle takes it in.
    pub(super) fn change(&mut self, setup: &FolderSetup, request: ChangeRequest) {
        self.scope.paths.insert(request.at().to_owned());
        self.schedule.follow_up(Instant::now());
        let folder = &mut self.folder;
        request.carry_out(|change| {
            folder.root.check(setup).map_err(|e| format!("{}; nothing was changed", Standstill::from(&e).reason))?;
            folder.engine.change_folder(change).map_err(|e| describe(&setup.root, &e))
        });
    }

    /// Ends the work on the folder cleanly.
    pub(super) fn close(&mut self) {
        // The journal has every finished action. A fresh container makes the next start quicker.
        if let Err(e) = self.folder.engine.tidy().and_then(|()| self.folder.engine.note_clean_stop()) {
            tracing::warn!("{e}");
        }
    }
}

/// Both clocks at one moment.
struct ClockWatch {
    wall: Timestamp,
    monotonic: Instant,
}

impl ClockWatch {
    fn start() -> Self {
        Self { wall: Timestamp::now(), monotonic: Instant::now() }
    }

    /// True: the machine slept or its clock was set since the last call.
    fn has_jumped(&mut self) -> bool {
        let last = std::mem::replace(self, Self::start());
        let monotonic = self.monotonic.duration_since(last.monotonic);
        let wall = self.wall.duration_since(last.wall);
        let drift = wall.as_secs_f64() - monotonic.as_secs_f64();
        drift.abs() > MIN_CLOCK_JUMP.as_secs_f64()
    }
}
