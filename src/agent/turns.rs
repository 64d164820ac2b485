//! [`Running`]: an open folder at work: triggers become cycles.
//!
//! Triggers are the start, the watcher, the poll, server events, commands and signals. They are coalesced: whatever
//! comes while a cycle runs makes one more cycle. What a cycle comes to is told in `outcome`, and how soon
//! the next one comes is decided in `pace`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::local::Scope;
use crate::local::ignore::IGNORE_FILE;
use crate::local::watch::{Due, Watcher};
use crate::sync::Plan;

use super::change::{ChangeRequest, describe};
use super::engine::CycleError;
use super::retention::{HistoryKeeper, read_clocks};
use super::rules::Look;
use super::session::Session;
use super::shared::{halt_status, lock};
use super::standstill::Standstill;
use super::status::{HaltStatus, State};
use super::worker::{Command, Ended, Paused, Worker, pause_reason};

mod outcome;
mod pace;

pub(super) use pace::FIRST_RETRY;
use pace::Tidy;

/// After this a stop no longer waits for what is in flight.
const STOP_GRACE: Duration = Duration::from_secs(8);
/// In a burst of changes a cycle is followed by a rest of this many times what its planning took, so that whoever
/// writes is not slowed down by whoever watches; the first cycle after a quiet time starts at once.
const REST: u32 = 2;
/// The longest such rest.
const LONGEST_REST: Duration = Duration::from_millis(500);
/// Paths to look at from which on a cycle counts as syncing.
const MANY: usize = 100;
/// The shortest wait before history, which could not be pruned yet, is looked at again.
const TIDY_AGAIN: Duration = Duration::from_secs(5);
/// The wall clock has jumped, or the machine slept, when it runs away from the monotonic one by this much.
const JUMP: Duration = Duration::from_secs(10);

/// At `deadline`, or never.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Both clocks at one moment.
struct Clock {
    wall: Timestamp,
    steady: Instant,
}

impl Clock {
    fn now() -> Self {
        Self { wall: Timestamp::now(), steady: Instant::now() }
    }

    /// Whether the machine slept or its clock was set since the last look.
    fn jumped(&mut self) -> bool {
        let last = std::mem::replace(self, Self::now());
        let steady = self.steady.duration_since(last.steady);
        let wall = self.wall.duration_since(last.wall);
        let drift = wall.as_secs_f64() - steady.as_secs_f64();
        drift.abs() > JUMP.as_secs_f64()
    }
}

/// A session at work.
pub(super) struct Running<'a> {
    worker: &'a mut Worker,
    session: Session,
    watcher: Watcher,
    /// The server told of a change.
    hint: Arc<AtomicBool>,
    clock: Clock,
    /// What to scan with the next cycle.
    scope: Scope,
    /// Run a cycle whatever the triggers say.
    forced: bool,
    next_poll: Instant,
    next_rescan: Instant,
    again: Option<Instant>,
    /// When a `.memsyncignore` that says less than before is looked at once more.
    look_at_rules: Option<Instant>,
    tidy: Tidy,
    history: HistoryKeeper,
    /// A path in quarantine is due.
    retry: Option<Instant>,
    failures: u32,
    /// Cycles in a row that left something to do and did nothing.
    in_vain: u32,
    /// The last cycle had something of the watcher's to look at.
    eventful: bool,
    offline_until: Option<Instant>,
    /// The end of the rest after the last cycle.
    rest_until: Instant,
    waiting: Vec<oneshot::Sender<()>>,
    /// Those who want to know what a cycle would do.
    dry_runs: Vec<oneshot::Sender<Result<Plan, Standstill>>>,
}

impl<'a> Running<'a> {
    /// A session at its start: the first cycle is due at once, and scans everything.
    pub(super) fn new(worker: &'a mut Worker, mut session: Session, watcher: Watcher, hint: Arc<AtomicBool>) -> Self {
        let now = Instant::now();
        let shared = worker.shared.clone();
        session.engine.on_change(move || shared.not_in_sync());
        let clock_note = worker.setup.state_dir.join(&worker.setup.container).with_extension("clock");
        let history = HistoryKeeper::open(clock_note, read_clocks(&*session.world));
        Self {
            session,
            watcher,
            hint,
            clock: Clock::now(),
            scope: Scope::full(),
            forced: true,
            next_poll: now,
            next_rescan: now + worker.setup.rescan,
            again: None,
            look_at_rules: None,
            tidy: Tidy::default(),
            history,
            retry: None,
            failures: 0,
            in_vain: 0,
            eventful: false,
            offline_until: None,
            rest_until: now,
            waiting: Vec::new(),
            dry_runs: Vec::new(),
            worker,
        }
    }

    pub(super) async fn run(mut self) -> Ended {
        if self.worker.paused.is_some() {
            self.paused();
        }
        loop {
            let at = self.next_wake();
            *lock(&self.worker.shared.next_cycle) = self.next_cycle();
            let wake = self.worker.wake.clone();
            tokio::select! {
                biased;
                command = self.worker.next_command() => {
                    if let Some(ended) = self.command(command) {
                        return ended;
                    }
                }
                () = wake.notified() => {}
                () = self.session.engine.transfer_ends() => self.again = Some(Instant::now()),
                () = tokio::time::sleep_until(at.into()) => {}
            }
            while let Some(command) = self.worker.waiting_command() {
                if let Some(ended) = self.command(Some(command)) {
                    return ended;
                }
            }
            self.answer_dry_runs().await;
            if !self.worker.backlog.is_empty() {
                // What came meanwhile is obeyed before anything is begun.
                continue;
            }
            let now = Instant::now();
            if self.watcher.changes_wait() && self.watcher.next_due().is_some_and(|due| due > now) {
                // A file is being written; what is due now is taken in at once.
                self.worker.shared.not_in_sync();
            }
            if self.worker.paused.is_some_and(|paused| paused.until.is_some_and(|until| until <= now)) {
                self.worker.paused = None;
                self.forced = true;
            }
            if self.worker.paused.is_some() {
                self.paused();
                continue;
            }
            if self.offline_until.is_some_and(|until| now < until) && !self.forced {
                if self.check_while_offline(now) {
                    return Ended::Reopen { setup: None, wait: true };
                }
                continue;
            }
            if now < self.rest_until && !self.forced && self.again_at().is_none_or(|at| now < at) {
                continue;
            }
            if self.triggered(now) && self.cycle().await {
                return Ended::Reopen { setup: None, wait: true };
            }
            if self.tidy.take_due(now)
                && let Err(e) = self.tidy_up(now)
            {
                self.failed(&e, now);
                return Ended::Reopen { setup: None, wait: true };
            }
        }
    }

    /// When a cycle is due by the clock alone; a paused folder has none.
    fn next_cycle(&self) -> Option<Instant> {
        let next = self.offline_until.unwrap_or(self.next_poll);
        self.worker.paused.is_none().then_some(next)
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        if let Some(paused) = self.worker.paused {
            return paused.until.unwrap_or(now + Duration::from_secs(3600));
        }
        if self.forced {
            return now;
        }
        if let Some(until) = self.offline_until {
            let local_check = self.watcher.next_due().map_or(self.next_poll, |due| due.min(self.next_poll));
            return until.min(local_check).max(self.rest_until);
        }
        let hinted = self.hint.load(Ordering::Relaxed).then_some(now);
        let triggers =
            [Some(self.next_poll), self.retry, self.tidy.next(), self.watcher.next_due(), hinted, self.look_at_rules];
        let rested = triggers.into_iter().flatten().min().unwrap_or(self.next_poll).max(self.rest_until);
        self.again_at().map_or(rested, |at| at.min(rested))
    }

    /// When what the last cycle left is looked at again: after its rest only while there is a burst to rest from.
    fn again_at(&self) -> Option<Instant> {
        self.again.map(|at| if self.watcher.changes_wait() { at.max(self.rest_until) } else { at })
    }

    /// Checks the folder's identity, because a gate that is shut here does not wait for the proxy. True: the session must
    /// be opened anew.
    fn check_while_offline(&mut self, now: Instant) -> bool {
        let has_events = self.take_events(now);
        if !has_events && now < self.next_poll {
            return false;
        }
        self.next_poll = now + self.worker.setup.interval;
        match self.session.check_root(&self.worker.setup) {
            Ok(()) => false,
            Err(e) => self.failed(&e, now),
        }
    }

    /// Adds what the watcher has seen to the scope of the next cycle. True: it has seen something.
    fn take_events(&mut self, now: Instant) -> bool {
        let due = self.watcher.take_due(now);
        let has_events = !due.is_empty();
        let Due { paths, subtrees, full } = due;
        self.scope.merge(Scope { full, paths, subtrees });
        has_events
    }

    /// Collects what the triggers ask for. True: run a cycle.
    fn triggered(&mut self, now: Instant) -> bool {
        let mut run = self.take_events(now);
        run |= std::mem::take(&mut self.forced);
        if now >= self.next_rescan {
            self.next_rescan = now + self.worker.setup.rescan;
            self.scope.full = true;
            // The net below all hints: nothing is taken for granted once in a while.
            self.session.engine.look_everywhere();
            run = true;
        }
        let look = self.look_at_rules.take_if(|at| *at <= now).is_some();
        let is_named = self.scope.paths.contains(IGNORE_FILE);
        if look || is_named || self.scope.full {
            self.look_at_rules = None;
            match self.session.look_at_rules(&self.worker.setup, now) {
                Ok(Look::Changed) => {
                    self.watcher.set_rules(self.session.rules.shared.get());
                    self.session.engine.rules_changed();
                    run = true;
                }
                Ok(Look::Doubtful(again)) => self.look_at_rules = Some(again),
                Ok(Look::Same) => {}
                Err(e) => tracing::warn!("{e}"),
            }
            // What became of the doubt is told by a cycle.
            run |= look;
            self.scope.full |= is_named;
        }
        self.history.observe(read_clocks(&*self.session.world));
        if self.clock.jumped() {
            // Nothing is written on the strength of what was read before: every cycle reads the index first.
            self.scope.full = true;
            run = true;
        }
        run |= self.hint.swap(false, Ordering::Relaxed);
        run |= self.offline_until.take_if(|at| *at <= now).is_some();
        run |= now >= self.next_poll;
        run |= self.again.take_if(|at| *at <= now).is_some();
        run |= self.retry.take_if(|at| *at <= now).is_some();
        run
    }

    /// One cycle. Commands that come meanwhile wait for its end, which some of them hasten. True: the session must be
    /// opened anew.
    async fn cycle(&mut self) -> bool {
        let scope = std::mem::take(&mut self.scope);
        let began = Instant::now();
        self.eventful = !scope.is_empty();
        self.again = None;
        self.next_poll = Instant::now() + self.worker.setup.interval;
        let mut later = Vec::new();
        // When to abandon what is in flight, once told to end.
        let mut deadline: Option<Instant> = None;
        let mut open = true;
        let result = match self.session.check_path(&self.worker.setup) {
            Err(e) => Err(e),
            Ok(()) => {
                // Most of the few paths are echoes of what sync itself wrote. Where the scan finds more than those, the
                // engine tells, and steps to take show by themselves.
                let quiet = !scope.full && scope.subtrees.is_empty() && scope.paths.len() < MANY;
                if !quiet {
                    self.worker.shared.set(|s| {
                        s.state = State::Syncing;
                        s.in_sync = false;
                    });
                }
                let stop = self.session.engine.stop_flag();
                stop.store(false, Ordering::Relaxed);
                let cycle = self.session.engine.cycle(scope);
                tokio::pin!(cycle);
                loop {
                    tokio::select! {
                        result = &mut cycle => break result,
                        () = at(deadline), if deadline.is_some() => break Err(CycleError::Stopped),
                        command = self.worker.commands.recv(), if open => {
                            open = command.is_some();
                            let command = command.unwrap_or(Command::Stop);
                            let hastens =
                                matches!(command, Command::Stop | Command::Pause(_) | Command::Reload(_) | Command::Change(_));
                            if hastens {
                                stop.store(true, Ordering::Relaxed);
                                deadline.get_or_insert(Instant::now() + STOP_GRACE);
                            }
                            later.push(command);
                        }
                    }
                }
            }
        };
        let planning = result.as_ref().map_or_else(|_| began.elapsed(), |report| report.planning);
        self.rest_until = Instant::now() + (planning * REST).min(LONGEST_REST);
        self.worker.backlog.extend(later);
        self.after(result)
    }

    fn tidy_up(&mut self, now: Instant) -> Result<(), CycleError> {
        self.session.engine.tidy()?;
        let clocks = read_clocks(&*self.session.world);
        let due = self.history.due();
        // A displaced file that could not be put where it belongs may lie in history.
        if due <= clocks.running && !self.session.engine.has_leftovers() {
            let (keep, max) = (self.worker.setup.history_keep, self.worker.setup.history_max);
            if self.history.prune(self.session.engine.folder(), keep, max, clocks) {
                // A cycle with a plan tells the status of it.
                self.session.engine.look_everywhere();
                self.forced = true;
            }
        } else if self.history.is_growing() {
            self.tidy.again(now + due.saturating_sub(clocks.running).max(TIDY_AGAIN));
        }
        Ok(())
    }

    /// Tells those who asked what a cycle would do. A command that comes meanwhile is obeyed first.
    async fn answer_dry_runs(&mut self) {
        if self.dry_runs.is_empty() {
            return;
        }
        self.session.engine.stop_flag().store(false, Ordering::Relaxed);
        let result = match self.session.check_path(&self.worker.setup) {
            Err(e) => Err(e),
            Ok(()) => tokio::select! {
                plan = self.session.engine.dry_run() => plan,
                command = self.worker.commands.recv() => {
                    self.worker.backlog.push_back(command.unwrap_or(Command::Stop));
                    return;
                }
            },
        };
        let result = result.map_err(|e| Standstill::from(&e));
        for answer in self.dry_runs.drain(..) {
            // Whoever asked may have gone.
            let _ = answer.send(result.clone());
        }
    }

    fn answer_waiting(&mut self) {
        for answer in self.waiting.drain(..) {
            // Whoever asked may have gone.
            let _ = answer.send(());
        }
    }

    /// What waits for a person, in the words of the status.
    fn halts(&self) -> Vec<HaltStatus> {
        let engine = &self.session.engine;
        engine.halts().iter().map(|halt| halt_status(halt, engine.held())).collect()
    }

    fn paused(&mut self) {
        let reason = pause_reason(self.worker.paused.and_then(|paused| paused.shown));
        self.worker.shared.set(|s| {
            s.state = State::Paused;
            s.in_sync = false;
            s.reason = Some(reason);
        });
        self.worker.note();
        self.answer_waiting();
    }

    fn command(&mut self, command: Option<Command>) -> Option<Ended> {
        match command {
            None | Some(Command::Stop) => {
                // The journal has every finished action; a fresh container only makes the next start quicker.
                let stopped = self.session.engine.tidy().and_then(|()| self.session.engine.note_clean_stop());
                if let Err(e) = stopped {
                    tracing::warn!("{e}");
                }
                return Some(Ended::Stop);
            }
            Some(Command::Sync(answer)) => {
                self.session.engine.retry_all();
                self.scope.full = true;
                self.forced = true;
                self.waiting.push(answer);
                self.worker.shared.set(|s| s.in_sync = false);
            }
            Some(Command::Plan(answer)) => self.dry_runs.push(answer),
            Some(Command::Pause(pause)) => {
                self.worker.paused = Paused::of(&pause);
                self.forced |= self.worker.paused.is_none();
            }
            Some(Command::Resume) => {
                self.worker.paused = None;
                self.forced = true;
            }
            Some(Command::Approve { id, reject, answer }) => {
                let engine = &mut self.session.engine;
                let done = if reject { engine.reject(&id) } else { engine.approve(&id) };
                self.forced |= matches!(done, Ok(true));
                self.scope.full |= self.forced;
                self.worker.shared.set_halts(self.halts());
                let _ = answer.send(done.map_err(|e| e.to_string())); // The caller may have gone.
            }
            Some(Command::Reload(setup)) => return Some(Ended::Reopen { setup: Some(setup), wait: false }),
            Some(Command::Change(request)) => self.change(request),
        }
        None
    }

    fn change(&mut self, request: ChangeRequest) {
        self.scope.paths.insert(request.at().to_owned());
        self.again = Some(Instant::now());
        let (setup, session) = (&self.worker.setup, &mut self.session);
        request.carry_out(|change| {
            session.check_path(setup).map_err(|e| format!("{}; nothing was changed", Standstill::from(&e).reason))?;
            session.engine.change_folder(change).map_err(|e| describe(&setup.root, &e))
        });
    }
}
