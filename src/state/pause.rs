//! The small files beside the container, among them [`Pause`]: a pause of syncing that the user asked for.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::disk::whole::replace_private;

const FILE: &str = "paused";

/// A pause of syncing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The end. `None`: until the user resumes.
    pub until: Option<Timestamp>,
    /// The requested duration in seconds. It limits the pause if the clock is set back.
    pub for_s: Option<u64>,
}

impl Pause {
    /// A pause that begins `now`. A pause too long for the calendar has no end.
    pub fn new(for_s: Option<u64>, now: Timestamp) -> Self {
        let until = for_s.and_then(|s| now.checked_add(Duration::from_secs(s)).ok());
        Self { until, for_s: for_s.filter(|_| until.is_some()) }
    }

    /// The remaining time. Zero: the pause is over. `None`: it has no end.
    pub fn left(&self, now: Timestamp) -> Option<Duration> {
        let left = Duration::try_from(self.until?.duration_since(now)).unwrap_or_default();
        Some(left.min(self.for_s.map_or(Duration::MAX, Duration::from_secs)))
    }

    /// Reads the pause from the state directory. `None` if there is none or it is over. An invalid file is a pause
    /// without an end: the user sees it and can resume.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(state_dir: &Path, now: Timestamp) -> io::Result<Option<Self>> {
        let Some(text) = read_note(&state_dir.join(FILE))? else { return Ok(None) };
        let pause = serde_json::from_slice(&text).unwrap_or(Self { until: None, for_s: None });
        Ok(Some(pause).filter(|pause| pause.left(now) != Some(Duration::ZERO)))
    }

    /// Writes the pause, durably.
    ///
    /// # Errors
    /// The file cannot be written. An earlier pause stays then.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        replace_private(&state_dir.join(FILE), &serde_json::to_vec(self)?)
    }

    /// Removes the pause, durably.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(crate) fn forget(state_dir: &Path) -> io::Result<()> {
        match fs::remove_file(state_dir.join(FILE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| File::open(state_dir)?.sync_all()),
        }
    }
}

/// The content of the file at `path`, or `None` if there is none.
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub(crate) fn read_note(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn pause_is_kept_until_its_end() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        assert_eq!(Pause::load(dir, NOW).unwrap(), None);
        let pause = Pause::new(Some(60), NOW);
        pause.save(dir).unwrap();
        assert_eq!(Pause::load(dir, at(59)).unwrap(), Some(pause));
        assert_eq!(pause.left(at(59)), Some(Duration::from_secs(1)));
        assert_eq!(Pause::load(dir, at(60)).unwrap(), None);
        Pause::new(None, NOW).save(dir).unwrap();
        assert_eq!(Pause::load(dir, at(i64::from(u32::MAX))).unwrap().unwrap().left(NOW), None);
        Pause::forget(dir).unwrap();
        Pause::forget(dir).unwrap();
        assert_eq!(Pause::load(dir, NOW).unwrap(), None);
    }

    #[test]
    fn pause_lasts_no_longer_when_the_clock_is_set_back() {
        let pause = Pause::new(Some(60), at(1_000_000));
        assert_eq!(pause.left(at(0)), Some(Duration::from_secs(60)));
    }

    #[test]
    fn invalid_pause_has_no_end() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join(FILE), "nonsense").unwrap();
        let pause = Pause::load(tmp.path(), NOW).unwrap();
        assert_eq!(pause, Some(Pause { until: None, for_s: None }));
    }

    #[test]
    fn pause_too_long_for_the_calendar_has_no_end() {
        assert_eq!(Pause::new(Some(u64::MAX), NOW), Pause { until: None, for_s: None });
    }
}
