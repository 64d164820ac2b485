//! The identity of a memory folder: a random id in `.memsync/id`. It distinguishes the folder from any other one at the same path.

use std::io;

use crate::disk::{Disk, DiskFile, FileKind};
use crate::failpoint;
use crate::path::PRIVATE_DIR;

use super::Folder;

/// The file with the identity.
pub(crate) const ID_FILE: &str = ".memsync/id";

/// A longer file is no identity.
const MAX_ID_BYTES: usize = 256;

/// Why a root cannot be synced (the gates `root_missing` and `root_changed`).
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("the folder's identity ({ID_FILE}) is missing; if the folder was moved or unmounted, bring it back")]
    Missing { expected: String },
    #[error("this is another folder (its identity is {found}, not {expected}); bring the right one back")]
    Changed { expected: String, found: String },
    #[error("{path}: {source}")]
    Io { path: &'static str, source: io::Error },
}

impl<D: Disk> Folder<D> {
    /// The identity, or `None` if the folder has none.
    ///
    /// # Errors
    /// The file cannot be read, or holds no identity.
    pub fn identity(&self) -> Result<Option<String>, RootError> {
        let fail = |source| RootError::Io { path: ID_FILE, source };
        let invalid = |why: &str| fail(io::Error::new(io::ErrorKind::InvalidData, why));
        let mut file = match self.disk.open(ID_FILE) {
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
            if text.len() > MAX_ID_BYTES {
                return Err(invalid("too long for an identity"));
            }
        }
        let id = String::from_utf8_lossy(&text).trim().to_owned();
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(invalid("not an identity"));
        }
        Ok(Some(id))
    }

    /// Writes the identity `id`, durably. Call it only for a folder without a state container: an identity that a user
    /// removed must never come back by itself.
    ///
    /// # Errors
    /// The file cannot be written. A crash leaves no identity or the whole of it.
    pub(crate) fn create_identity(&self, id: &str) -> io::Result<()> {
        self.ensure_private()?;
        let slot = self.slot();
        let mut file = self.disk.create(&slot)?;
        file.write_all(format!("{id}\n").as_bytes())?;
        file.set_mode(0o600)?;
        file.sync()?;
        self.disk.rename_new(&slot, ID_FILE)?;
        failpoint::pass("identity.placed");
        self.settle_identity()
    }

    /// Makes the identity durable. Call it before anything is bound to an identity that may be older than a crash.
    ///
    /// # Errors
    /// As `fsync(2)`.
    pub(crate) fn settle_identity(&self) -> io::Result<()> {
        self.disk.open(ID_FILE)?.sync()?;
        self.disk.sync_dir(PRIVATE_DIR)?;
        self.disk.sync_dir("")
    }

    /// Checks that the folder has the identity `expected`, to which the state container is bound.
    ///
    /// # Errors
    /// The gate that is closed.
    pub fn check(&self, expected: &str) -> Result<(), RootError> {
        match self.identity()? {
            None => Err(RootError::Missing { expected: expected.to_owned() }),
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(RootError::Changed { expected: expected.to_owned(), found }),
        }
    }
}

/// True if the folder `dir` below the root has an identity of its own.
pub(super) fn has_identity(disk: &impl Disk, dir: &str) -> bool {
    disk.stat(&format!("{dir}/{ID_FILE}")).is_ok_and(|meta| meta.kind == FileKind::File)
}
