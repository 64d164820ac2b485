//! The folders that a move needs or leaves behind. This file changes no files.

use std::collections::BTreeSet;
use std::io;

use crate::disk::{Disk, FileKind};
use crate::path::dir_of;

use super::super::Folder;
use super::super::folder::HISTORY;

impl<D: Disk> Folder<D> {
    /// Creates the folders above `at` and adds each changed folder to `touched`. Returns the path of a file in the way.
    /// A folder that the user removes meanwhile is no error here: the move itself fails then.
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
                    found => Ok((found?.kind != FileKind::Dir).then(|| dir.to_owned())),
                },
                io::ErrorKind::NotFound => self.ensure_grandparents(dir, touched),
                io::ErrorKind::NotADirectory => Ok(Some(dir.to_owned())),
                _ => Err(e),
            },
        }
    }

    /// Creates the folders above `dir`, then `dir`. Returns the path of a file in the way.
    fn ensure_grandparents(&self, dir: &str, touched: &mut BTreeSet<String>) -> io::Result<Option<String>> {
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

    /// Clears `at` for a file: removes a folder there that holds nothing but folders. Returns false, and removes
    /// nothing, if any file is in it.
    ///
    /// # Errors
    /// As `opendir(3)` and `rmdir(2)`.
    pub(crate) fn make_room(&self, at: &str) -> io::Result<bool> {
        if !matches!(self.disk.stat(at), Ok(meta) if meta.kind == FileKind::Dir) {
            return Ok(true);
        }
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
        // Children come after their parents. A file that appears meanwhile keeps its folder and those above it.
        for dir in dirs.iter().rev() {
            match self.disk.rmdir(dir) {
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(false),
                other => other?,
            }
        }
        Ok(true)
    }

    /// Removes `dir` if it is empty, then the folders above it that become empty. Any other folder stays.
    pub(super) fn remove_empty(&self, mut dir: &str, touched: &mut BTreeSet<String>) {
        while !dir.is_empty() && dir != HISTORY && self.disk.rmdir(dir).is_ok() {
            touched.remove(dir);
            dir = dir_of(dir);
            touched.insert(dir.to_owned());
        }
    }
}
