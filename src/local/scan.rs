//! The scan: what is in the folder now.
//!
//! Watcher events are hints, the scan is the truth. A file whose stat is unchanged is not read again; a file that
//! is as young as the scan is (the racy-timestamp rule): a write within the same clock tick would not show.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile, FileKind, FileMeta, FileStat};
use crate::path::{PRIVATE_DIR, RelPath, is_private};
use crate::sync::{LocalState, SkipReason};

use super::folder::ID;
use super::moves::dir_of;
use super::source::{self, FileDigest};
use super::tree::{Item, LeftOut, LocalEntry, LocalTree};
use super::{Folder, ScanScope};

/// An empty file younger than this (in ns) is looked at again before it counts.
const JUST_MADE_NS: i64 = 100_000_000;

/// A stat this close before the scan (in ns) may hide a second write: the coarsest kernel clock ticks every 10 ms.
const TICK_NS: i64 = 20_000_000;
/// The same for filesystems that keep whole seconds (FAT keeps two).
const COARSE_TICK_NS: i64 = 2_000_000_000;

/// What a scan may be told.
pub struct ScanOptions<'a> {
    /// Bytes; larger files take no part.
    pub max_file_size: u64,
    /// Whether a file of this size, in bytes, that is new or changed need not be read yet ([`SkipReason::Unread`]).
    pub unread: &'a (dyn Fn(&RelPath, u64) -> bool + Sync),
    /// Whether a path (as it is called on the disk) is ignored.
    pub ignored: &'a (dyn Fn(&str, bool) -> bool + Sync),
    /// `ignored` says what it said when the tree was last scanned whole: what is known and unchanged is not ignored.
    pub same_rules: bool,
    /// The content that both sides agreed on for a path.
    pub base: &'a (dyn Fn(&RelPath) -> Option<Md5> + Sync),
    /// A file that a program has open for writing is not taken before its last write is this old (in ns); 0: whenever it
    /// holds still.
    pub quiet_ns: i64,
    /// Whether a path has been waited for long enough: then it is taken although it is open and young.
    pub overdue: &'a (dyn Fn(&RelPath) -> bool + Sync),
    /// Threads to read with, at least 1.
    pub threads: usize,
    /// Wall clock in ns since the epoch, by which a stat is young or old.
    pub now_ns: i64,
    /// Whether to give up; the scan then fails with `Interrupted`, and the tree is as it was.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// What a scan cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanStats {
    pub files: u64,
    /// Files that were read.
    pub hashed: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

impl<D: Disk> Folder<D> {
    /// Brings `tree` up to date within `scope`.
    ///
    /// # Errors
    /// When the root itself cannot be read; anything below becomes [`LocalState::Unknown`] in the tree.
    pub fn scan(&self, tree: &mut LocalTree, scope: &ScanScope, options: &ScanOptions<'_>) -> io::Result<ScanStats> {
        let root = self.disk.stat("")?;
        let walk = Walk {
            disk: &*self.disk,
            known: tree,
            full: scope.full,
            options,
            device: root.device,
            queue: Mutex::new(Queue::default()),
            wake: Condvar::new(),
        };
        let mut gone = Vec::new();
        if scope.full {
            walk.push(Job::Dir(String::new()));
        } else {
            let spelt = |names: &BTreeSet<String>| names.iter().flat_map(|n| tree.spellings(n)).collect();
            let (paths, subtrees): (BTreeSet<String>, BTreeSet<String>) = (spelt(&scope.paths), spelt(&scope.subtrees));
            let paths = self.with_hard_links(walk.known, paths);
            let mut known = BTreeMap::new();
            let all = paths.difference(&subtrees).map(|p| (p, false)).chain(subtrees.iter().map(|p| (p, true)));
            for (path, whole) in all {
                match self.left_out_above(&walk, dir_of(path), &mut known) {
                    Some((dir, why)) => walk.left_out(dir, why, &mut gone),
                    None => self.look(&walk, path, whole, &mut gone)?,
                }
            }
            gone.extend(subtrees);
        }
        let batches: Vec<Batch> = std::thread::scope(|s| {
            let others: Vec<_> = (1..options.threads.max(1)).map(|_| s.spawn(|| walk.run())).collect();
            let mut all = vec![walk.run()];
            for other in others {
                match other.join() {
                    Ok(batch) => all.push(batch),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        });
        let queue = walk.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(e) = queue.root_error {
            return Err(e);
        }
        let mut stats = ScanStats::default();
        let (mut items, mut same, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        let mut hard_links = Vec::new();
        for batch in batches {
            stats.hashed += batch.stats.hashed;
            stats.bytes += batch.stats.bytes;
            items.extend(batch.items);
            same.extend(batch.same);
            left_out.extend(batch.left_out);
            hard_links.extend(batch.hard_links);
        }
        items.sort_by(|a: &Item, b: &Item| a.path.cmp(&b.path).then_with(|| a.disk_name.cmp(&b.disk_name)));
        // A folder that several paths led to.
        items.dedup_by(|a, b| a.path == b.path && a.disk_name == b.disk_name);
        if scope.full {
            tree.renew(same, items, left_out, options.base);
        } else {
            tree.refresh(gone, items, left_out, options.base);
        }
        tree.note_hard_links(hard_links);
        stats.files = tree.found().len() as u64;
        Ok(stats)
    }

    /// The paths, and the other names of the files that they name: an event tells of the name that was used alone.
    fn with_hard_links(&self, tree: &LocalTree, mut paths: BTreeSet<String>) -> BTreeSet<String> {
        if !tree.has_hard_links() {
            return paths;
        }
        let linked =
            |path: &String| self.disk.stat(path).ok().filter(|meta| meta.kind == FileKind::File && meta.links > 1);
        let others: Vec<String> =
            paths.iter().filter_map(linked).flat_map(|meta| tree.names_of(meta.inode, meta.links)).collect();
        paths.extend(others);
        paths
    }

    /// The first folder on the way to `dir`, which may be `dir` itself, that is left out with all that is below it.
    fn left_out_above(
        &self,
        walk: &Walk<'_, D>,
        dir: &str,
        known: &mut BTreeMap<String, Option<SkipReason>>,
    ) -> Option<(String, SkipReason)> {
        if dir.is_empty() || known.get(dir).is_some_and(Option::is_none) {
            return None;
        }
        for end in dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]) {
            let dir = &dir[..end];
            let why = known.entry(dir.to_owned()).or_insert_with(|| self.why_left_out(walk, dir));
            if let Some(why) = why {
                return Some((dir.to_owned(), why.clone()));
            }
        }
        None
    }

    /// Why a folder is left out with all that is below it.
    fn why_left_out(&self, walk: &Walk<'_, D>, dir: &str) -> Option<SkipReason> {
        if self.disk.stat(dir).is_ok_and(|meta| walk.is_mount(&meta)) {
            return Some(SkipReason::Mounted);
        }
        self.is_other_folder(dir).then_some(SkipReason::OtherFolder)
    }

    /// True if the folder `dir` below the root is a memory folder of its own.
    pub fn is_other_folder(&self, dir: &str) -> bool {
        has_identity(&*self.disk, dir)
    }

    /// Queues one path for a scan that is not full.
    fn look(&self, walk: &Walk<'_, D>, name: &str, whole: bool, gone: &mut Vec<String>) -> io::Result<()> {
        if name.is_empty() {
            walk.push(Job::Dir(String::new()));
            return Ok(());
        }
        // A path below something that is no folder (any more) is gone; the ignored are not looked at.
        match self.disk.stat(name) {
            Ok(meta) => {
                if walk.is_mount(&meta) {
                    walk.left_out(name.to_owned(), SkipReason::Mounted, gone);
                } else if (walk.options.ignored)(name, meta.kind == FileKind::Dir) {
                    gone.push(name.to_owned());
                } else if meta.kind == FileKind::Dir {
                    // Also where something else stood before: a file, or a folder that could not be read.
                    let new_here = walk.known.found().contains_key(name);
                    if new_here && !whole {
                        gone.push(name.to_owned());
                    }
                    if new_here || whole {
                        walk.push(Job::Dir(name.to_owned()));
                    }
                } else {
                    // A file where a folder was: nothing is below it now.
                    gone.push(name.to_owned());
                    walk.push(Job::Files(vec![(name.to_owned(), meta)]));
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                gone.push(name.to_owned());
            }
            Err(e) => walk.push(Job::LeftOut(name.to_owned(), SkipReason::Unreadable(e.to_string()))),
        }
        Ok(())
    }
}

#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    /// Of a full scan: what is as it is known.
    same: Vec<RelPath>,
    left_out: Vec<LeftOut>,
    /// Files with more than one name, by inode.
    hard_links: Vec<(u64, String)>,
    stats: ScanStats,
}

enum Job {
    Dir(String),
    Files(Vec<(String, FileMeta)>),
    LeftOut(String, SkipReason),
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    busy: usize,
    root_error: Option<io::Error>,
}

struct Walk<'a, D: Disk> {
    disk: &'a D,
    known: &'a LocalTree,
    full: bool,
    options: &'a ScanOptions<'a>,
    device: u64,
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// Files that one job hashes: small enough to share a large folder between the threads.
const FILES_A_JOB: usize = 64;

impl<D: Disk> Walk<'_, D> {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume that is not mounted (a btrfs subvolume) has a device number of its own. Files cannot be renamed into it,
    /// so that it is left out, too.
    fn is_mount(&self, meta: &FileMeta) -> bool {
        meta.is_mount || meta.kind == FileKind::Dir && meta.device != self.device
    }

    fn left_out(&self, dir: String, why: SkipReason, gone: &mut Vec<String>) {
        gone.push(dir.clone());
        self.push(Job::LeftOut(dir, why));
    }

    fn push(&self, job: Job) {
        self.lock().jobs.push(job);
        self.wake.notify_one();
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        if (self.options.stop)() && queue.root_error.is_none() {
            queue.root_error = Some(io::ErrorKind::Interrupted.into());
        }
        if queue.root_error.is_some() {
            queue.jobs.clear();
        }
        loop {
            if let Some(job) = queue.jobs.pop() {
                queue.busy += 1;
                return Some(job);
            }
            if queue.busy == 0 {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self) {
        let mut queue = self.lock();
        queue.busy -= 1;
        if queue.busy == 0 {
            self.wake.notify_all();
        }
    }

    fn run(&self) -> Batch {
        let mut batch = Batch::default();
        let mut buf = Vec::new();
        while let Some(job) = self.next() {
            match job {
                Job::Dir(dir) => self.dir(&dir, &mut batch),
                Job::Files(files) => {
                    for (name, meta) in files {
                        self.file(name, &meta, &mut batch, &mut buf);
                    }
                }
                Job::LeftOut(name, why) => self.unknown(name, why, &mut batch),
            }
            self.done();
        }
        batch
    }

    fn dir(&self, dir: &str, batch: &mut Batch) {
        let names = match self.disk.list(dir) {
            Ok(names) => names,
            Err(e) if dir.is_empty() => {
                self.lock().root_error = Some(e);
                return;
            }
            // It went while we looked: the next scan sees what became of it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => return self.unknown(dir.to_owned(), unreadable(&e), batch),
        };
        let has_private = names.iter().any(|(name, _)| name == PRIVATE_DIR);
        if !dir.is_empty() && has_private && has_identity(self.disk, dir) {
            return self.unknown(dir.to_owned(), SkipReason::OtherFolder, batch);
        }
        let mut to_hash = Vec::new();
        let mut path = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let prefix = path.len();
        for (name, meta) in names {
            let Some(name) = name.to_str() else {
                let mut raw = if dir.is_empty() { Vec::new() } else { format!("{dir}/").into_bytes() };
                raw.extend_from_slice(name.as_encoded_bytes());
                batch.left_out.push((raw, SkipReason::Name(crate::path::PathError::NotUtf8.to_string())));
                continue;
            };
            if dir.is_empty() && name == PRIVATE_DIR {
                continue;
            }
            path.truncate(prefix);
            path.push_str(name);
            let is_mount = self.is_mount(&meta);
            if meta.kind == FileKind::File && !is_mount && self.options.same_rules && self.cached(&path, &meta, batch) {
                continue;
            }
            if (self.options.ignored)(&path, meta.kind == FileKind::Dir) {
                continue;
            }
            match meta.kind {
                _ if is_mount => self.unknown(path.clone(), SkipReason::Mounted, batch),
                FileKind::Dir if is_private(name) => {
                    let why = SkipReason::NotAFile("another memory folder's private directory");
                    self.unknown(path.clone(), why, batch);
                }
                FileKind::Dir => self.push(Job::Dir(path.clone())),
                FileKind::File if self.cached(&path, &meta, batch) => {}
                FileKind::File => {
                    to_hash.push((path.clone(), meta));
                    if to_hash.len() >= FILES_A_JOB {
                        self.push(Job::Files(std::mem::take(&mut to_hash)));
                    }
                }
                FileKind::Symlink | FileKind::Other(_) => self.file(path.clone(), &meta, batch, &mut Vec::new()),
            }
        }
        if !to_hash.is_empty() {
            self.push(Job::Files(to_hash));
        }
    }

    /// Takes a file over from what is known, where its stat is unchanged.
    fn cached(&self, name: &str, meta: &FileMeta, batch: &mut Batch) -> bool {
        let stat = FileStat::from(meta);
        if meta.size > self.options.max_file_size {
            return false;
        }
        if meta.links > 1 {
            batch.hard_links.push((meta.inode, name.to_owned()));
        }
        let known = self.known.found();
        // Most names are the path itself: then it need not be made.
        let known = known.get_key_value(name).or_else(|| known.get_key_value(&RelPath::from_disk(name).ok()?));
        let is_same = |found: &LocalEntry| found.stat == Some(stat) && matches!(found.local, LocalState::File(_));
        match known {
            Some((path, found)) if is_same(found) => {
                if self.full && self.known.is_called(path, name) {
                    batch.same.push(path.clone());
                } else {
                    let (path, disk_name, found) = (path.clone(), name.to_owned(), found.clone());
                    batch.items.push(Item { path, disk_name, found, inode: meta.inode });
                }
                true
            }
            _ => false,
        }
    }

    fn file(&self, name: String, meta: &FileMeta, batch: &mut Batch, buf: &mut Vec<u8>) {
        match meta.kind {
            FileKind::File => {}
            FileKind::Dir => return,
            FileKind::Symlink => return self.unknown(name, SkipReason::NotAFile("symlink"), batch),
            FileKind::Other(kind) => return self.unknown(name, SkipReason::NotAFile(kind), batch),
        }
        if meta.size > self.options.max_file_size {
            return self.unknown(name, SkipReason::TooLarge(meta.size), batch);
        }
        if self.cached(&name, meta, batch) {
            return;
        }
        // An editor creates a file before it writes to it.
        let just_made = meta.size == 0 && meta.ctime_ns > self.options.now_ns - JUST_MADE_NS;
        let path = match RelPath::from_disk(&name) {
            Ok(path) => path,
            Err(e) => return self.unknown(name, SkipReason::Name(e.to_string()), batch),
        };
        let changing = |size| LocalEntry { local: LocalState::Unknown(SkipReason::Changing), stat: None, size };
        let is_open = |file: &D::File, stat: &FileStat| {
            self.is_young(stat) && file.is_open_for_writing() && !(self.options.overdue)(&path)
        };
        let stats = &mut batch.stats;
        let look = |mut file: D::File| {
            if !just_made && (self.options.unread)(&path, meta.size) {
                let found = LocalEntry { local: LocalState::Unknown(SkipReason::Unread), stat: None, size: meta.size };
                return Ok((!is_open(&file, &FileStat::from(meta))).then_some(found));
            }
            let digested = source::digest_open(&mut file, buf)?;
            // Asked after it was read: what a program had written by then, it had finished.
            Ok(digested.filter(|d| !is_open(&file, &d.stat)).map(|FileDigest { md5, stat }| {
                stats.hashed += 1;
                stats.bytes += stat.size;
                LocalEntry { local: LocalState::File(md5), stat: settled(stat, self.options.now_ns), size: stat.size }
            }))
        };
        let found = match self.disk.open(&name).and_then(look) {
            Ok(Some(_)) if just_made => changing(0),
            Ok(Some(found)) => found,
            Ok(None) => changing(meta.size),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => {
                // It tells which file it is, though not what is in it.
                LocalEntry {
                    local: LocalState::Unknown(unreadable(&e)),
                    stat: Some(FileStat::from(meta)),
                    size: meta.size,
                }
            }
        };
        batch.items.push(Item { path, disk_name: name, found, inode: meta.inode });
    }

    /// Whether the last write may be younger than the quiet time: by ctime, which no program can set back. A write from
    /// after the start of the scan lies ahead of its clock; one that lies further ahead is of another clock and says
    /// nothing.
    fn is_young(&self, stat: &FileStat) -> bool {
        let quiet = self.options.quiet_ns;
        let age = self.options.now_ns.saturating_sub(stat.ctime_ns);
        quiet > 0 && age < quiet && age > -quiet.max(COARSE_TICK_NS)
    }

    fn unknown(&self, name: String, why: SkipReason, batch: &mut Batch) {
        match RelPath::from_disk(&name) {
            Ok(path) => {
                let found = LocalEntry { local: LocalState::Unknown(why), stat: None, size: 0 };
                batch.items.push(Item { path, disk_name: name, found, inode: 0 });
            }
            // It can be on no proxy and in no base.
            Err(_) => batch.left_out.push((name.into_bytes(), why)),
        }
    }
}

fn has_identity(disk: &impl Disk, dir: &str) -> bool {
    disk.stat(&format!("{dir}/{ID}")).is_ok_and(|meta| meta.kind == FileKind::File)
}

/// Why something could not be opened. A mount may come after its name was looked at.
fn unreadable(e: &io::Error) -> SkipReason {
    match e.kind() {
        io::ErrorKind::CrossesDevices => SkipReason::Mounted,
        _ => SkipReason::Unreadable(e.to_string()),
    }
}

/// The stat of a file that was staged as `before` and stands in its place as `now`, where the two prove that nobody has
/// written to it: its own last write lies more than a tick before the rename, from which on others could see it.
pub(super) fn unchanged(before: &FileMeta, now: &FileMeta) -> Option<FileStat> {
    let same = now.kind == FileKind::File
        && (before.inode, before.size, before.mtime_ns) == (now.inode, now.size, now.mtime_ns);
    settled(FileStat { ctime_ns: before.mtime_ns, ..FileStat::from(now) }, now.ctime_ns)
        .filter(|_| same)
        .map(|_| now.into())
}

/// The stat, where it is old enough to be trusted at the wall-clock time `now_ns`.
pub fn settled(stat: FileStat, now_ns: i64) -> Option<FileStat> {
    let whole_seconds = stat.mtime_ns % 1_000_000_000 == 0 && stat.ctime_ns % 1_000_000_000 == 0;
    let tick = if whole_seconds { COARSE_TICK_NS } else { TICK_NS };
    let youngest = stat.ctime_ns.max(stat.mtime_ns);
    // A timestamp of the future is set by hand or by a wrong clock; ctime then tells.
    let youngest = if youngest > now_ns { stat.ctime_ns } else { youngest };
    (youngest < now_ns - tick).then_some(stat)
}

#[cfg(test)]
#[path = "scan/tests.rs"]
mod tests;
