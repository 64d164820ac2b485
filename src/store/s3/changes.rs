//! Changes as subscribers hear of them. The bucket numbers none, so each process counts for itself.

use std::sync::{Mutex, PoisonError};

use tokio::sync::broadcast;

use super::super::{BACKLOG, BlobChange, BlobChanges};
use crate::path::RelPath;

/// Tells all subscribers of what changed, in the order of the numbers that it gives.
pub struct Announcer {
    changes: broadcast::Sender<BlobChanges>,
    /// The last number given. Held while a group is sent: a group that came after one with higher numbers would be
    /// taken for known.
    last: Mutex<u64>,
}

impl Default for Announcer {
    fn default() -> Self {
        Self { changes: broadcast::channel(BACKLOG).0, last: Mutex::default() }
    }
}

impl Announcer {
    pub fn tell(&self, ns: &str, paths: Vec<RelPath>) {
        // A number that was given and not sent is only left out.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let change = |path| {
            *last += 1;
            BlobChange { cursor: *last, ns: ns.to_owned(), path }
        };
        // An error only says that nobody listens.
        drop(self.changes.send(paths.into_iter().map(change).collect()));
    }

    pub fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_many_ledgers_come_in_the_order_of_their_numbers() {
        const LEDGERS: usize = 8;
        const GROUPS: usize = BACKLOG / LEDGERS;
        let announcer = Announcer::default();
        let mut heard = announcer.subscribe();
        let paths: Vec<RelPath> = (0..50).map(|n| RelPath::parse(&format!("{n}.md")).unwrap()).collect();
        std::thread::scope(|scope| {
            for ledger in 0..LEDGERS {
                let (announcer, paths) = (&announcer, &paths);
                scope.spawn(move || {
                    for _ in 0..GROUPS {
                        announcer.tell(&ledger.to_string(), paths.clone());
                    }
                });
            }
        });
        let mut next = 1;
        for _ in 0..LEDGERS * GROUPS {
            for change in heard.try_recv().unwrap().iter() {
                assert_eq!(change.cursor, next);
                next += 1;
            }
        }
        assert_eq!(next, (LEDGERS * GROUPS * paths.len()) as u64 + 1);
    }
}
