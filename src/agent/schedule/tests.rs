use super::*;

const POLL: Duration = Duration::from_secs(30);
const RESCAN: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
const CERTAIN: DueWork = DueWork::Cycle(DueCycle { is_certain: true, is_rescan: false, checks_rules: false });

fn quiet() -> Triggers {
    Triggers::default()
}

fn away() -> RemoteError {
    RemoteError::Unreachable { url: "u".to_owned(), why: "w".to_owned() }
}

/// A schedule whose first cycle has succeeded, and the time after it.
fn after_first_cycle(report: CycleReport) -> (Schedule, Instant) {
    let now = Instant::now();
    let mut schedule = Schedule::new(POLL, RESCAN, now);
    assert_eq!(schedule.next_wake(&quiet(), now), Some(now));
    assert_eq!(schedule.take_due(&quiet(), now), CERTAIN);
    schedule.begin_cycle(true, now);
    schedule.end_cycle(Duration::ZERO, now);
    schedule.note_success(&report, Duration::ZERO, None, now);
    (schedule, now)
}

#[test]
fn cycle_is_due_at_the_poll_interval_when_quiet() {
    let (mut schedule, now) = after_first_cycle(CycleReport::default());
    assert_eq!(schedule.next_wake(&quiet(), now), Some(now + POLL));
    assert_eq!(schedule.take_due(&quiet(), now + POLL / 2), DueWork::Cycle(DueCycle::default()));
    assert_eq!(schedule.take_due(&quiet(), now + POLL), CERTAIN);
}

#[test]
fn cycle_rescans_at_the_rescan_interval() {
    let (mut schedule, now) = after_first_cycle(CycleReport::default());
    let rescan = DueWork::Cycle(DueCycle { is_certain: true, is_rescan: true, checks_rules: false });
    assert_eq!(schedule.take_due(&quiet(), now + RESCAN), rescan);
    assert_eq!(schedule.take_due(&quiet(), now + RESCAN), CERTAIN, "the poll is due still");
}

#[test]
fn cycle_is_due_at_once_after_news_or_an_event() {
    let (mut schedule, now) = after_first_cycle(CycleReport::default());
    let news = Triggers { has_news: true, ..quiet() };
    assert_eq!(schedule.next_wake(&news, now), Some(now));
    assert_eq!(schedule.take_due(&news, now), CERTAIN);
    let event = Triggers { watcher_due: Some(now + SECOND), has_changes: true, ..quiet() };
    assert_eq!(schedule.next_wake(&event, now), Some(now + SECOND));
    assert_eq!(schedule.take_due(&event, now + SECOND), DueWork::Cycle(DueCycle::default()));
}

#[test]
fn rest_delays_events_but_no_forced_cycle() {
    let (mut schedule, now) = after_first_cycle(CycleReport::default());
    schedule.end_cycle(SECOND, now);
    let event = Triggers { watcher_due: Some(now), has_changes: true, ..quiet() };
    assert_eq!(schedule.next_wake(&event, now), Some(now + MAX_REST));
    assert_eq!(schedule.take_due(&event, now), DueWork::Nothing);
    schedule.force();
    assert_eq!(schedule.take_due(&event, now), CERTAIN);
}

#[test]
fn follow_up_waits_for_a_rest_only_in_a_burst() {
    let (mut schedule, now) = after_first_cycle(CycleReport { again: true, ..CycleReport::default() });
    schedule.end_cycle(SECOND, now);
    let burst = Triggers { has_changes: true, ..quiet() };
    assert_eq!(schedule.next_wake(&quiet(), now), Some(now + FOLLOW_UP_WAIT));
    assert_eq!(schedule.next_wake(&burst, now), Some(now + MAX_REST));
    assert_eq!(schedule.take_due(&burst, now + FOLLOW_UP_WAIT), DueWork::Nothing);
    assert_eq!(schedule.take_due(&quiet(), now + FOLLOW_UP_WAIT), CERTAIN);
}

#[test]
fn pause_stops_cycles_and_its_end_forces_one() {
    let (mut schedule, now) = after_first_cycle(CycleReport::default());
    let pause = ActivePause { until: Some(now + POLL * 9), shown: None };
    let paused = Triggers { has_news: true, watcher_due: Some(now), pause: Some(pause), ..quiet() };
    schedule.force();
    assert_eq!(schedule.next_wake(&paused, now), Some(now), "the pause is shown at once");
    assert_eq!((schedule.take_due(&paused, now), schedule.next_cycle(Some(pause))), (DueWork::Pause, None));
    assert_eq!(schedule.next_wake(&paused, now), pause.until);
    schedule.note_proxy_failure(&away(), 0, now);
    assert_eq!(schedule.next_wake(&quiet(), now), Some(now));
    assert_eq!(schedule.take_due(&quiet(), now), CERTAIN, "also through a backoff");
}

#[test]
fn backoff_stops_cycles_until_it_is_over() {
    let (mut schedule, now) = after_first_cycle(CycleReport::default());
    schedule.note_proxy_failure(&away(), 0, now);
    let news = Triggers { has_news: true, ..quiet() };
    assert_eq!(schedule.take_due(&news, now), DueWork::Nothing);
    assert_eq!(schedule.next_wake(&news, now), Some(now + FIRST_BACKOFF));
    assert_eq!(schedule.take_due(&quiet(), now + FIRST_BACKOFF), CERTAIN);
}

#[test]
fn local_check_is_due_during_a_backoff() {
    let (mut schedule, now) = after_first_cycle(CycleReport::default());
    let refused = RemoteError::Throttled { url: "u".to_owned(), status: 429, after: Some(RESCAN) };
    schedule.note_proxy_failure(&refused, 0, now);
    let event = Triggers { watcher_due: Some(now + SECOND), ..quiet() };
    assert_eq!(schedule.next_wake(&event, now), Some(now + SECOND));
    assert_eq!(schedule.take_due(&event, now), DueWork::Nothing);
    assert_eq!(schedule.take_due(&event, now + SECOND), DueWork::LocalCheck);
    assert_eq!(schedule.next_wake(&quiet(), now), Some(now + SECOND + POLL));
    assert_eq!(schedule.take_due(&quiet(), now + SECOND + POLL), DueWork::LocalCheck, "without an event");
}

#[test]
fn follow_up_wait_grows_while_nothing_comes_of_it() {
    let waits: Vec<_> = (0..40).map(|idle| follow_up_wait(idle, Duration::ZERO)).collect();
    assert!(waits[..=3].iter().all(|wait| *wait == FOLLOW_UP_WAIT), "a deletion needs these: {waits:?}");
    assert!(waits[3..9].windows(2).all(|pair| pair[1] == (pair[0] * 2).min(MAX_FOLLOW_UP_WAIT)), "{waits:?}");
    assert_eq!(waits[39], MAX_FOLLOW_UP_WAIT);
    let slow = Duration::from_secs(20);
    assert_eq!((follow_up_wait(1, slow), follow_up_wait(20, slow)), (MIN_FOLLOW_UP_WAIT, MAX_FOLLOW_UP_WAIT));
}

#[test]
fn backoff_doubles_up_to_the_poll_interval() {
    let waits: Vec<_> = (1..50).map(|n| backoff(&away(), n, POLL, 0)).collect();
    assert_eq!(waits[..4], [500, 1000, 2000, 4000].map(Duration::from_millis));
    assert_eq!((waits[6], waits[48]), (POLL, POLL));
    for random in [1, 255, u64::MAX] {
        let wait = backoff(&away(), 4, POLL, random);
        assert!(wait > waits[3] && wait <= waits[3] * 5 / 4, "{wait:?}");
    }
}

#[test]
fn backoff_obeys_retry_after_and_a_refused_token() {
    let after = Duration::from_secs(300);
    let busy = RemoteError::Throttled { url: "u".to_owned(), status: 429, after: Some(after) };
    for random in [0, 1, 128, 255, u64::MAX] {
        let wait = backoff(&busy, 1, POLL, random);
        assert!(wait >= after && wait <= after * 5 / 4, "{wait:?} after {after:?} was asked for");
    }
    for after in [None, Some(Duration::ZERO), Some(Duration::from_millis(1))] {
        let busy = RemoteError::Throttled { url: "u".to_owned(), status: 503, after };
        let waits: Vec<_> = (1..9).map(|n| backoff(&busy, n, POLL, 0)).collect();
        assert_eq!((waits[0], waits[7]), (FIRST_BACKOFF, POLL), "a short time does not lead to a flood: {waits:?}");
    }
    let refused = RemoteError::Auth { url: "u".to_owned(), status: 401 };
    assert_eq!(backoff(&refused, 1, POLL, 0), POLL);
}

#[test]
fn maintenance_waits_for_quiet_or_the_deadline() {
    let start = Instant::now();
    let mut timer = MaintenanceTimer::default();
    assert!(timer.at.is_none() && !timer.take_due(start + MAX_MAINTENANCE_DELAY), "nothing has changed");
    timer.delay(start);
    assert!(!timer.take_due(start + MAINTENANCE_DELAY / 2));
    assert!(timer.take_due(start + MAINTENANCE_DELAY));
    assert!(!timer.take_due(start + MAINTENANCE_DELAY), "nothing has changed since");
    let mut runs = Vec::new();
    for n in 0..200 {
        let now = start + MAINTENANCE_DELAY / 2 * n;
        timer.delay(now);
        if timer.take_due(now) {
            runs.push(now - start);
        }
    }
    assert_eq!(runs.len(), 3, "every 30 of 100 seconds: {runs:?}");
}
