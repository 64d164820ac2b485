//! Changes to the folder that a command asks for. The folder's thread makes them between two cycles, so that the stage
//! has one owner.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::{ChangeError, ChangeOutcome, Folder, FolderChange};
use crate::remote::Remote;

use super::World;
use super::control::ControlResponse;
use super::engine::Engine;
use super::setup::FolderSetup;

/// The longest wait for the folder's thread to begin with a change.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A change that the folder's thread is to make.
pub struct ChangeRequest {
    change: FolderChange,
    /// Set by the side that decides first: the thread that begins, or the caller who gives up.
    decided: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<ChangeOutcome, String>>,
}

impl ChangeRequest {
    /// The path that it changes.
    pub(super) fn at(&self) -> &str {
        self.change.at()
    }

    /// Has the change made by `make` and answers, unless the caller has given up.
    pub(super) fn carry_out(self, make: impl FnOnce(&FolderChange) -> Result<ChangeOutcome, String>) {
        if !self.decided.swap(true, Ordering::SeqCst) {
            // The caller may have gone. The change stands.
            let _ = self.answer.send(make(&self.change));
        }
    }
}

/// Has the folder's thread make a change, and waits for the answer. A change that has not begun in time is not made.
/// `send` gives the request to the thread; false: the thread has ended.
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
pub fn describe(root: &Path, e: &ChangeError) -> String {
    format!("{}/{e}", root.display())
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Makes a change that a person asks for. The next cycle takes it for an edit.
    ///
    /// # Errors
    /// Why it failed, and what it did until then.
    pub fn change_folder(&mut self, change: &FolderChange) -> Result<ChangeOutcome, ChangeError> {
        let made = self.folder.change(change, self.world.now());
        // A failure may leave something in the stage. The next cycle puts it in order.
        self.leftovers |= made.is_err();
        made
    }
}
