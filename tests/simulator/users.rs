//! The acts of users, and the record of the content that must survive: the oracle of invariant 1.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use memsync::local::ScanScope;
use memsync::testing::{FakeServer, SimDisk};

use crate::world::Device;

/// The content that users wrote and did not remove. Where texts are merged, each line counts as content of its own.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Files are lists of lines, which merges can join.
    pub has_lines: bool,
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
    pub(crate) fn new(has_lines: bool, trace: bool) -> Self {
        Self { has_lines, trace, ..Self::default() }
    }

    /// The parts of a file that count as content: the whole file, or its lines.
    pub(crate) fn parts(&self, file: &Bytes) -> Vec<Bytes> {
        if !self.has_lines {
            return vec![file.clone()];
        }
        file.split_inclusive(|b| *b == b'\n').map(|line| file.slice_ref(line)).collect()
    }

    pub(crate) fn parts_of_all(&self, files: impl IntoIterator<Item = Bytes>) -> BTreeSet<Bytes> {
        files.into_iter().flat_map(|file| self.parts(&file)).collect()
    }

    /// Records that a user wrote a file over `before`. Lines that were there are not new.
    pub(crate) fn wrote(&mut self, file: &Bytes, before: Option<&Bytes>, lasting: bool) {
        let old = before.filter(|_| self.has_lines).map(|before| self.parts(before)).unwrap_or_default();
        for content in self.parts(file).into_iter().filter(|content| !old.contains(content)) {
            let times = self.written.entry(content.clone()).or_default();
            *times += 1;
            if lasting {
                self.volatile.remove(&content);
            } else if *times == 1 {
                self.volatile.insert(content.clone());
            }
            self.owed.insert(content);
        }
    }

    /// Records that a user replaced or deleted this file on a device that held it. `after`: the new file.
    pub(crate) fn released(&mut self, before: Option<Bytes>, after: Option<&Bytes>) {
        let kept = after.map(|after| self.parts(after)).unwrap_or_default();
        let parts = before.map(|before| self.parts(&before)).unwrap_or_default();
        for content in parts.into_iter().filter(|content| !kept.contains(content)) {
            self.owed.remove(&content);
            self.taken_back.insert(content);
        }
    }

    /// Records that a file got another name, so that its content exists once more for a moment.
    fn renamed(&mut self, file: &Bytes) {
        for content in self.parts(file) {
            *self.written.entry(content).or_default() += 1;
        }
    }

    /// Records that the user of a device removed a file.
    fn removed(&mut self, who: &str, path: &str, content: Option<Bytes>) {
        match content {
            Some(content) if self.left_out.get(path) == Some(&content) => {
                self.removed_unseen.insert((who.to_owned(), path.to_owned()), content);
            }
            content => self.released(content, None),
        }
    }

    /// Records that the user of a device made a new file in place of a removed one.
    fn replaced(&mut self, who: &str, path: &str) {
        let content = self.removed_unseen.remove(&(who.to_owned(), path.to_owned()));
        self.released(content, None);
    }

    /// True if the content was written once. Then no loss of it is right.
    pub(crate) fn unique(&self, content: &Bytes) -> bool {
        self.written.get(content) == Some(&1)
    }

    /// The content that a user writes over `before`.
    pub(crate) fn fresh(&mut self, before: Option<&Bytes>, rng: &mut Rng) -> Bytes {
        if self.has_lines {
            return self.edit_lines(before, rng);
        }
        if rng.u8(..) < 16 && !self.written.is_empty() {
            // Content that existed before, for the rows that distinguish own writes from others.
            let at = rng.usize(..self.written.len());
            return self.written.keys().nth(at).unwrap().clone();
        }
        self.next += 1;
        Bytes::from(format!("content {}", self.next))
    }

    /// A list with a new line, and sometimes without an old one.
    fn edit_lines(&mut self, before: Option<&Bytes>, rng: &mut Rng) -> Bytes {
        let mut lines = before.map(|before| self.parts(before)).unwrap_or_default();
        self.next += 1;
        if rng.u8(..4) == 0 && !lines.is_empty() {
            lines.remove(rng.usize(..lines.len()));
        }
        let line = Bytes::from(format!("- line {}\n", self.next));
        lines.insert(rng.usize(..=lines.len()), line);
        lines.concat().into()
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{}", what());
        }
    }

    /// A power cut may take content that the user had not made durable, unless the server has it. It may not take
    /// durable content, or content that the engine agreed on with the server. If the server was set back meanwhile, an
    /// uncommitted download may be gone too.
    pub(crate) fn power_cut(&mut self, device: &Device, before: &BTreeSet<Bytes>, server: &FakeServer) {
        let after = self.parts_of_all(device.contents());
        // A download in the middle of a move may be back in the stage, together with a user's later writes to it. No
        // program can distinguish it from half a download. A fsync of the user makes its new name durable, so only
        // volatile content ends in the stage. A displaced file is named by an intent, and must come back.
        let placed = self.parts_of_all(
            device.disk.user_tree("").into_values().chain(device.history().into_values()).chain(displaced(device)),
        );
        let ever = self.parts_of_all(server.all_ever_stored().into_values());
        for content in self.parts_of_all(before.iter().cloned()) {
            let gone = !after.contains(&content);
            let excused = if self.unique(&content) {
                gone && self.reset.contains(&content)
                    || !placed.contains(&content) && self.volatile.contains(&content) && !ever.contains(&content)
            } else {
                // For content written twice it is unknown which copy was durable, and which one the server had.
                gone
            };
            if excused {
                self.owed.remove(&content);
            }
        }
    }

    /// Records that the server was set back: content that only the server had is gone.
    pub(crate) fn server_reset(&mut self, devices: &[Device], server: &FakeServer) {
        let live = self.parts_of_all(server.contents().into_values());
        let held = self.parts_of_all(devices.iter().flat_map(|d| d.disk.user_tree("").into_values()));
        self.owed.retain(|content| held.contains(content) || live.contains(content));
        let ever = self.parts_of_all(server.all_ever_stored().into_values());
        self.reset.extend(ever.into_iter().filter(|content| !live.contains(content)));
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
pub(crate) fn user_acts(
    disk: &SimDisk,
    who: &str,
    names: &[&str],
    rng: &mut Rng,
    ledger: &mut Ledger,
    volatile: bool,
) -> ScanScope {
    let path = names[rng.usize(..names.len())];
    let mut draw = rng.u8(..11);
    let mut user = User { disk, who, names, rng, ledger, volatile, touched: ScanScope::default() };
    for (weight, act) in USER_ACTS {
        if draw < *weight {
            act(&mut user, path);
            break;
        }
        draw -= weight;
    }
    user.touched
}

/// The acts of a user with their weights, which sum up to 11.
type WeightedAct = (u8, for<'a, 'b, 'c> fn(&'a mut User<'b>, &'c str));
const USER_ACTS: &[WeightedAct] = &[
    (4, |user, path| user.writes(path)),
    (2, |user, path| user.removes(path)),
    (2, |user, path| user.renames(path)),
    (1, |user, path| user.makes_or_removes_folder(path)),
    (1, |user, path| user.renames_folder(path)),
    (1, |user, path| user.edits_any_file(path)),
];

/// A user at work in a folder.
struct User<'a> {
    disk: &'a SimDisk,
    who: &'a str,
    names: &'a [&'a str],
    rng: &'a mut Rng,
    ledger: &'a mut Ledger,
    /// True if some writes may not be durable.
    volatile: bool,
    touched: ScanScope,
}

impl User<'_> {
    fn read(&self, path: &str) -> Option<Bytes> {
        self.disk.user_read(path).ok()
    }

    fn writes(&mut self, path: &str) {
        let before = self.read(path);
        let content = self.ledger.fresh(before.as_ref(), self.rng);
        let lasting = !(self.volatile && self.rng.bool());
        let done = match (lasting, self.rng.bool()) {
            (false, _) => self.disk.user_write_volatile(path, content.clone()),
            (true, true) => self.disk.user_write(path, content.clone()),
            (true, false) => self.disk.user_replace(path, content.clone()),
        };
        if done.is_ok() {
            let who = self.who;
            self.ledger.say(|| format!("  {who} writes {path} = {content:?} (lasting: {lasting})"));
            self.ledger.released(before.clone(), Some(&content));
            self.ledger.replaced(who, path);
            self.ledger.wrote(&content, before.as_ref(), lasting);
        }
        self.touched.paths.insert(path.to_owned());
    }

    fn removes(&mut self, path: &str) {
        let before = self.read(path);
        if before.is_some() && self.disk.user_remove(path).is_ok() {
            self.ledger.say(|| format!("  {} removes {path}", self.who));
            self.ledger.removed(self.who, path, before);
        }
        self.touched.paths.insert(path.to_owned());
    }

    fn renames(&mut self, path: &str) {
        let to = self.names[self.rng.usize(..self.names.len())];
        let (moved, before) = (self.read(path), self.read(to));
        if path != to && moved.is_some() && self.disk.user_rename(path, to).is_ok() {
            self.ledger.say(|| format!("  {} renames {path} to {to}", self.who));
            self.ledger.released(before, moved.as_ref());
            self.ledger.replaced(self.who, to);
            // A rename deletes one path and writes another. Two crossing renames delete both paths.
            self.ledger.renamed(&moved.unwrap_or_default());
        }
        self.touched.paths.extend([path.to_owned(), to.to_owned()]);
    }

    fn makes_or_removes_folder(&mut self, _: &str) {
        let dir = ["n", "n/m", "empty"][self.rng.usize(..3)];
        let inside = self.disk.user_tree(dir);
        if self.rng.u8(..4) == 0 && self.disk.user_remove_dir_all(dir).is_ok() {
            self.ledger.say(|| format!("  {} removes the folder {dir}", self.who));
            for (path, content) in inside {
                self.ledger.removed(self.who, &path, Some(content));
            }
        } else {
            let _ = self.disk.user_mkdir(dir);
        }
        self.touched.paths.insert(dir.to_owned());
    }

    fn renames_folder(&mut self, _: &str) {
        let (from, to) = [("n", "o"), ("o", "n"), ("n/m", "m"), ("m", "n/m")][self.rng.usize(..4)];
        let inside = self.disk.user_tree(from);
        if self.rng.bool() && !inside.is_empty() && self.disk.user_rename(from, to).is_ok() {
            self.ledger.say(|| format!("  {} renames the folder {from} to {to}", self.who));
            for (path, content) in inside {
                self.ledger.replaced(self.who, &path.replacen(from, to, 1));
                self.ledger.renamed(&content);
            }
        }
        self.touched.paths.insert(from.to_owned());
        self.touched.subtrees.insert(to.to_owned());
    }

    /// Any file, including conflict copies.
    fn edits_any_file(&mut self, _: &str) {
        let tree = self.disk.user_tree("");
        if let Some((path, content)) = tree.iter().nth(self.rng.usize(..tree.len().max(1))) {
            let new = self.ledger.fresh(Some(content), self.rng);
            if self.disk.user_replace(path, new.clone()).is_ok() {
                self.ledger.say(|| format!("  {} edits {path} = {new:?}", self.who));
                self.ledger.released(Some(content.clone()), Some(&new));
                self.ledger.wrote(&new, Some(content), true);
            }
            self.touched.paths.insert(path.clone());
        }
    }
}
