//! Sends changes to subscribers. A bucket does not number changes, so each process counts on its own.

use std::sync::Mutex;

use tokio::sync::broadcast;

use super::super::{BACKLOG, BlobChange, BlobChanges, lock};
use crate::path::RelPath;

/// Numbers changes and sends them to all subscribers in this order.
pub(super) struct ChangeFeed {
    changes: broadcast::Sender<BlobChanges>,
    /// The last number. Locked while a group is sent, so that groups arrive in the order of their numbers. A subscriber
    /// ignores lower numbers.
    last: Mutex<u64>,
}

impl Default for ChangeFeed {
    fn default() -> Self {
        Self { changes: broadcast::channel(BACKLOG).0, last: Mutex::default() }
    }
}

impl ChangeFeed {
    pub(super) fn send(&self, ns: &str, paths: Vec<RelPath>) {
        let mut last = lock(&self.last);
        let change = |path| {
            *last += 1;
            BlobChange { cursor: *last, ns: ns.to_owned(), path }
        };
        // An error means that there are no subscribers.
        drop(self.changes.send(paths.into_iter().map(change).collect()));
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<BlobChanges> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_arrive_in_the_order_of_their_numbers() {
        const INDEXES: usize = 8;
        const GROUPS: usize = BACKLOG / INDEXES;
        let feed = ChangeFeed::default();
        let mut changes = feed.subscribe();
        let paths: Vec<RelPath> = (0..50).map(|n| RelPath::parse(&format!("{n}.md")).unwrap()).collect();
        std::thread::scope(|scope| {
            for index in 0..INDEXES {
                let (feed, paths) = (&feed, &paths);
                scope.spawn(move || {
                    for _ in 0..GROUPS {
                        feed.send(&index.to_string(), paths.clone());
                    }
                });
            }
        });
        let mut next = 1;
        for _ in 0..INDEXES * GROUPS {
            for change in changes.try_recv().unwrap().iter() {
                assert_eq!(change.cursor, next);
                next += 1;
            }
        }
        assert_eq!(next, (INDEXES * GROUPS * paths.len()) as u64 + 1);
    }
}
