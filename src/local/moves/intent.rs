//! Intents: a record in `stage/` of every file that a batch is about to displace.

use std::collections::BTreeSet;
use std::io;

use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile};

use super::super::Folder;
use super::super::folder::STAGE;

pub(super) const INTENT_SUFFIX: &str = ".intent";

/// One line of an intent file.
#[derive(Serialize, Deserialize)]
pub(super) struct MoveIntent {
    /// The path in `stage/` or `history/` that the displaced file moves to.
    pub(super) slot: String,
    /// Inode of the incoming file, which is at `slot` before the exchange. 0 if the move places no file.
    pub(super) incoming_inode: u64,
    /// The path that the displaced file comes from, as named on the disk.
    pub(super) at: String,
    /// The content that the plan saw. `None`: any content becomes a conflict copy.
    pub(super) expect: Option<Md5>,
    /// Put a file with other content than `expect` back to `at`.
    pub(super) put_back: bool,
}

/// An intent that cannot be read, with its path.
pub(in crate::local) type UnreadableIntent = (String, io::Error);

impl<D: Disk> Folder<D> {
    /// The paths that the intents in the stage name. A file there has not been checked yet: it may be an edit of the user
    /// that has to go back into the folder.
    pub(in crate::local) fn intended_slots(&self) -> Result<BTreeSet<String>, UnreadableIntent> {
        let stage = self.list_stage().map_err(|e| (STAGE.to_owned(), e))?;
        let mut slots = BTreeSet::new();
        for (path, _) in stage.into_iter().filter(|(path, _)| path.ends_with(INTENT_SUFFIX)) {
            match self.read_intents(&path) {
                Ok(intents) => slots.extend(intents.into_iter().map(|intent| intent.slot)),
                // The batch has ended meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err((path, e)),
            }
        }
        Ok(slots)
    }

    /// Writes the intents to a new file and returns its path. The caller makes it durable.
    pub(super) fn write_intents(&self, intents: &[MoveIntent]) -> io::Result<String> {
        let name = format!("{}{INTENT_SUFFIX}", self.slot());
        let mut text = Vec::new();
        for intent in intents {
            serde_json::to_writer(&mut text, intent)?;
            text.push(b'\n');
        }
        let written = self.disk.create(&name)?.write_all(&text);
        written.inspect_err(|_| self.discard_slot(&name))?;
        Ok(name)
    }

    pub(super) fn read_intents(&self, name: &str) -> io::Result<Vec<MoveIntent>> {
        let mut file = self.disk.open(name)?;
        let (mut text, mut buf) = (Vec::new(), [0u8; 4096]);
        loop {
            let n = file.read(&mut buf)?;
            if n == 0 {
                break;
            }
            text.extend_from_slice(&buf[..n]);
        }
        // A torn line was never durable, so no file was displaced under it.
        Ok(text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}
