//! macOS only. Written after its manual pages; not yet run there.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::convert::{StatFields, meta_from};
use crate::disk::FileMeta;

/// Flags to open a folder as a starting point only.
pub(crate) const DIR: OFlags = OFlags::RDONLY;

/// There is no `openat2`. The caller opens one component after the other.
pub(crate) fn open_beneath(_root: BorrowedFd<'_>, _path: &str, _flags: OFlags, _mode: Mode) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// `lstat` of a name in an open folder. There are no bind mounts, so the device number shows every mount point.
pub(crate) fn meta_at(dir: BorrowedFd<'_>, name: impl Arg) -> Result<FileMeta, Errno> {
    Ok(meta(&rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

/// Always false: the system does not say.
pub fn is_mount(_fd: BorrowedFd<'_>) -> bool {
    false
}

/// Calls `f` with every name in an open folder, with `.` and `..`.
pub(crate) fn each_name(dir: &OwnedFd, mut f: impl FnMut(&CStr) -> Result<(), Errno>) -> Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        f(entry?.file_name())?;
    }
    Ok(())
}

/// Makes one open file or folder durable. Plain `fsync` leaves the data in the cache of the drive, but filesystems without
/// `F_FULLFSYNC` (network mounts) have nothing better.
pub fn sync(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::io::retry_on_intr(|| rustix::fs::fcntl_fullfsync(fd)) {
        Err(Errno::NOTSUP | Errno::INVAL | Errno::NOTTY) => rustix::io::retry_on_intr(|| rustix::fs::fsync(fd)),
        other => other,
    }
}

/// Makes the filesystem of `fd` durable: `sync(2)` hands the data to the drive, and then the drive empties its cache.
pub fn sync_all(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::sync();
    sync(fd)
}

/// Always false: the system does not say.
pub(crate) fn is_open_for_writing(_fd: BorrowedFd<'_>) -> bool {
    false
}

/// The metadata of a plain `stat`.
pub fn meta(stat: &Stat) -> FileMeta {
    let fields = StatFields {
        // A device number is a bit pattern that the system declares as signed.
        device: u64::from(stat.st_dev.cast_unsigned()),
        mode: u32::from(stat.st_mode),
        links: u64::from(stat.st_nlink),
        mtime_nsec: stat.st_mtime_nsec,
        ctime_nsec: stat.st_ctime_nsec,
    };
    meta_from(stat, fields)
}
