//! Reading a user's file: whole, or not at all (invariant 10).

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::digest::{Md5, Md5Hasher};
use crate::disk::{Disk, DiskFile, FileStat};

use super::Folder;

/// Bytes read at once.
pub const CHUNK: usize = 256 * 1024;

/// A file's content as it was read, and the stat that proves it whole.
#[derive(Debug, Clone, Copy)]
pub struct FileDigest {
    pub md5: Md5,
    pub stat: FileStat,
}

/// Reads `path` from end to end. `None`: it changed while it was read.
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub fn digest<D: Disk>(disk: &D, path: &str, buf: &mut Vec<u8>) -> io::Result<Option<FileDigest>> {
    digest_open(&mut disk.open(path)?, buf)
}

/// As [`digest`], of a file that is open, from its position on.
///
/// # Errors
/// As `read(2)`.
pub fn digest_open<F: DiskFile>(file: &mut F, buf: &mut Vec<u8>) -> io::Result<Option<FileDigest>> {
    let before = FileStat::from(&file.meta()?);
    // One read more than the size tells that the file did not grow.
    let want = usize::try_from(before.size.saturating_add(1)).unwrap_or(CHUNK).clamp(512, CHUNK);
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

/// What the content of a [`FileSource`] has to be.
enum Expected {
    Content(Md5),
    /// Whatever stands there, if it stays as it is while it is read: it had this stat.
    Whole(FileStat, Arc<OnceLock<FileDigest>>),
}

/// The content of one file on its way up. It holds its last piece back until the whole is known to be what was
/// promised, so that a torn read never becomes a version on the server.
pub struct FileSource<F: DiskFile> {
    file: F,
    expected: Expected,
    size: u64,
    read: u64,
    hasher: Option<Md5Hasher>,
    whole: Option<Md5>,
}

impl<D: Disk> Folder<D> {
    /// Opens `path` for upload; its content must be `expected`.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn source(&self, path: &str, expected: Md5) -> io::Result<FileSource<D::File>> {
        let file = self.disk.open(path)?;
        let size = file.meta()?.size;
        let expected = Expected::Content(expected);
        Ok(FileSource { file, expected, size, read: 0, hasher: Some(Md5Hasher::new()), whole: None })
    }

    /// Opens `path` for an upload that digests it; `told` gets the digest with the last piece.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn unread_source(&self, path: &str, told: Arc<OnceLock<FileDigest>>) -> io::Result<FileSource<D::File>> {
        let file = self.disk.open(path)?;
        let stat = FileStat::from(&file.meta()?);
        let expected = Expected::Whole(stat, told);
        Ok(FileSource { file, expected, size: stat.size, read: 0, hasher: Some(Md5Hasher::new()), whole: None })
    }
}

impl<F: DiskFile> FileSource<F> {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest, once the last piece has been handed over: all of it was what was promised.
    pub fn whole(&self) -> Option<Md5> {
        self.whole
    }

    /// The next piece, `None` after the last.
    ///
    /// # Errors
    /// As `read(2)`; `InvalidData` when the file is not what was promised.
    pub fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let Some(hasher) = &mut self.hasher else { return Ok(None) };
        let left = self.size - self.read;
        let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
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
            let Some(md5) = self.hasher.take().map(Md5Hasher::finish) else { return Ok(None) };
            let as_promised = match &self.expected {
                Expected::Content(expected) => md5 == *expected,
                Expected::Whole(before, told) => {
                    let after = FileStat::from(&self.file.meta()?);
                    // Stores through a mapping need not move the times; a program that may make some has it open.
                    after == *before
                        && !self.file.is_open_for_writing()
                        && told.set(FileDigest { md5, stat: after }).is_ok()
                }
            };
            if !as_promised {
                return Err(changed());
            }
            self.whole = Some(md5);
            if piece.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(piece.into()))
    }
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the file changed while it was read")
}
