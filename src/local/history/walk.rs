//! Finding the versions in the history folder.
//!
//! A version of `notes/a.md` is `notes/a.md.<stamp>-<kind>`. Where that name would be too long, or a folder has it, it
//! is `<stamp>-<kind>/notes/a.md`. Older versions of memsync write that form alone.

use std::io;

use super::super::Folder;
use super::super::folder::HISTORY;
use super::super::moves::dir_of;
use super::HistoryVersion;
use super::names::{Mark, parse_version_name};
use crate::disk::{Disk, FileKind, FileMeta};

/// A version as it stands on the disk.
pub(super) struct Stored {
    /// The path as it was called on the disk.
    pub path: String,
    pub mark: Mark,
    /// Bytes.
    pub size: u64,
    /// Bytes that it takes on the disk.
    pub allocated: u64,
    /// Where it is, below the root.
    pub file: String,
}

impl From<Stored> for HistoryVersion {
    fn from(stored: Stored) -> Self {
        let Stored { path, mark, size, file, .. } = stored;
        Self { path, at: mark.at, kind: mark.kind, size, file }
    }
}

/// A folder of the history.
pub(super) struct HistoryDir {
    /// Below the root.
    pub path: String,
    /// Names in it.
    pub names: usize,
    /// Bytes that the folder itself takes on the disk.
    pub allocated: u64,
}

/// All that was found.
#[derive(Default)]
pub(super) struct Walked {
    pub versions: Vec<Stored>,
    pub folders: Vec<HistoryDir>,
    /// Folders that cannot be listed.
    pub unreadable: Vec<(String, io::Error)>,
}

/// A folder still to be listed.
struct Pending {
    dir: String,
    allocated: u64,
    /// The mark of all files below it, and the folder that their paths begin in.
    batch: Option<(Mark, usize)>,
}

impl<D: Disk> Folder<D> {
    /// The whole history. Names that are no versions are left out.
    pub(super) fn walk_history(&self) -> Walked {
        let allocated = self.disk.stat(HISTORY).map_or(0, |meta| meta.allocated);
        self.walk_from(Pending { dir: HISTORY.to_owned(), allocated, batch: None })
    }

    /// The versions of one path, and of all files below it.
    pub(super) fn walk_path(&self, path: &str) -> io::Result<Vec<Stored>> {
        let mut found = Vec::new();
        if batch_of(path).is_none() {
            let dir = format!("{HISTORY}/{path}");
            for (name, meta) in self.list_if_there(dir_of(&dir))? {
                if meta.kind == FileKind::File {
                    found.extend(stored(dir_of(&dir), &name, &meta, None).filter(|stored| stored.path == path));
                }
            }
            found.extend(self.walk_below(&dir, None)?);
        }
        for (name, _) in self.list_if_there(HISTORY)? {
            let Some(mark) = Mark::parse(&name) else { continue };
            let (top, start) = (format!("{HISTORY}/{name}"), HISTORY.len() + name.len() + 2);
            let file = format!("{top}/{path}");
            match self.disk.stat(&file) {
                Ok(meta) if meta.kind == FileKind::File => {
                    let name = file.rsplit_once('/').map_or("", |(_, name)| name);
                    found.extend(stored(dir_of(&file), name, &meta, Some((mark, start))));
                }
                Ok(meta) if meta.kind == FileKind::Dir => found.extend(self.walk_below(&file, Some((mark, start)))?),
                Ok(_) => {}
                Err(e) if is_absent(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    fn walk_below(&self, dir: &str, batch: Option<(Mark, usize)>) -> io::Result<Vec<Stored>> {
        if !matches!(self.disk.stat(dir), Ok(meta) if meta.kind == FileKind::Dir) {
            return Ok(Vec::new());
        }
        self.walk_from(Pending { dir: dir.to_owned(), allocated: 0, batch }).into_versions()
    }

    fn walk_from(&self, top: Pending) -> Walked {
        let mut walked = Walked::default();
        let mut pending = vec![top];
        while let Some(Pending { dir, allocated, batch }) = pending.pop() {
            let names = match self.disk.list(&dir) {
                Ok(names) => names,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    walked.unreadable.push((dir, e));
                    continue;
                }
            };
            for (name, meta) in &names {
                // What is not UTF-8 was not put here by sync.
                let Some(name) = name.to_str() else { continue };
                match meta.kind {
                    FileKind::Dir => {
                        let below = format!("{dir}/{name}");
                        let batch = match Mark::parse(name) {
                            Some(mark) if dir == HISTORY => Some((mark, below.len() + 1)),
                            _ => batch,
                        };
                        pending.push(Pending { dir: below, allocated: meta.allocated, batch });
                    }
                    FileKind::File => walked.versions.extend(stored(&dir, name, meta, batch)),
                    FileKind::Symlink | FileKind::Other(_) => {}
                }
            }
            walked.folders.push(HistoryDir { path: dir, names: names.len(), allocated });
        }
        walked
    }

    fn list_if_there(&self, dir: &str) -> io::Result<Vec<(String, FileMeta)>> {
        match self.disk.list(dir) {
            Ok(names) => {
                Ok(names.into_iter().filter_map(|(name, meta)| Some((name.into_string().ok()?, meta))).collect())
            }
            Err(e) if is_absent(&e) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }
}

impl Walked {
    /// # Errors
    /// When a folder cannot be listed.
    pub(super) fn into_versions(self) -> io::Result<Vec<Stored>> {
        match self.unreadable.into_iter().next() {
            Some((dir, e)) => Err(io::Error::new(e.kind(), format!("{dir}: {e}"))),
            None => Ok(self.versions),
        }
    }
}

/// The mark of the batch folder that the path would begin in.
pub(super) fn batch_of(path: &str) -> Option<Mark> {
    path.split_once('/').and_then(|(top, _)| Mark::parse(top))
}

/// The file `name` in the folder `dir` of the history, where it is a version.
fn stored(dir: &str, name: &str, meta: &FileMeta, batch: Option<(Mark, usize)>) -> Option<Stored> {
    let file = format!("{dir}/{name}");
    let (path, mark) = match batch {
        Some((mark, start)) => (file.get(start..)?.to_owned(), mark),
        None => {
            let (name, mark) = parse_version_name(name)?;
            let above = dir.strip_prefix(HISTORY)?.trim_start_matches('/');
            (if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") }, mark)
        }
    };
    Some(Stored { path, mark, size: meta.size, allocated: meta.allocated, file })
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
