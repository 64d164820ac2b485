//! The end of a schedule: all devices rest, the proxy is right again, and the invariants are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use memsync::agent::CycleError;
use memsync::digest::Md5;
use memsync::sync::Base;
use memsync::testing::{FakeFaults, FakeServer, SimDisk, StepFate};

use crate::users::Ledger;
use crate::world::{Device, SimClock};

/// The rounds that may still write something after the last act. A round is one cycle of each device. A device needs up
/// to three cycles: a file is missed, missed again, and a conflict copy goes up. The others need two more: one to obey,
/// and one for a folder that becomes empty.
const ROUNDS: usize = 5;
/// The same if a file and a folder claim one name. The new file goes up only after the deletion of the old one was
/// acknowledged, and two devices may have different files for the place. A scan misses the old file (1), it is deleted
/// (2), the others delete it (3), they upload to its place (4), the copy of the slower one goes up (5) and comes down
/// (6).
const CLASH_ROUNDS: usize = 6;

/// More rounds if files are merged: a device whose upload comes too late merges again, once for each other device.
const MERGE_ROUNDS: usize = 3;

/// The world in which the devices come to rest.
pub(crate) struct Calm<'a> {
    pub server: &'a FakeServer,
    pub clock: &'a SimClock,
    /// A file and a folder claim one name.
    pub clash: bool,
    /// The agents must heal the index.
    pub is_foreign: bool,
    /// Files are merged.
    pub merges: bool,
}

/// All devices must soon agree, lose nothing, and then write nothing.
pub(crate) fn settle(mut devices: Vec<Device>, calm: &Calm<'_>, ledger: &Ledger) -> Result<(), String> {
    let Calm { server, clock, clash, is_foreign, .. } = *calm;
    if is_foreign {
        server.set_faults(FakeFaults::default());
    } else {
        server.calm();
    }
    ledger.say(|| "calm".to_owned());
    for device in &mut devices {
        device.disk.set_hook(None);
        device.state.set_hook(None);
        device.full.store(false, Ordering::Relaxed);
        device.rules.lock().unwrap().wanted.clear();
        if !device.alive() {
            device.kill();
        }
        all_readable(&device.disk);
        while device.cycling() {
            device.poll();
        }
        device.finish_transfers();
    }
    if is_foreign {
        for device in &mut devices {
            device.set_time(clock);
            if !device.ensure_engine(server, clock)? {
                return Err(format!("{} does not start in calm", device.name));
            }
        }
        leave_what_agents_can_heal(&mut devices, server);
    }
    come_to_rest(&mut devices, calm, ledger)?;
    agree(&devices, server, clash)?;
    be_still(&mut devices, server, clock)?;
    nothing_lost(&devices, server, clash, ledger)
}

/// Repairs only the wrong entries that no agent knows of, because its state is lost or another client wrote. Agents
/// heal the others: a missing entry of a file, and a live entry of a deletion. A missing tombstone is no evidence for
/// an agent.
fn leave_what_agents_can_heal(devices: &mut [Device], server: &FakeServer) {
    let mut known = BTreeSet::new();
    for device in devices.iter_mut() {
        let here = device.disk.user_tree("");
        let Some(engine) = device.engine() else { continue };
        for (path, entry) in engine.container().entries() {
            let local = here.get(path.as_str()).map(|content| Md5::of(content));
            let evidence = match entry.base {
                Base::Synced(md5) if local == Some(md5) => Some((path.clone(), md5, false)),
                Base::Seen(md5) if local.is_none() => Some((path.clone(), md5, true)),
                _ => None,
            };
            known.extend(evidence);
        }
    }
    server.mend_index(|path, truth, wrong| {
        let is_evident = !truth.is_deleted || wrong.is_some_and(|entry| !entry.is_deleted);
        is_evident && known.contains(&(path.clone(), truth.md5, truth.is_deleted))
    });
}

fn all_readable(disk: &SimDisk) {
    let private = disk.user_tree(".memsync").into_keys();
    for path in disk.user_tree("").into_keys().chain(private).chain(["n", "o"].map(str::to_owned)) {
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let _ = disk.set_unreadable(&path[..end], false);
        }
    }
}

fn come_to_rest(devices: &mut [Device], calm: &Calm<'_>, ledger: &Ledger) -> Result<(), String> {
    let Calm { server, clock, clash, is_foreign, merges } = *calm;
    let most = if clash { CLASH_ROUNDS } else { ROUNDS } + if merges { MERGE_ROUNDS } else { 0 };
    let (mut rounds, mut calm_since) = (0, 0);
    loop {
        let before: Vec<_> = devices.iter().map(|d| d.disk.user_tree("")).collect();
        let writes = server.writes();
        let mut decided = 0;
        // A cycle that asks for another one has work left, even if it wrote nothing.
        let mut again = false;
        for device in devices.iter_mut() {
            clock.advance(20 * 60_000);
            device.set_time(clock);
            if !device.ensure_engine(server, clock)? {
                return Err(format!("{} does not start in calm", device.name));
            }
            match device.cycle_to_end(true) {
                Some(Ok(report)) => {
                    again |= report.again;
                    ledger.say(|| {
                        format!(
                            "{}: {:?} adopted {} blocked {:?} again {}",
                            device.name, report.recent, report.adopted, report.blocked, report.again
                        )
                    });
                }
                Some(Err(CycleError::Halted(h))) => ledger.say(|| format!("{}: halted {h:?}", device.name)),
                Some(Err(e)) => return Err(format!("{}: a cycle failed in calm: {e}", device.name)),
                None => return Err(format!("{}: a cycle did not end", device.name)),
            }
            decided += device.decide(|| true);
            device.tidy();
        }
        rounds += 1;
        if decided > 0 {
            calm_since = rounds;
            if is_foreign {
                // Approving a reset forgets the tombstones that the device obeyed.
                leave_what_agents_can_heal(devices, server);
            }
        }
        let quiet = devices.iter().map(|d| d.disk.user_tree("")).eq(before) && server.writes() == writes;
        if quiet && !again && decided == 0 && rounds > 2 {
            if rounds - 1 - calm_since > most {
                return Err(format!("invariant 2: it took them {} rounds", rounds - 1 - calm_since));
            }
            return Ok(());
        }
        if rounds > 12 {
            return Err("invariant 2: they never come to rest".to_owned());
        }
    }
}

fn agree(devices: &[Device], server: &FakeServer, clash: bool) -> Result<(), String> {
    let live: BTreeMap<String, Bytes> = server.contents().into_iter().map(|(p, c)| (p.to_string(), c)).collect();
    for device in devices {
        let tree = device.disk.user_tree("");
        if !clash && tree != live {
            return Err(format!(
                "invariant 2: {} has {tree:?}, the server {live:?}; {:?}",
                device.name,
                device.problems()
            ));
        }
        if !clash && !device.problems().is_empty() {
            return Err(format!("{} still tells of {:?}", device.name, device.problems()));
        }
        let left: Vec<String> =
            device.disk.user_tree(".memsync/stage").into_keys().filter(|p| p.starts_with(".memsync/stage/")).collect();
        if !left.is_empty() {
            return Err(format!("{} left {left:?}", device.name));
        }
        match device.disk.user_read(".memsync/id") {
            Ok(id) if id == format!("id-{}\n", device.number) => {}
            other => return Err(format!("{} has another identity: {other:?}", device.name)),
        }
    }
    Ok(())
}

/// Invariant 2: once all devices agree, a cycle writes nothing.
fn be_still(devices: &mut [Device], server: &FakeServer, clock: &SimClock) -> Result<(), String> {
    let writes = server.writes();
    for device in devices {
        let wrote = Arc::new(Mutex::new(Vec::new()));
        for disk in [&device.disk, &device.state] {
            let wrote = wrote.clone();
            disk.set_hook(Some(Box::new(move |op| {
                if op.kind.writes() {
                    wrote.lock().unwrap().push(format!("{:?} {}", op.kind, op.path));
                }
                StepFate::Go
            })));
        }
        for full in [true, false] {
            clock.advance(20 * 60_000);
            device.set_time(clock);
            match device.cycle_to_end(full) {
                Some(Ok(report)) if !report.again => {}
                other => return Err(format!("{}: an idle cycle came to {other:?}", device.name)),
            }
            device.tidy();
        }
        device.disk.set_hook(None);
        device.state.set_hook(None);
        let wrote = wrote.lock().unwrap();
        if !wrote.is_empty() || server.writes() > writes {
            return Err(format!("invariant 2: {} wrote in idle cycles: {wrote:?}", device.name));
        }
    }
    Ok(())
}

fn nothing_lost(devices: &[Device], server: &FakeServer, clash: bool, ledger: &Ledger) -> Result<(), String> {
    // A path that no device can materialise stays on the proxy.
    let blocked = server.contents().into_values().filter(|_| clash);
    let trees = devices.iter().flat_map(|d| d.disk.user_tree("").into_values()).chain(blocked);
    let trees = ledger.parts_of_all(trees);
    let kept = ledger.parts_of_all(devices.iter().flat_map(|d| d.history().into_values()));
    for content in &ledger.owed {
        // Content that was written twice may count as the copy that a user deleted (row 7). Then history has it, or had
        // it. Or it counts as the copy that a user replaced, because a precondition is content. Unique content may
        // never be lost.
        let took = kept.contains(content) || ledger.pruned.contains(content) || ledger.taken_back.contains(content);
        let excused = !ledger.unique(content) && took;
        if !trees.contains(content) && !excused {
            return Err(format!("invariant 1: {content:?} is lost (in history: {})", kept.contains(content)));
        }
    }
    Ok(())
}
