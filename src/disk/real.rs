//! [`RealDisk`]: the operating system's filesystem below one open folder.
//!
//! Every operation starts from the handle of the root, so a root that is renamed or replaced while memsync
//! runs is never confused with what stands at its path now ([`RealDisk::root_identity`] tells the two apart).
//! A symlink or a mount point is refused in every component: on Linux by `openat2`, elsewhere, and where `openat2` is
//! missing, by opening one component after the other. It knows nothing of what the files mean.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Disk, DiskFile, FileKind, FileMeta};
use crate::path::PRIVATE_DIR;

#[cfg(target_os = "linux")]
#[path = "real/linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "real/macos.rs"]
mod os;

/// The unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

/// A folder opened once; every operation starts from its handle.
pub struct RealDisk {
    root: OwnedFd,
    path: PathBuf,
    /// Whether `openat2` works here: one call then resolves a path without following a symlink.
    beneath: bool,
}

/// A file or folder, as the filesystem tells it from all others.
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

/// The folder that is open and what stands at its path now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootIdentity {
    pub opened: FileId,
    /// `None`: nothing is there. A symlink is itself, not what it points to.
    pub now: Option<(FileKind, FileId)>,
}

impl RootIdentity {
    /// Whether the path still names the folder that was opened.
    pub fn is_same(&self) -> bool {
        self.now == Some((FileKind::Dir, self.opened))
    }
}

/// An open regular file.
pub struct RealFile(File);

/// The folder that a name is in: the root itself or one opened for this operation.
enum Parent<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

impl RealDisk {
    /// Opens the folder `root`. A symlink in its last component is refused: resolve it first, once, so that
    /// one that is pointed elsewhere later is noticed.
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

    /// As [`RealDisk::open`], making the folder (and those above it) first where it is missing, for its owner
    /// only. One that is there keeps its mode.
    ///
    /// # Errors
    /// As `mkdir(2)` and [`RealDisk::open`].
    pub fn create_private(root: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        Self::open(root)
    }

    /// Locks the root for as long as the value lives, whoever else opened it and from wherever; `None`: another process
    /// has it. The lock is the system's own (`flock`) and leaves nothing behind.
    ///
    /// # Errors
    /// As `open(2)` and `flock(2)`.
    pub fn lock_root(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(&self.root, ".", flags, Mode::empty())?;
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(handle)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The path that the root was opened by, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compares the open root with what stands at its path now.
    ///
    /// # Errors
    /// As `lstat(2)`, but for a path at which nothing is.
    pub fn root_identity(&self) -> io::Result<RootIdentity> {
        let opened = FileId::from(&meta(&rustix::fs::fstat(&self.root)?));
        let now = match rustix::fs::lstat(&self.path) {
            Ok(stat) => {
                let meta = meta(&stat);
                Some((meta.kind, FileId::from(&meta)))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(e) => return Err(e.into()),
        };
        Ok(RootIdentity { opened, now })
    }

    /// Whether `path`, with its symlinks followed, names the open root. A path that leads nowhere does not.
    ///
    /// # Errors
    /// As `stat(2)`, but for a path at which nothing is.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let opened = FileId::from(&meta(&rustix::fs::fstat(&self.root)?));
        match rustix::fs::stat(path) {
            Ok(stat) => Ok(FileId::from(&meta(&stat)) == opened),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Tells the root from its copies: its time of birth, or its inode where the filesystem keeps no such time.
    ///
    /// # Errors
    /// As `fstat(2)`.
    pub fn root_mark(&self) -> io::Result<String> {
        let meta = File::from(self.root.try_clone()?).metadata()?;
        let born = meta.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        Ok(match born {
            Some(born) => format!("born:{}", born.as_nanos()),
            None => format!("inode:{}", meta.ino()),
        })
    }

    /// Opens `path` itself; `""` is the root.
    fn open_at(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
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
    fn walk(&self, dir: &str) -> io::Result<Parent<'_>> {
        let mut at = Parent::Root(self.root.as_fd());
        for name in dir.split('/').filter(|name| !name.is_empty()) {
            let flags = os::DIR | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&at, name, flags, Mode::empty()).map_err(no_symlink)?;
            at = Parent::Below(refuse_mount(fd)?);
        }
        Ok(at)
    }

    /// The folder that `path` is in, and its last name.
    fn parent<'p>(&self, path: &'p str) -> io::Result<(Parent<'_>, &'p str)> {
        check(path)?;
        if path.is_empty() {
            return Err(invalid("the root itself has no name"));
        }
        let (dir, name) = split(path);
        if dir.is_empty() {
            return Ok((Parent::Root(self.root.as_fd()), name));
        }
        if !self.beneath {
            return Ok((self.walk(dir)?, name));
        }
        let flags = os::DIR | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = os::open_beneath(self.root.as_fd(), dir, flags, Mode::empty()).map_err(|e| opening(no_symlink(e)))?;
        Ok((Parent::Below(fd), name))
    }

    /// Opens a folder to be listed or synced.
    fn open_dir(&self, dir: &str) -> io::Result<OwnedFd> {
        self.open_at(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .map_err(|e| if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) { Errno::NOTDIR.into() } else { e })
    }

    /// Opens a file that is there or is made by this call, and refuses what is no regular file.
    fn open_file(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<RealFile> {
        // NONBLOCK: a FIFO must not make us wait for its other end. Without effect on a regular file.
        let fd = match self.open_at(path, flags | OFlags::NONBLOCK, mode) {
            Ok(fd) => fd,
            // A symlink (ELOOP), a socket or a FIFO (ENXIO), a folder (EISDIR): the system's answer depends on
            // what it is and how it was opened, ours does not.
            Err(e) => {
                return Err(match self.stat(path) {
                    Ok(meta) if meta.kind != FileKind::File => not_a_file(meta.kind),
                    _ => e,
                });
            }
        };
        match kind(&rustix::fs::fstat(&fd)?) {
            FileKind::File => Ok(RealFile(File::from(fd))),
            other => Err(not_a_file(other)),
        }
    }

    /// [`Disk::rename_new`] where the filesystem has no exclusive rename.
    fn rename_new_by_link(&self, from: (&Parent, &str), to: (&Parent, &str)) -> io::Result<()> {
        let is_dir = kind(&rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW)?) == FileKind::Dir;
        if is_dir {
            // A folder has no second name to give. What a plain rename could replace is an empty folder at most.
            return match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST.into()),
                Err(Errno::NOENT) => Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1)?),
                Err(e) => Err(e.into()),
            };
        }
        // A crash between the two leaves one file with two names, which a scan sees as one more file.
        rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty())?;
        Ok(rustix::fs::unlinkat(from.0, from.1, AtFlags::empty())?)
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn boot_id(&self) -> Option<String> {
        super::boot::read_boot().ok().map(|boot| boot.id)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<(OsString, FileMeta)>> {
        let fd = self.open_dir(dir)?;
        let mut found = Vec::new();
        os::each_name(&fd, |name: &CStr| {
            if matches!(name.to_bytes(), b"." | b"..") {
                return Ok(());
            }
            match os::meta_at(fd.as_fd(), name) {
                Ok(meta) => found.push((OsStr::from_bytes(name.to_bytes()).to_owned(), meta)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn stat(&self, path: &str) -> io::Result<FileMeta> {
        if path.is_empty() {
            return Ok(meta(&rustix::fs::fstat(&self.root)?));
        }
        let (parent, name) = self.parent(path)?;
        Ok(os::meta_at(parent.as_fd(), name)?)
    }

    fn open(&self, path: &str) -> io::Result<RealFile> {
        self.open_file(path, OFlags::RDONLY, Mode::empty())
    }

    fn create(&self, path: &str) -> io::Result<RealFile> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
        Ok(RealFile(File::from(self.open_at(path, flags, mode)?)))
    }

    fn append(&self, path: &str) -> io::Result<RealFile> {
        self.open_file(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE, Mode::RUSR | Mode::WUSR)
    }

    fn mkdir(&self, dir: &str) -> io::Result<()> {
        let (parent, name) = self.parent(dir)?;
        // What was displaced and what is on its way is nobody else's.
        let mode = if dir == PRIVATE_DIR { Mode::RWXU } else { Mode::RWXU | Mode::RWXG | Mode::RWXO };
        Ok(rustix::fs::mkdirat(parent, name, mode)?)
    }

    fn rmdir(&self, dir: &str) -> io::Result<()> {
        let (parent, name) = self.parent(dir)?;
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        Ok(rustix::fs::renameat(from_dir, from_name, to_dir, to_name)?)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        match rustix::fs::renameat_with(&from_dir, from_name, &to_dir, to_name, RenameFlags::NOREPLACE) {
            Err(e) if is_unsupported(e) => self.rename_new_by_link((&from_dir, from_name), (&to_dir, to_name)),
            other => Ok(other?),
        }
    }

    fn exchange(&self, a: &str, b: &str) -> io::Result<()> {
        let (a_dir, a_name) = self.parent(a)?;
        let (b_dir, b_name) = self.parent(b)?;
        match rustix::fs::renameat_with(a_dir, a_name, b_dir, b_name, RenameFlags::EXCHANGE) {
            Err(e) if is_unsupported(e) => Err(io::Error::new(io::ErrorKind::Unsupported, io::Error::from(e))),
            other => Ok(other?),
        }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        Ok(os::sync(self.open_dir(dir)?.as_fd())?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(os::sync_all(self.open_dir("")?.as_fd())?)
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
        Ok(meta(&rustix::fs::fstat(&self.0)?))
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.0.set_permissions(Permissions::from_mode(mode))
    }

    fn is_open_for_writing(&self) -> bool {
        os::is_open_for_writing(self.0.as_fd())
    }
}

/// Refuses what is no plain path below the root. Callers validate names; this is the wall behind them, since
/// `openat2` allows a `..` that stays below the root, and the calls on a last name allow any.
fn check(path: &str) -> io::Result<()> {
    if !path.is_empty() && path.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err(invalid("the path has an empty name, a `.` or a `..` in it"));
    }
    Ok(())
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// `openat2` says ELOOP of a symlink, `O_DIRECTORY | O_NOFOLLOW` says ENOTDIR: one answer for both.
fn no_symlink(e: Errno) -> Errno {
    if e == Errno::LOOP { Errno::NOTDIR } else { e }
}

/// Crossing a mount point is refused with a text that says so.
fn opening(e: Errno) -> io::Error {
    match e {
        Errno::XDEV => io::Error::new(io::ErrorKind::CrossesDevices, "something is mounted there"),
        e => e.into(),
    }
}

fn refuse_mount(fd: OwnedFd) -> io::Result<OwnedFd> {
    if os::is_mount(fd.as_fd()) { Err(opening(Errno::XDEV)) } else { Ok(fd) }
}

fn is_unsupported(e: Errno) -> bool {
    // EOPNOTSUPP and ENOTSUP are one number on Linux and two on macOS.
    e == Errno::INVAL || e == Errno::NOSYS || e == Errno::NOTSUP || e == Errno::OPNOTSUPP
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

fn kind(stat: &rustix::fs::Stat) -> FileKind {
    kind_of(FileType::from_raw_mode(stat.st_mode))
}

fn kind_of(file_type: FileType) -> FileKind {
    match file_type {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Dir,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Other("FIFO"),
        FileType::Socket => FileKind::Other("socket"),
        FileType::CharacterDevice => FileKind::Other("character device"),
        FileType::BlockDevice => FileKind::Other("block device"),
        _ => FileKind::Other("special file"),
    }
}

fn nanos(seconds: i64, nsec: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nsec)
}

fn meta(stat: &rustix::fs::Stat) -> FileMeta {
    let os::Numbers { device, mode, links, mtime_nsec, ctime_nsec } = os::numbers(stat);
    FileMeta {
        kind: kind(stat),
        size: stat.st_size.unsigned_abs(),
        allocated: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(STAT_BLOCK_BYTES),
        mtime_ns: nanos(stat.st_mtime, mtime_nsec),
        ctime_ns: nanos(stat.st_ctime, ctime_nsec),
        inode: stat.st_ino,
        links,
        device,
        is_mount: false,
        mode: mode & 0o7777,
    }
}

#[cfg(test)]
#[path = "real/tests.rs"]
mod tests;
