//! Sizes of namespaces and paths, from the index: exact enough for quotas, and cheap.

use std::time::{Duration, Instant};

use super::super::StoreError;
use super::core::{S3Core, lock};
use crate::path::RelPath;

/// Writes of other proxies may be counted this late.
const FRESH_FOR: Duration = Duration::from_secs(5);
/// With more namespaces than this, stale times are dropped.
const MAX_NAMESPACES: usize = 1024;

impl S3Core {
    /// The bytes of a namespace's live entries.
    pub(super) async fn usage(&self, ns: &str) -> Result<u64, StoreError> {
        let index = self.index(ns)?;
        // The cached index has all writes of this process.
        let is_fresh = lock(&self.usage_read_at).get(ns).is_some_and(|at| at.elapsed() < FRESH_FOR);
        let latest = match index.cached().filter(|_| is_fresh) {
            Some(cached) => cached,
            None => {
                let (now, latest) = (Instant::now(), index.fresh().await?);
                let mut read_at = lock(&self.usage_read_at);
                if read_at.len() >= MAX_NAMESPACES {
                    read_at.retain(|_, at| at.elapsed() < FRESH_FOR);
                }
                read_at.insert(ns.to_owned(), now);
                latest
            }
        };
        Ok(latest.document.rows.values().map(|row| row.size).sum())
    }

    /// The size of each path by the cached index, which a caller has usually just read for [`S3Core::usage`].
    pub(super) async fn held_bytes(&self, ns: &str, paths: &[RelPath]) -> Result<Vec<u64>, StoreError> {
        let index = self.index(ns)?.cached_or_fresh().await?;
        Ok(paths.iter().map(|path| index.document.rows.get(path).map_or(0, |row| row.size)).collect())
    }
}
