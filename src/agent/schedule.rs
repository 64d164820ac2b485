//! [`Schedule`]: when the next cycle of a folder is due. Pure: the caller passes the time and the state of the
//! triggers.
//!
//! Triggers that come while a cycle runs are coalesced into one more cycle.

use std::time::{Duration, Instant};

use crate::remote::RemoteError;

use super::cycle::CycleReport;
use super::pause::ActivePause;
use super::setup::CONFIRM_INTERVAL;

/// The first wait for a proxy that did not answer. It doubles with each failure, up to the poll interval.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The wait after a scan before a cycle takes up the work that the last one left.
const FOLLOW_UP_WAIT: Duration = CONFIRM_INTERVAL.saturating_add(Duration::from_millis(10));
const MIN_FOLLOW_UP_WAIT: Duration = Duration::from_millis(10);
const MAX_FOLLOW_UP_WAIT: Duration = Duration::from_secs(5);
/// Follow-ups without effect before their wait grows. A deletion needs a few, because two scans must confirm it.
const USUAL_IDLE_FOLLOW_UPS: u32 = 3;
/// Follow-ups without effect after which `memsync sync` no longer waits for the rest.
const MAX_IDLE_FOLLOW_UPS: u32 = 10;
/// In a burst of changes a cycle is followed by a rest of this many times its planning time, so that sync does not slow
/// down the program that writes. The first cycle after a quiet time starts at once.
const REST_FACTOR: u32 = 2;
const MAX_REST: Duration = Duration::from_millis(500);
/// Quiet time before the maintenance of state and history.
const MAINTENANCE_DELAY: Duration = Duration::from_secs(1);
/// Under steady change maintenance runs after this time.
const MAX_MAINTENANCE_DELAY: Duration = Duration::from_secs(30);

/// The triggers that are not timers of the schedule.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Triggers {
    /// When the watcher has events to scan.
    pub watcher_due: Option<Instant>,
    /// The watcher has seen a change that no cycle has scanned, due or not.
    pub has_changes: bool,
    /// The proxy announced a change, or its event stream broke.
    pub has_news: bool,
    pub pause: Option<ActivePause>,
}

/// The work that is due now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DueWork {
    Nothing,
    /// Show the pause, and wait for its end.
    Pause,
    /// The proxy is away. Check the folder's identity without it.
    LocalCheck,
    Cycle(DueCycle),
}

/// A cycle that is due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DueCycle {
    /// False: run it only if the watcher has events, or the caller has a reason of its own.
    pub is_certain: bool,
    /// Scan everything and plan for every path.
    pub is_rescan: bool,
    /// Read the ignore file again.
    pub checks_rules: bool,
}

/// The timers of one open folder.
#[derive(Debug)]
pub(super) struct Schedule {
    poll_interval: Duration,
    rescan_interval: Duration,
    /// A cycle is due now, through rest and backoff.
    is_forced: bool,
    next_poll: Instant,
    next_rescan: Instant,
    follow_up: Option<Instant>,
    /// When to read the ignore file again.
    pub rules_check: Option<Instant>,
    path_retry: Option<Instant>,
    /// Set while the proxy is away.
    backoff_until: Option<Instant>,
    /// Failures of the proxy in a row.
    failures: u32,
    rest_until: Instant,
    /// The running cycle was given events of the watcher.
    had_events: bool,
    /// Cycles in a row that left work and changed nothing.
    idle_follow_ups: u32,
    /// The pause was taken by [`Schedule::take_due`]. Its end is still to come.
    was_paused: bool,
    pub maintenance: MaintenanceTimer,
}

impl Schedule {
    /// A schedule whose first cycle is due at once.
    pub(super) fn new(poll_interval: Duration, rescan_interval: Duration, now: Instant) -> Self {
        Self {
            poll_interval,
            rescan_interval,
            is_forced: true,
            next_poll: now,
            next_rescan: now + rescan_interval,
            follow_up: None,
            rules_check: None,
            path_retry: None,
            backoff_until: None,
            failures: 0,
            rest_until: now,
            had_events: false,
            idle_follow_ups: 0,
            was_paused: false,
            maintenance: MaintenanceTimer::default(),
        }
    }

    /// When to call [`Schedule::take_due`] next. `None`: after the next trigger.
    pub(super) fn next_wake(&self, triggers: &Triggers, now: Instant) -> Option<Instant> {
        if let Some(pause) = triggers.pause {
            return if self.was_paused { pause.until } else { Some(now) };
        }
        if self.is_forced || self.was_paused {
            return Some(now);
        }
        if let Some(until) = self.backoff_until {
            return Some(until.min(self.next_local_check(triggers)).max(self.rest_until));
        }
        let timers = [
            Some(self.next_poll),
            self.path_retry,
            self.maintenance.at,
            triggers.watcher_due,
            triggers.has_news.then_some(now),
            self.rules_check,
        ];
        let rested = timers.into_iter().flatten().min().map(|at| at.max(self.rest_until));
        rested.into_iter().chain(self.follow_up_at(triggers)).min()
    }

    /// When a cycle is due by time alone, for people. `None`: the folder is paused.
    pub(super) fn next_cycle(&self, pause: Option<ActivePause>) -> Option<Instant> {
        pause.is_none().then(|| self.backoff_until.unwrap_or(self.next_poll))
    }

    /// Takes the work that is due now. The timers that led to it are reset.
    pub(super) fn take_due(&mut self, triggers: &Triggers, now: Instant) -> DueWork {
        if triggers.pause.is_some() {
            self.was_paused = true;
            return DueWork::Pause;
        }
        self.is_forced |= std::mem::take(&mut self.was_paused);
        if !self.is_forced {
            if self.backoff_until.is_some_and(|until| now < until) {
                return self.take_local_check(triggers, now);
            }
            if now < self.rest_until && self.follow_up_at(triggers).is_none_or(|at| now < at) {
                return DueWork::Nothing;
            }
        }
        DueWork::Cycle(self.take_cycle(triggers, now))
    }

    fn take_local_check(&mut self, triggers: &Triggers, now: Instant) -> DueWork {
        if now < self.next_local_check(triggers) {
            return DueWork::Nothing;
        }
        self.next_poll = now + self.poll_interval;
        DueWork::LocalCheck
    }

    fn next_local_check(&self, triggers: &Triggers) -> Instant {
        triggers.watcher_due.map_or(self.next_poll, |due| due.min(self.next_poll))
    }

    fn take_cycle(&mut self, triggers: &Triggers, now: Instant) -> DueCycle {
        let is_due = |timer: &mut Option<Instant>| timer.take_if(|at| *at <= now).is_some();
        let is_rescan = now >= self.next_rescan;
        if is_rescan {
            self.next_rescan = now + self.rescan_interval;
        }
        let checks_rules = is_due(&mut self.rules_check);
        let has_timer = is_due(&mut self.backoff_until) | is_due(&mut self.follow_up) | is_due(&mut self.path_retry);
        let is_forced = std::mem::take(&mut self.is_forced);
        let is_certain =
            is_forced || is_rescan || checks_rules || has_timer || triggers.has_news || now >= self.next_poll;
        DueCycle { is_certain, is_rescan, checks_rules }
    }

    /// The follow-up waits for the end of a rest only in a burst of changes.
    fn follow_up_at(&self, triggers: &Triggers) -> Option<Instant> {
        self.follow_up.map(|at| if triggers.has_changes { at.max(self.rest_until) } else { at })
    }

    /// Makes a cycle due now.
    pub(super) fn force(&mut self) {
        self.is_forced = true;
    }

    /// Makes a cycle due now, or when a backoff ends.
    pub(super) fn follow_up(&mut self, now: Instant) {
        self.follow_up = Some(now);
    }

    pub(super) fn begin_cycle(&mut self, had_events: bool, now: Instant) {
        self.had_events = had_events;
        self.follow_up = None;
        self.next_poll = now + self.poll_interval;
    }

    /// The cycle has ended, with or without success. `planning`: the time that it took to find out what to do.
    pub(super) fn end_cycle(&mut self, planning: Duration, now: Instant) {
        self.rest_until = now + (planning * REST_FACTOR).min(MAX_REST);
    }

    /// The proxy answered. `since_scan`: the time since the cycle's scan ended. `path_retry`: the wait before single
    /// paths are due again.
    pub(super) fn note_success(
        &mut self,
        report: &CycleReport,
        since_scan: Duration,
        path_retry: Option<Duration>,
        now: Instant,
    ) {
        self.failures = 0;
        self.backoff_until = None;
        let is_idle = report.again && !report.wrote() && !self.had_events;
        self.idle_follow_ups = if is_idle { self.idle_follow_ups + 1 } else { 0 };
        if report.again {
            self.follow_up = Some(now + follow_up_wait(self.idle_follow_ups, since_scan));
        }
        self.path_retry = path_retry.map(|wait| now + wait);
    }

    /// The proxy failed. `random`: for the jitter.
    pub(super) fn note_proxy_failure(&mut self, e: &RemoteError, random: u64, now: Instant) {
        self.failures += 1;
        self.backoff_until = Some(now + backoff(e, self.failures, self.poll_interval, random));
    }

    /// The cycle ended early for another reason than the proxy.
    pub(super) fn end_backoff(&mut self) {
        self.backoff_until = None;
    }

    /// True: follow-ups have had no effect for so long that a command need not wait for them.
    pub(super) fn is_idle(&self) -> bool {
        self.idle_follow_ups > MAX_IDLE_FOLLOW_UPS
    }
}

/// The wait before a follow-up of a cycle whose scan ended `since_scan` ago. A file that is always being written to is
/// scanned less and less often.
fn follow_up_wait(idle_follow_ups: u32, since_scan: Duration) -> Duration {
    if idle_follow_ups <= USUAL_IDLE_FOLLOW_UPS {
        return FOLLOW_UP_WAIT.saturating_sub(since_scan).max(MIN_FOLLOW_UP_WAIT);
    }
    FOLLOW_UP_WAIT.saturating_mul(1 << (idle_follow_ups - USUAL_IDLE_FOLLOW_UPS).min(10)).min(MAX_FOLLOW_UP_WAIT)
}

/// The wait before a proxy that failed with `e`, for the `failures`th time in a row, is tried again. `random` adds up
/// to a quarter, so that many agents do not come back at once. Nothing is subtracted, because `Retry-After` names the
/// earliest time.
fn backoff(e: &RemoteError, failures: u32, poll_interval: Duration, random: u64) -> Duration {
    let ordinary = FIRST_BACKOFF.saturating_mul(1 << failures.min(8).saturating_sub(1)).min(poll_interval);
    let wait = match e {
        // Some proxies send a short `Retry-After` and go on refusing.
        RemoteError::Throttled { after: Some(after), .. } => ordinary.max(*after),
        RemoteError::Auth { .. } => poll_interval,
        _ => ordinary,
    };
    let jitter = u32::try_from(random % 256).unwrap_or(0);
    wait + wait / 4 * jitter / 256
}

/// When state and history are maintained.
#[derive(Debug, Default)]
pub(super) struct MaintenanceTimer {
    at: Option<Instant>,
    /// Not later than this, whatever changes until then.
    deadline: Option<Instant>,
}

impl MaintenanceTimer {
    /// Something changed: maintenance is due once the folder is quiet.
    pub(super) fn delay(&mut self, now: Instant) {
        let deadline = *self.deadline.get_or_insert(now + MAX_MAINTENANCE_DELAY);
        self.at = Some((now + MAINTENANCE_DELAY).min(deadline));
    }

    /// Maintenance is due at this time at the latest.
    pub(super) fn plan(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
        self.deadline.get_or_insert(at);
    }

    /// True: maintenance is due. It is not again until something changes.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.at.is_some_and(|at| at <= now);
        if is_due {
            *self = Self::default();
        }
        is_due
    }
}

#[cfg(test)]
mod tests;
