//! A scan of single paths and subtrees.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::disk::{Disk, FileKind};
use crate::path::dir_of;
use crate::sync::SkipReason;

use super::super::identity::has_identity;
use super::super::tree::LocalTree;
use super::super::{Folder, ScanScope};
use super::walk::{ScanJob, ScanWalk};

impl<D: Disk> Folder<D> {
    /// Queues the jobs of a narrow scan. Returns the paths whose known entries the scan replaces, with all below them.
    pub(super) fn queue_narrow(&self, walk: &ScanWalk<'_, D>, scope: &ScanScope) -> Vec<String> {
        let spellings = |names: &BTreeSet<String>| -> BTreeSet<String> {
            names.iter().flat_map(|name| walk.known.spellings(name)).collect()
        };
        let subtrees = spellings(&scope.subtrees);
        let paths = self.with_hard_links(walk.known, spellings(&scope.paths));
        let mut gone = Vec::new();
        let mut checked = BTreeMap::new();
        let all = paths.difference(&subtrees).map(|p| (p, false)).chain(subtrees.iter().map(|p| (p, true)));
        for (path, is_subtree) in all {
            match self.excluded_above(walk, dir_of(path), &mut checked) {
                Some((dir, why)) => walk.exclude(dir, why, &mut gone),
                None => self.queue_path(walk, path, is_subtree, &mut gone),
            }
        }
        gone.extend(subtrees);
        gone
    }

    /// Adds the other hard links of each file: an event names only the link that was used.
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

    /// The topmost folder on the way to `dir`, or `dir` itself, that is excluded with everything below it. `checked`
    /// remembers the folders that were checked.
    fn excluded_above(
        &self,
        walk: &ScanWalk<'_, D>,
        dir: &str,
        checked: &mut BTreeMap<String, Option<SkipReason>>,
    ) -> Option<(String, SkipReason)> {
        if dir.is_empty() || checked.get(dir).is_some_and(Option::is_none) {
            return None;
        }
        for end in dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]) {
            let dir = &dir[..end];
            let why = checked.entry(dir.to_owned()).or_insert_with(|| self.why_excluded(walk, dir));
            if let Some(why) = why {
                return Some((dir.to_owned(), why.clone()));
            }
        }
        None
    }

    fn why_excluded(&self, walk: &ScanWalk<'_, D>, dir: &str) -> Option<SkipReason> {
        if self.disk.stat(dir).is_ok_and(|meta| walk.is_mount(&meta)) {
            return Some(SkipReason::Mounted);
        }
        self.is_other_folder(dir).then_some(SkipReason::OtherFolder)
    }

    /// True if the folder `dir` below the root is a memory folder of its own.
    pub(crate) fn is_other_folder(&self, dir: &str) -> bool {
        has_identity(&*self.disk, dir)
    }

    /// Queues one path.
    fn queue_path(&self, walk: &ScanWalk<'_, D>, name: &str, is_subtree: bool, gone: &mut Vec<String>) {
        if name.is_empty() {
            return walk.push(ScanJob::Dir(String::new()));
        }
        match self.disk.stat(name) {
            Ok(meta) if walk.is_mount(&meta) => walk.exclude(name.to_owned(), SkipReason::Mounted, gone),
            Ok(meta) if (walk.options.ignored)(name, meta.kind == FileKind::Dir) => gone.push(name.to_owned()),
            Ok(meta) if meta.kind == FileKind::Dir => {
                // The entry is of a file that was here before, or of this folder while it could not be read.
                let has_entry = walk.known.found().contains_key(name);
                if has_entry && !is_subtree {
                    gone.push(name.to_owned());
                }
                if has_entry || is_subtree {
                    walk.push(ScanJob::Dir(name.to_owned()));
                }
            }
            Ok(meta) => {
                // A folder may have been here before. Nothing is below this path now.
                gone.push(name.to_owned());
                walk.push(ScanJob::Files(vec![(name.to_owned(), meta)]));
            }
            // The path is removed, or a folder above it is no folder any more.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                gone.push(name.to_owned());
            }
            Err(e) => walk.push(ScanJob::Excluded(name.to_owned(), SkipReason::Unreadable(e.to_string()))),
        }
    }
}

impl<D: Disk> ScanWalk<'_, D> {
    /// Excludes a folder with everything below it.
    fn exclude(&self, dir: String, why: SkipReason, gone: &mut Vec<String>) {
        gone.push(dir.clone());
        self.push(ScanJob::Excluded(dir, why));
    }
}
