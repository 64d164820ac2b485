//! The task that writes one index. It collects the changes of a moment, so that many blob writes cost few index writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::super::{IndexEntry, StoreError};
use super::blobs::race_pause;
use super::bucket::ConditionalPut;
use super::index_cache::BucketIndex;
use super::index_object::{EntryChanges, IndexObject};
use crate::failpoint;
use crate::path::RelPath;

/// Jobs that may wait. Further callers wait for room in the queue.
pub(super) const QUEUE_SIZE: usize = 4096;
/// Attempts of an index write that loses races.
pub(super) const MAX_RACES: u32 = 200;
/// Attempts of an index write that gets no answer.
const MAX_FAILURES: u32 = 5;
/// Changes in one write of the index.
const GROUP_SIZE: usize = 4096;
/// A group waits this long for more: a client that just got an answer starts its next write at once.
const PAUSE: Duration = Duration::from_millis(3);
/// While blobs are in flight, a group waits this long for the next change ...
const GAP: Duration = Duration::from_millis(100);
/// ... and this long in total.
const MAX_WAIT: Duration = Duration::from_millis(250);
/// Blobs that one group looks up. The group's writers wait for it.
const LOOKUPS: usize = 64;
/// Concurrent lookups.
const CONCURRENCY: usize = 16;
/// Changes that failed are written again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A request to the writer.
pub(super) enum IndexRequest {
    /// The blob has this state now.
    Record(IndexEntry),
    /// Blob and index differ: look the blob up and record its state.
    Lookup,
}

pub(super) struct IndexJob {
    pub(super) path: RelPath,
    pub(super) request: IndexRequest,
    pub(super) reply: Option<oneshot::Sender<Result<(), StoreError>>>,
}

/// Changes that are not in the index yet.
#[derive(Default)]
struct PendingChanges {
    unwritten: BTreeMap<RelPath, IndexEntry>,
    lookups: BTreeSet<RelPath>,
}

impl PendingChanges {
    /// Waits for jobs, or until pending changes are due. False: every sender is gone.
    async fn receive(&self, jobs: &mut mpsc::Receiver<IndexJob>, group: &mut Vec<IndexJob>) -> bool {
        if !self.lookups.is_empty() {
            while group.len() < GROUP_SIZE
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            return true;
        }
        if self.unwritten.is_empty() {
            return jobs.recv_many(group, GROUP_SIZE).await > 0;
        }
        !matches!(timeout(RETRY_AFTER, jobs.recv_many(group, GROUP_SIZE)).await, Ok(0))
    }

    fn add(&mut self, path: RelPath, request: IndexRequest) {
        match request {
            IndexRequest::Lookup if self.lookups.len() < QUEUE_SIZE => drop(self.lookups.insert(path)),
            // The next reader of the blob requests it again.
            IndexRequest::Lookup => {}
            IndexRequest::Record(entry) => {
                let newest = self.unwritten.entry(path).or_insert(entry);
                if entry.version > newest.version {
                    *newest = entry;
                }
            }
        }
    }
}

/// Serves jobs until every sender is gone.
pub(super) async fn serve(index: Arc<IndexObject>, mut jobs: mpsc::Receiver<IndexJob>) {
    let mut pending = PendingChanges::default();
    let mut group = Vec::new();
    while pending.receive(&mut jobs, &mut group).await {
        wait_for_more(&index, &mut jobs, &mut group).await;
        let mut replies = Vec::new();
        for IndexJob { path, request, reply } in group.drain(..) {
            pending.add(path, request);
            replies.extend(reply);
        }
        let later = pending.lookups.iter().nth(LOOKUPS).cloned();
        let later = later.map_or_else(BTreeSet::new, |first| pending.lookups.split_off(&first));
        let lookups = std::mem::replace(&mut pending.lookups, later);
        let done = commit(&index, &mut pending.unwritten, lookups, false).await;
        if let Err(e) = &done {
            let count = pending.unwritten.len();
            tracing::error!("the index of {:?} could not be written: {e}; {count} changes wait", index.ns);
            pending.lookups.clear();
        }
        for reply in replies {
            // A caller may be gone.
            drop(reply.send(done.clone()));
        }
    }
    if !pending.unwritten.is_empty() {
        let count = pending.unwritten.len();
        tracing::error!("{count} changes of {:?} are not in the index; `memsync reindex` adds them", index.ns);
    }
}

/// Takes further jobs while blobs are in flight, since their changes follow in a moment.
async fn wait_for_more(index: &IndexObject, jobs: &mut mpsc::Receiver<IndexJob>, group: &mut Vec<IndexJob>) {
    let end = Instant::now() + MAX_WAIT;
    sleep(PAUSE).await;
    while group.len() < GROUP_SIZE && index.has_writes_in_flight() && Instant::now() < end {
        let room = GROUP_SIZE - group.len();
        match timeout(GAP, jobs.recv_many(group, room)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Writes the entries of `unwritten` and the blobs found at `lookups` to the index, and empties `unwritten`. With `create` it
/// also creates a missing index.
pub(super) async fn commit(
    index: &IndexObject,
    unwritten: &mut BTreeMap<RelPath, IndexEntry>,
    lookups: BTreeSet<RelPath>,
    create: bool,
) -> Result<(), StoreError> {
    let (mut races, mut failures) = (0, 0);
    let mut seen = match index.cached() {
        // A lookup means that the cache differs from a blob, so it may be old.
        Some(cached) if lookups.is_empty() && cached.etag.is_some() => cached,
        _ => index.fresh().await?,
    };
    loop {
        if seen.etag.is_none() && !create && !index.ns.is_empty() {
            return decline(&index.ns, unwritten);
        }
        let changes = find_changes(index, &seen, unwritten, &lookups).await?;
        if changes.is_empty() && !(create && seen.etag.is_none()) {
            unwritten.clear();
            return Ok(());
        }
        match index.put(&seen, &changes).await? {
            ConditionalPut::Written(_) => {
                failpoint::pass("s3-index-written");
                unwritten.clear();
                return Ok(());
            }
            ConditionalPut::Lost if races < MAX_RACES => {
                sleep(race_pause(races)).await;
                races += 1;
            }
            ConditionalPut::Lost => return Err(too_many_writers()),
            ConditionalPut::Unknown(_) if failures < MAX_FAILURES => {
                failures += 1;
                sleep(Duration::from_millis(20 << (2 * failures))).await;
            }
            ConditionalPut::Unknown(e) => return Err(e),
        }
        seen = index.fresh().await?;
    }
}

pub(super) fn too_many_writers() -> StoreError {
    StoreError::S3("too many proxies write the index at the same time; try again".to_owned())
}

/// Drops the entries, because the index is gone. Only a checked request may begin a namespace again. Until then the blobs are
/// files of the namespace above: its readers and the next start add them to its index.
fn decline(ns: &str, unwritten: &mut BTreeMap<RelPath, IndexEntry>) -> Result<(), StoreError> {
    if unwritten.is_empty() {
        return Ok(());
    }
    unwritten.clear();
    Err(StoreError::S3(format!("the index of {ns:?} was removed during a write; write again")))
}

/// The entries that the index `seen` lacks. The later version of a path wins. If the versions cannot decide, the blob does. It
/// is read after the index: a blob that is written still later is recorded after this write.
async fn find_changes(
    index: &IndexObject,
    seen: &BucketIndex,
    unwritten: &BTreeMap<RelPath, IndexEntry>,
    lookups: &BTreeSet<RelPath>,
) -> Result<EntryChanges, StoreError> {
    let mut changes = EntryChanges::new();
    let mut doubtful: BTreeSet<&RelPath> = lookups.iter().collect();
    for (path, entry) in unwritten {
        match seen.document.entries.get(path) {
            Some(has) if has == entry => {}
            Some(has) if has.version >= entry.version => drop(doubtful.insert(path)),
            Some(_) | None => {
                changes.insert(path.clone(), Some(*entry));
            }
        }
    }
    let found = doubtful
        .into_iter()
        .map(|path| async move { Ok::<_, StoreError>((path, index.blobs.find(&index.ns, path).await?)) });
    let mut found = stream::iter(found.collect::<Vec<_>>()).buffer_unordered(CONCURRENCY);
    while let Some((path, blob)) = found.try_next().await? {
        let has = seen.document.entries.get(path);
        let is_missing = |entry: &IndexEntry| has != Some(entry) && (has.is_some() || !index.is_forgotten(entry));
        if let Some(blob) = blob.filter(|blob| is_missing(&blob.entry)) {
            changes.insert(path.clone(), Some(blob.entry));
        }
    }
    Ok(changes)
}
