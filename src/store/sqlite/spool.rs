//! Large bodies: each is a file of its own, so that neither memory nor the database holds it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::task::JoinHandle;

use super::super::{BodyWriter, StoreError, new_id};
use crate::digest::{Md5, Md5Hasher};

/// Bodies up to this many bytes stay in memory and go into the database.
pub(super) const MAX_INLINE_BYTES: usize = 256 * 1024;
/// Bytes of one read or write.
const CHUNK_BYTES: usize = 256 * 1024;

/// The directory of large bodies.
pub(super) struct BodyFiles {
    dir: PathBuf,
}

impl BodyFiles {
    pub(super) fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { dir })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn create(self: &Arc<Self>) -> io::Result<(BodyFile, File)> {
        let name = new_id().to_string();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(&name))?;
        Ok((BodyFile { files: self.clone(), name, keep: false }, file))
    }

    /// Removes a file that no row names. If that fails, the next start removes it.
    pub(super) fn remove(&self, name: &str) {
        if let Err(e) = fs::remove_file(self.path(name)) {
            tracing::warn!(file = %self.path(name).display(), "a replaced body could not be removed: {e}");
        }
    }

    /// Removes all files that no row names. A crash leaves such files.
    pub(super) fn remove_unnamed(&self, named: &HashSet<String>) -> io::Result<()> {
        for found in fs::read_dir(&self.dir)? {
            let found = found?;
            let is_named = found.file_name().to_str().is_some_and(|name| named.contains(name));
            if !is_named && let Err(e) = fs::remove_file(found.path()) {
                tracing::warn!(file = %found.path().display(), "an unused body could not be removed: {e}");
            }
        }
        Ok(())
    }
}

/// A body file, removed on drop unless it is kept.
pub(super) struct BodyFile {
    files: Arc<BodyFiles>,
    name: String,
    keep: bool,
}

impl BodyFile {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        if !self.keep {
            self.files.remove(&self.name);
        }
    }
}

/// The content of a finished body.
pub(super) enum BodyContent {
    Inline(Bytes),
    /// A durable file.
    File(BodyFile),
}

/// A body that arrived completely.
pub(super) struct FinishedBody {
    pub(super) md5: Md5,
    /// Bytes.
    pub(super) size: u64,
    pub(super) content: BodyContent,
}

impl FinishedBody {
    pub(super) fn inline(content: Bytes) -> Self {
        Self { md5: Md5::of(&content), size: content.len() as u64, content: BodyContent::Inline(content) }
    }
}

/// Takes a body in: in memory while it is small, then in a file. A blocking thread writes and digests one chunk while the
/// next one arrives.
pub struct SpooledWriter {
    files: Arc<BodyFiles>,
    size: u64,
    buffer: Vec<u8>,
    writing: Option<JoinHandle<io::Result<OpenBodyFile>>>,
}

struct OpenBodyFile {
    file: File,
    body: BodyFile,
    hasher: Md5Hasher,
}

impl OpenBodyFile {
    fn create(files: &Arc<BodyFiles>) -> io::Result<Self> {
        let (body, file) = files.create()?;
        Ok(Self { file, body, hasher: Md5Hasher::new() })
    }

    fn write(mut self, chunk: &[u8]) -> io::Result<Self> {
        self.file.write_all(chunk)?;
        self.hasher.update(chunk);
        Ok(self)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        File::open(&self.body.files.dir)?.sync_all()
    }
}

impl SpooledWriter {
    pub(super) fn new(files: Arc<BodyFiles>) -> Self {
        Self { files, size: 0, buffer: Vec::new(), writing: None }
    }

    /// Waits for the previous chunk, then starts to write the buffer.
    async fn flush(&mut self) -> Result<(), StoreError> {
        let open = self.finish_chunk().await?;
        let chunk = std::mem::take(&mut self.buffer);
        let files = self.files.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let open = open.map_or_else(|| OpenBodyFile::create(&files), Ok)?;
            open.write(&chunk)
        }));
        Ok(())
    }

    /// The file after the last flush; `None` if there was no flush.
    async fn finish_chunk(&mut self) -> Result<Option<OpenBodyFile>, StoreError> {
        let Some(writing) = self.writing.take() else { return Ok(None) };
        let written = writing.await.map_err(|_| StoreError::Closed)?;
        written.map(Some).map_err(|e| StoreError::io(&self.files.dir, &e))
    }

    /// The body. A file is durable when this returns.
    pub(super) async fn finish(mut self) -> Result<FinishedBody, StoreError> {
        if self.writing.is_none() && self.buffer.len() <= MAX_INLINE_BYTES {
            return Ok(FinishedBody::inline(self.buffer.into()));
        }
        self.flush().await?;
        let open = self.finish_chunk().await?.ok_or(StoreError::Closed)?;
        let synced = run_blocking(move || open.sync().map(|()| open)).await?;
        let OpenBodyFile { body, hasher, .. } = synced.map_err(|e| StoreError::io(&self.files.dir, &e))?;
        Ok(FinishedBody { md5: hasher.finish(), size: self.size, content: BodyContent::File(body) })
    }
}

impl BodyWriter for SpooledWriter {
    async fn push(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.size += piece.len() as u64;
        if !self.buffer.is_empty() && self.buffer.len() + piece.len() > CHUNK_BYTES {
            self.flush().await?;
        }
        append(&mut self.buffer, &piece);
        Ok(())
    }
}

/// Appends a piece. The capacity doubles up to a chunk, so that it wastes little memory.
fn append(buffer: &mut Vec<u8>, piece: &[u8]) {
    let needed = buffer.len() + piece.len();
    let capacity = needed.max(CHUNK_BYTES.min(needed.next_power_of_two()));
    buffer.reserve_exact(capacity - buffer.len());
    buffer.extend_from_slice(piece);
}

/// Streams the `size` bytes of an open file.
pub(super) fn pieces(file: File, size: u64) -> BoxStream<'static, io::Result<Bytes>> {
    stream::try_unfold((file, size), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let want = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let read = run_blocking(move || {
            let mut piece = vec![0; want];
            file.read_exact(&mut piece).map(|()| (Bytes::from(piece), file))
        });
        let (piece, file) = read.await.map_err(io::Error::other)??;
        Ok(Some((piece, (file, left - want as u64))))
    })
    .boxed()
}

/// Runs `work` on a blocking thread.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)
}

/// Makes new names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::io(dir, &e))
}
