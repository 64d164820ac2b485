//! The cycle: scan → fetch → reconcile → check → apply → commit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::Either;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::digest::Md5;
use crate::disk::Disk;
use crate::failpoint;
use crate::local::scan::{ScanStats, settled};
use crate::local::source::Digested;
use crate::local::{Found, Move, Moved, Scope, Touched};
use crate::path::RelPath;
use crate::remote::{IndexEntry, Remote};
use crate::state::{Change, Entry};
use crate::sync::safety::{self, Limits};
use crate::sync::{Action, Base, Local, Plan, Step, Unknown};

use super::World;
use super::apply::{ATTEMPTS, Done, StepError, Work};
use super::batch::{Flown, Next};
use super::engine::{CycleError, Engine, folder_error, remedy};

/// Finished actions that are made durable and committed together.
const BATCH_STEPS: usize = 2048;
/// Bytes staged or uploaded that end a batch.
const BATCH_BYTES: u64 = 256 * 1024 * 1024;

/// One finished action, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    pub path: RelPath,
    pub action: &'static str,
    /// `done`, `stale`, or what went wrong.
    pub outcome: String,
}

/// What a cycle did, and what it left.
#[derive(Debug, Default)]
pub struct Report {
    pub scan: ScanStats,
    /// Something had changed on a side, or was left: there was a plan.
    pub planned: bool,
    /// How long it took to find out what to do.
    pub planning: Duration,
    pub uploaded: usize,
    pub downloaded: usize,
    pub deleted_remote: usize,
    pub trashed: usize,
    pub adopted: usize,
    /// Conflict copies made.
    pub conflicts: Vec<RelPath>,
    pub recent: Vec<Recent>,
    /// Paths that failed and rest now.
    pub failed: usize,
    /// Something is known to be left: run another cycle soon.
    pub again: bool,
    /// Deletions held for approval.
    pub held: usize,
    /// Paths that are blocked, with the reason.
    pub blocked: BTreeMap<RelPath, String>,
}

impl Report {
    /// Whether the cycle changed anything on either side.
    pub fn wrote(&self) -> bool {
        self.uploaded + self.downloaded + self.deleted_remote + self.trashed + self.conflicts.len() > 0
    }
}

/// Content that did not get to the proxy: what is deleted there waits for it, it may have been renamed to it.
#[derive(Default)]
struct NotUploaded {
    contents: BTreeSet<Md5>,
    /// There is some that nobody has read.
    unread: bool,
}

impl NotUploaded {
    fn may_be(&self, md5: Md5) -> bool {
        self.unread || self.contents.contains(&md5)
    }
}

/// Steps under way, their outcomes not yet committed.
struct Batch<D: Disk> {
    done: Vec<(Step, Done<D>)>,
    bytes: u64,
}

impl<D: Disk> Default for Batch<D> {
    fn default() -> Self {
        Self { done: Vec::new(), bytes: 0 }
    }
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Brings the folder and the proxy as near to agreement as this moment allows. Dropping the future stops it
    /// between two steps; the next cycle's table row is right (invariant 8).
    ///
    /// # Errors
    /// When the cycle as a whole cannot go on. What was finished before is committed.
    pub async fn cycle(&mut self, scope: Scope) -> Result<Report, CycleError> {
        let began = self.world.elapsed();
        // A scan that fails leaves this false: what the scope named must not be forgotten.
        let full = !std::mem::take(&mut self.scanned) || self.leftovers || scope.full;
        self.check_root()?;
        if self.leftovers {
            self.folder.sweep(self.world.now()).map_err(folder_error(".memsync/stage"))?;
            self.leftovers = false;
        }
        let scan = self.scan(&Scope { full, ..scope })?;
        // What the last plan left is taken up again with every full scan.
        self.unfinished |= full && !self.open.is_empty();
        let news = self.fetch().await?;
        let due = self.quarantine.next_due().is_some_and(|at| at <= self.world.elapsed());
        if !self.unfinished && !news && !due {
            let held = self.held.iter().map(|h| h.steps.len()).sum();
            return Ok(Report { scan, held, ..Report::default() });
        }
        self.unfinished = true;
        self.check_reset()?;
        self.note_position()?;
        let mut plan = self.plan(&self.open);
        // Whatever ends this cycle early, the steps that it leaves are planned again.
        let left = plan.steps.iter().filter(|s| s.action != Action::Skip(Unknown::Ignored));
        self.open = Touched::Paths(left.map(|s| s.path.clone()).collect());
        if let (Some(sabotage), Some(index)) = (self.sabotage, &self.index) {
            sabotage(&mut plan, index);
        }
        let planning = self.world.elapsed().saturating_sub(began);
        let report = Report { planned: true, planning, ..self.apply(plan, scan).await? };
        self.unfinished = report.again;
        Ok(report)
    }

    /// What the next cycle would do, as things stand: scans and fetches, changes nothing.
    ///
    /// # Errors
    /// As [`Engine::cycle`].
    pub async fn dry_run(&mut self) -> Result<Plan, CycleError> {
        self.check_root()?;
        // What this scan and this index have to tell is news to the next cycle still.
        self.unfinished = true;
        self.open = Touched::Everywhere;
        self.scan(&Scope::full())?;
        self.fetch().await?;
        self.check_reset()?;
        // A rehearsal takes one scan for proof.
        let confirm = std::mem::take(&mut self.options.confirm);
        let plan = self.plan(&Touched::Everywhere);
        self.options.confirm = confirm;
        Ok(plan)
    }

    async fn apply(&mut self, mut plan: Plan, scan: ScanStats) -> Result<Report, CycleError> {
        let mut report = Report { scan, ..Report::default() };
        let tracked = self.container.entries().values().filter(|e| matches!(e.base, Base::Synced(_))).count();
        let limits = Limits { max_delete: self.options.max_delete };
        self.held = safety::hold_mass_delete(&mut plan, tracked, limits, &self.approved);
        report.held = self.held.iter().map(|h| h.steps.len()).sum();
        // An approval is for one plan: it lives as long as the deletions of that plan are still to be made.
        let open = |s: &&Step| s.action.deletes().is_some() || matches!(s.action, Action::Skip(_));
        let pending: BTreeSet<&RelPath> = plan.steps.iter().filter(open).map(|s| &s.path).collect();
        self.approved.retain(|p| pending.contains(p));
        let deleting = plan.steps.iter().any(|s| s.action.deletes().is_some());
        let mut skipped = NotUploaded::default();
        let mut resting = BTreeSet::new();
        for step in &plan.steps {
            let Action::Skip(why) = &step.action else { continue };
            match why {
                Unknown::Vanished => report.again = true,
                // It waits for a file that is being written, or for a deletion; one that is held takes a person.
                Unknown::Changing => report.again |= deleting || self.is_changing(&step.path),
                // It is no longer as new as it was when it was scanned.
                Unknown::Unread => {
                    self.look_again(&step.path);
                    skipped.unread = true;
                    report.again = true;
                }
                Unknown::Quarantined(_) => {
                    resting.insert(step.path.clone());
                    if let Some(Found { local: Local::File(md5), .. }) = self.tree.found().get(&step.path) {
                        skipped.contents.insert(*md5);
                    }
                }
                Unknown::Clash(_) | Unknown::Collides(_) | Unknown::TooLarge(_) => {
                    report.blocked.insert(step.path.clone(), why.to_string());
                }
                _ => {}
            }
        }
        // What the plan has nothing to say of, or tries again now, is no failure any more until it fails again.
        self.quarantine.retry(|path| resting.contains(path));
        // A rename is an upload, acknowledged, before the delete: what disappears comes last.
        let (last, first): (VecDeque<Step>, VecDeque<Step>) = plan
            .steps
            .into_iter()
            .filter(|s| !matches!(s.action, Action::Skip(_)))
            .partition(|s| s.action.deletes().is_some());
        self.progress.done.store(0, Ordering::Relaxed);
        self.progress.steps.store(first.len() + last.len(), Ordering::Relaxed);
        let not_uploaded = self.run_steps(first, &mut report).await?;
        let waits = |s: &Step, on: &NotUploaded| matches!(s.action, Action::DeleteRemote { base } if on.may_be(base));
        let (held_back, last): (VecDeque<Step>, VecDeque<Step>) =
            last.into_iter().partition(|s| waits(s, &not_uploaded) || waits(s, &skipped));
        report.again |= held_back.iter().any(|s| waits(s, &not_uploaded));
        self.run_steps(last, &mut report).await?;
        self.quarantine.forgive();
        self.approved.retain(|p| self.container.entries().get(p).is_some_and(|e| matches!(e.base, Base::Synced(_))));
        Ok(report)
    }

    pub(super) fn is_changing(&self, path: &RelPath) -> bool {
        self.tree.found().get(path).is_some_and(|f| f.local == Local::Unknown(Unknown::Changing))
    }

    /// Runs steps side by side and commits them by the batch. Returns the content whose upload came to nothing.
    async fn run_steps(&mut self, steps: VecDeque<Step>, report: &mut Report) -> Result<NotUploaded, CycleError> {
        let mut queue = self.queue(steps);
        let mut not_uploaded = NotUploaded::default();
        let mut flying = FuturesUnordered::new();
        let mut batch = Batch::default();
        let mut ended: Option<CycleError> = None;
        loop {
            if self.stopping() {
                ended.get_or_insert(CycleError::Stopped);
            }
            if ended.is_some() {
                queue.stop();
            }
            while flying.len() < self.options.concurrency.max(1) {
                flying.push(match queue.next(|step| self.work(step)) {
                    None => break,
                    Some(Next::Many(steps)) => Either::Left(self.batch(steps)),
                    Some(Next::One(work)) => Either::Right(async move {
                        let result = work.run().await;
                        Flown::One(work.step, result)
                    }),
                });
            }
            let (step, result) = match flying.next().await {
                None => break,
                Some(Flown::One(step, result)) => (step, result),
                Some(Flown::Many(works, batched)) => {
                    if let Some(fatal) = self.batched(works, batched, &mut queue) {
                        ended.get_or_insert(fatal);
                    }
                    continue;
                }
            };
            self.progress.done.fetch_add(1, Ordering::Relaxed);
            match result {
                Ok(done) => {
                    if let (Action::Upload { local, .. }, Done::Nothing) = (&step.action, &done) {
                        not_uploaded.contents.insert(*local);
                        let why = format!("it was changed on the proxy {ATTEMPTS} times under our hands");
                        self.quarantine_step(&step, why, report);
                    }
                    batch.bytes += self.bytes_of(&step);
                    batch.done.push((step, done));
                    if batch.done.len() >= BATCH_STEPS || batch.bytes >= BATCH_BYTES {
                        self.flush(std::mem::take(&mut batch), report)?;
                    }
                }
                Err(e) => {
                    match step.action {
                        Action::Upload { local, .. } => drop(not_uploaded.contents.insert(local)),
                        Action::UploadUnread => not_uploaded.unread = true,
                        _ => {}
                    }
                    if let Some(fatal) = self.failed(&step, e, report) {
                        ended.get_or_insert(fatal);
                    }
                }
            }
        }
        self.flush(batch, report)?;
        match ended {
            Some(e) => Err(e),
            None => Ok(not_uploaded),
        }
    }

    pub(super) fn work(&self, step: Step) -> Work<D, R> {
        let entry = self.container.entries().get(&step.path);
        Work {
            folder: self.folder.clone(),
            remote: self.remote.clone(),
            at: self.tree.disk_name(&step.path),
            base: entry.and_then(|e| match e.base {
                Base::Synced(md5) => Some(md5),
                Base::Seen(_) => None,
            }),
            sent: self.sent.get(&step.path).copied(),
            version: entry.map_or(0, |e| e.version),
            listed: self.index.as_ref().and_then(|i| i.files.get(&step.path)).copied(),
            strong: self.index.as_ref().is_some_and(|i| i.mark.is_some()),
            seen: entry.is_some_and(|e| matches!(e.base, Base::Seen(_))),
            answered: Mutex::default(),
            step,
        }
    }

    fn bytes_of(&self, step: &Step) -> u64 {
        let local = self.tree.found().get(&step.path).map_or(0, |f| f.size);
        let remote = self.index.as_ref().and_then(|i| i.files.get(&step.path)).map_or(0, |e| e.size);
        local.max(remote)
    }

    /// Notes a failed step. `Some`: the cycle cannot go on.
    fn failed(&mut self, step: &Step, e: StepError, report: &mut Report) -> Option<CycleError> {
        if let (Action::Upload { local, .. }, StepError::Remote(_)) = (&step.action, &e) {
            self.sent.insert(step.path.clone(), *local);
        }
        let why = match e {
            StepError::Remote(e) if e.ends_cycle() => return Some(CycleError::Remote(e)),
            // Read first, it has the same failure again if that was not for want of its digest, and rests then.
            _ if step.action == Action::UploadUnread => {
                self.read_first.insert(step.path.clone());
                self.look_again(&step.path);
                report.again = true;
                return None;
            }
            StepError::Changed => {
                self.look_again(&step.path);
                report.again = true;
                return None;
            }
            StepError::Remote(e) => e.to_string(),
            StepError::Local(e) => format!("{e}; {}", remedy(&e)),
        };
        self.quarantine_step(step, why, report);
        None
    }

    /// The next scan must read it, whatever its stat says.
    fn look_again(&mut self, path: &RelPath) {
        let size = self.tree.found().get(path).map_or(0, |f| f.size);
        let found = Found { local: Local::Unknown(Unknown::Changing), stat: None, size };
        self.tree.put(path.clone(), Some(found));
    }

    fn quarantine_step(&mut self, step: &Step, why: String, report: &mut Report) {
        let content = match self.tree.found().get(&step.path).map(|f| &f.local) {
            Some(Local::File(md5)) => Some(*md5),
            _ => None,
        };
        let (now, random) = (self.world.elapsed(), self.world.random());
        report.recent.push(Recent { path: step.path.clone(), action: verb(&step.action), outcome: why.clone() });
        report.failed += 1;
        self.quarantine.fail(&step.path, content, why, now, random);
    }

    /// Makes a batch durable in the folder, then commits it to the base (invariant 7).
    fn flush(&mut self, batch: Batch<D>, report: &mut Report) -> Result<(), CycleError> {
        if batch.done.is_empty() {
            return Ok(());
        }
        failpoint::pass("batch.before");
        let mut moves = Vec::new();
        let mut moving = Vec::new();
        let mut agreed = Vec::new();
        let mut changes = Vec::new();
        for (step, done) in batch.done {
            match done {
                Done::Nothing => {}
                Done::Seen(md5) => {
                    if let Action::DeleteRemote { .. } = step.action {
                        report.deleted_remote += 1;
                        self.told(&step.path, IndexEntry { md5, size: 0, is_deleted: true, version: 0 });
                        note(report, &step);
                    }
                    changes
                        .push(Change::Set(step.path.clone(), Entry { base: Base::Seen(md5), stat: None, version: 0 }));
                    self.quarantine.clear(&step.path);
                }
                Done::Forget => changes.push(Change::Forget(step.path)),
                Done::Agreed { md5, version, uploaded } => {
                    agreed.push(self.agreed(&step, md5, version, uploaded, report));
                }
                Done::Read { digested: Digested { md5, stat }, version } => {
                    // What the upload found out about the file is what a scan would have found.
                    let known = settled(stat, crate::local::moves::ns(self.world.now()));
                    let found = Found { local: Local::File(md5), stat: known, size: stat.size };
                    self.tree.put(step.path.clone(), Some(found));
                    agreed.push(self.agreed(&step, md5, version, true, report));
                }
                Done::Move { step: change, base, version } => {
                    let size = match &*change {
                        Move::Create { staged, .. } | Move::Replace { staged, .. } | Move::Conflict { staged, .. } => {
                            staged.size
                        }
                        Move::Trash { .. } => 0,
                    };
                    moving.push((step, base, version, size));
                    moves.push(*change);
                }
            }
        }
        let settle: Vec<String> = agreed.iter().map(|(at, _)| at.clone()).collect();
        let performed = self.folder.perform(moves, &settle, self.world.now()).map_err(|e| {
            self.leftovers = true;
            folder_error("making changes durable")(e)
        })?;
        self.leftovers |= performed.left_over;
        report.again |= !performed.unsettled.is_empty();
        changes
            .extend(agreed.into_iter().filter(|(at, _)| !performed.unsettled.contains(at)).map(|(_, change)| change));
        for ((step, base, version, size), moved) in moving.into_iter().zip(performed.moved) {
            if let Some(change) = self.moved(step, base, version, size, moved, report) {
                changes.push(change);
            }
        }
        if !changes.is_empty() {
            failpoint::pass("commit.before");
            self.container.commit(changes)?;
            failpoint::pass("commit.done");
        }
        Ok(())
    }

    /// Both sides hold this content. Where the file is called what, and what to commit once it is durable.
    fn agreed(&mut self, step: &Step, md5: Md5, version: u64, uploaded: bool, report: &mut Report) -> (String, Change) {
        self.sent.remove(&step.path);
        self.read_first.remove(&step.path);
        self.quarantine.clear(&step.path);
        let found = self.tree.found().get(&step.path);
        let stat = found.filter(|f| f.local == Local::File(md5)).and_then(|f| f.stat);
        if uploaded {
            report.uploaded += 1;
            let size = found.map_or(0, |f| f.size);
            self.told(&step.path, IndexEntry { md5, size, is_deleted: false, version });
            note(report, step);
        } else {
            report.adopted += 1;
        }
        let entry = Entry { base: Base::Synced(md5), stat, version };
        (self.tree.disk_name(&step.path), Change::Set(step.path.clone(), entry))
    }

    /// What we wrote to the proxy ourselves. In the index that is held it must show at once: if others undo it before the
    /// next one is fetched, that one differs.
    fn told(&mut self, path: &RelPath, entry: IndexEntry) {
        if let Some(index) = &mut self.index {
            index.files.insert(path.clone(), entry);
        }
    }

    fn moved(
        &mut self,
        step: Step,
        base: Base,
        version: u64,
        size: u64,
        moved: Moved,
        report: &mut Report,
    ) -> Option<Change> {
        match moved {
            Moved::Done { copy, stat } => {
                self.copied(copy, report);
                self.sent.remove(&step.path);
                let found = match base {
                    Base::Synced(md5) => {
                        report.downloaded += 1;
                        Some(Found { local: Local::File(md5), stat, size })
                    }
                    Base::Seen(_) => {
                        report.trashed += 1;
                        None
                    }
                };
                self.tree.put(step.path.clone(), found);
                self.quarantine.clear(&step.path);
                note(report, &step);
                Some(Change::Set(step.path, Entry { base, stat, version }))
            }
            Moved::Stale { copy } => {
                self.copied(copy, report);
                let found = Found { local: Local::Unknown(Unknown::Changing), stat: None, size: 0 };
                self.tree.put(step.path, Some(found));
                report.again = true;
                None
            }
            Moved::Blocked(why) => {
                report.blocked.insert(step.path.clone(), why.to_string());
                self.quarantine_step(&step, why.to_string(), report);
                None
            }
            Moved::Failed(e) => {
                self.quarantine_step(&step, format!("{e}; {}", remedy(&e)), report);
                None
            }
        }
    }

    /// A conflict copy is an ordinary new file: the next cycle uploads it (row 4).
    fn copied(&mut self, copy: Option<RelPath>, report: &mut Report) {
        if let Some(copy) = copy {
            let found = Found { local: Local::Unknown(Unknown::Changing), stat: None, size: 0 };
            self.tree.put(copy.clone(), Some(found));
            report.conflicts.push(copy);
            report.again = true;
        }
    }
}

fn note(report: &mut Report, step: &Step) {
    report.recent.push(Recent { path: step.path.clone(), action: verb(&step.action), outcome: "done".to_owned() });
}

/// The action's name in `recent` and in a dry run.
pub fn verb(action: &Action) -> &'static str {
    match action {
        Action::Download { .. } | Action::Replace { .. } => "download",
        Action::RecordSeen { .. } => "record",
        Action::Upload { .. } | Action::UploadUnread | Action::Probe { .. } => "upload",
        Action::Adopt { .. } => "adopt",
        Action::Conflict { .. } => "conflict",
        Action::Obey { .. } => "trash",
        Action::DeleteRemote { .. } => "delete",
        Action::Skip(_) => "skip",
    }
}
