//! One schedule: the acts of users, devices and proxy, and the failures, drawn from a seed.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use memsync::agent::CycleError;
use memsync::local::history::HistoryLimits;
use memsync::path::RelPath;
use memsync::remote::FetchedIndex;
use memsync::state::StateFormat;
use memsync::sync::{Action, Plan, Precondition};
use memsync::testing::{DiskStep, FakeBackup, FakeConfig, FakeFaults, FakeServer, StepFate, StepKind, TombstoneKind};

use crate::settle::{Calm, settle};
use crate::users::{Ledger, user_acts};
use crate::world::{Device, SimClock};

/// A planted bug, which a schedule must catch. Two are in the plan, the others in the world around the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    IndexMd5OnUpload,
    IndexMd5OnDelete,
    BaseBeforeFsync,
    UnlinkWithoutVerify,
    PlainTombstoneTrusted,
    UnreadableIsDeleted,
    IndexVersionOnUpload,
    DetachedIsDeleted,
}

/// The circumstances of a schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// The bug that this world gives the best chance to show.
    pub bug: Option<Bug>,
    /// True if that bug is planted. Without it the same schedule must be clean.
    pub planted: bool,
    /// True if files are lists of lines, which merges can join. Then no line may be lost.
    pub has_lines: bool,
    pub offers: Offers,
}

/// The features of a schedule's proxy beyond the plain protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offers {
    pub batch: bool,
    /// It answers with the changes of a plain index (`etag-delta`).
    pub etag_delta: bool,
    /// A proxy of another kind, which loses a third of simultaneous index updates. Only the agents repair its index.
    pub is_foreign: bool,
    /// Its devices have slow links: a transfer may take longer than a cycle waits.
    pub is_slow: bool,
}

/// Prunes the whole history.
const EVERYTHING: HistoryLimits = HistoryLimits { keep: Some(Duration::ZERO), max_size: 0 };

const NAMES: &[&str] = &["a.md", "b.md", "n/c.md", "n/d.md", "n/m/e.json", "f"];
/// Paths in which a file and a folder claim one name.
const CLASHING: &[&str] = &["f", "f/g.md", "n", "n/c.md", "a.md"];
/// Enough paths for the gate `mass_delete`.
const MANY: &[&str] = &[
    "n/0.md", "n/1.md", "n/2.md", "n/3.md", "n/4.md", "n/5.md", "n/6.md", "n/7.md", "n/8.md", "n/9.md", "n/a.md",
    "n/m/b.md", "c.md",
];

fn config(rng: &mut Rng, bug: Option<Bug>, offers: Offers) -> FakeConfig {
    let strong = bug != Some(Bug::PlainTombstoneTrusted) && rng.bool() && !offers.is_foreign;
    let p = |rng: &mut Rng, max: f64| if rng.bool() { rng.f64() * max } else { 0.0 };
    let faults = FakeFaults {
        lost_reply: p(rng, 0.2),
        lost_request: p(rng, 0.2),
        unavailable: p(rng, 0.1),
        index_stale: p(rng, 0.5),
        index_clobbered: if offers.is_foreign { 1.0 / 3.0 } else { p(rng, 0.3) },
        index_emptied: p(rng, 0.2),
        index_resurrected: p(rng, 0.3),
    };
    // Only a proxy with tombstones lets a deletion be repeated.
    let exists = offers.is_foreign || !(strong || rng.bool());
    FakeConfig {
        strong,
        etag_delta: offers.etag_delta,
        tombstones: if exists { TombstoneKind::Exists } else { TombstoneKind::Absent },
        honest: strong || rng.bool(),
        versions: false,
        faults,
        keeps_versions: !offers.is_foreign,
        batch: offers.batch,
        yields: 0.5,
    }
}

/// Every third schedule has folders with a namespace, whose preconditions are versions.
fn compares_versions(seed: u64, bug: Option<Bug>) -> bool {
    match bug {
        Some(bug) => bug == Bug::IndexVersionOnUpload,
        None => seed.is_multiple_of(3),
    }
}

/// Every fifth schedule adds and removes ignore rules.
fn changes_rules(seed: u64, bug: Option<Bug>) -> bool {
    match bug {
        Some(bug) => bug == Bug::DetachedIsDeleted,
        None => seed % 5 == 2,
    }
}

/// Paths of ignore rules.
const RULES: &[&str] = &["a.md", "b.md", "n", "n/c.md", "n/m", "f", "o"];

/// Adds or removes an ignore rule of a device.
fn change_rules(device: &Device, rng: &mut Rng, ledger: &Mutex<Ledger>) {
    let rule = RULES[rng.usize(..RULES.len())];
    let wanted = &mut device.rules.lock().unwrap().wanted;
    if !wanted.remove(rule) {
        wanted.insert(rule.to_owned());
    }
    ledger.lock().unwrap().say(|| format!("  {}'s rules become {wanted:?}", device.name));
}

/// New files of this size or more are read once, while they are uploaded.
fn unread_from(seed: u64) -> u64 {
    if seed % 4 == 1 { 0 } else { u64::MAX }
}

/// Row 18 of a naive client: it uploads an edited file over any content that the index names.
fn upload_with_index_md5(plan: &mut Plan, index: &FetchedIndex) {
    for step in &mut plan.steps {
        if let Action::Conflict { local, base: Some(_) } = step.action
            && let Some(entry) = index.files.get(&step.path)
        {
            step.action = Action::Upload { local, precondition: Precondition::Holds(entry.md5), tombstone: None };
        }
    }
}

/// Row 11 of a naive client: it deletes on the proxy although the index names other content.
fn delete_with_index_md5(plan: &mut Plan, index: &FetchedIndex) {
    for step in &mut plan.steps {
        if let (11, Some(entry)) = (step.row, index.files.get(&step.path)) {
            step.action = Action::DeleteRemote { base: entry.md5 };
        }
    }
}

/// Row 21 of a client that does not remember which paths left the scope.
fn delete_what_is_detached(plan: &mut Plan, _: &FetchedIndex) {
    for step in &mut plan.steps {
        if let (21, Action::Download { remote }) = (step.row, &step.action) {
            step.action = Action::DeleteRemote { base: *remote };
        }
    }
}

/// A schedule in progress.
struct Schedule {
    rng: Rng,
    ledger: Arc<Mutex<Ledger>>,
    config: FakeConfig,
    server: FakeServer,
    clock: SimClock,
    devices: Vec<Device>,
    names: &'static [&'static str],
    /// 0 to 3: the failures that happen.
    misfortune: u8,
    /// The content of the server at some earlier time.
    backup: FakeBackup,
}

/// One event at the device with this index.
type Event = fn(&mut Schedule, usize) -> Result<(), String>;

/// The events with their weights, which sum up to 100, and the least misfortune that they need. Below it the device is
/// tidied instead.
const EVENTS: &[(u8, u8, Event)] = &[
    (20, 0, Schedule::user_acts),
    (67, 0, Schedule::engine_steps),
    (1, 0, Schedule::user_decides),
    (1, 0, Schedule::disk_fills),
    (1, 0, Schedule::history_is_pruned),
    (2, 1, Schedule::device_is_killed),
    (2, 2, Schedule::power_is_cut),
    (1, 3, Schedule::state_is_lost),
    (1, 0, Schedule::path_becomes_unreadable),
    (1, 0, Schedule::server_deletes),
    (1, 0, Schedule::server_gets_content),
    (1, 0, Schedule::server_goes_back),
    (1, 0, Schedule::device_is_tidied),
];

/// The event that a draw of 0 to 99 selects.
fn event(draw: u8, misfortune: u8) -> Event {
    let mut end = 0;
    for (weight, least_misfortune, event) in EVENTS {
        end += weight;
        if draw < end {
            return if misfortune >= *least_misfortune { *event } else { Schedule::device_is_tidied };
        }
    }
    unreachable!("the weights sum up to 100")
}

/// Runs the schedule of one seed.
///
/// # Errors
/// Names the broken invariant and the evidence.
pub(crate) fn run(seed: u64, setting: Setting) -> Result<(), String> {
    let bug = setting.bug;
    let mut rng = Rng::with_seed(seed);
    let trace = std::env::var_os("MEMSYNC_SIM_TRACE").is_some();
    let config = FakeConfig { versions: compares_versions(seed, bug), ..config(&mut rng, bug, setting.offers) };
    let (clash, names) = match rng.u8(..8) {
        0 => (true, CLASHING),
        1 => (false, MANY),
        _ => (false, NAMES),
    };
    let misfortune = rng.u8(..4);
    let clock = SimClock::default();
    clock.advance(60_000);
    let server = FakeServer::new(config, rng.u64(..));
    let devices: Vec<Device> = (0..rng.usize(2..=4)).map(|number| Device::new(number, unread_from(seed))).collect();
    if trace {
        println!("{config:?}, {} devices, clash: {clash}, misfortune {misfortune}", devices.len());
    }
    let backup = server.backup();
    let ledger = Arc::new(Mutex::new(Ledger::new(setting.has_lines, trace)));
    let mut schedule = Schedule { rng, ledger, config, server, clock, devices, names, misfortune, backup };
    schedule.prepare(setting)?;
    // A random source of its own, so that schedules without rules stay the same.
    let mut rules = (changes_rules(seed, bug) && !setting.has_lines).then(|| Rng::with_seed(seed ^ 0x7275_6c65_7300));
    for _ in 0..schedule.rng.usize(20..120) {
        schedule.next_event(rules.as_mut())?;
    }
    let Schedule { devices, server, clock, ledger, .. } = schedule;
    let world = Calm {
        server: &server,
        clock: &clock,
        clash,
        is_foreign: setting.offers.is_foreign,
        merges: setting.has_lines,
    };
    settle(devices, &world, &ledger.lock().unwrap())
}

impl Schedule {
    fn say(&self, what: impl FnOnce() -> String) {
        self.ledger.lock().unwrap().say(what);
    }

    fn any_name(&mut self) -> &'static str {
        self.names[self.rng.usize(..self.names.len())]
    }

    /// Plants the bug, sets the hooks, and writes the first files.
    fn prepare(&mut self, setting: Setting) -> Result<(), String> {
        let Setting { bug, planted, offers, .. } = setting;
        let planted = bug.filter(|_| planted);
        self.server.plant_trusted_tombstone(planted == Some(Bug::PlainTombstoneTrusted));
        for device in &mut self.devices {
            if self.rng.bool() {
                device.format = StateFormat::MsgPack;
            }
            device.is_slow.store(offers.is_slow, Ordering::Relaxed);
            if bug == Some(Bug::BaseBeforeFsync) {
                // From here on, only content of the first start is durable.
                device.ensure_engine(&self.server, &self.clock)?;
                device.disk.plant_no_fsync(planted == bug);
            }
            device.disk.plant_unverified_displace(planted == Some(Bug::UnlinkWithoutVerify));
            device.disk.plant_unreadable_is_absent(planted == Some(Bug::UnreadableIsDeleted));
            device.sabotage = match planted {
                // With versions as preconditions, the plan takes the index's version with its MD5.
                Some(Bug::IndexMd5OnUpload | Bug::IndexVersionOnUpload) => Some(upload_with_index_md5),
                Some(Bug::IndexMd5OnDelete) => Some(delete_with_index_md5),
                Some(Bug::DetachedIsDeleted) => Some(delete_what_is_detached),
                _ => None,
            };
            hooks(device, self.names, &mut self.rng, &self.ledger, self.misfortune);
        }
        if self.names == MANY {
            for name in MANY {
                let mut ledger = self.ledger.lock().unwrap();
                let content = ledger.fresh(None, &mut self.rng);
                self.devices[0].disk.user_write(name, content.clone()).map_err(|e| e.to_string())?;
                ledger.wrote(&content, None, true);
            }
        }
        Ok(())
    }

    /// Draws a device and an event.
    fn next_event(&mut self, rules: Option<&mut Rng>) -> Result<(), String> {
        self.clock.advance(self.rng.u64(1..200));
        self.devices.iter().for_each(|d| d.set_time(&self.clock));
        let at = self.rng.usize(..self.devices.len());
        if let Some(rng) = rules
            && rng.u8(..8) == 0
        {
            change_rules(&self.devices[at], rng, &self.ledger);
        }
        event(self.rng.u8(..100), self.misfortune)(self, at)
    }

    fn user_acts(&mut self, at: usize) -> Result<(), String> {
        let device = &self.devices[at];
        let mut ledger = self.ledger.lock().unwrap();
        ledger.left_out = device.left_out(&self.server);
        // A power cut can tear the lines that a volatile write repeats, and no program can distinguish that from an edit.
        let volatile = self.misfortune > 1 && !ledger.has_lines;
        let touched = user_acts(&device.disk, &device.name, self.names, &mut self.rng, &mut ledger, volatile);
        ledger.left_out.clear();
        device.touched.lock().unwrap().merge(touched);
        Ok(())
    }

    fn engine_steps(&mut self, at: usize) -> Result<(), String> {
        step(&mut self.devices[at], &self.server, &self.clock, &mut self.rng, &self.ledger)
    }

    fn user_decides(&mut self, at: usize) -> Result<(), String> {
        if self.devices[at].decide(|| self.rng.bool()) > 0 {
            self.say(|| format!("  {}'s user decides", self.devices[at].name));
        }
        Ok(())
    }

    fn disk_fills(&mut self, at: usize) -> Result<(), String> {
        let full = self.misfortune > 0 && self.rng.bool();
        self.say(|| format!("  {}'s disk is full: {full}", self.devices[at].name));
        self.devices[at].full.store(full, Ordering::Relaxed);
        Ok(())
    }

    fn history_is_pruned(&mut self, at: usize) -> Result<(), String> {
        let device = &mut self.devices[at];
        let history = device.history();
        if let Some(engine) = device.engine()
            && self.rng.u8(..4) == 0
            && engine.folder().prune(EVERYTHING, jiff::Timestamp::MAX).failed.is_empty()
        {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.say(|| format!("  {}'s history is pruned", device.name));
            let pruned = ledger.parts_of_all(history.into_values());
            ledger.pruned.extend(pruned);
        }
        Ok(())
    }

    fn device_is_killed(&mut self, at: usize) -> Result<(), String> {
        self.say(|| format!("  {} is killed", self.devices[at].name));
        self.devices[at].kill();
        Ok(())
    }

    fn power_is_cut(&mut self, at: usize) -> Result<(), String> {
        let device = &mut self.devices[at];
        let before = device.contents();
        device.power_cut(&mut self.rng);
        let mut ledger = self.ledger.lock().unwrap();
        ledger.power_cut(device, &before, &self.server);
        ledger.say(|| format!("  {} loses its power: {:?}", device.name, device.disk.user_tree("")));
        *device.touched.lock().unwrap() = memsync::local::ScanScope::default();
        Ok(())
    }

    fn state_is_lost(&mut self, at: usize) -> Result<(), String> {
        self.say(|| format!("  {} loses its state", self.devices[at].name));
        self.devices[at].lose_state();
        Ok(())
    }

    fn path_becomes_unreadable(&mut self, at: usize) -> Result<(), String> {
        let path = if self.rng.u8(..4) == 0 { "n" } else { self.any_name() };
        let on = self.rng.bool();
        let device = &self.devices[at];
        device.touched.lock().unwrap().subtrees.insert(path.to_owned());
        if device.disk.set_unreadable(path, on).is_ok() {
            self.say(|| format!("  {}: {path} unreadable: {on}", device.name));
        }
        Ok(())
    }

    fn server_deletes(&mut self, _: usize) -> Result<(), String> {
        let path = RelPath::parse(self.any_name()).unwrap();
        let before = self.server.contents().get(&path).cloned();
        if before.is_some() && self.server.server_delete(&path) {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.say(|| format!("  another client deletes {path} on the server"));
            ledger.released(before, None);
        }
        Ok(())
    }

    fn server_gets_content(&mut self, _: usize) -> Result<(), String> {
        let path = RelPath::parse(self.any_name()).unwrap();
        let mut ledger = self.ledger.lock().unwrap();
        let before = self.server.contents().get(&path).cloned();
        let content = ledger.fresh(before.as_ref(), &mut self.rng);
        ledger.say(|| format!("  another client puts {path} = {content:?} on the server"));
        ledger.released(before.clone(), Some(&content));
        self.server.foreign_put(&path, content.clone());
        ledger.wrote(&content, before.as_ref(), true);
        Ok(())
    }

    /// Backs the server up, expires tombstones, or sets it back. Only a strong server can be told from its past.
    fn server_goes_back(&mut self, at: usize) -> Result<(), String> {
        if !self.config.strong {
            return self.device_is_tidied(at);
        }
        if self.rng.bool() {
            self.backup = self.server.backup();
        } else if self.rng.bool() {
            let cursor = self.rng.u64(..=self.server.cursor());
            self.say(|| format!("  the server forgets its tombstones up to {cursor}"));
            self.server.forget_tombstones(cursor);
        } else if self.rng.bool() {
            self.say(|| "  the server is set back".to_owned());
            self.server.reset(Some(self.backup.clone()));
            self.ledger.lock().unwrap().server_reset(&self.devices, &self.server);
        } else {
            self.server.set_faults(FakeFaults::default());
            set_back(&mut self.devices, &self.server, &self.clock, &self.backup, &self.ledger)?;
            self.server.set_faults(self.config.faults);
            for device in &mut self.devices {
                hooks(device, self.names, &mut self.rng, &self.ledger, self.misfortune);
            }
        }
        Ok(())
    }

    fn device_is_tidied(&mut self, at: usize) -> Result<(), String> {
        self.devices[at].tidy();
        Ok(())
    }
}

/// Sets the server's disk back to an earlier day, with the same epoch. Devices notice it by the point of the server's
/// history that they agreed with. A device notes that point in the cycle after its last write. So each device first
/// ends its transfers and runs two cycles.
fn set_back(
    devices: &mut [Device],
    server: &FakeServer,
    clock: &SimClock,
    to: &FakeBackup,
    ledger: &Mutex<Ledger>,
) -> Result<(), String> {
    for device in devices.iter_mut() {
        device.disk.set_hook(None);
        device.state.set_hook(None);
        device.full.store(false, Ordering::Relaxed);
        while device.cycling() {
            device.poll();
        }
        if !device.alive() {
            device.kill();
        }
        if !device.ensure_engine(server, clock)? {
            return Ok(());
        }
        let was_slow = device.is_slow.load(Ordering::Relaxed);
        device.finish_transfers();
        for _ in 0..2 {
            match device.cycle_to_end(true) {
                Some(Ok(_) | Err(CycleError::Halted(_))) => device.tidy(),
                other => return Err(format!("{}: a cycle in calm came to {other:?}", device.name)),
            }
        }
        device.is_slow.store(was_slow, Ordering::Relaxed);
    }
    server.set_back(to.clone());
    ledger.lock().unwrap().say(|| "  the server is set back, and does not know it".to_owned());
    ledger.lock().unwrap().server_reset(devices, server);
    Ok(())
}

/// One act of a device's engine: start it, start a cycle, or continue one.
fn step(
    device: &mut Device,
    server: &FakeServer,
    clock: &SimClock,
    rng: &mut Rng,
    ledger: &Arc<Mutex<Ledger>>,
) -> Result<(), String> {
    if !device.alive() {
        device.kill();
    }
    if !device.ensure_engine(server, clock)? {
        device.kill();
        return Ok(());
    }
    if !device.cycling() {
        if device.is_slow.load(Ordering::Relaxed) {
            device.transfer(rng.usize(..4));
        }
        ledger.lock().unwrap().say(|| format!("{} starts a cycle", device.name));
        device.start_cycle(rng.u8(..4) == 0);
    }
    for _ in 0..rng.usize(1..30) {
        if let Some(result) = device.poll() {
            let tree = device.disk.user_tree("");
            ledger.lock().unwrap().say(|| format!("   {} now holds {tree:?}", device.name));
            ledger.lock().unwrap().say(|| match &result {
                Ok(r) => format!("{} ends a cycle: {:?}", device.name, r.recent),
                Err(e) => format!("{} ends a cycle: {e}", device.name),
            });
            break;
        }
    }
    if !device.alive() {
        device.kill();
    }
    Ok(())
}

/// Races: users act, disks fill up and processes die between any two disk operations of the engine.
fn hooks(
    device: &mut Device,
    names: &'static [&'static str],
    rng: &mut Rng,
    ledger: &Arc<Mutex<Ledger>>,
    misfortune: u8,
) {
    let race = [0u16, 2, 8, 20][rng.usize(..4)];
    let deadly = if misfortune > 0 { rng.u16(..4) } else { 0 };
    // Without an exchange a path is free for a moment. A user who writes it then replaces lines that nobody sees.
    let no_exchange = rng.u8(..4) == 0 && !ledger.lock().unwrap().has_lines;
    let full = device.full.clone();
    let fails = move |op: &DiskStep<'_>, rng: &mut Rng| {
        let grows = matches!(
            op.kind,
            StepKind::Create | StepKind::Append | StepKind::Mkdir | StepKind::Write | StepKind::RenameNew
        );
        (grows && full.load(Ordering::Relaxed) && rng.u8(..3) == 0).then_some(StepFate::Fail(ErrorKind::StorageFull))
    };

    let (name, told, touched) = (device.name.clone(), ledger.clone(), device.touched.clone());
    let (mut chance, disk_fails) = (rng.fork(), fails.clone());
    device.disk.set_hook(Some(Box::new(move |op| {
        if no_exchange && op.kind == StepKind::Exchange {
            return StepFate::Fail(ErrorKind::Unsupported);
        }
        if let Some(fails) = disk_fails(op, &mut chance) {
            return fails;
        }
        let draw = chance.u16(..1000);
        if draw < race {
            let mut ledger = told.lock().unwrap();
            ledger.say(|| format!("   race before {:?} {} {:?}", op.kind, op.path, op.to));
            touched.lock().unwrap().merge(user_acts(op.disk, &name, names, &mut chance, &mut ledger, false));
        } else if draw < race + deadly {
            told.lock().unwrap().say(|| format!("   {name} dies before {:?} {} {:?}", op.kind, op.path, op.to));
            return StepFate::Kill;
        }
        StepFate::Go
    })));

    let (name, told, mut chance) = (device.name.clone(), ledger.clone(), rng.fork());
    device.state.set_hook(Some(Box::new(move |op| {
        if let Some(fails) = fails(op, &mut chance) {
            return fails;
        }
        if chance.u16(..1000) < deadly {
            told.lock().unwrap().say(|| format!("   {name} dies before {:?} {} of the state", op.kind, op.path));
            return StepFate::Kill;
        }
        StepFate::Go
    })));
}
