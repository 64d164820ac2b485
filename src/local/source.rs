//! Reads a user's file: the whole of it, or nothing (invariant 10).

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::digest::{Md5, Md5Hasher};
use crate::disk::{Disk, DiskFile, FileStat, read_file_up_to};

use super::Folder;

/// Bytes per read.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// The digest of a file, and the stat that proves that the file did not change while it was read.
#[derive(Debug, Clone, Copy)]
pub struct FileDigest {
    pub md5: Md5,
    pub stat: FileStat,
}

/// Reads the file at `path`. Returns `None` if it changed meanwhile.
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub fn digest<D: Disk>(disk: &D, path: &str, buf: &mut Vec<u8>) -> io::Result<Option<FileDigest>> {
    digest_open(&mut disk.open(path)?, buf)
}

/// Like [`digest`], for an open file at its start.
///
/// # Errors
/// As `read(2)`.
pub(crate) fn digest_open<F: DiskFile>(file: &mut F, buf: &mut Vec<u8>) -> io::Result<Option<FileDigest>> {
    let before = FileStat::from(&file.meta()?);
    // One byte more than the size shows in the first read that the file did not grow.
    let want = usize::try_from(before.size.saturating_add(1)).unwrap_or(CHUNK_BYTES).clamp(512, CHUNK_BYTES);
    if buf.len() < want {
        buf.resize(want, 0);
    }
    let mut hasher = Md5Hasher::new();
    let mut size = 0u64;
    loop {
        let n = file.read(buf)?;
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
        size += n as u64;
    }
    let after = FileStat::from(&file.meta()?);
    Ok((before == after && size == before.size).then(|| FileDigest { md5: hasher.finish(), stat: after }))
}

/// The content that a [`FileSource`] must have.
enum ExpectedContent {
    Digest(Md5),
    /// Any content, if the file keeps this stat while it is read. The cell receives the digest.
    Unchanged(FileStat, Arc<OnceLock<FileDigest>>),
}

/// The content of one file on its way to the server. It holds its last piece back until the whole content is verified, so
/// that a torn read never becomes a version on the server.
pub struct FileSource<F: DiskFile> {
    file: F,
    expected: ExpectedContent,
    size: u64,
    read: u64,
    hasher: Option<Md5Hasher>,
    verified: Option<Md5>,
}

impl<D: Disk> Folder<D> {
    /// Reads a file. `None` if it has more than `limit` bytes.
    ///
    /// # Errors
    /// As `open(2)` and `read(2)`.
    pub(crate) fn read_up_to(&self, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        read_file_up_to(&mut self.disk.open(path)?, usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// Opens `path` for an upload of the content `expected`.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn source(&self, path: &str, expected: Md5) -> io::Result<FileSource<D::File>> {
        let file = self.disk.open(path)?;
        let size = file.meta()?.size;
        Ok(FileSource::new(file, size, ExpectedContent::Digest(expected)))
    }

    /// Opens `path` for an upload of a file that no scan has read. `digest` receives the digest with the last piece.
    ///
    /// # Errors
    /// As `open(2)`.
    pub(crate) fn unread_source(
        &self,
        path: &str,
        digest: Arc<OnceLock<FileDigest>>,
    ) -> io::Result<FileSource<D::File>> {
        let file = self.disk.open(path)?;
        let stat = FileStat::from(&file.meta()?);
        Ok(FileSource::new(file, stat.size, ExpectedContent::Unchanged(stat, digest)))
    }
}

impl<F: DiskFile> FileSource<F> {
    fn new(file: F, size: u64, expected: ExpectedContent) -> Self {
        Self { file, expected, size, read: 0, hasher: Some(Md5Hasher::new()), verified: None }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest, once the last piece has been handed over.
    pub fn whole(&self) -> Option<Md5> {
        self.verified
    }

    /// The next piece, or `None` after the last.
    ///
    /// # Errors
    /// As `read(2)`; `InvalidData` if the file does not have the expected content.
    pub(crate) fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let Some(hasher) = &mut self.hasher else { return Ok(None) };
        let left = self.size - self.read;
        let want = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let mut piece = vec![0u8; want];
        let mut filled = 0;
        while filled < want {
            let n = self.file.read(&mut piece[filled..])?;
            if n == 0 {
                return Err(changed());
            }
            filled += n;
        }
        hasher.update(&piece);
        self.read += want as u64;
        if self.read == self.size {
            self.verify()?;
            if piece.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(piece.into()))
    }

    fn verify(&mut self) -> io::Result<()> {
        let Some(md5) = self.hasher.take().map(Md5Hasher::finish) else { return Ok(()) };
        let is_expected = match &self.expected {
            ExpectedContent::Digest(expected) => md5 == *expected,
            ExpectedContent::Unchanged(before, digest) => {
                let after = FileStat::from(&self.file.meta()?);
                // A write through a memory mapping need not change the times. So no program may have the file open.
                after == *before
                    && !self.file.is_open_for_writing()
                    && digest.set(FileDigest { md5, stat: after }).is_ok()
            }
        };
        if !is_expected {
            return Err(changed());
        }
        self.verified = Some(md5);
        Ok(())
    }
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the file changed while it was read")
}
