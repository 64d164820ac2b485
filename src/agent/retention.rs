//! [`HistoryKeeper`]: when the local history is pruned, and whether its ages can be trusted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::World;
use super::cycle::report::remedy;
use crate::clock::{ClockNote, ClockReading, SteadyClock};
use crate::disk::Disk;
use crate::disk::whole::replace_note;
use crate::local::Folder;
use crate::local::history::{HistoryLimits, PruneFailure, PruneReport};
use crate::state::read_note;

/// The time between two prunes while no version is added.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// The shortest time between two prunes while versions are added.
const MIN_REST: Duration = Duration::from_secs(10);
/// The longest time between two prunes while versions are added: `history.max_size` holds within a minute.
const MAX_REST: Duration = Duration::from_secs(25);
/// The rest after a prune is this many times its duration.
const REST_FACTOR: u32 = 20;
/// The time between two notes of the wall clock.
const NOTE_EVERY: Duration = Duration::from_secs(600);

/// Prunes the history of one folder, and reports the versions that cannot be removed.
pub(super) struct HistoryKeeper {
    clock: SteadyClock,
    note_file: PathBuf,
    /// The running time and the state of the clock at the last note.
    noted: Option<(Duration, bool)>,
    /// The running time of the next prune while no version is added.
    next: Duration,
    /// The running time of the next prune once versions were added.
    rest_until: Duration,
    /// Versions may have been added since the last prune.
    pub has_grown: bool,
    /// The reasons why versions could not be removed, by path below the root.
    pub problems: BTreeMap<String, String>,
}

/// Both clocks of a world, now.
pub(super) fn read_clocks(world: &impl World) -> ClockReading {
    let wall_ms = u64::try_from(world.now().as_millisecond()).unwrap_or(0);
    ClockReading { wall_ms, running: world.elapsed() }
}

impl HistoryKeeper {
    /// Starts from the clock that the last run noted in `note_file`.
    pub(super) fn open(note_file: PathBuf, now: ClockReading) -> Self {
        // Without a readable note the clock is not trusted.
        let note = read_note(&note_file).ok().flatten();
        let note = note.and_then(|text| serde_json::from_slice::<ClockNote>(&text).ok());
        Self {
            clock: SteadyClock::resume(note, now),
            note_file,
            noted: None,
            next: now.running,
            rest_until: now.running,
            has_grown: false,
            problems: BTreeMap::new(),
        }
    }

    /// Observes both clocks, and notes them from time to time.
    pub(super) fn observe(&mut self, now: ClockReading) {
        if self.clock.observe(now) {
            tracing::info!(
                "the wall clock jumped: no old version is removed for its age until it was steady for an hour"
            );
        }
        let is_steady = self.clock.is_steady();
        let is_due = |(at, was_steady)| now.running >= at + NOTE_EVERY || was_steady != is_steady;
        if self.noted.is_none_or(is_due) {
            // Numbers always serialise.
            let note = serde_json::to_vec(&self.clock.note()).unwrap_or_default();
            if let Err(e) = replace_note(&self.note_file, &note) {
                tracing::warn!("{}: {e}; {}", self.note_file.display(), remedy(&e));
            }
            self.noted = Some((now.running, is_steady));
        }
    }

    /// The running time at which a prune is due.
    pub(super) fn due(&self) -> Duration {
        if self.has_grown { self.next.min(self.rest_until) } else { self.next }
    }

    /// Prunes the history now. True when `problems` changed.
    pub(super) fn prune<D: Disk>(
        &mut self,
        folder: &Folder<D>,
        keep: Duration,
        max_size: u64,
        now: ClockReading,
    ) -> bool {
        self.observe(now);
        let began = Instant::now();
        let limits = HistoryLimits { keep: self.clock.is_steady().then_some(keep), max_size };
        let wall = i64::try_from(now.wall_ms).unwrap_or(i64::MAX);
        let PruneReport { removed, failed, .. } =
            folder.prune(limits, Timestamp::from_millisecond(wall).unwrap_or(Timestamp::MAX));
        if removed > 0 {
            tracing::info!("{removed} old versions were removed from history");
        }
        let rest = (began.elapsed() * REST_FACTOR).clamp(MIN_REST, MAX_REST);
        self.next = now.running + PRUNE_EVERY;
        self.rest_until = now.running + rest;
        self.has_grown = false;
        let problem = |f: PruneFailure| {
            let why = format!("cannot be removed from the history: {}; {}", f.source, remedy(&f.source));
            (f.path, why)
        };
        let before = std::mem::replace(&mut self.problems, failed.into_iter().map(problem).collect());
        self.problems != before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{SimDisk, StepFate, StepKind};

    const NOW_MS: u64 = 1_767_700_000_000;
    const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

    fn at(wall_ms: u64, running_s: u64) -> ClockReading {
        ClockReading { wall_ms, running: Duration::from_secs(running_s) }
    }

    /// A folder with `count` versions of `a`, a minute apart, from just before [`NOW_MS`].
    fn folder_with_versions(count: usize) -> (SimDisk, Folder<SimDisk>) {
        let disk = SimDisk::new();
        let folder = Folder::new(Arc::new(disk.handle()), "dev", 1);
        folder.ensure_private().unwrap();
        for n in 0..count {
            disk.user_write(&format!(".memsync/history/a.20260106T11{n:02}00.000Z-replaced"), "old").unwrap();
        }
        (disk, folder)
    }

    fn count(folder: &Folder<SimDisk>) -> usize {
        folder.versions(None).unwrap().len()
    }

    #[test]
    fn start_with_a_clock_a_year_ahead_prunes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let note = home.path().join("clock.json");
        let (_, folder) = folder_with_versions(8);
        let mut steady = HistoryKeeper::open(note.clone(), at(NOW_MS, 0));
        (0..=60).for_each(|minute| steady.observe(at(NOW_MS + minute * 60_000, minute * 60)));
        assert!(steady.clock.is_steady());
        for _ in 0..2 {
            let mut ahead = HistoryKeeper::open(note.clone(), at(NOW_MS + YEAR_MS, 0));
            ahead.prune(&folder, MONTH, u64::MAX, at(NOW_MS + YEAR_MS + 60_000, 60));
            assert_eq!(count(&folder), 8);
        }
        let back = HistoryKeeper::open(note, at(NOW_MS, 0));
        assert!(!back.clock.is_steady(), "a clock that was set back is not trusted either");
    }

    #[test]
    fn clock_steady_for_an_hour_prunes_all_but_the_newest_five() {
        let home = tempfile::tempdir().unwrap();
        let (_, folder) = folder_with_versions(8);
        let mut keeper = HistoryKeeper::open(home.path().join("clock.json"), at(NOW_MS + YEAR_MS, 0));
        (0..=60).for_each(|minute| keeper.observe(at(NOW_MS + YEAR_MS + minute * 60_000, minute * 60)));
        keeper.prune(&folder, MONTH, u64::MAX, at(NOW_MS + YEAR_MS + 3_660_000, 3660));
        assert_eq!(count(&folder), 5);
        assert_eq!(folder.versions(None).unwrap()[0].at.to_string(), "2026-01-06T11:07:00Z");
    }

    #[test]
    fn size_is_pruned_whatever_the_clock_says() {
        let home = tempfile::tempdir().unwrap();
        let (_, folder) = folder_with_versions(8);
        let mut keeper = HistoryKeeper::open(home.path().join("clock.json"), at(NOW_MS, 0));
        keeper.prune(&folder, MONTH, 4096 * 4, at(NOW_MS, 0));
        assert_eq!(count(&folder), 3, "three blocks, and one of the folder");
    }

    #[test]
    fn prune_is_due_soon_after_growth_and_hourly_without() {
        let home = tempfile::tempdir().unwrap();
        let (_, folder) = folder_with_versions(1);
        let mut keeper = HistoryKeeper::open(home.path().join("clock.json"), at(NOW_MS, 0));
        assert_eq!(keeper.due(), Duration::ZERO);
        keeper.prune(&folder, MONTH, u64::MAX, at(NOW_MS, 5));
        assert_eq!(keeper.due(), Duration::from_secs(5) + PRUNE_EVERY);
        keeper.has_grown = true;
        assert!(keeper.due() <= Duration::from_secs(5) + MAX_REST);
    }

    #[test]
    fn version_that_cannot_be_removed_is_named_and_the_rest_goes() {
        let home = tempfile::tempdir().unwrap();
        let (disk, folder) = folder_with_versions(8);
        let stuck = ".memsync/history/a.20260106T110300.000Z-replaced";
        disk.set_hook(Some(Box::new(move |op| match op.kind {
            StepKind::Unlink if op.path == stuck => StepFate::Fail(std::io::ErrorKind::PermissionDenied),
            _ => StepFate::Go,
        })));
        let mut keeper = HistoryKeeper::open(home.path().join("clock.json"), at(NOW_MS, 0));
        keeper.prune(&folder, MONTH, 0, at(NOW_MS, 0));
        assert_eq!(count(&folder), 1);
        assert!(keeper.problems[stuck].contains("cannot be removed"), "{:?}", keeper.problems);
        disk.set_hook(None);
        keeper.prune(&folder, MONTH, 0, at(NOW_MS, 0));
        assert!(count(&folder) == 0 && keeper.problems.is_empty());
    }
}
