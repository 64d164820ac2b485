//! [`ActivityRecorder`]: writes finished actions into the activity journal of their folder.

use jiff::Timestamp;

use crate::state::{ActivityEntry, ActivityJournal};

use super::cycle::FinishedAction;
use super::setup::FolderSetup;

#[derive(Debug, Default)]
pub(super) struct ActivityRecorder {
    /// The last actions could not be written. The log has said so.
    is_failing: bool,
}

impl ActivityRecorder {
    /// Adds the actions. Sync goes on if they cannot be written.
    pub(super) fn note(&mut self, setup: &FolderSetup, done: &[FinishedAction]) {
        let at = Timestamp::now();
        let entry = |done: &FinishedAction| ActivityEntry {
            at,
            path: done.path.to_string(),
            action: done.action.to_owned(),
            outcome: done.outcome.clone(),
            device: done.device.clone(),
        };
        let entries: Vec<ActivityEntry> = done.iter().map(entry).collect();
        match ActivityJournal::new(setup.activity_dir.clone()).append(&entries) {
            Ok(()) => self.is_failing = false,
            Err(e) if !self.is_failing => {
                self.is_failing = true;
                let dir = setup.activity_dir.display();
                tracing::warn!("{dir}: {e}; `memsync log` will lack what happens until this directory can be written");
            }
            Err(e) => tracing::debug!("{}: {e}", setup.activity_dir.display()),
        }
    }
}
