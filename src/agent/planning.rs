//! What a cycle finds out before it acts: the scan, the index, the gate on the index, and the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound::{Excluded, Included};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::disk::Disk;
use crate::local::dirty::max_wait;
use crate::local::scan::{ScanOptions, ScanStats};
use crate::local::{ScanScope, TouchedPaths};
use crate::path::RelPath;
use crate::remote::{FetchedIndex, GetReply, IndexUpdate, Remote, RemoteError};
use crate::state::{BaseEntry, RemoteState};
use crate::sync::safety::{self, IndexPosition, StorePosition};
use crate::sync::{Base, IndexTrust, LocalState, Plan, RemoteSide, SkipReason, reconcile};

use super::World;
use super::engine::{CycleError, Engine, folder_error, unchanged};

/// After so long a request of which nobody has heard does not arrive any more.
const LOST: Duration = Duration::from_secs(300);
/// How long deletions wait for others that are still coming in.
const PATIENCE: Duration = Duration::from_secs(60);
/// Blobs that are asked for before missing index entries are taken for a reset of the store.
const BLOB_SAMPLE: usize = 8;

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    pub(super) fn scan(&mut self, scope: &ScanScope) -> Result<ScanStats, CycleError> {
        let mut scope = scope.clone();
        let begun = self.world.elapsed();
        self.open.merge(self.tree.take_touched());
        self.confirming = scope.full || self.may_confirm(begun);
        if !scope.full {
            // A file that one scan missed is looked at again, whoever woke us, but for those that more would follow
            // anyway; so is one that was being written.
            if self.confirming {
                scope.paths.extend(self.missed.keys().map(|p| self.tree.disk_name(p)));
            }
            scope.paths.extend(self.changing().map(|p| self.tree.disk_name(p)));
        }
        let ignored = self.ignored.clone();
        let since = std::mem::take(&mut self.changing);
        let patience = max_wait(self.options.quiet);
        let (stop, quit) = (self.stop.clone(), self.quit.clone());
        let (entries, index) = (self.container.entries(), self.index.as_ref());
        let (unread_from, read_first, sent) = (self.options.unread_from, &self.read_first, &self.sent);
        let proven = &self.proven;
        let unread = move |path: &RelPath, size| {
            size >= unread_from
                && index.is_some_and(|i| !i.files.contains_key(path))
                && !entries.contains_key(path)
                && !sent.any(path)
                && !read_first.contains(path)
                && !proven.contains_key(path)
        };
        let options = ScanOptions {
            max_file_size: self.options.max_file_size,
            unread: &unread,
            ignored: &move |path, is_dir| ignored(path, is_dir),
            base: &|path| entries.get(path).and_then(|e| e.base.content()),
            same_rules: self.same_rules,
            quiet_ns: i64::try_from(self.options.quiet.as_nanos()).unwrap_or(i64::MAX),
            overdue: &|path| since.get(path).is_some_and(|first| begun >= *first + patience),
            threads: self.options.threads,
            now_ns: crate::local::stat_trust::unix_ns(self.world.now()),
            stop: &move || stop.load(Ordering::Relaxed) || quit.load(Ordering::Relaxed),
        };
        let stats = self.folder.scan(&mut self.tree, &scope, &options).map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => CycleError::Stopped,
            _ => folder_error("scanning the folder")(e),
        })?;
        self.scanned = true;
        let same_rules = self.same_rules;
        self.same_rules |= scope.full;
        let now = self.world.elapsed();
        let touched = self.tree.take_touched();
        if !touched.is_empty() {
            self.unfinished = true;
            (self.on_change)();
        }
        // They are told with the next plan.
        self.unfinished |= self.tree.take_news();
        self.open.merge(touched);
        let first = |p: &RelPath| since.get(p).copied().unwrap_or(begun);
        self.changing = self.changing().map(|p| (p.clone(), first(p))).collect();
        let missing = |path: &RelPath| {
            // What could not be looked at was not missed.
            let base = self.container.entries().get(path).map(|e| e.base);
            (base.is_some_and(Base::is_synced) || self.sent.any(path))
                && !self.tree.found().contains_key(path)
                && if same_rules && self.missed.contains_key(path) {
                    // By the same rules it is no more left out than it was.
                    self.tree.unknown_above(path).is_none()
                } else {
                    self.unknown_absence(path).is_none()
                }
        };
        let missed: BTreeMap<RelPath, Duration> = {
            // What is open was unknown, perhaps, and nothing tells of it when the folder above can be read again.
            let among: Box<dyn Iterator<Item = &RelPath>> = match &self.open {
                TouchedPaths::Everywhere => Box::new(self.container.entries().keys()),
                TouchedPaths::Paths(paths) => Box::new(paths.iter().chain(self.missed.keys())),
            };
            let sent = self.sent.paths();
            let among = among.chain(&sent);
            among.filter(|p| missing(p)).map(|p| (p.clone(), self.missed.get(p).copied().unwrap_or(now))).collect()
        };
        self.missed = missed;
        self.looked = now;
        self.find_emptied();
        Ok(stats)
    }

    /// Whether a scan from now on could prove a deletion: not while files are still vanishing, as their end is waited for.
    fn may_confirm(&self, begun: Duration) -> bool {
        let newest = self.missed.values().max().copied().unwrap_or_default();
        let oldest = self.missed.values().min().copied().unwrap_or_default();
        begun >= newest + self.options.confirm || begun >= oldest + PATIENCE
    }

    /// Files that were being written to when they were last looked at.
    fn changing(&self) -> impl Iterator<Item = &RelPath> {
        let among: Box<dyn Iterator<Item = &RelPath>> = match &self.open {
            TouchedPaths::Everywhere => Box::new(self.tree.found().keys()),
            TouchedPaths::Paths(paths) => Box::new(paths.iter()),
        };
        among.filter(|p| self.is_changing(p))
    }

    /// True when the index is not what it was.
    pub(super) async fn fetch(&mut self) -> Result<bool, CycleError> {
        let news = self.fetch_index().await?;
        if let (true, Some(index)) = (news, &self.index) {
            self.proven.retain(|path, (despite, _)| despite.as_ref() == index.files.get(path));
        }
        Ok(news)
    }

    async fn fetch_index(&mut self) -> Result<bool, CycleError> {
        let mark = self.index.as_ref().and_then(|i| i.cursor.clone());
        let known = self.container.header().remote.history.clone();
        match (self.remote.index(mark.as_ref(), known.as_ref()).await?, &mut self.index) {
            (IndexUpdate::Unchanged, Some(_)) => Ok(false),
            (IndexUpdate::Whole(index), held) => {
                let news = held.as_ref() != Some(&index);
                *held = Some(index);
                self.overwritten.clear();
                if news {
                    self.open = TouchedPaths::Everywhere;
                }
                Ok(news)
            }
            (IndexUpdate::Delta(delta), Some(index)) => {
                let mut news = !delta.files.is_empty();
                // It goes on from what was fetched: an index that does not tell of a write of ours has lost it.
                for (path, before) in std::mem::take(&mut self.overwritten) {
                    if delta.files.contains_key(&path) {
                        continue;
                    }
                    news = true;
                    self.open.add(&path);
                    match before {
                        Some(before) => index.files.insert(path, before),
                        None => index.files.remove(&path),
                    };
                }
                delta.files.keys().for_each(|path| self.open.add(path));
                index.files.extend(delta.files);
                index.refused.retain(|(name, _)| !delta.refused.iter().any(|(again, _)| again == name));
                index.refused.extend(delta.refused);
                index.cursor = delta.cursor;
                (index.history, index.set_back) = (delta.history, delta.set_back);
                Ok(news)
            }
            (IndexUpdate::Unchanged | IndexUpdate::Delta(_), None) => Err(RemoteError::Protocol {
                url: self.options.origin.clone(),
                why: "it gave part of an index that was never asked for".to_owned(),
            }
            .into()),
        }
    }

    /// The gate `server_reset`; `news`: the index is not what it was. True: no deletion that the index tells of, or has
    /// forgotten, is still to be obeyed.
    pub(super) async fn check_reset(&mut self, news: bool) -> Result<bool, CycleError> {
        let Some(index) = &self.index else { return Ok(false) };
        let before = &self.container.header().remote;
        self.behind = index.cursor.as_ref().is_some_and(|mark| {
            before.epoch.as_deref() == Some(&*mark.epoch) && before.obeyed.is_some_and(|cursor| cursor < mark.floor)
        });
        let is_synced = |path: &RelPath| self.container.entries().get(path).is_some_and(|e| e.base.content().is_some());
        // A delta takes no entry out of the index. But one of hints may never get those of what was written since.
        if let (true, None, TouchedPaths::Paths(paths)) = (news, &index.cursor, &self.open) {
            let lost = |path: &&RelPath| is_synced(path) && !index.files.contains_key(*path);
            self.lost += paths.iter().filter(lost).count();
        }
        let (mut tracked, mut missing, mut deleted) = (0, 0, 0);
        let all = self.open == TouchedPaths::Everywhere || self.reset.is_some() || self.lost >= safety::MISSING_MIN;
        if all {
            for (path, entry) in self.container.entries() {
                if entry.base.content().is_some() {
                    tracked += 1;
                    let known = index.files.get(path);
                    missing += usize::from(known.is_none());
                    deleted += usize::from(known.is_some_and(|e| e.is_deleted));
                }
            }
            self.lost = if index.cursor.is_none() { missing } else { 0 };
        }
        let all_obeyed = all && missing + deleted == 0;
        // What was forgotten is no sign of a store that lost its memory.
        let missing = if self.behind { 0 } else { missing };
        let position = match (&before.epoch, before.cursor) {
            (Some(epoch), Some(cursor)) => Some(IndexPosition { epoch, cursor }),
            _ => None,
        };
        let before =
            StorePosition { origin: &before.origin, namespace: &before.namespace, position, set_back: before.set_back };
        let position = index.cursor.as_ref().map(|m| IndexPosition { epoch: &m.epoch, cursor: m.cursor });
        let (origin, namespace, set_back) = (&*self.options.origin, &*self.options.namespace, index.set_back);
        let now = StorePosition { origin, namespace, position, set_back };
        let mut halt = safety::server_reset(tracked, missing, before, now);
        let is_by_entries = position.is_none() && safety::server_reset(tracked, 0, before, now).is_none();
        if before.is_set_back(&now) {
            // The next writes of others hide it from the next look, and from the next start.
            self.container.set_remote(RemoteState { set_back: true, ..self.container.header().remote.clone() });
            self.container.commit(Vec::new())?;
        }
        if halt.is_some() && is_by_entries && self.has_unlisted_blobs().await? {
            // The index is weak. Row 15 heals it.
            halt = None;
        }
        self.reset = halt;
        match &self.reset {
            Some(halt) => Err(CycleError::Halted(halt.clone())),
            None => Ok(all_obeyed),
        }
    }

    /// An index that has a mark is evidence.
    pub(super) fn trust(&self, index: &FetchedIndex) -> IndexTrust {
        if index.cursor.is_some() { IndexTrust::Evidence } else { IndexTrust::Hints }
    }

    /// Whether the proxy has the blobs of synced files that its index does not name, by a sample of them.
    async fn has_unlisted_blobs(&self) -> Result<bool, CycleError> {
        let Some(index) = &self.index else { return Ok(false) };
        let is_missing =
            |(path, entry): &(&RelPath, &BaseEntry)| entry.base.content().is_some() && !index.files.contains_key(*path);
        let missing: Vec<&RelPath> = self.container.entries().iter().filter(is_missing).map(|(path, _)| path).collect();
        let sample = missing.iter().step_by(missing.len().div_ceil(BLOB_SAMPLE).max(1));
        let (mut asked, mut known) = (0, 0);
        for path in sample {
            asked += 1;
            let got = self.remote.get(path).await?;
            known += usize::from(!matches!(got, GetReply::Absent { tombstone: None }));
        }
        Ok(2 * known > asked)
    }

    /// What the index says of a path, or the blob said where that is newer. Tombstones below the floor are gone from it. A path that was agreed on with this
    /// very store, and that an exact index does not name any more, had one of those.
    pub(super) fn remote_side(&self, index: &FetchedIndex, path: &RelPath) -> Option<RemoteSide> {
        let listed = index.files.get(path);
        // A blob that was found live serves a deletion. Once the file is back, only the wrong entry leads to its healing.
        let is_moot =
            |proven: &RemoteSide| matches!(proven, RemoteSide::Live(_)) && self.tree.found().contains_key(path);
        if let Some((despite, proven)) = self.proven.get(path)
            && despite.as_ref() == listed
            && !is_moot(proven)
        {
            return Some(*proven);
        }
        match (listed, self.container.entries().get(path)) {
            (Some(e), _) if e.is_deleted => Some(RemoteSide::Tombstone(e.md5)),
            (Some(e), _) => Some(RemoteSide::Live(e.md5)),
            (None, Some(BaseEntry { base: Base::Synced(md5) | Base::Detached(md5), .. })) if self.behind => {
                Some(RemoteSide::Tombstone(*md5))
            }
            (None, _) => None,
        }
    }

    /// What the table takes for the base of a path. A file that is gone here, of which the proxy holds what was sent
    /// without hearing whether it arrived, had that for its base: its user had it, and has deleted it.
    pub(super) fn base_side(&self, path: &RelPath) -> Option<Base> {
        if self.crash.emptied.contains(path) {
            return None;
        }
        let base = self.container.entries().get(path).map(|e| e.base);
        if !self.sent.any(path) || self.tree.found().contains_key(path) {
            return base;
        }
        match self.index.as_ref().and_then(|i| i.files.get(path)) {
            Some(e) if !e.is_deleted && self.sent.may_hold(path, e.md5) => match base {
                Some(Base::Detached(_)) => Some(Base::Detached(e.md5)),
                _ => Some(Base::Synced(e.md5)),
            },
            _ => base,
        }
    }

    /// What was sent to a path that neither side has any more did not arrive, by the word of an exact index; where the
    /// index is hints, when the request cannot be under way any more. What is written there later is somebody's own.
    pub(super) fn forget_lost(&mut self) {
        let Some(index) = &self.index else { return };
        let now = self.world.elapsed();
        let mut unheard = BTreeMap::new();
        self.sent.retain(|path| {
            if self.tree.found().contains_key(path) || self.unknown_absence(path).is_some() {
                return true;
            }
            let live = index.files.get(path).is_some_and(|e| !e.is_deleted);
            let Some(first) = self.unheard.get(path).copied().or((!live).then_some(now)) else { return true };
            let forget = if index.cursor.is_some() { !live } else { now >= first + LOST };
            if !forget {
                unheard.insert(path.clone(), first);
            }
            !forget
        });
        self.unheard = unheard;
    }

    /// What of the open paths a plan could decide, and those whose deletion waits for a scan that may confirm it: while an
    /// `rm -r` is at work they would be planned again and again for nothing.
    pub(super) fn ripe(&self) -> (TouchedPaths, BTreeSet<RelPath>) {
        match &self.open {
            TouchedPaths::Paths(paths) if !self.confirming => {
                let (waiting, ripe) = paths.iter().cloned().partition(|p| self.missed.contains_key(p));
                (TouchedPaths::Paths(ripe), waiting)
            }
            open => (open.clone(), BTreeSet::new()),
        }
    }

    /// Reconcile, with what the folder alone cannot tell of paths it does not have. A plan for some paths has the same
    /// steps for them as a plan for all.
    pub(super) fn plan(&self, among: &TouchedPaths) -> Plan {
        let Some(index) = &self.index else { return Plan::default() };
        let entries = self.container.entries();
        let trust = self.trust(index);
        match among {
            TouchedPaths::Paths(paths) if !self.options.fold => {
                let paths = self.with_neighbours(paths);
                let local = self.local(paths.iter(), paths.iter(), paths.iter());
                let base = paths.iter().filter_map(|p| self.base_side(p).map(|base| (p, base)));
                let remote = paths.iter().filter_map(|p| self.remote_side(index, p).map(|side| (p, side)));
                reconcile(base, &local, remote, trust, false)
            }
            _ => {
                let sent = self.sent.paths();
                let local = self.local(self.tree.found().keys(), entries.keys().chain(&sent), index.files.keys());
                let base: Box<dyn Iterator<Item = (&RelPath, Base)>> =
                    if sent.is_empty() && self.crash.emptied.is_empty() {
                        Box::new(entries.iter().map(|(p, e)| (p, e.base)))
                    } else {
                        let all: BTreeSet<&RelPath> = entries.keys().chain(&sent).collect();
                        Box::new(all.into_iter().filter_map(|p| self.base_side(p).map(|base| (p, base))))
                    };
                let known: Box<dyn Iterator<Item = &RelPath>> = if self.behind || !self.proven.is_empty() {
                    let all: BTreeSet<&RelPath> =
                        index.files.keys().chain(entries.keys()).chain(self.proven.keys()).collect();
                    Box::new(all.into_iter())
                } else {
                    Box::new(index.files.keys())
                };
                let remote = known.filter_map(|p| self.remote_side(index, p).map(|side| (p, side)));
                reconcile(base, &local, remote, trust, self.options.fold)
            }
        }
    }

    /// What this folder has to send, as far as that is known before the proxy has given its index.
    pub(super) fn local_changes(&self) -> Plan {
        let entries = self.container.entries();
        let local = self.local(self.tree.found().keys(), entries.keys(), std::iter::empty());
        let base = entries.iter().map(|(path, entry)| (path, entry.base));
        let remote = entries.iter().map(|(path, entry)| (path, unchanged(entry.base)));
        reconcile(base, &local, remote, IndexTrust::Evidence, self.options.fold)
    }

    /// The paths, and those that a file or folder of theirs could clash with.
    fn with_neighbours(&self, paths: &BTreeSet<RelPath>) -> BTreeSet<RelPath> {
        let mut all = paths.clone();
        for path in paths {
            for above in path.ancestors() {
                let known = [
                    self.tree.found().get_key_value(above).map(|(p, _)| p),
                    self.container.entries().get_key_value(above).map(|(p, _)| p),
                    self.index.as_ref().and_then(|i| i.files.get_key_value(above)).map(|(p, _)| p),
                ];
                all.extend(known.into_iter().flatten().next().cloned());
            }
            let (from, to) = (format!("{path}/"), format!("{path}0"));
            let below = || (Included(from.as_str()), Excluded(to.as_str()));
            all.extend(self.tree.found().range::<str, _>(below()).next().map(|(p, _)| p.clone()));
            all.extend(self.missed.range::<str, _>(below()).map(|(p, _)| p.clone()));
        }
        all
    }

    /// The local side of the table: what the scan found, and why nothing is known of what it did not.
    fn local<'a>(
        &self,
        found: impl Iterator<Item = &'a RelPath>,
        tracked: impl Iterator<Item = &'a RelPath>,
        remote: impl Iterator<Item = &'a RelPath>,
    ) -> BTreeMap<RelPath, LocalState> {
        let now = self.world.elapsed();
        // Two scans must have missed it; and while files go on vanishing their end is waited for, so that the gate
        // judges them together.
        let newest = self.missed.values().max().copied().unwrap_or_default();
        let confirm = self.options.confirm;
        let proven = |first: &Duration| {
            self.confirming
                && self.looked >= *first + confirm
                && (self.looked >= newest + confirm || self.looked >= *first + PATIENCE)
        };
        let find = |p: &RelPath| self.tree.found().get_key_value(p).map(|(p, f)| (p.clone(), f.local.clone()));
        let mut local: BTreeMap<RelPath, LocalState> = found.filter_map(find).collect();
        for path in tracked {
            if local.contains_key(path) {
                continue;
            }
            match self.container.entries().get(path).map(|e| e.base) {
                Some(Base::Synced(_)) => {}
                Some(Base::Detached(_)) => {
                    // No deletion, so that one scan is enough.
                    if let Some(why) = self.unknown_absence(path) {
                        local.insert(path.clone(), LocalState::Unknown(why));
                    }
                    continue;
                }
                _ if self.base_side(path).is_some_and(Base::is_synced) => {}
                _ => continue,
            }
            // The scan did not find a missed file. Treat it as absent.
            let first = self.missed.get(path);
            if first.is_none()
                && let Some(why) = self.unknown_absence(path)
            {
                local.insert(path.clone(), LocalState::Unknown(why));
            } else if !first.is_some_and(proven) {
                local.insert(path.clone(), LocalState::Unknown(SkipReason::Vanished));
            }
        }
        for path in remote {
            let Some(entry) = self.index.as_ref().and_then(|i| i.files.get(path)) else { continue };
            if entry.is_deleted || local.contains_key(path) {
                continue;
            }
            if !self.missed.contains_key(path)
                && let Some(why) = self.unknown_absence(path)
            {
                local.insert(path.clone(), LocalState::Unknown(why));
            } else if entry.size > self.options.max_file_size {
                local.insert(path.clone(), LocalState::Unknown(SkipReason::TooLarge(entry.size)));
            }
        }
        for (path, _) in self.quarantine.iter() {
            let content = match local.get(path) {
                Some(LocalState::File(md5)) => Some(*md5),
                Some(LocalState::Unknown(_)) => continue,
                None => None,
            };
            if let Some(why) = self.quarantine.resting(path, content, now) {
                local.insert(path.clone(), LocalState::Unknown(SkipReason::Quarantined(why.to_owned())));
            }
        }
        for path in self.in_transit() {
            local.insert(path.clone(), LocalState::Unknown(SkipReason::InTransit));
        }
        local
    }

    /// Notes which store, and which state of it, the base is agreed with from here on. The store is written down
    /// before anything is agreed with it; how far it has come goes with the next commit. `all_obeyed`: as [`Engine::check_reset`] says.
    pub(super) fn note_position(&mut self, all_obeyed: bool) -> Result<(), CycleError> {
        let mark = self.index.as_ref().and_then(|i| i.cursor.clone());
        let epoch = mark.as_ref().map(|m| m.epoch.to_string());
        let history = self.index.as_ref().and_then(|i| i.history.clone());
        let cursor = mark.as_ref().map(|m| m.cursor);
        let before = &self.container.header().remote;
        // It may lag: who has obeyed everything finds nothing missing.
        let obeyed = match before.obeyed.filter(|_| before.epoch == epoch) {
            _ if all_obeyed => cursor,
            before => before,
        };
        let now = RemoteState {
            origin: self.options.origin.clone(),
            namespace: self.options.namespace.clone(),
            epoch,
            cursor,
            obeyed,
            set_back: false,
            history,
        };
        let same = before.origin == now.origin && before.namespace == now.namespace && before.epoch == now.epoch;
        self.container.set_remote(now);
        if !same {
            self.container.commit(Vec::new())?;
        }
        Ok(())
    }
}
