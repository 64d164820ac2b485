//! What macOS does differently. Written from its manual pages; not yet run there.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::disk::FileMeta;

/// How a folder is opened to be a starting point only.
pub const DIR: OFlags = OFlags::RDONLY;

/// There is no `openat2`: the caller walks.
pub fn open_beneath(_root: BorrowedFd<'_>, _path: &str, _flags: OFlags, _mode: Mode) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// `lstat` of a name in an open folder. There are no bind mounts: the device number tells a mount point.
pub fn meta_at(dir: BorrowedFd<'_>, name: impl Arg) -> Result<FileMeta, Errno> {
    Ok(super::meta(&rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

/// The system does not tell.
pub fn is_mount(_fd: BorrowedFd<'_>) -> bool {
    false
}

/// Calls `f` with every name in an open folder, `.` and `..` among them.
pub fn each_name(dir: &OwnedFd, mut f: impl FnMut(&CStr) -> Result<(), Errno>) -> Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        f(entry?.file_name())?;
    }
    Ok(())
}

/// Makes one open file or folder durable. Plain `fsync` leaves the data in the drive's cache; filesystems
/// without `F_FULLFSYNC` (network mounts) have nothing better.
pub fn sync(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::io::retry_on_intr(|| rustix::fs::fcntl_fullfsync(fd)) {
        Err(Errno::NOTSUP | Errno::INVAL | Errno::NOTTY) => rustix::io::retry_on_intr(|| rustix::fs::fsync(fd)),
        other => other,
    }
}

/// Makes the filesystem that `fd` is on durable: `sync(2)` hands over what is in memory, then the drive is told
/// to write down what it holds.
pub fn sync_all(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::sync();
    sync(fd)
}

/// The system does not tell.
pub fn is_open_for_writing(_fd: BorrowedFd<'_>) -> bool {
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

pub fn numbers(stat: &Stat) -> Numbers {
    Numbers {
        // A device number is a bit pattern that the system declares as signed.
        device: u64::from(stat.st_dev.cast_unsigned()),
        mode: u32::from(stat.st_mode),
        links: u64::from(stat.st_nlink),
        mtime_nsec: stat.st_mtime_nsec,
        ctime_nsec: stat.st_ctime_nsec,
    }
}
