//! Converts the metadata of the system.

use rustix::fs::{FileType, Stat};

use super::super::{FileKind, FileMeta};

/// The unit of `st_blocks`.
pub(super) const STAT_BLOCK_BYTES: u64 = 512;

/// The fields of `struct stat` whose type differs between systems.
pub(super) struct StatFields {
    pub(super) device: u64,
    pub(super) mode: u32,
    pub(super) links: u64,
    pub(super) mtime_nsec: i64,
    pub(super) ctime_nsec: i64,
}

pub(super) fn kind_of(file_type: FileType) -> FileKind {
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

pub(super) fn nanos(seconds: i64, nsec: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nsec)
}

pub(super) fn meta_from(stat: &Stat, fields: StatFields) -> FileMeta {
    let StatFields { device, mode, links, mtime_nsec, ctime_nsec } = fields;
    FileMeta {
        kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
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
