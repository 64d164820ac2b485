//! [`StepWork`]: one step of a plan, carried out against the proxy. These are the actions of the decision table.
//!
//! Nothing here writes to the user's files. A step ends in a [`StepOutcome`]; the commit makes the changes to the
//! folder and to the base.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;

use crate::digest::Md5;
use crate::disk::Disk;
use crate::failpoint;
use crate::local::source::FileDigest;
use crate::local::stage::StagedFile;
use crate::local::{FileMove, Folder};
use crate::merge::MergeRules;
use crate::protocol::IndexEntry;
use crate::remote::{BatchReply, DeleteReply, GetReply, PutReply, Remote, RemoteBlob, RemoteError};
use crate::state::ShadowReader;
use crate::sync::{Action, Base, PlanStep, Precondition};

use super::corrections::HealTimes;
use super::unconfirmed::UnconfirmedUploads;

/// The outcome of a step on the proxy's side.
pub(super) enum StepOutcome<D: Disk> {
    /// Nothing changes. The index was stale, or the next cycle will know more.
    Nothing,
    /// The blob is not there, although a weak index names it as live. Nothing changes.
    Missing,
    /// Base := seen.
    Seen(Md5),
    /// The proxy has deleted this content for us. Base := seen.
    Deleted(Md5),
    /// The base forgets the path.
    Forgotten,
    /// Both sides hold this content. Base := it, once the local file is durable.
    Agreed { md5: Md5, version: u64, uploaded: bool },
    /// The same, for a file that was digested during its upload.
    UploadedUnread { digested: FileDigest, version: u64 },
    /// The blob is deleted, although the index does not say so (rows 5, 6, 13, 15, 17 and 18, RESOLVE of row 4). The
    /// next plan knows this tombstone. It obeys it by row 7 or 14, which the gate counts, or uploads by row 8 or 19.
    ProvenDeleted(Md5),
    /// The blob holds the base, although the index names other content (row 11). The next plan knows this and deletes
    /// by row 9, which the gate counts.
    ProvenUnchanged(Md5),
    /// The blob is gone, although a weak index names it as live. The deletion of this content was repeated, so that the
    /// index gets a new entry.
    DeletedAgain(Md5),
    /// A change to the folder. Base := `base`, once it is made. `device`: the machine that wrote the new content.
    Move { step: Box<FileMove<D>>, base: Base, version: u64, device: Option<String> },
}

impl<D: Disk> StepOutcome<D> {
    pub(super) fn uploaded(md5: Md5, version: u64) -> Self {
        Self::Agreed { md5, version, uploaded: true }
    }

    pub(super) fn adopted(md5: Md5, version: u64) -> Self {
        Self::Agreed { md5, version, uploaded: false }
    }
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum StepError {
    Remote(RemoteError),
    /// The proxy answers, and does not let this key write the path (403).
    Forbidden(RemoteError),
    /// The local file could not be read, or the download could not be staged.
    Local(io::Error),
    /// The local file has changed since the scan.
    Changed,
}

impl From<RemoteError> for StepError {
    fn from(e: RemoteError) -> Self {
        Self::Remote(e)
    }
}

/// The error of a write. A refused write (403) concerns its path alone: the key may still read everything.
pub(super) fn write_error(e: RemoteError) -> StepError {
    match e {
        // The source checks itself and refuses a file that is being written.
        RemoteError::Source(_) => StepError::Changed,
        e if e.is_forbidden() => StepError::Forbidden(e),
        e => StepError::Remote(e),
    }
}

/// The answer to the first request of a step, where that went in a batch.
pub(super) enum FirstAnswer<D: Disk> {
    Answer(BatchReply),
    /// A download that is staged already.
    Staged {
        version: u64,
        device: Option<String>,
        staged: Result<StagedFile<D>, StepError>,
    },
}

/// The precondition of one attempt, with the version for proxies that compare versions.
#[derive(Debug, Clone, Copy)]
pub(super) struct UploadAttempt {
    pub precondition: Precondition,
    pub version: u64,
}

impl UploadAttempt {
    /// An upload over a blob that was fetched.
    pub(super) fn over(blob: &RemoteBlob) -> Self {
        Self { precondition: Precondition::Holds(blob.md5), version: blob.version }
    }
}

/// Passed before a deletion is sent.
pub(super) fn before_delete() {
    failpoint::pass("delete.before");
}

/// Everything that a step needs, so that many steps can be in flight.
pub(super) struct StepWork<D: Disk, R: Remote> {
    pub folder: Folder<D>,
    pub remote: Arc<R>,
    pub step: PlanStep,
    /// The path's name on the disk.
    pub disk_name: String,
    /// The content that both sides last agreed on.
    pub base: Option<Md5>,
    /// The tombstone of the path that was obeyed.
    pub seen: Option<Md5>,
    /// The version token of the base.
    pub version: u64,
    pub uploads: UnconfirmedUploads,
    /// The content that was sent before this step began, or before its last request without an answer.
    pub sent_before: BTreeSet<Md5>,
    /// How the path is merged. `None`: not now.
    pub merge: Option<MergeRules>,
    pub shadow: ShadowReader<D>,
    /// Bytes; larger files are not synced.
    pub max_file_size: u64,
    /// The index entry. A hint unless `is_exact`, but its md5 and its version belong together.
    pub listed: Option<IndexEntry>,
    /// The index is evidence (capability `strong-index`).
    pub is_exact: bool,
    pub heals: HealTimes,
    /// When the step was prepared ([`World::elapsed`](crate::agent::World::elapsed)).
    pub now: Duration,
    pub first: Mutex<Option<FirstAnswer<D>>>,
}

impl<D: Disk, R: Remote> StepWork<D, R> {
    /// Carries the step out, as far as the proxy is concerned.
    pub(super) async fn run(&self) -> Result<StepOutcome<D>, StepError> {
        match self.step.action.clone() {
            Action::Skip(_) => Ok(StepOutcome::Nothing),
            Action::RecordSeen { tombstone } => Ok(StepOutcome::Seen(tombstone)),
            Action::Adopt { local } => Ok(StepOutcome::adopted(local, self.version_of(local))),
            Action::Download { .. } => self.download().await,
            Action::Upload { local, precondition, tombstone } => {
                self.upload(local, self.first_attempt(precondition), tombstone).await
            }
            Action::UploadUnread => self.upload_unread().await,
            Action::Conflict { local, base } => self.conflict(local, base).await,
            Action::Trash { local, base, tombstone } => self.trash(local, base, tombstone).await,
            Action::DeleteRemote { base } => self.delete(base).await,
            Action::Replace { base } => self.compare(self.get().await?, base).await,
            Action::Probe { base } => self.probe(base).await,
        }
    }

    fn take_first(&self) -> Option<FirstAnswer<D>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn take_answer(&self) -> Option<BatchReply> {
        match self.take_first() {
            Some(FirstAnswer::Answer(answer)) => Some(answer),
            _ => None,
        }
    }

    pub(super) async fn get(&self) -> Result<GetReply, StepError> {
        match self.take_answer() {
            Some(BatchReply::Got(got)) => Ok(got),
            _ => Ok(self.remote.get(&self.step.path).await?),
        }
    }

    /// The newest known version of content that this device holds or held; 0 if unknown. By invariant 4 a version
    /// names its content, so an index entry with the same md5 is good enough.
    pub(super) fn version_of(&self, md5: Md5) -> u64 {
        let base = if self.base == Some(md5) { self.version } else { 0 };
        let listed = self.listed.filter(|entry| entry.md5 == md5 && !entry.is_deleted).map_or(0, |entry| entry.version);
        base.max(listed)
    }

    /// True if this folder held the content and its user replaced it. It is then no edit of another device.
    pub(super) fn is_ours(&self, md5: Md5) -> bool {
        Some(md5) == self.base || self.uploads.is_from_here(&self.step.path, md5)
    }

    /// The content that was deleted, as far as this device knows.
    pub(super) fn own_tombstone(&self) -> Option<Md5> {
        self.seen.or(self.base)
    }

    /// Rows 2, 11 and 21.
    async fn download(&self) -> Result<StepOutcome<D>, StepError> {
        let (version, device, staged) = match self.take_first() {
            Some(FirstAnswer::Staged { version, device, staged }) => (version, device, staged?),
            first => {
                let got = match first {
                    Some(FirstAnswer::Answer(BatchReply::Got(got))) => got,
                    _ => self.remote.get(&self.step.path).await?,
                };
                match got {
                    GetReply::Absent { tombstone } => return self.not_found(tombstone).await,
                    // The index names older content than the base, and the user has deleted the base.
                    GetReply::Found(blob) if self.is_base_by_hints(blob.md5) => {
                        return Ok(StepOutcome::ProvenUnchanged(blob.md5));
                    }
                    GetReply::Found(blob) => (blob.version, blob.device.clone(), self.fetch(blob).await?),
                }
            }
        };
        if self.is_base_by_hints(staged.md5) {
            return Ok(StepOutcome::ProvenUnchanged(staged.md5));
        }
        let base = Base::Synced(staged.md5);
        let step = Box::new(FileMove::Create { path: self.step.path.clone(), at: self.disk_name.clone(), staged });
        Ok(StepOutcome::Move { step, base, version, device })
    }

    /// True if the blob holds the base, although an index of hints named other content (row 11).
    fn is_base_by_hints(&self, blob: Md5) -> bool {
        !self.is_exact && self.step.row == 11 && self.base == Some(blob)
    }

    /// Rows 2 and 11 where the blob is not there. A weak index may name a file that was there once.
    async fn not_found(&self, tombstone: Option<Md5>) -> Result<StepOutcome<D>, StepError> {
        if self.is_exact {
            return Ok(StepOutcome::Nothing);
        }
        // The path is gone on both sides.
        if let Some(base) = self.base {
            return Ok(StepOutcome::Seen(tombstone.unwrap_or(base)));
        }
        match tombstone.or(self.seen) {
            Some(deleted) if self.heals.begin(&self.step.path, self.now) => {
                let _lock = self.heals.lock.lock().await;
                match self.remote.delete_again(&self.step.path, deleted).await.map_err(write_error)? {
                    DeleteReply::Done => Ok(StepOutcome::DeletedAgain(deleted)),
                    DeleteReply::Absent => Ok(StepOutcome::Missing),
                    DeleteReply::Mismatch { .. } => Ok(StepOutcome::Nothing),
                }
            }
            _ => Ok(StepOutcome::Missing),
        }
    }

    /// Heals a weak index whose entry contradicts the blob, which holds `base` at `version`: the same bytes are written
    /// again.
    async fn heal(&self, base: Md5, version: u64) -> Result<StepOutcome<D>, StepError> {
        if self.is_exact || !self.heals.begin(&self.step.path, self.now) {
            return Ok(StepOutcome::Nothing);
        }
        let _lock = self.heals.lock.lock().await;
        match self.put(base, UploadAttempt { precondition: Precondition::Holds(base), version }).await? {
            PutReply::Stored { version } => Ok(StepOutcome::uploaded(base, version)),
            PutReply::Mismatch { .. } => Ok(StepOutcome::Nothing),
        }
    }

    /// Row 13, and row 15 for a path that the proxy has or had.
    async fn compare(&self, blob: GetReply, base: Md5) -> Result<StepOutcome<D>, StepError> {
        match blob {
            GetReply::Found(blob) if blob.md5 == base => self.heal(base, blob.version).await,
            GetReply::Found(blob) => self.replace_with(blob, base).await,
            GetReply::Absent { tombstone: Some(t) } => Ok(StepOutcome::ProvenDeleted(t)),
            GetReply::Absent { tombstone: None } => Ok(StepOutcome::Nothing),
        }
    }

    /// Rows 7 and 14.
    async fn trash(&self, local: Md5, base: Option<Md5>, tombstone: Md5) -> Result<StepOutcome<D>, StepError> {
        // Invariant 3: an entry of an exact index is evidence. A plain entry is a hint, and so is a tombstone that the
        // index does not name any more. The blob decides about those.
        if self.is_exact && self.listed.is_some_and(|entry| entry.is_deleted) {
            return Ok(self.trashed(local, tombstone));
        }
        match self.get().await? {
            GetReply::Absent { .. } => Ok(self.trashed(local, tombstone)),
            GetReply::Found(blob) if Some(blob.md5) == base => self.heal(blob.md5, blob.version).await,
            GetReply::Found(blob) if blob.md5 == local => Ok(StepOutcome::adopted(local, blob.version)),
            GetReply::Found(blob) if base.is_some() => self.replace_with(blob, local).await,
            GetReply::Found(blob) => self.conflict_with(local, blob).await,
        }
    }

    /// Row 15.
    async fn probe(&self, base: Md5) -> Result<StepOutcome<D>, StepError> {
        let blob = self.get().await?;
        if !matches!(blob, GetReply::Absent { tombstone: None }) {
            return self.compare(blob, base).await;
        }
        match self.put(base, UploadAttempt { precondition: Precondition::New, version: 0 }).await? {
            PutReply::Stored { version } => Ok(StepOutcome::uploaded(base, version)),
            PutReply::Mismatch { current, .. } => match self.get().await? {
                // The path counts as existing and cannot be read. That proves a tombstone.
                GetReply::Absent { tombstone } => Ok(StepOutcome::ProvenDeleted(tombstone.or(current).unwrap_or(base))),
                GetReply::Found(blob) if blob.md5 == base => Ok(StepOutcome::uploaded(base, blob.version)),
                GetReply::Found(blob) => self.replace_with(blob, base).await,
            },
        }
    }

    /// Rows 9 and 10.
    async fn delete(&self, base: Md5) -> Result<StepOutcome<D>, StepError> {
        let answer = match self.take_answer() {
            Some(BatchReply::Deleted(deleted)) => deleted,
            _ => {
                before_delete();
                self.remote.delete(&self.step.path, base, self.version_of(base)).await.map_err(write_error)?
            }
        };
        failpoint::pass("delete.acknowledged");
        match answer {
            DeleteReply::Done => Ok(StepOutcome::Deleted(base)),
            // The index may name the tombstone already, and then no later cycle records it. A weak index may also keep
            // naming the file as live; a device that knows of the deletion heals it.
            DeleteReply::Absent => Ok(match self.listed {
                Some(entry) if entry.is_deleted => StepOutcome::Seen(entry.md5),
                _ if !self.is_exact => StepOutcome::Seen(base),
                _ => StepOutcome::Forgotten,
            }),
            // Row 11: an edit beats a delete.
            DeleteReply::Mismatch { .. } => self.download().await,
        }
    }

    /// Rows 5, 6, 17 and 18.
    async fn conflict(&self, local: Md5, base: Option<Md5>) -> Result<StepOutcome<D>, StepError> {
        match self.get().await? {
            GetReply::Absent { tombstone: Some(t) } => Ok(StepOutcome::ProvenDeleted(t)),
            // The index was wrong. The precondition catches a write that comes in between.
            GetReply::Absent { tombstone: None } => {
                self.upload(local, self.first_attempt(Precondition::New), self.own_tombstone()).await
            }
            GetReply::Found(blob) if blob.md5 == local => Ok(StepOutcome::adopted(local, blob.version)),
            GetReply::Found(blob) if Some(blob.md5) == base || self.is_ours(blob.md5) => {
                self.upload(local, UploadAttempt::over(&blob), None).await
            }
            GetReply::Found(blob) => self.conflict_with(local, blob).await,
        }
    }

    pub(super) async fn fetch(&self, mut blob: RemoteBlob) -> Result<StagedFile<D>, StepError> {
        let mut staging = self.folder.stage().map_err(StepError::Local)?;
        while let Some(piece) = blob.body.next().await {
            staging.write(piece?).map_err(StepError::Local)?;
        }
        failpoint::pass("download.staged");
        staging.finish(blob.md5).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => {
                StepError::Remote(RemoteError::Protocol { url: self.step.path.to_string(), why: e.to_string() })
            }
            _ => StepError::Local(e),
        })
    }

    /// REPLACE.
    async fn replace_with(&self, blob: RemoteBlob, expect: Md5) -> Result<StepOutcome<D>, StepError> {
        let (version, device) = (blob.version, blob.device.clone());
        let staged = self.fetch(blob).await?;
        let base = Base::Synced(staged.md5);
        let (path, at) = (self.step.path.clone(), self.disk_name.clone());
        let step = Box::new(FileMove::Replace { path, at, staged, expect });
        Ok(StepOutcome::Move { step, base, version, device })
    }

    fn trashed(&self, expect: Md5, tombstone: Md5) -> StepOutcome<D> {
        let step = Box::new(FileMove::Trash { path: self.step.path.clone(), at: self.disk_name.clone(), expect });
        StepOutcome::Move { step, base: Base::Seen(tombstone), version: 0, device: None }
    }
}
