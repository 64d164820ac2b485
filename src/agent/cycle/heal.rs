//! [`HealTimes`]: when each entry of a weak index was last healed, so that heals are limited.
//!
//! An index of hints may keep an entry that its blob contradicts. The agent then writes the same bytes again, or repeats
//! the deletion, and the proxy makes a new entry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::path::RelPath;

/// The shortest time between two heals of one path.
const INTERVAL: Duration = Duration::from_secs(60);
/// Heals in a row at that interval. Each further one waits twice as long.
const AT_INTERVAL: u32 = 5;
/// The longest wait. A heal that holds for as long is forgotten.
const MAX_WAIT: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
struct HealRecord {
    /// When the path may be healed again ([`World::elapsed`](crate::agent::World::elapsed)).
    due: Duration,
    /// Heals in a row.
    tries: u32,
    /// A cycle has checked the path since it was due.
    is_checked: bool,
}

/// Clones share their state.
#[derive(Debug, Clone, Default)]
pub(in crate::agent) struct HealTimes {
    paths: Arc<Mutex<BTreeMap<RelPath, HealRecord>>>,
    /// Held during a heal. Proxies with a weak index lose updates that come at the same time.
    pub(super) lock: Arc<futures::lock::Mutex<()>>,
}

impl HealTimes {
    fn records(&self) -> MutexGuard<'_, BTreeMap<RelPath, HealRecord>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a heal of `path`. False if it is too soon after the last one.
    pub(crate) fn begin(&self, path: &RelPath, now: Duration) -> bool {
        let mut paths = self.records();
        let tries = match paths.get(path) {
            Some(heal) if now < heal.due => return false,
            Some(heal) => heal.tries.saturating_add(1),
            None => 1,
        };
        let wait = INTERVAL.saturating_mul(1 << tries.saturating_sub(AT_INTERVAL).min(10)).min(MAX_WAIT);
        paths.insert(path.clone(), HealRecord { due: now + wait, tries, is_checked: false });
        true
    }

    /// When a healed path must be checked again, because the heal may have been lost too.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.records().values().filter(|heal| !heal.is_checked).map(|heal| heal.due).min()
    }

    /// The paths to plan again now, each once. The index may answer as before, so nothing else opens them.
    pub(crate) fn take_due(&self, now: Duration) -> Vec<RelPath> {
        let mut due = Vec::new();
        self.records().retain(|path, heal| {
            if heal.due <= now && !heal.is_checked {
                heal.is_checked = true;
                due.push(path.clone());
            }
            now < heal.due + MAX_WAIT
        });
        due
    }

    pub(crate) fn clear(&self) {
        self.records().clear();
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
