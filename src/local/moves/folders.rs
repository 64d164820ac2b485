//! The folders that a move needs: made above a file, cleared out of its way, removed when it leaves them empty.
//!
//! Nothing here touches a file.

use std::collections::BTreeSet;
use std::io;

use crate::disk::{Disk, FileKind};

use super::super::Folder;
use super::super::folder::HISTORY;
use super::dir_of;

impl<D: Disk> Folder<D> {
    /// Makes the folders above `at`. `Some`: a file is in the way. What a user takes away at that moment is no error:
    /// it is missed by the move that needs it.
    pub(super) fn ensure_parents(&self, at: &str, touched: &mut BTreeSet<String>) -> io::Result<Option<String>> {
        let dir = dir_of(at);
        if dir.is_empty() {
            return Ok(None);
        }
        match self.disk.mkdir(dir) {
            Ok(()) => {
                touched.insert(dir_of(dir).to_owned());
                Ok(None)
            }
            Err(e) => match e.kind() {
                io::ErrorKind::AlreadyExists => match self.disk.stat(dir) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    there => Ok((there?.kind != FileKind::Dir).then(|| dir.to_owned())),
                },
                io::ErrorKind::NotFound => {
                    let clash = self.ensure_parents(dir, touched)?;
                    if clash.is_some() {
                        return Ok(clash);
                    }
                    touched.insert(dir_of(dir).to_owned());
                    match self.ensure_dir(dir) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(Some(dir.to_owned())),
                        made => made.map(|_| None),
                    }
                }
                io::ErrorKind::NotADirectory => Ok(Some(dir.to_owned())),
                _ => Err(e),
            },
        }
    }

    /// Whether a file can be put at `at`: folders with nothing but folders in them make room, nothing else does.
    ///
    /// # Errors
    /// As `opendir(3)` and `rmdir(2)`.
    pub fn make_room(&self, at: &str) -> io::Result<bool> {
        if !matches!(self.disk.stat(at), Ok(meta) if meta.kind == FileKind::Dir) {
            return Ok(true);
        }
        // Children before their parents; a file that comes meanwhile keeps its folder, and those above it.
        let mut dirs = vec![at.to_owned()];
        let mut next = 0;
        while let Some(dir) = dirs.get(next).cloned() {
            for (name, meta) in self.disk.list(&dir)? {
                match name.to_str() {
                    Some(name) if meta.kind == FileKind::Dir => dirs.push(format!("{dir}/{name}")),
                    _ => return Ok(false),
                }
            }
            next += 1;
        }
        for dir in dirs.iter().rev() {
            match self.disk.rmdir(dir) {
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(false),
                other => other?,
            }
        }
        Ok(true)
    }

    /// Removes `dir` and the folders above it that this leaves empty. One that is not empty stays, whoever made it.
    pub(super) fn remove_empty(&self, mut dir: &str, touched: &mut BTreeSet<String>) {
        while !dir.is_empty() && dir != HISTORY && self.disk.rmdir(dir).is_ok() {
            touched.remove(dir);
            dir = dir_of(dir);
            touched.insert(dir.to_owned());
        }
    }
}
