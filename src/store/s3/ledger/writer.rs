//! What becomes of an index's changes: those of a moment go together, and wait for company while one write is under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::super::super::StoreError;
use super::super::index::Row;
use super::{Kept, QUEUE, RACES, Shared, Write, lock};
use crate::failpoint;
use crate::path::RelPath;

/// Changes in one write of the index.
const GROUP: usize = 4096;
/// A group waits this long for company: who was just answered begins the next write in a moment.
const PAUSE: Duration = Duration::from_millis(3);
/// It waits on while blobs are being written, this long at most between two changes ...
const GAP: Duration = Duration::from_millis(100);
/// ... and this long in all.
const LINGER: Duration = Duration::from_millis(250);
/// How often a write that failed is tried again before those who wait are told.
const FAILURES: u32 = 5;
/// Blobs that readers found to differ from their entries, and that one group looks at: who writes waits for it.
const LOOKS: usize = 64;
/// Blobs looked at side by side.
const SIDE_BY_SIDE: usize = 16;
/// Changes that could not be recorded are tried again after this time.
const LATER: Duration = Duration::from_secs(5);

type Reply = oneshot::Sender<Result<(), StoreError>>;

/// What is asked of the index.
pub enum Wish {
    /// The blob has this now.
    Record(Row),
    /// The blob and the index differ: look at the blob again and record what it has.
    Look,
}

pub struct Job {
    pub path: RelPath,
    pub wish: Wish,
    pub reply: Option<Reply>,
}

impl Shared {
    /// Records `owed` and looks at the blobs of `looks`. What is recorded leaves `owed`.
    pub async fn commit(
        &self,
        owed: &mut BTreeMap<RelPath, Row>,
        looks: BTreeSet<RelPath>,
        create: bool,
    ) -> Result<(), StoreError> {
        let (mut races, mut failures) = (0, 0);
        let kept = lock(&self.seen).kept().cloned();
        let mut seen = match kept {
            // What is to be looked at differs from what is kept, which may only be old.
            Some(kept) if looks.is_empty() && kept.etag.is_some() => kept,
            _ => self.fresh().await?,
        };
        loop {
            if seen.etag.is_none() && !create && !self.ns.is_empty() {
                return self.decline(owed);
            }
            let changed = self.changed(&seen, owed, &looks).await?;
            if changed.is_empty() && !(create && seen.etag.is_none()) {
                owed.clear();
                return Ok(());
            }
            let mut next = (*seen.document).clone();
            for (path, row) in &changed {
                next.set(path.clone(), Some(*row));
            }
            match self.write(&seen, next, changed.into_keys().collect()).await? {
                Write::Landed => {
                    failpoint::pass("s3-index-written");
                    owed.clear();
                    return Ok(());
                }
                Write::Lost if races < RACES => {
                    // The more often it was lost the longer the pause, so that every proxy gets its turn.
                    let most = u64::from(races.min(20)) * 5;
                    races += 1;
                    sleep(Duration::from_millis(fastrand::u64(0..=most))).await;
                }
                Write::Lost => return Err(StoreError::S3("the index is being written by too many".to_owned())),
                Write::Unsure(_) if failures < FAILURES => {
                    failures += 1;
                    sleep(Duration::from_millis(20 << (2 * failures))).await;
                }
                Write::Unsure(e) => return Err(e),
            }
            seen = self.fresh().await?;
        }
    }

    /// Records nothing, as there is no index: only who has asked whether it may be begins a namespace. Until then its
    /// blobs are files of the one above, whose readers and whose start see them.
    fn decline(&self, owed: &mut BTreeMap<RelPath, Row>) -> Result<(), StoreError> {
        if owed.is_empty() {
            return Ok(());
        }
        owed.clear();
        Err(StoreError::S3(format!("the index of {:?} was removed during a write; write again", self.ns)))
    }

    /// What of `owed` and of the blobs at `looks` the index `seen` does not have. The later version of a path wins;
    /// where versions cannot tell, the blob itself does. Looking after the index was read makes that safe: a blob
    /// written still later is recorded after this.
    async fn changed(
        &self,
        seen: &Kept,
        owed: &BTreeMap<RelPath, Row>,
        looks: &BTreeSet<RelPath>,
    ) -> Result<BTreeMap<RelPath, Row>, StoreError> {
        let mut changed = BTreeMap::new();
        let mut doubtful: BTreeSet<&RelPath> = looks.iter().collect();
        for (path, row) in owed {
            match seen.document.rows.get(path) {
                Some(has) if has == row => {}
                Some(has) if has.version >= row.version => drop(doubtful.insert(path)),
                Some(_) | None => {
                    changed.insert(path.clone(), *row);
                }
            }
        }
        let looked = doubtful.into_iter().map(|path| async move { Ok((path, self.blobs.look(&self.ns, path).await?)) });
        let mut looked = stream::iter(looked.collect::<Vec<_>>()).buffer_unordered(SIDE_BY_SIDE);
        while let Some((path, found)) = looked.try_next().await? {
            let has = seen.document.rows.get(path);
            let is_owed = |row: &Row| has != Some(row) && (has.is_some() || !self.is_forgotten(row));
            if let Some(found) = found.filter(|found| is_owed(&found.row)) {
                changed.insert(path.clone(), found.row);
            }
        }
        Ok(changed)
    }
}

/// Serves jobs until every sender is gone.
pub async fn serve(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>) {
    let (mut owed, mut looks) = (BTreeMap::new(), BTreeSet::new());
    let mut group = Vec::new();
    loop {
        if !looks.is_empty() {
            // What is left to be looked at waits for nobody.
            while let Some(job) = (group.len() < GROUP).then(|| jobs.try_recv().ok()).flatten() {
                group.push(job);
            }
        } else if owed.is_empty() {
            if jobs.recv_many(&mut group, GROUP).await == 0 {
                return;
            }
        } else if let Ok(0) = timeout(LATER, jobs.recv_many(&mut group, GROUP)).await {
            tracing::error!(
                "{} changes of {:?} are not in the index; `memsync reindex` adds them",
                owed.len(),
                shared.ns
            );
            return;
        }
        linger(&shared, &mut jobs, &mut group).await;
        let mut replies = Vec::new();
        for Job { path, wish, reply } in group.drain(..) {
            replies.extend(reply);
            match wish {
                // What there is no room for the next reader sees again.
                Wish::Look if looks.len() < QUEUE => drop(looks.insert(path)),
                Wish::Look => {}
                Wish::Record(row) => {
                    let newest = owed.entry(path).or_insert(row);
                    if row.version > newest.version {
                        *newest = row;
                    }
                }
            }
        }
        let later = looks.iter().nth(LOOKS).cloned().map_or_else(BTreeSet::new, |first| looks.split_off(&first));
        let now = std::mem::replace(&mut looks, later);
        let done = shared.commit(&mut owed, now, false).await;
        if let Err(e) = &done {
            tracing::error!("the index of {:?} could not be written: {e}; {} changes wait", shared.ns, owed.len());
            looks.clear();
        }
        for reply in replies {
            // A caller that has gone does not hear of it.
            drop(reply.send(done.clone()));
        }
    }
}

/// Takes what comes while blobs are under way: their changes are due in a moment.
async fn linger(shared: &Shared, jobs: &mut mpsc::Receiver<Job>, group: &mut Vec<Job>) {
    let end = Instant::now() + LINGER;
    sleep(PAUSE).await;
    while group.len() < GROUP && shared.under_way.load(Ordering::Relaxed) > 0 && Instant::now() < end {
        let room = GROUP - group.len();
        match timeout(GAP, jobs.recv_many(group, room)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
