//! The acts of a user on a [`SimDisk`], and the checks of a test.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

use bytes::Bytes;

use super::tree::{Ino, Tree};
use super::{SimDisk, is_private};
use crate::disk::{FileKind, FileMeta};

/// Operations of the user. They bypass the hook. Except for volatile writes they are durable at once, with the names of
/// all parent folders.
impl SimDisk {
    /// Runs `act` and makes its changes at `paths` durable.
    fn durably<T>(&self, paths: &[&str], act: impl FnOnce(&mut Tree) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.world();
        let done = act(&mut world.tree)?;
        for path in paths {
            world.tree.settle_path(path);
        }
        Ok(done)
    }

    /// Writes over a file in place, or creates it and the folders above it.
    pub fn user_write(&self, path: &str, bytes: impl Into<Bytes>) -> io::Result<()> {
        self.durably(&[path], |tree| {
            let ino = write(tree, path, bytes.into())?;
            tree.sync_content(ino);
            Ok(())
        })
    }

    /// As [`SimDisk::user_write`], but the write is not durable.
    pub fn user_write_volatile(&self, path: &str, bytes: impl Into<Bytes>) -> io::Result<()> {
        write(&mut self.world().tree, path, bytes.into()).map(drop)
    }

    /// Saves like an editor: writes a new file beside the old one and renames it. The inode changes.
    pub fn user_replace(&self, path: &str, bytes: impl Into<Bytes>) -> io::Result<()> {
        let free = |n: &u32| self.user_stat(&format!("{path}.tmp{n}~")).is_err();
        let temp = format!("{path}.tmp{}~", (0..).find(free).unwrap_or_default());
        self.durably(&[path, &temp], |tree| {
            if tree.find(path).is_ok_and(|there| tree.meta(there).kind == FileKind::Dir) {
                return Err(ErrorKind::IsADirectory.into());
            }
            let ino = write(tree, &temp, bytes.into())?;
            tree.sync_content(ino);
            tree.rename(&temp, path).inspect_err(|_| {
                // It was just created, so it can be removed.
                let _ = tree.unlink(&temp);
            })
        })
    }

    /// Renames a file or a folder, replacing a file at `to` and creating the folders above it.
    pub fn user_rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.durably(&[from, to], |tree| {
            tree.find(from)?;
            mkdir_above(tree, to)?;
            tree.rename(from, to)
        })
    }

    /// Removes a file, a symlink or a special file.
    pub fn user_remove(&self, path: &str) -> io::Result<()> {
        self.durably(&[path], |tree| tree.unlink(path))
    }

    /// Removes a folder and its content.
    pub fn user_remove_dir_all(&self, path: &str) -> io::Result<()> {
        fn remove(tree: &mut Tree, path: &str) -> io::Result<()> {
            let dir = tree.find(path)?;
            let names: Vec<_> = tree.list(dir)?.map(|(name, ino)| (format!("{path}/{name}"), ino)).collect();
            for (below, ino) in names {
                match tree.meta(ino).kind {
                    FileKind::Dir => remove(tree, &below)?,
                    _ => tree.unlink(&below)?,
                }
            }
            tree.rmdir(path)
        }
        self.durably(&[path], |tree| remove(tree, path))
    }

    /// Creates a folder and its parents. They may exist already.
    pub fn user_mkdir(&self, path: &str) -> io::Result<()> {
        self.durably(&[path], |tree| mkdir_all(tree, path))
    }

    /// Creates a symlink. Its target does not matter.
    pub fn plant_symlink(&self, path: &str) -> io::Result<()> {
        self.durably(&[path], |tree| {
            mkdir_above(tree, path)?;
            tree.symlink(path).map(drop)
        })
    }

    /// Creates a socket, device or FIFO. `kind` is its name for people.
    pub fn plant_other(&self, path: &str, kind: &'static str) -> io::Result<()> {
        self.durably(&[path], |tree| {
            mkdir_above(tree, path)?;
            tree.other(path, kind).map(drop)
        })
    }

    /// Removes or restores the right to read a file or to list a folder. `stat` always works.
    pub fn set_unreadable(&self, path: &str, unreadable: bool) -> io::Result<()> {
        let mut world = self.world();
        let ino = world.tree.find(path)?;
        world.tree.set_readable(ino, !unreadable);
        Ok(())
    }

    /// A program opens a file for writing, or closes it.
    pub fn keep_open(&self, path: &str, open: bool) -> io::Result<()> {
        let mut world = self.world();
        let ino = world.tree.find(path)?;
        if open {
            world.kept_open.insert(ino)
        } else {
            world.kept_open.remove(&ino)
        };
        Ok(())
    }

    /// The content of a file, also of one that is unreadable for the engine.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if it is not a regular file.
    pub fn user_read(&self, path: &str) -> io::Result<Bytes> {
        let world = self.world();
        let ino = world.tree.find(path)?;
        match world.tree.meta(ino).kind {
            FileKind::File => Ok(world.tree.content(ino)),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// The metadata of a path.
    pub fn user_stat(&self, path: &str) -> io::Result<FileMeta> {
        let world = self.world();
        world.tree.find(path).map(|ino| world.tree.meta(ino))
    }

    /// Every regular file below a folder (`""`: all) by its path from the root. Empty if the folder does not exist.
    /// Without the private folder, unless `below` is in it.
    pub fn user_tree(&self, below: &str) -> BTreeMap<String, Bytes> {
        fn collect(tree: &Tree, dir: Ino, path: &str, with_private: bool, out: &mut BTreeMap<String, Bytes>) {
            for (name, ino) in tree.entries(dir) {
                let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                match tree.meta(ino).kind {
                    FileKind::File => drop(out.insert(path, tree.content(ino))),
                    FileKind::Dir if with_private || !is_private(&path) => {
                        collect(tree, ino, &path, with_private, out);
                    }
                    _ => {}
                }
            }
        }
        let world = self.world();
        let mut out = BTreeMap::new();
        if let Ok(dir) = world.tree.find(below) {
            collect(&world.tree, dir, below, is_private(below), &mut out);
        }
        out
    }
}

fn mkdir_all(tree: &mut Tree, path: &str) -> io::Result<()> {
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let dir = &path[..end];
        match tree.find(dir) {
            Ok(ino) if tree.meta(ino).kind == FileKind::Dir => {}
            Ok(_) => return Err(ErrorKind::NotADirectory.into()),
            Err(e) if e.kind() == ErrorKind::NotFound => drop(tree.mkdir(dir)?),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn mkdir_above(tree: &mut Tree, path: &str) -> io::Result<()> {
    path.rsplit_once('/').map_or(Ok(()), |(dir, _)| mkdir_all(tree, dir))
}

fn write(tree: &mut Tree, path: &str, bytes: Bytes) -> io::Result<Ino> {
    mkdir_above(tree, path)?;
    let ino = match tree.find(path) {
        Ok(ino) if tree.meta(ino).kind == FileKind::File => ino,
        Ok(_) => return Err(ErrorKind::InvalidInput.into()),
        Err(e) if e.kind() == ErrorKind::NotFound => tree.create(path, 0o644)?,
        Err(e) => return Err(e),
    };
    tree.set_content(ino, bytes);
    Ok(ino)
}
