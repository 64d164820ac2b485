//! Remembers which folders of the bucket are namespaces.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::super::{StoreError, lock};

/// A remembered fact counts for this long. For as long, files of a namespace that another proxy just began can still be
/// reached by their flat names.
const FRESH_FOR: Duration = Duration::from_secs(5);
/// Limit on the remembered folders. Half of them are dropped at once when there are more.
const MAX_FOLDERS: usize = 20_000;
/// A request waits this long for the repair after the start.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(5);

/// The folders that this process knows.
#[derive(Default)]
pub(super) struct NamespaceCache {
    folders: Mutex<FolderGenerations>,
    /// True until the index was compared with the files. Before that, a file without an entry may belong to any namespace.
    is_repairing: watch::Sender<bool>,
}

/// Two generations. Dropping the old one takes no walk through the entries.
#[derive(Default)]
struct FolderGenerations {
    young: HashMap<String, FolderFact>,
    old: HashMap<String, FolderFact>,
}

impl FolderGenerations {
    fn get(&self, folder: &str) -> Option<FolderFact> {
        self.young.get(folder).or_else(|| self.old.get(folder)).copied()
    }

    fn insert(&mut self, folder: &str, fact: FolderFact) {
        if self.young.len() >= MAX_FOLDERS / 2 && !self.young.contains_key(folder) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(folder.to_owned(), fact);
    }
}

#[derive(Clone, Copy)]
struct FolderFact {
    /// True if the folder had an index.
    is_namespace: bool,
    /// For a namespace the time after the request, otherwise the time before it. If two facts contradict each other, the
    /// namespace counts.
    at: Instant,
}

impl NamespaceCache {
    /// True if `folder` is a namespace. `None` if nothing was found out at `since` or later.
    pub(super) fn is_namespace(&self, folder: &str, since: Instant) -> Option<bool> {
        lock(&self.folders).get(folder).filter(|fact| fact.at >= since).map(|fact| fact.is_namespace)
    }

    pub(super) fn remember(&self, folder: &str, is_namespace: bool, at: Instant) {
        let mut folders = lock(&self.folders);
        if folders.get(folder).is_none_or(|fact| fact.at <= at) {
            folders.insert(folder, FolderFact { is_namespace, at });
        }
    }

    pub(super) fn forget(&self, folder: &str) {
        let mut folders = lock(&self.folders);
        folders.young.remove(folder);
        folders.old.remove(folder);
    }

    /// Begins or ends the repair. During the repair no namespace begins, and namespaces that do not exist cannot be read.
    pub(super) fn set_repairing(&self, is_repairing: bool) {
        self.is_repairing.send_replace(is_repairing);
    }

    /// Waits for the end of the repair. Fails after a timeout.
    pub(super) async fn wait_for_repair(&self) -> Result<(), StoreError> {
        let mut is_repairing = self.is_repairing.subscribe();
        match tokio::time::timeout(REPAIR_TIMEOUT, is_repairing.wait_for(|is_repairing| !is_repairing)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::S3(
                "the proxy still compares the index with the files since its start; no namespace can begin yet, try \
                 again later"
                    .to_owned(),
            )),
        }
    }
}

/// A remembered fact counts for a request that starts now if it is at least from this time.
pub(super) fn fresh_since() -> Instant {
    let now = Instant::now();
    now.checked_sub(FRESH_FOR).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_facts_stay_when_old_ones_are_dropped() {
        let (cache, now) = (NamespaceCache::default(), Instant::now());
        let known = |n: usize| cache.is_namespace(&n.to_string(), now);
        for n in 0..3 * MAX_FOLDERS {
            cache.remember(&n.to_string(), n % 2 == 0, now);
            assert_eq!(known(n), Some(n % 2 == 0));
        }
        assert_eq!(known(3 * MAX_FOLDERS - MAX_FOLDERS / 2), Some(true));
        assert_eq!(known(MAX_FOLDERS), None);
        let folders = lock(&cache.folders);
        assert!(folders.young.len() + folders.old.len() <= MAX_FOLDERS);
    }

    #[test]
    fn later_fact_wins() {
        let (cache, now) = (NamespaceCache::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        cache.remember("a", true, later);
        for n in 0..MAX_FOLDERS / 2 {
            cache.remember(&n.to_string(), false, now);
        }
        cache.remember("a", false, now);
        assert_eq!(cache.is_namespace("a", now), Some(true), "the later fact is in the old generation");
        cache.forget("a");
        assert_eq!(cache.is_namespace("a", now), None);
    }
}
