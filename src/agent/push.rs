//! [`Push`]: whether the proxy's events come. A front that keeps answers back swallows them, and nothing fails: changes
//! are then found only by asking.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// So many changes of the index in a row, none of them told, mean that events do not come.
const UNTOLD: u32 = 3;

/// Counts the events and the index changes of one folder.
#[derive(Debug, Default)]
pub struct Push {
    /// Events that came so far.
    heard: AtomicU64,
    /// As many had come when the index had last changed.
    heard_before: AtomicU64,
    /// Changes of the index since then.
    untold: AtomicU32,
}

impl Push {
    /// An event came.
    pub fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// The index was not what it had been.
    pub fn index_changed(&self) {
        let heard = self.heard.load(Ordering::Relaxed);
        if self.heard_before.swap(heard, Ordering::Relaxed) == heard {
            self.untold.fetch_add(1, Ordering::Relaxed);
        } else {
            self.untold.store(0, Ordering::Relaxed);
        }
    }

    /// True if the index changed again and again and no event came.
    pub fn is_silent(&self) -> bool {
        let came = self.heard.load(Ordering::Relaxed) != self.heard_before.load(Ordering::Relaxed);
        !came && self.untold.load(Ordering::Relaxed) >= UNTOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_is_silent_after_untold_changes() {
        let push = Push::default();
        for _ in 0..UNTOLD {
            assert!(!push.is_silent());
            push.index_changed();
        }
        assert!(push.is_silent());
        push.hear();
        assert!(!push.is_silent(), "it came after all");
        push.index_changed();
        assert!(!push.is_silent());
        for _ in 0..UNTOLD {
            push.index_changed();
        }
        assert!(push.is_silent());
    }
}
