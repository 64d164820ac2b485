//! Changes to the folder that a command asks for. The folder's task makes them between two cycles, so that the stage
//! has one owner.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::disk::real::RealDisk;
use crate::local::{ChangeError, ChangeOutcome, Folder, FolderChange};

use super::control::ControlResponse;
use super::setup::FolderSetup;

/// The longest wait for the folder's task to begin a change.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A change for the folder's task.
pub(crate) struct ChangeRequest {
    change: FolderChange,
    /// Set by the side that decides first: the task begins, or the caller gives up.
    decided: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<ChangeOutcome, String>>,
}

impl ChangeRequest {
    /// The path that it changes.
    pub(super) fn at(&self) -> &str {
        self.change.at()
    }

    /// Makes the change with `make` and answers, unless the caller has given up.
    pub(super) fn carry_out(self, make: impl FnOnce(&FolderChange) -> Result<ChangeOutcome, String>) {
        if !self.decided.swap(true, Ordering::SeqCst) {
            // The caller may have gone. The change stands.
            let _ = self.answer.send(make(&self.change));
        }
    }
}

/// Has the folder's task make a change, and waits for the answer. A change that does not begin in time is not made.
/// `send` gives the request to the folder's task; false: the task has ended.
pub(super) async fn request(
    send: impl FnOnce(ChangeRequest) -> bool,
    root: &Path,
    change: FolderChange,
) -> ControlResponse {
    let (answer, mut done) = oneshot::channel();
    let decided = Arc::new(AtomicBool::new(false));
    let stopped = || ControlResponse::Failed { why: format!("{}: the agent stops", root.display()), state: None };
    if !send(ChangeRequest { change, decided: decided.clone(), answer }) {
        return stopped();
    }
    let answered = match tokio::time::timeout(START_LIMIT, &mut done).await {
        Ok(answered) => answered,
        Err(_) if decided.swap(true, Ordering::SeqCst) => done.await,
        Err(_) => {
            let why = "the agent has been busy with this folder for a minute; nothing was changed; look at \
                       `memsync status`, and try again";
            return ControlResponse::Failed { why: format!("{}: {why}", root.display()), state: None };
        }
    };
    match answered {
        Ok(Ok(outcome)) => ControlResponse::Changed { outcome },
        Ok(Err(why)) => ControlResponse::Failed { why, state: None },
        Err(_) => stopped(),
    }
}

/// Makes a change while the agent has the folder closed, for example after an error of the disk.
pub(super) fn change_closed(setup: &FolderSetup, change: &FolderChange) -> Result<ChangeOutcome, String> {
    let shown = |e: std::io::Error| format!("{}: {e}; nothing was changed", setup.root.display());
    let disk = RealDisk::open(&setup.root).map_err(shown)?;
    let Some(_hold) = disk.lock_root().map_err(shown)? else {
        return Err(format!("{}: another memsync works on this folder; stop it first", setup.root.display()));
    };
    let folder = Folder::new(Arc::new(disk), &setup.device, fastrand::u64(..));
    folder.change_and_sweep(change, Timestamp::now()).map_err(|e| describe(&setup.root, &e))
}

/// The error with the absolute path.
pub(crate) fn describe(root: &Path, e: &ChangeError) -> String {
    format!("{}/{e}", root.display())
}
