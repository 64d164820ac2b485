//! What namespaces hold, as their indexes say: exact enough for quotas, and cheap.

use std::time::{Duration, Instant};

use super::super::StoreError;
use super::inner::{Inner, lock};
use crate::path::RelPath;

/// How long what other proxies wrote may go uncounted.
const COUNTED_FOR: Duration = Duration::from_secs(5);

/// Beyond this many namespaces, those whose time is over are not kept.
const COUNTED: usize = 1024;

impl Inner {
    /// The bytes of a namespace's live entries.
    pub async fn usage(&self, ns: &str) -> Result<u64, StoreError> {
        let ledger = self.ledger(ns)?;
        // What this process wrote is in what was last seen.
        let is_known = lock(&self.counted).get(ns).is_some_and(|at| at.elapsed() < COUNTED_FOR);
        let kept = match ledger.kept().filter(|_| is_known) {
            Some(kept) => kept,
            None => {
                let (now, kept) = (Instant::now(), ledger.fresh().await?);
                let mut counted = lock(&self.counted);
                if counted.len() >= COUNTED {
                    counted.retain(|_, at| at.elapsed() < COUNTED_FOR);
                }
                counted.insert(ns.to_owned(), now);
                kept
            }
        };
        Ok(kept.document.rows.values().map(|row| row.size).sum())
    }

    /// The bytes that each path holds, as far as the index tells, which whoever counts has just had read.
    pub async fn held_bytes(&self, ns: &str, paths: &[RelPath]) -> Result<Vec<u64>, StoreError> {
        let ledger = self.ledger(ns)?;
        let kept = match ledger.kept() {
            Some(kept) => kept,
            None => ledger.fresh().await?,
        };
        let rows = &kept.document.rows;
        Ok(paths.iter().map(|path| rows.get(path).map_or(0, |row| row.size)).collect())
    }
}
