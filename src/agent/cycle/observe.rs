//! The first step of a cycle: scan the folder, and fetch the index.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::dirty::max_wait;
use crate::local::scan::{ScanOptions, ScanStats};
use crate::local::stat_trust::unix_ns;
use crate::local::{ScanScope, TouchedPaths};
use crate::path::RelPath;
use crate::remote::{IndexUpdate, Remote, RemoteError};
use crate::sync::Base;

use super::error::{CycleError, folder_error};
use super::memory::CycleMemory;
use super::observed::{Observed, unknown_absence};
use super::ports::Ports;
use super::unconfirmed::UnconfirmedUploads;

/// Scans `scope`, and the paths that an earlier scan left open. Missed, changing and touched paths go into the memory.
pub(in crate::agent) fn scan<D: Disk, R: Remote, W: World>(
    ports: &Ports<D, R, W>,
    observed: &mut Observed,
    memory: &mut CycleMemory,
    uploads: &UnconfirmedUploads,
    scope: &ScanScope,
) -> Result<ScanStats, CycleError> {
    let begun = ports.world.elapsed();
    memory.unplanned.merge(observed.tree.take_touched());
    observed.is_confirming = scope.full || memory.missed.may_confirm(begun, ports.options.confirm);
    let scope = widen(scope, observed, memory);
    let changing_since = std::mem::take(&mut memory.changing);
    let scanner = FolderScanner { ports, memory, uploads, changing_since: &changing_since, begun };
    let stats = scanner.scan(observed, &scope)?;
    let knew_rules = observed.knows_rules;
    observed.is_scanned = true;
    observed.knows_rules |= scope.full;
    observed.scanned_at = ports.world.elapsed();
    let touched = observed.tree.take_touched();
    if !touched.is_empty() {
        memory.is_unfinished = true;
        (ports.on_change)();
    }
    // The next plan reports names that are left out now.
    memory.is_unfinished |= observed.tree.take_news();
    memory.unplanned.merge(touched);
    let since = |path: &RelPath| changing_since.get(path).copied().unwrap_or(begun);
    memory.changing = changing(observed, memory).map(|path| (path.clone(), since(path))).collect();
    note_missed(ports, observed, memory, uploads, knew_rules);
    let now_ns = unix_ns(ports.world.now());
    for path in memory.crash.find_emptied(&ports.container, &observed.tree, now_ns) {
        observed.read_again(&path);
    }
    memory.unplanned.merge(observed.tree.take_touched());
    Ok(stats)
}

/// The scope with the paths that every scan must look at: files that were being written, and missed files, unless more
/// of these are expected.
fn widen(scope: &ScanScope, observed: &Observed, memory: &CycleMemory) -> ScanScope {
    let mut scope = scope.clone();
    if scope.full {
        return scope;
    }
    if observed.is_confirming {
        scope.paths.extend(memory.missed.paths().map(|path| observed.tree.disk_name(path)));
    }
    scope.paths.extend(changing(observed, memory).map(|path| observed.tree.disk_name(path)));
    scope
}

/// The files that were being written when last scanned.
fn changing<'a>(observed: &'a Observed, memory: &'a CycleMemory) -> impl Iterator<Item = &'a RelPath> {
    let among: Box<dyn Iterator<Item = &RelPath>> = match &memory.unplanned {
        TouchedPaths::Everywhere => Box::new(observed.tree.found().keys()),
        TouchedPaths::Paths(paths) => Box::new(paths.iter()),
    };
    among.filter(|path| observed.is_changing(path))
}

/// A scan, with the facts that its options ask for.
struct FolderScanner<'a, D: Disk, R: Remote, W: World> {
    ports: &'a Ports<D, R, W>,
    memory: &'a CycleMemory,
    uploads: &'a UnconfirmedUploads,
    changing_since: &'a BTreeMap<RelPath, Duration>,
    begun: Duration,
}

impl<D: Disk, R: Remote, W: World> FolderScanner<'_, D, R, W> {
    fn scan(&self, observed: &mut Observed, scope: &ScanScope) -> Result<ScanStats, CycleError> {
        let Self { ports, memory, uploads, changing_since, begun } = self;
        let Ports { container, options, stop, quit, ignored, .. } = ports;
        let entries = container.entries();
        let limit = max_wait(options.quiet);
        let Observed { tree, index, corrections, knows_rules, .. } = observed;
        // A large file that is new on both sides is read once, while it is uploaded.
        let is_read_later = |path: &RelPath, size| {
            size >= options.unread_from
                && index.as_ref().is_some_and(|index| !index.files.contains_key(path))
                && !entries.contains_key(path)
                && !uploads.contains(path)
                && !memory.read_first.contains(path)
                && !corrections.is_proven(path)
        };
        let scan_options = ScanOptions {
            max_file_size: options.max_file_size,
            unread: &is_read_later,
            ignored: &|path, is_dir| ignored(path, is_dir),
            base: &|path| entries.get(path).and_then(|entry| entry.base.content()),
            same_rules: *knows_rules,
            quiet_ns: i64::try_from(options.quiet.as_nanos()).unwrap_or(i64::MAX),
            overdue: &|path| changing_since.get(path).is_some_and(|first| *begun >= *first + limit),
            threads: options.threads,
            now_ns: unix_ns(ports.world.now()),
            stop: &|| stop.load(Ordering::Relaxed) || quit.load(Ordering::Relaxed),
        };
        ports.folder.scan(tree, scope, &scan_options).map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => CycleError::Stopped,
            _ => folder_error("scanning the folder")(e),
        })
    }
}

/// Notes the tracked files that the scan missed. A path that the scan could not look at was not missed.
fn note_missed<D: Disk, R: Remote, W: World>(
    ports: &Ports<D, R, W>,
    observed: &Observed,
    memory: &mut CycleMemory,
    uploads: &UnconfirmedUploads,
    knew_rules: bool,
) {
    let entries = ports.container.entries();
    let is_missed = |path: &RelPath| {
        let base = entries.get(path).map(|entry| entry.base);
        (base.is_some_and(Base::is_synced) || uploads.contains(path))
            && observed.found(path).is_none()
            && if knew_rules && memory.missed.contains(path) {
                // The rules are the same as in the scan that missed it first.
                observed.tree.unknown_above(path).is_none()
            } else {
                unknown_absence(&observed.tree, &ports.ignored, path).is_none()
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

/// Fetches the index. True when it has changed.
pub(super) async fn fetch_index<D: Disk, R: Remote, W: World>(
    ports: &Ports<D, R, W>,
    observed: &mut Observed,
    memory: &mut CycleMemory,
) -> Result<bool, CycleError> {
    let cursor = observed.index.as_ref().and_then(|index| index.cursor.clone());
    let known = ports.container.header().remote.history.clone();
    let answer = ports.remote.index(cursor.as_ref(), known.as_ref()).await?;
    let Observed { index: held, corrections, .. } = observed;
    let has_changed = match (answer, held) {
        (IndexUpdate::Unchanged, Some(_)) => false,
        (IndexUpdate::Whole(index), held) => {
            let has_changed = held.as_ref() != Some(&index);
            *held = Some(index);
            corrections.forget_own_writes();
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
            return Err(CycleError::Remote(RemoteError::Protocol {
                url: ports.options.origin.clone(),
                why: "it gave part of an index that was never asked for".to_owned(),
            }));
        }
    };
    if let (true, Some(index)) = (has_changed, &observed.index) {
        observed.corrections.retain_current(index);
    }
    Ok(has_changed)
}
