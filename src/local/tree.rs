//! [`Tree`]: all that the scans have found so far, and where it has changed since somebody looked.
//!
//! It touches no file: [`super::scan`] does.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Md5;
use crate::disk::Stat;
use crate::path::RelPath;
use crate::sync::{Local, Unknown};

/// What stands at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub local: Local,
    /// Where unchanged, the digest still holds; `None`: hash it again next time. Of a file that may not be read it says
    /// which one it is.
    pub stat: Option<Stat>,
    /// Bytes.
    pub size: u64,
}

/// What to look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Everything; the rest is then ignored.
    pub full: bool,
    /// Single paths, as they are called on the disk.
    pub paths: BTreeSet<String>,
    /// Whole subtrees.
    pub subtrees: BTreeSet<String>,
}

impl Scope {
    pub fn full() -> Self {
        Self { full: true, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        !self.full && self.paths.is_empty() && self.subtrees.is_empty()
    }

    pub fn merge(&mut self, other: Self) {
        self.full |= other.full;
        self.paths.extend(other.paths);
        self.subtrees.extend(other.subtrees);
    }
}

/// Everything the scans have found so far.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    found: BTreeMap<RelPath, Found>,
    /// Files whose name on the disk is not the one on the wire (NFC).
    disk_names: BTreeMap<RelPath, String>,
    touched: Touched,
}

/// Where a tree may have changed since [`Tree::take_touched`] was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    Everywhere,
    Paths(BTreeSet<RelPath>),
}

impl Default for Touched {
    fn default() -> Self {
        Self::Paths(BTreeSet::new())
    }
}

impl Touched {
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

impl Tree {
    /// Puts in what an earlier run knew, so that unchanged files are not read.
    pub fn seed(&mut self, path: RelPath, md5: Md5, stat: Stat) {
        self.found.insert(path, Found { local: Local::File(md5), stat: Some(stat), size: stat.size });
    }

    pub fn found(&self) -> &BTreeMap<RelPath, Found> {
        &self.found
    }

    /// Where the tree may have changed since this was last asked.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// What a placed or removed file is now, without another scan.
    pub fn put(&mut self, path: RelPath, found: Option<Found>) {
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

    /// The names on the disk that would be the same path: one may have come or gone beside the other.
    pub(super) fn spellings(&self, name: &str) -> BTreeSet<String> {
        let mut all = BTreeSet::from([name.to_owned()]);
        if let Ok(path) = RelPath::from_disk(name) {
            all.extend([path.as_str().to_owned(), self.disk_name(&path)]);
        }
        all
    }

    /// Why nothing is known of a path that the scan did not find: something above it could not be looked into.
    pub fn unknown_above(&self, path: &RelPath) -> Option<Unknown> {
        path.ancestors().find_map(|a| match self.found.get(a) {
            // A file of unknown content is a file: nothing is below it.
            Some(Found { local: Local::Unknown(Unknown::Unread) | Local::File(_), .. }) | None => None,
            Some(Found { local: Local::Unknown(why), .. }) => Some(why.clone()),
        })
    }
}

impl Tree {
    /// What a full scan found: the paths in `same` are as they are known, `items` are all the others. Only what differs
    /// from before counts as touched. `odd`: some items are not called by their names.
    pub(super) fn renew(&mut self, mut same: Vec<RelPath>, items: Vec<Item>, odd: bool) {
        // Each name is one file: where the counts agree, nothing has gone.
        let known = |item: &&Item| self.found.contains_key(&item.path);
        let renamed = |item: &Item| known(&item) && !self.is_called(&item.path, &item.disk_name);
        if !odd && same.len() + items.iter().filter(known).count() == self.found.len() && !items.iter().any(renamed) {
            return self.absorb(Vec::new(), items);
        }
        same.sort_unstable();
        let mut stays = same.iter().peekable();
        let leaves = |path: &&RelPath| {
            while stays.next_if(|s| *s < *path).is_some() {}
            stays.peek() != Some(path)
        };
        let gone: Vec<RelPath> = self.found.keys().filter(leaves).cloned().collect();
        self.absorb(gone, items);
    }

    /// What a narrow scan found in the place of all that is at and below the paths `tops`, as they are called on the
    /// disk. Only what differs from before counts as touched.
    pub(super) fn refresh(&mut self, tops: impl Iterator<Item = String>, items: Vec<Item>) {
        let mut gone = Vec::new();
        for top in tops {
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
        self.absorb(gone, items);
    }

    /// Puts the `items` in the place of what is known of the paths `gone`.
    fn absorb(&mut self, gone: Vec<RelPath>, items: Vec<Item>) {
        let mut before = BTreeMap::new();
        for path in gone {
            let was = self.found.remove(&path).map(|found| (found.local, self.disk_names.remove(&path)));
            before.entry(path).or_insert(was);
        }
        for item in &items {
            let was =
                || self.found.get(&item.path).map(|f| (f.local.clone(), self.disk_names.get(&item.path).cloned()));
            if !before.contains_key(&item.path) {
                before.insert(item.path.clone(), was());
            }
        }
        self.take_in(items);
        for (path, was) in before {
            let was = was.as_ref().map(|(local, name)| (local, name.as_ref()));
            let is = self.found.get(&path).map(|found| (&found.local, self.disk_names.get(&path)));
            if was != is {
                self.touched.add(&path);
            }
        }
    }

    /// `items` come in the order of their paths; two disk names of one path stand side by side.
    fn take_in(&mut self, items: Vec<Item>) {
        for item in items {
            let other = self
                .disk_names
                .get(&item.path)
                .cloned()
                .or_else(|| self.found.contains_key(&item.path).then(|| item.path.as_str().to_owned()));
            let mut found = item.found;
            if let Some(other) = other.filter(|o| *o != item.disk_name) {
                // Both are blocked: neither may stand for the other.
                found = Found { local: Local::Unknown(Unknown::Collides(other)), stat: None, size: 0 };
            } else if item.disk_name != item.path.as_str() {
                self.disk_names.insert(item.path.clone(), item.disk_name);
            }
            self.found.insert(item.path, found);
        }
    }
}

/// What a scan found at one path.
pub(super) struct Item {
    pub path: RelPath,
    pub disk_name: String,
    pub found: Found,
}
