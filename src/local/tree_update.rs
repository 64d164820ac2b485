//! Brings the findings of a scan into the [`LocalTree`]. Only a difference counts as touched.

use std::collections::BTreeMap;

use crate::digest::Md5;
use crate::path::{RelPath, ascii_name, subtree_range};
use crate::sync::{LocalState, SkipReason};

use super::tree::{ExcludedName, LocalEntry, LocalTree, ScanItem};

/// The entries before a scan, each with its name on the disk if that differs from the path. `None`: there was none.
type EntriesBefore = BTreeMap<RelPath, Option<(LocalEntry, Option<String>)>>;

/// The content that both sides agreed on for a path.
type BaseOf<'a> = &'a dyn Fn(&RelPath) -> Option<Md5>;

impl LocalTree {
    /// Takes in a full scan. The paths in `same` are unchanged, and `items` are all others.
    pub(super) fn renew(
        &mut self,
        same: Vec<RelPath>,
        items: Vec<ScanItem>,
        left_out: Vec<ExcludedName>,
        base: BaseOf<'_>,
    ) {
        let before = std::mem::take(&mut self.left_out);
        self.twins.clear();
        self.hard_links.clear();
        self.left_out.extend(left_out);
        self.renew_found(same, items, base);
        self.is_seeded = false;
        self.has_news |= self.left_out != before;
    }

    fn renew_found(&mut self, mut same: Vec<RelPath>, items: Vec<ScanItem>, base: BaseOf<'_>) {
        // Each name is one file. So if the counts agree and no name has changed, no path is gone.
        let is_known = |item: &&ScanItem| self.found.contains_key(&item.path);
        let is_renamed = |item: &ScanItem| is_known(&item) && !self.is_called(&item.path, &item.disk_name);
        if same.len() + items.iter().filter(is_known).count() == self.found.len() && !items.iter().any(is_renamed) {
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

    /// Takes in a narrow scan. The findings replace every entry at and below the paths `tops` (names on the disk).
    pub(super) fn refresh(
        &mut self,
        tops: Vec<String>,
        items: Vec<ScanItem>,
        left_out: Vec<ExcludedName>,
        base: BaseOf<'_>,
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
            gone.extend(subtree_range(&self.found, top.as_str()).map(|(p, _)| p.clone()));
            gone.push(top);
        }
        self.left_out.extend(left_out);
        self.absorb(gone, items, base);
        self.has_news |= self.left_out != before;
    }

    /// Replaces the entries of the paths `gone` with `items`.
    fn absorb(&mut self, gone: Vec<RelPath>, items: Vec<ScanItem>, base: BaseOf<'_>) {
        let mut before = EntriesBefore::new();
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
        self.add_items(items, &before, base);
        for (path, was) in before {
            let was = was.as_ref().map(|(found, name)| (&found.local, name.as_ref()));
            let is = self.found.get(&path).map(|found| (&found.local, self.disk_names.get(&path)));
            if was != is {
                self.touched.add(&path);
            }
        }
    }

    /// Adds `items`, which are sorted by path.
    fn add_items(&mut self, items: Vec<ScanItem>, before: &EntriesBefore, base: BaseOf<'_>) {
        let mut items = items.into_iter().peekable();
        while let Some(first) = items.next() {
            let mut twins = vec![first];
            while let Some(twin) = items.next_if(|next| next.path == twins[0].path) {
                twins.push(twin);
            }
            self.add_twins(twins, before, base);
        }
    }

    /// Adds all names of one path. At most one of them is synced; the others are left out.
    fn add_twins(&mut self, mut twins: Vec<ScanItem>, before: &EntriesBefore, base: BaseOf<'_>) {
        let path = twins[0].path.clone();
        let is_known = self.found.contains_key(&path);
        let tracked = if is_known {
            // If the known name is not among them, its entry stays.
            twins.iter().position(|item| self.is_called(&item.path, &item.disk_name))
        } else if twins.len() == 1 {
            Some(0)
        } else {
            let before = before.get(&path).and_then(Option::as_ref);
            tracked_twin(&twins, before, self.is_seeded, base(&path))
        };
        let mut reason = None;
        if let Some(tracked) = tracked {
            let ScanItem { path, disk_name, found, .. } = twins.swap_remove(tracked);
            if disk_name != path.as_str() {
                self.disk_names.insert(path.clone(), disk_name);
            }
            self.found.insert(path, found);
        } else if !is_known {
            let names: Vec<String> = twins.iter().map(|twin| ascii_name(&twin.disk_name)).collect();
            let why = SkipReason::Ambiguous(names.join(", "));
            self.found
                .insert(path.clone(), LocalEntry { local: LocalState::Unknown(why.clone()), stat: None, size: 0 });
            reason = Some(why);
        }
        for ScanItem { path, disk_name, found, .. } in twins {
            let why = match found.local {
                LocalState::Unknown(why) if why.leaves_scope() => why,
                _ => reason.clone().unwrap_or_else(|| SkipReason::Collides(ascii_name(&self.disk_name(&path)))),
            };
            self.twins.entry(path).or_default().insert(disk_name.clone());
            self.left_out.insert(disk_name.into_bytes(), why);
        }
    }

    /// Drops the names at and below `top` from `left_out`.
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

/// Chooses the synced file among several names of one path. It is the file that was synced before, known by its inode, its name, or
/// the content of its base. A path without a base takes the name that equals the path. `None`: it is not known which file
/// was synced.
fn tracked_twin(
    twins: &[ScanItem],
    before: Option<&(LocalEntry, Option<String>)>,
    is_seeded: bool,
    base: Option<Md5>,
) -> Option<usize> {
    let inode = before.and_then(|(found, _)| found.stat).map(|stat| stat.inode);
    let name = before.filter(|_| !is_seeded).map(|(_, name)| name.as_deref());
    let has_inode = |item: &ScanItem| inode == Some(item.inode);
    let has_name = |item: &ScanItem| name.is_some_and(|name| name.unwrap_or(item.path.as_str()) == item.disk_name);
    let has_base = |item: &ScanItem| base.is_some_and(|md5| item.found.local == LocalState::File(md5));
    let is_path = |item: &ScanItem| base.is_none() && item.disk_name == item.path.as_str();
    let position = |test: &dyn Fn(&ScanItem) -> bool| twins.iter().position(test);
    let known = position(&has_inode).or_else(|| position(&has_name)).or_else(|| position(&has_base));
    known.or_else(|| position(&is_path)).or_else(|| base.is_none().then_some(0))
}
