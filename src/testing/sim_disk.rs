//! [`SimDisk`]: a filesystem in memory with kills and power cuts.
//!
//! Tests run the real engine on it with a seed: the same calls give the same run. A power cut loses unsynced content,
//! as the `tree` module defines. A hook sees every step of the engine and may act between any two steps. There are no
//! hard links, limits of space or threads.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fastrand::Rng;

use crate::disk::{Disk, DiskFile, FileMeta};
use crate::path::PRIVATE_DIR;

mod tree;
mod user;

#[cfg(test)]
mod tests;

use tree::{Ino, Tree};

/// A step of the engine on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    List,
    Stat,
    Open,
    Create,
    Append,
    Mkdir,
    Rmdir,
    Unlink,
    Rename,
    RenameNew,
    Exchange,
    SyncDir,
    SyncAll,
    /// This and all below are on an open file. `path` is its path at the time of opening.
    Read,
    Write,
    Sync,
    FileMeta,
    SetMode,
}

impl StepKind {
    /// True if it can change the disk, or the state that a power cut leaves.
    pub fn writes(self) -> bool {
        !matches!(self, Self::List | Self::Stat | Self::Open | Self::Read | Self::FileMeta)
    }
}

/// The next operation of the engine.
#[derive(Debug, Clone, Copy)]
pub struct DiskStep<'a> {
    pub kind: StepKind,
    pub path: &'a str,
    /// The second path of a rename or an exchange.
    pub to: Option<&'a str>,
    /// The number of the step, from 1, over the life of the disk and all its handles.
    pub number: u64,
    /// The disk, for a hook that acts on it: one that owned a clone would never be freed.
    pub disk: &'a SimDisk,
}

/// The decision on a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepFate {
    Go,
    /// It fails and changes nothing.
    Fail(ErrorKind),
    /// The process dies before the step.
    Kill,
}

/// Called before each step of an engine, with no lock held.
pub type StepHook = Box<dyn FnMut(&DiskStep<'_>) -> StepFate + Send>;

/// Planted bugs of the disk, to show that tests notice them. All are off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Planted {
    no_fsync: bool,
    unverified_displace: bool,
    unreadable_is_absent: bool,
}

struct DiskWorld {
    tree: Tree,
    /// Counts power cuts: a process does not outlive one.
    boot: u64,
    ops: u64,
    planted: Planted,
    /// The content that the engine last read at each path, for `unverified_displace` only.
    last_read: BTreeMap<String, Bytes>,
    /// Files that a program has open for writing.
    kept_open: BTreeSet<Ino>,
}

#[derive(Default)]
struct Hooks {
    hook: Option<StepHook>,
    /// Counts how often it was set.
    set: u64,
}

/// A process that has the disk open.
struct Life {
    boot: u64,
    dead: AtomicBool,
}

/// A handle to the disk. Clones belong to the same process; [`SimDisk::handle`] gives one to a new process.
///
/// The methods of [`Disk`] are for the engine and go through the hook. All others are for the user or the test, and
/// also work after a kill.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<DiskWorld>>,
    hooks: Arc<Mutex<Hooks>>,
    life: Arc<Life>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Another test's panic must show its own message.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn killed() -> io::Error {
    io::Error::other("killed")
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("alive", &self.is_alive()).finish_non_exhaustive()
    }
}

fn is_private(path: &str) -> bool {
    path == PRIVATE_DIR || path.strip_prefix(PRIVATE_DIR).is_some_and(|rest| rest.starts_with('/'))
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

/// Operations of the test.
impl SimDisk {
    /// An empty folder at one second past the epoch.
    pub fn new() -> Self {
        let world = DiskWorld {
            tree: Tree::new(),
            boot: 0,
            ops: 0,
            planted: Planted::default(),
            last_read: BTreeMap::new(),
            kept_open: BTreeSet::new(),
        };
        Self {
            world: Arc::new(Mutex::new(world)),
            hooks: Arc::default(),
            life: Arc::new(Life { boot: 0, dead: AtomicBool::new(false) }),
        }
    }

    fn world(&self) -> MutexGuard<'_, DiskWorld> {
        lock(&self.world)
    }

    /// The same disk for a new process.
    pub fn handle(&self) -> Self {
        let boot = self.world().boot;
        Self {
            world: self.world.clone(),
            hooks: self.hooks.clone(),
            life: Arc::new(Life { boot, dead: AtomicBool::new(false) }),
        }
    }

    /// Kills the process of this handle. Its later steps fail and change nothing.
    pub fn kill(&self) {
        self.life.dead.store(true, Ordering::SeqCst);
    }

    /// True if the process of this handle is alive.
    pub fn is_alive(&self) -> bool {
        !self.life.dead.load(Ordering::SeqCst) && self.life.boot == self.world().boot
    }

    /// Cuts the power. Every process dies, and only durable content is sure to survive.
    pub fn power_cut(&self, rng: &mut Rng) {
        let mut world = self.world();
        world.boot += 1;
        world.last_read.clear();
        world.tree.power_cut(rng);
    }

    /// Sets the clock, in nanoseconds since the epoch. Otherwise the clock does not move.
    pub fn set_time(&self, ns: i64) {
        self.world().tree.now_ns = ns;
    }

    /// The clock, in nanoseconds since the epoch.
    pub fn time(&self) -> i64 {
        self.world().tree.now_ns
    }

    /// Sets the hook for every later step of every engine on this disk. The hook does not see steps that it causes
    /// itself.
    pub fn set_hook(&self, hook: Option<StepHook>) {
        let mut hooks = lock(&self.hooks);
        hooks.hook = hook;
        hooks.set += 1;
    }

    /// The number of steps that engines have begun.
    pub fn ops(&self) -> u64 {
        self.world().ops
    }

    /// Planted bug: fsync does nothing and reports success.
    pub fn plant_no_fsync(&self, on: bool) {
        self.world().planted.no_fsync = on;
    }

    /// Planted bug: a file that is moved into the private folder has the content that the engine last read at the old
    /// name, as if the engine did not verify the moved file.
    pub fn plant_unverified_displace(&self, on: bool) {
        self.world().planted.unverified_displace = on;
    }

    /// Planted bug: an unreadable file looks absent.
    pub fn plant_unreadable_is_absent(&self, on: bool) {
        self.world().planted.unreadable_is_absent = on;
    }
}

/// Operations of the engine.
impl SimDisk {
    /// Begins a step: calls the hook, and returns the world if the process is alive.
    fn step(&self, kind: StepKind, path: &str, to: Option<&str>) -> io::Result<MutexGuard<'_, DiskWorld>> {
        if !self.is_alive() {
            return Err(killed());
        }
        let number = {
            let mut world = self.world();
            world.ops += 1;
            world.ops
        };
        // The hook is taken out while it runs, so that it may use the disk and set another hook.
        let (hook, set) = {
            let mut hooks = lock(&self.hooks);
            (hooks.hook.take(), hooks.set)
        };
        if let Some(mut hook) = hook {
            let verdict = hook(&DiskStep { kind, path, to, number, disk: self });
            let mut hooks = lock(&self.hooks);
            if hooks.set == set {
                hooks.hook = Some(hook);
            }
            drop(hooks);
            match verdict {
                StepFate::Go => {}
                StepFate::Fail(kind) => return Err(kind.into()),
                StepFate::Kill => self.kill(),
            }
        }
        let world = self.world();
        if self.life.dead.load(Ordering::SeqCst) || self.life.boot != world.boot {
            return Err(killed());
        }
        Ok(world)
    }

    fn file(&self, path: &str, ino: Ino, append: bool) -> SimFile {
        SimFile { disk: self.clone(), path: path.to_owned(), ino, position: 0, append }
    }
}

impl DiskWorld {
    /// The path as the engine sees it.
    fn find(&self, path: &str) -> io::Result<Ino> {
        let ino = self.tree.find(path)?;
        if self.hides(ino) { Err(ErrorKind::NotFound.into()) } else { Ok(ino) }
    }

    fn hides(&self, ino: Ino) -> bool {
        self.planted.unreadable_is_absent && !self.tree.is_readable(ino)
    }

    /// For `unverified_displace`: before `from` becomes `to`.
    fn displace(&mut self, from: &str, to: &str) {
        if self.planted.unverified_displace
            && !is_private(from)
            && is_private(to)
            && let Some(read) = self.last_read.get(from)
            && let Ok(ino) = self.tree.find(from)
            && self.tree.content(ino) != read
        {
            let read = read.clone();
            self.tree.set_content(ino, read);
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn boot_id(&self) -> Option<String> {
        Some(self.life.boot.to_string())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<(OsString, FileMeta)>> {
        let world = self.step(StepKind::List, dir, None)?;
        let ino = world.find(dir)?;
        let names = world.tree.list(ino)?.filter(|(_, ino)| !world.hides(*ino));
        Ok(names.map(|(name, ino)| (OsString::from(&**name), world.tree.meta(ino))).collect())
    }

    fn stat(&self, path: &str) -> io::Result<FileMeta> {
        let world = self.step(StepKind::Stat, path, None)?;
        world.find(path).map(|ino| world.tree.meta(ino))
    }

    fn open(&self, path: &str) -> io::Result<SimFile> {
        let world = self.step(StepKind::Open, path, None)?;
        world.find(path)?;
        world.tree.open(path).map(|ino| self.file(path, ino, false))
    }

    fn create(&self, path: &str) -> io::Result<SimFile> {
        let mut world = self.step(StepKind::Create, path, None)?;
        world.tree.create(path, 0o644).map(|ino| self.file(path, ino, false))
    }

    fn append(&self, path: &str) -> io::Result<SimFile> {
        let mut world = self.step(StepKind::Append, path, None)?;
        let ino = match world.tree.create(path, 0o600) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => world.tree.open(path)?,
            made => made?,
        };
        Ok(self.file(path, ino, true))
    }

    fn mkdir(&self, dir: &str) -> io::Result<()> {
        if dir.is_empty() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.step(StepKind::Mkdir, dir, None)?.tree.mkdir(dir).map(drop)
    }

    fn rmdir(&self, dir: &str) -> io::Result<()> {
        self.step(StepKind::Rmdir, dir, None)?.tree.rmdir(dir)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.step(StepKind::Unlink, path, None)?.tree.unlink(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.step(StepKind::Rename, from, Some(to))?;
        world.displace(from, to);
        world.tree.rename(from, to)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.step(StepKind::RenameNew, from, Some(to))?;
        world.tree.find(from)?;
        if world.tree.find(to).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        world.displace(from, to);
        world.tree.rename(from, to)
    }

    fn exchange(&self, a: &str, b: &str) -> io::Result<()> {
        let mut world = self.step(StepKind::Exchange, a, Some(b))?;
        world.displace(a, b);
        world.displace(b, a);
        world.tree.exchange(a, b)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut world = self.step(StepKind::SyncDir, dir, None)?;
        let ino = world.tree.find(dir)?;
        if world.planted.no_fsync { Ok(()) } else { world.tree.sync_dir(ino) }
    }

    fn sync_all(&self) -> io::Result<()> {
        let mut world = self.step(StepKind::SyncAll, "", None)?;
        if !world.planted.no_fsync {
            world.tree.sync_all();
        }
        Ok(())
    }
}

/// An open file of a [`SimDisk`]. It outlives its name, and dies with the process or the power.
pub struct SimFile {
    disk: SimDisk,
    /// The path at the time of opening.
    path: String,
    ino: Ino,
    position: usize,
    append: bool,
}

impl SimFile {
    fn step(&self, kind: StepKind) -> io::Result<MutexGuard<'_, DiskWorld>> {
        self.disk.step(kind, &self.path, None)
    }
}

impl DiskFile for SimFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut world = self.step(StepKind::Read)?;
        let content = world.tree.content(self.ino);
        let rest = content.get(self.position..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        if world.planted.unverified_displace && !is_private(&self.path) {
            world.last_read.insert(self.path.clone(), content);
        }
        drop(world);
        self.position += n;
        Ok(n)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let at = (!self.append).then_some(self.position);
        let end = self.step(StepKind::Write)?.tree.write(self.ino, at, bytes);
        self.position = end;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.step(StepKind::Sync)?;
        if !world.planted.no_fsync {
            world.tree.sync_content(self.ino);
        }
        Ok(())
    }

    fn meta(&self) -> io::Result<FileMeta> {
        Ok(self.step(StepKind::FileMeta)?.tree.meta(self.ino))
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.step(StepKind::SetMode)?.tree.set_mode(self.ino, mode);
        Ok(())
    }

    fn is_open_for_writing(&self) -> bool {
        self.disk.world().kept_open.contains(&self.ino)
    }
}
