//! [`Folder::sweep`]: putting in order what a crash or a failure left in `stage/`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use jiff::Timestamp;

use crate::disk::{Disk, FileKind, FileMeta};
use crate::failpoint;
use crate::path::RelPath;

use super::super::Folder;
use super::super::folder::STAGE;
use super::super::history::{Shelf, VersionKind};
use super::super::stage::{displaced_slot, download_inode, taken_slot};
use super::intent::{INTENT_SUFFIX, Intent};
use super::{BEING_WRITTEN, dir_of, is_kept};

/// Something displaced that could not be put where it belongs.
#[derive(Debug)]
pub struct SweepFailure {
    /// Where it comes from; `None`: its intent cannot be read.
    pub path: Option<RelPath>,
    pub source: io::Error,
}

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Tried again by the next sweep.
    pub left: Vec<SweepFailure>,
    /// Conflict copies that it made, each with the file that it is of.
    pub copies: Vec<(RelPath, RelPath)>,
    /// Files that were in the stage for no known reason, by their paths in history.
    pub unknown: Vec<String>,
}

/// What became of the intents.
#[derive(Default)]
struct Settled {
    swept: SweepReport,
    /// The files that stay: intents, and the slots that they name.
    stay: BTreeSet<String>,
    /// The intents by their slots.
    named: BTreeMap<String, Intent>,
    /// Every intent was read. Otherwise any slot may hold a user's file.
    all_known: bool,
}

impl<D: Disk> Folder<D> {
    /// Puts in order what a crash left in `stage/`: displaced files go where their intent says, downloads go. A file that
    /// is no download and that no intent names goes to history. A file that cannot be put where it belongs is left, with
    /// its intent, for the next sweep. For start-up, and after a failure.
    ///
    /// The stage belongs to the process that holds the folder ([`crate::disk::real::RealDisk::lock_root`]). Should
    /// another one work in it all the same, no content of a user's is removed.
    ///
    /// # Errors
    /// When `stage/` itself cannot be read, or nothing can be made durable.
    pub fn sweep(&self, now: Timestamp) -> io::Result<SweepReport> {
        let slots: Vec<(String, FileMeta)> =
            self.list_stage()?.into_iter().filter(|(name, _)| !name.ends_with(INTENT_SUFFIX)).collect();
        failpoint::pass("sweep.listed");
        // An intent is older than what is displaced under it. Listed second, it is there for every slot of the first list.
        let intents: Vec<String> =
            self.list_stage()?.into_iter().map(|(name, _)| name).filter(|name| name.ends_with(INTENT_SUFFIX)).collect();
        if slots.is_empty() && intents.is_empty() {
            return Ok(SweepReport::default());
        }
        let mut shelf = Shelf::new(now);
        let Settled { mut swept, stay, named, all_known } = self.settle_intents(&intents, &mut shelf);
        shelf.place_copies(self)?;
        failpoint::pass("sweep.settled");
        self.disk.sync_all()?;
        for (slot, meta) in slots.iter().filter(|(slot, _)| all_known && !stay.contains(slot)) {
            swept.unknown.extend(self.clear_slot(slot, meta, named.get(slot), &mut shelf)?);
        }
        if !swept.unknown.is_empty() {
            shelf.place_copies(self)?;
            self.disk.sync_all()?;
        }
        failpoint::pass("sweep.cleared");
        for name in intents.iter().filter(|name| !stay.contains(*name)) {
            match self.disk.unlink(name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(swept)
    }

    /// Puts displaced files where the intents say.
    fn settle_intents(&self, intents: &[String], shelf: &mut Shelf) -> Settled {
        let mut settled = Settled { all_known: true, ..Settled::default() };
        let mut touched = BTreeSet::new();
        for name in intents {
            let read = match self.read_intents(name) {
                Ok(read) => read,
                // Settled meanwhile by the process that wrote it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    settled.all_known = false;
                    settled.stay.insert(name.clone());
                    settled.swept.left.push(SweepFailure { path: None, source });
                    continue;
                }
            };
            for intent in read {
                let path = RelPath::from_disk(&intent.at).ok();
                match (self.settle_intent(&intent, shelf, &mut touched), path) {
                    (Ok(Some(copy)), Some(original)) => settled.swept.copies.push((copy, original)),
                    (Ok(_), _) => {}
                    (Err(source), path) => {
                        settled.stay.extend([name.clone(), intent.slot.clone()]);
                        settled.swept.left.push(SweepFailure { path, source });
                    }
                }
                settled.named.insert(intent.slot.clone(), intent);
            }
        }
        settled
    }

    fn list_stage(&self) -> io::Result<Vec<(String, FileMeta)>> {
        match self.disk.list(STAGE) {
            Ok(names) => {
                Ok(names.into_iter().filter_map(|(name, m)| Some((format!("{STAGE}/{}", name.to_str()?), m))).collect())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Removes a download that was never placed, and moves any other file to history. Gives its path there.
    ///
    /// The file is taken to a name that no other process knows, and looked at only there: another process may have
    /// exchanged a user's file for the download since the stage was listed.
    fn clear_slot(
        &self,
        slot: &str,
        listed: &FileMeta,
        intent: Option<&Intent>,
        shelf: &mut Shelf,
    ) -> io::Result<Option<String>> {
        if listed.kind != FileKind::File {
            return Ok(None);
        }
        let download = match intent {
            Some(intent) => Some(intent.incoming_inode),
            None => download_inode(slot, listed.inode),
        };
        let taken = match download {
            Some(inode) => taken_slot(&self.slot(), inode),
            None => displaced_slot(&self.slot()),
        };
        match self.disk.rename_new(slot, &taken) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        }
        failpoint::pass("sweep.taken");
        if download == Some(self.disk.stat(&taken)?.inode) {
            self.disk.unlink(&taken)?;
            return Ok(None);
        }
        let name = slot.rsplit_once('/').map_or(slot, |(_, name)| name);
        let at = intent.map_or(name, |intent| &intent.at);
        self.keep(&taken, at, VersionKind::Replaced, shelf)?;
        Ok(Some(at.to_owned()))
    }

    fn settle_intent(
        &self,
        intent: &Intent,
        shelf: &mut Shelf,
        touched: &mut BTreeSet<String>,
    ) -> io::Result<Option<RelPath>> {
        let meta = match self.disk.stat(&intent.slot) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if intent.put_back {
                    // It is in history already; the folders that it leaves empty may not be gone yet.
                    self.remove_empty(dir_of(&intent.at), touched);
                }
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        if meta.inode == intent.incoming_inode {
            return Ok(None);
        }
        let Ok(path) = RelPath::from_disk(&intent.at) else { return Ok(None) };
        let displaced = self.digest_displaced(&intent.slot)?;
        let vacant = || matches!(self.disk.stat(&intent.at), Err(e) if e.kind() == io::ErrorKind::NotFound);
        match displaced {
            // Without an atomic exchange the place stands empty for a moment; what left it did so in vain.
            content if !intent.put_back && vacant() => {
                self.put_back(&intent.slot, &path, &intent.at, content, shelf, touched)
            }
            Some(md5) if intent.expect == Some(md5) => {
                let kind = if intent.put_back { VersionKind::Removed } else { VersionKind::Replaced };
                if !is_kept(&intent.slot) || meta.links > 1 {
                    self.keep(&intent.slot, &intent.at, kind, shelf)?;
                }
                if kind == VersionKind::Removed {
                    self.remove_empty(dir_of(&intent.at), touched);
                }
                Ok(None)
            }
            Some(md5) if !intent.put_back => self.set_aside(&intent.slot, &path, &intent.at, md5, shelf, touched),
            // It cannot be told from what was expected; nothing else has its bytes.
            None if !intent.put_back => self.set_aside(&intent.slot, &path, &intent.at, BEING_WRITTEN, shelf, touched),
            content => self.put_back(&intent.slot, &path, &intent.at, content, shelf, touched),
        }
    }
}
