//! Batches: many small first requests of a plan's steps, sent as one (capability `batch`).
//!
//! A batch is transport only. Each step goes on in [`StepWork::run`], which takes the answer to its first request from
//! the batch, or sends the request by itself.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures::FutureExt;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::LocalEntry;
use crate::path::RelPath;
use crate::remote::{BatchReply, BatchRequest, GetReply, PromisedDigest, Remote, RemoteError, UploadBody};
use crate::state::UploadNote;
use crate::sync::{Action, LocalState, PlanStep};

use super::parts::CycleParts;
use super::ports::BatchOptions;
use super::step::{FirstAnswer, StepWork, before_delete};
use super::transit::{BatchLimits, BatchPacing, BatchResult, FlightResult, StepFlight};
use super::upload::before_upload;

/// Batches in flight: while one is on its way, another is read or staged here, and a third is committed on the proxy.
const BATCHES_IN_FLIGHT: usize = 3;

/// Uploads that are noted together where they are sent one by one. More of them would stay in memory for long.
const NOTED_AHEAD: usize = 64;

/// The next flight of a queue.
pub(super) enum NextFlight<D: Disk, R: Remote> {
    /// One step, with its first answer if a batch brought that.
    Step(Box<StepWork<D, R>>),
    /// Steps whose first requests go together, with their sizes in bytes.
    Batch(Vec<(PlanStep, u64)>),
}

/// The steps that are left, by the way they are sent.
pub(super) struct StepQueue<D: Disk, R: Remote> {
    /// Steps whose batch has ended.
    answered: VecDeque<StepWork<D, R>>,
    /// Steps for batches, with their size in bytes.
    small: VecDeque<(PlanStep, u64)>,
    single: VecDeque<PlanStep>,
    /// Steps at the head of `single` whose uploads are noted.
    noted: usize,
    batches_in_flight: usize,
    limits: BatchLimits,
}

impl<D: Disk, R: Remote> StepQueue<D, R> {
    /// Sorts steps by the way they are sent.
    pub(super) fn new<W: World>(parts: &CycleParts<D, R, W>, steps: VecDeque<PlanStep>) -> Self {
        let BatchOptions { from, least, most, bytes, .. } = parts.ports.options.batch;
        let (mut small, mut single) = (VecDeque::new(), VecDeque::new());
        for step in steps {
            match batched_size(parts, &step) {
                Some(size) => small.push_back((step, size)),
                None => single.push_back(step),
            }
        }
        let most = small.len().div_ceil(BATCHES_IN_FLIGHT).clamp(least.min(most), most.max(1));
        let limits = parts.transfers.pacing.limit(BatchLimits { at_once: BATCHES_IN_FLIGHT, most, bytes });
        let mut queue = Self { answered: VecDeque::new(), small, single, noted: 0, batches_in_flight: 0, limits };
        if queue.small.len() < from {
            queue.send_one_by_one();
        }
        queue
    }

    /// Begins no further step. Answers that have arrived are still taken in.
    pub(super) fn stop(&mut self) {
        self.small.clear();
        self.single.clear();
        self.answered.retain_mut(StepWork::is_answered);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answered.is_empty() && self.small.is_empty() && self.single.is_empty()
    }

    /// The next flight. `prepare`: makes a step ready to run.
    pub(super) fn next(&mut self, prepare: impl FnOnce(PlanStep) -> StepWork<D, R>) -> Option<NextFlight<D, R>> {
        if let Some(work) = self.answered.pop_front() {
            return Some(NextFlight::Step(Box::new(work)));
        }
        if self.may_send_batch() {
            self.batches_in_flight += 1;
            let len = self.batch_len();
            return Some(NextFlight::Batch(self.small.drain(..len).collect()));
        }
        self.noted = self.noted.saturating_sub(1);
        self.single.pop_front().map(|step| NextFlight::Step(Box::new(prepare(step))))
    }

    /// The uploads that [`StepQueue::next`] may begin, to be noted before. They are noted together, because each note
    /// costs an fsync.
    pub(super) fn uploads_ahead(&mut self) -> Vec<UploadNote> {
        if !self.answered.is_empty() {
            return Vec::new();
        }
        if self.may_send_batch() {
            return self.small.iter().take(self.batch_len()).filter_map(|(step, _)| upload_note(step)).collect();
        }
        if self.noted > 0 {
            return Vec::new();
        }
        self.noted = self.single.len().min(NOTED_AHEAD);
        self.single.iter().take(self.noted).filter_map(upload_note).collect()
    }

    fn may_send_batch(&self) -> bool {
        self.batches_in_flight < self.limits.at_once && !self.small.is_empty()
    }

    /// The number of small steps in the next batch.
    fn batch_len(&self) -> usize {
        let (mut bytes, mut len) = (0, 0);
        for (_, size) in self.small.iter().take(self.limits.most) {
            bytes += size;
            if len > 0 && bytes > self.limits.bytes {
                break;
            }
            len += 1;
        }
        len
    }

    fn send_one_by_one(&mut self) {
        self.single.extend(self.small.drain(..).map(|(step, _)| step));
    }

    /// Takes in how a batch ended. The steps of a failed batch are sent one by one. An error ends the cycle.
    pub(super) fn take_batch(
        &mut self,
        works: Vec<StepWork<D, R>>,
        result: BatchResult<D>,
        pacing: &mut BatchPacing,
    ) -> Result<(), RemoteError> {
        self.batches_in_flight -= 1;
        match result {
            Ok(Some(answers)) if answers.len() == works.len() => {
                pacing.note_answer();
                for (mut work, first) in works.into_iter().zip(answers) {
                    work.set_first(first);
                    self.answered.push_back(work);
                }
                return Ok(());
            }
            Ok(None) => {}
            Ok(Some(_)) => {
                if pacing.note_failure(false) {
                    tracing::warn!("the proxy did not answer every request of a batch; they are sent one by one");
                }
            }
            Err(e) => {
                let is_first = pacing.note_failure(matches!(e, RemoteError::Unreachable { .. }));
                // A key that may not write may still read: each request finds out.
                if e.ends_cycle() && !e.is_forbidden() {
                    return Err(e);
                }
                if is_first {
                    tracing::warn!("a batch failed, so its requests are sent one by one: {e}");
                }
            }
        }
        for mut work in works {
            work.set_first(None);
            self.answered.push_back(work);
        }
        self.send_one_by_one();
        Ok(())
    }
}

impl<D: Disk, R: Remote> StepWork<D, R> {
    /// Takes the answer that a batch brought. `None`: the step sends its first request by itself.
    fn set_first(&mut self, first: Option<FirstAnswer<D>>) {
        if first.is_none() {
            // The batch may have arrived all the same.
            self.sent_before = self.uploads.contents(&self.step.path);
        }
        self.first = Mutex::new(first);
    }

    fn is_answered(&mut self) -> bool {
        self.first.get_mut().is_ok_and(|first| first.is_some())
    }

    /// Stages a download that a batch brought. Other answers wait for [`StepWork::run`].
    fn stage_first(&self, answer: BatchReply) -> Option<FirstAnswer<D>> {
        match (answer, &self.step.action) {
            (BatchReply::Got(GetReply::Found(blob)), Action::Download { .. }) => {
                let (version, device) = (blob.version, blob.device.clone());
                // The blob of a batch is in memory, so this never waits.
                let staged = self.fetch(blob).now_or_never()?;
                Some(FirstAnswer::Staged { version, device, staged })
            }
            (answer, _) => Some(FirstAnswer::Answer(answer)),
        }
    }
}

/// The content that a step may send. `None` also for a file that was not read yet.
fn upload_note(step: &PlanStep) -> Option<UploadNote> {
    match step.action {
        Action::Upload { local: md5, .. } | Action::Conflict { local: md5, .. } => {
            Some(UploadNote { path: step.path.clone(), md5 })
        }
        _ => None,
    }
}

/// The bytes of the step's first request or of its answer, where it may go in a batch.
fn batched_size<D: Disk, R: Remote, W: World>(parts: &CycleParts<D, R, W>, step: &PlanStep) -> Option<u64> {
    let size = match step.action {
        Action::Upload { local, .. } => match parts.observed.found(&step.path) {
            Some(LocalEntry { local: LocalState::File(md5), size, .. }) if *md5 == local => *size,
            _ => return None,
        },
        Action::Download { .. } | Action::Replace { .. } | Action::Conflict { .. } => {
            parts.observed.listed(&step.path).filter(|entry| !entry.is_deleted)?.size
        }
        Action::DeleteRemote { .. } => 0,
        _ => return None,
    };
    (size <= parts.ports.options.batch.small).then_some(size)
}

/// The request that [`StepWork::run`] begins with. `size`: the bytes of the local file.
fn first_request<D: Disk, R: Remote>(work: &StepWork<D, R>, size: u64) -> Option<(RelPath, BatchRequest)> {
    let ask = match work.step.action {
        Action::Upload { local, precondition, .. } => {
            let source = Box::new(work.lazy_source(local, size));
            let body = UploadBody { md5: PromisedDigest::Known(local), size, source };
            before_upload();
            BatchRequest::Put { precondition, version: work.first_attempt(precondition).version, body }
        }
        Action::DeleteRemote { base } => {
            before_delete();
            BatchRequest::Delete { md5: base, version: work.version_of(base) }
        }
        Action::Download { .. } | Action::Replace { .. } | Action::Conflict { .. } => BatchRequest::Get,
        _ => return None,
    };
    Some((work.step.path.clone(), ask))
}

/// Sends the first requests of the steps as one batch.
pub(super) fn send_batch<D: Disk, R: Remote, W: World>(
    parts: &CycleParts<D, R, W>,
    steps: Vec<(PlanStep, u64)>,
) -> StepFlight<D, R> {
    let remote = parts.ports.remote.clone();
    let (mut works, mut requests) = (Vec::with_capacity(steps.len()), Vec::with_capacity(steps.len()));
    for (step, size) in steps {
        let work = parts.prepare(step);
        requests.extend(first_request(&work, size));
        works.push(work);
    }
    async move {
        match remote.batch(requests).await {
            // Downloads are staged while other batches are in flight.
            Ok(Some(answers)) if answers.len() == works.len() => {
                W::aside(move || {
                    let stage = |(work, answer): (&StepWork<D, R>, Option<BatchReply>)| work.stage_first(answer?);
                    let first = works.iter().zip(answers).map(stage).collect();
                    FlightResult::Batch(works, Ok(Some(first)))
                })
                .await
            }
            Ok(Some(_)) => FlightResult::Batch(works, Ok(Some(Vec::new()))),
            Ok(None) => FlightResult::Batch(works, Ok(None)),
            Err(e) => FlightResult::Batch(works, Err(e)),
        }
    }
    .boxed()
}
