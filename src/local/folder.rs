//! [`Folder`]: the root of a memory folder, its identity, and its private `.memsync/`.
//!
//! ```text
//! .memsync/id         the folder's identity, created once, bound to the state container
//! .memsync/.gitignore keeps git from committing or stashing all this
//! .memsync/stage/     downloads not yet placed, displaced files not yet verified, and intents
//! .memsync/history/   what sync replaced or removed: <path>.<stamp>-<kind>
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, DiskFile, FileKind};
use crate::failpoint;
use crate::path::PRIVATE_DIR;

/// Where the folder's identity is kept.
pub const ID: &str = ".memsync/id";
const GITIGNORE: &str = ".memsync/.gitignore";
pub(super) const STAGE: &str = ".memsync/stage";
pub(super) const HISTORY: &str = ".memsync/history";

/// Why a root cannot be synced (the gates `root_missing` and `root_changed`).
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("the folder's identity ({ID}) is missing; if the folder was moved or unmounted, bring it back")]
    Missing { expected: String },
    #[error("another folder stands here (its identity is {found}, not {expected}); bring the right one back")]
    Changed { expected: String, found: String },
    #[error("{path}: {source}")]
    Io { path: &'static str, source: io::Error },
}

/// The root of one memory folder. Cheap to clone.
pub struct Folder<D: Disk> {
    pub(super) disk: Arc<D>,
    /// Makes the names in `stage/` unique: one run, one prefix.
    run: Arc<str>,
    next: Arc<AtomicU64>,
    device: Arc<str>,
}

impl<D: Disk> Clone for Folder<D> {
    fn clone(&self) -> Self {
        Self { disk: self.disk.clone(), run: self.run.clone(), next: self.next.clone(), device: self.device.clone() }
    }
}

impl<D: Disk> Folder<D> {
    /// A folder on `disk`. `device` names conflict copies; `run` is unique to this run of the program.
    pub fn new(disk: Arc<D>, device: &str, run: u64) -> Self {
        Self { disk, run: format!("{run:016x}").into(), next: Arc::new(AtomicU64::new(0)), device: device.into() }
    }

    pub fn disk(&self) -> &D {
        &self.disk
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// The identity, `None` where the folder has none.
    ///
    /// # Errors
    /// When it cannot be read, or is no identity.
    pub fn identity(&self) -> Result<Option<String>, RootError> {
        let fail = |source| RootError::Io { path: ID, source };
        let mut file = match self.disk.open(ID) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(e)),
        };
        let mut text = Vec::new();
        let mut buf = [0u8; 128];
        loop {
            let n = file.read(&mut buf).map_err(fail)?;
            if n == 0 {
                break;
            }
            text.extend_from_slice(&buf[..n]);
            if text.len() > 256 {
                return Err(fail(io::Error::new(io::ErrorKind::InvalidData, "too long for an identity")));
            }
        }
        let id = String::from_utf8_lossy(&text).trim().to_owned();
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidData, "not an identity")));
        }
        Ok(Some(id))
    }

    /// Gives the folder the identity `id`, durably. Only for a folder that no state container is bound to yet: a
    /// marker that went missing is never made again behind the user's back.
    ///
    /// # Errors
    /// When it cannot be written; a crash leaves either no identity or the whole of it.
    pub fn create_identity(&self, id: &str) -> io::Result<()> {
        self.ensure_private()?;
        let slot = self.slot();
        let mut file = self.disk.create(&slot)?;
        file.write_all(format!("{id}\n").as_bytes())?;
        file.set_mode(0o600)?;
        file.sync()?;
        self.disk.rename_new(&slot, ID)?;
        failpoint::pass("identity.placed");
        self.settle_identity()
    }

    /// Puts a `.gitignore` into the private folder, where there is none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn hide_from_git(&self) -> io::Result<()> {
        match self.disk.stat(GITIGNORE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            found => return found.map(drop),
        }
        let slot = self.slot();
        let mut file = self.disk.create(&slot)?;
        file.write_all(b"*\n")?;
        file.sync()?;
        match self.disk.rename_new(&slot, GITIGNORE) {
            // A command beside this one was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.disk.unlink(&slot),
            placed => placed,
        }
    }

    /// Makes an identity durable that may have been made a moment before a crash. Due before anything is bound to it.
    ///
    /// # Errors
    /// As `fsync(2)`.
    pub fn settle_identity(&self) -> io::Result<()> {
        self.disk.open(ID)?.sync()?;
        self.disk.sync_dir(PRIVATE_DIR)?;
        self.disk.sync_dir("")
    }

    /// Checks that the folder is the one it was: `expected` is the identity that the state container is bound to.
    ///
    /// # Errors
    /// Which gate is shut.
    pub fn check(&self, expected: &str) -> Result<(), RootError> {
        match self.identity()? {
            None => Err(RootError::Missing { expected: expected.to_owned() }),
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(RootError::Changed { expected: expected.to_owned(), found }),
        }
    }

    /// Makes `.memsync/` and the folders in it.
    ///
    /// # Errors
    /// When one cannot be made, or something else has its name.
    pub fn ensure_private(&self) -> io::Result<()> {
        let mut made = false;
        for dir in [PRIVATE_DIR, STAGE, HISTORY] {
            made |= self.ensure_dir(dir)?;
        }
        if made {
            self.disk.sync_dir(PRIVATE_DIR)?;
            self.disk.sync_dir("")?;
        }
        Ok(())
    }

    /// True when it had to be made.
    pub(super) fn ensure_dir(&self, dir: &str) -> io::Result<bool> {
        match self.disk.mkdir(dir) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.disk.stat(dir)?.kind {
                FileKind::Dir => Ok(false),
                _ => Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{dir} is no folder"))),
            },
            Err(e) => Err(e),
        }
    }

    /// A name in `stage/` that nothing has.
    pub(super) fn slot(&self) -> String {
        format!("{STAGE}/{}-{:x}", self.run, self.next.fetch_add(1, Ordering::Relaxed))
    }
}
