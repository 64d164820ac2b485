//! [`Folder::sweep`]: cleans up the files that a crash or a failure left in `stage/`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use jiff::Timestamp;

use crate::disk::{Disk, FileKind, FileMeta};
use crate::failpoint;
use crate::path::{RelPath, dir_of};

use super::super::Folder;
use super::super::folder::STAGE;
use super::super::history::{CopyFailure, VersionKind};
use super::super::stage::{displaced_slot, download_inode, taken_slot};
use super::intent::{INTENT_SUFFIX, MoveIntent};
use super::mover::{BEING_WRITTEN, FileOrigin, Mover, is_in_history};

/// A displaced file that stays in the stage, because it could not be put where it belongs.
#[derive(Debug)]
pub struct SweepFailure {
    /// The path that it comes from. `None` if its intent cannot be read.
    pub path: Option<RelPath>,
    pub source: io::Error,
}

/// The outcome of a sweep.
#[derive(Debug, Default)]
pub struct StageReport {
    /// The next sweep tries these again.
    pub left: Vec<SweepFailure>,
    /// New conflict copies, each with its original.
    pub copies: Vec<(RelPath, RelPath)>,
    /// Files of unknown origin, by the paths that they have in history now.
    pub unknown: Vec<String>,
}

/// The outcome of the intents.
#[derive(Default)]
struct SettledIntents {
    report: StageReport,
    /// Paths that stay in the stage: intents, and the slots that they name.
    stay: BTreeSet<String>,
    /// Inodes of the incoming files of intents that stay. By such a file the next sweep knows a move that was cut off.
    stay_incoming: BTreeSet<u64>,
    /// Each intent by its slot, with the path of its file.
    by_slot: BTreeMap<String, (String, MoveIntent)>,
    /// An intent could not be read, so any slot may hold a user's file.
    has_unreadable: bool,
}

impl SettledIntents {
    /// Keeps a slot, and the intent that names it, for the next sweep.
    fn leave(&mut self, slot: &str, path: Option<RelPath>, source: io::Error) {
        self.stay.insert(slot.to_owned());
        if let Some((name, intent)) = self.by_slot.get(slot) {
            self.stay.insert(name.clone());
            self.stay_incoming.insert(intent.incoming_inode);
        }
        self.report.left.push(SweepFailure { path, source });
    }

    fn leave_copies(&mut self, failures: Vec<CopyFailure>) {
        for CopyFailure { slot, at, source } in failures {
            self.leave(&slot, RelPath::from_disk(&at).ok(), source);
        }
    }
}

impl<D: Disk> Folder<D> {
    /// Cleans up `stage/` after a crash or a failure. Displaced files go where their intents say, and downloads are
    /// removed. A file that is no download and has no intent goes to history. A file that cannot be moved stays, with its
    /// intent, and does not stop the others.
    ///
    /// The stage belongs to the process that holds the folder ([`crate::disk::real::RealDisk::lock_root`]). Even if
    /// another process works in it, a sweep removes no content of a user.
    ///
    /// # Errors
    /// `stage/` cannot be read, or nothing can be made durable.
    pub fn sweep(&self, now: Timestamp) -> io::Result<StageReport> {
        let is_intent = |name: &str| name.ends_with(INTENT_SUFFIX);
        let slots: Vec<(String, FileMeta)> =
            self.list_stage()?.into_iter().filter(|(name, _)| !is_intent(name)).collect();
        failpoint::pass("sweep.listed");
        // An intent is older than the file displaced under it. So the second listing has the intent of every slot in the
        // first.
        let intents: Vec<String> =
            self.list_stage()?.into_iter().map(|(name, _)| name).filter(|name| is_intent(name)).collect();
        if slots.is_empty() && intents.is_empty() {
            return Ok(StageReport::default());
        }
        let mut mover = Mover::new(self, now);
        let mut settled = mover.settle_intents(&intents)?;
        settled.leave_copies(mover.history.place_copies(self));
        failpoint::pass("sweep.settled");
        self.disk.sync_all()?;
        if !settled.has_unreadable {
            mover.clear_slots(&slots, &mut settled);
        }
        if !settled.report.unknown.is_empty() {
            settled.leave_copies(mover.history.place_copies(self));
            self.disk.sync_all()?;
        }
        failpoint::pass("sweep.cleared");
        for name in intents.iter().filter(|name| !settled.stay.contains(*name)) {
            match self.disk.unlink(name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(settled.report)
    }

    /// The paths in `stage/`. A missing folder is empty.
    pub(super) fn list_stage(&self) -> io::Result<Vec<(String, FileMeta)>> {
        match self.disk.list(STAGE) {
            Ok(names) => {
                Ok(names.into_iter().filter_map(|(name, m)| Some((format!("{STAGE}/{}", name.to_str()?), m))).collect())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }
}

impl<D: Disk> Mover<'_, D> {
    /// Moves displaced files where the intents say.
    fn settle_intents(&mut self, intents: &[String]) -> io::Result<SettledIntents> {
        let mut settled = SettledIntents::default();
        let staged: BTreeSet<u64> = self.folder.list_stage()?.iter().map(|(_, meta)| meta.inode).collect();
        for name in intents {
            let read = match self.folder.read_intents(name) {
                Ok(read) => read,
                // The process that wrote it has removed it meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    settled.has_unreadable = true;
                    settled.leave(name, None, source);
                    continue;
                }
            };
            for intent in read {
                let path = RelPath::from_disk(&intent.at).ok();
                let (slot, outcome) = (intent.slot.clone(), self.settle_intent(&intent, &staged));
                settled.by_slot.insert(slot.clone(), (name.clone(), intent));
                match (outcome, path) {
                    (Ok(Some(copy)), Some(original)) => settled.report.copies.push((copy, original)),
                    (Ok(_), _) => {}
                    (Err(source), path) => settled.leave(&slot, path, source),
                }
            }
        }
        Ok(settled)
    }

    /// Moves the file that was displaced under `intent`, if any. Returns the conflict copy that it became. `staged`: the
    /// inodes in the stage.
    fn settle_intent(&mut self, intent: &MoveIntent, staged: &BTreeSet<u64>) -> io::Result<Option<RelPath>> {
        let meta = match self.folder.disk.stat(&intent.slot) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if intent.put_back {
                    // The file is in history already. Its folder may be empty now.
                    self.folder.remove_empty(dir_of(&intent.at), &mut self.touched);
                }
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        if meta.inode == intent.incoming_inode {
            return Ok(None);
        }
        let Ok(path) = RelPath::from_disk(&intent.at) else { return Ok(None) };
        let origin = FileOrigin { path: &path, at: &intent.at };
        let displaced = self.folder.digest_displaced(&intent.slot)?;
        if self.is_cut_off(intent, staged) {
            return self.put_back(&intent.slot, origin, displaced);
        }
        match displaced {
            Some(md5) if intent.expect == Some(md5) => self.keep_expected(intent, meta.links).map(|()| None),
            content if intent.put_back => self.put_back(&intent.slot, origin, content),
            content => self.set_aside(&intent.slot, origin, content.unwrap_or(BEING_WRITTEN)),
        }
    }

    /// True if an exchange without `RENAME_EXCHANGE` ended between its renames: the path is free, and the incoming file
    /// is still in the stage. A path that is free without it lost the new file to the user, so the old one must not
    /// come back there.
    fn is_cut_off(&self, intent: &MoveIntent, staged: &BTreeSet<u64>) -> bool {
        let is_vacant = || matches!(self.folder.disk.stat(&intent.at), Err(e) if e.kind() == io::ErrorKind::NotFound);
        !intent.put_back && staged.contains(&intent.incoming_inode) && is_vacant()
    }

    /// Moves a displaced file with the expected content to history.
    fn keep_expected(&mut self, intent: &MoveIntent, links: u64) -> io::Result<()> {
        let kind = if intent.put_back { VersionKind::Removed } else { VersionKind::Replaced };
        if !is_in_history(&intent.slot) || links > 1 {
            self.keep(&intent.slot, &intent.at, kind)?;
        }
        if kind == VersionKind::Removed {
            self.folder.remove_empty(dir_of(&intent.at), &mut self.touched);
        }
        Ok(())
    }

    fn clear_slots(&mut self, slots: &[(String, FileMeta)], settled: &mut SettledIntents) {
        for (slot, meta) in slots {
            if settled.stay.contains(slot) || settled.stay_incoming.contains(&meta.inode) {
                continue;
            }
            let intent = settled.by_slot.get(slot).map(|(_, intent)| intent);
            match self.clear_slot(slot, meta, intent) {
                Ok(unknown) => settled.report.unknown.extend(unknown),
                Err(source) => settled.leave(slot, None, source),
            }
        }
    }

    /// Removes a download that was never placed. Moves any other file to history and returns its path there.
    ///
    /// The file first gets a name that no other process knows, and is checked only then. Another process may have
    /// exchanged a user's file for the download since the stage was listed.
    fn clear_slot(&mut self, slot: &str, listed: &FileMeta, intent: Option<&MoveIntent>) -> io::Result<Option<String>> {
        if listed.kind != FileKind::File {
            return Ok(None);
        }
        let disk = &*self.folder.disk;
        let download = match intent {
            Some(intent) => Some(intent.incoming_inode),
            None => download_inode(slot, listed.inode),
        };
        let taken = match download {
            Some(inode) => taken_slot(&self.folder.slot(), inode),
            None => displaced_slot(&self.folder.slot()),
        };
        match disk.rename_new(slot, &taken) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        }
        failpoint::pass("sweep.taken");
        if download == Some(disk.stat(&taken)?.inode) {
            disk.unlink(&taken)?;
            return Ok(None);
        }
        let name = slot.rsplit_once('/').map_or(slot, |(_, name)| name);
        let at = intent.map_or(name, |intent| &intent.at);
        self.keep(&taken, at, VersionKind::Replaced)?;
        Ok(Some(at.to_owned()))
    }
}
