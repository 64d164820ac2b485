//! Finds the versions in the history folder.
//!
//! A version of `notes/a.md` is `notes/a.md.<stamp>-<kind>`. If that name is too long or belongs to a folder, it is
//! `<stamp>-<kind>/notes/a.md`, below a *batch folder*. Old releases of memsync write only the second form.

use std::io;

use super::super::Folder;
use super::super::folder::HISTORY;
use super::version::{HistoryVersion, VersionStamp, parse_version_name};
use crate::disk::{Disk, FileKind, FileMeta};
use crate::path::dir_of;

/// A version on the disk.
pub(super) struct StoredVersion {
    /// The path that the file had on the disk.
    pub path: String,
    pub stamp: VersionStamp,
    /// Bytes.
    pub size: u64,
    /// Bytes allocated on the disk.
    pub allocated: u64,
    /// Path of the version below the root.
    pub file: String,
}

impl From<StoredVersion> for HistoryVersion {
    fn from(stored: StoredVersion) -> Self {
        let StoredVersion { path, stamp, size, file, .. } = stored;
        Self { path, at: stamp.at, kind: stamp.kind, size, file }
    }
}

/// A folder of the history.
pub(super) struct HistoryDir {
    /// Path below the root.
    pub path: String,
    /// Number of names in it.
    pub names: usize,
    /// Bytes allocated on the disk for the folder itself.
    pub allocated: u64,
}

/// The versions and folders found.
#[derive(Default)]
pub(super) struct HistoryListing {
    pub versions: Vec<StoredVersion>,
    pub folders: Vec<HistoryDir>,
    /// Folders that cannot be listed.
    pub unreadable: Vec<(String, io::Error)>,
}

/// A folder that is not listed yet.
struct PendingDir {
    dir: String,
    allocated: u64,
    batch: Option<BatchFolder>,
}

/// The batch folder that a file is in.
#[derive(Clone, Copy)]
struct BatchFolder {
    /// The stamp of every file below it.
    stamp: VersionStamp,
    /// Length of the batch folder's own path with its slash. The original path of a file follows it.
    path_start: usize,
}

impl<D: Disk> Folder<D> {
    /// The whole history, without names that are no versions.
    pub(super) fn walk_history(&self) -> HistoryListing {
        let allocated = self.disk.stat(HISTORY).map_or(0, |meta| meta.allocated);
        self.walk_from(PendingDir { dir: HISTORY.to_owned(), allocated, batch: None })
    }

    /// The versions of one path, and of every file below it.
    pub(super) fn walk_path(&self, path: &str) -> io::Result<Vec<StoredVersion>> {
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
            let Some(stamp) = VersionStamp::parse(&name) else { continue };
            let batch = BatchFolder { stamp, path_start: HISTORY.len() + name.len() + 2 };
            let file = format!("{HISTORY}/{name}/{path}");
            match self.disk.stat(&file) {
                Ok(meta) if meta.kind == FileKind::File => {
                    let name = file.rsplit_once('/').map_or("", |(_, name)| name);
                    found.extend(stored(dir_of(&file), name, &meta, Some(batch)));
                }
                Ok(meta) if meta.kind == FileKind::Dir => found.extend(self.walk_below(&file, Some(batch))?),
                Ok(_) => {}
                Err(e) if is_absent(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    fn walk_below(&self, dir: &str, batch: Option<BatchFolder>) -> io::Result<Vec<StoredVersion>> {
        match self.disk.stat(dir) {
            Ok(meta) if meta.kind == FileKind::Dir => {
                self.walk_from(PendingDir { dir: dir.to_owned(), allocated: 0, batch }).into_versions()
            }
            Ok(_) => Ok(Vec::new()),
            Err(e) if is_absent(&e) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    fn walk_from(&self, top: PendingDir) -> HistoryListing {
        let mut walked = HistoryListing::default();
        let mut pending = vec![top];
        while let Some(PendingDir { dir, allocated, batch }) = pending.pop() {
            let names = match self.disk.list(&dir) {
                Ok(names) => names,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    walked.unreadable.push((dir, e));
                    continue;
                }
            };
            for (name, meta) in &names {
                // Sync writes only UTF-8 names here.
                let Some(name) = name.to_str() else { continue };
                match meta.kind {
                    FileKind::Dir => {
                        let below = format!("{dir}/{name}");
                        let batch = match VersionStamp::parse(name) {
                            Some(stamp) if dir == HISTORY => Some(BatchFolder { stamp, path_start: below.len() + 1 }),
                            _ => batch,
                        };
                        pending.push(PendingDir { dir: below, allocated: meta.allocated, batch });
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

impl HistoryListing {
    /// The versions, or the first folder that cannot be listed.
    pub(super) fn into_versions(self) -> io::Result<Vec<StoredVersion>> {
        match self.unreadable.into_iter().next() {
            Some((dir, e)) => Err(io::Error::new(e.kind(), format!("{dir}: {e}"))),
            None => Ok(self.versions),
        }
    }
}

/// The stamp in the first name of a path, if that name looks like a batch folder.
pub(super) fn batch_of(path: &str) -> Option<VersionStamp> {
    path.split_once('/').and_then(|(top, _)| VersionStamp::parse(top))
}

/// The version with the file name `name` in the folder `dir` of the history. `None` if the file is no version.
fn stored(dir: &str, name: &str, meta: &FileMeta, batch: Option<BatchFolder>) -> Option<StoredVersion> {
    let file = format!("{dir}/{name}");
    let (path, stamp) = match batch {
        Some(batch) => (file.get(batch.path_start..)?.to_owned(), batch.stamp),
        None => {
            let (name, stamp) = parse_version_name(name)?;
            let above = dir.strip_prefix(HISTORY)?.trim_start_matches('/');
            (if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") }, stamp)
        }
    };
    Some(StoredVersion { path, stamp, size: meta.size, allocated: meta.allocated, file })
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
