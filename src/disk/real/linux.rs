//! Linux only: `openat2`, `statx`, `getdents64`, `syncfs`, leases.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::convert::{STAT_BLOCK_BYTES, StatFields, kind_of, meta_from, nanos};
use crate::disk::FileMeta;

/// Flags to open a folder as a starting point only. They need no right to read it.
pub(crate) const DIR: OFlags = OFlags::PATH;

/// Opens `path` below `root` in one call. Follows no symlink and crosses no mount point (`XDEV`).
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags, mode, resolve)
}

/// `lstat` of a name in an open folder. Unlike the device number, `statx` also shows bind mounts and mounts of single files
/// (`STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
pub(crate) fn meta_at(dir: BorrowedFd<'_>, name: impl Arg + Copy) -> Result<FileMeta, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) {
        Ok(found) => Ok(statx_meta(&found)),
        // A sandbox may forbid `statx`.
        Err(Errno::NOSYS) => Ok(meta(&rustix::fs::statat(dir, name, flags)?)),
        Err(e) => Err(e),
    }
}

/// True if an open file or folder is a mount point.
pub(super) fn is_mount(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).is_ok_and(|found| is_mount_root(&found))
}

fn is_mount_root(found: &Statx) -> bool {
    found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn statx_meta(found: &Statx) -> FileMeta {
    let mode = u32::from(found.stx_mode);
    FileMeta {
        kind: kind_of(FileType::from_raw_mode(mode)),
        size: found.stx_size,
        allocated: found.stx_blocks.saturating_mul(STAT_BLOCK_BYTES),
        mtime_ns: nanos(found.stx_mtime.tv_sec, i64::from(found.stx_mtime.tv_nsec)),
        ctime_ns: nanos(found.stx_ctime.tv_sec, i64::from(found.stx_ctime.tv_nsec)),
        inode: found.stx_ino,
        links: u64::from(found.stx_nlink),
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        is_mount: is_mount_root(found),
        mode: mode & 0o7777,
    }
}

/// Calls `f` with every name in an open folder, with `.` and `..`.
pub(crate) fn each_name(dir: &OwnedFd, mut f: impl FnMut(&CStr) -> Result<(), Errno>) -> Result<(), Errno> {
    // Room for about a thousand names a call.
    let mut buf = [MaybeUninit::uninit(); 32 * 1024];
    let mut names = RawDir::new(dir, &mut buf);
    while let Some(entry) = names.next() {
        f(entry?.file_name())?;
    }
    Ok(())
}

/// Makes one open file or folder durable.
pub(super) fn sync(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::fs::fsync(fd))
}

/// Makes the filesystem of `fd` durable.
pub(super) fn sync_all(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::fs::syncfs(fd))
}

/// True if a program has the file open for writing. The system grants a read lease (`fcntl(2)`, `F_SETLEASE`) only if no
/// program has. We return the lease at once, so another program that opens the file waits for microseconds. `fd` must be
/// open for reading only. A network or FUSE filesystem may refuse every lease, so a refusal there proves nothing.
#[allow(clippy::unnecessary_cast, reason = "the number of a filesystem is narrower on some processors")]
pub(crate) fn is_open_for_writing(fd: BorrowedFd<'_>) -> bool {
    /// From `asm-generic/fcntl.h`; the libc crate does not have it.
    const F_SETSIG: libc::c_int = 10;
    // SAFETY: these commands take a number, and `fd` is open.
    let fcntl = |command, value: libc::c_int| unsafe { libc::fcntl(fd.as_raw_fd(), command, value) };
    // A program that breaks the lease causes a signal to us. The default one would end the process; SIGURG is ignored.
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

/// True if a filesystem of this kind (`statfs(2)`) is local, so that it grants a lease on every file without a writer.
fn grants_leases(kind: i64) -> bool {
    /// NFS, SMB (three generations), 9P, Ceph, AFS, Coda, FUSE.
    const REMOTE_KINDS: [i64; 9] =
        [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x7375_7245, 0x6573_5546];
    // The numbers have 32 bits, and some processors treat them as signed.
    !REMOTE_KINDS.contains(&(kind & 0xffff_ffff))
}

/// The metadata of a plain `stat`.
#[allow(clippy::unnecessary_cast, reason = "the number of links is narrower on some processors")]
pub(super) fn meta(stat: &Stat) -> FileMeta {
    let fields = StatFields {
        device: stat.st_dev,
        mode: stat.st_mode,
        links: stat.st_nlink as u64,
        // Below 10^9 by definition.
        mtime_nsec: stat.st_mtime_nsec as i64,
        ctime_nsec: stat.st_ctime_nsec as i64,
    };
    meta_from(stat, fields)
}

#[cfg(test)]
mod tests {
    use super::grants_leases;

    #[test]
    fn refused_lease_proves_nothing_on_a_remote_filesystem() {
        const EXT4: i64 = 0xef53;
        const TMPFS: i64 = 0x0102_1994;
        assert!(grants_leases(EXT4) && grants_leases(TMPFS));
        for remote in [0x6969, 0xff53_4d42, i64::from(0xff53_4d42_u32.cast_signed()), 0x6573_5546] {
            assert!(!grants_leases(remote), "{remote:x}");
        }
    }
}
