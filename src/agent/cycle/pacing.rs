//! [`BatchPacing`]: smaller batches on a link that cannot carry large ones, and one warning while batches fail.

/// Batches are halved at most this often. They are then as small as a single large request.
const MAX_HALVINGS: u32 = 6;

/// How much is sent at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchLimits {
    /// Batches in flight.
    pub at_once: usize,
    /// Requests in one batch.
    pub most: usize,
    /// Bytes of content in one batch.
    pub bytes: u64,
}

/// How the last batches went.
#[derive(Debug, Default)]
pub(super) struct BatchPacing {
    halvings: u32,
    is_failing: bool,
}

impl BatchPacing {
    /// The limits that the link can carry. After a lost batch they are smaller, and batches go one after another.
    pub(super) fn limit(&self, full: BatchLimits) -> BatchLimits {
        if self.halvings == 0 {
            return full;
        }
        BatchLimits { at_once: 1, most: (full.most >> self.halvings).max(1), bytes: full.bytes >> self.halvings }
    }

    /// Notes a batch that was answered whole.
    pub(super) fn note_answer(&mut self) {
        self.halvings = self.halvings.saturating_sub(1);
        self.is_failing = false;
    }

    /// Notes a failed batch; `is_lost`: no answer came. True for the first failure since the last answer, which is to
    /// be logged.
    pub(super) fn note_failure(&mut self, is_lost: bool) -> bool {
        if is_lost {
            self.halvings = (self.halvings + 1).min(MAX_HALVINGS);
        }
        !std::mem::replace(&mut self.is_failing, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: BatchLimits = BatchLimits { at_once: 3, most: 512, bytes: 1 << 22 };

    #[test]
    fn batches_shrink_while_they_are_lost() {
        let mut pacing = BatchPacing::default();
        assert_eq!(pacing.limit(FULL), FULL);
        pacing.note_failure(true);
        assert_eq!(pacing.limit(FULL), BatchLimits { at_once: 1, most: 256, bytes: 1 << 21 });
        for _ in 0..20 {
            pacing.note_failure(true);
        }
        assert_eq!(pacing.limit(FULL), BatchLimits { at_once: 1, most: 8, bytes: 1 << 16 });
        (0..MAX_HALVINGS).for_each(|_| pacing.note_answer());
        assert_eq!(pacing.limit(FULL), FULL);
    }

    #[test]
    fn refused_batch_keeps_its_size() {
        let mut pacing = BatchPacing::default();
        pacing.note_failure(false);
        assert_eq!(pacing.limit(FULL), FULL);
    }

    #[test]
    fn failing_batches_are_logged_once() {
        let mut pacing = BatchPacing::default();
        assert_eq!([true, false, true].map(|is_lost| pacing.note_failure(is_lost)), [true, false, false]);
        pacing.note_answer();
        assert!(pacing.note_failure(false), "it is another failure");
    }
}
