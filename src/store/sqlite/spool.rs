//! Large bodies as files of their own, so that neither memory nor the database has to hold them.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::task::JoinHandle;

use super::super::{BodyWriter, StoreError};
use super::io_error;
use crate::digest::{Hasher, Md5};

/// Bodies up to this many bytes stay in memory and live in the database.
pub const INLINE_MAX: usize = 256 * 1024;
/// Bytes written or read in one go.
const CHUNK: usize = 256 * 1024;

/// The directory of large bodies.
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    pub fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn create(self: &Arc<Self>) -> io::Result<(SpoolFile, File)> {
        let name = format!("{:032x}", fastrand::u128(..));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(&name))?;
        Ok((SpoolFile { spool: self.clone(), name, keep: false }, file))
    }

    /// Removes a file that no row names any more. A failure costs space until the next sweep, nothing else.
    pub fn remove(&self, name: &str) {
        if let Err(e) = fs::remove_file(self.path(name)) {
            tracing::warn!(file = %self.path(name).display(), "a replaced body could not be removed: {e}");
        }
    }

    /// Removes every file that no row names, as a crash leaves them. One that cannot be removed costs space alone.
    pub fn sweep(&self, named: &HashSet<String>) -> io::Result<()> {
        for found in fs::read_dir(&self.dir)? {
            let found = found?;
            let is_named = found.file_name().to_str().is_some_and(|name| named.contains(name));
            if !is_named && let Err(e) = fs::remove_file(found.path()) {
                tracing::warn!(file = %found.path().display(), "a body that nothing names could not be removed: {e}");
            }
        }
        Ok(())
    }
}

/// A file in the spool, removed when dropped unless it was kept.
pub struct SpoolFile {
    spool: Arc<Spool>,
    name: String,
    keep: bool,
}

impl SpoolFile {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves the file where it is.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if !self.keep {
            self.spool.remove(&self.name);
        }
    }
}

/// Where a received body is.
pub enum Content {
    Inline(Bytes),
    /// Durable, with its name.
    File(SpoolFile),
}

/// A body that was received whole.
pub struct Received {
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
    pub content: Content,
}

impl Received {
    /// A body that stays in memory.
    pub fn inline(content: Bytes) -> Self {
        Self { md5: Md5::of(&content), size: content.len() as u64, content: Content::Inline(content) }
    }
}

/// A body on its way in: in memory while it is small, then in a file. One chunk is written and digested, off the
/// async threads, while the next one comes in.
pub struct Upload {
    spool: Arc<Spool>,
    size: u64,
    waiting: Vec<u8>,
    writing: Option<JoinHandle<io::Result<Writer>>>,
}

struct Writer {
    file: File,
    spooled: SpoolFile,
    hasher: Hasher,
}

impl Writer {
    fn new(spool: &Arc<Spool>) -> io::Result<Self> {
        let (spooled, file) = spool.create()?;
        Ok(Self { file, spooled, hasher: Hasher::new() })
    }

    fn write(mut self, chunk: &[u8]) -> io::Result<Self> {
        self.file.write_all(chunk)?;
        self.hasher.update(chunk);
        Ok(self)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        File::open(&self.spooled.spool.dir)?.sync_all()
    }
}

impl Upload {
    pub fn new(spool: Arc<Spool>) -> Self {
        Self { spool, size: 0, waiting: Vec::new(), writing: None }
    }

    /// Waits for the chunk before, and begins with what waits.
    async fn flush(&mut self) -> Result<(), StoreError> {
        let writer = self.written().await?;
        let chunk = std::mem::take(&mut self.waiting);
        let spool = self.spool.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let writer = writer.map_or_else(|| Writer::new(&spool), Ok)?;
            writer.write(&chunk)
        }));
        Ok(())
    }

    /// The file, with all that was flushed in it; `None` when nothing was.
    async fn written(&mut self) -> Result<Option<Writer>, StoreError> {
        let Some(writing) = self.writing.take() else { return Ok(None) };
        let written = writing.await.map_err(|_| StoreError::Closed)?;
        written.map(Some).map_err(|e| io_error(&self.spool.dir, &e))
    }

    /// The body, durable where it is a file.
    pub async fn finish(mut self) -> Result<Received, StoreError> {
        if self.writing.is_none() && self.waiting.len() <= INLINE_MAX {
            return Ok(Received::inline(self.waiting.into()));
        }
        self.flush().await?;
        let writer = self.written().await?.ok_or(StoreError::Closed)?;
        let synced = blocking(move || writer.sync().map(|()| writer)).await?;
        let Writer { spooled, hasher, .. } = synced.map_err(|e| io_error(&self.spool.dir, &e))?;
        Ok(Received { md5: hasher.finish(), size: self.size, content: Content::File(spooled) })
    }
}

impl BodyWriter for Upload {
    async fn push(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.size += piece.len() as u64;
        if !self.waiting.is_empty() && self.waiting.len() + piece.len() > CHUNK {
            self.flush().await?;
        }
        append(&mut self.waiting, &piece, CHUNK);
        Ok(())
    }
}

/// Adds a piece to what waits, of which `most` bytes are usual: no more memory is taken than that or its length.
pub fn append(waiting: &mut Vec<u8>, piece: &[u8], most: usize) {
    let needed = waiting.len() + piece.len();
    let room = needed.max(most.min(needed.next_power_of_two()));
    waiting.reserve_exact(room - waiting.len());
    waiting.extend_from_slice(piece);
}

/// The `size` bytes of an open body in pieces.
pub fn pieces(file: File, size: u64) -> BoxStream<'static, io::Result<Bytes>> {
    stream::try_unfold((file, size), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let read = blocking(move || {
            let mut piece = vec![0; want];
            file.read_exact(&mut piece).map(|()| (Bytes::from(piece), file))
        });
        let (piece, file) = read.await.map_err(io::Error::other)??;
        Ok(Some((piece, (file, left - want as u64))))
    })
    .boxed()
}

/// Runs blocking work on the threads meant for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io_error(dir, &e))
}
