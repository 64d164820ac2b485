//! Writes the container and its journal. `load` lists the crash points, and the reason for the order of every step.

use std::io::Write;

use jiff::{SignedDuration, Timestamp};

use crate::disk::Disk;
use crate::failpoint;

use super::container::Container;
use super::format::{self, Fingerprint};
use super::journal::{self, BackupLink, JournalHead};
use super::state_dir::JournalState;
use super::types::{StateError, StateHeader};

impl<D: Disk> Container<D> {
    /// Writes the whole container, keeps the old one as the backup, and begins a new journal.
    ///
    /// # Errors
    /// A file cannot be written. The disk still holds every commit then.
    pub fn save(&mut self, now: Timestamp) -> Result<(), StateError> {
        let commits = self.finish_journal()?;
        // Never write the same bytes twice, whatever the clock does: two containers must differ in their fingerprints.
        let after_last = self.header.modified_at.checked_add(SignedDuration::from_nanos(1)).unwrap_or(now);
        let header = StateHeader { modified_at: now.max(after_last), ..self.header.clone() };
        let (dir, files) = (&self.dir, &self.dir.files);
        let tmp = dir.tmp_name(&files.main);
        let fingerprint =
            dir.write_new(&tmp, |file| format::encode(file, self.layout, &header, &self.entries, &self.uploads))?;
        failpoint::pass("save.staged");
        let has_old = self.on_disk != Fingerprint::empty();
        let backup = if has_old {
            dir.rename_once(&files.main, &files.backup)?;
            failpoint::pass("save.backed-up");
            dir.sync()?;
            Some(BackupLink { container: self.on_disk.clone(), commits })
        } else {
            self.backup.clone().map(BackupLink::unconnected)
        };
        dir.rename(&tmp, &files.main)?;
        failpoint::pass("save.placed");
        // The journal on disk is stale from here on. Never append to it, even if the next steps fail.
        self.journal = JournalState::Next { backup, old: has_old };
        self.on_disk = fingerprint;
        self.layout_on_disk = Some(self.layout);
        self.outdated = false;
        self.header = header;
        self.pending.clear();
        self.dir.sync()?;
        self.write_journal()
    }

    /// Writes the pending steps, so that the old journal leads to the new container. Returns the number of commits that
    /// lead there, or `None` if they do not.
    fn finish_journal(&mut self) -> Result<Option<usize>, StateError> {
        if let JournalState::Broken { commits } = self.journal {
            return Ok(self.pending.is_empty().then_some(commits));
        }
        self.write_journal()?;
        Ok(match self.journal {
            JournalState::Open { commits, .. } => Some(commits),
            _ => None,
        })
    }

    /// Writes the pending steps to the journal, or to a new one if that is due.
    pub(super) fn write_journal(&mut self) -> Result<(), StateError> {
        let (bytes, added) =
            self.encode_pending().map_err(|e| StateError::io("write", &self.dir.files.journal)(e.into()))?;
        match &mut self.journal {
            JournalState::Open { .. } if bytes.is_empty() => return Ok(()),
            JournalState::Open { file, commits, steps } => {
                if let Err(e) = self.dir.append_journal(file, &bytes) {
                    // After a failed fsync, not even the system knows which part of the line is on disk.
                    self.journal = JournalState::Broken { commits: *commits };
                    return Err(StateError::io("write", &self.dir.files.journal)(e));
                }
                *commits += added.0;
                *steps += added.1;
            }
            JournalState::Next { old, .. } => {
                let old = *old;
                self.begin_journal(&bytes, old)?;
                self.journal = JournalState::Open { file: None, commits: added.0, steps: added.1 };
            }
            // Only a save mends this, and it does not come here.
            JournalState::Broken { .. } => return Ok(()),
        }
        self.pending.clear();
        Ok(())
    }

    /// The lines to write, and the numbers of commits and steps in them.
    fn encode_pending(&self) -> serde_json::Result<(Vec<u8>, (usize, usize))> {
        let mut bytes = Vec::new();
        if let JournalState::Next { backup, .. } = &self.journal {
            journal::encode_line(&mut bytes, &JournalHead::new(self.on_disk.clone(), backup.clone()))?;
        }
        if self.pending.is_empty() {
            return Ok((bytes, (0, 0)));
        }
        journal::encode_line(&mut bytes, &self.pending)?;
        Ok((bytes, (1, self.pending.len())))
    }

    /// Places a new journal. `keep_old`: the old one extends the backup.
    fn begin_journal(&self, bytes: &[u8], keep_old: bool) -> Result<(), StateError> {
        let (dir, files) = (&self.dir, &self.dir.files);
        let tmp = dir.tmp_name(&files.journal);
        dir.write_new(&tmp, |file| file.write_all(bytes))?;
        failpoint::pass("journal.staged");
        if keep_old {
            dir.rename_once(&files.journal, &files.old_journal)?;
            failpoint::pass("journal.backed-up");
        } else {
            dir.remove(&files.old_journal)?;
        }
        dir.rename(&tmp, &files.journal)?;
        failpoint::pass("journal.placed");
        dir.sync()
    }
}
