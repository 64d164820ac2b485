//! A body on its way to the bucket: in memory while it is small, then in a file without a name, which goes with
//! its handle whatever happens to the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use super::super::{BodyWriter, StoreError};
use crate::digest::{Md5, Md5Hasher};

/// Bodies up to this many bytes stay in memory.
const INLINE_MAX: usize = 256 * 1024;
/// Bytes read in one go.
const CHUNK: usize = 256 * 1024;

/// Where a received body is.
#[derive(Clone)]
pub enum Content {
    Inline(Bytes),
    File(FileBody),
}

/// A body in a file that has no name any more.
#[derive(Debug, Clone)]
pub struct FileBody {
    file: Arc<File>,
    /// Bytes.
    pub size: u64,
}

impl FileBody {
    /// The whole body from its beginning, however often it is asked for.
    pub fn pieces(&self) -> BoxStream<'static, io::Result<Bytes>> {
        stream::try_unfold((self.clone(), 0), |(body, at)| async move {
            let left = body.size - at;
            if left == 0 {
                return Ok(None);
            }
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
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

/// A body that was received whole.
pub struct Received {
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
    pub content: Content,
}

/// A body on its way in.
pub struct Upload {
    dir: Arc<Path>,
    size: u64,
    waiting: Vec<u8>,
    hasher: Md5Hasher,
    file: Option<File>,
}

impl Upload {
    /// A body whose file, should it need one, is made in `dir`.
    pub fn new(dir: Arc<Path>) -> Self {
        Self { dir, size: 0, waiting: Vec::new(), hasher: Md5Hasher::new(), file: None }
    }

    /// Writes and digests what waits, off the async threads.
    async fn flush(self) -> Result<Self, StoreError> {
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || self.write()).await.map_err(|_| StoreError::Closed)?;
        written.map_err(|e| StoreError::Io { path: PathBuf::from(&*dir), why: e.to_string() })
    }

    fn write(mut self) -> io::Result<Self> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => nameless(&self.dir)?,
        };
        file.write_all(&self.waiting)?;
        self.hasher.update(&self.waiting);
        self.waiting.clear();
        self.file = Some(file);
        Ok(self)
    }

    /// The body with its digest.
    pub async fn finish(mut self) -> Result<Received, StoreError> {
        if self.file.is_none() {
            self.hasher.update(&self.waiting);
            let content = Content::Inline(self.waiting.into());
            return Ok(Received { md5: self.hasher.finish(), size: self.size, content });
        }
        let done = self.flush().await?;
        let file = Arc::new(done.file.ok_or(StoreError::Closed)?);
        let content = Content::File(FileBody { file, size: done.size });
        Ok(Received { md5: done.hasher.finish(), size: done.size, content })
    }
}

impl BodyWriter for Upload {
    async fn push(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.size += piece.len() as u64;
        self.waiting.extend_from_slice(&piece);
        if self.waiting.len() > INLINE_MAX {
            let taken = std::mem::replace(self, Self::new(self.dir.clone()));
            *self = taken.flush().await?;
        }
        Ok(())
    }
}

/// A file that only this handle knows, readable by nobody else.
fn nameless(dir: &Path) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = dir.join(format!("{:032x}", fastrand::u128(..)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
    fs::remove_file(&name)?;
    Ok(file)
}
