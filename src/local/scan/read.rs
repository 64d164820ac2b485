//! Reads one file of a scan.

use std::io;

use crate::disk::{Disk, DiskFile, FileKind, FileMeta, FileStat};
use crate::path::RelPath;
use crate::sync::{LocalState, SkipReason};

use super::super::source::{self, FileDigest};
use super::super::stat_trust::{is_young, trusted_stat};
use super::super::tree::{LocalEntry, ScanItem};
use super::walk::{ScanBatch, ScanWalk, unreadable};

/// An empty file younger than this (in ns) is checked again before it counts: an editor creates a file before it writes.
const JUST_CREATED_NS: i64 = 100_000_000;

impl<D: Disk> ScanWalk<'_, D> {
    /// Scans a path that is no folder. `buf` is a scratch buffer.
    pub(super) fn scan_file(&self, name: String, meta: &FileMeta, batch: &mut ScanBatch, buf: &mut Vec<u8>) {
        match meta.kind {
            FileKind::File => {}
            FileKind::Dir => return,
            FileKind::Symlink => return batch.add_unknown(name, SkipReason::NotAFile("symlink")),
            FileKind::Other(kind) => return batch.add_unknown(name, SkipReason::NotAFile(kind)),
        }
        if meta.size > self.options.max_file_size {
            return batch.add_unknown(name, SkipReason::TooLarge(meta.size));
        }
        if self.reuse_known(&name, meta, batch) {
            return;
        }
        let path = match RelPath::from_disk(&name) {
            Ok(path) => path,
            Err(e) => return batch.add_unknown(name, SkipReason::Name(e.to_string())),
        };
        let just_created = meta.size == 0 && meta.ctime_ns > self.options.now_ns - JUST_CREATED_NS;
        let changing = |size| LocalEntry { local: LocalState::Unknown(SkipReason::Changing), stat: None, size };
        let read = self.disk.open(&name).and_then(|mut file| {
            if !just_created && (self.options.unread)(&path, meta.size) {
                return Ok(self.leave_unread(&path, &file, meta));
            }
            self.read_file(&path, &mut file, batch, buf)
        });
        let found = match read {
            Ok(Some(_)) if just_created => changing(0),
            Ok(Some(found)) => found,
            Ok(None) => changing(meta.size),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            // The stat identifies the file, although its content is unknown.
            Err(e) => LocalEntry {
                local: LocalState::Unknown(unreadable(&e)),
                stat: Some(FileStat::from(meta)),
                size: meta.size,
            },
        };
        batch.items.push(ScanItem { path, disk_name: name, found, inode: meta.inode });
    }

    /// `None` if a program is writing to the file.
    fn leave_unread(&self, path: &RelPath, file: &D::File, meta: &FileMeta) -> Option<LocalEntry> {
        let found = LocalEntry { local: LocalState::Unknown(SkipReason::Unread), stat: None, size: meta.size };
        (!self.is_being_written(path, file, &FileStat::from(meta))).then_some(found)
    }

    /// `None` if the file changes, or a program is writing to it.
    fn read_file(
        &self,
        path: &RelPath,
        file: &mut D::File,
        batch: &mut ScanBatch,
        buf: &mut Vec<u8>,
    ) -> io::Result<Option<LocalEntry>> {
        // Ask for writers only after the read: a program that has closed the file by then has written all of it.
        let digested = source::digest_open(file, buf)?.filter(|d| !self.is_being_written(path, file, &d.stat));
        Ok(digested.map(|FileDigest { md5, stat }| {
            batch.stats.hashed += 1;
            batch.stats.bytes += stat.size;
            LocalEntry { local: LocalState::File(md5), stat: trusted_stat(stat, self.options.now_ns), size: stat.size }
        }))
    }

    fn is_being_written(&self, path: &RelPath, file: &D::File, stat: &FileStat) -> bool {
        is_young(stat, self.options.now_ns, self.options.quiet_ns)
            && file.is_open_for_writing()
            && !(self.options.overdue)(path)
    }
}
