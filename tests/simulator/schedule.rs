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
pub enum Bug {
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
pub struct Setting {
    /// The bug that this world gives the best chance to show.
    pub bug: Option<Bug>,
    /// True if that bug is planted. Without it the same schedule must be clean.
    pub planted: bool,
    pub offers: Offers,
}

/// The features of a schedule's proxy beyond the plain protocol.
#[derive(Debug, Clone, Copy)]
pub struct Offers {
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

/// Runs the schedule of one seed.
///
/// # Errors
/// Names the broken invariant and the evidence.
pub fn run(seed: u64, setting: Setting) -> Result<(), String> {
    let Setting { bug, planted, offers } = setting;
    let planted = bug.filter(|_| planted);
    let mut rng = Rng::with_seed(seed);
    let trace = std::env::var_os("MEMSYNC_SIM_TRACE").is_some();
    let ledger = Arc::new(Mutex::new(Ledger::new(trace)));
    let config = FakeConfig { versions: compares_versions(seed, bug), ..config(&mut rng, bug, offers) };
    let (clash, names) = match rng.u8(..8) {
        0 => (true, CLASHING),
        1 => (false, MANY),
        _ => (false, NAMES),
    };
    let misfortune = rng.u8(..4);
    let clock = SimClock::default();
    clock.advance(60_000);
    let server = FakeServer::new(config, rng.u64(..));
    let mut devices: Vec<Device> = (0..rng.usize(2..=4)).map(|number| Device::new(number, unread_from(seed))).collect();
    if trace {
        println!("{config:?}, {} devices, clash: {clash}, misfortune {misfortune}", devices.len());
    }
    server.plant_trusted_tombstone(planted == Some(Bug::PlainTombstoneTrusted));
    for device in &mut devices {
        if rng.bool() {
            device.format = StateFormat::MsgPack;
        }
        device.is_slow.store(offers.is_slow, Ordering::Relaxed);
        if bug == Some(Bug::BaseBeforeFsync) {
            // From here on, only content of the first start is durable.
            device.ensure_engine(&server, &clock)?;
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
        hooks(device, names, &mut rng, &ledger, misfortune);
    }
    if names == MANY {
        for name in MANY {
            let mut ledger = ledger.lock().unwrap();
            let content = ledger.fresh(&mut rng);
            devices[0].disk.user_write(name, content.clone()).map_err(|e| e.to_string())?;
            ledger.wrote(&content, true);
        }
    }
    let mut backup = server.backup();
    let ledger = &ledger;
    // A random source of its own, so that schedules without rules stay the same.
    let mut rules = changes_rules(seed, bug).then(|| Rng::with_seed(seed ^ 0x7275_6c65_7300));

    let steps = rng.usize(20..120);
    for _ in 0..steps {
        clock.advance(rng.u64(1..200));
        devices.iter().for_each(|d| d.set_time(&clock));
        let at = rng.usize(..devices.len());
        let device = &mut devices[at];
        if let Some(rng) = &mut rules
            && rng.u8(..8) == 0
        {
            change_rules(device, rng, ledger);
        }
        match rng.u8(..100) {
            0..=19 => {
                let mut ledger = ledger.lock().unwrap();
                ledger.left_out = device.left_out(&server);
                let touched = user_acts(&device.disk, &device.name, names, &mut rng, &mut ledger, misfortune > 1);
                ledger.left_out.clear();
                device.touched.lock().unwrap().merge(touched);
            }
            20..=86 => step(device, &server, &clock, &mut rng, ledger)?,
            87 => {
                if device.decide(|| rng.bool()) > 0 {
                    ledger.lock().unwrap().say(|| format!("  {}'s user decides", device.name));
                }
            }
            88 => {
                let full = misfortune > 0 && rng.bool();
                ledger.lock().unwrap().say(|| format!("  {}'s disk is full: {full}", device.name));
                device.full.store(full, Ordering::Relaxed);
            }
            89 => {
                let history = device.history();
                if let Some(engine) = device.engine()
                    && rng.u8(..4) == 0
                    && engine.folder().prune(EVERYTHING, jiff::Timestamp::MAX).failed.is_empty()
                {
                    let mut ledger = ledger.lock().unwrap();
                    ledger.say(|| format!("  {}'s history is pruned", device.name));
                    ledger.pruned.extend(history.into_values());
                }
            }
            90 | 91 if misfortune > 0 => {
                ledger.lock().unwrap().say(|| format!("  {} is killed", device.name));
                device.kill();
            }
            92 | 93 if misfortune > 1 => {
                let before = device.contents();
                device.power_cut(&mut rng);
                let mut ledger = ledger.lock().unwrap();
                ledger.power_cut(device, &before, &server);
                ledger.say(|| format!("  {} loses its power: {:?}", device.name, device.disk.user_tree("")));
                *device.touched.lock().unwrap() = memsync::local::ScanScope::default();
            }
            94 if misfortune > 2 => {
                ledger.lock().unwrap().say(|| format!("  {} loses its state", device.name));
                device.lose_state();
            }
            95 => {
                let path = if rng.u8(..4) == 0 { "n" } else { names[rng.usize(..names.len())] };
                let on = rng.bool();
                device.touched.lock().unwrap().subtrees.insert(path.to_owned());
                if device.disk.set_unreadable(path, on).is_ok() {
                    ledger.lock().unwrap().say(|| format!("  {}: {path} unreadable: {on}", device.name));
                }
            }
            96 => {
                let path = RelPath::parse(names[rng.usize(..names.len())]).unwrap();
                let before = server.contents().get(&path).cloned();
                if before.is_some() && server.server_delete(&path) {
                    let mut ledger = ledger.lock().unwrap();
                    ledger.say(|| format!("  somebody deletes {path} on the server"));
                    ledger.released(before);
                }
            }
            97 => {
                let path = RelPath::parse(names[rng.usize(..names.len())]).unwrap();
                let mut ledger = ledger.lock().unwrap();
                let content = ledger.fresh(&mut rng);
                let before = server.contents().get(&path).cloned();
                ledger.say(|| format!("  somebody puts {path} = {content:?} on the server"));
                if before.as_ref() != Some(&content) {
                    ledger.released(before);
                }
                server.foreign_put(&path, content.clone());
                ledger.wrote(&content, true);
            }
            98 if config.strong => {
                if rng.bool() {
                    backup = server.backup();
                } else if rng.bool() {
                    let cursor = rng.u64(..=server.cursor());
                    ledger.lock().unwrap().say(|| format!("  the server forgets its tombstones up to {cursor}"));
                    server.forget_tombstones(cursor);
                } else if rng.bool() {
                    ledger.lock().unwrap().say(|| "  the server is set back".to_owned());
                    server.reset(Some(backup.clone()));
                    ledger.lock().unwrap().server_reset(&devices, &server);
                } else {
                    server.set_faults(FakeFaults::default());
                    set_back(&mut devices, &server, &clock, &backup, ledger)?;
                    server.set_faults(config.faults);
                    devices.iter_mut().for_each(|device| hooks(device, names, &mut rng, ledger, misfortune));
                }
            }
            _ => device.tidy(),
        }
    }
    let world = Calm { server: &server, clock: &clock, clash, is_foreign: offers.is_foreign };
    settle(devices, &world, &ledger.lock().unwrap())
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
    let no_exchange = rng.u8(..4) == 0;
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
