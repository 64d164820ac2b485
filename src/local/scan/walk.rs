//! [`ScanWalk`]: lists folders and hands out the files in them, on several threads.

use std::io;

use crate::disk::{Disk, FileKind, FileMeta, FileStat};
use crate::path::{PRIVATE_DIR, PathError, RelPath, is_private};
use crate::sync::{LocalState, SkipReason};

use super::super::identity::has_identity;
use super::super::tree::{ExcludedName, LocalEntry, LocalTree, ScanItem};
use super::options::{ScanOptions, ScanStats};
use super::queue::JobQueue;

/// Files that one job reads: few enough to spread a large folder over the threads.
const FILES_PER_JOB: usize = 64;

/// The findings of one thread.
#[derive(Default)]
pub(super) struct ScanBatch {
    pub(super) items: Vec<ScanItem>,
    /// Paths of a full scan that are unchanged.
    pub(super) same: Vec<RelPath>,
    pub(super) excluded: Vec<ExcludedName>,
    /// Files with several hard links, by inode.
    pub(super) hard_links: Vec<(u64, String)>,
    pub(super) stats: ScanStats,
}

pub(super) enum ScanJob {
    /// A folder with everything below it.
    Dir(String),
    Files(Vec<(String, FileMeta)>),
    /// A path that is not scanned.
    Excluded(String, SkipReason),
}

pub(super) struct ScanWalk<'a, D: Disk> {
    pub(super) disk: &'a D,
    pub(super) known: &'a LocalTree,
    pub(super) options: &'a ScanOptions<'a>,
    is_full: bool,
    /// Device number of the root.
    device: u64,
    queue: JobQueue<ScanJob>,
}

impl<'a, D: Disk> ScanWalk<'a, D> {
    pub(super) fn new(
        disk: &'a D,
        known: &'a LocalTree,
        is_full: bool,
        options: &'a ScanOptions<'a>,
        device: u64,
    ) -> Self {
        Self { disk, known, options, is_full, device, queue: JobQueue::new() }
    }

    pub(super) fn push(&self, job: ScanJob) {
        self.queue.push(job);
    }

    /// Works off the queue with all threads.
    pub(super) fn run_threads(&self) -> Vec<ScanBatch> {
        std::thread::scope(|s| {
            let others: Vec<_> = (1..self.options.threads.max(1)).map(|_| s.spawn(|| self.run())).collect();
            let mut all = vec![self.run()];
            for other in others {
                match other.join() {
                    Ok(batch) => all.push(batch),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        })
    }

    /// The error that ended the walk, if any.
    pub(super) fn finish(self) -> io::Result<()> {
        self.queue.finish()
    }

    fn run(&self) -> ScanBatch {
        let mut batch = ScanBatch::default();
        let mut buf = Vec::new();
        while let Some(job) = self.next_job() {
            match job {
                ScanJob::Dir(dir) => self.scan_dir(&dir, &mut batch),
                ScanJob::Files(files) => {
                    for (name, meta) in files {
                        self.scan_file(name, &meta, &mut batch, &mut buf);
                    }
                }
                ScanJob::Excluded(name, why) => batch.add_unknown(name, why),
            }
            self.queue.done();
        }
        batch
    }

    fn next_job(&self) -> Option<ScanJob> {
        if (self.options.stop)() {
            self.queue.fail(io::ErrorKind::Interrupted.into());
        }
        self.queue.next()
    }

    fn scan_dir(&self, dir: &str, batch: &mut ScanBatch) {
        let names = match self.disk.list(dir) {
            Ok(names) => names,
            Err(e) if dir.is_empty() => return self.queue.fail(e),
            // The folder has just been removed. The next scan sees the outcome.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => return batch.add_unknown(dir.to_owned(), unreadable(&e)),
        };
        let has_private = names.iter().any(|(name, _)| name == PRIVATE_DIR);
        if !dir.is_empty() && has_private && has_identity(self.disk, dir) {
            return batch.add_unknown(dir.to_owned(), SkipReason::OtherFolder);
        }
        let mut to_read = Vec::new();
        let mut path = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let prefix = path.len();
        for (name, meta) in names {
            path.truncate(prefix);
            let Some(name) = name.to_str() else {
                let raw = [path.as_bytes(), name.as_encoded_bytes()].concat();
                batch.excluded.push((raw, SkipReason::Name(PathError::NotUtf8.to_string())));
                continue;
            };
            if dir.is_empty() && name == PRIVATE_DIR {
                continue;
            }
            path.push_str(name);
            if self.scan_name(&path, name, &meta, batch) {
                to_read.push((path.clone(), meta));
                if to_read.len() >= FILES_PER_JOB {
                    self.push(ScanJob::Files(std::mem::take(&mut to_read)));
                }
            }
        }
        if !to_read.is_empty() {
            self.push(ScanJob::Files(to_read));
        }
    }

    /// Scans one name of a folder, without reading a file. Returns true if it is a file to read.
    fn scan_name(&self, path: &str, name: &str, meta: &FileMeta, batch: &mut ScanBatch) -> bool {
        let is_mount = self.is_mount(meta);
        let is_file = meta.kind == FileKind::File && !is_mount;
        if is_file && self.options.same_rules && self.reuse_known(path, meta, batch) {
            return false;
        }
        if (self.options.ignored)(path, meta.kind == FileKind::Dir) {
            return false;
        }
        match meta.kind {
            _ if is_mount => batch.add_unknown(path.to_owned(), SkipReason::Mounted),
            FileKind::Dir if is_private(name) => {
                let why = SkipReason::NotAFile("another memory folder's private directory");
                batch.add_unknown(path.to_owned(), why);
            }
            FileKind::Dir => self.push(ScanJob::Dir(path.to_owned())),
            FileKind::File => return !self.reuse_known(path, meta, batch),
            FileKind::Symlink => batch.add_unknown(path.to_owned(), SkipReason::NotAFile("symlink")),
            FileKind::Other(kind) => batch.add_unknown(path.to_owned(), SkipReason::NotAFile(kind)),
        }
        false
    }

    /// Takes over the known content of a file whose stat is unchanged. Returns false if there is none.
    pub(super) fn reuse_known(&self, name: &str, meta: &FileMeta, batch: &mut ScanBatch) -> bool {
        if meta.size > self.options.max_file_size {
            return false;
        }
        if meta.links > 1 {
            batch.hard_links.push((meta.inode, name.to_owned()));
        }
        let stat = FileStat::from(meta);
        let known = self.known.found();
        // Most names on the disk are the path itself. The first lookup then saves a conversion.
        let known = known.get_key_value(name).or_else(|| known.get_key_value(&RelPath::from_disk(name).ok()?));
        let is_same = |found: &LocalEntry| found.stat == Some(stat) && matches!(found.local, LocalState::File(_));
        let Some((path, found)) = known.filter(|(_, found)| is_same(found)) else { return false };
        if self.is_full && self.known.is_called(path, name) {
            batch.same.push(path.clone());
        } else {
            let (path, disk_name, found) = (path.clone(), name.to_owned(), found.clone());
            batch.items.push(ScanItem { path, disk_name, found, inode: meta.inode });
        }
        true
    }

    /// True for a mount point. A btrfs subvolume that is not mounted has its own device number, too: files cannot be
    /// renamed into it.
    pub(super) fn is_mount(&self, meta: &FileMeta) -> bool {
        meta.is_mount || meta.kind == FileKind::Dir && meta.device != self.device
    }
}

impl ScanBatch {
    pub(super) fn add_unknown(&mut self, name: String, why: SkipReason) {
        match RelPath::from_disk(&name) {
            Ok(path) => {
                let found = LocalEntry { local: LocalState::Unknown(why), stat: None, size: 0 };
                self.items.push(ScanItem { path, disk_name: name, found, inode: 0 });
            }
            // No proxy and no base can have this name.
            Err(_) => self.excluded.push((name.into_bytes(), why)),
        }
    }
}

/// The reason for a path that cannot be opened. A mount may be newer than the listing.
pub(super) fn unreadable(e: &io::Error) -> SkipReason {
    match e.kind() {
        io::ErrorKind::CrossesDevices => SkipReason::Mounted,
        _ => SkipReason::Unreadable(e.to_string()),
    }
}
