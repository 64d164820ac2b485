//! The cycle: scan → fetch → reconcile → check → apply → commit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::StreamExt;

use crate::digest::Md5;
use crate::disk::{Disk, FileStat};
use crate::local::dirty::max_wait;
use crate::local::scan::ScanStats;
use crate::local::{LocalEntry, ScanScope, TouchedPaths};
use crate::path::RelPath;
use crate::remote::{Remote, RemoteError};
use crate::sync::safety::{self, DeleteContext, DeleteLimits, HeldDeletions, MASS_DELETE_MIN};
use crate::sync::{Action, Base, LocalState, Plan, PlanStep, SkipReason};

use super::World;
use super::apply::{ATTEMPTS, Done, StepError, Work};
use super::batch::{Flown, Next};
use super::commit::Batch;
use super::engine::{CycleError, Engine, Unanswered, remedy};
use super::problems::PathProblem;
use super::sent::Sent;
use super::transit::SlowStep;

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
    /// The machine that a download comes from, where the proxy says so.
    pub device: Option<String>,
}

/// What a cycle did, and what it left.
#[derive(Debug, Default)]
pub struct Report {
    pub scan: ScanStats,
    /// When the scan had ended ([`World::elapsed`]).
    pub looked: Duration,
    /// The index was not what it had been.
    pub news: bool,
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
    /// Deletions that wait for what may be the same file under another name.
    pub waiting: usize,
    /// Paths that are blocked, with the reason.
    pub blocked: BTreeMap<RelPath, PathProblem>,
}

impl Report {
    /// Whether the cycle changed anything on either side.
    pub fn wrote(&self) -> bool {
        self.uploaded + self.downloaded + self.deleted_remote + self.trashed + self.conflicts.len() > 0
    }
}

/// Content that did not get to the other side: what is deleted there waits for it, it may have been renamed to it.
#[derive(Default)]
pub(super) struct NotArrived {
    /// On the proxy.
    pub contents: BTreeSet<Md5>,
    /// In the folder.
    pub here: BTreeSet<Md5>,
    /// There is some of which nobody knows what it is.
    pub unknown: bool,
    /// Files that may not be read, by what stays as it is when a file is renamed: inode, size, mtime.
    unreadable: BTreeSet<(u64, u64, i64)>,
}

impl NotArrived {
    fn may_be(&self, md5: Md5) -> bool {
        self.unknown || self.contents.contains(&md5)
    }

    /// `was`: the last stat of the file; `bytes`: its size. One that was too young when it was last looked at has no stat
    /// that can be trusted: it may be any of its size.
    fn is_unreadable(&self, was: Option<FileStat>, bytes: u64) -> bool {
        match was {
            Some(was) => self.unreadable.contains(&lasting(&was)),
            None => self.unreadable.iter().any(|(_, size, _)| *size == bytes),
        }
    }
}

fn lasting(stat: &FileStat) -> (u64, u64, i64) {
    (stat.inode, stat.size, stat.mtime_ns)
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Brings the folder and the proxy as near to agreement as this moment allows. Dropping the future stops it
    /// between two steps; the next cycle's table row is right (invariant 8).
    ///
    /// # Errors
    /// When the cycle as a whole cannot go on. What was finished before is committed.
    pub async fn cycle(&mut self, scope: ScanScope) -> Result<Report, CycleError> {
        let began = self.world.elapsed();
        // A scan that fails leaves this false: what the scope named must not be forgotten.
        let full = !std::mem::take(&mut self.scanned) || self.leftovers || scope.full;
        self.check_root()?;
        if self.leftovers || full && !self.stuck.is_empty() {
            self.sweep()?;
        }
        let scope = ScanScope { full, ..scope };
        let scan = self.scan(&scope)?;
        self.note_scope()?;
        let tree = &self.tree;
        self.quarantine.clear_open(|path| scope.full || scope.paths.contains(&tree.disk_name(path)));
        // What the last plan left is taken up again with every full scan.
        self.unfinished |= full && !self.open.is_empty();
        let news = self.fetch().await?;
        let now = self.world.elapsed();
        let heals = self.heals.take_due(now);
        heals.iter().for_each(|path| self.open.add(path));
        let is_rested = self.quarantine.next_due().is_some_and(|at| at <= now);
        let due = self.name_transits(now) | !heals.is_empty() | is_rested;
        if !self.unfinished && !news && !due {
            let held = self.held.iter().map(|h| h.steps.len()).sum();
            return Ok(Report { scan, looked: self.looked, held, waiting: self.waiting, ..Report::default() });
        }
        self.unfinished = true;
        let all_obeyed = self.check_reset(news).await?;
        self.note_position(all_obeyed)?;
        self.forget_lost();
        let (ripe, waiting) = self.ripe();
        let plan = self.plan(&ripe);
        // Whatever ends this cycle early, the steps that it leaves are planned again.
        let left = plan.steps.iter().filter(|s| s.action != Action::Skip(SkipReason::Ignored)).map(|s| &s.path);
        let again = !waiting.is_empty();
        self.open = TouchedPaths::Paths(waiting.into_iter().chain(left.cloned()).collect());
        #[cfg(any(test, feature = "testing"))]
        let plan = self.sabotaged(plan);
        let planning = self.world.elapsed().saturating_sub(began);
        let looked = self.looked;
        let mut report = Report { looked, news, planned: true, planning, ..self.apply(plan, scan).await? };
        report.again |= again;
        self.unfinished = report.again;
        self.end_crash_check()?;
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
        self.open = TouchedPaths::Everywhere;
        self.scan(&ScanScope::full())?;
        let news = self.fetch().await?;
        self.check_reset(news).await?;
        // A dry run takes one scan for proof.
        let confirm = std::mem::take(&mut self.options.confirm);
        let plan = self.plan(&TouchedPaths::Everywhere);
        self.options.confirm = confirm;
        Ok(plan)
    }

    async fn apply(&mut self, mut plan: Plan, scan: ScanStats) -> Result<Report, CycleError> {
        let mut report = Report { scan, ..Report::default() };
        self.unanswered = None;
        // Fewer deletions are never held.
        let tracked = || self.container.entries().values().filter(|e| e.base.is_synced()).count();
        let known = DeleteContext {
            tracked: if plan.steps.len() < MASS_DELETE_MIN { 0 } else { tracked() },
            staying: self.staying(&plan),
            approved: &self.approved,
            held: &self.held,
        };
        let limits = DeleteLimits { max_delete: self.options.max_delete };
        let (waiting, held) =
            safety::hold_mass_delete(&mut plan, limits, &known).into_iter().partition(|h: &HeldDeletions| h.unread);
        self.held = held;
        report.again |= !waiting.is_empty();
        report.held = self.held.iter().map(|h| h.steps.len()).sum();
        // An approval is for one plan: it lives as long as the deletions of that plan are still to be made.
        let open = |s: &&PlanStep| s.action.deletes().is_some() || matches!(s.action, Action::Skip(_));
        let pending: BTreeSet<&RelPath> = plan.steps.iter().filter(open).map(|s| &s.path).collect();
        self.approved.retain(|p| pending.contains(p));
        let deleting = plan.steps.iter().any(|s| s.action.deletes().is_some());
        let mut skipped = NotArrived::default();
        let mut resting = BTreeSet::new();
        for step in &plan.steps {
            let Action::Skip(why) = &step.action else { continue };
            match why {
                SkipReason::Vanished => report.again = true,
                // It waits for a file that is being written, or for a deletion; one that is held takes a person.
                SkipReason::Changing => {
                    report.again |= deleting || self.is_changing(&step.path);
                    skipped.unknown |= self.may_be_renamed(&step.path);
                }
                // It is no longer as new as it was when it was scanned.
                SkipReason::Unread => {
                    self.look_again(&step.path);
                    self.read_first.insert(step.path.clone());
                    skipped.unknown = true;
                    report.again = true;
                }
                SkipReason::Unreadable(_) => {
                    let stat = self.tree.found().get(&step.path).and_then(|f| f.stat);
                    skipped.unreadable.extend(stat.as_ref().map(lasting));
                }
                SkipReason::Quarantined(_) => {
                    resting.insert(step.path.clone());
                    if let Some(LocalEntry { local: LocalState::File(md5), .. }) = self.tree.found().get(&step.path) {
                        skipped.contents.insert(*md5);
                    }
                }
                SkipReason::Clash(_) | SkipReason::Collides(_) | SkipReason::Ambiguous(_) | SkipReason::TooLarge(_) => {
                    report.blocked.extend(PathProblem::of(why).map(|problem| (step.path.clone(), problem)));
                }
                _ => {}
            }
        }
        // What the plan has nothing to say of, or tries again now, is no failure any more until it fails again.
        self.quarantine.retry(|path| resting.contains(path));
        // A rename is an upload, acknowledged, before the delete: what disappears comes last.
        let (last, first): (VecDeque<PlanStep>, VecDeque<PlanStep>) = plan
            .steps
            .into_iter()
            .filter(|s| !matches!(s.action, Action::Skip(_)))
            .partition(|s| s.action.deletes().is_some());
        self.progress.done.store(0, Ordering::Relaxed);
        self.progress.steps.store(first.len() + last.len(), Ordering::Relaxed);
        let missing = self.run_steps(first, &mut report).await?;
        self.note_in_transit(&mut skipped);
        let was = |path: &RelPath| self.container.entries().get(path).and_then(|e| e.stat);
        let waits = |s: &PlanStep, on: &NotArrived| match s.action {
            Action::DeleteRemote { base } => on.may_be(base) || on.is_unreadable(was(&s.path), self.bytes_of(s)),
            Action::Obey { local, .. } => on.here.contains(&local),
            _ => false,
        };
        let (held_back, last): (VecDeque<PlanStep>, VecDeque<PlanStep>) =
            last.into_iter().partition(|s| waits(s, &missing) || waits(s, &skipped));
        report.again |= held_back.iter().any(|s| waits(s, &missing));
        self.waiting = held_back.len();
        report.waiting = self.waiting;
        self.run_steps(last, &mut report).await?;
        // Nothing came after it: whether the proxy is gone, the next cycle finds out. Of a path that had failed before
        // this is no news.
        if let Some(Unanswered { error, first: true, .. }) = self.unanswered.take() {
            self.cut_off.append(&mut report.recent);
            return Err(CycleError::Remote(error));
        }
        self.quarantine.forgive();
        self.approved.retain(|p| self.container.entries().get(p).is_some_and(|e| e.base.is_synced()));
        Ok(report)
    }

    /// How many files, which the plan leaves alone, hold on both sides what it deletes.
    fn staying(&self, plan: &Plan) -> BTreeMap<Md5, usize> {
        let mut staying = BTreeMap::new();
        // Fewer are never held.
        if plan.steps.len() < MASS_DELETE_MIN {
            return staying;
        }
        let going: BTreeSet<Md5> = plan.steps.iter().filter_map(|s| s.action.deleted()).collect();
        if going.is_empty() {
            return staying;
        }
        let is_there = |path: &RelPath, md5| {
            let here = self.tree.found().get(path).is_some_and(|f| f.local == LocalState::File(md5));
            let there = self.index.as_ref().and_then(|i| i.files.get(path));
            here && there.is_some_and(|e| e.md5 == md5 && !e.is_deleted)
        };
        for (path, entry) in self.container.entries() {
            let Base::Synced(md5) = entry.base else { continue };
            let planned = || plan.steps.binary_search_by(|s| s.path.cmp(path)).is_ok();
            if going.contains(&md5) && !planned() && is_there(path, md5) {
                *staying.entry(md5).or_default() += 1;
            }
        }
        staying
    }

    /// Whether a file that is being written is new, and may be one that was renamed. What never rests holds up nothing.
    fn may_be_renamed(&self, path: &RelPath) -> bool {
        let synced = self.container.entries().get(path).is_some_and(|e| e.base.content().is_some());
        let patience = max_wait(self.options.quiet);
        let since = self.changing.get(path);
        !synced && since.is_some_and(|since| self.world.elapsed().saturating_sub(*since) < patience)
    }

    pub(super) fn is_changing(&self, path: &RelPath) -> bool {
        self.tree.found().get(path).is_some_and(|f| f.local == LocalState::Unknown(SkipReason::Changing))
    }

    /// Runs steps side by side and commits them by the batch. Returns the content that did not arrive.
    async fn run_steps(&mut self, steps: VecDeque<PlanStep>, report: &mut Report) -> Result<NotArrived, CycleError> {
        let mut queue = self.queue(steps);
        let mut missing = NotArrived::default();
        let (mut flying, mut slow) = self.take_flights();
        let mut batch = Batch::default();
        let mut ended: Option<CycleError> = None;
        loop {
            if self.stopping() {
                ended.get_or_insert(CycleError::Stopped);
            }
            if ended.is_some() {
                queue.stop();
            }
            while flying.len() < self.max_flights(slow.len()) {
                self.container.note_uploads(queue.uploads_ahead())?;
                flying.push(match queue.next(|step| self.work(step)) {
                    None => break,
                    Some(Next::Many(steps)) => self.batch(steps),
                    Some(Next::One(work)) => self.fly(work),
                });
            }
            let next = if flying.len() > slow.len() || !queue.is_empty() {
                flying.next().await
            } else {
                // Nothing is left but what takes long.
                flying.next().now_or_never().flatten()
            };
            let (step, result) = match next {
                None => break,
                Some(Flown::Slow(SlowStep { step, rest })) => {
                    slow.insert(step.path.clone(), self.transit(step));
                    flying.push(rest);
                    continue;
                }
                Some(Flown::One(step, result)) => {
                    if slow.remove(&step.path).is_some() {
                        self.transfers.late.insert(step.path.clone());
                        report.again = true;
                    }
                    (step, result)
                }
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
                    if !matches!(step.action, Action::RecordSeen { .. } | Action::Adopt { .. }) {
                        self.unanswered = None;
                    }
                    // What becomes a conflict copy is on the proxy only when that is.
                    if let (
                        Action::Upload { local, .. } | Action::Conflict { local, .. },
                        Done::Gone(_) | Done::Move { .. },
                    ) = (&step.action, &done)
                    {
                        missing.contents.insert(*local);
                    }
                    if let (Action::Upload { local, .. } | Action::Conflict { local, .. }, Done::Nothing) =
                        (&step.action, &done)
                    {
                        missing.contents.insert(*local);
                        let why = format!("it was changed on the proxy {ATTEMPTS} times under our hands");
                        self.quarantine_step(&step, why, false, report);
                    }
                    batch.bytes += self.bytes_of(&step);
                    let came = matches!(done, Done::Move { .. } | Done::Agreed { .. });
                    if let (Action::Download { remote }, false) = (&step.action, came) {
                        missing.here.insert(*remote);
                    }
                    batch.done.push((step, done));
                    if batch.done.len() >= BATCH_STEPS || batch.bytes >= BATCH_BYTES {
                        missing.here.extend(self.flush(std::mem::take(&mut batch), report)?);
                    }
                }
                Err(e) => {
                    missing.note(&step.action);
                    let fatal = self.failed(&step, e, report);
                    if self.transfers.late.contains(&step.path) {
                        // The proxy has given its index since this was asked for.
                        self.unanswered = None;
                    } else if let Some(fatal) = fatal {
                        ended.get_or_insert(fatal);
                    }
                }
            }
        }
        self.transfers.resume(flying, slow);
        missing.here.extend(self.flush(batch, report)?);
        match ended {
            Some(e) => {
                self.cut_off.append(&mut report.recent);
                Err(e)
            }
            None => Ok(missing),
        }
    }

    pub(super) fn work(&self, step: PlanStep) -> Work<D, R> {
        // An emptied file is no edit of anything that this device had or sent.
        let is_emptied = self.crash.emptied.contains(&step.path);
        let entry = self.container.entries().get(&step.path).filter(|_| !is_emptied);
        Work {
            folder: self.folder.clone(),
            remote: self.remote.clone(),
            at: self.tree.disk_name(&step.path),
            base: entry.and_then(|e| e.base.content()),
            sent: if is_emptied { Sent::default() } else { self.sent.clone() },
            sent_before: self.sent.to(&step.path),
            max_file_size: self.options.max_file_size,
            version: entry.map_or(0, |e| e.version),
            listed: self.index.as_ref().and_then(|i| i.files.get(&step.path)).copied(),
            strong: self.index.as_ref().is_some_and(|i| i.cursor.is_some()),
            heals: self.heals.clone(),
            now: self.world.elapsed(),
            seen: entry.and_then(|e| match e.base {
                Base::Seen(md5) => Some(md5),
                Base::Synced(_) | Base::Detached(_) => None,
            }),
            first: Mutex::default(),
            step,
        }
    }

    fn bytes_of(&self, step: &PlanStep) -> u64 {
        let local = self.tree.found().get(&step.path).map_or(0, |f| f.size);
        let remote = self.index.as_ref().and_then(|i| i.files.get(&step.path)).map_or(0, |e| e.size);
        local.max(remote)
    }

    /// Notes a failed step. `Some`: the cycle cannot go on.
    fn failed(&mut self, step: &PlanStep, e: StepError, report: &mut Report) -> Option<CycleError> {
        let fatal = match &e {
            StepError::Remote(e @ RemoteError::Unreachable { .. }) => self.unanswered(&step.path, e),
            StepError::Remote(e) if e.ends_cycle() => return Some(CycleError::Remote(e.clone())),
            _ => None,
        };
        let why = match e {
            // Read first, it has the same failure again if that was not for want of its digest, and rests then.
            _ if step.action == Action::UploadUnread => {
                self.read_first.insert(step.path.clone());
                self.look_again(&step.path);
                report.again = true;
                return fatal;
            }
            StepError::Changed => {
                self.look_again(&step.path);
                report.again = true;
                return None;
            }
            StepError::Remote(e) | StepError::Forbidden(e) => e.to_string(),
            StepError::Local(e) => format!("{e}; {}", remedy(&e)),
        };
        self.quarantine_step(step, why, false, report);
        fatal
    }

    /// Nobody answered a request for `path`. The index was answered in this cycle, so that it may be for the path's
    /// sake; where the same happens to another path, and nothing was answered in between, the proxy is gone and the
    /// cycle cannot go on.
    fn unanswered(&mut self, path: &RelPath, e: &RemoteError) -> Option<CycleError> {
        let first = !self.quarantine.iter().any(|(p, _)| p == path) && !self.read_first.contains(path);
        let last = self.unanswered.replace(Unanswered { path: path.clone(), error: e.clone(), first });
        last.filter(|last| last.path != *path).map(|_| CycleError::Remote(e.clone()))
    }

    /// The next scan must read it, whatever its stat says.
    pub(super) fn look_again(&mut self, path: &RelPath) {
        let size = self.tree.found().get(path).map_or(0, |f| f.size);
        let found = LocalEntry { local: LocalState::Unknown(SkipReason::Changing), stat: None, size };
        self.tree.put(path.clone(), Some(found));
    }

    /// `open`: a program has the file open, and it will do when that closes it.
    pub(super) fn quarantine_step(&mut self, step: &PlanStep, why: String, open: bool, report: &mut Report) {
        let content = match self.tree.found().get(&step.path).map(|f| &f.local) {
            Some(LocalState::File(md5)) => Some(*md5),
            _ => None,
        };
        let (now, random) = (self.world.elapsed(), self.world.random());
        report.recent.push(Recent {
            path: step.path.clone(),
            action: verb(&step.action),
            outcome: why.clone(),
            device: None,
        });
        report.failed += 1;
        self.quarantine.fail(&step.path, content, why, open, now, random);
    }
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
