//! Many small first requests of a plan's steps, sent as one (capability `batch`).
//!
//! A batch is transport and nothing else: each step goes on in [`Work::run`], which finds the answer to its first
//! request there already, or asks by itself. So the rows and RESOLVE are in one place, batched or not.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use futures::FutureExt;

use crate::digest::Md5;
use crate::disk::Disk;
use crate::local::{Folder, LocalEntry};
use crate::path::RelPath;
use crate::remote::{BatchReply, BatchRequest, BodySource, PromisedDigest, Remote, RemoteError, UploadBody};
use crate::state::UploadNote;
use crate::sync::{Action, LocalState, PlanStep};

use super::World;
use super::apply::{Done, First, StepError, Upload, Work, before_delete, before_upload};
use super::batch_pacing::BatchLimits;
use super::engine::{CycleError, Engine};
use super::sent::Sent;
use super::transit::{Flight, SlowStep};

/// Batches in flight: one is read or placed here while the next is on its way and another is being committed there.
const FLYING: usize = 3;

/// Uploads that are noted together where they go one by one: more of them would be in memory for long.
const NOTED_AHEAD: usize = 64;

/// What of a plan is sent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Fewer small requests than this go one by one: a single edit must not wait for company.
    pub from: usize,
    /// Requests in one batch, at least and at most; within these a plan is spread over the batches in flight.
    pub least: usize,
    pub most: usize,
    /// Bytes of content in one batch.
    pub bytes: u64,
    /// Larger files, bytes, go by themselves.
    pub small: u64,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { from: 8, least: 64, most: 512, bytes: 4 * 1024 * 1024, small: 64 * 1024 }
    }
}

/// What is to be done next.
pub(super) enum Next<D: Disk, R: Remote> {
    /// A step by itself, perhaps with its first answer.
    One(Box<Work<D, R>>),
    /// Steps whose first requests go together, with their sizes.
    Many(Vec<(PlanStep, u64)>),
}

/// What a batch came to.
pub(super) type Batched<D> = Result<Option<Vec<Option<First<D>>>>, RemoteError>;

/// What has ended.
pub(super) enum Flown<D: Disk, R: Remote> {
    One(PlanStep, Result<Done<D>, StepError>),
    Slow(SlowStep<D, R>),
    Many(Vec<Work<D, R>>, Batched<D>),
}

/// The steps that are left, apart by the way they go.
pub(super) struct Queue<D: Disk, R: Remote> {
    /// Back from a batch.
    answered: VecDeque<Work<D, R>>,
    /// With the bytes that go up or come down.
    small: VecDeque<(PlanStep, u64)>,
    rest: VecDeque<PlanStep>,
    /// Steps at the head of `rest` whose uploads are noted.
    noted: usize,
    flying: usize,
    /// Batches in flight, at most.
    at_once: usize,
    most: usize,
    bytes: u64,
}

impl<D: Disk, R: Remote> Queue<D, R> {
    /// Nothing more is begun; what was answered is taken in still.
    pub(super) fn stop(&mut self) {
        self.small.clear();
        self.rest.clear();
        self.answered.retain_mut(|work| work.is_answered());
    }

    /// Whether nothing is left to begin.
    pub(super) fn is_empty(&self) -> bool {
        self.answered.is_empty() && self.small.is_empty() && self.rest.is_empty()
    }

    /// The next thing to do. `work`: makes a step ready to run.
    pub(super) fn next(&mut self, work: impl FnOnce(PlanStep) -> Work<D, R>) -> Option<Next<D, R>> {
        if let Some(work) = self.answered.pop_front() {
            return Some(Next::One(Box::new(work)));
        }
        if self.flying < self.at_once && !self.small.is_empty() {
            self.flying += 1;
            return Some(Next::Many(self.take()));
        }
        self.noted = self.noted.saturating_sub(1);
        self.rest.pop_front().map(|step| Next::One(Box::new(work(step))))
    }

    /// The uploads that [`Queue::next`] may begin, to be noted before it does. Many at once, because each note costs an
    /// fsync.
    pub(super) fn uploads_ahead(&mut self) -> Vec<UploadNote> {
        if !self.answered.is_empty() {
            return Vec::new();
        }
        if self.flying < self.at_once && !self.small.is_empty() {
            return self.small.iter().take(self.batch_len()).filter_map(|(step, _)| upload_of(step)).collect();
        }
        if self.noted > 0 {
            return Vec::new();
        }
        self.noted = self.rest.len().min(NOTED_AHEAD);
        self.rest.iter().take(self.noted).filter_map(upload_of).collect()
    }

    /// How many of the small steps the next batch takes.
    fn batch_len(&self) -> usize {
        let (mut bytes, mut n) = (0, 0);
        for (_, size) in self.small.iter().take(self.most) {
            bytes += size;
            if n > 0 && bytes > self.bytes {
                break;
            }
            n += 1;
        }
        n
    }

    fn take(&mut self) -> Vec<(PlanStep, u64)> {
        let n = self.batch_len();
        self.small.drain(..n).collect()
    }

    /// A batch came to nothing.
    fn unanswered(&mut self, works: Vec<Work<D, R>>) {
        for mut work in works {
            work.begin(None);
            self.answered.push_back(work);
        }
        self.singly();
    }

    /// From here on every step goes by itself.
    fn singly(&mut self) {
        self.rest.extend(self.small.drain(..).map(|(step, _)| step));
    }
}

/// The content that a step may send. That of a file which nobody has read yet is not known.
fn upload_of(step: &PlanStep) -> Option<UploadNote> {
    match step.action {
        Action::Upload { local: md5, .. } | Action::Conflict { local: md5, .. } => {
            Some(UploadNote { path: step.path.clone(), md5 })
        }
        _ => None,
    }
}

/// A file that is opened when its turn comes: a batch has many.
struct Later<D: Disk> {
    folder: Folder<D>,
    at: String,
    path: RelPath,
    md5: Md5,
    size: u64,
    sent: Sent,
    open: Option<Upload<D::File>>,
}

impl<D: Disk> BodySource for Later<D> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let upload = match &mut self.open {
            Some(upload) => upload,
            None => {
                let source = self.folder.source(&self.at, self.md5)?;
                if source.size() != self.size {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not as long as it was"));
                }
                let (path, sent) = (self.path.clone(), self.sent.clone());
                self.open.insert(Upload { source, path, sent })
            }
        };
        upload.next()
    }
}

impl<D: Disk, R: Remote> Work<D, R> {
    /// The request that [`Work::run`] begins with; `size`: of the local file.
    fn first_request(&self, size: u64) -> Option<(RelPath, BatchRequest)> {
        let ask = match self.step.action {
            Action::Upload { local, precondition, .. } => {
                let (folder, at, path) = (self.folder.clone(), self.at.clone(), self.step.path.clone());
                let source =
                    Box::new(Later { folder, at, path, md5: local, size, sent: self.sent.clone(), open: None });
                let body = UploadBody { md5: PromisedDigest::Known(local), size, source };
                before_upload();
                BatchRequest::Put { precondition, version: self.version_for(precondition), body }
            }
            Action::DeleteRemote { base } => {
                before_delete();
                BatchRequest::Delete { md5: base, version: self.version_of(base) }
            }
            Action::Download { .. } | Action::Replace { .. } | Action::Conflict { .. } => BatchRequest::Get,
            _ => return None,
        };
        Some((self.step.path.clone(), ask))
    }
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Sorts steps by the way they go.
    pub(super) fn queue(&self, steps: VecDeque<PlanStep>) -> Queue<D, R> {
        let BatchOptions { from, least, most, bytes, .. } = self.options.batch;
        let (mut small, mut rest) = (VecDeque::new(), VecDeque::new());
        for step in steps {
            match self.small_size(&step) {
                Some(size) => small.push_back((step, size)),
                None => rest.push_back(step),
            }
        }
        let most = small.len().div_ceil(FLYING).clamp(least.min(most), most.max(1));
        let BatchLimits { at_once, most, bytes } = self.pacing.limit(BatchLimits { at_once: FLYING, most, bytes });
        let mut queue = Queue { answered: VecDeque::new(), small, rest, noted: 0, flying: 0, at_once, most, bytes };
        if queue.small.len() < from {
            queue.singly();
        }
        queue
    }

    /// The bytes that the step's first request carries one way or the other, where it may go in a batch.
    fn small_size(&self, step: &PlanStep) -> Option<u64> {
        let size = match step.action {
            Action::Upload { local, .. } => match self.tree.found().get(&step.path) {
                Some(LocalEntry { local: LocalState::File(md5), size, .. }) if *md5 == local => *size,
                _ => return None,
            },
            Action::Download { .. } | Action::Replace { .. } | Action::Conflict { .. } => {
                self.index.as_ref()?.files.get(&step.path).filter(|e| !e.is_deleted)?.size
            }
            Action::DeleteRemote { .. } => 0,
            _ => return None,
        };
        (size <= self.options.batch.small).then_some(size)
    }

    /// The request of a batch, on its own so that several can be under way.
    pub(super) fn batch(&self, steps: Vec<(PlanStep, u64)>) -> Flight<D, R> {
        let remote = self.remote.clone();
        let (mut works, mut requests) = (Vec::with_capacity(steps.len()), Vec::with_capacity(steps.len()));
        for (step, size) in steps {
            let work = self.work(step);
            requests.extend(work.first_request(size));
            works.push(work);
        }
        async move {
            match remote.batch(requests).await {
                // The files are written while other batches are on their way.
                Ok(Some(answers)) if answers.len() == works.len() => {
                    W::aside(move || {
                        let begin = |(work, answer): (&Work<D, R>, Option<BatchReply>)| work.stage(answer?);
                        let first = works.iter().zip(answers).map(begin).collect();
                        Flown::Many(works, Ok(Some(first)))
                    })
                    .await
                }
                Ok(Some(_)) => Flown::Many(works, Ok(Some(Vec::new()))),
                Ok(None) => Flown::Many(works, Ok(None)),
                Err(e) => Flown::Many(works, Err(e)),
            }
        }
        .boxed()
    }

    /// Takes a batch's answers in. `Some`: the cycle cannot go on.
    pub(super) fn batched(
        &mut self,
        works: Vec<Work<D, R>>,
        batched: Batched<D>,
        queue: &mut Queue<D, R>,
    ) -> Option<CycleError> {
        queue.flying -= 1;
        match batched {
            Ok(Some(answers)) if answers.len() == works.len() => {
                self.pacing.note_answer();
                for (mut work, first) in works.into_iter().zip(answers) {
                    work.begin(first);
                    queue.answered.push_back(work);
                }
            }
            Ok(None) => queue.unanswered(works),
            Ok(Some(_)) => {
                if self.pacing.note_failure(false) {
                    tracing::warn!("the proxy did not answer every request of a batch; they are sent one by one");
                }
                queue.unanswered(works);
            }
            Err(e) => {
                let is_first = self.pacing.note_failure(matches!(e, RemoteError::Unreachable { .. }));
                if e.ends_cycle() && !e.is_forbidden() {
                    return Some(CycleError::Remote(e));
                }
                if is_first {
                    tracing::warn!("a batch failed, so its requests are sent one by one: {e}");
                }
                queue.unanswered(works);
            }
        }
        None
    }
}
