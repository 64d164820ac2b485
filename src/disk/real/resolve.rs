//! Resolves a path below the root, without symlinks and mount points.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::{Disk, FileKind};
use super::file::RealFile;
use super::os;
use super::root::{RealDisk, no_symlink};

/// The folder of a name: the root itself, or a folder that was opened for this operation.
pub(super) enum ParentDir<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for ParentDir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

impl RealDisk {
    /// Opens `path`. `""` is the root.
    pub(super) fn open_at(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        check(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if path.is_empty() {
            return Ok(rustix::fs::openat(&self.root, ".", flags, mode)?);
        }
        if self.beneath {
            return rustix::io::retry_on_intr(|| os::open_beneath(self.root.as_fd(), path, flags, mode))
                .map_err(opening);
        }
        let (dir, name) = split(path);
        let parent = self.walk(dir)?;
        let fd = rustix::io::retry_on_intr(|| rustix::fs::openat(&parent, name, flags, mode))?;
        refuse_mount(fd)
    }

    /// Opens the folder `dir` one component after the other.
    fn walk(&self, dir: &str) -> io::Result<ParentDir<'_>> {
        let mut at = ParentDir::Root(self.root.as_fd());
        for name in dir.split('/').filter(|name| !name.is_empty()) {
            let flags = os::DIR | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&at, name, flags, Mode::empty()).map_err(no_symlink)?;
            at = ParentDir::Below(refuse_mount(fd)?);
        }
        Ok(at)
    }

    /// The folder of `path`, and its last name.
    pub(super) fn parent<'p>(&self, path: &'p str) -> io::Result<(ParentDir<'_>, &'p str)> {
        check(path)?;
        if path.is_empty() {
            return Err(invalid("the root itself has no name"));
        }
        let (dir, name) = split(path);
        if dir.is_empty() {
            return Ok((ParentDir::Root(self.root.as_fd()), name));
        }
        if !self.beneath {
            return Ok((self.walk(dir)?, name));
        }
        let flags = os::DIR | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = os::open_beneath(self.root.as_fd(), dir, flags, Mode::empty()).map_err(|e| opening(no_symlink(e)))?;
        Ok((ParentDir::Below(fd), name))
    }

    /// Opens a folder, to list or sync it.
    pub(super) fn open_dir(&self, dir: &str) -> io::Result<OwnedFd> {
        self.open_at(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .map_err(|e| if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) { Errno::NOTDIR.into() } else { e })
    }

    /// Opens or creates a regular file, and refuses any other kind.
    pub(super) fn open_file(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<RealFile> {
        // NONBLOCK avoids a wait for the other end of a FIFO. It has no effect on a regular file.
        let fd = match self.open_at(path, flags | OFlags::NONBLOCK, mode) {
            Ok(fd) => fd,
            // The system has several errors for a path that is no regular file: ELOOP, ENXIO, EISDIR. We have one.
            Err(e) => {
                return Err(match self.stat(path) {
                    Ok(meta) if meta.kind != FileKind::File => not_a_file(meta.kind),
                    _ => e,
                });
            }
        };
        match os::meta(&rustix::fs::fstat(&fd)?).kind {
            FileKind::File => Ok(RealFile::from(fd)),
            other => Err(not_a_file(other)),
        }
    }
}

/// Refuses a path with an empty, `.` or `..` component. Callers validate names as well. This check is the second line of
/// defence: `openat2` allows a `..` that stays below the root, and a call on the last name allows any.
fn check(path: &str) -> io::Result<()> {
    if !path.is_empty() && path.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err(invalid("the path has an empty name, a `.` or a `..` in it"));
    }
    Ok(())
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The error of an open, with a clear text for a mount point.
fn opening(e: Errno) -> io::Error {
    match e {
        Errno::XDEV => io::Error::new(io::ErrorKind::CrossesDevices, "something is mounted there"),
        e => e.into(),
    }
}

fn refuse_mount(fd: OwnedFd) -> io::Result<OwnedFd> {
    if os::is_mount(fd.as_fd()) { Err(opening(Errno::XDEV)) } else { Ok(fd) }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn not_a_file(kind: FileKind) -> io::Error {
    invalid(match kind {
        FileKind::Dir => "is a folder, not a file",
        FileKind::Symlink => "is a symlink; symlinks are not followed",
        _ => "is not a regular file",
    })
}
