//! The first step of a cycle: scan the folder, settle the scope of sync (invariant 5), and fetch the index.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::dirty::max_wait;
use crate::local::scan::{ScanOptions, ScanStats};
use crate::local::stat_trust::unix_ns;
use crate::local::{LocalEntry, ScanScope, TouchedPaths};
use crate::path::RelPath;
use crate::remote::{IndexUpdate, Remote, RemoteError};
use crate::state::{BaseChange, BaseEntry};
use crate::sync::{Base, LocalState, SkipReason};

use super::observed::Observed;
use super::parts::CycleParts;
use super::report::{CycleError, folder_error};
use super::unconfirmed::UploadTrace;

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// Scans the folder after the checks that a scan relies on, and commits the paths that left the scope.
    pub(super) fn observe_folder(&mut self, scope: &ScanScope) -> Result<ScanStats, CycleError> {
        // After a failed scan the next one is full, so that its scope is not forgotten.
        let full = !std::mem::take(&mut self.observed.is_scanned) || self.memory.stage.is_dirty || scope.full;
        self.ports.check_root()?;
        if full && !self.memory.stage.is_empty() {
            self.memory.stage.sweep(&mut self.ports)?;
        }
        let scope = ScanScope { full, ..scope.clone() };
        let stats = self.scan(&scope)?;
        self.commit_scope()?;
        let Self { observed, memory, .. } = self;
        memory.quarantine.retry_open(|path| full || scope.paths.contains(&observed.tree.disk_name(path)));
        // Every full scan takes up the paths that the last plan left.
        memory.is_unfinished |= full && !memory.unplanned.is_empty();
        Ok(stats)
    }

    /// Scans `scope`, and the paths that an earlier scan left open. Missed, changing and touched paths go into the
    /// memory.
    pub(crate) fn scan(&mut self, scope: &ScanScope) -> Result<ScanStats, CycleError> {
        let begun = self.ports.world.elapsed();
        self.memory.unplanned.merge(self.observed.tree.take_touched());
        self.observed.is_confirming = scope.full || self.memory.missed.may_confirm(begun, self.ports.options.confirm);
        let scope = self.widen(scope);
        let changing_since = std::mem::take(&mut self.memory.changing);
        let stats = self.scan_folder(&scope, &changing_since, begun)?;
        let Self { ports, observed, memory, .. } = self;
        let knew_rules = observed.knows_rules;
        observed.is_scanned = true;
        observed.knows_rules |= scope.full;
        observed.scanned_at = ports.world.elapsed();
        let touched = observed.tree.take_touched();
        if !touched.is_empty() {
            memory.is_unfinished = true;
            self.signals.on_change.iter().for_each(|call| call());
        }
        // The next plan reports names that are left out now.
        memory.is_unfinished |= observed.tree.take_news();
        memory.unplanned.merge(touched);
        let since = |path: &RelPath| changing_since.get(path).copied().unwrap_or(begun);
        self.memory.changing = self.changing().map(|path| (path.clone(), since(path))).collect();
        self.note_missed(knew_rules);
        let Self { ports, observed, memory, .. } = self;
        let now_ns = unix_ns(ports.world.now());
        for path in memory.crash.find_emptied(&ports.container, &observed.tree, now_ns) {
            observed.read_again(&path);
        }
        memory.unplanned.merge(observed.tree.take_touched());
        Ok(stats)
    }

    /// The scope with the paths that every scan must look at: files that were being written, and missed files, unless
    /// more of these are expected.
    fn widen(&self, scope: &ScanScope) -> ScanScope {
        let mut scope = scope.clone();
        if scope.full {
            return scope;
        }
        let name = |path: &RelPath| self.observed.tree.disk_name(path);
        if self.observed.is_confirming {
            scope.paths.extend(self.memory.missed.paths().map(name));
        }
        scope.paths.extend(self.changing().map(name));
        scope
    }

    /// The files that were being written when last scanned.
    fn changing(&self) -> impl Iterator<Item = &RelPath> {
        let among: Box<dyn Iterator<Item = &RelPath>> = match &self.memory.unplanned {
            TouchedPaths::Everywhere => Box::new(self.observed.tree.found().keys()),
            TouchedPaths::Paths(paths) => Box::new(paths.iter()),
        };
        among.filter(|path| self.observed.is_changing(path))
    }

    fn scan_folder(
        &mut self,
        scope: &ScanScope,
        changing_since: &BTreeMap<RelPath, Duration>,
        begun: Duration,
    ) -> Result<ScanStats, CycleError> {
        let Self { ports, signals, memory, uploads, .. } = self;
        let Observed { tree, index, corrections, knows_rules, .. } = &mut self.observed;
        let (entries, options) = (ports.container.entries(), &ports.options);
        let limit = max_wait(options.quiet);
        // A large file that is new on both sides is read once, while it is uploaded.
        let is_read_later = |path: &RelPath, size| {
            size >= options.unread_from
                && index.as_ref().is_some_and(|index| !index.files.contains_key(path))
                && !entries.contains_key(path)
                && !uploads.contains(path)
                && !memory.read_first.contains(path)
                && !corrections.proven.contains_key(path)
        };
        let scan_options = ScanOptions {
            max_file_size: options.max_file_size,
            unread: &is_read_later,
            ignored: &|path, is_dir| (ports.ignored)(path, is_dir),
            base: &|path| entries.get(path).and_then(|entry| entry.base.content()),
            same_rules: *knows_rules,
            quiet_ns: i64::try_from(options.quiet.as_nanos()).unwrap_or(i64::MAX),
            overdue: &|path| changing_since.get(path).is_some_and(|first| begun >= *first + limit),
            threads: options.threads,
            now_ns: unix_ns(ports.world.now()),
            stop: &|| signals.is_stopping(),
        };
        ports.folder.scan(tree, scope, &scan_options).map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => CycleError::Stopped,
            _ => folder_error("scanning the folder")(e),
        })
    }

    /// Notes the tracked files that the scan missed. A path that the scan could not look at was not missed.
    fn note_missed(&mut self, knew_rules: bool) {
        let Self { ports, observed, memory, uploads, .. } = self;
        let entries = ports.container.entries();
        let is_missed = |path: &RelPath| {
            let base = entries.get(path).map(|entry| entry.base);
            (base.is_some_and(Base::is_synced) || uploads.contains(path))
                && observed.found(path).is_none()
                && if knew_rules && memory.missed.contains(path) {
                    // The rules are the same as in the scan that missed it first.
                    observed.tree.unknown_above(path).is_none()
                } else {
                    observed.unknown_absence(&ports.ignored, path).is_none()
                }
        };
        // An open path may have been unreadable. No event fires when its parent becomes readable, so check it again.
        let among: Box<dyn Iterator<Item = &RelPath>> = match &memory.unplanned {
            TouchedPaths::Everywhere => Box::new(entries.keys()),
            TouchedPaths::Paths(paths) => Box::new(paths.iter().chain(memory.missed.paths())),
        };
        let sent = uploads.paths();
        let missed = among.chain(&sent).filter(|path| is_missed(path));
        memory.missed = memory.missed.renewed(missed, observed.scanned_at);
    }

    /// Detaches the base of each path that has left the scope, and attaches it again where the file is back with the
    /// content of the base. This runs right after the scan, so that it is committed whether the proxy answers or not.
    fn commit_scope(&mut self) -> Result<(), CycleError> {
        let entries = self.ports.container.entries();
        let among: Box<dyn Iterator<Item = &RelPath>> = match &self.memory.unplanned {
            TouchedPaths::Everywhere => Box::new(entries.keys()),
            TouchedPaths::Paths(paths) => Box::new(paths.iter()),
        };
        let change = |path: &RelPath| {
            let entry = entries.get(path)?;
            let base = match entry.base {
                Base::Synced(md5) if self.has_left_scope(path) => Base::Detached(md5),
                Base::Detached(md5) if self.observed.local_content(path) == Some(md5) => Base::Synced(md5),
                _ => return None,
            };
            Some(BaseChange::Set(path.clone(), BaseEntry { base, ..entry.clone() }))
        };
        let changes: Vec<BaseChange> = among.filter_map(change).collect();
        // An unconfirmed upload stands in for a missing base. Forget it where the path has left the scope, because
        // neither a missing base nor `Seen` can be detached.
        let has_content = |path: &RelPath| entries.get(path).is_some_and(|entry| entry.base.content().is_some());
        self.uploads.retain(|path| has_content(path) || !self.has_left_scope(path));
        let container = &mut self.ports.container;
        if changes.is_empty() {
            // An earlier commit may have failed on the disk. After a restart, a file that was removed meanwhile would
            // count as deleted.
            return Ok(container.finish_commit()?);
        }
        Ok(container.commit(changes)?)
    }

    /// True if the path is out of scope for a lasting reason. An absent file counts as too large where the proxy's is.
    fn has_left_scope(&self, path: &RelPath) -> bool {
        let Self { ports, observed, memory, .. } = self;
        let why = match observed.found(path) {
            Some(LocalEntry { local: LocalState::Unknown(why), .. }) => Some(why.clone()),
            Some(_) => None,
            None => {
                let limit = ports.options.max_file_size;
                let too_large = observed.listed(path).filter(|entry| !entry.is_deleted && entry.size > limit);
                too_large.map(|entry| SkipReason::TooLarge(entry.size)).or_else(|| {
                    // The scan has already checked a missed file against the rules.
                    let is_missed = memory.missed.contains(path);
                    if is_missed { None } else { observed.unknown_absence(&ports.ignored, path) }
                })
            }
        };
        why.is_some_and(|why| why.leaves_scope())
    }

    /// Fetches the index. True when it has changed.
    pub(super) async fn fetch_index(&mut self) -> Result<bool, CycleError> {
        let Self { ports, observed, memory, .. } = self;
        let cursor = observed.index.as_ref().and_then(|index| index.cursor.clone());
        let known = ports.container.header().remote.history.clone();
        let answer = ports.remote.index(cursor.as_ref(), known.as_ref()).await?;
        let Observed { index: held, corrections, .. } = observed;
        let has_changed = match (answer, held) {
            (IndexUpdate::Unchanged, Some(_)) => false,
            (IndexUpdate::Whole(index), held) => {
                let has_changed = held.as_ref() != Some(&index);
                *held = Some(index);
                corrections.overwritten.clear();
                if has_changed {
                    memory.unplanned = TouchedPaths::Everywhere;
                }
                has_changed
            }
            (IndexUpdate::Delta(delta), Some(index)) => {
                let lost = corrections.undo_lost_writes(index, &delta);
                lost.iter().chain(delta.files.keys()).for_each(|path| memory.unplanned.add(path));
                let has_changed = !lost.is_empty() || !delta.files.is_empty();
                index.files.extend(delta.files);
                index.refused.retain(|(name, _)| !delta.refused.iter().any(|(again, _)| again == name));
                index.refused.extend(delta.refused);
                index.cursor = delta.cursor;
                (index.history, index.set_back) = (delta.history, delta.set_back);
                has_changed
            }
            (IndexUpdate::Unchanged | IndexUpdate::Delta(_), None) => {
                let why = "it gave part of an index that was never asked for".to_owned();
                return Err(CycleError::Remote(RemoteError::Protocol { url: ports.options.origin.clone(), why }));
            }
        };
        if let (true, Some(index)) = (has_changed, &observed.index) {
            observed.corrections.retain_current(index);
        }
        Ok(has_changed)
    }

    /// Forgets the unconfirmed uploads that are lost by now.
    pub(super) fn forget_lost_uploads(&mut self) {
        let Self { ports, observed, memory, uploads, .. } = self;
        if observed.index.is_none() {
            return;
        }
        let trace = |path: &RelPath| {
            if observed.found(path).is_some() || observed.unknown_absence(&ports.ignored, path).is_some() {
                UploadTrace::Here
            } else if observed.is_listed_live(path) {
                UploadTrace::Listed
            } else {
                UploadTrace::Nowhere
            }
        };
        memory.lost_uploads.forget_lost(uploads, trace, observed.has_exact_index(), ports.world.elapsed());
    }
}
