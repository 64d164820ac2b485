//! The one thread that writes: it takes every write that waits, commits them together, then answers them all.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::super::{
    BlobChange, BlobMeta, BlobVersion, DeleteOutcome, ImportOutcome, IndexEntry, Precondition, PutOutcome, StoreError,
    next_version,
};
use super::spool::{Content, Received};
use super::{Shared, database_error, history, schema, versions};
use crate::digest::Md5;
use crate::path::RelPath;

/// Once so many wait, no more are taken into a group. A batch is never split.
const GROUP: usize = 1024;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A write that waits, and whom to tell.
pub struct Job {
    pub ns: String,
    pub path: RelPath,
    pub write: Write,
}

pub enum Write {
    Put { expect: Precondition, meta: BlobMeta, body: Received, reply: Reply<PutOutcome> },
    Delete { expect: Option<Precondition>, meta: BlobMeta, reply: Reply<DeleteOutcome> },
    Place { version: BlobVersion, body: Option<Received>, reply: Reply<ImportOutcome> },
}

/// What a job came to inside the open transaction.
enum Outcome {
    Put(PutOutcome),
    Deleted(DeleteOutcome),
    /// The entry, where it was written.
    Placed(Option<IndexEntry>),
}

impl Outcome {
    /// The entry that was written.
    fn written(&self) -> Option<IndexEntry> {
        match *self {
            Self::Put(PutOutcome::Created(entry) | PutOutcome::Updated(entry))
            | Self::Deleted(DeleteOutcome::Done(entry)) => Some(entry),
            Self::Placed(written) => written,
            Self::Put(PutOutcome::Mismatch(_)) | Self::Deleted(_) => None,
        }
    }
}

/// Why nothing of a group was written.
enum Failure {
    /// The transaction never got to its commit: it certainly left nothing.
    Before(rusqlite::Error),
    /// The commit itself failed. After a crash it could still turn out to have reached the disk.
    AtCommit(rusqlite::Error),
}

/// What a committed group leaves to do.
struct Committed {
    /// With the bytes by which the live entries grew.
    outcomes: Vec<(Outcome, i64)>,
    /// Files of contents that no version has any more.
    replaced: Vec<String>,
    /// The history id that began with this group.
    begun: Option<Arc<str>>,
}

/// A row as the decision needs it.
pub struct Held {
    id: i64,
    pub entry: IndexEntry,
    pub file: Option<String>,
    pub meta: String,
    pub body: Option<i64>,
}

/// Serves jobs until every sender is gone. Then it empties the log: an older database that someone copies over this one
/// must not find a newer log beside it. Closing does that only for the last connection, and a read may still run.
pub fn run(mut db: Connection, shared: &Shared, mut jobs: mpsc::Receiver<Vec<Job>>) {
    let mut has_begun = false;
    while let Some(mut group) = jobs.blocking_recv() {
        while group.len() < GROUP {
            let Ok(more) = jobs.try_recv() else { break };
            group.extend(more);
        }
        match commit(&mut db, shared, &group, has_begun) {
            Ok(done) => {
                has_begun |= done.begun.is_some();
                acknowledge(shared, group.drain(..), done);
            }
            Err(failure) => refuse(group.drain(..), failure),
        }
    }
    match schema::empty_log(&db) {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!(
                "{}: another process reads the store, so its log stays; copy no older database over it",
                shared.dir.display()
            );
        }
        Err(e) => tracing::warn!("{}: the log of the store could not be emptied: {e}", shared.dir.display()),
    }
}

/// Writes a group in one transaction. `has_begun`: this process has begun its history id.
fn commit(db: &mut Connection, shared: &Shared, group: &[Job], has_begun: bool) -> Result<Committed, Failure> {
    // A transaction that began by reading would fail where a record is written meanwhile, instead of waiting.
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(Failure::Before)?;
    let before = shared.cursor();
    let mut cursor = before;
    let mut replaced = Vec::new();
    let mut outcomes = Vec::with_capacity(group.len());
    for job in group {
        let outcome = apply(&tx, shared, job, &mut cursor, &mut replaced).map_err(Failure::Before)?;
        outcomes.push(outcome);
    }
    let begins = !has_begun && cursor > before;
    let begun = begins.then(|| history::begin(&tx, before)).transpose().map_err(Failure::Before)?;
    crate::failpoint::pass("store-before-commit");
    tx.commit().map_err(Failure::AtCommit)?;
    crate::failpoint::pass("store-after-commit");
    Ok(Committed { outcomes, replaced, begun })
}

fn apply(
    tx: &Transaction<'_>,
    shared: &Shared,
    job: &Job,
    cursor: &mut u64,
    replaced: &mut Vec<String>,
) -> rusqlite::Result<(Outcome, i64)> {
    let held = find(tx, &job.ns, job.path.as_str())?;
    let entry = held.as_ref().map(|h| h.entry);
    let mut version = next_version((shared.clock)(), entry.as_ref());
    if held.is_none() {
        // Earlier versions outlive the tombstone, and the clock may have been set back since.
        version = version.max(versions::last_version(tx, &job.ns, job.path.as_str())? + 1);
    }
    let outcome = match &job.write {
        Write::Put { expect, .. } if !expect.admits(entry.as_ref()) => Outcome::Put(PutOutcome::Mismatch(entry)),
        Write::Put { meta, body, .. } => {
            let new = IndexEntry { md5: body.md5, size: body.size, is_deleted: false, version, cursor: *cursor + 1 };
            let live = held.as_ref().filter(|h| !h.entry.is_deleted);
            let meta = match live {
                Some(old) => meta.clone().over(&read_meta(&old.meta)),
                None => meta.clone(),
            };
            store(tx, job, held.as_ref(), &new, &meta, Some(&body.content))?;
            Outcome::Put(if live.is_some() { PutOutcome::Updated(new) } else { PutOutcome::Created(new) })
        }
        Write::Delete { expect, meta, .. } => Outcome::Deleted(match entry {
            None => DeleteOutcome::Absent,
            Some(entry) if entry.is_deleted => DeleteOutcome::Tombstone(entry),
            Some(entry) if expect.is_some_and(|e| !e.admits(Some(&entry))) => DeleteOutcome::Mismatch(entry),
            Some(entry) => {
                let new = IndexEntry { size: 0, is_deleted: true, version, cursor: *cursor + 1, ..entry };
                store(tx, job, held.as_ref(), &new, &meta.clone().of_deletion(), None)?;
                DeleteOutcome::Done(new)
            }
        }),
        Write::Place { version, .. } if entry.is_some_and(|e| e.version >= version.version) => Outcome::Placed(None),
        Write::Place { version: new, body, .. } => {
            let BlobVersion { version, md5, size, is_deleted, ref meta } = *new;
            let new = IndexEntry { md5, size, is_deleted, version, cursor: *cursor + 1 };
            store(tx, job, held.as_ref(), &new, meta, body.as_ref().map(|body| &body.content))?;
            Outcome::Placed(Some(new))
        }
    };
    let mut grown = 0;
    if let Some(new) = outcome.written() {
        grown = signed(new.size) - entry.map_or(0, |old| signed(old.size));
        *cursor += 1;
        if let Some(old) = held.filter(|h| !h.entry.is_deleted) {
            replaced.extend(versions::keep(tx, &shared.retention, job, &old, &new)?);
        }
    }
    Ok((outcome, grown))
}

fn find(tx: &Transaction<'_>, ns: &str, path: &str) -> rusqlite::Result<Option<Held>> {
    tx.prepare_cached(
        "SELECT md5, size, is_deleted, version, cursor, id, file, meta, body FROM entry WHERE ns = ? AND path = ?",
    )?
    .query_row([ns, path], |row| {
        Ok(Held { id: row.get(5)?, entry: entry_of(row)?, file: row.get(6)?, meta: row.get(7)?, body: row.get(8)? })
    })
    .optional()
}

/// Writes the row and, where there is one, its content. What the row held before is not touched: an earlier version
/// has it.
fn store(
    tx: &Transaction<'_>,
    job: &Job,
    held: Option<&Held>,
    new: &IndexEntry,
    meta: &BlobMeta,
    content: Option<&Content>,
) -> rusqlite::Result<()> {
    let (file, body) = match content {
        Some(Content::File(file)) => (Some(file.name()), None),
        Some(Content::Inline(bytes)) => {
            tx.prepare_cached("INSERT INTO body (content) VALUES (?)")?.execute([&bytes[..]])?;
            (None, Some(tx.last_insert_rowid()))
        }
        None => (None, None),
    };
    let (text, expires) = (meta_text(meta), meta.expires.map(signed));
    match held {
        Some(held) => tx
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
                text,
                expires,
                body,
                held.id
            ])?,
        None => tx
            .prepare_cached(
                "INSERT INTO entry (ns, path, md5, size, is_deleted, version, cursor, file, meta, expires, body) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                job.ns,
                job.path.as_str(),
                new.md5.as_bytes(),
                signed(new.size),
                new.is_deleted,
                signed(new.version),
                signed(new.cursor),
                file,
                text,
                expires,
                body
            ])?,
    };
    Ok(())
}

/// Metadata as a row keeps it: JSON, or nothing where there is nothing to say.
fn meta_text(meta: &BlobMeta) -> String {
    if *meta == BlobMeta::default() {
        return String::new();
    }
    // Strings and numbers always serialise.
    serde_json::to_string(meta).unwrap_or_default()
}

/// [`meta_text`] read back. Metadata decides nothing, so what cannot be read is as good as absent.
pub fn read_meta(text: &str) -> BlobMeta {
    serde_json::from_str(text).unwrap_or_default()
}

/// The entry in the first five columns: md5, size, is_deleted, version, cursor.
pub fn entry_of(row: &Row<'_>) -> rusqlite::Result<IndexEntry> {
    Ok(IndexEntry {
        md5: Md5::from_bytes(row.get(0)?),
        size: unsigned(row, 1)?,
        is_deleted: row.get(2)?,
        version: unsigned(row, 3)?,
        cursor: unsigned(row, 4)?,
    })
}

/// SQLite's integers are signed. Nothing that is stored comes near the limit; a cursor that a client sent may.
pub fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A column that is never negative.
pub fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let n: i64 = row.get(column)?;
    u64::try_from(n).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, n))
}

/// Publishes the group first and answers after, so that whoever has an answer also sees its cursor.
fn acknowledge(shared: &Shared, group: impl Iterator<Item = Job>, done: Committed) {
    let mut changes = Vec::with_capacity(done.outcomes.len());
    let mut answers = Vec::with_capacity(done.outcomes.len());
    for (job, (outcome, grown)) in group.zip(done.outcomes) {
        let Job { ns, path, write } = job;
        let written = outcome.written();
        if let Some(entry) = written {
            changes.push((entry.version, grown, BlobChange { cursor: entry.cursor, ns, path }));
        }
        answers.push(match (write, outcome) {
            (Write::Put { body, reply, .. }, Outcome::Put(put)) => {
                keep_file(body, written);
                Answer::Put(reply, put)
            }
            (Write::Delete { reply, .. }, Outcome::Deleted(deleted)) => Answer::Deleted(reply, deleted),
            (Write::Place { body, reply, .. }, Outcome::Placed(_)) => {
                if let Some(body) = body {
                    keep_file(body, written);
                }
                Answer::Placed(reply, if written.is_some() { ImportOutcome::Written } else { ImportOutcome::Held })
            }
            // Each outcome was made from the job it is zipped with.
            (Write::Put { .. } | Write::Delete { .. } | Write::Place { .. }, _) => continue,
        });
    }
    for name in &done.replaced {
        shared.spool.remove(name);
    }
    if !changes.is_empty() {
        // In the order of their cursors, so the last of a namespace counts.
        let advanced = changes.iter().map(|(at, grown, change)| (change.ns.as_str(), change.cursor, *at, *grown));
        shared.advance(done.begun, advanced);
        let changes: Arc<[BlobChange]> = changes.into_iter().map(|(_, _, change)| change).collect();
        // An error only says that nobody listens.
        let _ = shared.changes.send(changes);
    }
    for answer in answers {
        answer.send();
    }
}

/// The file of a body that was written stays.
fn keep_file(body: Received, written: Option<IndexEntry>) {
    if let (Some(_), Content::File(file)) = (written, body.content) {
        file.keep();
    }
}

enum Answer {
    Put(Reply<PutOutcome>, PutOutcome),
    Deleted(Reply<DeleteOutcome>, DeleteOutcome),
    Placed(Reply<ImportOutcome>, ImportOutcome),
}

impl Answer {
    /// A caller that has gone does not hear of it; the write stands.
    fn send(self) {
        match self {
            Self::Put(reply, put) => drop(reply.send(Ok(put))),
            Self::Deleted(reply, deleted) => drop(reply.send(Ok(deleted))),
            Self::Placed(reply, placed) => drop(reply.send(Ok(placed))),
        }
    }
}

fn refuse(group: impl Iterator<Item = Job>, failure: Failure) {
    let (error, certain) = match failure {
        Failure::Before(e) => (database_error(e), true),
        Failure::AtCommit(e) => (database_error(e), false),
    };
    tracing::error!("{error}; the writes that waited were refused");
    for job in group {
        let body = match job.write {
            Write::Put { reply, body, .. } => {
                drop(reply.send(Err(error.clone())));
                Some(body)
            }
            Write::Delete { reply, .. } => {
                drop(reply.send(Err(error.clone())));
                None
            }
            Write::Place { reply, body, .. } => {
                drop(reply.send(Err(error.clone())));
                body
            }
        };
        // A row that may yet come back after a crash needs its file; otherwise the next sweep has it.
        if let (false, Some(Content::File(file))) = (certain, body.map(|body| body.content)) {
            file.keep();
        }
    }
}
