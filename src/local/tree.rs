//! [`LocalTree`]: all that the scans have found so far, and where it has changed since somebody looked.
//!
//! It touches no file: [`super::scan`] does.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Md5;
use crate::disk::FileStat;
use crate::path::{RelPath, ascii_name};
use crate::sync::{LocalState, SkipReason};

/// What stands at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEntry {
    pub local: LocalState,
    /// Where unchanged, the digest still holds; `None`: hash it again next time. Of a file that may not be read it says
    /// which one it is.
    pub stat: Option<FileStat>,
    /// Bytes.
    pub size: u64,
}

/// Everything the scans have found so far.
#[derive(Debug, Clone, Default)]
pub struct LocalTree {
    found: BTreeMap<RelPath, LocalEntry>,
    /// Files whose name on the disk is not the one on the wire (NFC).
    disk_names: BTreeMap<RelPath, String>,
    /// Names that are no paths, or whose path is another file's, by their bytes on the disk.
    left_out: BTreeMap<Vec<u8>, SkipReason>,
    /// Those of them that are the path of another file.
    twins: BTreeMap<RelPath, BTreeSet<String>>,
    /// Names on the disk of the files that had more than one, by inode. A name may have gone since.
    hard_links: BTreeMap<u64, BTreeSet<String>>,
    /// `found` holds what an earlier run knew, without the names on the disk.
    is_seeded: bool,
    /// `left_out` is not what it was.
    has_news: bool,
    touched: TouchedPaths,
}

/// Where a tree may have changed since [`LocalTree::take_touched`] was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TouchedPaths {
    Everywhere,
    Paths(BTreeSet<RelPath>),
}

impl Default for TouchedPaths {
    fn default() -> Self {
        Self::Paths(BTreeSet::new())
    }
}

impl TouchedPaths {
    pub fn add(&mut self, path: &RelPath) {
        if let Self::Paths(paths) = self {
            paths.insert(path.clone());
        }
    }

    /// Nowhere.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Paths(paths) if paths.is_empty())
    }

    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Paths(mine), Self::Paths(others)) => mine.extend(others),
            (_, Self::Everywhere) => *self = Self::Everywhere,
            (Self::Everywhere, Self::Paths(_)) => {}
        }
    }
}

impl LocalTree {
    /// Puts in what an earlier run knew, so that unchanged files are not read.
    pub fn seed(&mut self, path: RelPath, md5: Md5, stat: FileStat) {
        self.is_seeded = true;
        self.found.insert(path, LocalEntry { local: LocalState::File(md5), stat: Some(stat), size: stat.size });
    }

    pub fn found(&self) -> &BTreeMap<RelPath, LocalEntry> {
        &self.found
    }

    /// Names that are left out because they are no paths, or because another file has their path: by their bytes on the
    /// disk, with the reason.
    pub fn left_out(&self) -> &BTreeMap<Vec<u8>, SkipReason> {
        &self.left_out
    }

    /// Whether the names that are left out have changed since this was last asked.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Where the tree may have changed since this was last asked.
    pub fn take_touched(&mut self) -> TouchedPaths {
        std::mem::take(&mut self.touched)
    }

    /// What a placed or removed file is now, without another scan.
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

    /// Whether a known path is called `name` on the disk.
    pub(super) fn is_called(&self, path: &RelPath, name: &str) -> bool {
        self.disk_names.get(path).map_or(path.as_str(), String::as_str) == name
    }

    /// What the path is called on the disk, or would be: a new file goes into the folder that is there, whatever
    /// Unicode form its name has.
    pub fn disk_name(&self, path: &RelPath) -> String {
        if self.disk_names.is_empty() {
            return path.as_str().to_owned();
        }
        if let Some(name) = self.disk_names.get(path) {
            return name.clone();
        }
        for dir in path.ancestors() {
            let (from, to) = (format!("{dir}/"), format!("{dir}0"));
            let range = (std::ops::Bound::Included(from.as_str()), std::ops::Bound::Excluded(to.as_str()));
            if let Some((_, name)) = self.disk_names.range::<str, _>(range).next() {
                let depth = dir.split('/').count();
                let mut parts: Vec<&str> = name.split('/').take(depth).collect();
                parts.extend(path.segments().skip(depth));
                return parts.join("/");
            }
        }
        path.as_str().to_owned()
    }

    /// Notes the names of files that have more than one, by inode.
    pub(super) fn note_hard_links(&mut self, names: Vec<(u64, String)>) {
        for (inode, name) in names {
            self.hard_links.entry(inode).or_default().insert(name);
        }
    }

    pub(super) fn has_hard_links(&self) -> bool {
        !self.hard_links.is_empty()
    }

    /// The known names on the disk of a file that has `links` of them.
    pub(super) fn names_of(&self, inode: u64, links: u64) -> BTreeSet<String> {
        let mut names = self.hard_links.get(&inode).cloned().unwrap_or_default();
        if (names.len() as u64) < links {
            // A file that had one name when it was looked at.
            let same = self.found.iter().filter(|(_, found)| found.stat.is_some_and(|stat| stat.inode == inode));
            names.extend(same.map(|(path, _)| self.disk_name(path)));
        }
        names
    }

    /// The names on the disk that would be the same path: one may have come or gone beside the other.
    pub(super) fn spellings(&self, name: &str) -> BTreeSet<String> {
        let mut all = BTreeSet::from([name.to_owned()]);
        if let Ok(path) = RelPath::from_disk(name) {
            all.extend([path.as_str().to_owned(), self.disk_name(&path)]);
            all.extend(self.twins.get(&path).into_iter().flatten().cloned());
        }
        all
    }

    /// Why nothing is known of a path that the scan did not find: something above it could not be looked into.
    pub fn unknown_above(&self, path: &RelPath) -> Option<SkipReason> {
        path.ancestors().find_map(|a| match self.found.get(a) {
            // A file of unknown content is a file: nothing is below it.
            Some(LocalEntry { local: LocalState::Unknown(SkipReason::Unread) | LocalState::File(_), .. }) | None => {
                None
            }
            Some(LocalEntry { local: LocalState::Unknown(why), .. }) => Some(why.clone()),
        })
    }
}

impl LocalTree {
    /// What a full scan found: the paths in `same` are as they are known, `items` are all the others. Only what differs
    /// from before counts as touched.
    pub(super) fn renew(
        &mut self,
        same: Vec<RelPath>,
        items: Vec<Item>,
        left_out: Vec<LeftOut>,
        base: &dyn Fn(&RelPath) -> Option<Md5>,
    ) {
        let before = std::mem::take(&mut self.left_out);
        self.twins.clear();
        self.hard_links.clear();
        self.left_out.extend(left_out);
        self.renew_found(same, items, base);
        self.is_seeded = false;
        self.has_news |= self.left_out != before;
    }

    fn renew_found(&mut self, mut same: Vec<RelPath>, items: Vec<Item>, base: &dyn Fn(&RelPath) -> Option<Md5>) {
        // Each name is one file: where the counts agree, nothing has gone.
        let known = |item: &&Item| self.found.contains_key(&item.path);
        let renamed = |item: &Item| known(&item) && !self.is_called(&item.path, &item.disk_name);
        if same.len() + items.iter().filter(known).count() == self.found.len() && !items.iter().any(renamed) {
            return self.absorb(Vec::new(), items, base);
        }
        same.sort_unstable();
        let mut stays = same.iter().peekable();
        let leaves = |path: &&RelPath| {
            while stays.next_if(|s| *s < *path).is_some() {}
            stays.peek() != Some(path)
        };
        let gone: Vec<RelPath> = self.found.keys().filter(leaves).cloned().collect();
        self.absorb(gone, items, base);
    }

    /// What a narrow scan found in the place of all that is at and below the paths `tops`, as they are called on the
    /// disk. Only what differs from before counts as touched.
    pub(super) fn refresh(
        &mut self,
        tops: Vec<String>,
        items: Vec<Item>,
        left_out: Vec<LeftOut>,
        base: &dyn Fn(&RelPath) -> Option<Md5>,
    ) {
        let before = self.left_out.clone();
        let mut gone = Vec::new();
        for top in tops {
            self.forget_left_out(&top);
            let Ok(top) = RelPath::from_disk(&top) else {
                if top.is_empty() {
                    gone = self.found.keys().cloned().collect();
                    break;
                }
                continue;
            };
            let (from, to) = (format!("{top}/"), format!("{top}0"));
            let range = (std::ops::Bound::Included(from.as_str()), std::ops::Bound::Excluded(to.as_str()));
            gone.extend(self.found.range::<str, _>(range).map(|(p, _)| p.clone()));
            gone.push(top);
        }
        self.left_out.extend(left_out);
        self.absorb(gone, items, base);
        self.has_news |= self.left_out != before;
    }

    /// Puts the `items` in the place of what is known of the paths `gone`.
    fn absorb(&mut self, gone: Vec<RelPath>, items: Vec<Item>, base: &dyn Fn(&RelPath) -> Option<Md5>) {
        let mut before = BTreeMap::new();
        for path in gone {
            let was = self.found.remove(&path).map(|found| (found, self.disk_names.remove(&path)));
            before.entry(path).or_insert(was);
        }
        for item in &items {
            let was = || self.found.get(&item.path).map(|f| (f.clone(), self.disk_names.get(&item.path).cloned()));
            if !before.contains_key(&item.path) {
                before.insert(item.path.clone(), was());
            }
        }
        self.take_in(items, &before, base);
        for (path, was) in before {
            let was = was.as_ref().map(|(found, name)| (&found.local, name.as_ref()));
            let is = self.found.get(&path).map(|found| (&found.local, self.disk_names.get(&path)));
            if was != is {
                self.touched.add(&path);
            }
        }
    }

    /// `items` come in the order of their paths; those of one path stand side by side. `before`: what was known of each
    /// path, and its name on the disk where that is not the path.
    fn take_in(
        &mut self,
        items: Vec<Item>,
        before: &BTreeMap<RelPath, Option<(LocalEntry, Option<String>)>>,
        base: &dyn Fn(&RelPath) -> Option<Md5>,
    ) {
        let mut items = items.into_iter().peekable();
        while let Some(first) = items.next() {
            let mut twins = vec![first];
            while let Some(twin) = items.next_if(|next| next.path == twins[0].path) {
                twins.push(twin);
            }
            let path = twins[0].path.clone();
            let is_known = self.found.contains_key(&path);
            let winner = if is_known {
                // Where none of them is the known name, that stands as it is.
                twins.iter().position(|item| self.is_called(&item.path, &item.disk_name))
            } else if twins.len() == 1 {
                Some(0)
            } else {
                let before = before.get(&path).and_then(Option::as_ref);
                tracked_twin(&twins, before, self.is_seeded, base(&path))
            };
            if let Some(winner) = winner {
                let Item { path, disk_name, found, .. } = twins.swap_remove(winner);
                if disk_name != path.as_str() {
                    self.disk_names.insert(path.clone(), disk_name);
                }
                self.found.insert(path, found);
            } else if !is_known {
                let why = SkipReason::Collides(ascii_name(&twins[0].disk_name));
                self.found.insert(path, LocalEntry { local: LocalState::Unknown(why), stat: None, size: 0 });
            }
            for Item { path, disk_name, found, .. } in twins {
                let why = match found.local {
                    LocalState::Unknown(why) if why.leaves_scope() => why,
                    _ => SkipReason::Collides(ascii_name(&self.disk_name(&path))),
                };
                self.twins.entry(path).or_default().insert(disk_name.clone());
                self.left_out.insert(disk_name.into_bytes(), why);
            }
        }
    }

    /// Forgets the names that are left out at and below `top`.
    fn forget_left_out(&mut self, top: &str) {
        let is_at_or_below = |name: &[u8]| {
            name.strip_prefix(top.as_bytes()).is_some_and(|rest| top.is_empty() || matches!(rest, [] | [b'/', ..]))
        };
        self.left_out.retain(|name, _| !is_at_or_below(name));
        self.twins.retain(|_, names| {
            names.retain(|name| !is_at_or_below(name.as_bytes()));
            !names.is_empty()
        });
    }
}

/// Which of several names of one path stands for it: the file that did so before, by its inode, by its name, or by its
/// content, which is that of base. The others are newer. Where the path has no base, the name that is the path itself.
/// `None`: it cannot be told.
fn tracked_twin(
    twins: &[Item],
    before: Option<&(LocalEntry, Option<String>)>,
    is_seeded: bool,
    base: Option<Md5>,
) -> Option<usize> {
    let inode = before.and_then(|(found, _)| found.stat).map(|stat| stat.inode);
    let called = before.filter(|_| !is_seeded).map(|(_, name)| name.as_deref());
    let is_same = |item: &Item| inode == Some(item.inode);
    let is_called = |item: &Item| called.is_some_and(|name| name.unwrap_or(item.path.as_str()) == item.disk_name);
    let is_base = |item: &Item| base.is_some_and(|md5| item.found.local == LocalState::File(md5));
    let is_path = |item: &Item| base.is_none() && item.disk_name == item.path.as_str();
    let new = || if base.is_none() { Some(0) } else { None };
    let position = |test: &dyn Fn(&Item) -> bool| twins.iter().position(test);
    let known = position(&is_same).or_else(|| position(&is_called)).or_else(|| position(&is_base));
    known.or_else(|| position(&is_path)).or_else(new)
}

/// What a scan found at one path.
pub(super) struct Item {
    pub path: RelPath,
    pub disk_name: String,
    pub found: LocalEntry,
    /// 0 where it was not asked for.
    pub inode: u64,
}

/// A name that cannot be synced, by its bytes, and why.
pub(super) type LeftOut = (Vec<u8>, SkipReason);
