//! The work of a store on S3: writes of a blob and its entry, reads, and what an entry or its metadata is in the words
//! of the other layer.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};

use super::super::{
    BlobBody, BlobMeta, BlobVersion, BodyWriter, DeleteOutcome, GetOutcome, ImportOutcome, IndexEntry, IndexState,
    Precondition, PutOutcome, StoreError, StoredBlob, WallClock, next_version,
};
use super::blobs::{Blobs, Found, New, Swapped};
use super::borders::Borders;
use super::bucket::{Object, whole};
use super::changes::Announcer;
use super::index::Row;
use super::layout::Described;
use super::ledger::Ledger;
use super::seen::Kept;
use super::spool::{Content, Upload};
use crate::path::RelPath;

/// Bodies up to this many bytes are read from the store before the answer begins.
pub const WHOLE: u64 = 256 * 1024;

/// Beyond this many, the indexes of namespaces that have not begun are not kept.
const LEDGERS: usize = 256;

/// What the clones of a store share.
pub struct Inner {
    pub blobs: Blobs,
    pub ledgers: Mutex<HashMap<String, Arc<Ledger>>>,
    pub turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    pub spool: Arc<Path>,
    pub changes: Arc<Announcer>,
    pub clock: WallClock,
    /// When an index was last asked for to count what a namespace holds.
    pub counted: Mutex<HashMap<String, Instant>>,
    pub place: String,
    pub borders: Borders,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is changed in one step, so a panic elsewhere cannot have damaged it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// The index of a namespace.
    pub fn ledger(&self, ns: &str) -> Result<Arc<Ledger>, StoreError> {
        let mut ledgers = lock(&self.ledgers);
        if let Some(ledger) = ledgers.get(ns) {
            return Ok(ledger.clone());
        }
        let changes = self.changes.clone();
        let told = Arc::new(move |ns: &str, paths: Vec<RelPath>| changes.tell(ns, paths));
        let key = self.blobs.layout.index(ns)?;
        let ledger = Arc::new(Ledger::open(ns, key, self.blobs.clone(), self.clock.clone(), told));
        if ledgers.len() >= LEDGERS {
            // Whoever asks may name any number of namespaces; only those that have begun are worth keeping.
            ledgers.retain(|ns, ledger| ns.is_empty() || ledger.is_there() || Arc::strong_count(ledger) > 1);
        }
        ledgers.insert(ns.to_owned(), ledger.clone());
        Ok(ledger)
    }

    /// One writer of a path at a time in this process: the others would only lose the race at the store. It also
    /// keeps apart what an ETag cannot, as two tombstones of one path have the same.
    async fn turn_of(&self, ns: &str, path: &RelPath) -> tokio::sync::OwnedMutexGuard<()> {
        self.turn(format!("{ns}\n{path}")).await
    }

    /// One at a time of whatever has this name in this process.
    pub async fn turn(&self, name: String) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            if turns.len() > 1024 {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            let known = turns.get(&name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let new = Arc::new(tokio::sync::Mutex::new(()));
                turns.insert(name, Arc::downgrade(&new));
                new
            })
        };
        turn.lock_owned().await
    }

    pub async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Precondition,
        meta: BlobMeta,
        body: Upload,
    ) -> Result<PutOutcome, StoreError> {
        let body = body.finish().await?;
        let ledger = self.ledger(ns)?;
        self.stay_within(ns, path).await?;
        if !expect.admits(None) && !ledger.exists().await? {
            // What is refused begins no namespace.
            let found = self.blobs.look(ns, path).await?;
            if !expect.admits(found.as_ref().map(|f| entry(&f.row)).as_ref()) {
                return Ok(PutOutcome::Mismatch(found.map(|found| seen(&ledger, path, &found))));
            }
        }
        self.begin(ns).await?;
        let _turn = self.turn_of(ns, path).await;
        // Who waits for a turn is not under way: the index would wait for it in vain.
        let under_way = matches!(body.content, Content::Inline(_)).then(|| ledger.under_way());
        // Most new files are new; a tombstone would only cost the blind write.
        let blind = expect.admits(None) && !ledger.knows(path);
        let swapped = self.blobs.swap(ns, path, blind, |found| {
            let held = found.map(|f| entry(&f.row));
            if !expect.admits(held.as_ref()) {
                return None;
            }
            let meta = match found {
                Some(old) if !old.row.is_deleted => meta.clone().over(&read_meta(&old.object.described)),
                _ => meta.clone(),
            };
            let version = next_version((self.clock)(), held.as_ref());
            let row = Row { md5: body.md5, size: body.size, is_deleted: false, version };
            Some(new(row, body.content.clone(), &meta))
        });
        match swapped.await? {
            Swapped::Done { before, row } => {
                self.record(ns, path, before, row, under_way).await?;
                let live = before.is_some_and(|b| !b.is_deleted);
                Ok(if live { PutOutcome::Updated(entry(&row)) } else { PutOutcome::Created(entry(&row)) })
            }
            Swapped::Refused(found) => Ok(PutOutcome::Mismatch(found.map(|found| seen(&ledger, path, &found)))),
        }
    }

    pub async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<Precondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        let ledger = self.ledger(ns)?;
        self.stay_within(ns, path).await?;
        let admitted = |found: Option<&Found>| {
            let held = entry(&found.filter(|f| !f.row.is_deleted)?.row);
            expect.is_none_or(|e| e.admits(Some(&held))).then_some(held)
        };
        let refused = |found: Option<Found>| {
            let Some(held) = found.map(|found| seen(&ledger, path, &found)) else { return DeleteOutcome::Absent };
            if held.is_deleted { DeleteOutcome::Tombstone(held) } else { DeleteOutcome::Mismatch(held) }
        };
        if !ledger.exists().await? {
            // A tombstone needs an index, but what is refused begins no namespace.
            let found = self.blobs.look(ns, path).await?;
            if admitted(found.as_ref()).is_none() {
                return Ok(refused(found));
            }
            self.begin(ns).await?;
        }
        let _turn = self.turn_of(ns, path).await;
        let under_way = ledger.under_way();
        let meta = meta.of_deletion();
        let swapped = self.blobs.swap(ns, path, false, |found| {
            let held = admitted(found)?;
            let version = next_version((self.clock)(), Some(&held));
            let row = Row { md5: held.md5, size: 0, is_deleted: true, version };
            Some(New { is_another: true, ..new(row, Content::Inline(Bytes::new()), &meta) })
        });
        Ok(match swapped.await? {
            Swapped::Done { row, .. } => {
                ledger.record(path, row, Some(under_way)).await?;
                DeleteOutcome::Done(entry(&row))
            }
            Swapped::Refused(found) => refused(found),
        })
    }

    pub async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<Upload>,
    ) -> Result<ImportOutcome, StoreError> {
        let BlobVersion { version, md5, is_deleted, meta, .. } = version;
        let (size, content) = match body {
            Some(body) => {
                let body = body.finish().await?;
                (body.size, body.content)
            }
            None => (0, Content::Inline(Bytes::new())),
        };
        let row = Row { md5, size, is_deleted, version };
        // Another store may have taken more of it.
        let meta = meta.cut_to_fit();
        let ledger = self.ledger(ns)?;
        self.stay_within(ns, path).await?;
        self.begin(ns).await?;
        let _turn = self.turn_of(ns, path).await;
        let under_way = ledger.under_way();
        let swapped = self.blobs.swap(ns, path, !ledger.knows(path), |found| {
            let is_later = found.is_none_or(|f| f.row.version < version);
            // What another store had as two versions stays two: they may have been apart by a deletion.
            is_later.then(|| New { is_another: true, ..new(row, content.clone(), &meta) })
        });
        match swapped.await? {
            Swapped::Done { before, row } => {
                self.record(ns, path, before, row, Some(under_way)).await?;
                Ok(ImportOutcome::Written)
            }
            Swapped::Refused(found) => {
                if let Some(found) = found {
                    ledger.compare(path, &found.row);
                }
                Ok(ImportOutcome::Held)
            }
        }
    }

    pub async fn get(&self, ns: &str, path: &RelPath) -> Result<GetOutcome, StoreError> {
        let (found, ()) = tokio::try_join!(self.blobs.fetch(ns, path), self.stay_within(ns, path))?;
        let Some((row, object, body)) = found else { return Ok(GetOutcome::Absent) };
        let ledger = self.ledger(ns)?;
        let Some(row) = row else { return self.digested(&ledger, path, object, body).await };
        ledger.compare(path, &row);
        if row.is_deleted {
            return Ok(GetOutcome::Tombstone(entry(&row)));
        }
        let meta = read_meta(&object.described);
        let body = if row.size <= WHOLE {
            BlobBody::Whole(whole(body, WHOLE).await?)
        } else {
            BlobBody::Pieces(body.map_err(std::io::Error::other).boxed())
        };
        Ok(GetOutcome::Found(StoredBlob { entry: entry(&row), meta, body }))
    }

    /// A blob whose metadata does not tell its MD5: another program put it there.
    async fn digested(
        &self,
        ledger: &Ledger,
        path: &RelPath,
        object: Object,
        mut pieces: BoxStream<'static, Result<Bytes, StoreError>>,
    ) -> Result<GetOutcome, StoreError> {
        let mut body = Upload::new(self.spool.clone());
        while let Some(piece) = pieces.next().await {
            body.push(piece?).await?;
        }
        let body = body.finish().await?;
        let version = object.described.version.unwrap_or(object.modified);
        let row = Row { md5: body.md5, size: body.size, is_deleted: false, version };
        ledger.compare(path, &row);
        let meta = read_meta(&object.described);
        let body = match body.content {
            Content::Inline(bytes) => BlobBody::Whole(bytes),
            Content::File(file) => BlobBody::Pieces(file.pieces()),
        };
        Ok(GetOutcome::Found(StoredBlob { entry: entry(&row), meta, body }))
    }
}

/// What was found at `path`, compared with the index on the way.
fn seen(ledger: &Ledger, path: &RelPath, found: &Found) -> IndexEntry {
    ledger.compare(path, &found.row);
    entry(&found.row)
}

/// A row as an entry; the cursor is of exact indexes only.
pub fn entry(row: &Row) -> IndexEntry {
    let Row { md5, size, is_deleted, version } = *row;
    IndexEntry { md5, size, is_deleted, version, cursor: 0 }
}

fn new(row: Row, content: Content, meta: &BlobMeta) -> New {
    let named = [("device", meta.device.clone()), ("key", meta.key.clone())];
    let expires = meta.expires.map(|at| ("expires".to_owned(), at.to_string()));
    let mut ours: BTreeMap<String, String> =
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).chain(expires).collect();
    if !meta.free.is_empty()
        && let Ok(json) = serde_json::to_string(&meta.free)
    {
        // As one value: names of headers cannot carry every name.
        ours.insert("meta".to_owned(), json);
    }
    New { row, content, content_type: meta.content_type.clone(), ours, expires: meta.expires, is_another: false }
}

pub fn read_meta(described: &Described) -> BlobMeta {
    let ours = |name: &str| described.ours.get(name).cloned();
    BlobMeta {
        content_type: described.content_type.clone(),
        device: ours("device"),
        key: ours("key"),
        expires: described.expires(),
        free: ours("meta").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
    }
}

pub fn state(kept: &Kept) -> IndexState {
    let modified = kept.document.modified;
    IndexState { tag: kept.tag().into(), mark: None, modified, history: kept.document.history.point(modified) }
}

pub fn version(row: &Row, object: &Object) -> BlobVersion {
    let Row { md5, size, is_deleted, version } = *row;
    BlobVersion { version, md5, size, is_deleted, meta: read_meta(&object.described) }
}
