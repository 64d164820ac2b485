//! [`BodyWriter`]: takes a body in, in memory while it is small, then in a file.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::task::JoinHandle;

use super::error::StoreError;
use super::types::{new_id, run_blocking};
use crate::digest::{Md5, Md5Hasher};

/// Bodies up to this many bytes stay in memory.
pub(super) const MAX_INLINE_BYTES: usize = 256 * 1024;
/// Bytes of one read or write.
const CHUNK_BYTES: usize = 256 * 1024;

/// The directory of large bodies.
pub(crate) struct BodyDir {
    path: PathBuf,
    /// True: files have names and are durable. False: they have no names and disappear with the process, and the directory
    /// is created when it is needed.
    is_durable: bool,
}

impl BodyDir {
    pub(super) fn durable(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, is_durable: true })
    }

    pub(crate) fn temporary(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, is_durable: false })
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn create(self: &Arc<Self>) -> io::Result<OpenBody> {
        if !self.is_durable {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        }
        let name = new_id();
        let path = self.file(&name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let is_kept = AtomicBool::new(!self.is_durable);
        let body = BodyFile { dir: self.clone(), name, file: Arc::new(file), size: 0, is_kept };
        if !self.is_durable {
            fs::remove_file(path)?;
        }
        Ok(OpenBody { body, hasher: Md5Hasher::new() })
    }

    /// Removes a durable file that is no longer used. If that fails, [`BodyDir::remove_unused`] removes it at the next start.
    pub(super) fn remove(&self, name: &str) {
        remove_body(&self.file(name));
    }

    /// Removes all files except `used`. A crash leaves such files.
    pub(super) fn remove_unused(&self, used: &HashSet<String>) -> io::Result<()> {
        for found in fs::read_dir(&self.path)? {
            let found = found?;
            let is_used = found.file_name().to_str().is_some_and(|name| used.contains(name));
            if !is_used {
                remove_body(&found.path());
            }
        }
        Ok(())
    }
}

fn remove_body(file: &Path) {
    if let Err(e) = fs::remove_file(file) {
        tracing::warn!(file = %file.display(), "an unused body could not be removed: {e}");
    }
}

/// A body in a file. It can be read any number of times.
pub(crate) struct BodyFile {
    dir: Arc<BodyDir>,
    name: Arc<str>,
    file: Arc<File>,
    /// Bytes.
    pub(super) size: u64,
    /// True if the file stays when this is dropped.
    is_kept: AtomicBool,
}

impl BodyFile {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    pub(crate) fn pieces(&self) -> BoxStream<'static, io::Result<Bytes>> {
        pieces(self.file.clone(), self.size)
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Relaxed) {
            self.dir.remove(&self.name);
        }
    }
}

/// Streams the `size` bytes of a file.
pub(super) fn pieces(file: Arc<File>, size: u64) -> BoxStream<'static, io::Result<Bytes>> {
    stream::try_unfold((file, 0), move |(file, at)| async move {
        if at == size {
            return Ok(None);
        }
        let want = usize::try_from(size - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let open = file.clone();
        let read = run_blocking(move || {
            let mut piece = vec![0; want];
            open.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
        });
        let piece = read.await.map_err(io::Error::other)??;
        Ok(Some((piece, (file, at + want as u64))))
    })
    .boxed()
}

/// The content of a finished body.
#[derive(Clone)]
pub(crate) enum BodyContent {
    Inline(Bytes),
    File(Arc<BodyFile>),
}

/// A body that arrived completely.
pub(crate) struct FinishedBody {
    pub(crate) md5: Md5,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) content: BodyContent,
}

impl FinishedBody {
    pub(super) fn inline(content: Bytes) -> Self {
        Self { md5: Md5::of(&content), size: content.len() as u64, content: BodyContent::Inline(content) }
    }
}

/// Takes the pieces of a body that arrives. A blocking thread writes and digests one chunk while the next one arrives. A writer
/// that is dropped before the put leaves nothing behind.
pub struct BodyWriter {
    dir: Arc<BodyDir>,
    buffer: Vec<u8>,
    writing: Option<JoinHandle<io::Result<OpenBody>>>,
}

/// A file while it is written.
struct OpenBody {
    body: BodyFile,
    hasher: Md5Hasher,
}

impl BodyWriter {
    pub(crate) fn new(dir: Arc<BodyDir>) -> Self {
        Self { dir, buffer: Vec::new(), writing: None }
    }

    /// Takes the next piece. Fails if it cannot be stored, as on a full disk.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), StoreError> {
        if !self.buffer.is_empty() && self.buffer.len() + piece.len() > CHUNK_BYTES {
            self.flush().await?;
        }
        // The capacity doubles up to a chunk, so that it wastes little memory.
        let needed = self.buffer.len() + piece.len();
        let capacity = needed.max(CHUNK_BYTES.min(needed.next_power_of_two()));
        self.buffer.reserve_exact(capacity - self.buffer.len());
        self.buffer.extend_from_slice(&piece);
        Ok(())
    }

    /// Waits for the previous chunk, then starts to write the buffer.
    async fn flush(&mut self) -> Result<(), StoreError> {
        let open = self.finish_chunk().await?;
        let (dir, chunk) = (self.dir.clone(), std::mem::take(&mut self.buffer));
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let mut open = open.map_or_else(|| dir.create(), Ok)?;
            open.body.file.as_ref().write_all(&chunk)?;
            open.body.size += chunk.len() as u64;
            open.hasher.update(&chunk);
            Ok(open)
        }));
        Ok(())
    }

    /// The file after the last flush; `None` if there was no flush.
    async fn finish_chunk(&mut self) -> Result<Option<OpenBody>, StoreError> {
        let Some(writing) = self.writing.take() else { return Ok(None) };
        let written = writing.await.map_err(|_| StoreError::Closed)?;
        written.map(Some).map_err(|e| StoreError::io(&self.dir.path, &e))
    }

    /// The whole body. A file in a durable directory is durable when this returns.
    pub(crate) async fn finish(mut self) -> Result<FinishedBody, StoreError> {
        if self.writing.is_none() && self.buffer.len() <= MAX_INLINE_BYTES {
            return Ok(FinishedBody::inline(self.buffer.into()));
        }
        self.flush().await?;
        let OpenBody { body, hasher } = self.finish_chunk().await?.ok_or(StoreError::Closed)?;
        let body = Arc::new(body);
        if self.dir.is_durable {
            let (dir, file) = (self.dir.clone(), body.file.clone());
            let synced = run_blocking(move || file.sync_all().and_then(|()| File::open(&dir.path)?.sync_all())).await?;
            synced.map_err(|e| StoreError::io(&self.dir.path, &e))?;
        }
        Ok(FinishedBody { md5: hasher.finish(), size: body.size, content: BodyContent::File(body) })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn unused_file_of_any_name_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let bodies = BodyDir::durable(dir.path().to_owned());
        for name in [&b"used"[..], b"unused", b"not \xff UTF-8"] {
            fs::write(dir.path().join(OsStr::from_bytes(name)), "x").unwrap();
        }
        bodies.remove_unused(&HashSet::from(["used".to_owned()])).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|found| found.unwrap().file_name()).collect();
        assert_eq!(left, ["used"]);
    }
}
