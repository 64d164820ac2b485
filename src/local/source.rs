//! Reading a user's file: whole, or not at all (invariant 10).

use std::io;

use bytes::Bytes;

use crate::digest::{Hasher, Md5};
use crate::disk::{Disk, DiskFile, Stat};

use super::Folder;

/// Bytes read at once.
pub const CHUNK: usize = 256 * 1024;

/// A file's content as it was read, and the stat that proves it whole.
pub struct Digested {
    pub md5: Md5,
    pub stat: Stat,
}

/// Reads `path` from end to end. `None`: it changed while it was read.
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub fn digest<D: Disk>(disk: &D, path: &str, buf: &mut Vec<u8>) -> io::Result<Option<Digested>> {
    let mut file = disk.open(path)?;
    let before = Stat::from(&file.meta()?);
    // One read more than the size tells that the file did not grow.
    let want = usize::try_from(before.size.saturating_add(1)).unwrap_or(CHUNK).clamp(512, CHUNK);
    if buf.len() < want {
        buf.resize(want, 0);
    }
    let mut hasher = Hasher::new();
    let mut size = 0u64;
    loop {
        let n = file.read(buf)?;
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
        size += n as u64;
    }
    let after = Stat::from(&file.meta()?);
    Ok((before == after && size == before.size).then(|| Digested { md5: hasher.finish(), stat: after }))
}

/// The content of one file on its way up. It holds its last piece back until the whole is known to be what was
/// promised, so that a torn read never becomes a version on the server.
pub struct FileSource<F: DiskFile> {
    file: F,
    expected: Md5,
    size: u64,
    read: u64,
    hasher: Option<Hasher>,
    whole: bool,
}

impl<D: Disk> Folder<D> {
    /// Opens `path` for upload; its content must be `expected`.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn source(&self, path: &str, expected: Md5) -> io::Result<FileSource<D::File>> {
        let file = self.disk.open(path)?;
        let size = file.meta()?.size;
        Ok(FileSource { file, expected, size, read: 0, hasher: Some(Hasher::new()), whole: false })
    }
}

impl<F: DiskFile> FileSource<F> {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the last piece has been handed over: all of it was what was promised.
    pub fn is_whole(&self) -> bool {
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
            let whole = self.hasher.take().map(Hasher::finish);
            if whole != Some(self.expected) {
                return Err(changed());
            }
            self.whole = true;
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
