//! The acts of users, and the record of the content that must survive: the oracle of invariant 1.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use memsync::local::ScanScope;
use memsync::testing::{FakeServer, SimDisk};

use crate::world::Device;

/// The content that users wrote and did not remove.
#[derive(Default)]
pub struct Ledger {
    /// Content, and how often users wrote it.
    pub written: BTreeMap<Bytes, usize>,
    pub owed: BTreeSet<Bytes>,
    /// Content that no user made durable.
    volatile: BTreeSet<Bytes>,
    /// Content that only the server had when it was set back, or that the server lost by that.
    reset: BTreeSet<Bytes>,
    /// Content that was in a history before that history was pruned.
    pub pruned: BTreeSet<Bytes>,
    /// Content that a user replaced or deleted on a device that held it.
    pub taken_back: BTreeSet<Bytes>,
    /// By path: content on the proxy that a removal here does not remove, because a rule leaves the path out here.
    pub left_out: BTreeMap<String, Bytes>,
    /// By device and path: content whose file was removed under a rule. A new file in its place replaces it everywhere,
    /// as an edit.
    removed_unseen: BTreeMap<(String, String), Bytes>,
    next: u64,
    trace: bool,
}

impl Ledger {
    pub fn new(trace: bool) -> Self {
        Self { trace, ..Self::default() }
    }

    pub fn wrote(&mut self, content: &Bytes, lasting: bool) {
        let times = self.written.entry(content.clone()).or_default();
        *times += 1;
        if lasting {
            self.volatile.remove(content);
        } else if *times == 1 {
            self.volatile.insert(content.clone());
        }
        self.owed.insert(content.clone());
    }

    /// Records that a user replaced or deleted this content on a device that held it.
    pub fn released(&mut self, content: Option<Bytes>) {
        if let Some(content) = content {
            self.owed.remove(&content);
            self.taken_back.insert(content);
        }
    }

    /// Records that the user of a device removed a file.
    fn removed(&mut self, who: &str, path: &str, content: Option<Bytes>) {
        match content {
            Some(content) if self.left_out.get(path) == Some(&content) => {
                self.removed_unseen.insert((who.to_owned(), path.to_owned()), content);
            }
            content => self.released(content),
        }
    }

    /// Records that the user of a device made a new file in place of a removed one.
    fn replaced(&mut self, who: &str, path: &str) {
        let content = self.removed_unseen.remove(&(who.to_owned(), path.to_owned()));
        self.released(content);
    }

    /// True if the content was written once. Then no loss of it is right.
    pub fn unique(&self, content: &Bytes) -> bool {
        self.written.get(content) == Some(&1)
    }

    pub fn fresh(&mut self, rng: &mut Rng) -> Bytes {
        if rng.u8(..) < 16 && !self.written.is_empty() {
            // Content that existed before, for the rows that distinguish own writes from others.
            let at = rng.usize(..self.written.len());
            return self.written.keys().nth(at).unwrap().clone();
        }
        self.next += 1;
        Bytes::from(format!("content {}", self.next))
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{}", what());
        }
    }

    /// A power cut may take content that the user had not made durable, unless the server has it. It may not take
    /// durable content, or content that the engine agreed on with the server. If the server was set back meanwhile, an
    /// uncommitted download may be gone too.
    pub fn power_cut(&mut self, device: &Device, before: &BTreeSet<Bytes>, server: &FakeServer) {
        let after = device.contents();
        // A download in the middle of a move may be back in the stage, together with a user's later writes to it. No
        // program can distinguish it from half a download. A fsync of the user makes its new name durable, so only
        // volatile content ends in the stage. A displaced file is named by an intent, and must come back.
        let placed: BTreeSet<Bytes> = device
            .disk
            .user_tree("")
            .into_values()
            .chain(device.history().into_values())
            .chain(displaced(device))
            .collect();
        let ever: BTreeSet<Bytes> = server.all_ever_stored().into_values().collect();
        for content in before {
            let gone = !after.contains(content);
            let excused = if self.unique(content) {
                gone && self.reset.contains(content)
                    || !placed.contains(content) && self.volatile.contains(content) && !ever.contains(content)
            } else {
                // For content written twice it is unknown which copy was durable, and which one the server had.
                gone
            };
            if excused {
                self.owed.remove(content);
            }
        }
    }

    /// Records that the server was set back: content that only the server had is gone.
    pub fn server_reset(&mut self, devices: &[Device], server: &FakeServer) {
        let live: BTreeSet<Bytes> = server.contents().into_values().collect();
        let held: BTreeSet<Bytes> = devices.iter().flat_map(|d| d.disk.user_tree("").into_values()).collect();
        self.owed.retain(|content| held.contains(content) || live.contains(content));
        self.reset.extend(server.all_ever_stored().into_values().filter(|content| !live.contains(content)));
    }
}

/// Files in the stage that are not downloads, as the intents say.
fn displaced(device: &Device) -> Vec<Bytes> {
    let stage = device.disk.user_tree(".memsync/stage");
    let intents = stage.iter().filter(|(name, _)| name.ends_with(".intent"));
    let lines = intents.flat_map(|(_, text)| text.split(|b| *b == b'\n'));
    let displaced = lines.filter_map(|line| {
        let intent: serde_json::Value = serde_json::from_slice(line).ok()?;
        let slot = intent["slot"].as_str()?;
        let incoming = intent["incoming_inode"].as_u64()?;
        let there = device.disk.user_stat(slot).ok()?;
        (there.inode != incoming).then(|| stage.get(slot).cloned())?
    });
    displaced.collect()
}

/// One act of a user in a folder. Returns the scope that a watcher would report.
pub fn user_acts(
    disk: &SimDisk,
    who: &str,
    names: &[&str],
    rng: &mut Rng,
    ledger: &mut Ledger,
    volatile: bool,
) -> ScanScope {
    let mut touched = ScanScope::default();
    let path = names[rng.usize(..names.len())];
    let here = |p: &str| disk.user_read(p).ok();
    match rng.u8(..11) {
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
                ledger.replaced(who, path);
                ledger.wrote(&content, lasting);
            }
            touched.paths.insert(path.to_owned());
        }
        4 | 5 => {
            let before = here(path);
            if before.is_some() && disk.user_remove(path).is_ok() {
                ledger.say(|| format!("  {who} removes {path}"));
                ledger.removed(who, path, before);
            }
            touched.paths.insert(path.to_owned());
        }
        6 | 7 => {
            let to = names[rng.usize(..names.len())];
            let (moved, before) = (here(path), here(to));
            if path != to && moved.is_some() && disk.user_rename(path, to).is_ok() {
                ledger.say(|| format!("  {who} renames {path} to {to}"));
                if before != moved {
                    ledger.released(before);
                }
                ledger.replaced(who, to);
                // A rename deletes one path and writes another. Two crossing renames delete both paths.
                *ledger.written.entry(moved.unwrap_or_default()).or_default() += 1;
            }
            touched.paths.extend([path.to_owned(), to.to_owned()]);
        }
        8 => {
            let dir = ["n", "n/m", "empty"][rng.usize(..3)];
            let inside = disk.user_tree(dir);
            if rng.u8(..4) == 0 && disk.user_remove_dir_all(dir).is_ok() {
                ledger.say(|| format!("  {who} removes the folder {dir}"));
                for (path, content) in inside {
                    ledger.removed(who, &path, Some(content));
                }
            } else {
                let _ = disk.user_mkdir(dir);
            }
            touched.paths.insert(dir.to_owned());
        }
        9 => {
            let pair = [("n", "o"), ("o", "n"), ("n/m", "m"), ("m", "n/m")][rng.usize(..4)];
            let inside = disk.user_tree(pair.0);
            if rng.bool() && !inside.is_empty() && disk.user_rename(pair.0, pair.1).is_ok() {
                ledger.say(|| format!("  {who} renames the folder {} to {}", pair.0, pair.1));
                for (path, content) in inside {
                    ledger.replaced(who, &path.replacen(pair.0, pair.1, 1));
                    *ledger.written.entry(content).or_default() += 1;
                }
            }
            touched.paths.insert(pair.0.to_owned());
            touched.subtrees.insert(pair.1.to_owned());
        }
        _ => {
            // Any file, including conflict copies.
            let tree = disk.user_tree("");
            if let Some((path, content)) = tree.iter().nth(rng.usize(..tree.len().max(1))) {
                let new = ledger.fresh(rng);
                if disk.user_replace(path, new.clone()).is_ok() {
                    ledger.say(|| format!("  {who} edits {path} = {new:?}"));
                    if new != *content {
                        ledger.released(Some(content.clone()));
                    }
                    ledger.wrote(&new, true);
                }
                touched.paths.insert(path.clone());
            }
        }
    }
    touched
}
