//! The gate `server_reset`: no plan is made with an index that has lost entries of the base.

use std::collections::BTreeMap;

use crate::agent::world::World;
use crate::disk::Disk;
use crate::local::TouchedPaths;
use crate::path::RelPath;
use crate::remote::{FetchedIndex, GetReply, Remote};
use crate::state::{BaseEntry, RemoteState};
use crate::sync::safety::{IndexPosition, MISSING_MIN, StorePosition, server_reset};

use super::gates::Gates;
use super::parts::CycleParts;
use super::report::CycleError;

/// Blobs that are requested before missing index entries count as a reset of the store.
const BLOB_SAMPLE: usize = 8;

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// Checks the index. `index_changed`: it is another one than in the last cycle. True if the folder has obeyed all
    /// deletions that the index names or has dropped.
    pub(super) async fn check_index(&mut self, gates: &mut Gates, index_changed: bool) -> Result<bool, CycleError> {
        let Self { ports, observed, memory, .. } = self;
        let was_reset = gates.reset.is_some();
        let Some(index) = &observed.index else {
            gates.reset = None;
            return Ok(false);
        };
        let before = ports.container.header().remote.clone();
        observed.has_expired_tombstones = index.cursor.as_ref().is_some_and(|now| {
            before.epoch.as_deref() == Some(&*now.epoch) && before.obeyed.is_some_and(|obeyed| obeyed < now.floor)
        });
        // A delta removes no entry from the index. But an index of hints may never get the entries of own writes.
        if let (true, None, TouchedPaths::Paths(paths)) = (index_changed, &index.cursor, &memory.unplanned) {
            let entries = ports.container.entries();
            let is_synced = |path: &RelPath| entries.get(path).is_some_and(|entry| entry.base.content().is_some());
            let is_missing = |path: &&RelPath| is_synced(path) && !index.files.contains_key(*path);
            observed.missing_entries += paths.iter().filter(is_missing).count();
        }
        let counts_all =
            was_reset || memory.unplanned == TouchedPaths::Everywhere || observed.missing_entries >= MISSING_MIN;
        let mut counts = EntryCounts::default();
        if counts_all {
            counts = EntryCounts::of(ports.container.entries(), index);
            observed.missing_entries = if index.cursor.is_none() { counts.missing } else { 0 };
        }
        let has_obeyed_all = counts_all && counts.missing + counts.deleted == 0;
        // Entries with expired tombstones do not count towards `server_reset`.
        let missing = if observed.has_expired_tombstones { 0 } else { counts.missing };
        let was = store_before(&before);
        let now = StorePosition {
            origin: &ports.options.origin,
            namespace: &ports.options.namespace,
            position: index.cursor.as_ref().map(|now| IndexPosition { epoch: &now.epoch, cursor: now.cursor }),
            set_back: index.set_back,
        };
        let mut halt = server_reset(counts.tracked, missing, was, now);
        let is_for_entries = now.position.is_none() && server_reset(counts.tracked, 0, was, now).is_none();
        if was.is_set_back(&now) {
            // Later writes of other devices hide this from the next check and from the next start.
            ports.container.set_remote(RemoteState { set_back: true, ..before.clone() });
            ports.container.commit(Vec::new())?;
        }
        if halt.is_some()
            && is_for_entries
            && has_unlisted_blobs(&*ports.remote, ports.container.entries(), index).await?
        {
            // The index is weak, not reset. Row 15 heals it.
            halt = None;
        }
        gates.reset.clone_from(&halt);
        halt.map_or(Ok(has_obeyed_all), |halt| Err(CycleError::Halted(halt)))
    }

    /// Notes which store, and which state of it, the base is agreed with from here on. A new store is committed before
    /// anything is agreed with it. Its position goes with the next commit.
    pub(super) fn note_position(&mut self, has_obeyed_all: bool) -> Result<(), CycleError> {
        let Self { ports, observed, .. } = self;
        let index = observed.index.as_ref();
        let position = index.and_then(|index| index.cursor.as_ref());
        let epoch = position.map(|now| now.epoch.to_string());
        let cursor = position.map(|now| now.cursor);
        let before = &ports.container.header().remote;
        // This may lag behind. A folder that has obeyed everything finds nothing missing.
        let obeyed = if has_obeyed_all { cursor } else { before.obeyed.filter(|_| before.epoch == epoch) };
        let now = RemoteState {
            origin: ports.options.origin.clone(),
            namespace: ports.options.namespace.clone(),
            epoch,
            cursor,
            obeyed,
            set_back: false,
            history: index.and_then(|index| index.history.clone()),
        };
        let is_same = before.origin == now.origin && before.namespace == now.namespace && before.epoch == now.epoch;
        ports.container.set_remote(now);
        if !is_same {
            ports.container.commit(Vec::new())?;
        }
        Ok(())
    }
}

/// How many files of the base an index names.
#[derive(Default)]
struct EntryCounts {
    tracked: usize,
    /// Not in the index, not even as a tombstone.
    missing: usize,
    deleted: usize,
}

impl EntryCounts {
    fn of(entries: &BTreeMap<RelPath, BaseEntry>, index: &FetchedIndex) -> Self {
        let mut counts = Self::default();
        let tracked = entries.iter().filter(|(_, entry)| entry.base.content().is_some());
        for (path, _) in tracked {
            counts.tracked += 1;
            match index.files.get(path) {
                None => counts.missing += 1,
                Some(entry) => counts.deleted += usize::from(entry.is_deleted),
            }
        }
        counts
    }
}

fn store_before(state: &RemoteState) -> StorePosition<'_> {
    let position = match (&state.epoch, state.cursor) {
        (Some(epoch), Some(cursor)) => Some(IndexPosition { epoch, cursor }),
        _ => None,
    };
    StorePosition { origin: &state.origin, namespace: &state.namespace, position, set_back: state.set_back }
}

/// True if the proxy has the blobs of synced files that its index does not name, by a sample of them.
async fn has_unlisted_blobs<R: Remote>(
    remote: &R,
    entries: &BTreeMap<RelPath, BaseEntry>,
    index: &FetchedIndex,
) -> Result<bool, CycleError> {
    let is_missing =
        |(path, entry): &(&RelPath, &BaseEntry)| entry.base.content().is_some() && !index.files.contains_key(*path);
    let missing: Vec<&RelPath> = entries.iter().filter(is_missing).map(|(path, _)| path).collect();
    let sample = missing.iter().step_by(missing.len().div_ceil(BLOB_SAMPLE).max(1));
    let (mut requested, mut known) = (0, 0);
    for path in sample {
        requested += 1;
        let got = remote.get(path).await?;
        known += usize::from(!matches!(got, GetReply::Absent { tombstone: None }));
    }
    Ok(2 * known > requested)
}
