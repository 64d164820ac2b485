//! The only thread that writes entries. It takes all waiting writes, commits them in one transaction, then replies.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::super::{
    BlobChange, BlobMeta, BlobVersion, DeleteOutcome, ImportOutcome, IndexEntry, PutOutcome, StoreError,
    WriteCondition, next_version,
};
use super::core::{CommittedEntry, SqliteCore};
use super::rows::{entry_of, meta_text, read_meta, signed};
use super::spool::{BodyContent, FinishedBody};
use super::versions::{CurrentRow, Replacement};
use super::{history, schema, versions};
use crate::path::RelPath;

/// A group takes no more batches once it has this many writes. A batch is never split.
const GROUP_SIZE: usize = 1024;

/// A write in the queue, and where its outcome goes.
pub(super) struct QueuedWrite {
    pub(super) ns: String,
    pub(super) path: RelPath,
    pub(super) request: WriteRequest,
    pub(super) reply: oneshot::Sender<Result<AppliedWrite, StoreError>>,
}

pub(super) enum WriteRequest {
    Put { expect: WriteCondition, meta: BlobMeta, body: FinishedBody },
    Delete { expect: Option<WriteCondition>, meta: BlobMeta },
    Import { version: BlobVersion, body: Option<FinishedBody> },
}

impl WriteRequest {
    fn into_body(self) -> Option<FinishedBody> {
        match self {
            Self::Put { body, .. } => Some(body),
            Self::Delete { .. } => None,
            Self::Import { body, .. } => body,
        }
    }
}

/// Outcome of a [`WriteRequest`].
pub(super) enum AppliedWrite {
    Put(PutOutcome),
    Deleted(DeleteOutcome),
    /// The entry if the version was written.
    Imported(Option<IndexEntry>),
}

impl AppliedWrite {
    /// The entry if one was written.
    fn written(&self) -> Option<IndexEntry> {
        match *self {
            Self::Put(PutOutcome::Created(entry) | PutOutcome::Updated(entry))
            | Self::Deleted(DeleteOutcome::Done(entry)) => Some(entry),
            Self::Imported(written) => written,
            Self::Put(PutOutcome::Mismatch(_)) | Self::Deleted(_) => None,
        }
    }

    // The writer answers each request with an outcome of its kind; a wrong kind is as good as no answer.

    pub(super) fn into_put(self) -> Result<PutOutcome, StoreError> {
        if let Self::Put(put) = self { Ok(put) } else { Err(StoreError::Closed) }
    }

    pub(super) fn into_deleted(self) -> Result<DeleteOutcome, StoreError> {
        if let Self::Deleted(deleted) = self { Ok(deleted) } else { Err(StoreError::Closed) }
    }

    pub(super) fn into_imported(self) -> Result<ImportOutcome, StoreError> {
        match self {
            Self::Imported(Some(_)) => Ok(ImportOutcome::Written),
            Self::Imported(None) => Ok(ImportOutcome::Held),
            Self::Put(_) | Self::Deleted(_) => Err(StoreError::Closed),
        }
    }
}

/// Why a group was not committed.
enum GroupFailure {
    /// It failed before the commit: nothing was written.
    BeforeCommit(rusqlite::Error),
    /// The commit failed. After a crash it may turn out to have reached the disk.
    AtCommit(rusqlite::Error),
}

/// A committed group.
struct CommittedGroup {
    /// The outcome of each write, with the bytes by which the live entries grew.
    outcomes: Vec<(AppliedWrite, i64)>,
    /// Body files that no version refers to any more.
    unused_files: Vec<String>,
    /// The history id that began with this group.
    history: Option<Arc<str>>,
}

/// Serves the queue until every sender is gone. Then it empties the log, so that an older database that someone copies
/// over this one does not find a newer log. Closing empties it only for the last connection, and a read may still run.
pub(super) fn run(mut db: Connection, core: &SqliteCore, mut queue: mpsc::Receiver<Vec<QueuedWrite>>) {
    let mut has_begun_history = false;
    while let Some(mut group) = queue.blocking_recv() {
        while group.len() < GROUP_SIZE {
            let Ok(more) = queue.try_recv() else { break };
            group.extend(more);
        }
        match commit(&mut db, core, &group, has_begun_history) {
            Ok(committed) => {
                has_begun_history |= committed.history.is_some();
                acknowledge(core, group, committed);
            }
            Err(failure) => refuse(group, failure),
        }
    }
    let dir = core.dir.display();
    match schema::empty_log(&db) {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!("{dir}: another process reads the store, so its log stays; copy no older database over it");
        }
        Err(e) => tracing::warn!("{dir}: the log of the store could not be emptied: {e}"),
    }
}

/// Writes a group in one transaction. `has_begun_history`: this process has already begun its history id.
fn commit(
    db: &mut Connection,
    core: &SqliteCore,
    group: &[QueuedWrite],
    has_begun_history: bool,
) -> Result<CommittedGroup, GroupFailure> {
    // A transaction that starts with a read fails if a record is written meanwhile. An immediate one waits.
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(GroupFailure::BeforeCommit)?;
    let before = core.positions().cursor;
    let mut open = GroupTransaction { tx, core, cursor: before, unused_files: Vec::new() };
    let mut outcomes = Vec::with_capacity(group.len());
    for write in group {
        outcomes.push(open.apply(write).map_err(GroupFailure::BeforeCommit)?);
    }
    let GroupTransaction { tx, cursor, unused_files, .. } = open;
    let begins = !has_begun_history && cursor > before;
    let history = begins.then(|| history::begin(&tx, before)).transpose().map_err(GroupFailure::BeforeCommit)?;
    crate::failpoint::pass("store-before-commit");
    tx.commit().map_err(GroupFailure::AtCommit)?;
    crate::failpoint::pass("store-after-commit");
    Ok(CommittedGroup { outcomes, unused_files, history })
}

/// The open transaction of a group.
struct GroupTransaction<'a> {
    tx: Transaction<'a>,
    core: &'a SqliteCore,
    cursor: u64,
    unused_files: Vec<String>,
}

impl GroupTransaction<'_> {
    /// Applies one write. Gives the outcome, and the bytes by which the live entries grew.
    fn apply(&mut self, write: &QueuedWrite) -> rusqlite::Result<(AppliedWrite, i64)> {
        let held = find(&self.tx, &write.ns, write.path.as_str())?;
        let entry = held.as_ref().map(|row| row.entry);
        let outcome = match &write.request {
            WriteRequest::Put { expect, meta, body } if expect.admits(entry.as_ref()) => {
                AppliedWrite::Put(self.put(write, held.as_ref(), meta, body)?)
            }
            WriteRequest::Put { .. } => AppliedWrite::Put(PutOutcome::Mismatch(entry)),
            WriteRequest::Delete { expect, meta } => {
                AppliedWrite::Deleted(self.delete(write, held.as_ref(), *expect, meta)?)
            }
            WriteRequest::Import { version, body } => {
                AppliedWrite::Imported(self.import(write, held.as_ref(), version, body.as_ref())?)
            }
        };
        let Some(new) = outcome.written() else { return Ok((outcome, 0)) };
        let growth = signed(new.size) - entry.map_or(0, |old| signed(old.size));
        self.cursor += 1;
        if let Some(old) = held.filter(|row| !row.entry.is_deleted) {
            let same_content = matches!(write.request, WriteRequest::Put { .. }) && old.entry.md5 == new.md5;
            let replacement = Replacement { ns: &write.ns, path: write.path.as_str(), old: &old, same_content };
            self.unused_files.extend(versions::keep(&self.tx, &self.core.retention, &replacement, new.version)?);
        }
        Ok((outcome, growth))
    }

    fn put(
        &self,
        write: &QueuedWrite,
        held: Option<&CurrentRow>,
        meta: &BlobMeta,
        body: &FinishedBody,
    ) -> rusqlite::Result<PutOutcome> {
        let version = self.next_version(write, held)?;
        let new = IndexEntry { md5: body.md5, size: body.size, is_deleted: false, version, cursor: self.cursor + 1 };
        let live = held.filter(|row| !row.entry.is_deleted);
        let meta = match live {
            Some(old) => meta.clone().inherit(&read_meta(&old.meta)),
            None => meta.clone(),
        };
        self.write_row(write, held, &new, &meta, Some(&body.content))?;
        Ok(if live.is_some() { PutOutcome::Updated(new) } else { PutOutcome::Created(new) })
    }

    fn delete(
        &self,
        write: &QueuedWrite,
        held: Option<&CurrentRow>,
        expect: Option<WriteCondition>,
        meta: &BlobMeta,
    ) -> rusqlite::Result<DeleteOutcome> {
        let Some(entry) = held.map(|row| row.entry) else { return Ok(DeleteOutcome::Absent) };
        if entry.is_deleted {
            return Ok(DeleteOutcome::Tombstone(entry));
        }
        if expect.is_some_and(|expect| !expect.admits(Some(&entry))) {
            return Ok(DeleteOutcome::Mismatch(entry));
        }
        let version = self.next_version(write, held)?;
        let new = IndexEntry { size: 0, is_deleted: true, version, cursor: self.cursor + 1, ..entry };
        self.write_row(write, held, &new, &meta.clone().for_tombstone(), None)?;
        Ok(DeleteOutcome::Done(new))
    }

    fn import(
        &self,
        write: &QueuedWrite,
        held: Option<&CurrentRow>,
        version: &BlobVersion,
        body: Option<&FinishedBody>,
    ) -> rusqlite::Result<Option<IndexEntry>> {
        if held.is_some_and(|row| row.entry.version >= version.version) {
            return Ok(None);
        }
        let BlobVersion { version, md5, size, is_deleted, ref meta } = *version;
        let new = IndexEntry { md5, size, is_deleted, version, cursor: self.cursor + 1 };
        self.write_row(write, held, &new, meta, body.map(|body| &body.content))?;
        Ok(Some(new))
    }

    fn next_version(&self, write: &QueuedWrite, held: Option<&CurrentRow>) -> rusqlite::Result<u64> {
        let version = next_version((self.core.clock)(), held.map(|row| &row.entry));
        if held.is_some() {
            return Ok(version);
        }
        // Earlier versions outlive the tombstone, and the clock may have gone back since.
        Ok(version.max(versions::last_replacement(&self.tx, &write.ns, write.path.as_str())? + 1))
    }

    /// Writes the entry's row and its content. The old content stays: it becomes an earlier version.
    fn write_row(
        &self,
        write: &QueuedWrite,
        held: Option<&CurrentRow>,
        new: &IndexEntry,
        meta: &BlobMeta,
        content: Option<&BodyContent>,
    ) -> rusqlite::Result<()> {
        let (file, body) = match content {
            Some(BodyContent::File(file)) => (Some(file.name()), None),
            Some(BodyContent::Inline(bytes)) => {
                self.tx.prepare_cached("INSERT INTO body (content) VALUES (?)")?.execute([&bytes[..]])?;
                (None, Some(self.tx.last_insert_rowid()))
            }
            None => (None, None),
        };
        let expires = meta.expires.map(signed);
        match held {
            Some(held) => self
                .tx
                .prepare_cached(
                    "UPDATE entry SET md5 = ?, size = ?, is_deleted = ?, version = ?, cursor = ?, file = ?, meta = ?, \
                     expires = ?, body = ? WHERE id = ?",
                )?
                .execute(params![
                    new.md5.as_bytes(),
                    signed(new.size),
                    new.is_deleted,
                    signed(new.version),
                    signed(new.cursor),
                    file,
                    meta_text(meta),
                    expires,
                    body,
                    held.id
                ])?,
            None => self
                .tx
                .prepare_cached(
                    "INSERT INTO entry (ns, path, md5, size, is_deleted, version, cursor, file, meta, expires, body) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    write.ns,
                    write.path.as_str(),
                    new.md5.as_bytes(),
                    signed(new.size),
                    new.is_deleted,
                    signed(new.version),
                    signed(new.cursor),
                    file,
                    meta_text(meta),
                    expires,
                    body
                ])?,
        };
        Ok(())
    }
}

fn find(tx: &Transaction<'_>, ns: &str, path: &str) -> rusqlite::Result<Option<CurrentRow>> {
    tx.prepare_cached(
        "SELECT md5, size, is_deleted, version, cursor, id, file, meta, body FROM entry WHERE ns = ? AND path = ?",
    )?
    .query_row([ns, path], |row| {
        Ok(CurrentRow {
            id: row.get(5)?,
            entry: entry_of(row)?,
            file: row.get(6)?,
            meta: row.get(7)?,
            body: row.get(8)?,
        })
    })
    .optional()
}

/// Publishes the group, then replies, so that a caller with a reply also sees its cursor.
fn acknowledge(core: &SqliteCore, group: Vec<QueuedWrite>, committed: CommittedGroup) {
    let mut changes = Vec::with_capacity(committed.outcomes.len());
    let mut replies = Vec::with_capacity(committed.outcomes.len());
    for (write, (outcome, growth)) in group.into_iter().zip(committed.outcomes) {
        let QueuedWrite { ns, path, request, reply } = write;
        if let Some(entry) = outcome.written() {
            keep_file(request.into_body());
            changes.push((entry.version, growth, BlobChange { cursor: entry.cursor, ns, path }));
        }
        replies.push((reply, outcome));
    }
    for name in &committed.unused_files {
        core.spool.remove(name);
    }
    if !changes.is_empty() {
        // In the order of their cursors, so that the last one of a namespace counts.
        let entries = changes.iter().map(|(modified, growth, change)| CommittedEntry {
            ns: &change.ns,
            cursor: change.cursor,
            modified: *modified,
            growth: *growth,
        });
        core.advance(committed.history, entries);
        let changes: Arc<[BlobChange]> = changes.into_iter().map(|(_, _, change)| change).collect();
        // An error means that there are no subscribers.
        let _ = core.changes.send(changes);
    }
    for (reply, outcome) in replies {
        // A caller that is gone does not undo its write.
        drop(reply.send(Ok(outcome)));
    }
}

fn refuse(group: Vec<QueuedWrite>, failure: GroupFailure) {
    let (error, may_be_on_disk) = match failure {
        GroupFailure::BeforeCommit(e) => (StoreError::database(e), false),
        GroupFailure::AtCommit(e) => (StoreError::database(e), true),
    };
    tracing::error!("{error}; the waiting writes were refused");
    for write in group {
        drop(write.reply.send(Err(error.clone())));
        // After a crash the row may come back, and then it needs its file. Otherwise the next start removes the file.
        if may_be_on_disk {
            keep_file(write.request.into_body());
        }
    }
}

fn keep_file(body: Option<FinishedBody>) {
    if let Some(BodyContent::File(file)) = body.map(|body| body.content) {
        file.keep();
    }
}
