//! [`PushMonitor`]: detects a proxy whose events never arrive. A reverse proxy that buffers answers swallows them without
//! an error, and changes are then found by polling only.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Changes of the index in a row without an event that mean that no events arrive.
const MAX_SILENT_CHANGES: u32 = 3;

/// Counts the events and the index changes of one folder.
#[derive(Debug, Default)]
pub(super) struct PushMonitor {
    events: AtomicU64,
    /// `events` at the last change of the index.
    events_at_change: AtomicU64,
    /// Changes of the index since the last event.
    silent_changes: AtomicU32,
}

impl PushMonitor {
    pub(super) fn note_event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_index_change(&self) {
        let events = self.events.load(Ordering::Relaxed);
        if self.events_at_change.swap(events, Ordering::Relaxed) == events {
            self.silent_changes.fetch_add(1, Ordering::Relaxed);
        } else {
            self.silent_changes.store(0, Ordering::Relaxed);
        }
    }

    /// True: the index changed several times, and no event arrived.
    pub(super) fn is_silent(&self) -> bool {
        let has_event = self.events.load(Ordering::Relaxed) != self.events_at_change.load(Ordering::Relaxed);
        !has_event && self.silent_changes.load(Ordering::Relaxed) >= MAX_SILENT_CHANGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_is_silent_after_changes_without_events() {
        let push = PushMonitor::default();
        for _ in 0..MAX_SILENT_CHANGES {
            assert!(!push.is_silent());
            push.note_index_change();
        }
        assert!(push.is_silent());
        push.note_event();
        assert!(!push.is_silent(), "the event arrived late");
        push.note_index_change();
        assert!(!push.is_silent());
        for _ in 0..MAX_SILENT_CHANGES {
            push.note_index_change();
        }
        assert!(push.is_silent());
    }
}
