//! What Linux has of its own: `openat2`, `statx`, `getdents64`, `syncfs`, leases.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::{kind_of, nanos};
use crate::disk::FileMeta;

/// How a folder is opened to be a starting point only: needs no right to read it.
pub const DIR: OFlags = OFlags::PATH;

/// Opens `path` below `root` in one call, following no symlink and crossing no mount point (`XDEV`).
pub fn open_beneath(root: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags, mode, resolve)
}

/// `lstat` of a name in an open folder. Unlike a device number, `statx` tells bind mounts and mounts of single files, too
/// (`STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
pub fn meta_at(dir: BorrowedFd<'_>, name: impl Arg + Copy) -> Result<FileMeta, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) {
        Ok(found) => Ok(meta(&found)),
        // A sandbox may forbid it.
        Err(Errno::NOSYS) => Ok(super::meta(&rustix::fs::statat(dir, name, flags)?)),
        Err(e) => Err(e),
    }
}

/// Whether an open file or folder is what is mounted somewhere.
pub fn is_mount(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).is_ok_and(|found| is_mount_root(&found))
}

fn is_mount_root(found: &Statx) -> bool {
    found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn meta(found: &Statx) -> FileMeta {
    let mode = u32::from(found.stx_mode);
    FileMeta {
        kind: kind_of(FileType::from_raw_mode(mode)),
        size: found.stx_size,
        allocated: found.stx_blocks.saturating_mul(super::STAT_BLOCK_BYTES),
        mtime_ns: nanos(found.stx_mtime.tv_sec, i64::from(found.stx_mtime.tv_nsec)),
        ctime_ns: nanos(found.stx_ctime.tv_sec, i64::from(found.stx_ctime.tv_nsec)),
        inode: found.stx_ino,
        links: u64::from(found.stx_nlink),
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        is_mount: is_mount_root(found),
        mode: mode & 0o7777,
    }
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
/// for reading only. Where another machine or process keeps the files every lease may be refused, which says nothing.
#[allow(clippy::unnecessary_cast, reason = "the number of a filesystem is narrower on some processors")]
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
        let refused = std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock;
        return refused && rustix::fs::fstatfs(fd).is_ok_and(|fs| grants_leases(fs.f_type as i64));
    }
    fcntl(libc::F_SETLEASE, libc::F_UNLCK);
    false
}

/// Whether a filesystem of this kind (`statfs(2)`) grants a lease on every file that nobody writes to: the files are here.
fn grants_leases(kind: i64) -> bool {
    /// NFS, SMB (three generations), 9P, Ceph, AFS, Coda, FUSE.
    const ELSEWHERE: [i64; 9] =
        [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x7375_7245, 0x6573_5546];
    // The numbers are of 32 bits, and some processors have them signed.
    !ELSEWHERE.contains(&(kind & 0xffff_ffff))
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

#[cfg(test)]
mod tests {
    use super::grants_leases;

    #[test]
    fn a_refused_lease_says_nothing_where_the_files_are_elsewhere() {
        const EXT4: i64 = 0xef53;
        const TMPFS: i64 = 0x0102_1994;
        assert!(grants_leases(EXT4) && grants_leases(TMPFS));
        for elsewhere in [0x6969, 0xff53_4d42, i64::from(0xff53_4d42_u32.cast_signed()), 0x6573_5546] {
            assert!(!grants_leases(elsewhere), "{elsewhere:x}");
        }
    }
}
