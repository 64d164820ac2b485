//! What Linux has of its own: `openat2`, `getdents64`, `syncfs`, leases.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

/// How a folder is opened to be a starting point only: needs no right to read it.
pub const DIR: OFlags = OFlags::PATH;

/// Opens `path` below `root` in one call, following no symlink.
pub fn open_beneath(root: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, mode, resolve)
}

/// Calls `f` with every name in an open folder, `.` and `..` among them.
pub fn each_name(dir: &OwnedFd, mut f: impl FnMut(&CStr) -> Result<(), Errno>) -> Result<(), Errno> {
    // Room for about a thousand names a call.
    let mut buf = [MaybeUninit::uninit(); 32 * 1024];
    let mut names = RawDir::new(dir, &mut buf);
    while let Some(entry) = names.next() {
        f(entry?.file_name())?;
    }
    Ok(())
}

/// Makes one open file or folder durable.
pub fn sync(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::fs::fsync(fd))
}

/// Makes the filesystem that `fd` is on durable.
pub fn sync_all(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::fs::syncfs(fd))
}

/// Whether some program has the file open for writing: a read lease (`fcntl(2)`, `F_SETLEASE`) is granted only while
/// none has. It is given back at once, so that who opens the file meanwhile waits for microseconds. `fd` must be open
/// for reading only. Network filesystems may refuse every lease; then a file is taken to be open.
pub fn is_open_for_writing(fd: BorrowedFd<'_>) -> bool {
    /// `asm-generic/fcntl.h`; the crate does not have it.
    const F_SETSIG: libc::c_int = 10;
    // SAFETY: these commands take a number, and `fd` is open.
    let fcntl = |command, value: libc::c_int| unsafe { libc::fcntl(fd.as_raw_fd(), command, value) };
    // Who breaks the lease has us sent a signal: not the usual one, which would end the process, but one that is
    // ignored by default.
    if fcntl(F_SETSIG, libc::SIGURG) == -1 {
        return false;
    }
    if fcntl(libc::F_SETLEASE, libc::F_RDLCK) == -1 {
        return std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock;
    }
    fcntl(libc::F_SETLEASE, libc::F_UNLCK);
    false
}

/// The fields of `struct stat` whose type differs between systems.
pub struct Numbers {
    pub device: u64,
    pub mode: u32,
    pub links: u64,
    pub mtime_nsec: i64,
    pub ctime_nsec: i64,
}

#[allow(clippy::unnecessary_cast, reason = "the number of links is narrower on some processors")]
pub fn numbers(stat: &Stat) -> Numbers {
    Numbers {
        device: stat.st_dev,
        mode: stat.st_mode,
        links: stat.st_nlink as u64,
        // Below 10^9 by definition.
        mtime_nsec: stat.st_mtime_nsec as i64,
        ctime_nsec: stat.st_ctime_nsec as i64,
    }
}
