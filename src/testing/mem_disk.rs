//! A directory in memory that tracks durable data and can fail on request.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile, FileKind, FileMeta};

/// One directory without folders.
#[derive(Clone, Default)]
pub struct MemDisk(Arc<Mutex<MemDir>>);

#[derive(Clone, Default)]
struct MemDir {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Since the last sync of the directory.
    moves: Vec<NameChange>,
    files: HashMap<u64, MemContent>,
    modes: HashMap<u64, u32>,
    next: u64,
    /// The number of writing operations so far.
    ops: u64,
    writes: u64,
    fault: DiskFault,
    boot: Option<String>,
}

#[derive(Clone, Default)]
struct MemContent {
    live: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
    Rename(String, String, u64),
}

/// The operations that fail. A failing operation does nothing, except that a write leaves half of its bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum DiskFault {
    #[default]
    None,
    /// All operations from this one on: the process was killed.
    From(u64),
    /// This operation only.
    Only(u64),
}

impl MemDisk {
    /// A disk with these files, all durable.
    pub fn with(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut inner = MemDir::default();
        for (name, bytes) in files {
            inner.next += 1;
            let id = inner.next;
            inner.names.insert(name.clone(), id);
            inner.files.insert(id, MemContent { live: bytes.clone(), durable: bytes.clone() });
        }
        inner.durable_names = inner.names.clone();
        Self(Arc::new(Mutex::new(inner)))
    }

    /// The same disk in this boot of the machine.
    pub fn in_boot(self, id: &str) -> Self {
        self.inner().boot = Some(id.to_owned());
        self
    }

    /// The files that a process sees.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.inner();
        inner.names.iter().map(|(name, id)| (name.clone(), inner.files[id].live.clone())).collect()
    }

    /// The files after a power cut: a random part of the unsynced bytes, and a random selection of the unsynced names.
    pub fn after_power_cut(&self, random: &mut fastrand::Rng) -> BTreeMap<String, Vec<u8>> {
        let inner = self.inner();
        let mut names = inner.durable_names.clone();
        let share = random.usize(0..=4);
        for step in &inner.moves {
            if random.usize(0..4) >= share {
                continue;
            }
            match step {
                NameChange::Link(name, id) => drop(names.insert(name.clone(), *id)),
                NameChange::Unlink(name) => drop(names.remove(name)),
                NameChange::Rename(from, to, id) => {
                    if names.get(from) == Some(id) {
                        names.remove(from);
                    }
                    names.insert(to.clone(), *id);
                }
            }
        }
        names
            .into_iter()
            .map(|(name, id)| {
                let MemContent { live, durable } = &inner.files[&id];
                (name, live[..random.usize(durable.len().min(live.len())..=live.len())].to_vec())
            })
            .collect()
    }

    pub fn ops(&self) -> u64 {
        self.inner().ops
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.inner().writes
    }

    pub fn mode(&self, name: &str) -> u32 {
        let inner = self.inner();
        inner.modes[&inner.names[name]]
    }

    pub fn fail(&self, fault: DiskFault) {
        self.inner().fault = fault;
    }

    fn inner(&self) -> MutexGuard<'_, MemDir> {
        self.0.lock().unwrap()
    }

    /// Counts a writing operation.
    fn change(&self) -> io::Result<MutexGuard<'_, MemDir>> {
        let mut inner = self.inner();
        let turn = inner.ops;
        inner.ops += 1;
        match inner.fault {
            DiskFault::From(k) if turn >= k => Err(io::Error::other("killed")),
            DiskFault::Only(k) if turn == k => Err(io::Error::other("a fault")),
            _ => Ok(inner),
        }
    }
}

impl MemDir {
    /// True if the last operation was the first to fail.
    fn failing_first(&self) -> bool {
        matches!(self.fault, DiskFault::From(k) | DiskFault::Only(k) if k + 1 == self.ops)
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn link(&mut self, name: &str, mode: u32) -> u64 {
        self.next += 1;
        let id = self.next;
        self.names.insert(name.to_owned(), id);
        self.files.insert(id, MemContent::default());
        self.modes.insert(id, mode);
        self.moves.push(NameChange::Link(name.to_owned(), id));
        id
    }

    fn meta(&self, id: u64) -> FileMeta {
        FileMeta {
            kind: FileKind::File,
            size: self.files[&id].live.len() as u64,
            allocated: 0,
            mtime_ns: 1_700_000_000_000_000_000,
            ctime_ns: 0,
            inode: id,
            links: 1,
            device: 1,
            is_mount: false,
            mode: self.modes.get(&id).copied().unwrap_or(0o600),
        }
    }
}

pub struct MemFile {
    disk: MemDisk,
    id: u64,
    at: usize,
}

impl DiskFile for MemFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let inner = self.disk.inner();
        let rest = &inner.files[&self.id].live[self.at..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let changed = self.disk.change().map(drop);
        let first = self.disk.inner().failing_first();
        let (took, failed) = match changed {
            Ok(()) => (bytes, None),
            Err(e) if first => (&bytes[..bytes.len() / 2], Some(e)),
            Err(e) => return Err(e),
        };
        let mut inner = self.disk.inner();
        inner.writes += took.len() as u64;
        if let Some(content) = inner.files.get_mut(&self.id) {
            content.live.extend_from_slice(took);
        }
        failed.map_or(Ok(()), Err)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.change()?;
        if let Some(content) = inner.files.get_mut(&self.id) {
            content.durable = content.live.clone();
        }
        Ok(())
    }

    fn meta(&self) -> io::Result<FileMeta> {
        Ok(self.disk.inner().meta(self.id))
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.disk.change()?.modes.insert(self.id, mode);
        Ok(())
    }
}

impl Disk for MemDisk {
    type File = MemFile;

    fn boot_id(&self) -> Option<String> {
        self.inner().boot.clone()
    }

    fn list(&self, _dir: &str) -> io::Result<Vec<(OsString, FileMeta)>> {
        let inner = self.inner();
        Ok(inner.names.iter().map(|(name, id)| (name.into(), inner.meta(*id))).collect())
    }

    fn stat(&self, path: &str) -> io::Result<FileMeta> {
        let inner = self.inner();
        Ok(inner.meta(inner.id(path)?))
    }

    fn open(&self, path: &str) -> io::Result<MemFile> {
        let id = self.inner().id(path)?;
        Ok(MemFile { disk: self.clone(), id, at: 0 })
    }

    fn create(&self, path: &str) -> io::Result<MemFile> {
        let mut inner = self.change()?;
        if inner.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = inner.link(path, 0o644);
        Ok(MemFile { disk: self.clone(), id, at: 0 })
    }

    fn append(&self, path: &str) -> io::Result<MemFile> {
        let mut inner = self.change()?;
        let id = match inner.id(path) {
            Ok(id) => id,
            Err(_) => inner.link(path, 0o600),
        };
        Ok(MemFile { disk: self.clone(), id, at: 0 })
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let mut inner = self.change()?;
        inner.id(path)?;
        inner.names.remove(path);
        inner.moves.push(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.change()?;
        let id = inner.id(from)?;
        inner.names.remove(from);
        inner.names.insert(to.to_owned(), id);
        inner.moves.push(NameChange::Rename(from.to_owned(), to.to_owned(), id));
        Ok(())
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        if self.inner().names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        let mut inner = self.change()?;
        inner.durable_names = inner.names.clone();
        inner.moves.clear();
        Ok(())
    }

    fn mkdir(&self, _dir: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn rmdir(&self, _dir: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn exchange(&self, _a: &str, _b: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_all(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
