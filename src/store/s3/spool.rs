//! Bodies before they are uploaded: in memory while they are small, then in an unnamed file, which disappears with the
//! process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use super::super::{BodyWriter, StoreError, new_id};
use crate::digest::{Md5, Md5Hasher};

/// Bodies up to this many bytes stay in memory.
const MAX_INLINE_BYTES: usize = 256 * 1024;
/// Bytes of one read.
const CHUNK_BYTES: usize = 256 * 1024;

/// The content of a finished body. It can be read any number of times.
#[derive(Clone)]
pub(super) enum SpooledBody {
    Inline(Bytes),
    File(UnnamedFile),
}

/// A body in an unnamed file.
#[derive(Debug, Clone)]
pub(super) struct UnnamedFile {
    file: Arc<File>,
    /// Bytes.
    pub(super) size: u64,
}

impl UnnamedFile {
    /// Streams the whole body.
    pub(super) fn pieces(&self) -> BoxStream<'static, io::Result<Bytes>> {
        stream::try_unfold((self.clone(), 0), |(body, at)| async move {
            let left = body.size - at;
            if left == 0 {
                return Ok(None);
            }
            let want = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let file = body.file.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; want];
                file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
            });
            let piece = read.await.map_err(io::Error::other)??;
            Ok(Some((piece, (body, at + want as u64))))
        })
        .boxed()
    }
}

/// A body that arrived completely.
pub(super) struct BucketUpload {
    pub(super) md5: Md5,
    /// Bytes.
    pub(super) size: u64,
    pub(super) content: SpooledBody,
}

/// Takes a body in.
pub struct UploadWriter {
    dir: Arc<Path>,
    size: u64,
    buffer: Vec<u8>,
    hasher: Md5Hasher,
    file: Option<File>,
}

impl UploadWriter {
    /// `dir` is the directory for a large body's file.
    pub(super) fn new(dir: Arc<Path>) -> Self {
        Self { dir, size: 0, buffer: Vec::new(), hasher: Md5Hasher::new(), file: None }
    }

    /// Writes and digests the buffer on a blocking thread.
    async fn flush(self) -> Result<Self, StoreError> {
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || self.write()).await.map_err(|_| StoreError::Closed)?;
        written.map_err(|e| StoreError::io(&dir, &e))
    }

    fn write(mut self) -> io::Result<Self> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => create_unnamed(&self.dir)?,
        };
        file.write_all(&self.buffer)?;
        self.hasher.update(&self.buffer);
        self.buffer.clear();
        self.file = Some(file);
        Ok(self)
    }

    /// The body and its digest.
    pub(super) async fn finish(mut self) -> Result<BucketUpload, StoreError> {
        if self.file.is_none() {
            self.hasher.update(&self.buffer);
            let content = SpooledBody::Inline(self.buffer.into());
            return Ok(BucketUpload { md5: self.hasher.finish(), size: self.size, content });
        }
        let done = self.flush().await?;
        let file = Arc::new(done.file.ok_or(StoreError::Closed)?);
        let content = SpooledBody::File(UnnamedFile { file, size: done.size });
        Ok(BucketUpload { md5: done.hasher.finish(), size: done.size, content })
    }
}

impl BodyWriter for UploadWriter {
    async fn push(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.size += piece.len() as u64;
        self.buffer.extend_from_slice(&piece);
        if self.buffer.len() > MAX_INLINE_BYTES {
            let taken = std::mem::replace(self, Self::new(self.dir.clone()));
            *self = taken.flush().await?;
        }
        Ok(())
    }
}

/// Creates a file with mode 0600 and removes its name.
fn create_unnamed(dir: &Path) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = dir.join(&*new_id());
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
    fs::remove_file(&name)?;
    Ok(file)
}
