//! [`HealTimes`]: when each path's entry in a weak index was last healed, so that nobody heals without end.
//!
//! An index of hints may go on naming what a blob no longer holds. Whoever learns that from the blob writes the same
//! bytes again, or repeats the deletion, and the proxy makes a new entry of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::Disk;
use crate::path::RelPath;
use crate::remote::Remote;

use super::World;
use super::engine::Engine;

/// The shortest time between two heals of one path.
const INTERVAL: Duration = Duration::from_secs(60);
/// So many heals in a row come at that interval; each further one waits twice as long.
const AT_INTERVAL: u32 = 5;
/// The longest wait. An entry that was not healed again for as long is forgotten.
const MAX_WAIT: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
struct Heal {
    /// When the path may be healed again, by the clock of [`super::World::elapsed`].
    due: Duration,
    /// Heals in a row.
    tries: u32,
    /// The path was looked at again since it was due.
    is_checked: bool,
}

/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct HealTimes {
    paths: Arc<Mutex<BTreeMap<RelPath, Heal>>>,
    /// Held while one heal is under way: proxies with a weak index lose updates that come together.
    pub(super) turn: Arc<futures::lock::Mutex<()>>,
}

impl HealTimes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelPath, Heal>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a heal of `path`. False: it is too soon after the last one.
    pub fn begin(&self, path: &RelPath, now: Duration) -> bool {
        let mut paths = self.lock();
        let tries = match paths.get(path) {
            Some(heal) if now < heal.due => return false,
            Some(heal) => heal.tries.saturating_add(1),
            None => 1,
        };
        let wait = INTERVAL.saturating_mul(1 << tries.saturating_sub(AT_INTERVAL).min(10)).min(MAX_WAIT);
        paths.insert(path.clone(), Heal { due: now + wait, tries, is_checked: false });
        true
    }

    /// When a healed path is looked at again. The heal may have been lost, too.
    pub fn next_due(&self) -> Option<Duration> {
        self.lock().values().filter(|heal| !heal.is_checked).map(|heal| heal.due).min()
    }

    /// The paths to plan again now. Each is given once: the index may answer as before, so nothing else opens them.
    pub fn take_due(&self, now: Duration) -> Vec<RelPath> {
        let mut due = Vec::new();
        self.lock().retain(|path, heal| {
            if heal.due <= now && !heal.is_checked {
                heal.is_checked = true;
                due.push(path.clone());
            }
            now < heal.due + MAX_WAIT
        });
        due
    }

    pub fn clear(&self) {
        self.lock().clear();
    }
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// When an entry of a weak index that was healed is looked at again, by the clock of [`World::elapsed`].
    pub fn next_heal(&self) -> Option<Duration> {
        self.heals.next_due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_healed_once_a_minute_and_then_less_often() {
        let (heals, path) = (HealTimes::default(), RelPath::parse("a").unwrap());
        let mut now = Duration::from_secs(7);
        let mut waits = Vec::new();
        for _ in 0..20 {
            assert!(heals.begin(&path, now));
            let due = heals.next_due().unwrap();
            waits.push((due - now).as_secs());
            assert!(!heals.begin(&path, due - Duration::from_millis(1)), "too soon");
            assert!(heals.take_due(due - Duration::from_millis(1)).is_empty());
            assert_eq!((heals.take_due(due), heals.take_due(due)), (vec![path.clone()], vec![]), "it is given once");
            assert_eq!(heals.next_due(), None);
            now = due;
        }
        assert_eq!(waits[..7], [60, 60, 60, 60, 60, 120, 240]);
        assert_eq!(*waits.last().unwrap(), MAX_WAIT.as_secs());
        let other = RelPath::parse("b").unwrap();
        assert!(heals.begin(&path, now) && heals.begin(&other, now), "each path for itself");
        let later = now + 2 * MAX_WAIT;
        assert_eq!(heals.take_due(later), [path.clone(), other]);
        assert!(heals.begin(&path, later));
        assert_eq!(heals.next_due(), Some(later + INTERVAL), "a heal that held is forgotten");
    }
}
