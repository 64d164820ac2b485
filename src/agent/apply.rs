//! One action of the plan, carried out against the proxy: the rows' right-hand column, and RESOLVE.
//!
//! Nothing here writes to the user's files. A step ends in a [`Done`], and the cycle performs the moves and commits
//! the base by the batch.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile};
use crate::failpoint;
use crate::local::source::{FileDigest, FileSource};
use crate::local::stage::StagedFile;
use crate::local::{FileMove, Folder};
use crate::path::RelPath;
use crate::protocol::IndexEntry;
use crate::remote::{
    BatchReply, BodySource, DeleteReply, GetReply, PromisedDigest, PutReply, Remote, RemoteBlob, RemoteError,
    UploadBody,
};
use crate::sync::{Action, Base, PlanStep, Precondition};

use super::heal::HealTimes;
use super::sent::Sent;

/// Compare-and-swap attempts for one path in one cycle (invariant 12).
pub(super) const ATTEMPTS: usize = 3;

/// What the proxy's side of a step came to.
pub enum Done<D: Disk> {
    /// Nothing is to be changed: the index was stale, or another cycle will know more.
    Nothing,
    /// Base := seen.
    Seen(Md5),
    /// The proxy has deleted this content because of us. Base := seen.
    Deleted(Md5),
    /// Base forgets the path.
    Forget,
    /// Both sides hold this content; once the local file is durable, base := it.
    Agreed { md5: Md5, version: u64, uploaded: bool },
    /// The same, of a file that was digested while it went up.
    Read { digested: FileDigest, version: u64 },
    /// The blob was deleted, though the index does not say so (rows 5, 6, 13, 15, 17 and 18, RESOLVE of row 4). The next plan
    /// knows of this tombstone. It obeys it by row 7 or 14, which the gate counts, or uploads by row 8 or 19.
    Gone(Md5),
    /// The blob is what base says, though the index names another content (row 11). The next plan knows so and goes by
    /// row 9, which the gate counts.
    Unchanged(Md5),
    /// The blob is gone, though a weak index names it as live. The deletion of this content was repeated, so that the
    /// index learns of it.
    DeletedAgain(Md5),
    /// A change to the folder; once it is made, base := this.
    /// `device`: the machine that the new content comes from.
    Move { step: Box<FileMove<D>>, base: Base, version: u64, device: Option<String> },
}

/// Why a step came to nothing.
#[derive(Debug)]
pub enum StepError {
    Remote(RemoteError),
    /// The proxy answers, and does not let this key write the path (403).
    Forbidden(RemoteError),
    /// The local file could not be read, or the download not be staged.
    Local(io::Error),
    /// The local file is not what the scan saw: look again.
    Changed,
}

impl From<RemoteError> for StepError {
    fn from(e: RemoteError) -> Self {
        Self::Remote(e)
    }
}

/// All that a step needs, on its own so that many can be under way.
pub struct Work<D: Disk, R: Remote> {
    pub folder: Folder<D>,
    pub remote: Arc<R>,
    pub step: PlanStep,
    /// What the path is called on the disk.
    pub at: String,
    /// What both sides last agreed on.
    pub base: Option<Md5>,
    /// What was sent earlier without hearing whether it arrived.
    pub sent: Sent,
    /// What of that was sent before this step began, or before the last request of it that nobody heard of.
    pub sent_before: BTreeSet<Md5>,
    /// Bytes; larger files take no part.
    pub max_file_size: u64,
    /// The version token that base holds.
    pub version: u64,
    /// What the index says of the path. A hint, but its md5 and its version belong together.
    pub listed: Option<IndexEntry>,
    /// Whether an index entry is evidence (capability `strong-index`).
    pub strong: bool,
    /// When entries of a weak index were healed.
    pub heals: HealTimes,
    /// When the step was made ready, by the clock of [`super::World::elapsed`].
    pub now: Duration,
    /// The tombstone of the path that we have obeyed.
    pub seen: Option<Md5>,
    /// What came of the first request, where that went in a batch.
    pub first: Mutex<Option<First<D>>>,
}

/// What a batch brought for a step.
pub enum First<D: Disk> {
    Answer(BatchReply),
    /// A download, written to the stage already.
    Staged {
        version: u64,
        device: Option<String>,
        staged: Result<StagedFile<D>, StepError>,
    },
}

/// A file on its way up, noted as sent once it is whole.
pub(super) struct Upload<F: DiskFile> {
    pub source: FileSource<F>,
    pub path: RelPath,
    pub sent: Sent,
}

impl<F: DiskFile> BodySource for Upload<F> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let piece = self.source.next_piece()?;
        if let Some(md5) = self.source.whole() {
            self.sent.note(&self.path, md5);
        }
        Ok(piece)
    }
}

/// The error of a write. A refused write (403) concerns its path alone: the key may still read everything.
fn write_error(e: RemoteError) -> StepError {
    match e {
        // The source checks itself and refuses a file that is being written.
        RemoteError::Source(_) => StepError::Changed,
        e if e.is_forbidden() => StepError::Forbidden(e),
        e => StepError::Remote(e),
    }
}

/// A file that is gone is for the next scan.
fn unreadable(e: io::Error) -> StepError {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => StepError::Changed,
        _ => StepError::Local(e),
    }
}

/// Passed before an upload is sent, in whatever way.
pub(super) fn before_upload() {
    failpoint::pass("upload.before");
}

/// Passed when an upload was answered.
fn after_upload() {
    failpoint::pass("upload.acknowledged");
}

/// Passed before a deletion is sent, in whatever way.
pub(super) fn before_delete() {
    failpoint::pass("delete.before");
}

impl<D: Disk, R: Remote> Work<D, R> {
    /// Takes what a batch brought of the first request; `None`: it is still to be asked.
    pub(super) fn begin(&mut self, first: Option<First<D>>) {
        if first.is_none() {
            // The batch may have arrived all the same.
            self.sent_before = self.sent.to(&self.step.path);
        }
        self.first = Mutex::new(first);
    }

    pub(super) fn is_answered(&mut self) -> bool {
        self.first.get_mut().is_ok_and(|first| first.is_some())
    }

    /// Puts a download that a batch brought into the stage; other answers are for [`Work::run`].
    pub(super) fn stage(&self, answer: BatchReply) -> Option<First<D>> {
        match (answer, &self.step.action) {
            (BatchReply::Got(GetReply::Found(blob)), Action::Download { .. }) => {
                let (version, device) = (blob.version, blob.device.clone());
                // What a batch brings is there: there is nothing to wait for.
                let staged = self.fetch(blob).now_or_never()?;
                Some(First::Staged { version, device, staged })
            }
            (answer, _) => Some(First::Answer(answer)),
        }
    }

    /// What a batch brought, once.
    fn take_first(&self) -> Option<First<D>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The answer that a batch brought, once.
    fn take_answer(&self) -> Option<BatchReply> {
        match self.take_first() {
            Some(First::Answer(answer)) => Some(answer),
            _ => None,
        }
    }

    async fn get(&self) -> Result<GetReply, StepError> {
        match self.take_answer() {
            Some(BatchReply::Got(got)) => Ok(got),
            _ => Ok(self.remote.get(self.path()).await?),
        }
    }

    /// Carries the step out, as far as the proxy is concerned.
    pub async fn run(&self) -> Result<Done<D>, StepError> {
        match self.step.action.clone() {
            Action::Skip(_) => Ok(Done::Nothing),
            Action::RecordSeen { tombstone } => Ok(Done::Seen(tombstone)),
            Action::Adopt { local } => {
                Ok(Done::Agreed { md5: local, version: self.version_of(local), uploaded: false })
            }
            Action::Download { .. } => self.download().await,
            Action::Upload { local, precondition, tombstone } => {
                self.upload(local, precondition, self.version_for(precondition), tombstone).await
            }
            Action::UploadUnread => self.upload_unread().await,
            Action::Conflict { local, base } => self.conflict(local, base).await,
            Action::Obey { local, base, tombstone } => self.obey(local, base, tombstone).await,
            Action::DeleteRemote { base } => self.delete(base).await,
            Action::Replace { base } => self.replace(base).await,
            Action::Probe { base } => self.probe(base).await,
        }
    }

    fn path(&self) -> &RelPath {
        &self.step.path
    }

    /// The newest version that is known of a content which we hold or held; 0 where none is. Invariant 4: whoever
    /// names it names that content, so the index's word will do where it says the same md5.
    pub(super) fn version_of(&self, md5: Md5) -> u64 {
        let base = if self.base == Some(md5) { self.version } else { 0 };
        let listed = self.listed.filter(|e| e.md5 == md5 && !e.is_deleted).map_or(0, |e| e.version);
        base.max(listed)
    }

    /// The version that a step's first upload sends along.
    pub(super) fn version_for(&self, precondition: Precondition) -> u64 {
        match precondition {
            Precondition::New => 0,
            Precondition::Holds(md5) => self.version_of(md5),
        }
    }

    /// Content that this folder held and its user replaced: base, or an upload whose reply was lost. It is no edit of
    /// somebody else's.
    fn is_ours(&self, md5: Md5) -> bool {
        Some(md5) == self.base || self.sent.is_from_here(self.path(), md5)
    }

    /// Rows 2, 11 and 21.
    async fn download(&self) -> Result<Done<D>, StepError> {
        let (version, device, staged) = match self.take_first() {
            Some(First::Staged { version, device, staged }) => (version, device, staged?),
            first => {
                let got = match first {
                    Some(First::Answer(BatchReply::Got(got))) => got,
                    _ => self.remote.get(self.path()).await?,
                };
                match got {
                    GetReply::Absent { tombstone } => return self.not_found(tombstone).await,
                    // The index names what was there before base, and the user has deleted base.
                    GetReply::Found(blob) if self.is_base_by_hints(blob.md5) => return Ok(Done::Unchanged(blob.md5)),
                    GetReply::Found(blob) => (blob.version, blob.device.clone(), self.fetch(blob).await?),
                }
            }
        };
        if self.is_base_by_hints(staged.md5) {
            return Ok(Done::Unchanged(staged.md5));
        }
        let base = Base::Synced(staged.md5);
        let step = Box::new(FileMove::Create { path: self.path().clone(), at: self.at.clone(), staged });
        Ok(Done::Move { step, base, version, device })
    }

    /// Whether the blob holds base, though an index of hints named another content (row 11).
    fn is_base_by_hints(&self, blob: Md5) -> bool {
        !self.strong && self.step.row == 11 && self.base == Some(blob)
    }

    /// Rows 2 and 11 where the blob is not there. A weak index names what was there once.
    async fn not_found(&self, tombstone: Option<Md5>) -> Result<Done<D>, StepError> {
        if self.strong {
            return Ok(Done::Nothing);
        }
        // The path is gone on both sides.
        if let Some(base) = self.base {
            return Ok(Done::Seen(tombstone.unwrap_or(base)));
        }
        match tombstone.or(self.seen) {
            Some(deleted) if self.heals.begin(self.path(), self.now) => {
                let _turn = self.heals.turn.lock().await;
                match self.remote.delete_again(self.path(), deleted).await.map_err(write_error)? {
                    DeleteReply::Done => Ok(Done::DeletedAgain(deleted)),
                    DeleteReply::Absent | DeleteReply::Mismatch { .. } => Ok(Done::Nothing),
                }
            }
            _ => Ok(Done::Nothing),
        }
    }

    /// The blob holds `base` at `version`, and a weak index says otherwise. Writing the same bytes again mends its entry.
    async fn heal(&self, base: Md5, version: u64) -> Result<Done<D>, StepError> {
        if self.strong || !self.heals.begin(self.path(), self.now) {
            return Ok(Done::Nothing);
        }
        let _turn = self.heals.turn.lock().await;
        match self.put(base, Precondition::Holds(base), version).await? {
            PutReply::Stored { version } => Ok(Done::Agreed { md5: base, version, uploaded: true }),
            PutReply::Mismatch { .. } => Ok(Done::Nothing),
        }
    }

    /// Row 13.
    async fn replace(&self, base: Md5) -> Result<Done<D>, StepError> {
        match self.get().await? {
            GetReply::Found(blob) if blob.md5 == base => self.heal(base, blob.version).await,
            GetReply::Found(blob) => self.replace_with(blob, base).await,
            GetReply::Absent { tombstone: Some(t) } => Ok(Done::Gone(t)),
            GetReply::Absent { tombstone: None } => Ok(Done::Nothing),
        }
    }

    /// Rows 7 and 14.
    async fn obey(&self, local: Md5, base: Option<Md5>, tombstone: Md5) -> Result<Done<D>, StepError> {
        // Invariant 3: an entry of a strong index is evidence. A plain one is a hint, and a tombstone that the index does
        // not name (any more) is none of its: there the blob decides.
        if self.strong && self.listed.is_some_and(|e| e.is_deleted) {
            return Ok(self.trash(local, tombstone));
        }
        match self.get().await? {
            GetReply::Absent { .. } => Ok(self.trash(local, tombstone)),
            GetReply::Found(blob) if Some(blob.md5) == base => self.heal(blob.md5, blob.version).await,
            GetReply::Found(blob) if blob.md5 == local => {
                Ok(Done::Agreed { md5: local, version: blob.version, uploaded: false })
            }
            GetReply::Found(blob) if base.is_some() => self.replace_with(blob, local).await,
            GetReply::Found(blob) => self.conflict_with(blob).await,
        }
    }

    /// Row 15.
    async fn probe(&self, base: Md5) -> Result<Done<D>, StepError> {
        match self.get().await? {
            GetReply::Found(blob) if blob.md5 == base => self.heal(base, blob.version).await,
            GetReply::Found(blob) => self.replace_with(blob, base).await,
            GetReply::Absent { tombstone: Some(t) } => Ok(Done::Gone(t)),
            GetReply::Absent { tombstone: None } => match self.put(base, Precondition::New, 0).await? {
                PutReply::Stored { version } => Ok(Done::Agreed { md5: base, version, uploaded: true }),
                PutReply::Mismatch { current, .. } => match self.get().await? {
                    // Something that counts as existing and cannot be read: that proves a tombstone.
                    GetReply::Absent { tombstone } => Ok(Done::Gone(tombstone.or(current).unwrap_or(base))),
                    GetReply::Found(blob) if blob.md5 == base => {
                        Ok(Done::Agreed { md5: base, version: blob.version, uploaded: true })
                    }
                    GetReply::Found(blob) => self.replace_with(blob, base).await,
                },
            },
        }
    }

    /// Rows 9 and 10.
    async fn delete(&self, base: Md5) -> Result<Done<D>, StepError> {
        let answer = match self.take_answer() {
            Some(BatchReply::Deleted(deleted)) => deleted,
            _ => {
                before_delete();
                self.remote.delete(self.path(), base, self.version_of(base)).await.map_err(write_error)?
            }
        };
        failpoint::pass("delete.acknowledged");
        match answer {
            DeleteReply::Done => Ok(Done::Deleted(base)),
            // The index may name the tombstone already. Nothing then tells another cycle to record it. A weak index may also
            // go on naming the file as live, and is healed by whoever knows of the deletion.
            DeleteReply::Absent => Ok(match self.listed {
                Some(entry) if entry.is_deleted => Done::Seen(entry.md5),
                _ if !self.strong => Done::Seen(base),
                _ => Done::Forget,
            }),
            // Row 11: an edit beats a delete.
            DeleteReply::Mismatch { .. } => self.download().await,
        }
    }

    /// Rows 5, 6, 17 and 18.
    async fn conflict(&self, local: Md5, base: Option<Md5>) -> Result<Done<D>, StepError> {
        match self.get().await? {
            GetReply::Absent { tombstone: Some(t) } => Ok(Done::Gone(t)),
            // The index was wrong; whatever comes between, the precondition sees.
            GetReply::Absent { tombstone: None } => {
                self.upload(local, Precondition::New, 0, self.own_tombstone()).await
            }
            GetReply::Found(blob) if blob.md5 == local => {
                Ok(Done::Agreed { md5: local, version: blob.version, uploaded: false })
            }
            GetReply::Found(blob) if Some(blob.md5) == base || self.is_ours(blob.md5) => {
                self.upload(local, Precondition::Holds(blob.md5), blob.version, None).await
            }
            GetReply::Found(blob) => self.conflict_with(blob).await,
        }
    }

    /// Rows 4, 8, 16, 19, and RESOLVE after a 412.
    async fn upload(
        &self,
        local: Md5,
        first: Precondition,
        first_version: u64,
        tombstone: Option<Md5>,
    ) -> Result<Done<D>, StepError> {
        let (mut precondition, mut version) = (first, first_version);
        let mut known_tombstone = tombstone;
        for _ in 0..ATTEMPTS {
            let answer = match self.take_answer() {
                Some(BatchReply::Put(put)) => put,
                _ => {
                    before_upload();
                    self.put(local, precondition, version).await?
                }
            };
            after_upload();
            let PutReply::Mismatch { current, version: held, .. } = answer else {
                let PutReply::Stored { version } = answer else { return Ok(Done::Nothing) };
                return Ok(Done::Agreed { md5: local, version, uploaded: true });
            };
            match self.get().await? {
                // Our own write had landed and its reply was lost.
                GetReply::Found(blob) if blob.md5 == local => {
                    return Ok(Done::Agreed { md5: local, version: blob.version, uploaded: true });
                }
                // A race that is over, or a tombstone that only the index knew: row 16.
                GetReply::Found(blob) if self.is_ours(blob.md5) => {
                    (precondition, version) = (Precondition::Holds(blob.md5), blob.version);
                }
                GetReply::Found(blob) if Precondition::Holds(blob.md5) == precondition => version = blob.version,
                GetReply::Found(blob) => return self.conflict_with(blob).await,
                GetReply::Absent { tombstone: proven } => {
                    // 412 and then 404: what counts as existing is a tombstone.
                    let deleted = proven.or(current).or(known_tombstone);
                    if matches!(self.step.row, 4 | 6) && self.seen.is_none() && deleted == Some(local) {
                        return Ok(Done::Gone(local));
                    }
                    known_tombstone = deleted;
                    // What the 412 had the version of was gone when it was asked for, and a later write would have a
                    // later version: it is a tombstone's, or the write to come loses again.
                    let known = if held == 0 { self.listed_tombstone() } else { held };
                    (precondition, version) = match (precondition, deleted) {
                        (Precondition::New, Some(t)) if version == 0 => (Precondition::Holds(t), known),
                        // A proxy that compares versions alone need not say what was deleted.
                        (Precondition::New, None) if version == 0 => (Precondition::New, known),
                        // The index may name an earlier tombstone than the one that is there.
                        (Precondition::Holds(tried), _) if self.own_tombstone().is_some_and(|own| own != tried) => {
                            (Precondition::Holds(self.own_tombstone().unwrap_or(tried)), 0)
                        }
                        _ => (Precondition::New, 0),
                    };
                }
            }
        }
        Ok(Done::Nothing)
    }

    /// Row 4 for a file that nobody has read yet. Whatever stands in its way is decided by its digest: then the scan reads
    /// it first.
    async fn upload_unread(&self) -> Result<Done<D>, StepError> {
        before_upload();
        let digested = Arc::new(OnceLock::new());
        let told = digested.clone();
        let source = self.folder.unread_source(&self.at, told.clone()).map_err(unreadable)?;
        if source.size() > self.max_file_size {
            // It has grown since the scan.
            return Err(StepError::Changed);
        }
        let md5 = PromisedDigest::AtTheEnd(Arc::new(move || told.get().map(|d: &FileDigest| d.md5)));
        let answer = self.send(Precondition::New, 0, md5, source).await?;
        after_upload();
        match (answer, digested.get()) {
            (PutReply::Stored { version }, Some(digested)) => Ok(Done::Read { digested: *digested, version }),
            _ => Err(StepError::Changed),
        }
    }

    /// The content that was deleted, as far as this device knows: what it has seen deleted, or what it had.
    fn own_tombstone(&self) -> Option<Md5> {
        self.seen.or(self.base)
    }

    fn listed_tombstone(&self) -> u64 {
        self.listed.filter(|e| e.is_deleted).map_or(0, |e| e.version)
    }

    async fn put(&self, local: Md5, precondition: Precondition, version: u64) -> Result<PutReply, StepError> {
        let source = self.folder.source(&self.at, local).map_err(unreadable)?;
        self.send(precondition, version, PromisedDigest::Known(local), source).await
    }

    async fn send(
        &self,
        precondition: Precondition,
        version: u64,
        md5: PromisedDigest,
        source: FileSource<D::File>,
    ) -> Result<PutReply, StepError> {
        let size = source.size();
        let upload = Upload { source, path: self.path().clone(), sent: self.sent.clone() };
        let body = UploadBody { md5, size, source: Box::new(upload) };
        match self.remote.put(self.path(), precondition, version, body).await {
            Ok(put) => Ok(put),
            Err(e) => {
                // These answers are certain. A 412 is not: the content there may have come with this request.
                if matches!(e, RemoteError::TooLarge { .. } | RemoteError::Refused { .. }) || e.is_forbidden() {
                    self.sent.take_back(self.path(), &self.sent_before);
                }
                Err(write_error(e))
            }
        }
    }

    async fn fetch(&self, mut blob: RemoteBlob) -> Result<StagedFile<D>, StepError> {
        let mut staging = self.folder.stage().map_err(StepError::Local)?;
        while let Some(piece) = blob.body.next().await {
            staging.write(piece?).map_err(StepError::Local)?;
        }
        failpoint::pass("download.staged");
        staging.finish(blob.md5).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => {
                StepError::Remote(RemoteError::Protocol { url: self.path().to_string(), why: e.to_string() })
            }
            _ => StepError::Local(e),
        })
    }

    async fn replace_with(&self, blob: RemoteBlob, expect: Md5) -> Result<Done<D>, StepError> {
        let (version, device) = (blob.version, blob.device.clone());
        let staged = self.fetch(blob).await?;
        let base = Base::Synced(staged.md5);
        let step = Box::new(FileMove::Replace { path: self.path().clone(), at: self.at.clone(), staged, expect });
        Ok(Done::Move { step, base, version, device })
    }

    async fn conflict_with(&self, blob: RemoteBlob) -> Result<Done<D>, StepError> {
        let (version, device) = (blob.version, blob.device.clone());
        let staged = self.fetch(blob).await?;
        let base = Base::Synced(staged.md5);
        let step = Box::new(FileMove::Conflict { path: self.path().clone(), at: self.at.clone(), staged });
        Ok(Done::Move { step, base, version, device })
    }

    fn trash(&self, expect: Md5, tombstone: Md5) -> Done<D> {
        let step = Box::new(FileMove::Trash { path: self.path().clone(), at: self.at.clone(), expect });
        Done::Move { step, base: Base::Seen(tombstone), version: 0, device: None }
    }
}
