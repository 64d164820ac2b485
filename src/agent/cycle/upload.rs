//! The uploads of a [`StepWork`]: compare-and-swap with RESOLVE after a 412, and the sources that read the files.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile};
use crate::failpoint;
use crate::local::Folder;
use crate::local::source::{FileDigest, FileSource};
use crate::path::RelPath;
use crate::remote::{BatchReply, BodySource, GetReply, PromisedDigest, PutReply, Remote, RemoteError, UploadBody};
use crate::sync::Precondition;

use super::step::{StepError, StepOutcome, StepWork, UploadAttempt, write_error};
use super::unconfirmed::UnconfirmedUploads;

/// Compare-and-swap attempts for one path in one cycle (invariant 12). At least 3: over a tombstone, RESOLVE may try
/// [`Precondition::New`], then the deleted content that the proxy names, then the one that this device knows.
pub(super) const MAX_ATTEMPTS: usize = 3;

/// Passed before an upload is sent.
pub(super) fn before_upload() {
    failpoint::pass("upload.before");
}

/// Passed when an upload was answered.
fn after_upload() {
    failpoint::pass("upload.acknowledged");
}

/// A file on its way up. It is noted as sent once its last piece is read.
pub(super) struct NotedSource<F: DiskFile> {
    source: FileSource<F>,
    path: RelPath,
    uploads: UnconfirmedUploads,
}

impl<F: DiskFile> BodySource for NotedSource<F> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let piece = self.source.next_piece()?;
        if let Some(md5) = self.source.whole() {
            self.uploads.note(&self.path, md5);
        }
        Ok(piece)
    }
}

/// A file of a batch. It is opened when its turn comes, because a batch has many.
pub(super) struct LazySource<D: Disk> {
    folder: Folder<D>,
    disk_name: String,
    path: RelPath,
    md5: Md5,
    size: u64,
    uploads: UnconfirmedUploads,
    open: Option<NotedSource<D::File>>,
}

impl<D: Disk> BodySource for LazySource<D> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let source = match &mut self.open {
            Some(source) => source,
            None => {
                let source = self.folder.source(&self.disk_name, self.md5)?;
                if source.size() != self.size {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the file's length has changed"));
                }
                let (path, uploads) = (self.path.clone(), self.uploads.clone());
                self.open.insert(NotedSource { source, path, uploads })
            }
        };
        source.next()
    }
}

/// An error of reading a local file. The next scan finds out that a file is gone.
pub(super) fn read_error(e: io::Error) -> StepError {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => StepError::Changed,
        _ => StepError::Local(e),
    }
}

impl<D: Disk, R: Remote> StepWork<D, R> {
    /// The first attempt of a step with this precondition.
    pub(super) fn first_attempt(&self, precondition: Precondition) -> UploadAttempt {
        let version = match precondition {
            Precondition::New => 0,
            Precondition::Holds(md5) => self.version_of(md5),
        };
        UploadAttempt { precondition, version }
    }

    /// The local file as a part of a batch.
    pub(super) fn lazy_source(&self, md5: Md5, size: u64) -> LazySource<D> {
        LazySource {
            folder: self.folder.clone(),
            disk_name: self.disk_name.clone(),
            path: self.step.path.clone(),
            md5,
            size,
            uploads: self.uploads.clone(),
            open: None,
        }
    }

    /// Rows 4, 8, 16, 19, and RESOLVE after a 412. `tombstone`: the deleted content that the index names.
    pub(super) async fn upload(
        &self,
        local: Md5,
        first: UploadAttempt,
        tombstone: Option<Md5>,
    ) -> Result<StepOutcome<D>, StepError> {
        let (mut attempt, mut known_tombstone) = (first, tombstone);
        for _ in 0..MAX_ATTEMPTS {
            let put = match self.take_answer() {
                Some(BatchReply::Put(put)) => put,
                _ => {
                    before_upload();
                    self.put(local, attempt).await?
                }
            };
            after_upload();
            let (current, held) = match put {
                PutReply::Stored { version } => return Ok(StepOutcome::uploaded(local, version)),
                PutReply::Mismatch { current, version, .. } => (current, version),
            };
            match self.get().await? {
                // Our own write had arrived, and its reply was lost.
                GetReply::Found(blob) if blob.md5 == local => return Ok(StepOutcome::uploaded(local, blob.version)),
                // The race is over, or only the index knew a tombstone: row 16.
                GetReply::Found(blob)
                    if self.is_ours(blob.md5) || attempt.precondition == Precondition::Holds(blob.md5) =>
                {
                    attempt = UploadAttempt::over(&blob);
                }
                GetReply::Found(blob) => return self.conflict_with(local, blob).await,
                GetReply::Absent { tombstone: proven } => {
                    // A 412 and then a 404: the path counts as existing because of a tombstone.
                    known_tombstone = proven.or(current).or(known_tombstone);
                    if matches!(self.step.row, 4 | 6) && self.seen.is_none() && known_tombstone == Some(local) {
                        return Ok(StepOutcome::ProvenDeleted(local));
                    }
                    attempt = self.attempt_over_tombstone(attempt, known_tombstone, held);
                }
            }
        }
        Ok(StepOutcome::Nothing)
    }

    /// The next attempt over a tombstone. `deleted`: the content that was deleted. `held`: the version that the 412
    /// named; 0: none. It is taken for the version of the tombstone. If it is that of a later write, the next attempt
    /// fails, as it must.
    fn attempt_over_tombstone(&self, tried: UploadAttempt, deleted: Option<Md5>, held: u64) -> UploadAttempt {
        let listed = || self.listed.filter(|entry| entry.is_deleted).map_or(0, |entry| entry.version);
        let version = if held == 0 { listed() } else { held };
        match (tried.precondition, deleted, self.own_tombstone()) {
            (Precondition::New, Some(deleted), _) if tried.version == 0 => {
                UploadAttempt { precondition: Precondition::Holds(deleted), version }
            }
            // A proxy that compares only versions need not say which content was deleted.
            (Precondition::New, None, _) if tried.version == 0 => {
                UploadAttempt { precondition: Precondition::New, version }
            }
            // The index may name an older tombstone than the one that is there.
            (Precondition::Holds(md5), _, Some(own)) if own != md5 => {
                UploadAttempt { precondition: Precondition::Holds(own), version: 0 }
            }
            _ => UploadAttempt { precondition: Precondition::New, version: 0 },
        }
    }

    /// Row 4 for a file that was not read yet. In any conflict its digest decides, so the scan reads it first then.
    pub(super) async fn upload_unread(&self) -> Result<StepOutcome<D>, StepError> {
        before_upload();
        let digested = Arc::new(OnceLock::new());
        let result = digested.clone();
        let source = self.folder.unread_source(&self.disk_name, result.clone()).map_err(read_error)?;
        if source.size() > self.max_file_size {
            // It has grown since the scan.
            return Err(StepError::Changed);
        }
        let md5 = PromisedDigest::AtTheEnd(Arc::new(move || result.get().map(|digested: &FileDigest| digested.md5)));
        let attempt = UploadAttempt { precondition: Precondition::New, version: 0 };
        let answer = self.send(attempt, md5, source).await?;
        after_upload();
        match (answer, digested.get()) {
            (PutReply::Stored { version }, Some(digested)) => {
                Ok(StepOutcome::UploadedUnread { digested: *digested, version })
            }
            _ => Err(StepError::Changed),
        }
    }

    pub(super) async fn put(&self, local: Md5, attempt: UploadAttempt) -> Result<PutReply, StepError> {
        let source = self.folder.source(&self.disk_name, local).map_err(read_error)?;
        self.send(attempt, PromisedDigest::Known(local), source).await
    }

    async fn send(
        &self,
        attempt: UploadAttempt,
        md5: PromisedDigest,
        source: FileSource<D::File>,
    ) -> Result<PutReply, StepError> {
        let size = source.size();
        let source = NotedSource { source, path: self.step.path.clone(), uploads: self.uploads.clone() };
        let body = UploadBody { md5, size, source: Box::new(source) };
        let UploadAttempt { precondition, version } = attempt;
        self.remote.put(&self.step.path, precondition, version, body).await.map_err(|e| {
            // These answers are certain. A 412 is not: the content there may have come with this request.
            if matches!(e, RemoteError::TooLarge { .. } | RemoteError::Refused { .. }) || e.is_forbidden() {
                self.uploads.take_back(&self.step.path, &self.sent_before);
            }
            write_error(e)
        })
    }
}
