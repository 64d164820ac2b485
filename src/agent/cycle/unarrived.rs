//! [`UnarrivedContent`]: a deletion waits for content that did not arrive, because the file may have been renamed.

use std::collections::BTreeSet;

use crate::digest::Md5;
use crate::disk::{Disk, FileStat};
use crate::sync::Action;

use super::step::StepOutcome;

/// Content that did not reach the other side.
#[derive(Debug, Default)]
pub(super) struct UnarrivedContent {
    /// Content that the proxy did not get.
    pub on_proxy: BTreeSet<Md5>,
    /// Content that the folder did not get.
    pub here: BTreeSet<Md5>,
    /// The proxy did not get some content with an unknown digest.
    pub has_unknown: bool,
    /// Files that cannot be read, by the facts that a rename keeps: inode, size and mtime.
    unreadable: BTreeSet<(u64, u64, i64)>,
}

impl UnarrivedContent {
    /// Notes a file that cannot be read.
    pub(super) fn note_unreadable(&mut self, stat: &FileStat) {
        self.unreadable.insert(rename_key(stat));
    }

    /// Notes an action that failed or has not ended.
    pub(super) fn note_action(&mut self, action: &Action) {
        match action {
            Action::Upload { local, .. } | Action::Conflict { local, .. } => drop(self.on_proxy.insert(*local)),
            Action::UploadUnread => self.has_unknown = true,
            Action::Download { remote } => drop(self.here.insert(*remote)),
            _ => {}
        }
    }

    /// Notes an action that ended before its content reached the other side, if a later cycle may still bring it. A
    /// conflict copy arrives only when it is uploaded itself.
    pub(super) fn note_outcome<D: Disk>(&mut self, action: &Action, outcome: &StepOutcome<D>) {
        let has_arrived = match action {
            Action::Upload { .. } | Action::Conflict { .. } => {
                !matches!(outcome, StepOutcome::ProvenDeleted(_) | StepOutcome::Move { .. } | StepOutcome::Nothing)
            }
            // A weak index may name a blob that is gone. No later cycle brings its content.
            Action::Download { .. } => !matches!(outcome, StepOutcome::Nothing | StepOutcome::ProvenUnchanged(_)),
            _ => true,
        };
        if !has_arrived {
            self.note_action(action);
        }
    }

    /// True if a deletion must wait. `was`: the last stat of the file. `bytes`: its size. A file that was too new at
    /// the last scan has no reliable stat; it may be any unreadable file of its size.
    pub(super) fn holds_back(&self, action: &Action, was: Option<FileStat>, bytes: u64) -> bool {
        match action {
            Action::DeleteRemote { base } => {
                self.has_unknown || self.on_proxy.contains(base) || self.may_be_unreadable(was, bytes)
            }
            Action::Trash { local, .. } => self.here.contains(local),
            _ => false,
        }
    }

    fn may_be_unreadable(&self, was: Option<FileStat>, bytes: u64) -> bool {
        match was {
            Some(was) => self.unreadable.contains(&rename_key(&was)),
            None => self.unreadable.iter().any(|(_, size, _)| *size == bytes),
        }
    }
}

fn rename_key(stat: &FileStat) -> (u64, u64, i64) {
    (stat.inode, stat.size, stat.mtime_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Precondition;
    use crate::testing::SimDisk;

    fn upload(local: Md5) -> Action {
        Action::Upload { local, precondition: Precondition::New, tombstone: None }
    }

    #[test]
    fn deletion_waits_for_the_same_content() {
        let (a, b) = (Md5::of(b"a"), Md5::of(b"b"));
        let mut unarrived = UnarrivedContent::default();
        unarrived.note_action(&upload(a));
        unarrived.note_action(&Action::Download { remote: b });
        let waits = |action: Action| unarrived.holds_back(&action, None, 1);
        assert!(waits(Action::DeleteRemote { base: a }) && !waits(Action::DeleteRemote { base: b }));
        let obey = |local| Action::Trash { local, base: None, tombstone: local };
        assert!(waits(obey(b)) && !waits(obey(a)));
        unarrived.note_action(&Action::UploadUnread);
        assert!(unarrived.holds_back(&Action::DeleteRemote { base: b }, None, 1), "it may be the unread file");
    }

    #[test]
    fn content_of_a_missing_blob_is_not_awaited() {
        let a = Md5::of(b"a");
        let download = Action::Download { remote: a };
        let obeyed = Action::Trash { local: a, base: None, tombstone: a };
        let mut unarrived = UnarrivedContent::default();
        unarrived.note_outcome::<SimDisk>(&download, &StepOutcome::Missing);
        unarrived.note_outcome::<SimDisk>(&download, &StepOutcome::DeletedAgain(a));
        assert!(!unarrived.holds_back(&obeyed, None, 1));
        unarrived.note_outcome::<SimDisk>(&download, &StepOutcome::Nothing);
        assert!(unarrived.holds_back(&obeyed, None, 1), "the next index may name it elsewhere");
    }

    #[test]
    fn conflict_copy_has_not_arrived() {
        let a = Md5::of(b"a");
        let mut unarrived = UnarrivedContent::default();
        unarrived.note_outcome::<SimDisk>(&upload(a), &StepOutcome::uploaded(a, 0));
        assert!(unarrived.on_proxy.is_empty());
        unarrived.note_outcome::<SimDisk>(&upload(a), &StepOutcome::ProvenDeleted(a));
        assert!(unarrived.on_proxy.contains(&a));
    }
}
