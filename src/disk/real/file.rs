//! [`RealFile`]: an open regular file.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use super::super::{DiskFile, FileMeta};
use super::os;

/// An open regular file.
pub struct RealFile(File);

impl From<OwnedFd> for RealFile {
    fn from(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }
}

impl DiskFile for RealFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(os::sync(self.0.as_fd())?)
    }

    fn meta(&self) -> io::Result<FileMeta> {
        Ok(os::meta(&rustix::fs::fstat(&self.0)?))
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.0.set_permissions(Permissions::from_mode(mode))
    }

    fn is_open_for_writing(&self) -> bool {
        os::is_open_for_writing(self.0.as_fd())
    }
}
