//! The only thread that writes entries. It takes all waiting writes, commits them in one transaction, then replies.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::super::body::{BodyContent, FinishedBody};
use super::super::{
    BlobChange, BlobMeta, BlobVersion, DeleteOutcome, IndexEntry, PutOutcome, StoreError, WriteCondition, WriteOutcome,
    rules,
};
use super::core::{SqliteCore, entry_of, meta_text, read_meta, signed};
use super::versions::CurrentRow;
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
    Written(WriteOutcome),
    /// The entry if the version was written.
    Imported(Option<IndexEntry>),
}

impl AppliedWrite {
    /// The new entry if the path changed.
    fn entry(&self) -> Option<IndexEntry> {
        match self {
            Self::Written(outcome) => outcome.entry(),
            Self::Imported(entry) => *entry,
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
    schema::empty_log_or_warn(&db, &core.dir);
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
        let (ns, path) = (write.ns.as_str(), write.path.as_str());
        let old = find(&self.tx, ns, path)?;
        let held = old.as_ref().map(|row| row.entry);
        let (mut new, content) = match self.decide(write, old.as_ref())? {
            Ok(decided) => decided,
            Err(refused) => return Ok((refused, 0)),
        };
        self.cursor += 1;
        new.entry.cursor = self.cursor;
        self.write_row(write, &new, content)?;
        if let Some(old) = old.filter(|row| !row.entry.is_deleted) {
            // A put of the same content makes no version. An import keeps both versions as the other store had them.
            let same_content = matches!(write.request, WriteRequest::Put { .. }) && old.entry.md5 == new.entry.md5;
            let most = if same_content { 0 } else { self.core.retention.versions };
            self.unused_files.extend(versions::keep(&self.tx, (ns, path), &old, new.entry.version, most)?);
        }
        let outcome = match write.request {
            WriteRequest::Put { .. } => {
                AppliedWrite::Written(WriteOutcome::Put(rules::put_outcome(new.entry, held.as_ref())))
            }
            WriteRequest::Delete { .. } => AppliedWrite::Written(WriteOutcome::Deleted(DeleteOutcome::Done(new.entry))),
            WriteRequest::Import { .. } => AppliedWrite::Imported(Some(new.entry)),
        };
        Ok((outcome, signed(new.entry.size) - held.map_or(0, |held| signed(held.size))))
    }

    /// The version that a write makes of the row `old`, with its content, or the outcome of a write that is refused.
    fn decide<'w>(
        &self,
        write: &'w QueuedWrite,
        old: Option<&CurrentRow>,
    ) -> rusqlite::Result<Result<(BlobVersion, Option<&'w BodyContent>), AppliedWrite>> {
        let held = old.map(|row| row.entry);
        let mut now = (self.core.clock)();
        if held.is_none() && matches!(write.request, WriteRequest::Put { .. }) {
            // Earlier versions outlive the tombstone, and the clock may have gone back since.
            now = now.max(versions::last_replacement(&self.tx, &write.ns, write.path.as_str())? + 1);
        }
        Ok(match &write.request {
            WriteRequest::Put { expect, meta, body } => {
                let old = old.map(|row| (row.entry, read_meta(&row.meta)));
                let old = old.as_ref().map(|(entry, meta)| (entry, meta));
                match rules::put(old, *expect, body, meta, now) {
                    Some(new) => Ok((new, Some(&body.content))),
                    None => Err(AppliedWrite::Written(WriteOutcome::Put(PutOutcome::Mismatch(held)))),
                }
            }
            WriteRequest::Delete { expect, meta } => match rules::delete(held, *expect, meta, now) {
                Ok(tombstone) => Ok((tombstone, None)),
                Err(refused) => Err(AppliedWrite::Written(WriteOutcome::Deleted(refused))),
            },
            WriteRequest::Import { version, body } if rules::imports(version, held.as_ref()) => {
                Ok((version.clone(), body.as_ref().map(|body| &body.content)))
            }
            WriteRequest::Import { .. } => Err(AppliedWrite::Imported(None)),
        })
    }

    /// Writes the entry's row and its content. The old content stays: it becomes an earlier version.
    fn write_row(
        &self,
        write: &QueuedWrite,
        BlobVersion { entry, meta }: &BlobVersion,
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
        self.tx
            .prepare_cached(
                "INSERT INTO entry (ns, path, md5, size, is_deleted, version, cursor, file, meta, expires, body) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (ns, path) DO UPDATE SET md5 = excluded.md5, \
                 size = excluded.size, is_deleted = excluded.is_deleted, version = excluded.version, \
                 cursor = excluded.cursor, file = excluded.file, meta = excluded.meta, expires = excluded.expires, \
                 body = excluded.body",
            )?
            .execute(params![
                write.ns,
                write.path.as_str(),
                entry.md5.as_bytes(),
                signed(entry.size),
                entry.is_deleted,
                signed(entry.version),
                signed(entry.cursor),
                file,
                meta_text(meta),
                meta.expires.map(signed),
                body
            ])?;
        Ok(())
    }
}

fn find(tx: &Transaction<'_>, ns: &str, path: &str) -> rusqlite::Result<Option<CurrentRow>> {
    tx.prepare_cached(
        "SELECT md5, size, is_deleted, version, cursor, file, meta, body FROM entry WHERE ns = ? AND path = ?",
    )?
    .query_row([ns, path], |row| {
        Ok(CurrentRow { entry: entry_of(row)?, file: row.get(5)?, meta: row.get(6)?, body: row.get(7)? })
    })
    .optional()
}

/// Publishes the group, then replies, so that a caller with a reply also sees its cursor.
fn acknowledge(core: &SqliteCore, group: Vec<QueuedWrite>, committed: CommittedGroup) {
    let mut changes = Vec::with_capacity(committed.outcomes.len());
    let mut replies = Vec::with_capacity(committed.outcomes.len());
    for (write, (outcome, growth)) in group.into_iter().zip(committed.outcomes) {
        let QueuedWrite { ns, path, request, reply } = write;
        if let Some(entry) = outcome.entry() {
            keep_file(request.into_body());
            changes.push((BlobChange { cursor: entry.cursor, ns, path }, entry.version, growth));
        }
        replies.push((reply, outcome));
    }
    for name in &committed.unused_files {
        core.bodies.remove(name);
    }
    if !changes.is_empty() {
        core.advance(committed.history, &changes);
        let changes: Arc<[BlobChange]> = changes.into_iter().map(|(change, ..)| change).collect();
        // An error means that there are no subscribers.
        let _ = core.changes.send(changes);
    }
    for (reply, outcome) in replies {
        // A caller that is gone does not undo its write.
        drop(reply.send(Ok(outcome)));
    }
}

fn refuse(group: Vec<QueuedWrite>, failure: GroupFailure) {
    let (error, may_be_on_disk): (StoreError, bool) = match failure {
        GroupFailure::BeforeCommit(e) => (e.into(), false),
        GroupFailure::AtCommit(e) => (e.into(), true),
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
