//! [`LocalTree`]: the files that all scans have found so far.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Md5;
use crate::disk::FileStat;
use crate::path::{RelPath, subtree_range};
use crate::sync::{LocalState, SkipReason};

use super::touched::TouchedPaths;

/// The state of one path in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEntry {
    pub local: LocalState,
    /// The digest holds as long as the file has this stat. `None`: read the file again. For an unreadable file, the stat
    /// only identifies it.
    pub stat: Option<FileStat>,
    /// Bytes.
    pub size: u64,
}

/// One finding of a scan.
pub(super) struct ScanItem {
    pub path: RelPath,
    pub disk_name: String,
    pub found: LocalEntry,
    /// 0 if the scan did not ask for it.
    pub inode: u64,
}

/// A name on the disk that cannot be synced, and the reason.
pub(super) type ExcludedName = (Vec<u8>, SkipReason);

/// The findings of all scans so far.
#[derive(Debug, Clone, Default)]
pub struct LocalTree {
    pub(super) found: BTreeMap<RelPath, LocalEntry>,
    /// The names of files whose name on the disk differs from the path (which is NFC).
    pub(super) disk_names: BTreeMap<RelPath, String>,
    /// Names that are no valid path, or whose path belongs to another file.
    pub(super) left_out: BTreeMap<Vec<u8>, SkipReason>,
    /// The names in `left_out` whose path belongs to another file, by path.
    pub(super) twins: BTreeMap<RelPath, BTreeSet<String>>,
    /// Names of files with several hard links, by inode. A name may be gone by now.
    pub(super) hard_links: BTreeMap<u64, BTreeSet<String>>,
    /// `found` comes from the state of an earlier run, without the names on the disk.
    pub(super) is_seeded: bool,
    /// `left_out` has changed.
    pub(super) has_news: bool,
    pub(super) touched: TouchedPaths,
}

impl LocalTree {
    /// Adds a file that an earlier run knew. The scan does not read it again if it is unchanged.
    pub fn seed(&mut self, path: RelPath, md5: Md5, stat: FileStat) {
        self.is_seeded = true;
        self.found.insert(path, LocalEntry { local: LocalState::File(md5), stat: Some(stat), size: stat.size });
    }

    pub fn found(&self) -> &BTreeMap<RelPath, LocalEntry> {
        &self.found
    }

    /// Names on the disk that are excluded, because they are no valid path or another file has their path; each with the
    /// reason.
    pub fn left_out(&self) -> &BTreeMap<Vec<u8>, SkipReason> {
        &self.left_out
    }

    /// True if [`LocalTree::left_out`] has changed since the last call.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// The paths that may have changed since the last call.
    pub(crate) fn take_touched(&mut self) -> TouchedPaths {
        std::mem::take(&mut self.touched)
    }

    /// Sets the entry of a file that was just placed or removed, without another scan.
    pub fn put(&mut self, path: RelPath, found: Option<LocalEntry>) {
        self.touched.add(&path);
        match found {
            Some(found) => {
                self.found.insert(path, found);
            }
            None => {
                self.found.remove(&path);
                self.disk_names.remove(&path);
            }
        }
    }

    /// True if the known name of `path` on the disk is `name`.
    pub(super) fn is_called(&self, path: &RelPath, name: &str) -> bool {
        self.disk_names.get(path).map_or(path.as_str(), String::as_str) == name
    }

    /// The name of `path` on the disk. For a new file: its path below the existing folder, in the Unicode form of that
    /// folder.
    pub(crate) fn disk_name(&self, path: &RelPath) -> String {
        if self.disk_names.is_empty() {
            return path.as_str().to_owned();
        }
        if let Some(name) = self.disk_names.get(path) {
            return name.clone();
        }
        for dir in path.ancestors() {
            if let Some((_, name)) = subtree_range(&self.disk_names, dir).next() {
                let depth = dir.split('/').count();
                let mut parts: Vec<&str> = name.split('/').take(depth).collect();
                parts.extend(path.segments().skip(depth));
                return parts.join("/");
            }
        }
        path.as_str().to_owned()
    }

    /// Remembers files with several hard links, by inode.
    pub(super) fn note_hard_links(&mut self, names: Vec<(u64, String)>) {
        for (inode, name) in names {
            self.hard_links.entry(inode).or_default().insert(name);
        }
    }

    pub(super) fn has_hard_links(&self) -> bool {
        !self.hard_links.is_empty()
    }

    /// The known names on the disk of a file with `links` hard links.
    pub(super) fn names_of(&self, inode: u64, links: u64) -> BTreeSet<String> {
        let mut names = self.hard_links.get(&inode).cloned().unwrap_or_default();
        if (names.len() as u64) < links {
            // The file may have had a single link when it was scanned.
            let same = self.found.iter().filter(|(_, found)| found.stat.is_some_and(|stat| stat.inode == inode));
            names.extend(same.map(|(path, _)| self.disk_name(path)));
        }
        names
    }

    /// All known names on the disk with the same path as `name`. A change of one may decide about the others.
    pub(super) fn spellings(&self, name: &str) -> BTreeSet<String> {
        let mut all = BTreeSet::from([name.to_owned()]);
        if let Ok(path) = RelPath::from_disk(name) {
            all.extend([path.as_str().to_owned(), self.disk_name(&path)]);
            all.extend(self.twins.get(&path).into_iter().flatten().cloned());
        }
        all
    }

    /// The reason why the absence of `path` proves nothing: a folder above it could not be scanned.
    pub(crate) fn unknown_above(&self, path: &RelPath) -> Option<SkipReason> {
        path.ancestors().find_map(|a| match self.found.get(a) {
            // Nothing is below a file, even if its content is unknown.
            Some(LocalEntry { local: LocalState::Unknown(SkipReason::Unread) | LocalState::File(_), .. }) | None => {
                None
            }
            Some(LocalEntry { local: LocalState::Unknown(why), .. }) => Some(why.clone()),
        })
    }
}
