//! [`JobQueue`]: the work that the threads of a scan share.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A queue that ends when it is empty and no thread is busy, because a job may add others.
pub(super) struct JobQueue<J> {
    state: Mutex<QueueState<J>>,
    wake: Condvar,
}

struct QueueState<J> {
    jobs: Vec<J>,
    busy: usize,
    /// Ends the scan.
    error: Option<io::Error>,
}

impl<J> JobQueue<J> {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(QueueState { jobs: Vec::new(), busy: 0, error: None }), wake: Condvar::new() }
    }

    pub(super) fn push(&self, job: J) {
        self.lock().jobs.push(job);
        self.wake.notify_one();
    }

    /// Ends the scan with an error. The first error counts.
    pub(super) fn fail(&self, e: io::Error) {
        self.lock().error.get_or_insert(e);
    }

    /// Waits for the next job. Returns `None` when no job can come any more. Call [`JobQueue::done`] after each job.
    pub(super) fn next(&self) -> Option<J> {
        let mut queue = self.lock();
        loop {
            if queue.error.is_some() {
                queue.jobs.clear();
            }
            if let Some(job) = queue.jobs.pop() {
                queue.busy += 1;
                return Some(job);
            }
            if queue.busy == 0 {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn done(&self) {
        let mut queue = self.lock();
        queue.busy -= 1;
        if queue.busy == 0 {
            self.wake.notify_all();
        }
    }

    /// The error that ended the scan, if any.
    pub(super) fn finish(self) -> io::Result<()> {
        let queue = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        queue.error.map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, QueueState<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
