//! [`FolderTask`]: keeps one folder in sync, on a thread of its own. Triggers go in, the status comes out.
//!
//! The task opens the folder, runs cycles when [`Schedule`](super::schedule::Schedule) says so, and opens the folder
//! again when it was moved, replaced or damaged. Its thread also serves the requests to the proxy.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::local::watch::{FolderWatcher, WatchOptions};
use crate::remote::RemoteError;
use crate::state::FolderLock;

use super::active_folder::ActiveFolder;
use super::change::change_closed;
use super::cycle::{CycleError, CycleReport};
use super::findings::CycleFindings;
use super::inbox::{ApprovalAnswer, FolderCommand, TaskInbox, sleep_until};
use super::open_folder::OpenFolder;
use super::proxy_events::{NewsFlag, listen};
use super::reporter::StatusReporter;
use super::root::OpenError;
use super::schedule::DueWork;
use super::setup::FolderSetup;
use super::standstill::Standstill;
use super::status::{FolderStatus, SyncState};
use super::status_cell::{StatusCell, lock};
use super::world::World;

/// The first wait before a folder that could not be opened is tried again. It doubles with each failure.
const FIRST_REOPEN_WAIT: Duration = Duration::from_secs(2);
const MAX_REOPEN_WAIT: Duration = Duration::from_secs(15);
/// A cycle over this many paths shows as syncing. Smaller ones are mostly echoes of the agent's own writes.
const MIN_PATHS_SHOWN: usize = 100;

/// The task of one folder.
pub(super) struct FolderTask {
    setup: FolderSetup,
    inbox: TaskInbox,
    /// Ends the task, even during a scan.
    pub quit: Arc<AtomicBool>,
    reporter: StatusReporter,
    reopen_wait: Duration,
    /// Held until the task ends.
    _lock: FolderLock,
}

/// When to open the folder again.
enum NextOpen {
    /// The agent stops.
    Never,
    Now,
    AfterWait,
    /// A person approved the folder as it is now.
    Approved {
        id: String,
        answer: ApprovalAnswer,
    },
}

impl FolderTask {
    pub(super) fn new(setup: FolderSetup, inbox: TaskInbox, status: Arc<StatusCell>, lock: FolderLock) -> Self {
        Self {
            setup,
            inbox,
            quit: Arc::default(),
            reporter: StatusReporter::new(status),
            reopen_wait: FIRST_REOPEN_WAIT,
            _lock: lock,
        }
    }

    /// Runs until the agent stops.
    pub(super) async fn run(mut self) {
        let mut next = NextOpen::Now;
        loop {
            let opened = match next {
                NextOpen::Never => return self.reporter.report_stop(&self.setup),
                NextOpen::Now => OpenFolder::open(&self.setup),
                NextOpen::AfterWait => {
                    next = self.wait_for_reopen().await;
                    continue;
                }
                NextOpen::Approved { id, answer } => self.open_approved(&id, answer),
            };
            let began = Instant::now();
            next = match opened {
                Ok(folder) => self.sync_folder(folder).await,
                Err(e) => {
                    tracing::debug!(folder = %self.setup.root.display(), "{e}");
                    self.report_standstill(Standstill::from(&e));
                    NextOpen::AfterWait
                }
            };
            if began.elapsed() > MAX_REOPEN_WAIT {
                self.reopen_wait = FIRST_REOPEN_WAIT;
            }
        }
    }

    /// Opens a folder that a person approved, and answers the command. If the halt is over, the folder is opened as
    /// usual.
    fn open_approved(&mut self, id: &str, answer: ApprovalAnswer) -> Result<OpenFolder, OpenError> {
        let approved = OpenFolder::open_approved(&self.setup, id);
        let outcome = approved.as_ref().map(Option::is_some).map_err(ToString::to_string);
        let _ = answer.send(outcome); // The command may have ended.
        let Some(folder) = approved? else { return OpenFolder::open(&self.setup) };
        self.setup.root = folder.root.root.path().to_owned();
        self.reporter.report_approval(&self.setup);
        Ok(folder)
    }

    fn apply_setup(&mut self, setup: FolderSetup) {
        self.setup = setup;
        self.reopen_wait = FIRST_REOPEN_WAIT;
        self.reporter.cell.set_remote(&self.setup);
    }

    fn report_standstill(&mut self, why: Standstill) {
        let halts = why.halt.iter().cloned().collect();
        self.reporter.report_standstill(&self.setup, why, halts);
    }

    /// Waits before the folder is opened again, and serves the commands that do without it.
    async fn wait_for_reopen(&mut self) -> NextOpen {
        let until = Instant::now() + self.reopen_wait;
        self.reopen_wait = (self.reopen_wait * 2).min(MAX_REOPEN_WAIT);
        *lock(&self.reporter.cell.next_cycle) = Some(until);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return NextOpen::Now,
                command = self.inbox.commands.next() => match command {
                    FolderCommand::Stop => return NextOpen::Never,
                    FolderCommand::Reload(setup) => {
                        self.apply_setup(*setup);
                        return NextOpen::Now;
                    }
                    FolderCommand::Approve { id, reject: false, answer } => return NextOpen::Approved { id, answer },
                    // The commands below may have ended before their answer.
                    FolderCommand::Approve { answer, .. } => drop(answer.send(Ok(false))),
                    FolderCommand::Sync(answer) => drop(answer.send(())),
                    FolderCommand::Plan(answer) => drop(answer.send(Err(self.standstill()))),
                    FolderCommand::Change(request) => request.carry_out(|change| change_closed(&self.setup, change)),
                },
            }
        }
    }

    /// Why the folder is closed now.
    fn standstill(&self) -> Standstill {
        let FolderStatus { state, waits_for, reason, halt, .. } = self.reporter.cell.status();
        let reason = reason.unwrap_or_else(|| "the folder is being opened; ask again in a moment".to_owned());
        Standstill { state, waits_for, reason, halt }
    }

    /// Keeps an open folder in sync until it has to be closed.
    async fn sync_folder(&mut self, mut folder: OpenFolder) -> NextOpen {
        folder.engine.parts.signals.quit = self.quit.clone();
        let cell = self.reporter.cell.clone();
        let on_change = cell.clone();
        folder.engine.on_change(move || on_change.mark_out_of_sync());
        *lock(&cell.progress) = Some(folder.engine.parts.signals.progress.clone());
        let wake = self.inbox.wake.clone();
        let options = WatchOptions {
            debounce: self.setup.sync.debounce,
            poll_interval: self.setup.sync.interval,
            force_poll: false,
            rules: folder.rules.shared.get(),
        };
        let watcher = match FolderWatcher::start(&self.setup.root, options, move || wake.notify_one()) {
            Ok(watcher) => watcher,
            Err(e) => {
                self.report_standstill(Standstill::on_disk(e));
                return NextOpen::AfterWait;
            }
        };
        cell.set_watcher(&watcher);
        let news = NewsFlag::new(self.inbox.wake.clone());
        let events = tokio::spawn(listen(folder.remote.clone(), cell, news.clone(), self.setup.sync.interval));
        let end = self.run_cycles(ActiveFolder::new(&self.setup, folder, watcher, news)).await;
        events.abort();
        end
    }

    async fn run_cycles(&mut self, mut active: ActiveFolder) -> NextOpen {
        loop {
            if let Some(end) = self.wait_for_trigger(&mut active).await {
                return end;
            }
            self.answer_plan_waiters(&mut active).await;
            if self.inbox.commands.has_deferred() {
                // Commands go before all other work.
                continue;
            }
            let now = Instant::now();
            active.note_early_changes(&self.reporter.cell, now);
            let pause = self.inbox.pause.active(now);
            let triggers = active.triggers(pause);
            let is_closed = match active.schedule.take_due(&triggers, now) {
                DueWork::Nothing => false,
                DueWork::Pause => {
                    pause.iter().for_each(|pause| self.reporter.report_pause(&self.setup, pause));
                    active.answer_sync_waiters();
                    false
                }
                DueWork::LocalCheck => self.check_root(&mut active, now),
                DueWork::Cycle(due) => {
                    let is_needed = active.prepare_cycle(&self.setup, due, now);
                    let is_closed = is_needed && self.run_cycle(&mut active).await;
                    is_closed || self.maintain(&mut active, now)
                }
            };
            if is_closed {
                return NextOpen::AfterWait;
            }
        }
    }

    /// Waits until a cycle may be due, and carries out the commands that come. `Some`: close the folder.
    async fn wait_for_trigger(&mut self, active: &mut ActiveFolder) -> Option<NextOpen> {
        let now = Instant::now();
        let pause = self.inbox.pause.active(now);
        let next_wake = active.schedule.next_wake(&active.triggers(pause), now);
        *lock(&self.reporter.cell.next_cycle) = active.schedule.next_cycle(pause);
        tokio::select! {
            biased;
            command = self.inbox.commands.next() => {
                if let Some(end) = self.carry_out(active, command) {
                    return Some(end);
                }
            }
            () = self.inbox.pause.changed() => {
                if self.inbox.pause.active(Instant::now()).is_none() {
                    active.schedule.force();
                }
            }
            () = self.inbox.wake.notified() => {}
            () = active.folder.engine.transfer_ends() => active.schedule.follow_up(Instant::now()),
            () = sleep_until(next_wake) => {}
        }
        while let Some(command) = self.inbox.commands.try_next() {
            if let Some(end) = self.carry_out(active, command) {
                return Some(end);
            }
        }
        None
    }

    /// Carries out a command between two cycles. `Some`: close the folder.
    fn carry_out(&mut self, active: &mut ActiveFolder, command: FolderCommand) -> Option<NextOpen> {
        match command {
            FolderCommand::Stop => {
                active.close();
                return Some(NextOpen::Never);
            }
            FolderCommand::Reload(setup) => {
                self.apply_setup(*setup);
                return Some(NextOpen::Now);
            }
            FolderCommand::Sync(answer) => {
                active.request_sync(answer);
                self.reporter.cell.update(|s| s.in_sync = false);
            }
            FolderCommand::Plan(answer) => active.plan_waiters.push(answer),
            FolderCommand::Approve { id, reject, answer } => {
                let done = active.decide(&id, reject);
                *lock(&self.reporter.cell.halts) = active.halts();
                let _ = answer.send(done); // The command may have ended.
            }
            FolderCommand::Change(request) => active.change(&self.setup, request),
        }
        None
    }

    /// Plans a cycle for the commands that wait for one.
    async fn answer_plan_waiters(&mut self, active: &mut ActiveFolder) {
        if active.plan_waiters.is_empty() {
            return;
        }
        let plan = match active.folder.root.check(&self.setup) {
            Err(e) => Err(e),
            Ok(()) => match self.inbox.run_dry(&mut active.folder).await {
                Some(plan) => plan,
                None => return,
            },
        };
        let plan = plan.map_err(|e| Standstill::from(&e));
        for waiter in active.plan_waiters.drain(..) {
            let _ = waiter.send(plan.clone()); // The command may have ended.
        }
    }

    /// Checks the folder's identity while the proxy is away. True: close the folder.
    fn check_root(&mut self, active: &mut ActiveFolder, now: Instant) -> bool {
        active.take_events(now);
        match active.folder.root.check(&self.setup) {
            Ok(()) => false,
            Err(e) => self.finish_failed_cycle(active, &e, now),
        }
    }

    /// Runs one cycle. True: close the folder.
    async fn run_cycle(&mut self, active: &mut ActiveFolder) -> bool {
        let began = Instant::now();
        let scope = active.begin_cycle(began);
        let result = match active.folder.root.check(&self.setup) {
            Err(e) => Err(e),
            Ok(()) => {
                if scope.full || !scope.subtrees.is_empty() || scope.paths.len() >= MIN_PATHS_SHOWN {
                    self.reporter.cell.update(|s| (s.state, s.in_sync) = (SyncState::Syncing, false));
                }
                self.inbox.run_cycle(&mut active.folder, &self.setup, scope).await
            }
        };
        let now = Instant::now();
        let planning = result.as_ref().map_or_else(|_| now - began, |report| report.planning);
        active.schedule.end_cycle(planning, now);
        match result {
            Ok(report) => {
                self.finish_cycle(active, &report, now);
                false
            }
            Err(e) => {
                let is_closed = self.finish_failed_cycle(active, &e, now);
                // A cycle that was stopped for a command is followed by another one.
                if !matches!(e, CycleError::Stopped) {
                    active.answer_sync_waiters();
                }
                is_closed
            }
        }
    }

    fn finish_cycle(&mut self, active: &mut ActiveFolder, report: &CycleReport, now: Instant) {
        let folder = self.setup.root.display().to_string();
        self.reporter.cell.note_proxy_request(true);
        if report.wrote() {
            tracing::debug!(
                folder,
                "up {}, down {}, merged {}, deleted there {}, deleted here {}, conflicts {}",
                report.uploaded,
                report.downloaded,
                report.merged,
                report.deleted_remote,
                report.trashed,
                report.conflicts.len()
            );
        }
        let (findings, has_changes) = active.findings(report, &self.reporter.cell);
        self.reporter.report_cycle(&self.setup, report, findings, has_changes);
        active.finish_cycle(report, now);
    }

    /// Takes in why a cycle ended early. True: close the folder.
    fn finish_failed_cycle(&mut self, active: &mut ActiveFolder, e: &CycleError, now: Instant) -> bool {
        let done = std::mem::take(&mut active.folder.engine.parts.memory.cut_off);
        self.reporter.report_actions(&self.setup, &done);
        if matches!(e, CycleError::Stopped) {
            active.schedule.force();
            self.reporter.cell.mark_out_of_sync();
            active.folder.engine.parts.signals.progress.start(0);
            return false;
        }
        let why = Standstill::from(e);
        tracing::debug!(folder = %self.setup.root.display(), "the cycle ended early: {}", why.reason);
        match e {
            CycleError::Remote(remote) => {
                active.schedule.note_proxy_failure(remote, active.folder.world.random(), now);
                let was_answered = !matches!(remote, RemoteError::Unreachable { .. });
                self.reporter.cell.note_proxy_request(was_answered);
            }
            _ => active.schedule.end_backoff(),
        }
        let engine = &active.folder.engine;
        self.reporter.cell.finish_cycle(|s| {
            s.in_sync = false;
            CycleFindings::enter_partly(engine, s, jiff::Timestamp::now());
        });
        let is_root_halt = matches!(e, CycleError::Halted(halt) if halt.is_of_root());
        let root_halt = why.halt.clone().filter(|_| is_root_halt);
        let halts: Vec<_> = root_halt.into_iter().chain(active.halts()).collect();
        let why = Standstill { halt: why.halt.clone().or_else(|| halts.first().cloned()), ..why };
        self.reporter.report_standstill(&self.setup, why, halts);
        is_root_halt || matches!(e, CycleError::State(_) | CycleError::Folder { .. })
    }

    /// Runs the maintenance that is due. True: close the folder.
    fn maintain(&mut self, active: &mut ActiveFolder, now: Instant) -> bool {
        if !active.schedule.maintenance.take_due(now) {
            return false;
        }
        match active.maintain(&self.setup, now) {
            Ok(()) => false,
            Err(e) => {
                self.finish_failed_cycle(active, &e, now);
                true
            }
        }
    }
}
