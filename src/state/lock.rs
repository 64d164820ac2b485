//! [`FolderLock`]: ensures one agent per folder. It locks a file on a real path.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The lock is held as long as this value lives. The system releases it when the process ends in any way.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// `pid`: the process that holds the lock, if the file names it.
    #[error("another memsync works on this folder{}", .pid.map(|p| format!(" (process {p})")).unwrap_or_default())]
    Held { pid: Option<u32> },
    #[error("cannot lock {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl FolderLock {
    /// Locks the file at `path`, without a wait. Creates the file (0600) and never removes it.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process, or another value in this one, holds the lock.
    pub(crate) fn acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = Vec::new();
                file.take(32).read_to_end(&mut text).map_err(failed)?;
                return Err(LockError::Held { pid: String::from_utf8_lossy(&text).trim().parse().ok() });
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        // A release must not remove the file: one process could hold the removed file while another one locks a new
        // file.
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn second_lock_is_refused_with_the_pid_of_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.lock");
        std::fs::write(&path, "4294967295 left by a process that died").unwrap();
        let lock = FolderLock::acquire(&path).unwrap();
        match FolderLock::acquire(&path) {
            Err(e @ LockError::Held { pid }) => {
                assert_eq!(pid, Some(std::process::id()));
                assert!(e.to_string().contains(&std::process::id().to_string()));
            }
            other => panic!("{other:?}"),
        }
        drop(lock);
        FolderLock::acquire(&path).unwrap();
    }

    #[test]
    fn lock_file_is_private_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.lock");
        let _lock = FolderLock::acquire(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn error_names_the_file_that_cannot_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no/such/notes.lock");
        assert!(FolderLock::acquire(&path).unwrap_err().to_string().contains("no/such"));
    }
}
