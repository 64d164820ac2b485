//! [`RealDisk`]: the handle of the root, and its identity.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::super::{FileKind, FileMeta};
use super::os;

/// A folder that is opened once. Every operation starts from its handle.
pub struct RealDisk {
    pub(super) root: OwnedFd,
    path: PathBuf,
    /// `openat2` works here. One call then resolves a path without symlinks.
    pub(super) beneath: bool,
}

/// Identifies a file or folder within a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl From<&FileMeta> for FileId {
    fn from(meta: &FileMeta) -> Self {
        Self { device: meta.device, inode: meta.inode }
    }
}

/// The open folder, and the current entry at its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootIdentity {
    pub opened: FileId,
    /// `None` if the path is free. A symlink is not followed.
    pub now: Option<(FileKind, FileId)>,
}

impl RootIdentity {
    /// True if the path still names the folder that was opened.
    pub(crate) fn is_same(&self) -> bool {
        self.now == Some((FileKind::Dir, self.opened))
    }
}

impl RealDisk {
    /// Opens the folder `root`, which must not be a symlink. Resolve a symlink once, before this call, so that a later change
    /// of its target is noticed.
    ///
    /// # Errors
    /// As `open(2)`; `NotFound`, `NotADirectory`.
    pub fn open(root: &Path) -> io::Result<Self> {
        let path = std::path::absolute(root)?;
        let flags = os::DIR | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).map_err(no_symlink)?;
        let beneath = os::open_beneath(root.as_fd(), ".", flags, Mode::empty()).is_ok();
        Ok(Self { root, path, beneath })
    }

    /// Like [`RealDisk::open`], but first creates the folder and those above it, private to their owner. An existing folder
    /// keeps its mode.
    ///
    /// # Errors
    /// As `mkdir(2)` and [`RealDisk::open`].
    pub fn create_private(root: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        Self::open(root)
    }

    /// Locks the root with `flock` for as long as the value lives. `None` if another process holds the lock.
    ///
    /// # Errors
    /// As `open(2)` and `flock(2)`.
    pub(crate) fn lock_root(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(&self.root, ".", flags, Mode::empty())?;
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(handle)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The absolute path by which the root was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compares the open root with the current entry at its path.
    ///
    /// # Errors
    /// As `lstat(2)`, except that a free path is no error.
    pub(crate) fn root_identity(&self) -> io::Result<RootIdentity> {
        let opened = FileId::from(&os::meta(&rustix::fs::fstat(&self.root)?));
        let now = match rustix::fs::lstat(&self.path) {
            Ok(stat) => {
                let meta = os::meta(&stat);
                Some((meta.kind, FileId::from(&meta)))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(e) => return Err(e.into()),
        };
        Ok(RootIdentity { opened, now })
    }

    /// True if `path`, with its symlinks followed, names the open root.
    ///
    /// # Errors
    /// As `stat(2)`, except that a free path is no error.
    pub(crate) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let opened = FileId::from(&os::meta(&rustix::fs::fstat(&self.root)?));
        match rustix::fs::stat(path) {
            Ok(stat) => Ok(FileId::from(&os::meta(&stat)) == opened),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Distinguishes the root from its copies, by its birth time, or by its inode if the filesystem has no birth times.
    ///
    /// # Errors
    /// As `fstat(2)`.
    pub(crate) fn root_mark(&self) -> io::Result<String> {
        let meta = File::from(self.root.try_clone()?).metadata()?;
        let born = meta.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        Ok(match born {
            Some(born) => format!("born:{}", born.as_nanos()),
            None => format!("inode:{}", meta.ino()),
        })
    }
}

/// Maps the error of `openat2` for a symlink (ELOOP) to that of `O_DIRECTORY | O_NOFOLLOW` (ENOTDIR).
pub(super) fn no_symlink(e: Errno) -> Errno {
    if e == Errno::LOOP { Errno::NOTDIR } else { e }
}
