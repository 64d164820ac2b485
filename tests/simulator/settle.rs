//! The end of a schedule: everybody rests, the proxy is right again, and the invariants are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use memsync::agent::CycleError;
use memsync::digest::Md5;
use memsync::disk::sim::{SimDisk, Verdict};
use memsync::remote::fake::{FakeServer, Faults};
use memsync::sync::Base;

use crate::users::Ledger;
use crate::world::{Device, SimClock};

/// The rounds, one cycle a device, that may write something once nobody acts and nothing waits for a person. A device
/// is done within three cycles (a file is missed, and missed again; a conflict copy goes up), and what its last one
/// writes takes the others two more: one to obey it, one where a folder then gives way.
const ROUNDS: usize = 5;
/// The same where a file and a folder claim one name. A place becomes free in one more cycle, as the new file goes up only
/// after the deletion of the old one was acknowledged, and two devices may then have different files for it: a scan misses
/// the old file (1), it is deleted (2), the others delete it, too (3), they upload to its place (4), the copy of the one that
/// was slower goes up (5) and comes down (6).
const CLASH_ROUNDS: usize = 6;

/// The world in which all comes to rest.
pub struct Calm<'a> {
    pub server: &'a FakeServer,
    pub clock: &'a SimClock,
    /// A file and a folder claim one name.
    pub clash: bool,
    /// The agents must heal the index.
    pub is_foreign: bool,
}

/// All must agree soon, with nothing owed missing, and then be still.
pub fn settle(mut devices: Vec<Device>, calm: &Calm<'_>, ledger: &Ledger) -> Result<(), String> {
    let Calm { server, clock, clash, is_foreign } = *calm;
    if is_foreign {
        server.set_faults(Faults::default());
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

/// Puts right only those entries of which no agent knows that they are wrong: its state is lost, or another client wrote.
/// A file heals the entry that does not name it, and a deletion the entry that names the file as live. A tombstone that the
/// index lacks is no evidence.
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
    let Calm { server, clock, clash, is_foreign } = *calm;
    let most = if clash { CLASH_ROUNDS } else { ROUNDS };
    let (mut rounds, mut calm_since) = (0, 0);
    loop {
        let before: Vec<_> = devices.iter().map(|d| d.disk.user_tree("")).collect();
        let writes = server.writes();
        let mut decided = 0;
        // A cycle that asks for another one has something left, though it may have written nothing.
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
                // Who approves of a reset forgets the tombstones that it has obeyed.
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

/// Invariant 2: once all agree, a cycle writes nothing, anywhere.
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
                Verdict::Go
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
    // A path that cannot be materialised anywhere is left alone on both sides: the proxy still has it.
    let blocked = server.contents().into_values().filter(|_| clash);
    let trees: BTreeSet<Bytes> =
        devices.iter().flat_map(|d| d.disk.user_tree("").into_values()).chain(blocked).collect();
    let kept: BTreeSet<Bytes> = devices.iter().flat_map(|d| d.history().into_values()).collect();
    for content in &ledger.owed {
        // Content that was written more than once may be taken for the copy that somebody deleted (row 7): history
        // then has it, or had it. Or for the copy that somebody replaced: a precondition is content, so that whoever
        // held the same bytes replaces both. Content that is unique has no excuse.
        let took = kept.contains(content) || ledger.pruned.contains(content) || ledger.taken_back.contains(content);
        let excused = !ledger.unique(content) && took;
        if !trees.contains(content) && !excused {
            return Err(format!("invariant 1: {content:?} is lost (in history: {})", kept.contains(content)));
        }
    }
    Ok(())
}
