//! [`Folder::sweep`]: putting in order what a crash or a failure left in `stage/`.

use std::collections::BTreeSet;
use std::io;

use jiff::Timestamp;

use crate::disk::Disk;
use crate::failpoint;
use crate::path::RelPath;

use super::super::Folder;
use super::super::folder::STAGE;
use super::super::history::{Kept, Shelf};
use super::intent::{INTENT_SUFFIX, Intent};
use super::{BEING_WRITTEN, dir_of, is_kept};

/// Something displaced that could not be put where it belongs.
#[derive(Debug)]
pub struct Left {
    /// Where it comes from; `None`: its intent cannot be read.
    pub path: Option<RelPath>,
    pub source: io::Error,
}

impl<D: Disk> Folder<D> {
    /// Puts in order what a crash left in `stage/`: displaced files go where their intent says, half downloads go.
    /// Returns what could not be put where it belongs; it is left, with its intent, for the next sweep. For start-up,
    /// and after a failure; nothing may be staged meanwhile.
    ///
    /// # Errors
    /// When `stage/` itself cannot be read, or nothing can be made durable.
    pub fn sweep(&self, now: Timestamp) -> io::Result<Vec<Left>> {
        let names = match self.disk.list(STAGE) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let names: Vec<String> =
            names.into_iter().filter_map(|(n, _)| n.to_str().map(|n| format!("{STAGE}/{n}"))).collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let (intents, slots): (Vec<_>, Vec<_>) = names.into_iter().partition(|n| n.ends_with(INTENT_SUFFIX));
        let mut shelf = Shelf::new(now);
        let mut touched = BTreeSet::new();
        let mut left = Vec::new();
        // The files that stay: intents, and the slots that they name.
        let mut stay = BTreeSet::new();
        let mut all_known = true;
        for name in &intents {
            let read = match self.read_intents(name) {
                Ok(read) => read,
                Err(source) => {
                    // Which slots it names nobody knows.
                    all_known = false;
                    stay.insert(name.clone());
                    left.push(Left { path: None, source });
                    continue;
                }
            };
            for intent in read {
                if let Err(source) = self.settle_intent(&intent, &mut shelf, &mut touched) {
                    stay.extend([name.clone(), intent.slot]);
                    left.push(Left { path: RelPath::from_disk(&intent.at).ok(), source });
                }
            }
        }
        shelf.place_copies(self)?;
        failpoint::pass("sweep.settled");
        self.disk.sync_all()?;
        for slot in slots.into_iter().filter(|slot| all_known && !stay.contains(slot)) {
            match self.disk.unlink(&slot) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        failpoint::pass("sweep.cleared");
        for name in intents.iter().filter(|name| !stay.contains(*name)) {
            self.disk.unlink(name)?;
        }
        Ok(left)
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
                let kind = if intent.put_back { Kept::Removed } else { Kept::Replaced };
                if !is_kept(&intent.slot) || meta.links > 1 {
                    self.keep(&intent.slot, &intent.at, kind, shelf)?;
                }
                if kind == Kept::Removed {
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
