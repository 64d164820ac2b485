//! One schedule: what users, devices, proxy and misfortune do, drawn from a seed, and the two invariants after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fastrand::Rng;
use memsync::disk::sim::{SimDisk, Verdict};
use memsync::path::RelPath;
use memsync::remote::Index;
use memsync::remote::fake::{Config, FakeServer, Faults, TombstoneKind};
use memsync::sync::{Action, Plan, Precondition};

use crate::world::{Device, SimClock};

/// A wrong engine; each must be caught. Two are planted in the plan, the others in the world around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    IndexMd5OnUpload,
    IndexMd5OnDelete,
    BaseBeforeFsync,
    UnlinkWithoutVerify,
    PlainTombstoneTrusted,
    UnreadableIsDeleted,
}

const NAMES: &[&str] = &["a.md", "b.md", "n/c.md", "n/d.md", "n/m/e.json", "f"];
/// With these a file and a folder claim one name.
const CLASHING: &[&str] = &["f", "f/g.md", "n", "n/c.md", "a.md"];

/// What users wrote and have not taken back: the oracle of invariant 1.
#[derive(Default)]
struct Ledger {
    /// Content → how often a user wrote it.
    written: BTreeMap<Bytes, usize>,
    owed: BTreeSet<Bytes>,
    next: u64,
    trace: bool,
}

impl Ledger {
    fn wrote(&mut self, content: &Bytes) {
        *self.written.entry(content.clone()).or_default() += 1;
        self.owed.insert(content.clone());
    }

    /// A user who held it replaced or deleted it.
    fn released(&mut self, content: Option<Bytes>) {
        if let Some(content) = content {
            self.owed.remove(&content);
        }
    }

    fn fresh(&mut self, rng: &mut Rng) -> Bytes {
        if rng.u8(..) < 16 && !self.written.is_empty() {
            // Content that was there before: the rows that tell our own writes from others'.
            let at = rng.usize(..self.written.len());
            return self.written.keys().nth(at).unwrap().clone();
        }
        self.next += 1;
        Bytes::from(format!("content {}", self.next))
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{}", what());
        }
    }
}

/// One thing a user does to a folder.
fn user_acts(disk: &SimDisk, who: &str, names: &[&str], rng: &mut Rng, ledger: &mut Ledger, volatile: bool) {
    let path = names[rng.usize(..names.len())];
    let here = |p: &str| disk.user_read(p).ok();
    match rng.u8(..10) {
        0..=3 => {
            let content = ledger.fresh(rng);
            let before = here(path);
            let lasting = !(volatile && rng.bool());
            let done = match (lasting, rng.bool()) {
                (false, _) => disk.user_write_volatile(path, content.clone()),
                (true, true) => disk.user_write(path, content.clone()),
                (true, false) => disk.user_replace(path, content.clone()),
            };
            if done.is_ok() {
                ledger.say(|| format!("  {who} writes {path} = {content:?} (lasting: {lasting})"));
                if before.as_ref() != Some(&content) {
                    ledger.released(before);
                }
                ledger.wrote(&content);
            }
        }
        4 | 5 => {
            let before = here(path);
            if before.is_some() && disk.user_remove(path).is_ok() {
                ledger.say(|| format!("  {who} removes {path}"));
                ledger.released(before);
            }
        }
        6 | 7 => {
            let to = names[rng.usize(..names.len())];
            let (moved, before) = (here(path), here(to));
            if path != to && moved.is_some() && disk.user_rename(path, to).is_ok() {
                ledger.say(|| format!("  {who} renames {path} to {to}"));
                if before != moved {
                    ledger.released(before);
                }
                // A rename deletes one path and writes another: two users who cross theirs delete both.
                *ledger.written.entry(moved.unwrap_or_default()).or_default() += 1;
            }
        }
        8 => {
            let dir = ["n", "n/m", "empty"][rng.usize(..3)];
            let inside = disk.user_tree(dir);
            if rng.u8(..4) == 0 && disk.user_remove_dir_all(dir).is_ok() {
                ledger.say(|| format!("  {who} removes the folder {dir}"));
                for content in inside.into_values() {
                    ledger.released(Some(content));
                }
            } else {
                let _ = disk.user_mkdir(dir);
            }
        }
        _ => {
            // Any file at all, conflict copies too.
            let tree = disk.user_tree("");
            if let Some((path, content)) = tree.iter().nth(rng.usize(..tree.len().max(1))) {
                let new = ledger.fresh(rng);
                if disk.user_replace(path, new.clone()).is_ok() {
                    ledger.say(|| format!("  {who} edits {path} = {new:?}"));
                    if new != *content {
                        ledger.released(Some(content.clone()));
                    }
                    ledger.wrote(&new);
                }
            }
        }
    }
}

fn config(rng: &mut Rng, bug: Option<Bug>) -> Config {
    let strong = bug != Some(Bug::PlainTombstoneTrusted) && rng.bool();
    let p = |rng: &mut Rng, max: f64| if rng.bool() { rng.f64() * max } else { 0.0 };
    let faults = Faults {
        lost_reply: p(rng, 0.2),
        lost_request: p(rng, 0.2),
        unavailable: p(rng, 0.1),
        index_stale: p(rng, 0.5),
        index_clobbered: p(rng, 0.3),
        index_emptied: p(rng, 0.2),
        index_resurrected: p(rng, 0.3),
    };
    Config {
        strong,
        tombstones: if strong || rng.bool() { TombstoneKind::Absent } else { TombstoneKind::Exists },
        honest: strong || rng.bool(),
        faults,
        yields: 0.5,
    }
}

/// Row 18 as a naive client has it: an edited file goes up over whatever the index names.
fn upload_with_index_md5(plan: &mut Plan, index: &Index) {
    for step in &mut plan.steps {
        if let Action::Conflict { local, base: Some(_) } = step.action
            && let Some(entry) = index.files.get(&step.path)
        {
            step.action = Action::Upload { local, precondition: Precondition::Holds(entry.md5), tombstone: None };
        }
    }
}

/// Row 11 as a naive client has it: a deleted file goes, whatever the index names now.
fn delete_with_index_md5(plan: &mut Plan, index: &Index) {
    for step in &mut plan.steps {
        if let (11, Some(entry)) = (step.row, index.files.get(&step.path)) {
            step.action = Action::DeleteRemote { base: entry.md5 };
        }
    }
}

/// Runs the schedule of one seed.
///
/// # Errors
/// Which invariant broke, and how.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let trace = std::env::var_os("MEMSYNC_SIM_TRACE").is_some();
    let ledger = Arc::new(Mutex::new(Ledger { trace, ..Ledger::default() }));
    let config = config(&mut rng, bug);
    let clash = rng.u8(..8) == 0;
    let names = if clash { CLASHING } else { NAMES };
    let misfortune = rng.u8(..4);
    let clock = SimClock::default();
    clock.advance(60_000);
    let server = FakeServer::new(config, rng.u64(..));
    let mut devices: Vec<Device> = (0..rng.usize(2..=4)).map(Device::new).collect();
    if trace {
        println!("{config:?}, {} devices, clash: {clash}, misfortune {misfortune}", devices.len());
    }
    match bug {
        Some(Bug::PlainTombstoneTrusted) => server.plant_trusted_tombstone(true),
        _ => {}
    }
    for device in &mut devices {
        if bug == Some(Bug::BaseBeforeFsync) {
            // From here on nothing is durable but what was so at the first start.
            device.ensure_engine(&server, &clock)?;
            device.disk.plant_no_fsync(true);
        }
        device.disk.plant_unverified_displace(bug == Some(Bug::UnlinkWithoutVerify));
        device.disk.plant_unreadable_is_absent(bug == Some(Bug::UnreadableIsDeleted));
        device.sabotage = match bug {
            Some(Bug::IndexMd5OnUpload) => Some(upload_with_index_md5),
            Some(Bug::IndexMd5OnDelete) => Some(delete_with_index_md5),
            _ => None,
        };
        hook(device, names, rng.fork(), &ledger, misfortune);
    }

    let steps = rng.usize(20..120);
    for _ in 0..steps {
        clock.advance(rng.u64(1..200));
        for d in &devices {
            d.disk.set_time(clock.ns());
            d.state.set_time(clock.ns());
        }
        let at = rng.usize(..devices.len());
        let device = &mut devices[at];
        match rng.u8(..100) {
            0..=19 => {
                user_acts(&device.disk, &device.name, names, &mut rng, &mut ledger.lock().unwrap(), misfortune > 1);
            }
            20..=89 => step(device, &server, &clock, &mut rng, &ledger)?,
            90 | 91 if misfortune > 0 => {
                ledger.lock().unwrap().say(|| format!("  {} is killed", device.name));
                device.kill();
            }
            92 | 93 if misfortune > 1 => {
                let before = device.disk.user_tree("");
                device.power_cut(&mut rng);
                after_power_cut(device, &before, &server, &mut ledger.lock().unwrap());
            }
            94 if misfortune > 2 => {
                ledger.lock().unwrap().say(|| format!("  {} loses its state", device.name));
                device.lose_state();
            }
            95 => {
                let path = names[rng.usize(..names.len())];
                let on = rng.bool();
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
                ledger.wrote(&content);
            }
            _ => device.tidy(),
        }
    }
    settle(devices, &server, &clock, clash, &ledger)
}

/// One move of a device's engine: start it, start a cycle, or go on with one.
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
        ledger.lock().unwrap().say(|| format!("{} starts a cycle", device.name));
        device.start_cycle();
    }
    for _ in 0..rng.usize(1..30) {
        if let Some(result) = device.poll() {
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

/// Races: users act, and processes die, between any two operations of the engine on the disk.
fn hook(
    device: &mut Device,
    names: &'static [&'static str],
    mut rng: Rng,
    ledger: &Arc<Mutex<Ledger>>,
    misfortune: u8,
) {
    let (name, ledger) = (device.name.clone(), ledger.clone());
    let race = [0u16, 2, 8, 20][rng.usize(..4)];
    let deadly = if misfortune > 0 { rng.u16(..4) } else { 0 };
    device.disk.set_hook(Some(Box::new(move |op| {
        let draw = rng.u16(..1000);
        if draw < race {
            let mut ledger = ledger.lock().unwrap();
            ledger.say(|| format!("   race before {:?} {} {:?}", op.kind, op.path, op.to));
            user_acts(op.disk, &name, names, &mut rng, &mut ledger, false);
        } else if draw < race + deadly {
            ledger.lock().unwrap().say(|| format!("   {name} dies before {:?} {} {:?}", op.kind, op.path, op.to));
            return Verdict::Kill;
        }
        Verdict::Go
    })));
}

/// What the user had not made durable may be gone with the power, unless the server had it already.
fn after_power_cut(device: &Device, before: &BTreeMap<String, Bytes>, server: &FakeServer, ledger: &mut Ledger) {
    let after: BTreeSet<Bytes> = device.disk.user_tree("").into_values().collect();
    let kept: BTreeSet<Bytes> = device.disk.user_tree(".memsync").into_values().collect();
    let ever: BTreeSet<Bytes> = server.all_ever_stored().into_values().collect();
    ledger.say(|| format!("  {} loses its power: {before:?} → {:?}", device.name, device.disk.user_tree("")));
    for content in before.values() {
        // Of content written twice, the server may have had the other copy.
        let stored = ledger.written.get(content) == Some(&1) && ever.contains(content);
        if !after.contains(content) && !kept.contains(content) && !stored {
            ledger.released(Some(content.clone()));
        }
    }
}

/// Everybody rests, the proxy is right again: all must agree soon, with nothing owed missing.
fn settle(
    mut devices: Vec<Device>,
    server: &FakeServer,
    clock: &SimClock,
    clash: bool,
    ledger: &Arc<Mutex<Ledger>>,
) -> Result<(), String> {
    server.calm();
    let ledger = ledger.lock().unwrap();
    ledger.say(|| "calm".to_owned());
    for device in &mut devices {
        device.disk.set_hook(None);
        if !device.alive() {
            device.kill();
        }
        let unreadable: Vec<String> = device.disk.user_tree("").into_keys().collect();
        for path in unreadable.iter().map(String::as_str).chain(NAMES.iter().copied()).chain(CLASHING.iter().copied()) {
            let _ = device.disk.set_unreadable(path, false);
        }
        while device.cycling() {
            device.poll();
        }
    }
    // A held plan and a conflict each take cycles of their own; what is asked for is an end.
    let mut rounds = 0;
    loop {
        let before: Vec<_> = devices.iter().map(|d| d.disk.user_tree("")).collect();
        let writes = server.writes();
        for device in &mut devices {
            clock.advance(20 * 60_000);
            device.disk.set_time(clock.ns());
            device.state.set_time(clock.ns());
            if !device.ensure_engine(server, clock)? {
                return Err(format!("{} does not start in calm", device.name));
            }
            match device.cycle_to_end(true) {
                Some(Ok(report)) => {
                    ledger.say(|| format!("{}: {:?} again {}", device.name, report.recent, report.again))
                }
                Some(Err(memsync::agent::CycleError::Halted(h))) => {
                    ledger.say(|| format!("{}: halted {h:?}", device.name));
                }
                Some(Err(e)) => return Err(format!("{}: a cycle failed in calm: {e}", device.name)),
                None => return Err(format!("{}: a cycle did not end", device.name)),
            }
            device.tidy();
        }
        rounds += 1;
        let quiet = devices.iter().map(|d| d.disk.user_tree("")).eq(before) && server.writes() == writes;
        if quiet && rounds > 2 {
            break;
        }
        if rounds > 12 {
            return Err("invariant 2: they never come to rest".to_owned());
        }
    }
    let live: BTreeMap<String, Bytes> = server.contents().into_iter().map(|(p, c)| (p.to_string(), c)).collect();
    for device in &devices {
        let tree = device.disk.user_tree("");
        if !clash && tree != live {
            return Err(format!(
                "invariant 2: {} has {tree:?}, the server {live:?}; {:?}",
                device.name,
                device.problems()
            ));
        }
        let left: Vec<String> =
            device.disk.user_tree(".memsync/stage").into_keys().filter(|p| p.starts_with(".memsync/stage/")).collect();
        if !left.is_empty() {
            return Err(format!("{} left {left:?}", device.name));
        }
    }
    // A path that cannot be materialised anywhere is left alone on both sides: the proxy still has it.
    let blocked = live.into_values().filter(|_| clash);
    let trees: BTreeSet<Bytes> =
        devices.iter().flat_map(|d| d.disk.user_tree("").into_values()).chain(blocked).collect();
    let kept: BTreeSet<Bytes> = devices.iter().flat_map(|d| d.disk.user_tree(".memsync").into_values()).collect();
    for content in &ledger.owed {
        // Content that was written more than once may be taken for the copy that somebody deleted (row 7): history
        // then has it. Content that is unique has no excuse.
        let unique = ledger.written[content] == 1;
        if !trees.contains(content) && (unique || !kept.contains(content)) {
            return Err(format!("invariant 1: {content:?} is lost (in history: {})", kept.contains(content)));
        }
    }
    Ok(())
}
