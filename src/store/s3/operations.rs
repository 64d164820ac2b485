//! Reads and writes of one blob together with its index entry.

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};

use super::super::{
    BlobBody, BlobMeta, BlobVersion, BodyWriter, DeleteOutcome, GetOutcome, ImportOutcome, IndexEntry, PutOutcome,
    StoreError, StoredBlob, WriteCondition, next_version,
};
use super::blobs::{FoundBlob, NewBlob, SwapOutcome};
use super::bucket::{ObjectInfo, read_whole};
use super::convert::{entry_of, meta_of, new_blob};
use super::core::S3Core;
use super::index_document::BlobRow;
use super::namespace_index::NamespaceIndex;
use super::spool::{SpooledBody, UploadWriter};
use crate::path::RelPath;

/// Bodies up to this many bytes are read completely before the answer begins.
pub(super) const MAX_WHOLE_BYTES: u64 = 256 * 1024;

impl S3Core {
    pub(super) async fn put(
        &self,
        ns: &str,
        path: &RelPath,
        expect: WriteCondition,
        meta: BlobMeta,
        body: UploadWriter,
    ) -> Result<PutOutcome, StoreError> {
        let body = body.finish().await?;
        let index = self.index(ns)?;
        self.check_owner(ns, path).await?;
        if !expect.admits(None) && !index.exists().await? {
            // A write that will be refused must not create the namespace.
            let found = self.blobs.find(ns, path).await?;
            if !expect.admits(found.as_ref().map(|f| entry_of(&f.row)).as_ref()) {
                return Ok(PutOutcome::Mismatch(found.map(|found| compared_entry(&index, path, &found))));
            }
        }
        self.begin_namespace(ns).await?;
        let _lock = self.lock_path(ns, path).await;
        // A write is in flight only once it has the lock. The index writer waits for every write in flight.
        let in_flight = matches!(body.content, SpooledBody::Inline(_)).then(|| index.begin_write());
        // Most new files have no blob. If the index has a tombstone, a blind write would only fail.
        let blind = expect.admits(None) && !index.has_entry(path);
        let swapped = self.blobs.swap(ns, path, blind, |found| {
            let held = found.map(|f| entry_of(&f.row));
            if !expect.admits(held.as_ref()) {
                return None;
            }
            let meta = match found {
                Some(old) if !old.row.is_deleted => meta.clone().inherit(&meta_of(&old.object.metadata)),
                _ => meta.clone(),
            };
            let version = next_version((self.clock)(), held.as_ref());
            let row = BlobRow { md5: body.md5, size: body.size, is_deleted: false, version };
            Some(new_blob(row, body.content.clone(), &meta))
        });
        match swapped.await? {
            SwapOutcome::Done { before, row } => {
                self.record_write(ns, path, before, row, in_flight).await?;
                let was_live = before.is_some_and(|b| !b.is_deleted);
                let entry = entry_of(&row);
                Ok(if was_live { PutOutcome::Updated(entry) } else { PutOutcome::Created(entry) })
            }
            SwapOutcome::Refused(found) => {
                Ok(PutOutcome::Mismatch(found.map(|found| compared_entry(&index, path, &found))))
            }
        }
    }

    pub(super) async fn delete(
        &self,
        ns: &str,
        path: &RelPath,
        expect: Option<WriteCondition>,
        meta: BlobMeta,
    ) -> Result<DeleteOutcome, StoreError> {
        let index = self.index(ns)?;
        self.check_owner(ns, path).await?;
        let admitted = |found: Option<&FoundBlob>| {
            let held = entry_of(&found.filter(|f| !f.row.is_deleted)?.row);
            expect.is_none_or(|e| e.admits(Some(&held))).then_some(held)
        };
        let refused = |found: Option<FoundBlob>| {
            let Some(held) = found.map(|found| compared_entry(&index, path, &found)) else {
                return DeleteOutcome::Absent;
            };
            if held.is_deleted { DeleteOutcome::Tombstone(held) } else { DeleteOutcome::Mismatch(held) }
        };
        if !index.exists().await? {
            // A tombstone needs an index, but a deletion that will be refused must not create the namespace.
            let found = self.blobs.find(ns, path).await?;
            if admitted(found.as_ref()).is_none() {
                return Ok(refused(found));
            }
            self.begin_namespace(ns).await?;
        }
        let _lock = self.lock_path(ns, path).await;
        let in_flight = index.begin_write();
        let meta = meta.for_tombstone();
        let swapped = self.blobs.swap(ns, path, false, |found| {
            let held = admitted(found)?;
            let version = next_version((self.clock)(), Some(&held));
            let row = BlobRow { md5: held.md5, size: 0, is_deleted: true, version };
            Some(NewBlob { is_another: true, ..new_blob(row, SpooledBody::Inline(Bytes::new()), &meta) })
        });
        Ok(match swapped.await? {
            SwapOutcome::Done { row, .. } => {
                index.record(path, row, Some(in_flight)).await?;
                DeleteOutcome::Done(entry_of(&row))
            }
            SwapOutcome::Refused(found) => refused(found),
        })
    }

    pub(super) async fn import_version(
        &self,
        ns: &str,
        path: &RelPath,
        version: BlobVersion,
        body: Option<UploadWriter>,
    ) -> Result<ImportOutcome, StoreError> {
        let BlobVersion { version, md5, is_deleted, meta, .. } = version;
        let (size, content) = match body {
            Some(body) => {
                let body = body.finish().await?;
                (body.size, body.content)
            }
            None => (0, SpooledBody::Inline(Bytes::new())),
        };
        let row = BlobRow { md5, size, is_deleted, version };
        // Other stores have room for more metadata.
        let meta = meta.cut_to_fit();
        let index = self.index(ns)?;
        self.check_owner(ns, path).await?;
        self.begin_namespace(ns).await?;
        let _lock = self.lock_path(ns, path).await;
        let in_flight = index.begin_write();
        let swapped = self.blobs.swap(ns, path, !index.has_entry(path), |found| {
            let is_later = found.is_none_or(|f| f.row.version < version);
            // Keep two versions of the same content: a deletion may have been between them.
            is_later.then(|| NewBlob { is_another: true, ..new_blob(row, content.clone(), &meta) })
        });
        match swapped.await? {
            SwapOutcome::Done { before, row } => {
                self.record_write(ns, path, before, row, Some(in_flight)).await?;
                Ok(ImportOutcome::Written)
            }
            SwapOutcome::Refused(found) => {
                if let Some(found) = found {
                    index.compare(path, &found.row);
                }
                Ok(ImportOutcome::Held)
            }
        }
    }

    pub(super) async fn get(&self, ns: &str, path: &RelPath) -> Result<GetOutcome, StoreError> {
        let (found, ()) = tokio::try_join!(self.blobs.fetch(ns, path), self.check_owner(ns, path))?;
        let Some((row, object, body)) = found else { return Ok(GetOutcome::Absent) };
        let index = self.index(ns)?;
        let Some(row) = row else { return self.digest_body(&index, path, object, body).await };
        index.compare(path, &row);
        if row.is_deleted {
            return Ok(GetOutcome::Tombstone(entry_of(&row)));
        }
        let body = read_small(body, row.size).await?;
        Ok(GetOutcome::Found(StoredBlob { entry: entry_of(&row), meta: meta_of(&object.metadata), body }))
    }

    /// Reads a blob of another program, whose metadata lacks the MD5.
    async fn digest_body(
        &self,
        index: &NamespaceIndex,
        path: &RelPath,
        object: ObjectInfo,
        mut pieces: BoxStream<'static, Result<Bytes, StoreError>>,
    ) -> Result<GetOutcome, StoreError> {
        let mut body = UploadWriter::new(self.spool.clone());
        while let Some(piece) = pieces.next().await {
            body.push(piece?).await?;
        }
        let body = body.finish().await?;
        let version = object.metadata.version.unwrap_or(object.modified);
        let row = BlobRow { md5: body.md5, size: body.size, is_deleted: false, version };
        index.compare(path, &row);
        let meta = meta_of(&object.metadata);
        let body = match body.content {
            SpooledBody::Inline(bytes) => BlobBody::Whole(bytes),
            SpooledBody::File(file) => BlobBody::Pieces(file.pieces()),
        };
        Ok(GetOutcome::Found(StoredBlob { entry: entry_of(&row), meta, body }))
    }
}

/// A body of `size` bytes: complete if it is small, otherwise as a stream.
async fn read_small(body: BoxStream<'static, Result<Bytes, StoreError>>, size: u64) -> Result<BlobBody, StoreError> {
    if size <= MAX_WHOLE_BYTES {
        return Ok(BlobBody::Whole(read_whole(body, MAX_WHOLE_BYTES).await?));
    }
    Ok(BlobBody::Pieces(body.map_err(std::io::Error::other).boxed()))
}

/// The entry of a blob, which is also compared with the index.
fn compared_entry(index: &NamespaceIndex, path: &RelPath, found: &FoundBlob) -> IndexEntry {
    index.compare(path, &found.row);
    entry_of(&found.row)
}
