//! [`Tree`]: inodes and names, and the part of both that survives a power cut.
//!
//! Content and names become durable independently. A journal holds the changes of names that are not durable yet. A
//! change never becomes durable before the earlier ones that it needs. This module knows no processes, hooks or planted
//! bugs.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::disk::{FileKind, FileMeta};

mod durable;

/// An inode number. Never used again.
pub(super) type Ino = u64;

/// The device number of the only filesystem.
const DEVICE: u64 = 1;
const ROOT: Ino = 1;
const READ_BITS: u32 = 0o444;

struct Inode {
    body: Body,
    mode: u32,
    mtime_ns: i64,
    ctime_ns: i64,
}

enum Body {
    File(Content),
    Dir(Names),
    Symlink,
    Other(&'static str),
}

#[derive(Default)]
struct Content {
    now: Bytes,
    /// The content at the last `fsync`. `None` before the first one.
    durable: Option<Saved>,
    dirty: bool,
}

struct Saved {
    bytes: Bytes,
    mtime_ns: i64,
    ctime_ns: i64,
}

#[derive(Default)]
struct Names {
    now: BTreeMap<Arc<str>, Ino>,
    durable: BTreeMap<Arc<str>, Ino>,
}

/// One change of names. It becomes durable as a whole.
struct Change {
    edits: Vec<Edit>,
    /// The inodes that it created, moved or removed.
    moved: Vec<Ino>,
}

struct Edit {
    dir: Ino,
    name: Arc<str>,
    to: Option<Ino>,
}

impl Change {
    fn touches(&self, dir: Ino) -> bool {
        self.edits.iter().any(|e| e.dir == dir)
    }

    /// True if `self` needs the earlier change: it concerns the same name or inode, or a folder that the other created
    /// or moved, or it moves or removes the folder of the other.
    fn builds_on(&self, earlier: &Self) -> bool {
        self.moved.iter().any(|ino| earlier.moved.contains(ino) || earlier.touches(*ino))
            || self.edits.iter().any(|e| {
                earlier.moved.contains(&e.dir) || earlier.edits.iter().any(|o| o.dir == e.dir && o.name == e.name)
            })
    }
}

/// A name in a folder, and the inode of that name.
struct Spot {
    dir: Ino,
    name: Arc<str>,
    found: Option<Ino>,
}

pub(super) struct Tree {
    /// `inodes[n - 1]` is inode `n`.
    inodes: Vec<Inode>,
    journal: Vec<Change>,
    pub(super) now_ns: i64,
}

fn error<T>(kind: ErrorKind) -> io::Result<T> {
    Err(kind.into())
}

impl Tree {
    pub(super) fn new() -> Self {
        let mut tree = Self { inodes: Vec::new(), journal: Vec::new(), now_ns: 1_000_000_000 };
        tree.add(Body::Dir(Names::default()), 0o755);
        tree
    }

    fn add(&mut self, body: Body, mode: u32) -> Ino {
        self.inodes.push(Inode { body, mode, mtime_ns: self.now_ns, ctime_ns: self.now_ns });
        self.inodes.len() as Ino
    }

    fn inode(&self, ino: Ino) -> &Inode {
        &self.inodes[ino as usize - 1]
    }

    fn inode_mut(&mut self, ino: Ino) -> &mut Inode {
        &mut self.inodes[ino as usize - 1]
    }

    fn names(&self, ino: Ino) -> io::Result<&Names> {
        match &self.inode(ino).body {
            Body::Dir(names) => Ok(names),
            _ => error(ErrorKind::NotADirectory),
        }
    }

    fn names_mut(&mut self, ino: Ino) -> Option<&mut Names> {
        match &mut self.inode_mut(ino).body {
            Body::Dir(names) => Some(names),
            _ => None,
        }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.inode(ino).body, Body::Dir(_))
    }

    /// The inode at `path`; no symlink is followed.
    pub(super) fn find(&self, path: &str) -> io::Result<Ino> {
        if path.is_empty() {
            return Ok(ROOT);
        }
        path.split('/').try_fold(ROOT, |dir, name| {
            self.names(dir)?.now.get(name).copied().ok_or_else(|| ErrorKind::NotFound.into())
        })
    }

    fn spot(&self, path: &str) -> io::Result<Spot> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() {
            return error(ErrorKind::ResourceBusy);
        }
        let dir = self.find(dir)?;
        let found = self.names(dir)?.now.get(name).copied();
        Ok(Spot { dir, name: name.into(), found })
    }

    fn existing(&self, path: &str) -> io::Result<(Spot, Ino)> {
        let spot = self.spot(path)?;
        let ino = spot.found.ok_or(ErrorKind::NotFound)?;
        Ok((spot, ino))
    }

    pub(super) fn meta(&self, ino: Ino) -> FileMeta {
        let inode = self.inode(ino);
        let (kind, size) = match &inode.body {
            Body::File(c) => (FileKind::File, c.now.len() as u64),
            Body::Dir(_) => (FileKind::Dir, 4096),
            Body::Symlink => (FileKind::Symlink, 1),
            Body::Other(kind) => (FileKind::Other(kind), 0),
        };
        let Inode { mtime_ns, ctime_ns, mode, .. } = *inode;
        FileMeta {
            kind,
            size,
            allocated: size.next_multiple_of(4096),
            mtime_ns,
            ctime_ns,
            inode: ino,
            links: 1,
            device: DEVICE,
            is_mount: false,
            mode,
        }
    }

    pub(super) fn is_readable(&self, ino: Ino) -> bool {
        self.inode(ino).mode & READ_BITS != 0
    }

    pub(super) fn set_mode(&mut self, ino: Ino, mode: u32) {
        let now = self.now_ns;
        let inode = self.inode_mut(ino);
        inode.mode = mode;
        inode.ctime_ns = now;
    }

    pub(super) fn set_readable(&mut self, ino: Ino, readable: bool) {
        let mode = self.inode(ino).mode;
        self.set_mode(ino, if readable { mode | READ_BITS } else { mode & !READ_BITS });
    }

    /// The names in a folder.
    pub(super) fn list(&self, dir: Ino) -> io::Result<impl Iterator<Item = (&Arc<str>, Ino)>> {
        self.names(dir)?;
        if !self.is_readable(dir) {
            return error(ErrorKind::PermissionDenied);
        }
        Ok(self.entries(dir))
    }

    /// The names in a folder, readable or not. Empty if the folder does not exist.
    pub(super) fn entries(&self, dir: Ino) -> impl Iterator<Item = (&Arc<str>, Ino)> {
        self.names(dir).into_iter().flat_map(|names| names.now.iter().map(|(name, ino)| (name, *ino)))
    }

    /// The inode at `path` if it is a readable regular file.
    pub(super) fn open(&self, path: &str) -> io::Result<Ino> {
        let ino = self.find(path)?;
        match self.inode(ino).body {
            Body::File(_) if self.is_readable(ino) => Ok(ino),
            Body::File(_) => error(ErrorKind::PermissionDenied),
            _ => error(ErrorKind::InvalidInput),
        }
    }

    /// The content of a regular file, empty for anything else.
    pub(super) fn content(&self, ino: Ino) -> Bytes {
        match &self.inode(ino).body {
            Body::File(c) => c.now.clone(),
            _ => Bytes::new(),
        }
    }

    fn change_content(&mut self, ino: Ino, change: impl FnOnce(&mut Bytes)) {
        let now = self.now_ns;
        let inode = self.inode_mut(ino);
        if let Body::File(c) = &mut inode.body {
            change(&mut c.now);
            c.dirty = true;
            inode.mtime_ns = now;
            inode.ctime_ns = now;
        }
    }

    /// Writes at a position, or appends for `None`. Returns the position after the write.
    pub(super) fn write(&mut self, ino: Ino, at: Option<usize>, bytes: &[u8]) -> usize {
        let mut end = 0;
        self.change_content(ino, |content| {
            let mut all = std::mem::take(content).try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            let at = at.unwrap_or(all.len());
            end = at + bytes.len();
            if all.len() < end {
                all.resize(end, 0);
            }
            all[at..end].copy_from_slice(bytes);
            *content = all.freeze();
        });
        end
    }

    pub(super) fn set_content(&mut self, ino: Ino, bytes: Bytes) {
        self.change_content(ino, |content| *content = bytes);
    }

    /// `fsync` of a file: its content, not its name.
    pub(super) fn sync_content(&mut self, ino: Ino) {
        let Inode { body, mtime_ns, ctime_ns, .. } = self.inode_mut(ino);
        if let Body::File(c) = body
            && (c.dirty || c.durable.is_none())
        {
            c.durable = Some(Saved { bytes: c.now.clone(), mtime_ns: *mtime_ns, ctime_ns: *ctime_ns });
            c.dirty = false;
        }
    }

    fn commit(&mut self, change: Change) {
        let now = self.now_ns;
        for edit in &change.edits {
            if let Some(names) = self.names_mut(edit.dir) {
                match edit.to {
                    Some(ino) => names.now.insert(edit.name.clone(), ino),
                    None => names.now.remove(&edit.name),
                };
            }
            let dir = self.inode_mut(edit.dir);
            dir.mtime_ns = now;
            dir.ctime_ns = now;
        }
        for ino in &change.moved {
            self.inode_mut(*ino).ctime_ns = now;
        }
        self.journal.push(change);
    }

    fn make(&mut self, path: &str, body: Body, mode: u32) -> io::Result<Ino> {
        let spot = self.spot(path)?;
        if spot.found.is_some() {
            return error(ErrorKind::AlreadyExists);
        }
        let ino = self.add(body, mode);
        self.commit(Change { edits: vec![Edit { dir: spot.dir, name: spot.name, to: Some(ino) }], moved: vec![ino] });
        Ok(ino)
    }

    pub(super) fn create(&mut self, path: &str, mode: u32) -> io::Result<Ino> {
        self.make(path, Body::File(Content::default()), mode)
    }

    pub(super) fn mkdir(&mut self, path: &str) -> io::Result<Ino> {
        self.make(path, Body::Dir(Names::default()), 0o755)
    }

    pub(super) fn symlink(&mut self, path: &str) -> io::Result<Ino> {
        self.make(path, Body::Symlink, 0o777)
    }

    pub(super) fn other(&mut self, path: &str, kind: &'static str) -> io::Result<Ino> {
        self.make(path, Body::Other(kind), 0o644)
    }

    fn take(&mut self, spot: Spot, ino: Ino) {
        self.commit(Change { edits: vec![Edit { dir: spot.dir, name: spot.name, to: None }], moved: vec![ino] });
    }

    pub(super) fn unlink(&mut self, path: &str) -> io::Result<()> {
        let (spot, ino) = self.existing(path)?;
        if self.is_dir(ino) {
            return error(ErrorKind::IsADirectory);
        }
        self.take(spot, ino);
        Ok(())
    }

    pub(super) fn rmdir(&mut self, path: &str) -> io::Result<()> {
        let (spot, ino) = self.existing(path)?;
        if !self.names(ino)?.now.is_empty() {
            return error(ErrorKind::DirectoryNotEmpty);
        }
        self.take(spot, ino);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let (source, ino) = self.existing(from)?;
        if inside(to, from) {
            return error(ErrorKind::InvalidInput);
        }
        let target = self.spot(to)?;
        let mut moved = vec![ino];
        if let Some(old) = target.found {
            match (self.is_dir(ino), self.is_dir(old)) {
                _ if old == ino => return Ok(()),
                (true, false) => return error(ErrorKind::NotADirectory),
                (false, true) => return error(ErrorKind::IsADirectory),
                (true, true) if !self.names(old)?.now.is_empty() => return error(ErrorKind::DirectoryNotEmpty),
                _ => moved.push(old),
            }
        }
        self.commit(Change {
            edits: vec![
                Edit { dir: source.dir, name: source.name, to: None },
                Edit { dir: target.dir, name: target.name, to: Some(ino) },
            ],
            moved,
        });
        Ok(())
    }

    pub(super) fn exchange(&mut self, a: &str, b: &str) -> io::Result<()> {
        let (spot_a, ino_a) = self.existing(a)?;
        let (spot_b, ino_b) = self.existing(b)?;
        if inside(a, b) || inside(b, a) {
            return error(ErrorKind::InvalidInput);
        }
        self.commit(Change {
            edits: vec![
                Edit { dir: spot_a.dir, name: spot_a.name, to: Some(ino_b) },
                Edit { dir: spot_b.dir, name: spot_b.name, to: Some(ino_a) },
            ],
            moved: vec![ino_a, ino_b],
        });
        Ok(())
    }
}

/// True if `path` is strictly below `dir`.
fn inside(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}
