//! Pausing, for all folders at once. The pause is kept over restarts.
//!
//! [`PauseSwitch`] belongs to the agent; each folder has a [`PauseReceiver`]. While a pause is active,
//! [`Schedule`](super::schedule::Schedule) runs no cycle; its end forces one.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::{Timestamp, Unit};
use tokio::sync::watch;

use crate::state::Pause;

/// A pause that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ActivePause {
    /// `None`: it lasts until the user resumes.
    pub until: Option<Instant>,
    /// The same by the wall clock.
    pub shown: Option<Timestamp>,
}

impl ActivePause {
    /// `None`: the pause is over.
    fn new(pause: &Pause) -> Option<Self> {
        let left = pause.left(Timestamp::now());
        let until = left.and_then(|left| Instant::now().checked_add(left));
        (left != Some(Duration::ZERO)).then_some(Self { until, shown: pause.until })
    }

    /// The status of a paused folder: until when, and the command that ends it.
    pub(super) fn reason(&self) -> String {
        match self.shown.and_then(|at| at.round(Unit::Second).ok()) {
            Some(at) => format!("paused until {at}; `memsync resume` goes on sooner"),
            None => "paused; `memsync resume` goes on".to_owned(),
        }
    }
}

/// Pauses and resumes all folders.
pub(super) struct PauseSwitch {
    /// Has the file that keeps the pause.
    state_dir: PathBuf,
    active: watch::Sender<Option<ActivePause>>,
}

impl PauseSwitch {
    /// Goes on with the pause that is kept in `state_dir`.
    pub(super) fn load(state_dir: PathBuf) -> io::Result<Self> {
        let pause = Pause::load(&state_dir, Timestamp::now())?;
        let active = pause.and_then(|pause| ActivePause::new(&pause));
        if let Some(active) = &active {
            tracing::warn!("{}", active.reason());
        }
        Ok(Self { state_dir, active: watch::Sender::new(active) })
    }

    /// Pauses all folders, once the pause is on disk. `for_s`: seconds; `None`: until [`PauseSwitch::resume`].
    pub(super) fn pause(&self, for_s: Option<u64>) -> Result<(), String> {
        let pause = Pause::new(for_s, Timestamp::now());
        pause.save(&self.state_dir).map_err(|e| format!("not paused: {}: {e}", self.state_dir.display()))?;
        self.active.send_replace(ActivePause::new(&pause));
        Ok(())
    }

    /// Ends the pause in every folder, then on disk.
    pub(super) fn resume(&self) -> Result<(), String> {
        self.active.send_replace(None);
        Pause::forget(&self.state_dir)
            .map_err(|e| format!("syncing again, but the next start pauses again: {}: {e}", self.state_dir.display()))
    }

    pub(super) fn subscribe(&self) -> PauseReceiver {
        PauseReceiver(self.active.subscribe())
    }
}

/// The pause, as one folder sees it.
pub(super) struct PauseReceiver(watch::Receiver<Option<ActivePause>>);

impl PauseReceiver {
    /// The pause that is active at `now`.
    pub(super) fn active(&self, now: Instant) -> Option<ActivePause> {
        self.0.borrow().filter(|pause| pause.until.is_none_or(|until| now < until))
    }

    /// Returns after the user has paused or resumed.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The agent ends, and with it all folders.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pause_reaches_folders_and_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let switch = PauseSwitch::load(dir.path().to_owned()).unwrap();
        let mut folder = switch.subscribe();
        let now = Instant::now();
        assert_eq!(folder.active(now), None);
        switch.pause(Some(3600)).unwrap();
        folder.changed().await;
        let pause = folder.active(now).unwrap();
        assert!(pause.reason().starts_with("paused until 2"), "{}", pause.reason());
        assert_eq!(folder.active(pause.until.unwrap()), None, "it ends by itself");
        let next_start = PauseSwitch::load(dir.path().to_owned()).unwrap();
        assert!(next_start.subscribe().active(now).is_some());
        switch.resume().unwrap();
        folder.changed().await;
        assert_eq!(folder.active(now), None);
        let next_start = PauseSwitch::load(dir.path().to_owned()).unwrap();
        assert_eq!(next_start.subscribe().active(now), None);
    }

    #[test]
    fn pause_is_refused_when_it_cannot_be_saved() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let switch = PauseSwitch::load(state_dir.clone()).unwrap();
        std::fs::write(state_dir, "a file in place of the directory").unwrap();
        assert!(switch.pause(None).unwrap_err().starts_with("not paused: "));
        assert_eq!(switch.subscribe().active(Instant::now()), None);
    }
}
