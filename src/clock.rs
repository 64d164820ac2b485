//! [`SteadyClock`]: decides if the wall clock can be trusted to tell the age of a file.
//!
//! Pure: the caller reads the clocks and keeps the note across restarts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The wall clock has jumped if it differs from the monotonic one by more than this. The limit is less than an hour, to
/// notice a hardware clock in local time.
const JUMP: Duration = Duration::from_secs(30 * 60);
/// The wall clock is trusted after this much running time without a jump.
const STEADY: Duration = Duration::from_secs(3600);

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// Milliseconds since the epoch.
    pub wall_ms: u64,
    /// Monotonic time since the first reading of the process.
    pub running: Duration,
}

/// The last reading of the wall clock, kept across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockNote {
    /// Milliseconds since the epoch.
    pub wall_ms: u64,
    /// Seconds of running time without a jump, at most an hour.
    pub steady_s: u64,
}

/// Checks if the wall clock has been steady for an hour of running. Remove nothing for its age before that: with a wrong
/// clock, everything looks old.
#[derive(Debug)]
pub struct SteadyClock {
    last: ClockReading,
    steady: Duration,
}

impl SteadyClock {
    /// Continues from the note of the last run. Without a note, or far from it, the wall clock counts as having jumped.
    pub fn resume(note: Option<ClockNote>, now: ClockReading) -> Self {
        let is_near = |note: &ClockNote| now.wall_ms.abs_diff(note.wall_ms) <= millis(JUMP);
        let steady = note.filter(is_near).map_or(Duration::ZERO, |note| Duration::from_secs(note.steady_s).min(STEADY));
        Self { last: now, steady }
    }

    /// Starts with a trusted clock, for a folder without any older data.
    pub fn trusted(now: ClockReading) -> Self {
        Self { last: now, steady: STEADY }
    }

    /// Adds a reading. Returns true if the wall clock has jumped since the last one.
    pub(crate) fn observe(&mut self, now: ClockReading) -> bool {
        let ran = now.running.saturating_sub(self.last.running);
        let expected_ms = self.last.wall_ms.saturating_add(millis(ran));
        let jumped = now.wall_ms.abs_diff(expected_ms) > millis(JUMP);
        self.steady = if jumped { Duration::ZERO } else { (self.steady + ran).min(STEADY) };
        self.last = now;
        jumped
    }

    /// True if ages by the wall clock can be trusted.
    pub(crate) fn is_steady(&self) -> bool {
        self.steady >= STEADY
    }

    pub fn note(&self) -> ClockNote {
        ClockNote { wall_ms: self.last.wall_ms, steady_s: self.steady.as_secs() }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;
    const NOW_MS: u64 = 1_800_000_000_000;

    fn at(wall_ms: u64, running_s: u64) -> ClockReading {
        ClockReading { wall_ms, running: Duration::from_secs(running_s) }
    }

    /// Advances both clocks by `minutes`, with a reading every minute.
    fn run(clock: &mut SteadyClock, minutes: u64) {
        for _ in 0..minutes {
            let ClockReading { wall_ms, running } = clock.last;
            clock.observe(at(wall_ms + MINUTE * 1000, running.as_secs() + MINUTE));
        }
    }

    #[test]
    fn clock_without_a_note_waits_for_an_hour_of_running() {
        let mut clock = SteadyClock::resume(None, at(NOW_MS, 0));
        run(&mut clock, 59);
        assert!(!clock.is_steady());
        run(&mut clock, 1);
        assert!(clock.is_steady());
    }

    #[test]
    fn start_far_from_the_note_waits_again() {
        let note = SteadyClock::trusted(at(NOW_MS, 0)).note();
        for wall_ms in [NOW_MS + YEAR_MS, NOW_MS - YEAR_MS, NOW_MS + 59 * MINUTE * 1000] {
            let mut clock = SteadyClock::resume(Some(note), at(wall_ms, 0));
            assert!(!clock.is_steady(), "{wall_ms}");
            run(&mut clock, 60);
            assert!(clock.is_steady(), "{wall_ms}");
        }
        assert!(SteadyClock::resume(Some(note), at(NOW_MS + 5 * MINUTE * 1000, 0)).is_steady());
    }

    #[test]
    fn restart_with_the_same_wrong_clock_still_waits() {
        let note = SteadyClock::trusted(at(NOW_MS, 0)).note();
        let mut wrong = SteadyClock::resume(Some(note), at(NOW_MS + YEAR_MS, 0));
        run(&mut wrong, 20);
        let mut again = SteadyClock::resume(Some(wrong.note()), at(NOW_MS + YEAR_MS + 21 * MINUTE * 1000, 0));
        run(&mut again, 39);
        assert!(!again.is_steady(), "20 and 39 minutes");
        run(&mut again, 1);
        assert!(again.is_steady(), "running time adds up over restarts");
    }

    #[test]
    fn jump_while_running_begins_the_hour_anew() {
        let mut clock = SteadyClock::trusted(at(NOW_MS, 0));
        assert!(!clock.observe(at(NOW_MS + 10_000, 5)) && clock.is_steady(), "drift of some seconds");
        assert!(clock.observe(at(NOW_MS + YEAR_MS, 10)) && !clock.is_steady());
        run(&mut clock, 59);
        assert!(!clock.is_steady());
        assert!(clock.observe(at(NOW_MS, 3600)) && !clock.is_steady(), "set back to what it was");
        run(&mut clock, 60);
        assert!(clock.is_steady());
    }
}
